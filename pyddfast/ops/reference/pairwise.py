"""Twins of the ``pairwise`` family: Gram matrices, alignments and neighbours.

Plain torch in the dtype of the arguments (float32 or float64), tile by tile where the whole would
be too large.  Arguments are checked by :mod:`pyddfast.ops.pairwise`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyddfast.ops.reference.kd import accumulation_dtype, widen

# Elements of a temporary of the tiled functions: 64 MiB in float32.
_TEMPORARY = 1 << 24
# Elements of a temporary that stays in a core's cache: 1 MiB in float64.
_CACHED = 1 << 17
# Neighbours that the product form finds beyond the k asked for; exact distances decide among them.
# Where rows are so close that 8 do not suffice, the row is searched with exact distances.
SPARE = 8


def logit_gradient(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """(p - q) / T for labels or probabilities; a label's entry is minus the sum of the others."""
    p = (widen(logits) / temperature).softmax(-1)
    hard = not target.dtype.is_floating_point
    y = (target if hard else target.argmax(-1)).unsqueeze(-1)
    others = p.scatter(-1, y, 0.0)
    difference = others.scatter(-1, y, -others.sum(-1, keepdim=True))
    if not hard:
        one_hot = (target == 1).any(-1, keepdim=True) & ((target != 0).sum(-1, keepdim=True) == 1)
        difference = torch.where(one_hot, difference, p - widen(target))
    return (difference / temperature).to(accumulation_dtype(logits))


def last_layer_gram(g: Tensor, h: Tensor, *, metric: str, bias: bool) -> Tensor:
    """One segment's (n, n) matrix, from two products of n rows; two (n, n) matrices at once."""
    cosine = metric.startswith("cosine")
    rows = unit_rows(g) if cosine else g
    gram = rows @ rows.mT
    if cosine and bias:
        # Of [h, 1] without a copy that is one column wider.
        # In float64, where squares of float32 do not overflow.
        norms = torch.linalg.vector_norm(h, dim=1, dtype=torch.float64)
        inverse = norms.square_().add_(1).rsqrt_().to(h.dtype)
        rows = h * inverse[:, None]
        gram *= (rows @ rows.mT).addr_(inverse, inverse)
    else:
        rows = unit_rows(h) if cosine else h
        other = rows @ rows.mT
        gram *= other.add_(1) if bias else other
    if metric == "euclidean":
        square = gram.diagonal().clone()
        # In this order the diagonal is exactly 0.
        return gram.mul_(-2).add_(square).add_(square[:, None]).clamp_(min=0).sqrt_()
    if cosine:
        gram.clamp_(-1, 1)
    return gram.mul_(0.5).add_(0.5) if metric == "cosine01" else gram


def unit_rows(x: Tensor) -> Tensor:
    """Rows over their Euclidean norm, though its square may underflow; a row of zeros stays."""
    scale = x.abs().amax(-1, keepdim=True) if x.shape[-1] else x.new_zeros(*x.shape[:-1], 1)
    scaled = x / torch.where(scale > 0, scale, 1.0)
    norm: Tensor = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled / torch.where(scale > 0, norm, 1.0)


