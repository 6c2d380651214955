"""Rows that are equal: ties among them are to go to the lowest."""

from __future__ import annotations

import torch
from torch import Tensor

from pyddfast.ops.reference.kd import accumulation_dtype


def first_equals(*parts: Tensor) -> Tensor | None:
    """The first row that equals each, or None where all differ.

    A product of matrices rounds equal rows differently, by where they are, so that a tie would not
    go to the lowest: what is computed for a row's first equal holds for the row, too.

    Args:
        parts: (N, D) floating point, finite: columns of the rows.

    Returns:
        int64 (N,), or None.
    """
    parts = tuple(part for part in parts if part.shape[1])
    if not parts or any(len(torch.unique(key)) == len(key) for key in map(_keys, parts)):
        return None
    rows, which = torch.unique(torch.cat(parts, 1), dim=0, return_inverse=True)
    if len(rows) == len(which):
        return None
    place = torch.arange(len(which), device=which.device)
    first = torch.full_like(place, len(place)).scatter_reduce(0, which, place, "amin")
    return first[which]


def _keys(part: Tensor) -> Tensor:
    """int64 (N,): of equal rows equal, of others hardly ever; by two passes over the rows."""
    rows, dtype = part.contiguous(), accumulation_dtype(part)
    bits = torch.int64 if dtype == torch.float64 else torch.int32
    # -0 is 0.
    sums, norms = rows.sum(1, dtype=dtype) + 0.0, torch.linalg.vector_norm(rows, dim=1, dtype=dtype)
    key: Tensor = sums.view(bits).long() * 2**32 + norms.view(bits).long()
    return key
