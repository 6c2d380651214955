"""Greedy selection of rows: k-center, facility location, graph cut and herding.

All of them work class by class in one call: rows sorted by class, classes as ``segments``
(:func:`pyddfast.ops.class_segments`).  Picks are rows of ``x``, in the order in which they were
picked; a tie goes to the lowest row, and no row is picked twice.  What a method keeps is a few
numbers a row; only facility location needs the n x n similarities, of one class at a time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pyddfast.ops import _checks, _native
from pyddfast.ops._greedy import (
    Form,
    Rule,
    budgets_of,
    check_finite,
    check_products,
    ends_of,
    features,
    greedy_rows,
    joined,
    readable,
    row_factor,
    segment_of,
    spans,
    tiles,
)
from pyddfast.ops._native import raw
from pyddfast.ops._similarities import SIMILARITIES, Rows
from pyddfast.ops.reference import select as reference
from pyddfast.ops.reference.kd import accumulation_dtype
from pyddfast.random import Purpose, randint

__all__ = [
    "Herding",
    "KCenters",
    "Similarity",
    "SubmodularSelection",
    "facility_location",
    "graph_cut",
    "herding",
    "k_center",
]

Similarity = Literal["cosine01", "cosine", "dot", "euclidean", "rbf"]
DISTANCES = ("euclidean", "cosine", "jeffreys")


class KCenters(NamedTuple):
    """What :func:`k_center` picked; P picks of S segments.

    Attributes:
        picks: (P,) int64, rows of ``x``, segment after segment, in the order of picking.
        offsets: (S + 1,) int64 on the CPU: segment s has ``picks[offsets[s]:offsets[s + 1]]``.
        radii: (P,) the farthest that a row of the segment is from its nearest center, once this
            pick is one; times its weight where there are weights.
        distances: (N,) of each row to its nearest center; inf in a segment without one.
    """

    picks: Tensor
    offsets: Tensor
    radii: Tensor
    distances: Tensor


class SubmodularSelection(NamedTuple):
    """What :func:`facility_location` or :func:`graph_cut` picked; P picks of S segments.

    Attributes:
        picks: (P,) int64, rows of ``x``, segment after segment, in the order of picking.
        offsets: (S + 1,) int64 on the CPU: segment s has ``picks[offsets[s]:offsets[s + 1]]``.
        gains: (P,) what each pick added to the objective.
        objective: (S,) the sum of the segment's gains.
        assignments: (N,) int64, the position in ``picks`` of the pick that each row is most similar
            to, ties to the earlier pick; -1 in a segment without a pick.
        sizes: (P,) int64, how many rows are assigned to each pick: Craig's weights.
    """

    picks: Tensor
    offsets: Tensor
    gains: Tensor
    objective: Tensor
    assignments: Tensor
    sizes: Tensor


class Herding(NamedTuple):
    """What :func:`herding` picked.

    Attributes:
        picks: (P,) int64, rows of ``x``, segment after segment, in the order of picking.
        offsets: (S + 1,) int64 on the CPU: segment s has ``picks[offsets[s]:offsets[s + 1]]``.
    """

    picks: Tensor
    offsets: Tensor


# --- k-center ------------------------------------------------------------------------------------


@torch.no_grad()
def k_center(
    x: Tensor,
    k: int | Sequence[int],
    *,
    metric: Literal["euclidean", "cosine", "jeffreys"] = "euclidean",
    init: int | Sequence[int] | Literal["mean", "medoid"] | None = None,
    centers: Tensor | None = None,
    weights: Tensor | None = None,
    segments: Tensor | None = None,
) -> KCenters:
    """Greedy k-center: each pick is the row that is farthest from the picks before it.

    Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach"
    (ICLR 2018), algorithm 1; DeepCore's ``k_center_greedy``.  A pick costs one pass over the
    features, and all that is kept is a row's distance to its nearest center.

    Args:
        x: (N, D >= 1) features, float16, bfloat16, float32 or float64, finite.
        k: Picks a segment, one int or one for each; at most what the segment has left.
        metric: ``euclidean``; ``cosine``, 1 - cos, which is 1 from and to a row of zeros;
            ``jeffreys``, KL(p, q) + KL(q, p) of rows that hold log-probabilities.
        init: The first pick, which is one of the k: a row of ``x`` (one for each segment; draw it
            for a random start), ``mean``: the row nearest to the mean of the segment, ``medoid``:
            the row with the least sum of distances, in n^2 D operations, both by the metric.
            None: the farthest row from ``centers``, the segment's first row without them.
        centers: int64 (M,), rows of ``x`` that are centers already: never picked, not in the
            result, not among the k.
        weights: (N,) factors of the distances, not negative: a pick maximises weight x distance.
        segments: int64 (S + 1,), see :func:`pyddfast.ops.class_segments`; None is one segment.

    Returns:
        :class:`KCenters`; radii and distances are float32, float64 for float64 features.

    Raises:
        TypeError: An argument of the wrong type or dtype, by name.
        ValueError: A shape, row, budget or option that is not allowed; NaN or infinite features,
            by row and segment; distances that overflow.

    Example:
        >>> found = k_center(torch.tensor([[0.0], [1.0], [9.0], [5.0]]), 3)
        >>> found.picks.tolist(), found.radii.tolist()
        ([0, 2, 3], [9.0, 4.0, 1.0])
    """
    bounds = features(x, segments)
    _checks.one_of(metric, DISTANCES, "metric")
    factor = row_factor(weights, x, len(x), "weights")
    known = _known_centers(centers, x, bounds)
    left = [
        stop - start - len(rows) for (start, stop), rows in zip(spans(bounds), known, strict=True)
    ]
    budgets = budgets_of(k, left)
    check_finite(x, bounds)
    if metric == "jeffreys":
        _log_probabilities(x)
    first = _first_picks(x, init, metric, bounds, known, budgets)
    found = _k_center if _native.usable(x) else _k_center_twin
    result = found(x, metric, factor, bounds, known, first, budgets)
    if readable(x) and not bool(result.radii.isfinite().all()):
        pick = int((~result.radii.isfinite()).nonzero()[0, 0])
        raise ValueError(
            f"distances from row {int(result.picks[pick])} of x overflow: divide x by a constant"
        )
    return result


def _k_center_twin(
    x: Tensor,
    metric: str,
    factor: Tensor | None,
    bounds: list[int],
    known: list[list[int]],
    first: list[int],
    budgets: list[int],
) -> KCenters:
    """By torch, segment after segment."""
    picks, radii, parts = [], [], []
    for (start, stop), count, rows, begin in zip(spans(bounds), budgets, known, first, strict=True):
        found, radius, distance = reference.k_center(
            x[start:stop],
            count,
            metric,
            begin - start if begin >= 0 else -1,
            [row - start for row in rows],
            None if factor is None else factor[start:stop],
        )
        picks.append(found + start)
        radii.append(radius)
        parts.append(distance)
    dtype = accumulation_dtype(x)
    return KCenters(
        joined(picks, x, torch.int64),
        ends_of(budgets),
        joined(radii, x, dtype),
        joined(parts, x, dtype),
    )


def _k_center(
    x: Tensor,
    metric: str,
    factor: Tensor | None,
    bounds: list[int],
    known: list[list[int]],
    first: list[int],
    budgets: list[int],
) -> KCenters:
    """By the kernel, for which centers are picks that are known."""
    squared = metric == "euclidean"
    given = [
        rows + ([begin] + [-1] * (count - 1) if count else [])
        for rows, begin, count in zip(known, first, budgets, strict=True)
    ]
    form = {"euclidean": Form.SQUARES, "cosine": Form.COSINE, "jeffreys": Form.JEFFREYS}[metric]
    picks, keys, state = greedy_rows(
        x,
        form,
        Rule.CENTER,
        bounds,
        given,
        state=x.new_full((len(x),), math.inf, dtype=torch.float64),
        factor=factor.square() if squared and factor is not None else factor,
    )
    if any(known):  # centers are not picks
        own = [
            number >= len(rows)
            for rows, count in zip(known, budgets, strict=True)
            for number in range(len(rows) + count)
        ]
        picks, keys = (values[torch.tensor(own, device=x.device)] for values in (picks, keys))
    if squared:
        keys, state = keys.sqrt(), state.sqrt()
    dtype = accumulation_dtype(x)
    return KCenters(picks, ends_of(budgets), keys.to(dtype), state.to(dtype))


def _log_probabilities(x: Tensor) -> None:
    """No row holds a probability above 1, but for its rounding."""
    if readable(x) and len(x) and float(x.detach().max()) > 1e-3:
        raise ValueError(
            f"x holds {float(x.detach().max())}; metric='jeffreys' compares log-probabilities, "
            "which are not above 0"
        )


def _known_centers(centers: Any, x: Tensor, bounds: list[int]) -> list[list[int]]:
    """The rows of `centers` by segment, in their order."""
    known: list[list[int]] = [[] for _ in bounds[1:]]
    if centers is None:
        return known
    _checks.tensor(centers, "centers")
    if centers.dtype is not torch.int64:
        raise TypeError(f"centers must be int64, got {centers.dtype}")
    if centers.dim() != 1:
        raise ValueError(f"centers must have shape (M,), got {tuple(centers.shape)}")
    rows: list[int] = centers.tolist()
    if len(set(rows)) != len(rows):
        raise ValueError("centers must not name a row twice")
    for row in rows:
        if not 0 <= row < len(x):
            raise ValueError(f"centers must lie in [0, {len(x)}), got {row}")
        known[segment_of(row, bounds)].append(row)
    return known


def _first_picks(
    x: Tensor,
    init: Any,
    metric: str,
    bounds: list[int],
    known: list[list[int]],
    budgets: list[int],
) -> list[int]:
    """The first pick of each segment as a row of `x`; -1: by distance from the centers."""
    ranges = spans(bounds)
    if init is None:
        return [-1 if rows else start for (start, _), rows in zip(ranges, known, strict=True)]
    if isinstance(init, str):
        if init not in ("mean", "medoid"):
            raise ValueError(f"init is {init!r}; allowed are None, rows of x, mean, medoid")
        if any(known):
            raise ValueError(f"init is {init!r}; with centers it must be None or rows of x")
        choose = _nearest_to_mean if init == "mean" else _medoid
        return [
            start + choose(x[start:stop], metric) if budget else start
            for (start, stop), budget in zip(ranges, budgets, strict=True)
        ]
    rows = list(init) if isinstance(init, Sequence) else [init]
    if any(isinstance(row, bool) or not isinstance(row, int) for row in rows):
        raise TypeError(f"init must be None, ints, 'mean' or 'medoid', got {init!r}")
    if len(rows) != len(ranges):
        raise ValueError(f"init has {len(rows)} rows; one for each of {len(ranges)} segments")
    for number, (row, (start, stop)) in enumerate(zip(rows, ranges, strict=True)):
        if budgets[number] and not start <= row < stop:
            raise ValueError(
                f"init must be a row of its segment, got {row} for segment {number}, "
                f"rows {start} to {stop - 1}"
            )
        if row in known[number]:
            raise ValueError(f"init names row {row}, which is one of centers")
    return rows


def _wide_mean(x: Tensor) -> Tensor:
    """The mean of rows in float64, without all of them in float64 at once.

    Which is what ``x.mean(0, dtype=torch.float64)`` makes: for narrower types most of its time.
    """
    rows = 128  # of 512 features: half a megabyte, which a core's cache holds
    wide = x.new_empty((min(rows, len(x)), x.shape[1]), dtype=torch.float64)
    total = x.new_zeros(x.shape[1], dtype=torch.float64)
    for part in torch.split(x, rows):
        total += wide[: len(part)].copy_(part).sum(0)
    return total / len(x)


def _nearest_to_mean(x: Tensor, metric: str) -> int:
    """By the metric; the mean of log-probabilities is the logarithm of the mean probability."""
    wide = x.to(accumulation_dtype(x))
    if metric == "jeffreys":
        mean = wide.logsumexp(0) - math.log(len(x))
    else:
        mean = (reference.unit_rows(wide) if metric == "cosine" else wide).mean(0)
    return int(reference.distances(wide, mean, metric).argmin())


def _medoid(x: Tensor, metric: str) -> int:
    """The row with the least sum of distances, by tiles of rows."""
    wide = x.to(accumulation_dtype(x))
    if metric == "cosine":
        wide = reference.unit_rows(wide)
    other = wide.exp() if metric == "jeffreys" else wide
    sums = wide.new_empty(len(x))
    for start, stop in tiles(len(x), len(x) * wide.element_size()):
        rows = wide[start:stop]
        if metric == "euclidean":
            block = torch.cdist(rows, wide)
        elif metric == "cosine":
            block = 1.0 - rows @ wide.T
        else:
            own = (wide * other).sum(1)
            block = own[start:stop, None] + own - rows @ other.T - other[start:stop] @ wide.T
        sums[start:stop] = block.sum(1)
    return int(sums.argmin())


# --- facility location and graph cut -------------------------------------------------------------


@torch.no_grad()
def facility_location(
    x: Tensor | None,
    k: int | Sequence[int],
    *,
    similarity: Tensor | Sequence[Tensor] | None = None,
    metric: Similarity = "cosine01",
    gamma: float | None = None,
    sample_weight: Tensor | None = None,
    segments: Tensor | None = None,
    greedy: Literal["lazy", "naive", "stochastic"] = "lazy",
    epsilon: float = 0.1,
    seed: int = 0,
    max_matrix_bytes: int = 1 << 32,
) -> SubmodularSelection:
    r"""Greedy facility location: picks that every row has a similar one among.

    Maximises :math:`\sum_i w_i \max(0, \max_{j \in S} s_{ij})`, the coverage of Craig
    (Mirzasoleiman et al., "Coresets for Data-efficient Training of Machine Learning Models", ICML
    2020) and of DeepCore's ``FacilityLocation``; a negative similarity covers nothing.

    Args:
        x: (N, D >= 1) features, float16, bfloat16, float32 or float64, finite; None with
            ``similarity``.
        k: Picks a segment, one int or one for each; at most its rows.
        similarity: (n, n) of row i to pick j, or one such matrix a segment, instead of ``x``.
        metric: How features are compared: ``cosine01`` 0.5 + 0.5 cos (DeepCore), ``cosine``
            max(0, cos), ``dot``, ``euclidean`` max d - d with the segment's largest distance
            (apricot, Craig), ``rbf`` exp(-gamma d^2).  A row of zeros has the cosine 0.
        gamma: Of ``rbf``; None is 1 / D.
        sample_weight: (N,) w, not negative; None is 1.
        segments: int64 (S + 1,), see :func:`pyddfast.ops.class_segments`; None is one segment.
        greedy: ``lazy`` and ``naive`` give the same picks: lazy evaluation saves work on the CPU,
            a GPU always evaluates all.  ``stochastic`` looks at n / k ln(1 / epsilon) random rows
            a pick (Mirzasoleiman et al., "Lazier Than Lazy Greedy", AAAI 2015) and needs no
            matrix, so that a segment may have any size.
        epsilon: Of ``stochastic``: expected loss of the approximation, in (0, 1).
        seed: Of ``stochastic``; draws depend on it, the segment and the pick.
        max_matrix_bytes: What the similarities of one segment may take; the default is that of
            32,768 rows.  Beyond it only ``stochastic`` runs.

    Returns:
        :class:`SubmodularSelection`; gains are float32, float64 for float64 input.

    Raises:
        TypeError: An argument of the wrong type or dtype, by name.
        ValueError: A shape, row, budget or option that is not allowed; NaN or infinite values, by
            row and segment; a matrix beyond ``max_matrix_bytes``.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [9.0], [10.0], [11.0]])
        >>> facility_location(points, 2, metric="euclidean").picks.tolist()
        [2, 1]
    """
    _checks.one_of(greedy, ("lazy", "naive", "stochastic"), "greedy")
    rows = Rows.of(x, similarity, metric, gamma, segments)
    weight = row_factor(sample_weight, rows.like, rows.bounds[-1], "sample_weight")
    budgets = budgets_of(k, rows.sizes)
    if not 0.0 < _checks.number(epsilon, "epsilon") < 1.0:
        raise ValueError(f"epsilon is {epsilon}; it must be above 0 and below 1")
    if greedy != "stochastic":
        rows.check_bytes(max_matrix_bytes, budgets, "greedy='stochastic' needs no matrix")
    rows.check_finite()
    if greedy != "stochastic" and _native.usable(rows.like):
        return _facility_location(rows, weight, budgets, lazy=greedy == "lazy")
    picks, gains = [], []
    for number, ((start, stop), count) in enumerate(zip(spans(rows.bounds), budgets, strict=True)):
        part = None if weight is None else weight[start:stop]
        if greedy == "stochastic":
            found, gain = _stochastic(rows, number, count, part, epsilon, seed)
        elif count:
            found, gain = reference.facility_location(rows.matrix(number), count, part)
        else:
            continue
        picks.append(found + start)
        gains.append(gain)
    return _selection(rows, budgets, picks, gains)


def _facility_location(
    rows: Rows, weight: Tensor | None, budgets: list[int], *, lazy: bool
) -> SubmodularSelection:
    """By the kernel, some segments at a time: their similarities fill `GROUP_BYTES`."""
    picks, gains, parts, done = [], [], [], 0
    for numbers in rows.groups(budgets):
        base, end = rows.bounds[numbers[0]], rows.bounds[numbers[-1] + 1]
        sizes = [rows.sizes[number] if budgets[number] else 0 for number in numbers]
        counts = [budgets[number] for number in numbers]
        squares = list(itertools.accumulate((size * size for size in sizes), initial=0))
        flat = rows.like.new_empty(squares[-1], dtype=rows.dtype)
        views = [
            flat[begin : begin + size * size].view(size, size)
            for begin, size in zip(squares, sizes, strict=False)
        ]
        for number, view in zip(numbers, views, strict=True):
            if len(view):
                rows.matrix(number, out=view)
        ends = list(itertools.accumulate(counts, initial=0))
        layout = [
            (square, rows.bounds[number] - base, size, *range_)
            for square, number, size, range_ in zip(
                squares, numbers, sizes, spans(ends), strict=False
            )
        ]
        found, gain = raw.facility_location(
            flat,
            None if weight is None else weight[base:end].contiguous(),
            torch.tensor(layout, dtype=torch.int64).to(flat.device),
            end - base,
            ends[-1],
            max(counts),
            max(sizes),
            lazy,
        )
        for number, view, (begin, stop) in zip(numbers, views, spans(ends), strict=True):
            chosen = found[begin:stop] + (base - rows.bounds[number])
            parts.append(_nearest(view[chosen].T, rows.sizes[number], done + begin))
        picks.append(found + base)
        gains.append(gain)
        done += ends[-1]
    return _selection(rows, budgets, picks, gains, parts)


@torch.no_grad()
def graph_cut(
    x: Tensor | None,
    k: int | Sequence[int],
    lam: float = 1.0,
    *,
    similarity: Tensor | Sequence[Tensor] | None = None,
    metric: Similarity = "cosine01",
    gamma: float | None = None,
    diagonal: bool = False,
    sample_weight: Tensor | None = None,
    segments: Tensor | None = None,
) -> SubmodularSelection:
    r"""Greedy graph cut: picks that are similar to all rows and not to each other.

    The gain of a row is :math:`\lambda \sum_i w_i s_{iv} - 2 \sum_{j \in S} s_{jv}`, as in
    DeepCore's ``GraphCut``, whose default is :math:`\lambda = 1`; it may be negative.  From
    features no matrix is made: a pick is one pass over them.

    Args:
        x: (N, D >= 1) features, as for :func:`facility_location`; None with ``similarity``.
        k: Picks a segment, one int or one for each; at most its rows.
        lam: The weight of coverage: apricot's ``alpha``, 1 / submodlib's ``lambdaVal``.
        similarity: (n, n) matrix, or one a segment, instead of ``x``.
        metric: As for :func:`facility_location`.
        gamma: Of ``rbf``; None is 1 / D.
        diagonal: Whether the gain also loses :math:`s_{vv}`: True is apricot's, and the exact gain
            of :math:`\lambda \sum_{i, j \in S} s_{ij} - \sum_{j, l \in S} s_{jl}`.  It changes the
            picks only where :math:`s_{vv}` varies.
        sample_weight: (N,) w, not negative; None is 1.
        segments: int64 (S + 1,), see :func:`pyddfast.ops.class_segments`; None is one segment.

    Returns:
        :class:`SubmodularSelection`; gains are float32, float64 for float64 input.

    Raises:
        TypeError: An argument of the wrong type or dtype, by name.
        ValueError: A shape, row, budget or option that is not allowed; NaN or infinite values, by
            row and segment.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [9.0], [10.0], [11.0]])
        >>> graph_cut(points, 2, metric="euclidean").picks.tolist()
        [2, 0]
    """
    lam = _checks.number(lam, "lam")
    rows = Rows.of(x, similarity, metric, gamma, segments)
    weight = row_factor(sample_weight, rows.like, rows.bounds[-1], "sample_weight")
    budgets = budgets_of(k, rows.sizes)
    rows.check_finite()
    totals = []
    for number, (start, stop) in enumerate(spans(rows.bounds)):
        part = None if weight is None else weight[start:stop]
        totals.append(lam * rows.coverage(number, part) if budgets[number] else rows.none(number))
    if _native.usable(rows.like):
        return _graph_cut(rows, totals, budgets, diagonal=diagonal)
    rows.check_fits(budgets)
    picks, gains = [], []
    for number, ((start, _), count) in enumerate(zip(spans(rows.bounds), budgets, strict=True)):
        if count:
            found, gain = reference.graph_cut(
                rows.matrix(number), totals[number], count, diagonal=diagonal
            )
            picks.append(found + start)
            gains.append(gain)
    return _selection(rows, budgets, picks, gains)


def _graph_cut(
    rows: Rows, totals: list[Tensor], budgets: list[int], *, diagonal: bool
) -> SubmodularSelection:
    """By the kernel: one pass over the features a pick, or one row of a matrix."""
    gain = [
        total - rows.diagonal(number) if diagonal and budgets[number] else total
        for number, total in enumerate(totals)
    ]
    given: list[list[int]] = []
    tops: list[Tensor] = []
    for (start, _), part, count in zip(spans(rows.bounds), gain, budgets, strict=True):
        if count:
            best = int(part.argmax())
            tops.append(part[best : best + 1])
            given.append([best + start] + [-1] * (count - 1))
        else:
            given.append([])
    if rows.features is None:
        parts = [
            greedy_rows(
                matrix.contiguous(),
                Form.ENTRY,
                Rule.CUT,
                [0, len(matrix)],
                [[row - start if row >= 0 else -1 for row in picks]],
                state=state,
                similarity=SIMILARITIES.index("dot"),  # as it is
            )
            for matrix, (start, _), picks, state in zip(
                rows.matrices, spans(rows.bounds), given, gain, strict=True
            )
        ]
        picks = [part[0] + start for part, start in zip(parts, rows.bounds, strict=False)]
        keys = torch.cat([part[1] for part in parts])
    else:
        form = {"dot": Form.DOT, "euclidean": Form.SQUARES, "rbf": Form.SQUARES}
        found, keys, _ = greedy_rows(
            rows.features,
            form.get(rows.metric, Form.COSINE),
            Rule.CUT,
            rows.bounds,
            given,
            state=joined(gain, rows.like, torch.float64),
            similarity=SIMILARITIES.index(rows.metric),
            gamma=rows.gamma,
            offsets=[rows.largest.get(number, 0.0) for number in range(len(budgets))],
        )
        picks = [found]
    # A pick's gain is the key that the one before it left.
    ranges = [(begin, end) for begin, end in spans(ends_of(budgets).tolist()) if begin < end]
    gains = [
        torch.cat([top, keys[begin : end - 1]])
        for top, (begin, end) in zip(tops, ranges, strict=True)
    ]
    return _selection(rows, budgets, picks, gains)


def _stochastic(
    rows: Rows, number: int, count: int, weight: Tensor | None, epsilon: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Picks and gains of lazier-than-lazy greedy selection, from tiles of similarities."""
    size = rows.sizes[number]
    served = rows.like.new_zeros(size, dtype=rows.dtype)
    factor = torch.ones_like(served) if weight is None else weight.to(rows.dtype)
    picks: list[int] = []
    gains: list[Tensor] = []
    for step in range(count):
        wanted = max(1, round(size / count * math.log(1.0 / epsilon)))
        drawn = _drawn(size, min(wanted, size - step), set(picks), seed, step, number)
        candidates = torch.tensor(drawn, device=served.device)
        gain = torch.cat([
            factor @ part.sub_(served[:, None]).clamp_(min=0.0)
            for _, part in rows.parts(number, candidates)
        ])  # fmt: skip
        best = int(gain.argmax())
        served = torch.maximum(served, rows.block(number, candidates[best : best + 1]).squeeze(1))
        picks.append(drawn[best])
        gains.append(gain[best])
    found = torch.stack(gains) if gains else served.new_empty(0)
    return torch.tensor(picks, dtype=torch.int64, device=served.device), found


