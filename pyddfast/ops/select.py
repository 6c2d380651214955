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
from pyddfast.ops._segments import offsets as segment_offsets
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
SIMILARITIES = ("cosine01", "cosine", "dot", "euclidean", "rbf")
DISTANCES = ("euclidean", "cosine", "jeffreys")

# What a pass over features in torch holds beside them: large enough for BLAS, small for a cache.
TILE_BYTES = 1 << 24


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
            by row and segment.

    Example:
        >>> found = k_center(torch.tensor([[0.0], [1.0], [9.0], [5.0]]), 3)
        >>> found.picks.tolist(), found.radii.tolist()
        ([0, 2, 3], [9.0, 4.0, 1.0])
    """
    bounds = _features(x, segments)
    _checks.one_of(metric, DISTANCES, "metric")
    factor = _row_factor(weights, x, len(x), "weights")
    known = _known_centers(centers, x, bounds)
    left = [
        stop - start - len(rows) for (start, stop), rows in zip(_spans(bounds), known, strict=True)
    ]
    budgets = _budgets(k, left)
    first = _first_picks(x, init, metric, bounds, known, budgets)
    _finite(x, bounds)
    picks, radii, parts = [], [], []
    for (start, stop), count, rows, begin in zip(
        _spans(bounds), budgets, known, first, strict=True
    ):
        row = begin - start if begin >= 0 else -1
        weight = None if factor is None else factor[start:stop]
        local = [row - start for row in rows]
        found, radius, distance = reference.k_center(
            x[start:stop], count, metric, row, local, weight
        )
        picks.append(found + start)
        radii.append(radius)
        parts.append(distance)
    dtype = accumulation_dtype(x)
    return KCenters(
        _joined(picks, x, torch.int64),
        _offsets(budgets),
        _joined(radii, x, dtype),
        _joined(parts, x, dtype),
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
        known[_segment_of(row, bounds)].append(row)
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
    spans = _spans(bounds)
    if init is None:
        return [-1 if rows else start for (start, _), rows in zip(spans, known, strict=True)]
    if isinstance(init, str):
        if init not in ("mean", "medoid"):
            raise ValueError(f"init is {init!r}; allowed are None, rows of x, mean, medoid")
        if any(known):
            raise ValueError(f"init is {init!r}; with centers it must be None or rows of x")
        choose = _nearest_to_mean if init == "mean" else _medoid
        return [
            start + choose(x[start:stop], metric) if budget else start
            for (start, stop), budget in zip(spans, budgets, strict=True)
        ]
    rows = list(init) if isinstance(init, Sequence) else [init]
    if any(isinstance(row, bool) or not isinstance(row, int) for row in rows):
        raise TypeError(f"init must be None, ints, 'mean' or 'medoid', got {init!r}")
    if len(rows) != len(spans):
        raise ValueError(f"init has {len(rows)} rows; one for each of {len(spans)} segments")
    for number, (row, (start, stop)) in enumerate(zip(rows, spans, strict=True)):
        if budgets[number] and not start <= row < stop:
            raise ValueError(
                f"init must be a row of its segment, got {row} for segment {number}, "
                f"rows {start} to {stop - 1}"
            )
        if row in known[number]:
            raise ValueError(f"init names row {row}, which is one of centers")
    return rows


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
    for start, stop in _tiles(len(x), len(x) * wide.element_size()):
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
    rows = _Rows.of(x, similarity, metric, gamma, segments)
    weight = _row_factor(sample_weight, rows.like, rows.bounds[-1], "sample_weight")
    budgets = _budgets(k, rows.sizes)
    if not 0.0 < _checks.number(epsilon, "epsilon") < 1.0:
        raise ValueError(f"epsilon is {epsilon}; it must be above 0 and below 1")
    if greedy != "stochastic":
        rows.check_bytes(max_matrix_bytes, budgets, "greedy='stochastic' needs no matrix")
    rows.check_finite()
    picks, gains = [], []
    for number, ((start, stop), count) in enumerate(zip(_spans(rows.bounds), budgets, strict=True)):
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
    rows = _Rows.of(x, similarity, metric, gamma, segments)
    weight = _row_factor(sample_weight, rows.like, rows.bounds[-1], "sample_weight")
    budgets = _budgets(k, rows.sizes)
    rows.check_finite()
    picks, gains = [], []
    for number, ((start, stop), count) in enumerate(zip(_spans(rows.bounds), budgets, strict=True)):
        if count:
            total = lam * rows.coverage(number, None if weight is None else weight[start:stop])
            found, gain = reference.graph_cut(rows.matrix(number), total, count, diagonal=diagonal)
            picks.append(found + start)
            gains.append(gain)
    return _selection(rows, budgets, picks, gains)


class _Rows:
    """The rows that are selected from, by features or by similarities."""

    def __init__(
        self,
        like: Tensor,
        bounds: list[int],
        features: Tensor | None,
        matrices: list[Tensor],
        metric: str,
        gamma: float,
    ) -> None:
        self.like, self.bounds = like, bounds
        self.features, self.matrices = features, matrices
        self.metric, self.gamma = metric, gamma
        self.sizes = [stop - start for start, stop in _spans(bounds)]
        self.dtype = accumulation_dtype(like)
        self.largest: dict[int, float] = {}  # distance in a segment, where it is known

    @classmethod
    def of(cls, x: Any, similarity: Any, metric: Any, gamma: Any, segments: Any) -> _Rows:
        """Checks the arguments that the submodular functions share."""
        _checks.one_of(metric, SIMILARITIES, "metric")
        if (x is None) == (similarity is None):
            raise ValueError("x or similarity must be given, not both")
        if x is not None:
            bounds = _features(x, segments)
            scale = 1.0 / x.shape[1] if gamma is None else _checks.positive(gamma, "gamma")
            return cls(x, bounds, x, [], metric, scale)
        matrices = [similarity] if isinstance(similarity, Tensor) else list(similarity)
        for number, matrix in enumerate(matrices):
            _checks.float_tensor(matrix, f"similarity of segment {number}")
            if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
                raise ValueError(
                    f"similarity of segment {number} has shape {tuple(matrix.shape)}; (n, n) is "
                    "needed"
                )
            if matrix.dtype is not matrices[0].dtype or matrix.device != matrices[0].device:
                raise ValueError(
                    f"similarity of segment {number} is {matrix.dtype} on {matrix.device}, that of "
                    f"segment 0 {matrices[0].dtype} on {matrices[0].device}"
                )
        if not matrices:
            raise ValueError("similarity has no matrix")
        bounds = list(itertools.accumulate((len(matrix) for matrix in matrices), initial=0))
        if segments is not None and segment_offsets(segments, bounds[-1], "similarity") != bounds:
            raise ValueError(
                f"segments have {torch.diff(segments).tolist()} rows, the matrices of similarity "
                f"{[len(matrix) for matrix in matrices]}"
            )
        return cls(matrices[0], bounds, None, matrices, metric, 1.0)

    def check_bytes(self, limit: int, budgets: list[int], hint: str) -> None:
        """Refuses matrices of features that are beyond `limit`."""
        _checks.count(limit, "max_matrix_bytes")
        if self.features is None:
            return
        for number, (size, budget) in enumerate(zip(self.sizes, budgets, strict=True)):
            needed = size * size * self.dtype.itemsize
            if budget and needed > limit:
                raise ValueError(
                    f"segment {number} has {size:,} rows: its similarities take {needed:,} bytes, "
                    f"max_matrix_bytes is {limit:,}; {hint}"
                )

    def check_finite(self) -> None:
        """NaN and infinities are errors, by segment and row."""
        if self.features is not None:
            _finite(self.features, self.bounds)
        for number, matrix in enumerate(self.matrices):
            _finite(matrix, [0, len(matrix)], f"similarity of segment {number}")

    def wide(self, number: int) -> Tensor:
        """The features of a segment, in the dtype of the arithmetic."""
        assert self.features is not None
        return self.features[self.bounds[number] : self.bounds[number + 1]].to(self.dtype)

    def block(self, number: int, columns: Tensor) -> Tensor:
        """(n, m) similarities of a segment's rows to its rows `columns` (m,), local."""
        if self.features is None:
            return self.matrices[number][:, columns].to(self.dtype)
        x = self.wide(number)
        with torch.autocast(x.device.type, enabled=False):
            return reference.similarity(
                x, x[columns], self.metric, self.gamma, self.offset(number, x)
            )

    def offset(self, number: int, x: Tensor) -> float:
        """The largest distance in the segment, where the metric counts down from it."""
        if self.metric != "euclidean" or not len(x):
            return 0.0
        if number not in self.largest:
            tiles = _tiles(len(x), len(x) * x.element_size())
            blocks = (reference.similarity(x[a:b], x, "euclidean", 0.0, 0.0) for a, b in tiles)
            self.largest[number] = -min(float(block.min()) for block in blocks)
        return self.largest[number]

    def matrix(self, number: int) -> Tensor:
        """(n, n) similarities of row i to pick j."""
        if self.features is None:
            return self.matrices[number].to(self.dtype)
        x = self.wide(number)
        with torch.autocast(x.device.type, enabled=False):
            result = reference.similarity(x, x, self.metric, self.gamma, 0.0)
        if self.metric == "euclidean" and len(x):
            result.fill_diagonal_(0.0)  # which the products leave at the root of a rounding error
            result.sub_(result.min())
        return result

    def coverage(self, number: int, weight: Tensor | None) -> Tensor:
        """(n,) the weighted similarity of all rows to each."""
        matrix = self.matrix(number)
        return matrix.sum(0) if weight is None else weight.to(matrix.dtype) @ matrix


