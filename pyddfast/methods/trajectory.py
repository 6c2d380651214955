"""The engine of TM and DATM: distilled images on which a student walks as an expert did.

An iteration takes a snapshot of an expert, trains a student from it for a few steps on the
distilled images, and moves images, learning rate (and labels) so that the student ends nearer to
the expert's later snapshot (eq. 4 of "Rethinking Dataset Distillation: Hard Truths About Soft
Labels"; Cazenavette et al., CVPR 2022).  The unrolled steps are differentiated exactly, without
keeping their activations (:func:`pyddfast.train.unroll.sgd_step`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyddfast.data import DistilledSet, ImageDataset, Trajectories, network_input
from pyddfast.data.datasets import describe_whitening
from pyddfast.data.digest import data_digest, describe_data
from pyddfast.data.stored import read_json
from pyddfast.methods.recover import Job
from pyddfast.methods.small_scale import peak_memory
from pyddfast.methods.snapshots import check_snapshots, keep_snapshot
from pyddfast.methods.synthesis import check_counts, initial_noise, initial_sources
from pyddfast.nn import fuse_norm_relu_pool
from pyddfast.ops.dsa import STANDARD_STRATEGY, draw_dsa, dsa, parse_strategy
from pyddfast.ops.match import parameter_distance
from pyddfast.random import Purpose, permutation, randint
from pyddfast.train.distributed import join_ranks, resolve_device
from pyddfast.train.models import ModelSpec, build_model, describe_model
from pyddfast.train.run import RunFolder
from pyddfast.train.unroll import functional, sgd_step

__all__ = [
    "Matching",
    "Student",
    "TrajectoryConfig",
    "dataset_labels",
    "first_images",
    "match",
    "resolve_published",
    "student_distance",
]

Published: TypeAlias = Mapping[str, Mapping[int, Mapping[str, Any]]]

_CHECKPOINT = "checkpoint.safetensors"
# Iterations in a row without an update before a run is given up: chance alone (one bad start epoch
# of fifty) does not skip so many.
_PATIENCE = 20
# Images that an expert classifies at once.
_BATCH = 256


@dataclass(frozen=True)
class TrajectoryConfig:
    """Settings of trajectory matching; None stands for the published value.

    Attributes:
        ipc: Images a class.
        preset: Data set whose published values fill what is None; auto: tiny-imagenet above 32 px,
            else cifar-10 up to ten classes and cifar-100 beyond.  Between two published IPC the
            lower one's values serve.
        iterations: Outer iterations.
        syn_steps: N, steps of the student.
        expert_epochs: M, epochs of the expert that they are to reach.
        min_start_epoch: First epoch of an expert that a student may start from.
        max_start_epoch: One past the last.
        batch_syn: Images of a student's step; None and unpublished: all.
        lr_img: Learning rate of the images.
        lr_lr: Learning rate of the students' learning rate.
        lr_init: The students' learning rate at first.
        dsa_strategy: Augmentation of the student's batches; none: "".
        dsa_align_corners: Of scale and rotate; the official codes have it.
        unroll: exact keeps N parameter vectors and one step's activations; full keeps all N steps'.
        fused: Swap the student's instance norms, ReLUs and poolings for one operator.
        threshold: A loss above it moves nothing.  1 in DATM; none in TM's code, where
            semantics="paper" takes 10: the student ended ten times as far off, squared, as it
            began.
        lr_floor: The students' learning rate is kept from falling below it; semantics="official"
            stops with an error where it turns negative.
        semantics: "paper", or "official": without guards that the published code lacks.
        snapshot_every: Keep images, labels and learning rate every so many iterations, in the
            run's folder snapshots/.
        seed: Of first images, batches, experts and augmentation.
    """

    ipc: int = 10
    preset: Literal["auto", "cifar-10", "cifar-100", "tiny-imagenet"] = "auto"
    iterations: int | None = None
    syn_steps: int | None = None
    expert_epochs: int | None = None
    min_start_epoch: int | None = None
    max_start_epoch: int | None = None
    batch_syn: int | None = None
    lr_img: float | None = None
    lr_lr: float | None = None
    lr_init: float | None = None
    dsa_strategy: str = STANDARD_STRATEGY
    dsa_align_corners: bool = True
    unroll: Literal["exact", "full"] = "exact"
    fused: bool = True
    threshold: float | None = None
    lr_floor: float = 1e-5
    semantics: Literal["paper", "official"] = "paper"
    snapshot_every: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_snapshots(self.snapshot_every)
        counts = ("ipc", "iterations", "syn_steps", "expert_epochs", "max_start_epoch", "batch_syn")
        check_counts(self, *counts)
        if self.min_start_epoch is not None and self.min_start_epoch < 0:
            raise ValueError(f"min_start_epoch must not be negative, got {self.min_start_epoch}")
        for name in ("lr_img", "lr_lr", "lr_init", "threshold", "lr_floor"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")
        for name, allowed in (
            ("preset", ("auto", "cifar-10", "cifar-100", "tiny-imagenet")),
            ("unroll", ("exact", "full")),
            ("semantics", ("paper", "official")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        if self.dsa_strategy:
            parse_strategy(self.dsa_strategy)


_Config = TypeVar("_Config", bound=TrajectoryConfig)


def resolve_published(
    config: _Config, dataset: ImageDataset, published: Published
) -> tuple[_Config, int]:
    """Fill what is None with the published values.

    Returns:
        The settings, and the IPC whose values they are.

    Raises:
        ValueError: The start epochs are no range.
    """
    preset = config.preset
    if preset == "auto":
        small = max(dataset.images.shape[-2:]) <= 32
        cifar: Literal["cifar-10", "cifar-100"]
        cifar = "cifar-10" if dataset.num_classes <= 10 else "cifar-100"
        preset = cifar if small else "tiny-imagenet"
    listed = published[preset]
    ipc = max((k for k in listed if k <= config.ipc), default=min(listed))
    values = {k: v for k, v in listed[ipc].items() if getattr(config, k) is None}
    filled = replace(config, preset=preset, **values)
    low, high = filled.min_start_epoch, filled.max_start_epoch
    assert low is not None
    assert high is not None
    if low >= high:
        raise ValueError(f"min_start_epoch = {low} must lie below max_start_epoch = {high}")
    return filled, ipc


class Student:
    """A network as a function of one flat vector of parameters.

    Args:
        network: On its device; with ``fused`` its norms are swapped in place.
    """

    def __init__(self, network: nn.Module, *, fused: bool) -> None:
        if fused:
            network = fuse_norm_relu_pool(network)
        self._call = functional(network.train())
        named = dict(network.named_parameters())
        self._names, self._shapes = list(named), [p.shape for p in named.values()]
        self._sizes = [p.numel() for p in named.values()]
        self.device = next(iter(named.values())).device

    def __call__(self, theta: Tensor, images: Tensor) -> Tensor:
        """Logits of ``images`` with the parameters ``theta``."""
        parts = torch.split(theta, self._sizes)
        shaped = (part.view(shape) for part, shape in zip(parts, self._shapes, strict=True))
        return self._call(dict(zip(self._names, shaped, strict=True)), images)

    @torch.no_grad()
    def predict(self, theta: Tensor, images: Tensor) -> Tensor:
        """Logits of many images."""
        return torch.cat([self(theta, part) for part in torch.split(images, _BATCH)])


def criterion(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with class indices, or with the softmax of learned logits (DATM)."""
    return F.cross_entropy(logits, labels if labels.ndim == 1 else labels.softmax(1))


