"""Train students on a distilled set in a label regime, over several seeds."""

from __future__ import annotations

import hashlib
import math
import os
import statistics
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyddfast.data import DistilledSet, ImageFolder, ImageSource, ResidentDataset, SoftLabels
from pyddfast.data.datasets import describe_whitening
from pyddfast.data.digest import data_digest, describe_data
from pyddfast.random import Purpose, generator
from pyddfast.train.checkpoint import CHECKPOINT, CHECKPOINT_SECONDS, diverged, fit
from pyddfast.train.distributed import join_ranks, resolve_device
from pyddfast.train.evaluate import evaluate, sampling_error
from pyddfast.train.execution import Execution
from pyddfast.train.labels import FixedLabels, HardLabels, LabelSource, ViewLabels, soft_labels
from pyddfast.train.loop import Trainer, check_batches, deterministic_mode
from pyddfast.train.models import ModelSpec, build_model, describe_model, model_digest
from pyddfast.train.plan import Budget, Epochs, Plan, Samples, Steps
from pyddfast.train.progress import progress as show_progress
from pyddfast.train.recipes import OFFICIAL, Protocol, Recipe, Regime, Scale, official_recipe
from pyddfast.train.recipes import recipe as published_recipe
from pyddfast.train.run import RunFolder
from pyddfast.train.stored import StoredLabels, check_stored, stored_recipe
from pyddfast.train.views import make_views

__all__ = [
    "SMALL_SIDE",
    "SeedResult",
    "StudentResult",
    "check_student",
    "official_recipe_of",
    "paper_recipe_of",
    "train_student",
]

# Tiny-ImageNet's 64 pixels are the largest of the paper's small-scale sets.
SMALL_SIDE = 64


@dataclass(frozen=True)
class SeedResult:
    """One student.

    Attributes:
        seed: of initialisation, order and augmentation.
        last_accuracy: test accuracy after the last step, in [0, 1].
        last_epoch: epochs trained.
        best_accuracy: highest test accuracy of all evaluations (chosen on the test set).
        best_epoch: when it was first reached.
        history: a row an evaluation.
        images_per_second: throughput of the training steps.
        train_seconds: time in them.
        weights: the final weights' safetensors file, where a folder was given.
    """

    seed: int
    last_accuracy: float
    last_epoch: float
    best_accuracy: float
    best_epoch: float
    history: list[dict[str, Any]]
    images_per_second: float
    train_seconds: float
    weights: Path | None = None

    @property
    def diverged(self) -> bool:
        """Whether the training loss was not finite at an evaluation: the accuracy means nothing."""
        return diverged(self.history)

    def to_dict(self) -> dict[str, Any]:
        """All fields but the path, and ``diverged``; JSON values."""
        values = {k: v for k, v in vars(self).items() if k != "weights"}
        return {**values, "diverged": self.diverged}


@dataclass(frozen=True)
class StudentResult:
    """Students of every seed, and how they were trained.

    Attributes:
        seeds: one result a seed.
        test_count: images of the test set.
        config: everything that decided the result, as in ``config.json``.
    """

    seeds: tuple[SeedResult, ...]
    test_count: int
    config: dict[str, Any]

    @property
    def mean(self) -> float:
        """Mean over seeds of the last accuracy."""
        return statistics.fmean(seed.last_accuracy for seed in self.seeds)

    @property
    def std(self) -> float:
        """Sample standard deviation over seeds (ddof = 1) of the last accuracy; NaN for one."""
        return _std([seed.last_accuracy for seed in self.seeds])

    @property
    def best_mean(self) -> float:
        """Mean over seeds of the best accuracy (each chosen on the test set: optimistic)."""
        return statistics.fmean(seed.best_accuracy for seed in self.seeds)

    @property
    def best_std(self) -> float:
        """Sample standard deviation over seeds of the best accuracy; NaN for one seed."""
        return _std([seed.best_accuracy for seed in self.seeds])

    @property
    def diverged(self) -> tuple[int, ...]:
        """Seeds whose training loss was not finite; their accuracies count in the means."""
        return tuple(seed.seed for seed in self.seeds if seed.diverged)

    @property
    def sampling_error(self) -> float:
        """Standard error of the mean accuracy from the finite test set alone.

        All seeds share the test set, so averaging over them does not shrink it.
        """
        return sampling_error(self.mean, self.test_count)

    @property
    def images_per_second(self) -> float:
        """Mean throughput over seeds."""
        return statistics.fmean(seed.images_per_second for seed in self.seeds)

    def to_dict(self) -> dict[str, Any]:
        """Summary and every seed, JSON values (None for the spread of one seed)."""
        std, best_std = (None if math.isnan(s) else s for s in (self.std, self.best_std))
        return {
            "mean": self.mean,
            "std": std,
            "best_mean": self.best_mean,
            "best_std": best_std,
            "sampling_error": self.sampling_error,
            "diverged": list(self.diverged),
            "test_count": self.test_count,
            "images_per_second": self.images_per_second,
            "seeds": [seed.to_dict() for seed in self.seeds],
            "config": self.config,
        }


