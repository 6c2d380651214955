"""KIP: its sets in ``.npz`` files, and the whitening that belongs to them.

"Dataset Distillation with Infinitely Wide Convolutional Networks" (Nguyen et al., NeurIPS 2021),
as ``data_loader/kip_data_loader.py`` of justincui03/dc_benchmark (2a57711) reads and evaluates it.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pyddfast.data.datasets import Whitened
from pyddfast.data.zca import ZCAWhitening

__all__ = ["KIPWhitening", "kip_bytes", "read_kip"]


class KIPWhitening(ZCAWhitening):
    r"""KIP's whitening: each image less its mean and of norm 1, then times a symmetric matrix.

    The matrix is :math:`U (S + \epsilon \bar S)^{-1/2} U^T` with :math:`U S U^T` the second moments
    of those images, divisor N, and :math:`\bar S` the mean eigenvalue.  What an image loses first
    does not come back: there is no inverse.  An image of one value everywhere becomes 0, where the
    published code divides by 0.

    Args:
        eps: share of the mean eigenvalue that is added to every one.
        cache: as of :class:`ZCAWhitening`.
    """

    mark: Whitened = "kip"
    _centred = False

    def __init__(self, eps: float = 0.1, *, cache: str | Path | None = None) -> None:
        super().__init__(eps, compute_inv=False, cache=cache)

    def inverse_transform(self, images: Tensor) -> Tensor:
        """Raise: there is none."""
        raise RuntimeError("KIP's whitening drops mean and norm of each image: it has no inverse")

    def _prepare(self, rows: Tensor) -> Tensor:
        rows = rows - rows.mean(1, keepdim=True)
        norm = rows.norm(dim=1, keepdim=True)
        # One grey level in one of 10,000 values gives 4e-3; what is below 1e-5 is rounding.
        return rows / torch.where(norm > 1e-5, norm, torch.inf)

    def _added(self, values: Tensor) -> Tensor | float:
        return self.eps * values.mean()


def read_kip(path: Path, num_classes: int) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) float32 and labels (N,) of a file.

    The file's labels are targets of a regression, a value a class; the largest is the label, as
    DC-BENCH reads it.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is damaged, or does not hold ``images`` and ``labels`` of such shapes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        with np.load(path, allow_pickle=False) as content:
            images, labels = (np.asarray(content[name]) for name in ("images", "labels"))
    except Exception as error:
        # A damaged archive, a missing name, objects: each its own type.
        raise ValueError(f"{path} is not a file of arrays images and labels: {error}") from error
    if images.ndim != 4 or labels.shape != (len(images), num_classes) or not len(images):
        raise ValueError(
            f"{path} must hold images (N, H, W, C) and labels (N, {num_classes}), got "
            f"{images.shape} and {labels.shape}"
        )
    numbers = images.dtype.kind == "f" and labels.dtype.kind in "fiu"
    if not numbers or not np.isfinite(labels).all():
        raise ValueError(f"{path} must hold floating-point images and finite labels")
    whole = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2).contiguous()
    return whole, torch.from_numpy(labels.argmax(1).astype(np.int64))


def kip_bytes(images: Tensor, labels: Tensor, num_classes: int) -> bytes:
    """A file of a set: targets are 1 for the class and 0 for others, less their mean."""
    targets = F.one_hot(labels, num_classes).float() - 1 / num_classes
    stream: Any = io.BytesIO()
    np.savez(
        stream,
        images=images.permute(0, 2, 3, 1).contiguous().numpy(),
        labels=targets.numpy(),
    )
    content: bytes = stream.getvalue()
    return content