def student_distance(
    config: TrajectoryConfig,
    student: Student,
    start: Tensor,
    target: Tensor,
    lr: Tensor,
    count: int,
    batch: Callable[[Tensor], tuple[Tensor, Tensor]],
    iteration: int,
) -> Tensor:
    """How far from an expert a student ends that walks from its snapshot (eq. 4).

    Args:
        config: Its steps, batches and augmentation.
        student: The network.
        start: The snapshot that it starts from.
        target: The one that it should reach.
        lr: Its learning rate, a scalar.
        count: Images of the distilled set.
        batch: Images and labels of int64 positions (on the CPU), on the student's device.
        iteration: Keys batches and augmentation.

    Returns:
        The squared distance, normalised by that of the snapshots; a scalar.
    """
    assert config.syn_steps is not None
    chunks: list[Tensor] = []
    theta = start.clone()
    if config.unroll == "full":
        theta.requires_grad_()
    for step in range(iteration * config.syn_steps, (iteration + 1) * config.syn_steps):
        if not chunks:
            order = permutation(config.seed, Purpose.TRAJECTORY_BATCH, count, step)
            # Taken from the end, the smallest batch first, as the official codes do.
            chunks = list(torch.split(order, min(config.batch_syn or count, count)))
        ids = chunks.pop()
        images, labels = batch(ids)
        if config.dsa_strategy:
            height, width = images.shape[-2:]
            params = draw_dsa(
                config.seed,
                ids,
                torch.full_like(ids, step),
                step,
                (height, width),
                strategy=config.dsa_strategy,
            )
            images = dsa(images, params.to(images.device), align_corners=config.dsa_align_corners)
        if config.unroll == "exact":
            theta = sgd_step(student, criterion, theta, lr, images, labels)
        else:
            step_loss = criterion(student(theta, images), labels)
            (gradient,) = torch.autograd.grad(step_loss, theta, create_graph=True)
            theta = theta - lr * gradient
    return parameter_distance(theta, target, start)