def train_student(
    distilled_set: DistilledSet | ResidentDataset,
    regime: Regime,
    model: ModelSpec,
    *,
    test_set: ImageSource,
    teacher: nn.Module | None = None,
    teacher_info: Mapping[str, Any] | None = None,
    labels: Literal["auto", "stored"] | SoftLabels = "auto",
    recipe: Recipe | None = None,
    protocol: Protocol = "paper",
    scale: Scale | None = None,
    budget: Budget | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    evaluations: int = 10,
    device: torch.device | str | None = None,
    deterministic: bool = False,
    execution: Execution | None = None,
    out: str | Path | None = None,
    resume: bool = True,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    progress: bool = True,
) -> StudentResult:
    """Train a student from scratch for every seed and measure it on the whole test set.

    Under ``torchrun`` its processes divide every batch and the test set among them; the first one
    writes and shows progress, all return the result.

    Args:
        distilled_set: what to train on, resident on ``device`` if it is a
            :class:`pyddfast.data.ResidentDataset`; it carries labels, factor and normalisation.
        regime: ``"hl"``, ``"sl"`` or ``"sl-kd"``.
        model: a name of ``pyddfast.models``, (name, options), or a function ``seed -> nn.Module``.
        test_set: images of the set's size (or of ``recipe.image_size`` after resizing).
        teacher: network for SL and SL+KD; HL and stored labels leave it alone.  It is moved to
            ``device``, put in eval mode and never trained.  SL: it labels each stored image once,
            un-augmented, in the size of the views.
        teacher_info: JSON facts about the teacher for the record; its test accuracy is measured
            here unless ``teacher_info`` has ``"accuracy"``.
        labels: ``"auto"``: the class in HL, the teacher's in SL and SL+KD; ``"stored"``: SL with
            the set's own ``soft_labels``; a store: SL+KD with the views and labels that
            :func:`relabel` or an official code stored.  Neither needs a teacher.
        recipe: how to train; None: the paper's, ``recipe(regime, scale, distilled_set.ipc)``, or
            that of a store of :func:`relabel`.
        protocol: Which recipe None means: ``"paper"``, or ``"official"``: :func:`official_recipe`
            of the method that ``distilled_set.meta`` names, with the learned learning rate of the
            set where it has one.
        scale: which columns of Table 1; None: small up to 64 pixels, else large.
        budget: ``Epochs(n)``, ``Steps(n)`` or ``Samples(n)`` instead of the recipe's epochs; step
            milestone and warm-up keep their share of the training.  Recorded.
        seeds: one student each.
        evaluations: test evaluations a student, evenly spread; the last is after the last step.
        device: None: CUDA where there is one, else the CPU.
        deterministic: torch's deterministic algorithms (CUDA needs them for equal bytes).
        execution: precision, compilation, accumulation ...; None: float32, one pass a batch.
        out: run folder: config.json, metrics.jsonl, checkpoints, seed<k>.safetensors,
            result.json.
        resume: continue what ``out`` holds; False refuses a non-empty folder.
        checkpoint_seconds: at most this long between two checkpoints.
        progress: show it on stderr.

    Returns:
        Accuracies per seed, mean and sample standard deviation, and the configuration as used.  A
        training whose loss is not finite is warned of and counted all the same; see ``diverged``.

    Raises:
        ValueError: set, test set, teacher, recipe and regime do not fit together, a seed is
            repeated, there is no such device, or ``out`` holds a damaged file or another run.
        BlockingIOError: another process works in ``out``.
        FileExistsError: ``out`` holds something else.
        TypeError: an argument has the wrong type.
    """
    used, plan, target = check_student(
        distilled_set,
        regime,
        model,
        test_set=test_set,
        has_teacher=teacher is not None,
        labels=labels,
        recipe=recipe,
        protocol=protocol,
        scale=scale,
        budget=budget,
        seeds=seeds,
        evaluations=evaluations,
        device=device,
        execution=execution,
    )
    size, how = used.image_size, execution or Execution()
    resident = resident_on(target, distilled_set)
    ranks = join_ranks(target)
    with deterministic_mode(deterministic), ExitStack() as stack:
        used_teacher = teacher if _asks_teacher(regime, labels) else None
        record = _teacher_record(used_teacher, teacher_info, test_set, distilled_set, size, target)
        source = _label_source(resident, regime, teacher, labels, used, plan, target)
        replayed = source if isinstance(source, StoredLabels) else None
        config = {
            "task": "train_student",
            "regime": regime,
            "recipe": used.to_dict(),
            "budget": _describe_budget(plan, used),
            "model": describe_model(model),
            "seeds": list(seeds),
            "evaluations": evaluations,
            "set": _describe_set(distilled_set),
            "labels": source.describe(),
            "teacher": record,
            "test_set": describe_data(
                test_set.source if isinstance(test_set, ResidentDataset) else test_set
            ),
            "device": target.type,
            "deterministic": deterministic,
            # The one thing about the execution that is not rounding.
            "batch_norm_parts": how.accumulate * (1 if how.batch_norm == "sync" else ranks.world),
        }
        facts = {"execution": how.to_dict(), "processes": ranks.world}
        folder = None
        if out is not None and ranks.first:
            folder = stack.enter_context(RunFolder(out, config, resume=resume, execution=facts))
        ranks.wait()
        if out is not None and not ranks.first:
            folder = RunFolder(out, config, shared=True, execution=facts)
        done = []
        with show_progress(
            f"train {regime} students",
            plan.total_steps * len(seeds),
            enabled=progress and ranks.first,
        ) as advance:
            for seed in seeds:
                finished = None if folder is None else _read_seed(folder, seed)
                if finished is not None:
                    advance(plan.total_steps)
                    done.append(finished)
                    continue
                student = _new_model(distilled_set, model, used, seed).to(target)
                views = make_views(
                    resident,
                    distilled_set.normalization,
                    used,
                    seed=seed,
                    kind=distilled_set.kind,
                    factor=distilled_set.factor,
                    dtype=how.dtype,
                    channels_last=how.channels_last,
                    draws=replayed,
                )
                trainer = Trainer(
                    student,
                    used,
                    plan,
                    views,
                    source,
                    seed=seed,
                    execution=how,
                    ranks=ranks,
                    order=None if replayed is None else replayed.order,
                )

                def accuracy(trainer: Trainer = trainer) -> float:
                    return evaluate(
                        trainer.result,
                        test_set,
                        normalization=distilled_set.normalization,
                        size=size,
                        device=target,
                        ranks=ranks,
                    )

                trained = fit(
                    trainer,
                    accuracy,
                    evaluations=evaluations,
                    folder=folder,
                    key={"seed": seed},
                    checkpoint_seconds=checkpoint_seconds,
                    advance=advance,
                )
                best = max(trained.history, key=lambda row: float(row["test_accuracy"]))
                last = trained.history[-1]
                result = SeedResult(
                    seed=seed,
                    last_accuracy=last["test_accuracy"],
                    last_epoch=last["epoch"],
                    best_accuracy=best["test_accuracy"],
                    best_epoch=best["epoch"],
                    history=trained.history,
                    images_per_second=trained.images_per_second,
                    train_seconds=trained.train_seconds,
                    weights=None if folder is None else folder.path / f"seed{seed}.safetensors",
                )
                weights = trainer.result.state_dict()
                if folder is not None and ranks.first:
                    folder.write_tensors(f"seed{seed}.safetensors", weights)
                    # Last: this file says that the seed is done.
                    folder.write_json(f"seed{seed}.json", result.to_dict())
                    folder.remove(CHECKPOINT)
                ranks.wait()  # the next seed looks for a checkpoint
                done.append(result)
        students = StudentResult(tuple(done), len(test_set), {**config, **facts})
        if folder is not None and ranks.first:
            folder.write_json("result.json", students.to_dict())
    if students.diverged and ranks.first:
        warnings.warn(
            f"the training loss of the students of seeds {list(students.diverged)} was not finite: "
            f"their accuracies mean nothing; lower lr ({used.lr:g})",
            stacklevel=2,
        )
    return students


