"""Train expert networks and keep their parameters after every epoch, for trajectory matching.

MTT (Cazenavette et al., CVPR 2022; ``buffer.py``) trains them by plain SGD, DATM (Guo et al., ICLR
2024; ``buffer/buffer_FTD.py``) by GSAM, which seeks flat minima (:class:`Sharpness`).  The official
scripts keep a reference to the live parameters when they run on a CPU, so that all snapshots of an
expert are equal there; these are copies.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyddfast.data import ImageDataset, ImageSource
from pyddfast.data.digest import describe_data
from pyddfast.data.trajectories import Trajectories, write_replay_buffer
from pyddfast.random import Purpose, generator
from pyddfast.train.checkpoint import CHECKPOINT, CHECKPOINT_SECONDS, fit
from pyddfast.train.distributed import Ranks, join_ranks, resolve_device
from pyddfast.train.evaluate import check_test_set, evaluate
from pyddfast.train.labels import HardLabels
from pyddfast.train.loop import Trainer, check_batches
from pyddfast.train.models import ModelSpec, build_model, describe_model
from pyddfast.train.plan import Epochs, Plan
from pyddfast.train.progress import progress as show_progress
from pyddfast.train.recipes import Recipe
from pyddfast.train.run import RunFolder
from pyddfast.train.views import make_views

__all__ = ["Sharpness", "expert_recipe", "train_experts"]

# The official scripts' --save_interval: experts of one file.
EXPERTS_A_FILE = 10
_RECORD = "expert.json"


@dataclass(frozen=True)
class Sharpness:
    """GSAM: a step's gradient is taken where the loss is higher nearby.

    Zhuang et al., "Surrogate Gap Minimization Improves Sharpness-Aware Training", ICLR 2022, as FTD
    (Du et al., CVPR 2023) and DATM train their experts; the defaults are DATM's command.  Each step
    takes two passes.

    Attributes:
        rho: length of the way uphill.
        alpha: share of the first gradient's part across the second that is taken off.
        adaptive: measure the way in units of each weight.
    """

    rho: float = 0.01
    alpha: float = 0.3
    adaptive: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.rho < float("inf"):
            raise ValueError(f"rho must be positive, got {self.rho}")
        if not 0 <= self.alpha < float("inf"):
            raise ValueError(f"alpha must not be negative, got {self.alpha}")


def expert_recipe(epochs: int = 50, **overrides: Any) -> Recipe:
    """The recipe of an expert: hard labels, plain SGD at 0.01, batch 256, DSA.

    MTT's ``buffer.py`` as its read-me calls it; DATM's is the same for 100 epochs, with
    :class:`Sharpness`.  DSA mirrors corners as both codes do (``align_corners=True``).

    Args:
        epochs: passes over the data.
        **overrides: fields of :class:`Recipe`.
    """
    values: dict[str, Any] = {
        "regime": "hl",
        "scale": "small",
        "epochs": epochs,
        "loss": "ce",
        "optimizer": "sgd",
        "lr": 0.01,
        "momentum": 0.0,
        "nesterov": False,
        "weight_decay": 0.0,
        "schedule": "constant",
        "batch_size": 256,
        "augmentation": "dsa",
        "dsa_align_corners": True,
        "in_paper": False,
    }
    return Recipe(**{**values, **overrides})


def train_experts(
    dataset: ImageDataset,
    model: ModelSpec,
    *,
    test_set: ImageSource,
    out: str | Path,
    count: int = 100,
    epochs: int = 50,
    recipe: Recipe | None = None,
    sharpness: Sharpness | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    resume: bool = True,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    progress: bool = True,
) -> Trajectories:
    """Train experts and write their trajectories in the official layout.

    Under ``torchrun`` the processes divide the experts among them.

    Args:
        dataset: training data; whitened images make the experts of a ZCA run.
        model: a name of ``pyddfast.models``, (name, options), or a function ``seed -> nn.Module``.
        test_set: for the experts' accuracy, whitened as ``dataset`` is.
        out: run folder, resumable; holds ``replay_buffer_0.pt`` and so on, ten experts a file, and
            a folder an expert with its metrics.
        count: how many experts; 100 in the published runs.
        epochs: of each, under :func:`expert_recipe`.
        recipe: how to train instead; ``epochs`` is then the recipe's.
        sharpness: GSAM, as DATM's experts; None: plain steps, as MTT's.
        seed: expert k's initialisation, order and augmentation depend on (seed, k) alone.
        device: None: CUDA where there is one, else the CPU.
        resume: continue what ``out`` holds; False refuses a non-empty folder.
        checkpoint_seconds: at most this long between two checkpoints.
        progress: show it on stderr.

    Returns:
        The trajectories, of ``count`` experts with ``epochs + 1`` snapshots each.

    Raises:
        ValueError: an argument does not fit, ``out`` holds another run or a damaged file, or the
            loss of an expert was not finite.
        BlockingIOError: another process works in ``out``.
        FileExistsError: ``out`` holds something else.
    """
    used = expert_recipe(epochs) if recipe is None else recipe
    if used.regime != "hl":
        raise ValueError(f"an expert learns from hard labels, the recipe has {used.regime!r}")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"count must be a positive int, got {count!r}")
    check_test_set(dataset, test_set)
    target = resolve_device(device)
    ranks = join_ranks()
    job = _Experts(dataset, model, test_set, used, sharpness, seed, target, checkpoint_seconds)
    job.check()
    config = {
        "task": "train_experts",
        "count": count,
        "recipe": used.to_dict(),
        "sharpness": None if sharpness is None else asdict(sharpness),
        "model": describe_model(model),
        "seed": seed,
        "dataset": describe_data(dataset),
        "test_set": describe_data(test_set),
    }
    path = Path(out)
    # The first process holds the folder's lock for all.
    run = RunFolder(path, config, resume=resume) if ranks.first else None
    ranks.wait()
    if run is None:
        run = RunFolder(path, config, shared=True)
    with run:
        _train_all(job, path, count, ranks, progress)
    return Trajectories(path)


def _train_all(job: _Experts, path: Path, count: int, ranks: Ranks, progress: bool) -> None:
    files = [range(k, min(k + EXPERTS_A_FILE, count)) for k in range(0, count, EXPERTS_A_FILE)]
    mine = range(ranks.rank, count, ranks.world)
    total = len(mine) * job.plan.total_steps
    with show_progress("train experts", total, enabled=progress) as advance:
        for number, experts in enumerate(files):
            file = path / f"replay_buffer_{number}.pt"
            own = [expert for expert in experts if expert in mine]
            if file.is_file():
                advance(len(own) * job.plan.total_steps)
                continue
            for expert in own:
                job.train(path / f"expert_{expert:04d}", expert, advance)
            ranks.wait()
            if number % ranks.world == ranks.rank:
                folders = [path / f"expert_{expert:04d}" for expert in experts]
                write_replay_buffer(file, [job.snapshots(folder) for folder in folders])
    ranks.wait()
    if ranks.first:
        for expert in range(count):
            _drop_snapshots(path / f"expert_{expert:04d}")
    ranks.wait()


@dataclass(frozen=True)
class _Experts:
    """What all experts of a job have in common."""

    dataset: ImageDataset
    model: ModelSpec
    test_set: ImageSource
    recipe: Recipe
    sharpness: Sharpness | None
    seed: int
    device: torch.device
    checkpoint_seconds: float

    @property
    def plan(self) -> Plan:
        used = self.recipe
        return Plan(len(self.dataset), used.batch_size, used.drop_last, Epochs(used.epochs))

    def network(self, expert: int) -> tuple[nn.Module, int]:
        """A fresh network and the seed of its training."""
        seed = generator(self.seed, Purpose.EXPERT, expert).initial_seed()
        height, width = self.dataset.images.shape[-2:]
        network = build_model(
            self.model,
            seed,
            num_classes=self.dataset.num_classes,
            in_channels=self.dataset.images.shape[1],
            image_size=(height, width),
        )
        return network.to(self.device), seed

    def check(self) -> None:
        """Refuse what the first step would refuse."""
        check_batches(self.network(0)[0], self.plan)

    def train(self, path: Path, expert: int, advance: Any) -> None:
        """Train one expert in its own folder, unless that is done."""
        with RunFolder(path, {"task": "expert", "expert": expert}) as folder:
            if folder.read_json(_RECORD) is not None:
                advance(self.plan.total_steps)
                return
            network, seed = self.network(expert)
            dataset = self.dataset
            trainer = _SharpTrainer(
                network,
                self.recipe,
                self.plan,
                make_views(
                    dataset.images.to(self.device), dataset.normalization, self.recipe, seed=seed
                ),
                HardLabels(dataset.labels.to(self.device)),
                seed=seed,
                sharpness=self.sharpness,
            )
            folder.write_tensors(_snapshot(0), _numbered(network.parameters()))
            trained = fit(
                trainer,
                lambda: evaluate(
                    network,
                    self.test_set,
                    normalization=dataset.normalization,
                    device=self.device,
                ),
                evaluations=1,
                folder=folder,
                key={"expert": expert},
                checkpoint_seconds=self.checkpoint_seconds,
                advance=advance,
                on_epoch=lambda epoch: _keep(folder, epoch, network),
            )
            if trained.diverged:
                raise ValueError(
                    f"the training loss of expert {expert} was not finite: lower lr "
                    f"({self.recipe.lr:g})"
                )
            record = {"seed": seed, "accuracy": trained.history[-1]["test_accuracy"]}
            folder.write_json(_RECORD, record)
            folder.remove(CHECKPOINT)

    def snapshots(self, path: Path) -> list[list[Tensor]]:
        """The trajectory of a trained expert."""
        folder = RunFolder(path, {"task": "expert", "expert": int(path.name[-4:])}, shared=True)
        found = []
        for epoch in range(self.recipe.epochs + 1):
            tensors = folder.read_tensors(_snapshot(epoch))
            if tensors is None:
                raise ValueError(f"{path / _snapshot(epoch)} is missing; remove {path}")
            found.append([tensors[0][str(k)] for k in range(len(tensors[0]))])
        return found


# Keeps a division by a norm of 0 finite; as the official code.
_TINY = 1e-12


class _SharpTrainer(Trainer):
    """A trainer whose gradients are GSAM's, if asked for."""

    def __init__(self, *args: Any, sharpness: Sharpness | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sharpness = sharpness

    def _gradient(self, ids: Tensor) -> None:
        super()._gradient(ids)
        if self._sharpness is None:
            return
        given = self._sharpness
        parameters: list[Tensor] = [p for p in self.model.parameters() if p.grad is not None]
        first = [p.grad.clone() for p in parameters if p.grad is not None]
        # Told and counted once: the second pass is not one of the training's.
        loss, hook, self.on_logits = self.loss_sum.clone(), self.on_logits, None
        buffers = [b.clone() for b in self.model.buffers()]
        with torch.no_grad():
            pairs = list(zip(parameters, first, strict=True))
            weighted = [p.abs() * g if given.adaptive else g for p, g in pairs]
            scale = given.rho / (_norm(weighted) + _TINY)
            way = [scale * g * p.square() if given.adaptive else scale * g for p, g in pairs]
            for p, step in zip(parameters, way, strict=True):
                p.add_(step)
        super()._gradient(ids)
        with torch.no_grad():
            for p, step in zip(parameters, way, strict=True):
                p.sub_(step)
            second = [p.grad for p in parameters if p.grad is not None]
            old, new = _norm(first), _norm(second)
            inner = torch.stack([(a * b).sum() for a, b in zip(first, second, strict=True)]).sum()
            along = inner / (new * old + _TINY) * old / (new + _TINY)
            for a, b in zip(first, second, strict=True):
                b.sub_(a - along * b, alpha=given.alpha)
            for buffer, kept in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(kept)
        self.loss_sum.copy_(loss)
        self.on_logits = hook


def _norm(tensors: list[Tensor]) -> Tensor:
    norm: Tensor = torch.stack([tensor.norm() for tensor in tensors]).norm()
    return norm


def _numbered(parameters: Iterable[Tensor]) -> dict[str, Tensor]:
    return {str(k): p.detach() for k, p in enumerate(parameters)}


def _snapshot(epoch: int) -> str:
    return f"epoch_{epoch:04d}.safetensors"


def _keep(folder: RunFolder, epoch: int, network: nn.Module) -> None:
    folder.write_tensors(_snapshot(epoch), _numbered(network.parameters()))


def _drop_snapshots(folder: Path) -> None:
    for file in folder.glob("epoch_*.safetensors"):
        file.unlink()