class Matching:
    """What is learned, and one iteration of learning it.

    Args:
        config: Resolved settings.
        student: The distilling network.
        experts: Trajectories of its architecture.
        images: First images (n, C, H, W), as the network takes them.
        labels: Class indices (n,), or logits (n, classes) that are learned too.
        lr_labels: Learning rate of those.
        momentum_labels: Their momentum.
        start_epochs: Iteration to the range [low, high) of start epochs.

    Attributes:
        images: The images.
        labels: The labels.
        lr: The students' learning rate.
    """

    def __init__(
        self,
        config: TrajectoryConfig,
        student: Student,
        experts: Trajectories,
        images: Tensor,
        labels: Tensor,
        *,
        lr_labels: float = 0.0,
        momentum_labels: float = 0.0,
        start_epochs: Callable[[int], tuple[int, int]],
    ) -> None:
        self.config, self.student, self.experts = config, student, experts
        self._range = start_epochs
        self._threshold = math.inf if config.threshold is None else config.threshold
        self.images = images.clone().requires_grad_()
        self.labels = labels.clone()
        self.lr = torch.tensor(config.lr_init, dtype=images.dtype, device=images.device)
        self.lr.requires_grad_()
        assert config.lr_img is not None
        assert config.lr_lr is not None
        self._optimizers = {
            "images": torch.optim.SGD([self.images], lr=config.lr_img, momentum=0.5),
            "lr": torch.optim.SGD([self.lr], lr=config.lr_lr, momentum=0.5),
        }
        if self.labels.is_floating_point():
            self.labels.requires_grad_()
            self._optimizers["labels"] = torch.optim.SGD(
                [self.labels], lr=lr_labels, momentum=momentum_labels
            )

    def step(self, iteration: int) -> dict[str, Any]:
        """One iteration, from 0; its record, JSON values.

        Raises:
            ValueError: The students' learning rate is negative (semantics="official").
        """
        config = self.config
        assert config.expert_epochs is not None
        passes, position = divmod(iteration, len(self.experts))
        order = permutation(config.seed, Purpose.EXPERT, len(self.experts), passes)
        expert = int(order[position])
        low, high = self._range(iteration)
        start = int(randint(config.seed, Purpose.TRAJECTORY, low, high, iteration))
        theta = self.experts.flat(expert, start).to(self.images)
        target = self.experts.flat(expert, start + config.expert_epochs).to(self.images)
        loss = self.loss(theta, target, iteration)
        record: dict[str, Any] = {
            "iteration": iteration,
            "expert": expert,
            "start_epoch": start,
            "lr": float(self.lr.detach()),
        }
        value = float(loss.detach())
        record["loss"] = value if math.isfinite(value) else None
        for optimizer in self._optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        if not value <= self._threshold or not math.isfinite(value):
            return {**record, "skipped": True}
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in self._optimizers.values():
            optimizer.step()
        with torch.no_grad():
            if config.semantics == "paper":
                self.lr.clamp_(min=config.lr_floor)
            elif float(self.lr) < 0:
                raise ValueError(
                    f"the students' learning rate is {float(self.lr):g} after iteration "
                    f"{iteration} (expert {expert}, start epoch {start}, loss {value:g}): lower "
                    "lr_lr, or use semantics='paper', which keeps it above lr_floor"
                )
        return record

    def loss(self, start: Tensor, target: Tensor, iteration: int) -> Tensor:
        """The normalised distance that the student of this iteration ends at."""

        def batch(ids: Tensor) -> tuple[Tensor, Tensor]:
            mine = ids.to(self.images.device)
            return self.images[mine], self.labels[mine]

        return student_distance(
            self.config, self.student, start, target, self.lr, len(self.images), batch, iteration
        )

    def state(self) -> dict[str, Tensor]:
        """Tensors that :meth:`restore` needs."""
        tensors = {"images": self.images, "labels": self.labels, "lr": self.lr}
        for name, optimizer in self._optimizers.items():
            for entry in optimizer.state_dict()["state"].values():
                if entry.get("momentum_buffer") is not None:
                    tensors[f"momentum/{name}"] = entry["momentum_buffer"]
        return {name: tensor.detach() for name, tensor in tensors.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what :meth:`state` returned."""
        with torch.no_grad():
            self.images.copy_(tensors["images"])
            self.labels.copy_(tensors["labels"])
            self.lr.copy_(tensors["lr"])
        for name, optimizer in self._optimizers.items():
            buffer = tensors.get(f"momentum/{name}")
            if buffer is not None:
                (parameter,) = optimizer.param_groups[0]["params"]
                optimizer.state[parameter]["momentum_buffer"] = buffer.to(parameter.device)


def match(
    name: str,
    dataset: ImageDataset,
    experts: Trajectories | str | Path,
    config: TrajectoryConfig,
    job: Job,
    *,
    model: ModelSpec,
    published_ipc: int,
    make: Callable[[Student, Trajectories], Matching],
) -> DistilledSet:
    """Run a method to its end: folder, checkpoints, progress.

    Args:
        name: Of the method.
        dataset: The classes and the first images.
        experts: Trajectories or their folder.
        config: Resolved settings.
        job: Device, run folder, progress.
        model: The distilling network.
        published_ipc: For the record: the IPC whose published values fill the settings.
        make: The method's start.

    Raises:
        ValueError: A start epoch lies beyond the trajectories, they are of another architecture,
            whitened where the data set is not or the other way round, or not all trained yet, the
            loss stays useless, or the job runs in several processes.
    """
    if join_ranks().world > 1:
        raise ValueError(
            f"{name} is one chain of iterations: run it in one process (torchrun divides experts)"
        )
    device = resolve_device(job.device)
    experts = expert_set(experts, config)
    _check_run(experts, dataset)
    height, width = dataset.images.shape[-2:]
    network = build_model(
        model,
        config.seed,
        num_classes=dataset.num_classes,
        in_channels=dataset.images.shape[1],
        image_size=(height, width),
    ).to(device)
    experts.check(network)
    student = Student(network, fused=config.fused)
    assert config.iterations is not None
    about = {
        "method": name,
        **asdict(config),
        "published_ipc": published_ipc,
        "model": describe_model(model),
        "experts": {"count": len(experts), "epochs": experts.epochs},
    }
    facts = {"task": name, "config": about, "dataset": describe_data(dataset)}
    run = None if job.out is None else RunFolder(job.out, facts, resume=job.resume)
    try:
        matching = make(student, experts)
        record = _iterate(matching, config.iterations, run, job)
        if run is not None:
            run.log({"peak_memory_mib": round(peak_memory(device) / 2**20, 1)})
    finally:
        if run is not None:
            run.close()
    labels = dataset_labels(dataset.num_classes, config.ipc)
    learned = matching.labels.detach().cpu()
    return DistilledSet(
        images=matching.images.detach().cpu(),
        labels=labels,
        num_classes=dataset.num_classes,
        normalization=dataset.normalization,
        class_names=tuple(dataset.class_names),
        soft_labels=learned if learned.is_floating_point() else None,
        kind="synthetic",
        lr=float(matching.lr.detach()),
        whitened=dataset.whitened,
        meta={**about, **record},
    )


def _iterate(
    matching: Matching, iterations: int, run: RunFolder | None, job: Job
) -> dict[str, Any]:
    """All iterations; what is worth recording of them."""
    done, skipped, losses, in_a_row = 0, list[int](), list[float](), list[int]()
    if run is not None:
        found = run.read_tensors(_CHECKPOINT)
        if found is not None:
            tensors, state = found
            try:
                matching.restore(tensors)
                done, skipped, losses = state["done"], state["skipped"], state["losses"]
                in_a_row = state["in_a_row"]
            except Exception as error:
                # A state that is no dict, lacks something or does not fit: each its own type.
                raise ValueError(
                    f"{run.path / _CHECKPOINT} is no checkpoint of this run: {error!r}"
                ) from error
        run.keep_metrics(lambda row: row.get("iteration", done) < done)
    saved = time.monotonic()
    while done < iterations:
        row = matching.step(done)
        done += 1
        if run is not None:
            run.log(row)
            keep_snapshot(run, done, matching.config.snapshot_every, matching.state)
        if row.get("skipped"):
            skipped.append(row["start_epoch"])
            in_a_row.append(row["start_epoch"])
        else:
            in_a_row = []
            losses = [*losses, row["loss"]][-_TAIL:]
        if len(in_a_row) >= _PATIENCE:
            raise ValueError(
                f"the last {_PATIENCE} iterations, up to {row['iteration']}, moved nothing: their "
                "loss was above the threshold or not finite, from start epochs "
                f"{sorted(set(in_a_row))}; lower lr_img ({matching.config.lr_img:g}) or lr_init "
                f"({matching.config.lr_init:g}; the students' learning rate is {row['lr']:g})"
            )
        if job.on_progress is not None:
            job.on_progress(done, iterations)
        due = time.monotonic() - saved >= job.checkpoint_seconds or done == iterations
        if run is not None and due:
            state = {"done": done, "skipped": skipped, "losses": losses, "in_a_row": in_a_row}
            run.write_tensors(_CHECKPOINT, matching.state(), state)
            saved = time.monotonic()
    return {
        "skipped_iterations": len(skipped),
        "skipped_start_epochs": sorted(set(skipped)),
        "final_loss": sum(losses) / len(losses) if losses else None,
    }


# Iterations whose mean loss is recorded at the end: single ones depend on their start epoch.
_TAIL = 100


def expert_set(experts: Trajectories | str | Path, config: TrajectoryConfig) -> Trajectories:
    """The trajectories, if they are as long as the settings need.

    Raises:
        ValueError: A start epoch lies beyond them.
    """
    found = experts if isinstance(experts, Trajectories) else Trajectories(experts)
    assert config.max_start_epoch is not None
    assert config.expert_epochs is not None
    last = config.max_start_epoch - 1 + config.expert_epochs
    if last > found.epochs:
        raise ValueError(
            f"max_start_epoch = {config.max_start_epoch} and expert_epochs = "
            f"{config.expert_epochs} need experts of {last} epochs; those in {found.folder} have "
            f"{found.epochs}"
        )
    return found


def _check_run(experts: Trajectories, dataset: ImageDataset) -> None:
    """Compare what the experts' run tells, where they are one of ``train_experts``."""
    file = experts.folder / "config.json"
    config = read_json(file).get("config", {}) if file.is_file() else {}
    if config.get("task") != "train_experts":
        return
    if len(experts) < config["count"]:
        raise ValueError(
            f"{experts.folder} holds {len(experts)} of {config['count']} experts: its training was "
            "stopped; the same command with --resume goes on"
        )
    data = config["dataset"]
    whitened = data.get("whitened", False)
    if whitened != dataset.whitened and data["sha256"] != data_digest(dataset):
        raise ValueError(
            f"the images of the experts in {experts.folder} are {describe_whitening(whitened)}, "
            f"those of the data set {describe_whitening(dataset.whitened)} (--zca)"
        )


def dataset_labels(num_classes: int, ipc: int) -> Tensor:
    """Class indices of a distilled set, ``ipc`` of each, class after class."""
    return torch.arange(num_classes).repeat_interleave(ipc)


def first_images(dataset: ImageDataset, config: TrajectoryConfig, *, noise: bool) -> Tensor:
    """Random real images, or noise, as a network takes them (n, C, H, W)."""
    if noise:
        shape = dataset.images.shape[1:]
        size = (int(shape[0]), int(shape[1]), int(shape[2]))
        return torch.stack(
            [
                initial_noise(config.seed, label, slot, size)
                for label in range(dataset.num_classes)
                for slot in range(config.ipc)
            ]
        )
    chosen = initial_sources(
        dataset, range(dataset.num_classes), config.ipc, seed=config.seed, shuffled=True
    )
    picks = [index for label in range(dataset.num_classes) for index in chosen[label]]
    return network_input(dataset.images[picks], dataset.normalization)