def check_student(
    distilled_set: DistilledSet | ResidentDataset,
    regime: Regime,
    model: ModelSpec,
    *,
    test_set: ImageSource,
    has_teacher: bool,
    labels: Literal["auto", "stored"] | SoftLabels = "auto",
    recipe: Recipe | None = None,
    protocol: Protocol = "paper",
    scale: Scale | None = None,
    budget: Budget | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    evaluations: int = 10,
    device: torch.device | str | None = None,
    execution: Execution | None = None,
) -> tuple[Recipe, Plan, torch.device]:
    """Whether :func:`train_student` can do it: for callers that train a teacher first.

    Args:
        distilled_set: as there.
        regime: as there.
        model: as there; the first seed's is built.
        test_set: as there.
        has_teacher: there will be a teacher.
        labels: as there.
        recipe: as there.
        protocol: as there.
        scale: as there.
        budget: as there.
        seeds: as there.
        evaluations: as there.
        device: as there.
        execution: as there.

    Returns:
        The recipe as used, what each step sees, and the device.

    Raises:
        ValueError: as there.
        TypeError: as there.
    """
    if recipe is None and isinstance(labels, SoftLabels) and regime == "sl-kd":
        recipe = stored_recipe(labels)
    used = _recipe(distilled_set, regime, recipe, scale, protocol)
    plan = Plan(len(distilled_set), used.batch_size, used.drop_last, budget or Epochs(used.epochs))
    _check(distilled_set, regime, test_set, has_teacher, labels, used, seeds)
    if isinstance(labels, SoftLabels):
        check_stored(labels, distilled_set, used, plan)
    plan.evaluation_steps(evaluations)
    # A model that does not fit, or batch norm on single images.
    world = int(os.environ.get("WORLD_SIZE", "1"))
    how, target = execution or Execution(), resolve_device(device)
    how.check(target)
    check_batches(_new_model(distilled_set, model, used, seeds[0]), plan, world, how)
    return used, plan, target


