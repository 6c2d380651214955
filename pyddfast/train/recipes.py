"""The label regimes as recipes: Table 1 of the paper, with every open value an option.

"Rethinking Dataset Distillation: Hard Truths About Soft Labels" (supplement, Table 1) trains
students in three regimes: **HL**, hard labels; **SL**, one fixed soft label an image; **SL+KD**, a
teacher's label for every augmented view.  Beside them stands the evaluation that the small-scale
codebases published their numbers with (:func:`official_recipe`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypeAlias, get_args

from pyddfast.ops.dsa import STANDARD_STRATEGY, parse_strategy

__all__ = ["OFFICIAL", "Protocol", "Recipe", "Regime", "Scale", "official_recipe", "recipe"]

Regime: TypeAlias = Literal["hl", "sl", "sl-kd"]
Scale: TypeAlias = Literal["large", "small"]
Protocol: TypeAlias = Literal["paper", "official"]

# Table 1, large-scale HL: batch size at the IPC it was published for.
_HL_BATCH = {10: 50, 50: 128, 100: 200}


# What differs between the official evaluations of small-scale sets.  Epochs are the argument of
# their command, one less than they train for.  DC's images were made without augmentation.  VICO
# and DC-BENCH leave align_corners to torch, which means False since 1.3; MTT and DATM pass True.
OFFICIAL: dict[str, dict[str, Any]] = {
    "dc": {"epochs": 300, "augmentation": "none"},
    "dsa": {"epochs": 1000},
    "dm": {"epochs": 1000},
    "tm": {"epochs": 1000, "dsa_align_corners": True},
    "datm": {"epochs": 1000, "dsa_align_corners": True, "batch_size": 128},
}


@dataclass(frozen=True)
class Recipe:
    """How a student is trained. :func:`recipe` gives the published ones; every field is an option.

    In Table 1: ``epochs``, ``loss``, ``temperature``, ``optimizer``, ``lr``, ``schedule``,
    ``milestone``, ``warmup_epochs``, ``batch_size``, ``augmentation``, ``patch_shuffle``, and
    whether ``cutmix``.  The rest is left open there.  HL was tuned around DeepCore's values, so
    open HL values are DeepCore's (PatrickZH/DeepCore, ``main.py``); SL and SL+KD adopt EDC's
    configuration, so their open values are EDC's (shaoshitong/EDC, ``train_FKD_parallel.py``).

    Attributes:
        regime: ``"hl"``, ``"sl"`` or ``"sl-kd"``.
        scale: ``"large"`` (ImageNet-1K columns) or ``"small"`` (Tiny-ImageNet, CIFAR-100).
        epochs: passes over the set.  A budget changes it, and milestone and warm-up in proportion.
        loss: ``"ce"`` or ``"kl"``: KL(teacher || student), both softened, mean over the batch.
        temperature: of KL, before both softmaxes.
        t_squared: multiply KL by T².  Off: not in Table 1, and no code of this line of work does.
        optimizer: ``"sgd"`` or ``"adamw"``.
        lr: peak learning rate.
        momentum: of SGD; 0.9 (DeepCore).
        nesterov: of SGD; True (DeepCore's default).
        weight_decay: 5e-4 with SGD (DeepCore), 0.01 with AdamW (EDC).
        decay_vectors: decay biases and norm parameters too: True with SGD (DeepCore decays all),
            False with AdamW (EDC decays only weights of two or more dimensions).
        betas: of AdamW; (0.9, 0.999), torch's and EDC's.
        schedule: ``"cosine"``, ``"step"``, ``"step-reset"`` or ``"constant"``, applied every
            optimiser step.  ``"step"`` multiplies the lr by ``gamma`` from epoch ``milestone`` on,
            momentum kept: torch's StepLR, as the table names it.  ``"step-reset"`` also drops the
            momentum there, as the small-scale codebases do by building a new optimiser.
        milestone: epoch (of ``epochs``) of the step schedules.
        gamma: 0.1, what DC's and DC-BENCH's evaluation, the source of 300 epochs, multiplies by.
        warmup_epochs: linear warm-up before the cosine; its form is open, linear is the common one.
        cosine_stretch: cos runs over this many times the training: 1 ends at lr 0, the plain cosine
            that the table names; EDC's "smoothed" one is 2 (ends at half the lr), RDED's too.
        batch_size: images a step.
        drop_last: leave an epoch's last partial batch out.  Off: small sets are seen whole.  A last
            batch of one image joins the batch before it, since batch norm cannot train on one.
        augmentation: ``"rrc"`` (RRC + flip, PatchShuffle, CutMix), ``"dsa"`` or ``"none"``.
        image_size: side of the square views; None keeps the stored size.
        rrc_scale: HL (0.08, 1): torchvision's default, DeepCore uses no RRC; SL and SL+KD (0.5, 1):
            EDC's.
        rrc_ratio: (3/4, 4/3), torchvision's default everywhere.
        antialias: of RRC's resize, as RDED and EDC have it on tensors.
        flip: probability of the horizontal flip.
        patch_shuffle: ``"auto"``: exactly for sets of kind "patches" with factor > 1; ``"off"``.
        patch_shuffle_first: PatchShuffle before RRC, the order of RDED and EDC.
        cutmix: Beta parameter, 1.0 (EDC; every batch is mixed), or None.  Only SL+KD can have it:
            fixed labels do not describe mixed images.
        ema: decay of the moving average of the weights, one step's weight being 1 - ema; the
            averaged model is then what is evaluated and saved.  None: the table names none; EDC
            has 0.99.  Starts at the weights after the first step; batch norm's statistics are
            averaged too.
        dsa_strategy: entries of DSA; the standard strategy of the small-scale codebases.
        dsa_mode: ``"single"``: one entry a step, as all of them run it; ``"all"``.
        dsa_align_corners: of DSA's scale and rotate: False, as DC-BENCH (the paper's evaluation
            follows it) computes on today's torch.
        in_paper: False where the paper has no such column: small-scale SL+KD.
        notes: what of this recipe is ours, said in config and report.
    """

    regime: Regime
    scale: Scale
    epochs: int
    loss: Literal["ce", "kl"]
    optimizer: Literal["sgd", "adamw"]
    lr: float
    schedule: Literal["cosine", "step", "step-reset", "constant"]
    batch_size: int
    augmentation: Literal["rrc", "dsa", "none"]
    temperature: float = 20.0
    t_squared: bool = False
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_vectors: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    milestone: int = 151
    gamma: float = 0.1
    warmup_epochs: int = 0
    cosine_stretch: float = 1.0
    drop_last: bool = False
    image_size: int | None = None
    rrc_scale: tuple[float, float] = (0.08, 1.0)
    rrc_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    antialias: bool = True
    flip: float = 0.5
    patch_shuffle: Literal["auto", "off"] = "auto"
    patch_shuffle_first: bool = True
    cutmix: float | None = None
    ema: float | None = None
    dsa_strategy: str = STANDARD_STRATEGY
    dsa_mode: Literal["single", "all"] = "single"
    dsa_align_corners: bool = False
    in_paper: bool = True
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        choices: dict[str, tuple[str, ...]] = {
            "regime": get_args(Regime),
            "scale": get_args(Scale),
            "loss": ("ce", "kl"),
            "optimizer": ("sgd", "adamw"),
            "schedule": ("cosine", "step", "step-reset", "constant"),
            "augmentation": ("rrc", "dsa", "none"),
            "patch_shuffle": ("auto", "off"),
            "dsa_mode": ("single", "all"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        for name in ("epochs", "batch_size", "image_size"):
            value = getattr(self, name)
            if name == "image_size" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}")
        for name in ("lr", "temperature", "gamma", "cosine_stretch", "cutmix"):
            value = getattr(self, name)
            if name == "cutmix" and value is None:
                continue
            if _number(name, value) <= 0:
                raise ValueError(f"{name} must be positive, got {value!r}")
        if self.cosine_stretch < 1:
            raise ValueError(f"cosine_stretch must be at least 1, got {self.cosine_stretch}")
        for name in ("momentum", "weight_decay", "warmup_epochs", "milestone"):
            if _number(name, getattr(self, name)) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.ema is not None and not 0 < _number("ema", self.ema) < 1:
            raise ValueError(f"ema must lie between 0 and 1, got {self.ema}")
        if not 0 <= _number("flip", self.flip) <= 1:
            raise ValueError(f"flip must lie in [0, 1], got {self.flip}")
        for name in ("rrc_scale", "rrc_ratio", "betas"):
            # From a command line or JSON it may be a list.
            object.__setattr__(self, name, _pair(name, getattr(self, name)))
        if not 0 < self.rrc_scale[0] <= self.rrc_scale[1] <= 1:
            raise ValueError(
                f"rrc_scale must be (smallest, largest) share of the area, got {self.rrc_scale}"
            )
        if not 0 < self.rrc_ratio[0] <= self.rrc_ratio[1]:
            raise ValueError(f"rrc_ratio must be (smallest, largest), got {self.rrc_ratio}")
        if not (0 <= self.betas[0] < 1 and 0 <= self.betas[1] < 1):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
        for field_ in fields(self):
            value = getattr(self, field_.name)
            if field_.type == "bool" and not isinstance(value, bool):
                raise ValueError(f"{field_.name} must be True or False, got {value!r}")
        if not isinstance(self.dsa_strategy, str):
            raise ValueError(f"dsa_strategy must be a text, got {self.dsa_strategy!r}")
        if (self.regime == "hl") != (self.loss == "ce"):
            raise ValueError(f"regime {self.regime!r} has another loss than {self.loss!r}")
        if self.cutmix is not None and self.regime != "sl-kd":
            raise ValueError(
                f"cutmix needs regime 'sl-kd' (a label for every view), got {self.regime!r}"
            )
        if self.cutmix is not None and self.augmentation != "rrc":
            raise ValueError(f"cutmix belongs to augmentation 'rrc', got {self.augmentation!r}")
        if self.image_size is not None and self.augmentation != "rrc":
            raise ValueError(f"image_size needs augmentation 'rrc', got {self.augmentation!r}")
        parse_strategy(self.dsa_strategy)

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON values."""
        values = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _number(name: str, value: object) -> float:
    """The value, if it is a finite number."""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    if not known or not math.isfinite(value):  # type: ignore[arg-type]
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return value  # type: ignore[return-value]


