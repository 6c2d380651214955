"""What a method asks of its images beside their class: the part of the loss that methods differ in.

The engine knows the cross-entropy; an :class:`Objective` adds the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from pyddfast.methods.chunks import Chunk, ChunkStore
from pyddfast.nn import BNStatLoss
from pyddfast.ops.synthesis import image_prior
from pyddfast.train.distributed import Ranks

__all__ = ["BatchNormObjective", "Forward", "Objective", "Site"]


@dataclass(frozen=True)
class Site:
    """Where a job runs.

    Attributes:
        teachers: On the device, in evaluation mode.
        device: Of the job.
        store: Files of the run folder; None without one.
        ranks: This process among those of the job.
        checkpoint_seconds: At most this long between two checkpoints.
    """

    teachers: Sequence[nn.Module]
    device: torch.device
    store: ChunkStore | None
    ranks: Ranks
    checkpoint_seconds: float


@dataclass(frozen=True)
class Forward:
    """A step's forward pass.

    Attributes:
        turn: Number of the teacher.
        images: (B, C, S, S), normalised: what is optimised.
        views: The images as the teacher saw them, in this step's crop, flip and roll.
        logits: float32 (B, classes).
        predict: The same teacher's float32 logits of other images in the same crop, flip and roll.
    """

    turn: int
    images: Tensor
    views: Tensor
    logits: Tensor
    predict: Callable[[Tensor], Tensor]


class Objective(Protocol):
    """The loss beside the cross-entropy; one object a job.

    A chunk's loss must not depend on the chunks before it: what changes from step to step starts
    anew in :meth:`begin`, and is in :meth:`state`.
    """

    @property
    def name(self) -> str:
        """Column of the distance in the metrics."""

    def begin(self, chunk: Chunk) -> None:
        """A chunk starts."""

    def __call__(self, forward: Forward) -> tuple[Tensor, Tensor]:
        """The loss to add, and the distance of the statistics without its weight; scalars."""

    def state(self) -> dict[str, Tensor]:
        """What :meth:`restore` needs to go on within a chunk."""

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from a checkpoint."""

    def close(self) -> None:
        """Take the hooks off the teachers."""


class BatchNormObjective:
    """SRe2L's: the BatchNorm statistics' distance and image priors.

    Args:
        site: Where.
        weight: Of the distance.
        first_multiplier: Of the first layer's part of it.
        var_weight: Of variances against means.
        mode: How :class:`BNStatLoss` reads the statistics.
        tv: Weight of the TV prior.
        l2: Weight of the L2 prior.
    """

    name = "bn"

    def __init__(
        self,
        site: Site,
        *,
        weight: float,
        first_multiplier: float,
        var_weight: float = 1.0,
        mode: Literal["tap", "fused"] = "tap",
        tv: float = 0.0,
        l2: float = 0.0,
    ) -> None:
        self.weight, self.tv, self.l2 = weight, tv, l2
        self.losses: list[BNStatLoss] = []
        with ExitStack() as hooks:  # a teacher without BatchNorm must not leave the others hooked
            for teacher in site.teachers:
                loss = BNStatLoss(teacher, first_multiplier, var_weight, mode=mode)
                self.losses.append(hooks.enter_context(loss))
            self.hooks = hooks.pop_all()

    def begin(self, chunk: Chunk) -> None:
        """Nothing: the statistics are the batch's."""

    def __call__(self, forward: Forward) -> tuple[Tensor, Tensor]:
        """See :class:`Objective`."""
        distance = self.losses[forward.turn]()
        loss = self.weight * distance
        if self.tv or self.l2:
            loss = loss + image_prior(forward.views, self.tv, self.l2)
        return loss, distance

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Take the hooks off the teachers."""
        self.hooks.close()