def _new_model(
    distilled_set: DistilledSet | ResidentDataset, model: ModelSpec, used: Recipe, seed: int
) -> nn.Module:
    channels, height, width = distilled_set[0].shape
    if used.image_size is not None:
        height = width = used.image_size
    return build_model(
        model,
        seed,
        num_classes=distilled_set.num_classes,
        in_channels=channels,
        image_size=(height, width),
    )


def _recipe(
    distilled_set: DistilledSet | ResidentDataset,
    regime: Regime,
    given: Recipe | None,
    scale: Scale | None,
    protocol: Protocol,
) -> Recipe:
    if protocol not in ("paper", "official"):
        raise ValueError(f"protocol must be 'paper' or 'official', got {protocol!r}")
    if protocol == "official":
        if given is not None or scale is not None:
            raise ValueError("protocol='official' has its recipe: give neither recipe nor scale")
        return official_recipe_of(distilled_set, regime)
    if given is not None:
        if given.regime != regime:
            raise ValueError(f"recipe is for regime {given.regime!r}, regime is {regime!r}")
        if scale is not None and given.scale != scale:
            raise ValueError(f"recipe is for scale {given.scale!r}, scale is {scale!r}")
        return given
    return paper_recipe_of(distilled_set, regime, scale)


def paper_recipe_of(
    distilled_set: DistilledSet | ResidentDataset,
    regime: Regime,
    scale: Scale | None = None,
    **overrides: Any,
) -> Recipe:
    """The paper's recipe for the set, as :func:`pyddfast.train.recipe` gives it.

    Args:
        distilled_set: Its IPC, and its side where ``scale`` is None.
        regime: As there.
        scale: None: small up to 64 pixels, else large.
        **overrides: As there.

    Raises:
        ValueError: As there.
    """
    if scale is None:
        scale = "small" if max(distilled_set[0].shape[-2:]) <= SMALL_SIDE else "large"
    return published_recipe(regime, scale, distilled_set.ipc, **overrides)