def _pair(name: str, value: object) -> tuple[float, float]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise ValueError(f"{name} must be two numbers, got {value!r}")
    return _number(name, value[0]), _number(name, value[1])


def recipe(
    regime: Regime, scale: Scale = "large", ipc: int | None = None, **overrides: Any
) -> Recipe:
    """The paper's Table 1 as a :class:`Recipe`.

    Args:
        regime: ``"hl"``, ``"sl"`` or ``"sl-kd"``.  Small-scale SL+KD is not in the paper: it is
            small-scale SL with the teacher on every augmented view, and says so (``in_paper``).
        scale: ``"large"`` or ``"small"``.
        ipc: images per class; large-scale HL needs it for its batch size: 50 / 128 / 200 at IPC
            10 / 50 / 100.  Ours, recorded in ``notes``: between two of them the lower one's, below
            10 that of 10, above 100 that of 100.
        **overrides: fields of :class:`Recipe` that replace the published values.

    Raises:
        ValueError: unknown regime or scale, ``ipc`` missing or not positive, or an override that
            does not fit.
        TypeError: an override that is no field.
    """
    if regime not in get_args(Regime):
        raise ValueError(f"regime must be one of {get_args(Regime)}, got {regime!r}")
    if scale not in get_args(Scale):
        raise ValueError(f"scale must be one of {get_args(Scale)}, got {scale!r}")
    if ipc is not None and ipc < 1:
        raise ValueError(f"ipc must be positive, got {ipc}")
    if unknown := sorted(overrides.keys() - {field.name for field in fields(Recipe)}):
        raise TypeError(f"a recipe has no field {', '.join(unknown)}")
    base = _large(regime, ipc, overrides) if scale == "large" else _small(regime)
    return replace(base, **overrides)


