"""``methods_utils/euclidean.py`` and ``cossim.py``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyddfast import ops

__all__ = [
    "LastLayerGradients",
    "cossim",
    "cossim_np",
    "cossim_pair",
    "cossim_pair_np",
    "euclidean_dist",
    "euclidean_dist_np",
    "euclidean_dist_pair",
    "euclidean_dist_pair_np",
]

Array = npt.NDArray[Any]


class LastLayerGradients:
    """Gradients g ⊗ [1; h] of samples by the last layer, which are never formed.

    Args:
        g: (n, C) gradients by the logits.
        h: (n, D) inputs of the layer.
    """

    def __init__(self, g: Tensor, h: Tensor) -> None:
        self.g, self.h = g, h

    def __len__(self) -> int:
        return len(self.g)

    def __getitem__(self, rows: Array) -> LastLayerGradients:
        """Of some samples: a mask or positions."""
        kept = torch.from_numpy(np.arange(len(self))[rows])
        return LastLayerGradients(self.g[kept], self.h[kept])

    def cossim(self, other: LastLayerGradients) -> Array:
        """0.5 + 0.5 cos of these and others, (n, m)."""
        if self.g.shape == other.g.shape and torch.equal(self.g, other.g):
            return ops.last_layer_gram(self.g, self.h, metric="cosine01").numpy()
        both = LastLayerGradients(torch.cat([self.g, other.g]), torch.cat([self.h, other.h]))
        return both.cossim(both)[: len(self), len(self) :]


def euclidean_dist(x: Tensor, y: Tensor) -> Tensor:
    """Distances (n, m) of rows, whose squares are at least 1e-12.

    Args:
        x: (n, D) floating point.
        y: (m, D) floating point.
    """
    squares = torch.addmm(x.square().sum(1, keepdim=True), x, y.T, alpha=-2)
    return squares.add_(y.square().sum(1)).clamp_(min=1e-12).sqrt_()


def euclidean_dist_pair(x: Tensor) -> Tensor:
    """:func:`euclidean_dist` of rows with each other, (n, n)."""
    return euclidean_dist(x, x)


def euclidean_dist_np(x: Array, y: Array) -> Array:
    """:func:`euclidean_dist` of arrays; two matrices in memory at most, where it had five."""
    return euclidean_dist(torch.from_numpy(x), torch.from_numpy(y)).numpy()


def euclidean_dist_pair_np(x: Array) -> Array:
    """:func:`euclidean_dist_pair` of an array."""
    return euclidean_dist_np(x, x)


def cossim(v1: Tensor, v2: Tensor) -> Tensor:
    """0.5 + 0.5 cos of rows, (n, m); a row of zeros has 0.5 with all, where it had NaN.

    Args:
        v1: (n, D) floating point.
        v2: (m, D) floating point.
    """
    one, other = (v.norm(dim=1) for v in (v1, v2))
    one, other = (torch.where(norm > 0, norm, 1.0) for norm in (one, other))
    return (v1 @ v2.T).div_(one[:, None]).div_(other).mul_(0.5).add_(0.5)


def cossim_pair(v1: Tensor) -> Tensor:
    """:func:`cossim` of rows with each other, (n, n)."""
    return cossim(v1, v1)


def cossim_np(v1: Array | LastLayerGradients, v2: Array | LastLayerGradients) -> Array:
    """:func:`cossim` of arrays, or of gradients of the last layer."""
    if isinstance(v1, LastLayerGradients):
        assert isinstance(v2, LastLayerGradients)
        return v1.cossim(v2)
    assert not isinstance(v2, LastLayerGradients)
    return cossim(torch.from_numpy(v1), torch.from_numpy(v2)).numpy()


def cossim_pair_np(v1: Array) -> Array:
    """:func:`cossim_pair` of an array."""
    return cossim_np(v1, v1)