def official_recipe_of(distilled_set: DistilledSet | ResidentDataset, regime: Regime) -> Recipe:
    """The evaluation that the set's method was published with.

    Raises:
        ValueError: There is none for the method, or it is of another regime.
    """
    source = distilled_set.source if isinstance(distilled_set, ResidentDataset) else distilled_set
    method = source.meta.get("method") if isinstance(source, DistilledSet) else None
    if method not in OFFICIAL:
        raise ValueError(
            f"protocol='official' is known for sets of {tuple(OFFICIAL)}, this one is of "
            f"{method!r}; give recipe=official_recipe(...)"
        )
    used = official_recipe(method, lr=distilled_set.lr)
    if used.regime != regime:
        raise ValueError(
            f"the official evaluation of {method} is regime {used.regime!r}, got {regime!r}"
        )
    if method in ("tm", "datm") and distilled_set.lr is None:
        warnings.warn(
            f"the set of {method} comes without its learned learning rate: students take "
            f"{used.lr:g}; {method} was published with the learned one",
            stacklevel=4,
        )
    return used


def _check(
    distilled_set: DistilledSet | ResidentDataset,
    regime: Regime,
    test_set: ImageSource,
    has_teacher: bool,
    labels: str | SoftLabels,
    used: Recipe,
    seeds: Sequence[int],
) -> None:
    if isinstance(labels, SoftLabels):
        if regime != "sl-kd":
            raise ValueError(f"a store of labels is for regime 'sl-kd', got {regime!r}")
    elif labels not in ("auto", "stored"):
        raise ValueError(f"labels must be 'auto', 'stored' or a store, got {labels!r}")
    if labels == "stored" and regime != "sl":
        raise ValueError(f"labels='stored' is for regime 'sl', got {regime!r}")
    if labels == "stored" and distilled_set.soft_labels is None:
        raise ValueError("labels='stored', but the set has no soft_labels")
    if _asks_teacher(regime, labels) and not has_teacher:
        raise ValueError(f"regime {regime!r} needs a teacher")
    if len(seeds) == 0 or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must be different and at least one, got {list(seeds)}")
    for seed in seeds:
        generator(seed, Purpose.LAYERS)  # raises where it is none
    if test_set.num_classes != distilled_set.num_classes:
        raise ValueError(
            f"the set has {distilled_set.num_classes} classes, the test set {test_set.num_classes}"
        )
    if len(test_set) == 0:
        raise ValueError("test_set has no images")
    want = tuple(distilled_set[0].shape)
    have = tuple(test_set[0].shape)
    if distilled_set.lr not in (None, used.lr):
        warnings.warn(
            f"the learning rate {distilled_set.lr:.4g} was learned with the set, these students "
            f"take {used.lr:g}: only protocol='official' takes the learned one",
            stacklevel=4,
        )
    whitened = distilled_set.whitened, getattr(test_set, "whitened", False)
    if whitened[0] != whitened[1]:
        made, tested = map(describe_whitening, whitened)
        raise ValueError(
            f"the images of the set are {made}, those of the test set are {tested}: both have to "
            "be whitened by the same transformation (--zca, --zca-kip), or neither"
        )
    if used.augmentation == "rrc" and distilled_set[0].dtype != torch.uint8:
        raise ValueError(
            "augmentation 'rrc' takes uint8 images, the set's are float32: take scale='small', or "
            "a recipe with augmentation 'dsa' or 'none'"
        )
    if have[0] != want[0] or (used.image_size is None and have != want):
        raise ValueError(f"test images are {have}, the set's are {want}")
    names = distilled_set.class_names
    others = test_set.class_names
    if names and others and tuple(names) != tuple(others):
        label = next(k for k, name in enumerate(names) if name != others[k])
        raise ValueError(
            f"the set and the test set name or order their classes differently: class {label} is "
            f"{names[label]!r} in the set, {others[label]!r} in the test set"
        )


def _asks_teacher(regime: Regime, labels: str | SoftLabels) -> bool:
    return regime != "hl" and labels == "auto"


def _teacher_record(
    teacher: nn.Module | None,
    info: Mapping[str, Any] | None,
    test_set: ImageSource,
    distilled_set: DistilledSet | ResidentDataset,
    size: int | None,
    device: torch.device,
) -> dict[str, Any] | None:
    if teacher is None:
        return None
    teacher.to(device).eval()
    record = {"class": type(teacher).__name__, "sha256": model_digest(teacher), **(info or {})}
    if "accuracy" not in record:
        record["accuracy"] = evaluate(
            teacher, test_set, normalization=distilled_set.normalization, size=size, device=device
        )
    return record