def official_recipe(
    method: str, *, lr: float | None = None, epochs: int | None = None, **overrides: Any
) -> Recipe:
    """The evaluation that a small-scale method was published with, as a :class:`Recipe`.

    ``evaluate_synset`` of VICO-UoE/DatasetCondensation and its copies: SGD with momentum 0.9 and
    weight decay 5e-4, E + 1 epochs in batches of 256, the learning rate times 0.1 after epoch
    E // 2 + 1 (counted from 0) by a new optimiser, so that the momentum is lost there; DSA with
    parameters of each image.  It is in no table of the paper, whose HL has 300 epochs and keeps the
    momentum.

    DATM trains on its own labels: regime ``"sl"`` with ``labels="stored"``.  Its loss is the cross
    entropy with their softmax, which has the gradient of KL at temperature 1.

    Args:
        method: ``"dc"``, ``"dsa"``, ``"dm"``, ``"tm"`` or ``"datm"``.
        lr: Learning rate; None: 0.01.  TM's and DATM's students take the one that was learned with
            the images (``DistilledSet.lr``).
        epochs: E, the official argument ``--epoch_eval_train``; None: 300 for DC, else 1000.
        **overrides: Fields of :class:`Recipe` that replace the published values.

    Raises:
        ValueError: Unknown method, or a value that does not fit.
        TypeError: An override that is no field.
    """
    if method not in OFFICIAL:
        raise ValueError(f"method must be one of {tuple(OFFICIAL)}, got {method!r}")
    published = dict(OFFICIAL[method])
    usual = published.pop("epochs")
    count = usual if epochs is None else epochs
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"epochs must be a positive int, got {count!r}")
    soft = method == "datm"
    fixed: dict[str, Any] = {
        "epochs": count + 1,
        # Epochs 0 to E // 2 + 1 are at the full rate.
        "milestone": count // 2 + 2,
        "schedule": "step-reset",
        "nesterov": False,
        "in_paper": False,
        "notes": (f"the official evaluation of {method}",),
        **published,
        **({"loss": "kl", "temperature": 1.0} if soft else {}),
        **({} if lr is None else {"lr": lr}),
    }
    base = replace(_small("hl"), **fixed, regime="sl" if soft else "hl")
    if unknown := sorted(overrides.keys() - {field.name for field in fields(Recipe)}):
        raise TypeError(f"a recipe has no field {', '.join(unknown)}")
    return replace(base, **overrides)


