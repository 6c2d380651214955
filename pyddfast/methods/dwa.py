"""DWA: SRe2L from real images, with the teacher's weights moved for each batch.

"Diversity-Driven Synthesis: Enhancing Dataset Distillation through Directed Weight Adjustment"
(Du et al., NeurIPS 2024), algorithm 1; official code AngusDujw/Diversity-Driven-Synthesis,
``distillation/``.  Before a batch is optimised, the teacher's weights climb the cross-entropy of
its first images by a few normalised gradient steps, so that batches of the same classes do not all
end alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyddfast.data import DistilledSet, ImageSource
from pyddfast.methods.chunks import Chunk, plan_chunks
from pyddfast.methods.engine import FirstViews
from pyddfast.methods.recover import Job, batch_norm, recover, teacher_list
from pyddfast.methods.sre2l import SMALLEST_CROP
from pyddfast.methods.synthesis import SynthesisConfig, Task, Teachers, check_counts, resolve

__all__ = ["DWAConfig", "adjust_weights", "dwa"]

# The commands in scripts/.
PUBLISHED: dict[str, dict[str, Any]] = {
    "imagenet-1k": {
        "iterations": 2000, "batch_size": 100, "lr": 0.25, "bn_weight": 0.01,
        "jitter": (0, 32), "crop": True, "var_weight": 2.0, "adjust_steps": 15,
    },
    "tiny-imagenet": {
        "iterations": 2000, "batch_size": 200, "lr": 0.1, "bn_weight": 0.01,
        "jitter": (0, 4), "crop": True, "var_weight": 11.0, "adjust_steps": 12,
    },
    "cifar-100": {
        "iterations": 1000, "batch_size": 100, "lr": 0.25, "bn_weight": 0.01,
        "jitter": (0, 4), "crop": False, "var_weight": 11.0, "adjust_steps": 12,
    },
}  # fmt: skip


@dataclass(frozen=True)
class DWAConfig(SynthesisConfig):
    """Settings of DWA; what is None takes the value published for the preset.

    ``semantics="official"`` also does what the published code does: weights are not put back
    between the batches of one image a class, so that adjustments add up; the adjustment's own
    cross-entropy gradients enter the images' first step; first images are taken in the data set's
    order instead of a keyed random one; pixels are cut off to bytes (half a level darker on
    average).

    Attributes:
        init: First images: data (published), set or noise.
        var_weight: Weight of variances against means in the statistics' loss.
        adjust_steps: Steps of the weights' adjustment.
        rho: Length of all its steps together; published: 0.015.
    """

    init: Literal["noise", "data", "set"] = "data"
    var_weight: float | None = None
    adjust_steps: int | None = None
    rho: float = 0.015

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "adjust_steps")
        for name in ("var_weight", "rho"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name} must not be negative, got {value}")


def adjust_weights(
    teacher: nn.Module, views: Tensor, labels: Tensor, *, steps: int, rho: float
) -> Tensor:
    """Climb the cross-entropy of a batch: w += (rho / steps) · g / (‖g‖₂ + 1e-12), in place.

    The norm is over all weights together.

    Args:
        teacher: As it is; its weights change, its buffers do not in evaluation mode.
        views: (B, C, S, S).
        labels: int64 (B,).
        steps: Number of steps.
        rho: Sum of their lengths.

    Returns:
        The sum over the steps of the cross-entropy's gradient with respect to ``views``.
    """
    leaf = views.detach().requires_grad_()
    weights = list(teacher.parameters())
    wanted = [weight.requires_grad for weight in weights]
    total = torch.zeros_like(leaf)
    try:
        for weight in weights:
            weight.requires_grad_(True)
        for _ in range(steps):
            loss = F.cross_entropy(teacher(leaf), labels)
            into, *gradients = torch.autograd.grad(loss, [leaf, *weights], allow_unused=True)
            total += into
            used = [(w, g) for w, g in zip(weights, gradients, strict=True) if g is not None]
            norm = torch.stack([torch.linalg.vector_norm(g) for _, g in used]).norm()
            with torch.no_grad():
                for weight, gradient in used:
                    weight.add_(gradient * (rho / steps / (norm + 1e-12)))
    finally:
        for weight, before in zip(weights, wanted, strict=True):
            weight.requires_grad_(before)
    return total


def dwa(
    task: Task,
    teachers: Teachers,
    config: DWAConfig | None = None,
    *,
    source: ImageSource | None = None,
    job: Job | None = None,
) -> DistilledSet:
    """Distill by DWA; arguments, result and errors as :func:`sre2l`.

    The teachers' weights are put back at the end.
    """
    config = DWAConfig() if config is None else config
    settings = resolve(config, task, PUBLISHED)
    assert settings.var_weight is not None
    listed = teacher_list(teachers)
    adjustment = _Adjustment(listed, settings)
    try:
        return recover(
            "dwa",
            task,
            listed,
            settings,
            job or Job(),
            source=source,
            min_scale=lambda step: SMALLEST_CROP,
            objective=batch_norm(settings, var_weight=settings.var_weight),
            prepare=adjustment,
        )
    finally:
        adjustment.undo()


class _Adjustment:
    """Sets the teachers' weights for a chunk, whichever chunk was made before."""

    def __init__(self, teachers: Sequence[nn.Module], config: DWAConfig) -> None:
        self.teachers, self.config = teachers, config
        self.weights = [weight for teacher in teachers for weight in teacher.parameters()]
        self.original = [weight.detach().cpu().clone() for weight in self.weights]

    @torch.no_grad()
    def undo(self) -> None:
        for weight, original in zip(self.weights, self.original, strict=True):
            weight.copy_(original)

    def __call__(self, chunk: Chunk, first_views: FirstViews) -> Tensor | None:
        config = self.config
        assert config.batch_size is not None
        assert config.adjust_steps is not None
        self.undo()
        official = config.semantics == "official"
        before = [
            other
            for other in plan_chunks(config.classes, config.ipc, config.batch_size)
            if official and other.slots[0] == chunk.slots[0] and other.index < chunk.index
        ]
        first: Tensor | None = None
        for other in [*before, chunk]:
            images, views, labels = first_views(other)
            into = [
                adjust_weights(teacher, views, labels, steps=config.adjust_steps, rho=config.rho)
                for teacher in self.teachers
            ]
            # The first step is the first teacher's.
            (first,) = torch.autograd.grad(views, images, into[0])
        return first if official else None