def _drawn(size: int, count: int, taken: set[int], seed: int, step: int, segment: int) -> list[int]:
    """`count` different rows of `size` that are not taken, sorted: ties go to the lowest."""
    if count == size - len(taken):
        return [row for row in range(size) if row not in taken]
    found: set[int] = set()
    lane = 0
    while len(found) < count:
        lanes = list(range(lane, lane + 2 * count))
        lane += 2 * count
        draws = randint(seed, Purpose.SELECTION, 0, size, step, segment, lanes).tolist()
        for row in draws:
            if row not in taken and len(found) < count:
                found.add(row)
    return sorted(found)


def _selection(
    rows: Rows,
    budgets: list[int],
    picks: list[Tensor],
    gains: list[Tensor],
    assignments: list[Tensor] | None = None,
) -> SubmodularSelection:
    """The result; `assignments` of each segment are found where they are not given."""
    found = joined(picks, rows.like, torch.int64)
    gain = joined(gains, rows.like, torch.float64)
    ends = ends_of(budgets)
    ranges = spans(ends.tolist())
    if assignments is None:
        assignments = [
            rows.nearest(number, found[begin:end] - start, begin)
            for number, (start, (begin, end)) in enumerate(zip(rows.bounds, ranges, strict=False))
        ]
    assigned = joined(assignments, rows.like, torch.int64)
    sizes = torch.bincount(assigned[assigned >= 0], minlength=len(found))
    objective = torch.stack([gain[begin:end].sum() for begin, end in ranges]) if ranges else gain
    return SubmodularSelection(
        found, ends, gain.to(rows.dtype), objective.to(rows.dtype), assigned, sizes
    )