def _large(regime: Regime, ipc: int | None, overrides: dict[str, Any]) -> Recipe:
    if regime == "hl":
        notes: tuple[str, ...] = ()
        if "batch_size" in overrides:
            batch_size = overrides["batch_size"]
        elif ipc is None:
            raise ValueError("ipc is required: large-scale HL takes its batch size from it")
        else:
            listed = max((k for k in _HL_BATCH if k <= ipc), default=min(_HL_BATCH))
            batch_size = _HL_BATCH[listed]
            if ipc not in _HL_BATCH:
                notes = (
                    f"batch size {batch_size} of IPC {listed} used for IPC {ipc} (our choice)",
                )
        return Recipe(
            regime="hl",
            scale="large",
            epochs=200,
            loss="ce",
            optimizer="sgd",
            lr=0.5,
            schedule="cosine",
            batch_size=batch_size,
            augmentation="rrc",
            notes=notes,
        )
    return Recipe(
        regime=regime,
        scale="large",
        epochs=200,
        loss="kl",
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.01,
        decay_vectors=False,
        schedule="cosine",
        warmup_epochs=5,
        batch_size=128,
        augmentation="rrc",
        rrc_scale=(0.5, 1.0),
        cutmix=1.0 if regime == "sl-kd" else None,
    )


def _small(regime: Regime) -> Recipe:
    if regime == "hl":
        return Recipe(
            regime="hl",
            scale="small",
            epochs=300,
            loss="ce",
            optimizer="sgd",
            lr=1e-2,
            schedule="step",
            batch_size=256,
            augmentation="dsa",
        )
    in_paper = regime == "sl"
    return Recipe(
        regime=regime,
        scale="small",
        epochs=300,
        loss="kl",
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.01,
        decay_vectors=False,
        schedule="cosine",
        batch_size=256,
        augmentation="dsa",
        in_paper=in_paper,
        notes=() if in_paper else ("small-scale SL+KD: not in the paper",),
    )
