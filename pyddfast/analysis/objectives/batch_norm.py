"""The objectives of SRe2L and DWA: how far a set's BatchNorm statistics are from a teacher's.

Equations 1 and 2 of "Rethinking Dataset Distillation: Hard Truths About Soft Labels":
Σ_l ‖μ_l(S) − running mean‖₂ + λ_var ‖σ²_l(S) − running variance‖₂, without the terms that the
methods add (cross-entropy) or change (ten times the first layer, augmented images, a perturbed
teacher); those are switches.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyddfast.analysis.objectives.value import ImageSet, ObjectiveValue, switches
from pyddfast.data import ResidentDataset, network_input
from pyddfast.methods.dwa import adjust_weights
from pyddfast.methods.engine import frozen
from pyddfast.methods.sre2l import SMALLEST_CROP
from pyddfast.nn import BNStatLoss
from pyddfast.nn.bn_stats import check_layer, layer_distances
from pyddfast.nn.stat_hooks import layer_input
from pyddfast.nn.stats_accumulator import StatsAccumulator
from pyddfast.ops.synthesis import crop_flip_roll, draw_crop_flip_roll
from pyddfast.train import progress
from pyddfast.train.distributed import resolve_device
from pyddfast.train.models import model_digest

__all__ = ["DWAObjective", "SRe2LObjective"]


@dataclass(frozen=True, eq=False)
class SRe2LObjective:
    """Equation 1; the switches add what SRe2L itself computes beside it.

    Attributes:
        teacher: Network with BatchNorm, trained on the data; mode and gradients are put back.
        statistics: ``"whole"``: of the whole set, whatever its size, merged in float64.
            ``"batches"``: the mean over batches of the loss of each batch's own statistics, which
            is what the method minimises.  The paper does not say which.
        first_multiplier: Of the first layer; 10 in the methods' code.
        var_weight: λ_var.
        ce: Add the teacher's cross-entropy of the set's labels.
        bn_weight: Of the statistics against the cross-entropy; SRe2L's for ImageNet.
        crop: Crop and mirror each batch as the recover step does.
        jitter: Roll each batch by so many pixels, (least, most).
        batch_size: Images at once; SRe2L's batch.
        seed: Of the augmentation.
        device: Default CUDA where there is one.
    """

    teacher: nn.Module
    statistics: Literal["whole", "batches"] = "whole"
    first_multiplier: float = 1.0
    var_weight: float = 1.0
    ce: bool = False
    bn_weight: float = 0.01
    crop: bool = False
    jitter: tuple[int, int] = (0, 0)
    batch_size: int = 100
    seed: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        if self.statistics not in ("whole", "batches"):
            raise ValueError(f"statistics must be whole or batches, got {self.statistics!r}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    @property
    def name(self) -> str:
        """For tables."""
        return "sre2l"

    def settings(self) -> dict[str, Any]:
        """See :class:`Objective`."""
        own = switches(self, "teacher", "device")
        return {**own, "jitter": list(self.jitter), "teacher": model_digest(self.teacher)}

    def __call__(self, sets: Sequence[ImageSet]) -> list[ObjectiveValue]:
        """See :class:`Objective`; ``parts`` are the layers' distances, and the cross-entropy."""
        found = []
        with progress(self.name, sum(map(len, sets))) as advance:
            for one in sets:
                found.append(self._evaluate(one))
                advance(len(one))
        return found

    def _evaluate(self, one: ImageSet) -> ObjectiveValue:
        device = resolve_device(self.device)
        with ExitStack() as stack:
            stack.enter_context(frozen([self.teacher], device, channels_last=False))
            if self.statistics == "whole":
                distance, layers, entropy = self._whole(one, device, stack)
            else:
                distance, layers, entropy = self._batches(one, device)
        parts = {f"layer {number}": float(value) for number, value in enumerate(layers)}
        if not self.ce:
            return ObjectiveValue(distance, parts)
        return ObjectiveValue(
            entropy + self.bn_weight * distance, {**parts, "bn": distance, "cross_entropy": entropy}
        )

    @torch.no_grad()
    def _whole(
        self, one: ImageSet, device: torch.device, stack: ExitStack
    ) -> tuple[float, Tensor, float]:
        """One pass; layers' statistics accumulate."""
        layers = [m for m in self.teacher.modules() if isinstance(m, nn.BatchNorm2d)]
        if not layers:
            raise ValueError(f"the teacher ({type(self.teacher).__name__}) has no nn.BatchNorm2d")
        stats = [StatsAccumulator() for _ in layers]
        for number, layer in enumerate(layers):
            check_layer(layer, f"BatchNorm layer {number}")
            hook = layer.register_forward_pre_hook(partial(_add, stats[number]), with_kwargs=True)
            stack.callback(hook.remove)
        entropy = 0.0
        for _, views, labels in self._views(one, device):
            logits = self.teacher(views).float()
            entropy += float(F.cross_entropy(logits, labels, reduction="sum"))
        means = torch.cat([layer.running_mean.double() for layer in layers])  # type: ignore[union-attr]
        variances = torch.cat([layer.running_var.double() for layer in layers])  # type: ignore[union-attr]
        loss, distances = layer_distances(
            [accumulated.mean_var() for accumulated in stats],
            means[None],
            variances[None],
            [self.first_multiplier] + [1.0] * (len(layers) - 1),
            var_weight=self.var_weight,
        )
        return float(loss), distances, entropy / len(one)

    def _batches(self, one: ImageSet, device: torch.device) -> tuple[float, Tensor, float]:
        """The loss of each batch, by the hook that the methods use; their mean over images."""
        total, entropy = 0.0, 0.0
        layers: Tensor | None = None
        for images, views, labels in self._views(one, device):
            teacher = self._teacher(views, labels)
            with (
                torch.no_grad(),
                BNStatLoss(teacher, self.first_multiplier, self.var_weight) as loss,
            ):
                logits = teacher(views).float()
                share = len(images) / len(one)
                total += share * float(loss())
                assert loss.per_layer is not None
                own = share * loss.per_layer.double()
                layers = own if layers is None else layers + own
                entropy += share * float(F.cross_entropy(logits, labels))
        assert layers is not None  # no set is empty
        return total, layers, entropy

    def _teacher(self, views: Tensor, labels: Tensor) -> nn.Module:
        """The network that looks at a batch."""
        return self.teacher

    def _views(
        self, one: ImageSet, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Images, views and labels of each batch, batches as SRe2L's: slot by slot."""
        data = ResidentDataset(one, device=device, on_overflow="stream")
        batches = slot_batches(data.labels, self.batch_size)
        height, width = data.image_shape[1:]
        for number, ids in enumerate(batches):
            images = network_input(data.batch(ids), data.normalization)
            views = images
            if self.crop or self.jitter != (0, 0):
                params = draw_crop_flip_roll(
                    self.seed,
                    torch.zeros(1, dtype=torch.int64),
                    number,
                    (height, width),
                    scale=(SMALLEST_CROP, 1.0) if self.crop else None,
                    flip=self.crop,
                    shift=self.jitter,
                )[0]
                views = crop_flip_roll(images, params.to(device), height)
            yield images, views, data.labels[ids].to(device)


@dataclass(frozen=True, eq=False)
class DWAObjective(SRe2LObjective):
    """Equation 2; as :class:`SRe2LObjective`, and the teacher may be perturbed.

    Attributes:
        var_weight: λ_var; 2 in the official code for ImageNet.
        perturb: Each batch is seen by a teacher whose weights have climbed its cross-entropy, as in
            the method (there of the first images); for ``statistics="batches"``.
        adjust_steps: Steps of it.
        rho: Length of all of them together.
    """

    var_weight: float = 2.0
    perturb: bool = False
    adjust_steps: int = 15
    rho: float = 0.015

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.perturb and self.statistics != "batches":
            raise ValueError(
                "perturb=True has a teacher of its own for each batch: give statistics='batches'"
            )

    @property
    def name(self) -> str:
        """For tables."""
        return "dwa"

    def _teacher(self, views: Tensor, labels: Tensor) -> nn.Module:
        if not self.perturb:
            return self.teacher
        teacher = copy.deepcopy(self.teacher)
        adjust_weights(teacher, views, labels, steps=self.adjust_steps, rho=self.rho)
        return teacher


def slot_batches(labels: Tensor, batch_size: int) -> list[Tensor]:
    """Positions of each batch: all classes' first images, then the second ones, and so on.

    A batch ends with its slot, as in the recover step of SRe2L and DWA.

    Args:
        labels: int64 (N,).
        batch_size: At most.

    Returns:
        int64, classes ascending within a slot.
    """
    by_class = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    first = (counts.cumsum(0) - counts)[labels[by_class]]
    slots = torch.arange(len(labels)) - first
    order = torch.argsort(slots, stable=True)
    rows = torch.split(by_class[order], torch.bincount(slots).tolist())
    return [part for row in rows for part in torch.split(row, batch_size)]


def _add(
    stats: StatsAccumulator, layer: _BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    stats.update(layer_input(args, kwargs), layer.running_mean)
