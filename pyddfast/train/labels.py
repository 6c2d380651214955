"""Where a student's target comes from: the class, a fixed soft label, or a teacher on the view."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyddfast.data import ImageSource, ResidentDataset
from pyddfast.ops.kd import kd_loss
from pyddfast.train.evaluate import predict

__all__ = ["FixedLabels", "HardLabels", "LabelSource", "ViewLabels", "soft_labels"]


class LabelSource(Protocol):
    """Turns a batch's student logits into its loss."""

    def loss(self, logits: Tensor, ids: Tensor, views: Tensor) -> Tensor:
        """Scalar loss of logits (B, C) for the images ``ids`` (B,), seen as ``views``."""

    def describe(self) -> dict[str, Any]:
        """What the labels are, for config and report; JSON values."""


class HardLabels:
    """HL: cross-entropy with the class index.

    Args:
        labels: int64 (N,), on the training device.
    """

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels

    def loss(self, logits: Tensor, ids: Tensor, views: Tensor) -> Tensor:
        """Mean cross-entropy of the batch."""
        return F.cross_entropy(logits, self.labels[ids])

    def describe(self) -> dict[str, Any]:
        """Source and loss."""
        return {"source": "class index"}


class FixedLabels:
    """SL: KL to one soft label an image, never refreshed.

    Args:
        logits: teacher logits (N, C), on the training device.
        temperature: softens student and teacher.
        t_squared: multiply by T².
        source: where the logits come from, for the record.
    """

    def __init__(self, logits: Tensor, temperature: float, *, t_squared: bool, source: str) -> None:
        self.logits, self.temperature = logits, temperature
        self.t_squared, self.source = t_squared, source

    def loss(self, logits: Tensor, ids: Tensor, views: Tensor) -> Tensor:
        """KL(teacher || student), mean over the batch."""
        return kd_loss(logits, self.logits[ids], self.temperature, t_squared=self.t_squared)

    def describe(self) -> dict[str, Any]:
        """Source and loss."""
        return {"source": self.source}


class ViewLabels:
    """SL+KD: KL to the teacher's logits on the very view that the student sees.

    Args:
        teacher: network in eval mode, on the training device.
        temperature: softens student and teacher.
        t_squared: multiply by T².
    """

    def __init__(self, teacher: nn.Module, temperature: float, *, t_squared: bool) -> None:
        self.teacher, self.temperature, self.t_squared = teacher, temperature, t_squared

    def loss(self, logits: Tensor, ids: Tensor, views: Tensor) -> Tensor:
        """KL(teacher || student), mean over the batch."""
        with torch.no_grad():
            target = self.teacher(views)
        return kd_loss(logits, target, self.temperature, t_squared=self.t_squared)

    def describe(self) -> dict[str, Any]:
        """Source and loss."""
        return {"source": "teacher on every augmented view"}


def soft_labels(
    distilled: ImageSource | ResidentDataset,
    teacher: nn.Module,
    *,
    size: int | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Teacher logits of the stored images, un-augmented: the fixed labels of SL.

    Args:
        distilled: the set.
        teacher: network; run in eval mode, without gradient.
        size: side that the teacher wants; None: as stored.
        device: where to run; None: where the teacher is.

    Returns:
        (N, num_classes) logits on ``device``.

    Raises:
        ValueError: the teacher's classes are not the set's.
    """
    logits = predict(teacher, distilled, size=size, device=device)
    if logits.shape != (len(distilled), distilled.num_classes):
        raise ValueError(
            f"teacher gives logits {tuple(logits.shape)} for a set of {len(distilled)} images "
            f"and {distilled.num_classes} classes"
        )
    return logits