def _stochastic(
    rows: _Rows, number: int, count: int, weight: Tensor | None, epsilon: float, seed: int
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
        block = rows.block(number, candidates)
        gain = factor @ (block - served[:, None]).clamp_(min=0.0)
        best = int(gain.argmax())
        served = torch.maximum(served, block[:, best])
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
    rows: _Rows, budgets: list[int], picks: list[Tensor], gains: list[Tensor]
) -> SubmodularSelection:
    """The result, with assignments and sizes."""
    found = _joined(picks, rows.like, torch.int64)
    gain = _joined(gains, rows.like, rows.dtype)
    ends = _offsets(budgets)
    assignments = found.new_full((rows.bounds[-1],), -1)
    objective = gain.new_zeros(len(budgets))
    for number, ((start, stop), (begin, end)) in enumerate(
        zip(_spans(rows.bounds), _spans(ends.tolist()), strict=True)
    ):
        if begin < end:
            nearest = rows.block(number, found[begin:end] - start).argmax(1)
            assignments[start:stop] = nearest + begin
            objective[number] = gain[begin:end].sum(dtype=torch.float64)
    sizes = torch.bincount(assignments[assignments >= 0], minlength=len(found))
    return SubmodularSelection(found, ends, gain, objective, assignments, sizes)


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
    bounds = _features(x, segments)
    budgets = _budgets(k, [stop - start for start, stop in _spans(bounds)])
    _finite(x, bounds)
    picks = [
        reference.herding(x[start:stop], count, farthest=farthest) + start
        for (start, stop), count in zip(_spans(bounds), budgets, strict=True)
        if count
    ]
    return Herding(_joined(picks, x, torch.int64), _offsets(budgets))


