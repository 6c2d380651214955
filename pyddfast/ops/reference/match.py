"""Twins of the ``match`` family: distances between gradients, mean features and parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["feature_mean_distance", "gradient_distance", "parameter_distance"]

# What the official code adds to the product of the norms (DatasetCondensation, utils.py).
EPSILON = 1e-6


def gradient_distance(syn: Sequence[Tensor], real: Sequence[Tensor], metric: str) -> Tensor:
    """Distance of ``ops.gradient_distance``; ``syn`` is not empty."""
    syn, real = _widen(syn), _widen(real)
    if metric == "ours":
        # Biases and the norms' scales and shifts have one dimension and do not count.
        pairs = [(s.flatten(1), r.flatten(1)) for s, r in zip(syn, real, strict=True) if s.ndim > 1]
        distances = [(1 - _cosine(s, r)).sum() for s, r in pairs]
        return torch.stack(distances).sum() if distances else syn[0].new_zeros(())
    s = torch.cat([tensor.flatten() for tensor in syn])
    r = torch.cat([tensor.flatten() for tensor in real])
    return (s - r).square().sum() if metric == "mse" else 1 - _cosine(s, r)


def _cosine(s: Tensor, r: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(s, dim=-1) * torch.linalg.vector_norm(r, dim=-1)
    cosine: Tensor = (s * r).sum(-1) / (norms + EPSILON)
    return cosine


def feature_mean_distance(syn: Tensor, real: Tensor) -> Tensor:
    """Squared distance of the means over the last dimension but one, summed over all classes."""
    syn, real = _widen([syn, real])
    return (syn.mean(-2) - real.mean(-2)).square().sum()


def parameter_distance(
    params: Sequence[Tensor], target: Sequence[Tensor], start: Sequence[Tensor] | None
) -> Tensor:
    """Squared distance to ``target``, over that from ``start`` to ``target`` if it is given."""
    distance = _squared(params, target)
    return distance if start is None else distance / _squared(start, target)


def _squared(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    pairs = zip(_widen(a), _widen(b), strict=True)
    return torch.stack([(x - y).square().sum() for x, y in pairs]).sum()


def _widen(tensors: Sequence[Tensor]) -> list[Tensor]:
    """16-bit types in float32, as every op computes: squares leave the range of float16."""
    return [t.float() if t.dtype.itemsize == 2 else t for t in tensors]
