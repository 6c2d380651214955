"""Twins of the ``select`` family: one segment at a time, in float64.

Every greedy method is a state of one number a row, an update by the row that was picked, and an
argmax, of which torch returns the first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyddfast.ops.reference.kd import widen
from pyddfast.ops.reference.pairwise import unit_rows as unit_rows_of_any_size

__all__ = [
    "distances",
    "facility_location",
    "graph_cut",
    "herding",
    "k_center",
    "similarity",
    "unit_rows",
]


def unit_rows(x: Tensor) -> Tensor:
    """Rows divided by their norm; a zero row stays zero, so that its cosines are 0."""
    if x.is_cpu:  # on a device a look would wait
        norm: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        if bool(((norm > 1e-15) & (norm < 1e15)).all()):  # no square has under- or overflown
            return x / norm
    return unit_rows_of_any_size(x)


def distances(x: Tensor, center: Tensor, metric: str) -> Tensor:
    """What `k_center` compares: the distance of all rows of `x` (n, D) to `center` (D,).

    Squared for the Euclidean metric.  Written as differences, which do not cancel for neighbours.
    """
    if metric == "euclidean":
        return (x - center).square().sum(1)
    if metric == "jeffreys":
        return ((x.exp() - center.exp()) * (x - center)).sum(1)
    rows, unit = unit_rows(x), unit_rows(center[None])
    halves = (rows - unit).square().sum(1) / 2  # 1 - cos of unit vectors
    zero = (rows == 0).all(1) | (unit == 0).all()
    return torch.where(zero, 1.0, halves)


def k_center(
    x: Tensor, k: int, metric: str, first: int, centers: list[int], weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Picks, radii and final distances of ``ops.k_center``; `first` < 0 is the farthest row."""
    x = widen(x)
    state = x.new_full((len(x),), torch.inf)
    free = torch.ones(len(x), dtype=torch.bool, device=x.device)
    factor = None if weight is None else widen(weight)
    if factor is not None and metric == "euclidean":
        factor = factor.square()
    picks: list[int] = []
    radii: list[Tensor] = []
    for number in range(len(centers) + k):
        if number < len(centers):
            pick = centers[number]
        elif number == len(centers) and first >= 0:
            pick = first
        else:
            pick = int(torch.where(free, _key(state, factor), -torch.inf).argmax())
        state = torch.minimum(state, distances(x, x[pick], metric))
        state[pick] = 0.0
        free[pick] = False
        if number >= len(centers):
            picks.append(pick)
            radii.append(_key(state, factor).max())
    found, values = _results(x, picks, radii)
    if metric == "euclidean":
        values, state = values.sqrt(), state.sqrt()
    return found, values, state


def _key(state: Tensor, factor: Tensor | None) -> Tensor:
    # A weight of 0 is no reason to go anywhere, at infinity either.
    return state if factor is None else torch.where(factor == 0, 0.0, state * factor)


def similarity(
    x: Tensor,
    y: Tensor,
    metric: str,
    gamma: float,
    offset: float,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """(n, m) similarities of the rows of `x` and `y`, in their dtype.

    `offset` is the largest distance, which ``euclidean`` is counted down from; `out` takes the
    result.
    """
    if metric in ("cosine", "cosine01"):
        x, y = unit_rows(x), unit_rows(y)
    products = torch.mm(x, y.T, out=out)
    if metric == "cosine":
        return products.clamp_(min=0.0)
    if metric == "cosine01":
        return products.mul_(0.5).add_(0.5)
    if metric == "dot":
        return products
    squares = products.mul_(-2.0).add_(x.square().sum(1)[:, None]).add_(y.square().sum(1))
    squares.clamp_(min=0.0)
    if metric == "rbf":
        return squares.mul_(-gamma).exp_()
    return squares.sqrt_().neg_().add_(offset)


def facility_location(similarity: Tensor, k: int, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Picks and gains by exhaustive greedy selection; `similarity` (n, n) of row i to pick j."""
    s = widen(similarity)
    rows = s.new_ones(len(s)) if weight is None else widen(weight)
    served = s.new_zeros(len(s))
    free = torch.ones(len(s), dtype=torch.bool, device=s.device)
    picks: list[int] = []
    gains: list[Tensor] = []
    for _ in range(k):
        gain = rows @ (s - served[:, None]).clamp(min=0.0)
        pick = int(torch.where(free, gain, -torch.inf).argmax())
        served = torch.maximum(served, s[:, pick])
        free[pick] = False
        picks.append(pick)
        gains.append(gain[pick])
    return _results(s, picks, gains)


def graph_cut(
    similarity: Tensor, total: Tensor, k: int, *, diagonal: bool
) -> tuple[Tensor, Tensor]:
    """Picks and gains; `total` (n,) is lambda times what each row covers."""
    s = widen(similarity)
    gain = widen(total) - (s.diagonal() if diagonal else 0.0)
    free = torch.ones(len(s), dtype=torch.bool, device=s.device)
    picks: list[int] = []
    gains: list[Tensor] = []
    for _ in range(k):
        pick = int(torch.where(free, gain, -torch.inf).argmax())
        picks.append(pick)
        gains.append(gain[pick])
        gain = gain - 2.0 * s[pick]
        free[pick] = False
    return _results(s, picks, gains)


def _results(like: Tensor, picks: list[int], values: list[Tensor]) -> tuple[Tensor, Tensor]:
    found = torch.stack(values) if values else like.new_empty(0)
    return torch.tensor(picks, dtype=torch.int64, device=like.device), found


def herding(x: Tensor, k: int, *, farthest: bool) -> Tensor:
    """Picks of ``ops.herding``."""
    x = widen(x)
    mean = x.mean(0)
    target = mean.clone()  # t mean - sum of the picks
    free = torch.ones(len(x), dtype=torch.bool, device=x.device)
    picks: list[int] = []
    for _ in range(k):
        key = (x - target).square().sum(1) * (1.0 if farthest else -1.0)
        pick = int(torch.where(free, key, -torch.inf).argmax())
        picks.append(pick)
        target = target + mean - x[pick]
        free[pick] = False
    return torch.tensor(picks, dtype=torch.int64, device=x.device)