def grad_align_score(
    g: Tensor, h: Tensor, g_val: Tensor, h_val: Tensor, *, bias: bool, dtype: torch.dtype
) -> Tensor:
    """<G_i, mean of G_val> as g_i (M h_i + mean g_val) with M = g_val^T h_val / n."""
    step = max(1, _TEMPORARY // max(1, g.shape[1], h.shape[1]))
    product = g.new_zeros((g.shape[1], h.shape[1]), dtype=dtype)
    for g_rows, h_rows in zip(torch.split(g_val, step), torch.split(h_val, step), strict=True):
        product.addmm_(g_rows.to(dtype).mT, h_rows.to(dtype), alpha=1 / len(g_val))
    mean = g_val.mean(0, dtype=dtype) if bias else None
    scores = []
    for g_rows, h_rows in zip(torch.split(g, step), torch.split(h, step), strict=True):
        rows = g_rows.to(dtype)
        score = ((rows @ product) * h_rows.to(dtype)).sum(1)
        scores.append(score if mean is None else score.addmv_(rows, mean))
    return torch.cat(scores)


def knn_topk(
    x: Tensor, k: int, *, metric: str, tile: int, exclude_self: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Distances (n, k) in ``dtype`` and indices of one segment, as float64 orders them.

    Products of tiles in ``dtype`` propose a few more than k neighbours of each row, whose distances
    are then computed as the norm of a difference in float64.  Where rounding could have kept a
    neighbour out, the row's distances to all others are.
    """
    euclidean = metric == "euclidean"
    center = x.mean(0, dtype=dtype) if euclidean else 0.0
    found = [
        _row_tile(x, start, k, center, euclidean, tile, exclude_self, dtype)
        for start in range(0, len(x), tile)
    ]
    distances, indices = (torch.cat(part) for part in zip(*found, strict=True))
    return (distances if euclidean else distances.square() / 2).to(dtype), indices


def _row_tile(
    x: Tensor,
    start: int,
    k: int,
    center: Tensor | float,
    euclidean: bool,
    tile: int,
    exclude_self: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The neighbours of rows ``start`` to ``start + tile``; distances in float64."""
    count = len(x)
    own = torch.arange(start, min(start + tile, count), device=x.device)

    def moved(rows: Tensor) -> Tensor:
        rows = rows.to(dtype)
        return rows - center if euclidean else unit_rows(rows)

    rows = moved(x[own])
    proposed = min(count - exclude_self, k + SPARE)
    values = rows.new_empty((len(rows), 0))
    indices = own.new_empty((len(rows), 0))
    for first in range(0, count, 4 * tile):
        columns = moved(x[first : first + 4 * tile])
        # What a row adds to all its distances does not matter here.
        square = columns.square().sum(1) if euclidean else columns.new_ones(len(columns))
        part = torch.addmm(square, rows, columns.mT, alpha=-2)
        if exclude_self:
            here = (own >= first) & (own < first + len(columns))
            part[here, own[here] - first] = torch.inf
        best, index = part.topk(min(proposed, len(columns)), dim=1, largest=False)
        values, indices = torch.cat((values, best), 1), torch.cat((indices, index + first), 1)
        values, index = values.topk(min(proposed, values.shape[1]), dim=1, largest=False)
        indices = indices.gather(1, index)

    wide = torch.cat([
        _exact(x, own[part], indices[part], euclidean)
        for part in _parts(len(rows), proposed * max(1, x.shape[1]), x.device)
    ])  # fmt: skip
    indices, order = indices.sort(dim=1)
    wide, order = wide.gather(1, order).sort(dim=1, stable=True)  # ties: lowest index
    distances, indices = wide[:, :k], indices.gather(1, order)[:, :k]

    if proposed < count - exclude_self:
        norm = torch.linalg.vector_norm(rows, dim=1)
        # A neighbour at no more than the k-th distance has a norm of at most this.
        reach = norm + (values[:, k - 1] + norm.square()).clamp(min=0).sqrt()
        error = rounding(dtype, x.device) * (x.shape[1] + 8) * (norm + reach).square()
        # Values that are not finite say nothing.
        unclear = ~(values[:, -1] - values[:, k - 1] > 2 * error)
        search_unclear(x, own, unclear, distances, indices, euclidean, tile, exclude_self)
    return distances, indices


def rounding(dtype: torch.dtype, device: torch.device) -> float:
    """The rounding error of an operand of a product, which a program may let be coarser."""
    on_cuda = device.type == "cuda"
    backend = torch.backends.cuda.matmul if on_cuda else torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    chosen = backend.fp32_precision
    if chosen == "none":
        chosen = torch.backends.fp32_precision  # type: ignore[attr-defined]
    coarse = {"tf32": 2.0**-10, "bf16": 2.0**-7} if dtype == torch.float32 else {}
    return coarse.get(chosen, torch.finfo(dtype).eps)


def _parts(rows: int, elements: int, device: torch.device) -> list[Tensor]:
    """``range(rows)`` in parts whose temporaries of so many elements a row stay in a cache."""
    return list(torch.split(torch.arange(rows, device=device), max(1, 2 * _CACHED // elements)))


def _exact(x: Tensor, rows: Tensor, columns: Tensor, euclidean: bool) -> Tensor:
    """Distances of each row to its own columns (or, one-dimensional, to all of them)."""
    one = columns.ndim == 1
    a, b = widen(x[rows]), widen(x[columns])
    if not euclidean:
        a, b = unit_rows(a), unit_rows(b)
    distance = torch.cdist(a if one else a[:, None], b, compute_mode="donot_use_mm_for_euclid_dist")
    distance = distance if one else distance.squeeze(1)
    if not euclidean:
        # |u - v|^2 = 2 - 2 cos, and the cosine with a row of zeros is 0.
        vanishes = (a == 0).all(-1)[:, None] | (b == 0).all(-1)
        distance = distance.masked_fill(vanishes, 2**0.5)
    return distance


def search_unclear(
    x: Tensor,
    rows: Tensor,
    unclear: Tensor,
    distances: Tensor,
    indices: Tensor,
    euclidean: bool,
    tile: int,
    exclude_self: bool,
) -> None:
    """Finds the neighbours of ``rows[unclear]`` anew, into both results, by all distances."""
    k = indices.shape[1]
    where = unclear.nonzero().squeeze(1)
    if not len(where):  # a part of no rows would widen all others
        return
    for part in _parts(len(where), 4 * tile, x.device):
        row = where[part]
        distances[row], indices[row] = _search(x, rows[row], k, euclidean, tile, exclude_self)


def _search(
    x: Tensor, rows: Tensor, k: int, euclidean: bool, tile: int, exclude_self: bool
) -> tuple[Tensor, Tensor]:
    """The k nearest of a few rows, by float64 distances to all others."""
    values = widen(x.new_empty((len(rows), 0)))
    indices = rows.new_empty((len(rows), 0))
    for first in range(0, len(x), 4 * tile):
        columns = torch.arange(first, min(first + 4 * tile, len(x)), device=x.device)
        part = _exact(x, rows, columns, euclidean)
        if exclude_self:
            part[rows[:, None] == columns] = torch.inf
        values, order = torch.cat((values, part), 1).sort(dim=1, stable=True)
        indices = torch.cat((indices, columns.expand(len(rows), -1)), 1).gather(1, order)
        values, indices = values[:, :k], indices[:, :k]
    return values, indices


def knn_divergence(logp: Tensor, knn: Tensor, kind: str) -> Tensor:
    """Mean divergence (n,) of each row and its neighbours, in float64.

    A tile of classes at a time, whose probabilities are taken once, and a few rows at a time, so
    that their neighbours stay in the cache.
    """
    rows, neighbours = knn.shape
    total = widen(logp.new_zeros(rows))
    width = max(1, _TEMPORARY // (2 * rows))
    step = max(1, _CACHED // (neighbours * min(width, logp.shape[1])))
    for tile in torch.split(logp, width, dim=1):
        log = widen(tile)
        p = log.exp()
        bounded = not bool((p == 0).any())
        for first in range(0, rows, step):
            part, index = slice(first, first + step), knn[first : first + step].flatten()
            shape = (-1, neighbours, tile.shape[1])
            d = log.index_select(0, index).view(shape).sub_(log[part, None])
            q = p.index_select(0, index).view(shape)
            own = p[part, None]
            terms = _divergence(own, q, d, kind) if bounded else _limits(own, q, d, kind)
            total[part] += terms.flatten(1).sum(1)
    return total / (neighbours * (2 if kind == "jeffreys" else 1))


def _divergence(p: Tensor, q: Tensor, d: Tensor, kind: str) -> Tensor:
    """What each class adds (to twice Jeffreys), with d = log q - log p; overwrites q and d."""
    if kind == "jeffreys":
        return q.sub_(p).mul_(d)
    # As sums of q d - q + p and p (-d) - p + q, which are not negative but for their rounding.
    terms = q.mul(d).sub_(q).add_(p) if kind == "kl_nb_x" else d.mul_(-p).sub_(p).add_(q)
    return terms.clamp_(min=0.0)


def _limits(p: Tensor, q: Tensor, d: Tensor, kind: str) -> Tensor:
    """The same where a probability may be 0: without any mass a class adds nothing."""
    d = torch.where((p == 0) & (q == 0), 0.0, d)
    if kind == "kl_nb_x":
        return torch.where(q == 0, p, _divergence(p, q, d, kind))
    if kind == "kl_x_nb":
        return torch.where(p == 0, q, _divergence(p, q.clone(), d, kind))
    return _divergence(p, q, d, kind)
