"""Losses as modules."""

from __future__ import annotations

from torch import Tensor, nn

from pyddfast import ops
from pyddfast.ops import Reduction, TeacherKind


class KDLoss(nn.Module):
    """`ops.kd_loss` with its options fixed, for training scripts that build their loss once.

    Args:
        temperature: T > 0.
        teacher_kind: What the teacher's tensor holds: ``"logits"``, ``"probs"``, ``"log_probs"``.
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"``.
        t_squared: Multiplies the loss by T².
        keep_score: Keeps the rows' EL2N-SL of the last call in ``last_score``.

    ``last_score`` is (...,), float32, without gradient, or None.
    """

    last_score: Tensor | None

    def __init__(
        self,
        temperature: float = 20.0,
        *,
        teacher_kind: TeacherKind = "logits",
        reduction: Reduction = "batchmean",
        t_squared: bool = False,
        keep_score: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.teacher_kind = teacher_kind
        self.reduction = reduction
        self.t_squared = t_squared
        self.keep_score = keep_score
        self.last_score = None

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """The loss of (..., C) logits against the teacher, as `ops.kd_loss`."""
        loss, self.last_score = ops.kd_loss(
            student,
            teacher,
            self.temperature,
            teacher_kind=self.teacher_kind,
            reduction=self.reduction,
            t_squared=self.t_squared,
            weight=weight,
            return_score=True,
        )
        if not self.keep_score:
            self.last_score = None
        return loss

    def extra_repr(self) -> str:
        """The options, for ``print(model)``."""
        return (
            f"temperature={self.temperature}, teacher_kind={self.teacher_kind!r}, "
            f"reduction={self.reduction!r}, t_squared={self.t_squared}"
        )