def _label_source(
    distilled_set: DistilledSet | ResidentDataset,
    regime: Regime,
    teacher: nn.Module | None,
    labels: str | SoftLabels,
    used: Recipe,
    plan: Plan,
    device: torch.device,
) -> LabelSource:
    if regime == "hl":
        return HardLabels(distilled_set.labels.to(device))
    if isinstance(labels, SoftLabels):
        height, width = distilled_set[0].shape[-2:]
        return StoredLabels(
            labels,
            plan,
            (int(height), int(width)),
            used.temperature,
            t_squared=used.t_squared,
            device=device,
        )
    if regime == "sl-kd":
        assert teacher is not None  # _check
        return ViewLabels(teacher, used.temperature, t_squared=used.t_squared)
    if labels == "stored":
        stored = distilled_set.soft_labels
        assert isinstance(stored, Tensor)  # _check
        return FixedLabels(
            stored.to(device, torch.float32),
            used.temperature,
            t_squared=used.t_squared,
            source="the set's stored soft labels",
        )
    assert teacher is not None  # _check
    return FixedLabels(
        soft_labels(distilled_set, teacher, size=used.image_size, device=device),
        used.temperature,
        t_squared=used.t_squared,
        source="teacher on each stored image, un-augmented, once",
    )


def _describe_budget(plan: Plan, used: Recipe) -> dict[str, Any]:
    unit = {Epochs: "epochs", Steps: "steps", Samples: "samples"}[type(plan.budget)]
    return {
        unit: plan.budget.count,
        "total_steps": plan.total_steps,
        "total_epochs": round(plan.epochs, 6),
        "total_samples": plan.samples(plan.total_steps),
        "published_epochs": used.epochs,
        "schedule_scale": round(plan.epochs / used.epochs, 6),
    }


def resident_on(
    device: torch.device, distilled_set: DistilledSet | ResidentDataset
) -> ResidentDataset:
    """The set on a device.

    Raises:
        ValueError: it is resident on another one.
    """
    if isinstance(distilled_set, DistilledSet):
        return ResidentDataset(distilled_set, device=device)
    if distilled_set.device != device:
        raise ValueError(f"the set is on device {distilled_set.device}, the training on {device}")
    return distilled_set


def _describe_set(distilled_set: DistilledSet | ResidentDataset) -> dict[str, Any]:
    source = distilled_set.source if isinstance(distilled_set, ResidentDataset) else distilled_set
    digest = hashlib.sha256()
    if isinstance(source, ImageFolder):  # of its files, wherever their pixels are
        digest.update(data_digest(source).encode())
    else:
        soft = source.soft_labels if isinstance(source, DistilledSet) else None
        for tensor in (source.images, source.labels, soft):
            if tensor is not None:
                flat = tensor.detach().cpu().contiguous().flatten()
                digest.update(flat.view(torch.uint8).numpy().tobytes())
    return {
        "sha256": digest.hexdigest(),
        "count": len(distilled_set),
        "ipc": distilled_set.ipc,
        "image_shape": list(distilled_set[0].shape),
        "num_classes": distilled_set.num_classes,
        "kind": distilled_set.kind,
        "factor": distilled_set.factor,
        "normalization": {
            "mean": list(distilled_set.normalization.mean),
            "std": list(distilled_set.normalization.std),
        },
        "method": source.meta.get("method") if isinstance(source, DistilledSet) else None,
    }


def _read_seed(folder: RunFolder, seed: int) -> SeedResult | None:
    """What the folder holds of a finished seed; without its weights it is not finished."""
    name = f"seed{seed}.json"
    stored, weights = folder.read_json(name), folder.read_tensors(f"seed{seed}.safetensors")
    if stored is None or weights is None:
        return None
    try:
        values = {field.name: stored[field.name] for field in fields(SeedResult)[:-1]}
        result = SeedResult(**values, weights=folder.path / f"seed{seed}.safetensors")
        accuracies = [row["test_accuracy"] for row in result.history]
        if result.seed != seed or accuracies[-1] != result.last_accuracy:
            raise ValueError("its values do not fit together")
    except Exception as error:
        # A missing field, a list instead of an object ...: each its own type.
        raise ValueError(
            f"{folder.path / name} is not the result of seed {seed}: {error!r}"
        ) from error
    return result


def _std(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan
