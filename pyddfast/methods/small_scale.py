"""What the small-scale methods share: images as parameters, real batches, the loop around a step.

DC, DSA and DM optimise ``ipc`` images of each class by SGD with momentum, each iteration against a
freshly initialised network.  A method is an object with a step; :func:`optimise` runs it, keeps
checkpoints, reports, and stops what diverges.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pyddfast.data import DistilledSet, ImageDataset, ImageFolder, ResidentDataset, network_input
from pyddfast.data.resident import OnOverflow
from pyddfast.methods.job_folder import JobFolder
from pyddfast.methods.recover import Job
from pyddfast.methods.snapshots import check_snapshots, keep_snapshot
from pyddfast.nn import fuse_norm_relu_pool
from pyddfast.ops.dsa import STANDARD_STRATEGY, DSAParams, draw_dsa, dsa, parse_strategy
from pyddfast.random import Purpose, generator, normal, philox, uniform
from pyddfast.train.checkpoint import CHECKPOINT
from pyddfast.train.distributed import Ranks, divide
from pyddfast.train.models import ModelSpec, build_model

__all__ = [
    "ImageParameters",
    "MatchingConfig",
    "Networks",
    "RealImages",
    "Work",
    "as_set",
    "class_dsa",
    "derived_seed",
    "freeze_batch_norm",
    "optimise",
    "peak_memory",
]

# Real images of a class by whose statistics BatchNorm is frozen, as in DC's code.
_BATCH_NORM_IMAGES = 16
# The official codes report every 10 iterations; reading a loss waits for the device.
LOG_EVERY = 10


@dataclass(frozen=True)
class MatchingConfig:
    """Settings that DC, DSA and DM share; what is None takes the published value.

    Attributes:
        ipc: Images of each class.
        iterations: Networks that the images are matched on, one after the other.
        lr_img: Learning rate of the images.
        momentum: Of the images.
        real_batch: Real images of a class in a step; all of a class that has fewer.
        init: First images: "real" (random ones of the class) or "noise" (standard normal).
        dsa_strategy: Entries of DSA; none: "".  The same draw serves the real and the
            synthetic images of a class.
        dsa_align_corners: Of DSA's scale and rotate.  False is what the official code computes on
            torch 1.3 and later.
        fused: Swap norm, ReLU and pooling of the networks for one operator.
        snapshot_every: Keep the images every so many steps, in the run's folder snapshots/.
        seed: Of every draw.
    """

    ipc: int = 10
    iterations: int | None = None
    lr_img: float | None = None
    momentum: float = 0.5
    real_batch: int = 256
    init: Literal["real", "noise"] | None = None
    dsa_strategy: str = STANDARD_STRATEGY
    dsa_align_corners: bool = False
    fused: bool = True
    snapshot_every: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_snapshots(self.snapshot_every)
        for name in ("ipc", "iterations", "real_batch"):
            value = getattr(self, name)
            if value is None and name == "iterations":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}")
        if self.lr_img is not None and not 0 < self.lr_img < math.inf:
            raise ValueError(f"lr_img must be positive, got {self.lr_img}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")
        if self.init not in (None, "real", "noise"):
            raise ValueError(f"init must be 'real' or 'noise', got {self.init!r}")
        if self.dsa_strategy:
            parse_strategy(self.dsa_strategy)
        generator(self.seed, Purpose.NETWORK)  # raises where it is no seed


def derived_seed(seed: int, purpose: Purpose, *keys: int) -> int:
    """A seed of its own for one purpose of a run."""
    return generator(seed, purpose, *keys).initial_seed()


class RealImages:
    """The images of each class on the device, and the batches that are drawn from them.

    Args:
        data: The training set, or a set made of it.
        device: Where its images go.
        seed: Of the draws.
        on_overflow: As of :class:`ResidentDataset`.
        limit_bytes: As there.
    """

    def __init__(
        self,
        data: DistilledSet | ImageDataset | ImageFolder,
        device: torch.device,
        seed: int,
        on_overflow: OnOverflow = "error",
        limit_bytes: int | None = None,
    ) -> None:
        self.data = ResidentDataset(
            data, device=device, on_overflow=on_overflow, limit_bytes=limit_bytes
        )
        self.seed = seed
        self.members = [
            (self.data.labels == label).nonzero()[:, 0].numpy() for label in range(data.num_classes)
        ]
        empty = [label for label, ids in enumerate(self.members) if len(ids) == 0]
        if empty:
            raise ValueError(f"the data has no image of class {empty[0]} ({len(empty)} such)")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.data.image_shape

    def batch(self, label: int, count: int, step: int) -> Tensor:
        """``count`` different images of a class as a network takes them, keyed by (image, step)."""
        members = self.members[label]
        high, low, _, _ = philox(self.seed, (Purpose.REAL_BATCH, members, step, 0))
        keys = (high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)
        chosen = members[np.argsort(keys, kind="stable")[:count]]
        return network_input(self.data.batch(torch.as_tensor(chosen)), self.data.normalization)

    def initial(self, ipc: int, init: Literal["real", "noise"]) -> Tensor:
        """First synthetic images, (classes · ipc, C, H, W), class by class.

        Raises:
            ValueError: A class has fewer than ``ipc`` real images.
        """
        if init == "noise":
            places = np.arange(math.prod(self.shape))
            noise = [
                normal(self.seed, Purpose.INITIAL, label, slot, places)
                for label in range(len(self.members))
                for slot in range(ipc)
            ]
            return torch.stack(noise).view(-1, *self.shape).to(self.data.device, torch.float32)
        chosen = []
        for label, members in enumerate(self.members):
            if len(members) < ipc:
                raise ValueError(
                    f"init='real' needs ipc = {ipc} images of every class, class {label} has "
                    f"{len(members)}"
                )
            order = uniform(self.seed, Purpose.INITIAL, members).argsort(stable=True)
            chosen.append(torch.as_tensor(members)[order[:ipc]])
        images = self.data.batch(torch.cat(chosen))
        return network_input(images, self.data.normalization).clone()


class Networks:
    """A freshly initialised network for every iteration.

    Args:
        model: Name, (name, options), or function of the seed.
        data: Whose classes and image size it is for.
        seed: Of the run.
        fused: Swap norm, ReLU and pooling for one operator.
    """

    def __init__(self, model: ModelSpec, data: RealImages, seed: int, *, fused: bool) -> None:
        self._model, self._data, self._seed, self._fused = model, data, seed, fused

    def make(self, iteration: int) -> nn.Module:
        """The network of an iteration, on the device, in training mode."""
        channels, height, width = self._data.shape
        network = build_model(
            self._model,
            derived_seed(self._seed, Purpose.NETWORK, iteration),
            num_classes=len(self._data.members),
            in_channels=channels,
            image_size=(height, width),
        )
        if self._fused:
            network = fuse_norm_relu_pool(network)
        return network.to(self._data.data.device).train()


def freeze_batch_norm(
    network: nn.Module, real: RealImages, step: int, momentum: float | None = None
) -> None:
    """Training mode, but BatchNorm takes the statistics of real images and keeps them (DC).

    Args:
        network: Changed in place.
        real: Their source.
        step: Keys the images.
        momentum: Weight of their statistics against those of initialisation; None: each layer's
            own (0.1 in DC's code).
    """
    layers = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    network.train()
    if not layers:
        return
    labels = range(len(real.members))
    images = [real.batch(label, _BATCH_NORM_IMAGES, step) for label in labels]
    own = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = layer.momentum if momentum is None else momentum
    with torch.no_grad():
        network(torch.cat(images))
    for layer, before in zip(layers, own, strict=True):
        layer.momentum = before
        layer.eval()


def class_dsa(
    seed: int, step: int, label: int, classes: int, size: tuple[int, int], strategy: str
) -> DSAParams | None:
    """The Siamese draw of one class in one step: one entry, one row of parameters for all images.

    None without a strategy.
    """
    if not strategy:
        return None
    return draw_dsa(
        derived_seed(seed, Purpose.CLASS_DSA),
        torch.tensor([label]),
        torch.tensor([step]),
        step * classes + label,
        size,
        strategy=strategy,
    )


def augmented(images: Tensor, params: DSAParams | None, *, align_corners: bool) -> Tensor:
    """The images under a draw; unchanged without one."""
    if params is None:
        return images
    return dsa(images, params.to(images.device), align_corners=align_corners)


class ImageParameters:
    """The synthetic images and their optimiser, SGD with momentum.

    Args:
        images: (classes · ipc, C, H, W) first values, class by class.
        ipc: Images of a class.
        lr: Learning rate.
        momentum: Of SGD.
    """

    def __init__(self, images: Tensor, ipc: int, lr: float, momentum: float) -> None:
        self.images, self.ipc = images.requires_grad_(), ipc
        self.images.grad = torch.zeros_like(images)
        self._optimizer = torch.optim.SGD([self.images], lr=lr, momentum=momentum)
        # There from the start, so that a checkpoint always has it; 0 · momentum + g is g.
        self._buffer = torch.zeros_like(images)
        self._optimizer.state[self.images]["momentum_buffer"] = self._buffer

    def of(self, labels: slice) -> slice:
        """Where the images of consecutive classes are."""
        return slice(labels.start * self.ipc, labels.stop * self.ipc)

    def zero_grad(self) -> None:
        """Forget the gradient."""
        assert self.images.grad is not None
        self.images.grad.zero_()

    def add_grad(self, labels: slice, gradient: Tensor) -> None:
        """Add the gradient of consecutive classes."""
        assert self.images.grad is not None
        self.images.grad[self.of(labels)] += gradient

    def step(self, ranks: Ranks) -> None:
        """One step by the gradient of all processes, each of which has that of its classes."""
        assert self.images.grad is not None
        ranks.add(self.images.grad)
        self._optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {"images": self.images.detach(), "momentum": self._buffer}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what :meth:`tensors` returned."""
        with torch.no_grad():
            self.images.copy_(tensors["images"])
            self._buffer.copy_(tensors["momentum"])


class Work(Protocol):
    """A distillation in progress."""

    def run_step(self, step: int) -> Tensor:
        """Take step ``step`` (from 0); its loss, a scalar on the device."""

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes."""

    def restore(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Stand before step ``step`` with these tensors."""


def optimise(
    work: Work,
    total: int,
    *,
    facts: Mapping[str, Any],
    job: Job,
    ranks: Ranks,
    advice: str,
    snapshot_every: int | None = None,
) -> float:
    """Run a distillation to its end, from its checkpoint if there is one.

    Every :data:`LOG_EVERY` steps a row goes to ``metrics.jsonl``: step, mean loss since the last
    row, seconds, and the peak of memory.

    Args:
        work: At its start.
        total: Steps.
        facts: JSON values that name the job.
        job: Where and how; several processes share the folder, the first one writes.
        ranks: Processes that divide the classes.
        advice: What to change when the loss is not finite.
        snapshot_every: Steps between two snapshots of the images.

    Returns:
        The last row's mean loss.

    Raises:
        FloatingPointError: The loss is no longer finite: what was saved before stays.
        ValueError: The folder holds another job or a damaged file.
    """
    with ExitStack() as stack:
        folder, start, last, pending = None, 0, math.nan, list[float]()
        if job.out is not None:
            folder = JobFolder(job.out, facts, ranks, resume=job.resume, parts="checkpoints")
            stack.enter_context(folder.run)
            found = folder.read(CHECKPOINT)
            if found is not None:
                start, reported = int(found[1]["step"]), found[1]["loss"]
                last = math.nan if reported is None else float(reported)
                pending = [float(loss) for loss in found[1]["pending"]]
                work.restore(start, found[0])
            if folder.first:
                folder.run.keep_metrics(lambda row: int(row["step"]) <= start)
        began = saved = time.perf_counter()
        losses: list[Tensor | float] = [*pending]
        for step in range(start, total):
            losses.append(work.run_step(step).detach())
            done = step + 1
            if job.on_progress is not None:
                job.on_progress(done, total)
            if folder is not None and folder.first:
                keep_snapshot(folder.run, done, snapshot_every, work.tensors)
            reports = done % LOG_EVERY == 0 or done == total
            saves = folder is not None and ranks.agree(
                time.perf_counter() - saved >= job.checkpoint_seconds or done == total
            )
            if not reports and not saves:
                continue
            losses = [float(loss) for loss in losses]
            # Each process has the losses of its classes.
            mean = torch.tensor(losses, dtype=torch.float64).mean()
            mean = ranks.gather(mean).sum()
            if not bool(mean.isfinite()):
                raise FloatingPointError(
                    f"the loss of steps {done - len(losses) + 1} to {done} is {float(mean)}: "
                    f"{advice}"
                )
            if reports:
                last, losses = float(mean), []
            if folder is not None and folder.first:
                if reports:
                    memory = peak_memory(next(iter(work.tensors().values())).device)
                    folder.run.log(
                        {
                            "step": done,
                            "loss": last,
                            "seconds": round(time.perf_counter() - began, 3),
                            "peak_memory_mib": round(memory / 2**20, 1),
                        }
                    )
                if saves:
                    # JSON has no NaN: nothing was reported yet.
                    reported = None if math.isnan(last) else last
                    state = {"step": done, "loss": reported, "pending": losses}
                    folder.write(CHECKPOINT, work.tensors(), state)
            if saves:
                saved = time.perf_counter()
        ranks.wait()
    return last


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has taken: of the GPU, or of main memory on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def share_of(classes: int, ranks: Ranks) -> slice:
    """The consecutive classes of this process."""
    return divide(classes, ranks.world)[ranks.rank]


def as_set(images: Tensor, real: RealImages, meta: Mapping[str, Any]) -> DistilledSet:
    """The finished images, class by class, as a set."""
    data, classes = real.data, len(real.members)
    return DistilledSet(
        images=images.detach().cpu().clone(),
        labels=torch.arange(classes).repeat_interleave(len(images) // classes),
        num_classes=classes,
        normalization=data.normalization,
        class_names=data.class_names,
        kind="synthetic",
        meta=meta,
        whitened=data.whitened,
    )
