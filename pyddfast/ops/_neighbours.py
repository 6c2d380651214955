"""Nearest neighbours by the CPU's kernels: a product of two rows serves them both."""

from __future__ import annotations

import torch
from torch import Tensor

from pyddfast.ops._native import raw
from pyddfast.ops.reference import pairwise as reference

# Rows of a product: few, so that little is computed on both sides of the diagonal; enough for a
# product to run at the machine's speed.
_ROWS = 256


def knn_topk(
    x: Tensor, k: int, *, metric: str, tile: int, exclude_self: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """As :func:`pyddfast.ops.reference.pairwise.knn_topk`, of which it takes the unclear rows."""
    count, euclidean = len(x), metric == "euclidean"
    rows = x.to(dtype).contiguous()
    moved = rows - rows.mean(0) if euclidean else reference.unit_rows(rows)
    squares = moved.square().sum(1) if euclidean else moved.new_ones(count)
    norm = None
    if not euclidean:
        if dtype == torch.float64:  # whose squares may under- or overflow
            rows = moved
        norm = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    kept = min(count - exclude_self, k + reference.SPARE)
    values = torch.full((count, kept), torch.inf, dtype=dtype)
    indices = torch.full((count, kept), -1)
    step = min(tile, _ROWS)
    for start in range(0, count, step):
        for first in range(start, count, 4 * tile):
            product = torch.mm(moved[start : start + step], moved[first : first + 4 * tile].mT)
            raw.knn_propose_(product, squares, values, indices, start, first, exclude_self)
    error = reference.rounding(dtype, x.device) * (x.shape[1] + 8)
    everything = kept == count - exclude_self
    distances, nearest, unclear = raw.knn_decide(
        rows, norm, squares, values, indices, k, everything, error
    )
    every = torch.arange(count)
    reference.search_unclear(x, every, unclear, distances, nearest, euclidean, tile, exclude_self)
    return (distances if euclidean else distances.square() / 2).to(dtype), nearest