# --- checks and layouts --------------------------------------------------------------------------


def _features(x: Any, segments: Any) -> list[int]:
    """Checks the features and returns the offsets of the segments."""
    _checks.float_tensor(x, "x")
    if x.dim() != 2 or x.shape[1] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; (N, D >= 1) is needed")
    return segment_offsets(segments, len(x), "x")


def _row_factor(value: Any, like: Tensor, rows: int, name: str) -> Tensor | None:
    """One number a row, finite and not negative, without gradient."""
    if value is None:
        return None
    _checks.float_tensor(value, name)
    if value.shape != (rows,):
        raise ValueError(f"{name} has shape {tuple(value.shape)}; one number a row is ({rows},)")
    _checks.same_device(like, value, name, first="x")
    if _readable(value) and not bool(((value >= 0) & value.isfinite()).all()):
        row = int((~((value >= 0) & value.isfinite())).nonzero()[0, 0])
        raise ValueError(f"{name} must be finite and not negative, got {value[row]} in row {row}")
    factor: Tensor = value.detach().to(accumulation_dtype(like))
    return factor


def _readable(values: Tensor) -> bool:
    """On a device a look at the values would wait for it."""
    return values.is_cpu or _native.debug()


def _finite(x: Tensor, bounds: list[int], name: str = "x") -> None:
    """NaN and infinite values are errors, by row and segment."""
    if not _readable(x):
        return
    for start, stop in _tiles(len(x), x.shape[1] * x.element_size()):
        # The norm is finite where the values are, and finite squares are needed anyway.
        norms = torch.linalg.vector_norm(x[start:stop].detach(), dim=1, dtype=accumulation_dtype(x))
        if not bool(norms.isfinite().all()):
            row = start + int((~norms.isfinite()).nonzero()[0, 0])
            raise ValueError(
                f"{name} holds NaN or infinite values, or values whose squares overflow, first in "
                f"row {row} of segment {_segment_of(row, bounds)}"
            )


def _budgets(k: Any, available: list[int]) -> list[int]:
    """Picks of each segment, at most what is available."""
    if not isinstance(k, (int, Sequence)) or isinstance(k, str):
        raise TypeError(f"k must be an int or one int a segment, got {k!r}")
    wanted = [k] * len(available) if isinstance(k, int) else list(k)
    if len(wanted) != len(available):
        raise ValueError(f"k has {len(wanted)} budgets; one for each of {len(available)} segments")
    return [min(_checks.count(w, "k"), have) for w, have in zip(wanted, available, strict=True)]


def _spans(bounds: Sequence[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(bounds))


def _tiles(rows: int, row_bytes: int) -> list[tuple[int, int]]:
    """Ranges of rows of about `TILE_BYTES`."""
    step = max(1, TILE_BYTES // max(1, row_bytes))
    return [(start, min(rows, start + step)) for start in range(0, rows, step)]


def _segment_of(row: int, bounds: list[int]) -> int:
    return next(s for s, (start, stop) in enumerate(_spans(bounds)) if start <= row < stop)


def _offsets(counts: list[int]) -> Tensor:
    return torch.tensor(list(itertools.accumulate(counts, initial=0)), dtype=torch.int64)


def _joined(parts: list[Tensor], like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.cat([like.new_empty(0, dtype=dtype), *(part.to(dtype) for part in parts)])