def _nearest(block: Tensor, size: int, begin: int) -> Tensor:
    """The column of each row's largest entry, counted from `begin`; -1 without columns."""
    if block.shape[1] == 0:
        return torch.full((size,), -1, dtype=torch.int64, device=block.device)
    return block.argmax(1) + begin


# --- herding -------------------------------------------------------------------------------------


@torch.no_grad()
def herding(
    x: Tensor,
    k: int | Sequence[int],
    *,
    farthest: bool = False,
    segments: Tensor | None = None,
) -> Herding:
    r"""Herding: picks whose running mean follows the mean of the segment.

    Pick t is the row nearest to :math:`t \mu - \sum_{j < t} x_j` (Welling, "Herding Dynamical
    Weights to Learn", ICML 2009; iCaRL, Rebuffi et al., CVPR 2017, algorithm 4).  A pick costs one
    pass over the features.

    Args:
        x: (N, D >= 1) features, float16, bfloat16, float32 or float64, finite.
        k: Picks a segment, one int or one for each; at most its rows.
        farthest: Take the farthest row instead, which is what DeepCore's ``herding`` does.
        segments: int64 (S + 1,), see :func:`pyddfast.ops.class_segments`; None is one segment.

    Returns:
        :class:`Herding`.

    Raises:
        TypeError: An argument of the wrong type or dtype, by name.
        ValueError: A shape or budget that is not allowed; NaN or infinite features, by row and
            segment.

    Example:
        >>> herding(torch.tensor([[0.0], [2.0], [4.0], [9.0]]), 2).picks.tolist()
        [2, 3]
    """
    bounds = features(x, segments)
    budgets = budgets_of(k, [stop - start for start, stop in spans(bounds)])
    check_finite(x, bounds)
    check_products(x)
    if not _native.usable(x):
        picks = [
            reference.herding(x[start:stop], count, farthest=farthest) + start
            for (start, stop), count in zip(spans(bounds), budgets, strict=True)
            if count
        ]
        return Herding(joined(picks, x, torch.int64), ends_of(budgets))
    mean = x.new_zeros((len(budgets), x.shape[1]), dtype=torch.float64)
    for number, (start, stop) in enumerate(spans(bounds)):
        if budgets[number]:
            mean[number] = _wide_mean(x[start:stop])
    found, _, _ = greedy_rows(
        x,
        Form.SQUARES,
        Rule.FARTHEST if farthest else Rule.NEAREST,
        bounds,
        [[-1] * count for count in budgets],
        state=x.new_zeros(len(x), dtype=torch.float64),
        mean=mean,
    )
    return Herding(found, ends_of(budgets))
