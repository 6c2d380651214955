"""DCS: does a distillation objective rank subsets as the students' errors do?

The paper ("Rethinking Dataset Distillation", supplement §7) takes the Spearman correlation "after
accounting for subset size" and gives no estimator.  Here: ranks with ties averaged, and then

* ``partial``: the partial correlation given the rank of the size,
  ρ = (r_xy - r_xz r_yz) / √((1 - r_xz²)(1 - r_yz²));
* ``stratified``: Spearman's correlation within each size, averaged with the weights n_s - 1, the
  inverse variances under independence; it also holds where the effect of size is not linear in
  ranks.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pyddfast._warnings import warn_caller
from pyddfast.analysis._inputs import Array, Values, vector
from pyddfast.analysis._student import LEVEL
from pyddfast.random import Purpose, numpy_generator

__all__ = ["DCS", "Adjust", "dcs", "dcs_difference"]

Adjust: TypeAlias = Literal["partial", "stratified", "none"]
Index: TypeAlias = npt.NDArray[np.intp]

# The partial correlation of three variables needs as many points and one degree of freedom.
_FEWEST = 4
# Resamples are taken in blocks of about so many cells, 8 MiB an array.
_CELLS = 2**20


@dataclass(frozen=True)
class DCS:
    """A distillation correlation score.

    Attributes:
        rho: In [-1, 1]; 1: the objective orders subsets as the error does.  NaN: undefined.
        ci: 95 % interval by the cluster bootstrap.
        ci_formula: 95 % interval by Fisher's transformation with the standard error of Bonett and
            Wright (2000), √((1 + ρ²/2)/(n - k - 3)) for k adjusted variables; takes the points as
            independent.
        p: Two-sided, by permutations within equal sizes.  NaN where nothing can be exchanged.
        n: Number of points.
        raw_rho: Spearman's correlation without adjustment.
        adjust: What was adjusted for.
        n_groups: Number of independent groups of points.
        dropped: Number of points that were left out because a value is NaN.
        draws: The bootstrap's correlations.
    """

    rho: float
    ci: tuple[float, float]
    ci_formula: tuple[float, float]
    p: float
    n: int
    raw_rho: float
    adjust: Adjust
    n_groups: int
    dropped: int
    draws: Array = field(repr=False, compare=False)
    _sample: tuple[object, ...] = field(repr=False, compare=False)


def dcs(
    objective: Values,
    error: Values,
    size: Values | None = None,
    *,
    adjust: Adjust = "partial",
    groups: Sequence[Hashable] | Tensor | None = None,
    n_boot: int = 2000,
    seed: int = 0,
) -> DCS:
    """Rank correlation between an objective over subsets and the error of students trained on them.

    Supplement §7 of "Rethinking Dataset Distillation".  A point is a subset.

    Args:
        objective: (n,), the distillation objective of each subset; lower should be better.
        error: (n,), error or loss of a student on a test set, in or out of distribution.  Of an
            accuracy give 1 - accuracy, or the sign turns.
        size: (n,), of each subset, such as its images a class.  The size of a subset whose elements
            are repeated is yours to say: its rows, or its different elements.
        adjust: How the effect of the size is removed, see the module.
        groups: (n,), points that depend on each other share a value, such as a subset and its
            repetition; the bootstrap draws whole groups, and the permutations exchange whole
            groups of the same sizes.  Default: all are independent.
        n_boot: Number of resamples, and of permutations.
        seed: Seed of both.

    Returns:
        The score.  NaN, with a warning, where the objective or the error is constant, or given by
        the size.  A point with a NaN is left out, with a warning.

    Raises:
        TypeError: Values are not numbers.
        ValueError: Lengths differ, fewer than 4 points or groups are left, ``size`` is missing, not
            positive or the same everywhere, or an option is out of range.
    """
    if adjust not in get_args(Adjust):
        raise ValueError(f"adjust must be one of {', '.join(get_args(Adjust))}; got {adjust!r}")
    if n_boot < 1:
        raise ValueError(f"n_boot must be at least 1, got {n_boot}")
    x = vector("objective", objective, nan=True)
    y = vector("error", error, length=len(x), nan=True)
    z = np.ones(len(x)) if size is None else vector("size", size, length=len(x))
    if size is None and adjust != "none":
        raise ValueError(f"adjust={adjust!r} needs size; give it, or adjust='none'")
    if len(z) and z.min() <= 0:
        raise ValueError(f"size must be positive, got {z.min():g}")
    if groups is not None and len(groups) != len(x):
        raise ValueError(f"groups must have {len(x)} values, got {len(groups)}")
    # A tensor's elements are all different objects, of whatever value.
    own = groups.tolist() if isinstance(groups, Tensor) else groups
    names = list(range(len(x)) if own is None else own)

    kept = np.flatnonzero(~(np.isnan(x) | np.isnan(y)))
    if len(kept) < _FEWEST:
        raise ValueError(f"dcs needs at least {_FEWEST} points without NaN, got {len(kept)}")
    if dropped := len(x) - len(kept):
        warn_caller(f"{dropped} of {len(x)} points have a NaN and are left out of the DCS")
    x, y, z = x[kept], y[kept], z[kept]
    number = {name: row for row, name in enumerate(dict.fromkeys(names[i] for i in kept))}
    group = np.array([number[names[i]] for i in kept])
    if len(number) < _FEWEST:
        raise ValueError(f"groups must be at least {_FEWEST} different ones, got {len(number)}")
    if adjust != "none" and len(np.unique(z)) == 1:
        raise ValueError(
            f"size is {z[0]:g} everywhere: there is nothing to adjust for, give adjust='none'"
        )

    rho, raw = _score(x, y, z, adjust), _score(x, y, z, "none")
    if math.isnan(rho):
        warn_caller(f"the DCS is not defined: {_why(x, y)}")
        draws, p = np.full(n_boot, math.nan), math.nan
    else:
        draws = _bootstrap(x, y, z, group, adjust, n_boot, seed)
        p = _permutation_p(rho, x, y, z, group, adjust, n_boot, seed)
    return DCS(
        rho=rho,
        ci=_interval(draws),
        ci_formula=_formula(rho, z, adjust),
        p=p,
        n=len(x),
        raw_rho=raw,
        adjust=adjust,
        n_groups=len(number),
        dropped=dropped,
        draws=draws,
        _sample=(seed, tuple(kept), tuple(group)),
    )


def dcs_difference(first: DCS, second: DCS) -> tuple[float, tuple[float, float]]:
    """How much two scores over the same subsets differ.

    The scores are of two objectives, or of errors in and out of distribution.  Both have drawn the
    same resamples, so the interval knows that they share the subsets.

    Returns:
        ``first.rho - second.rho`` and its 95 % interval.

    Raises:
        ValueError: The scores are not over the same points, groups, seed and number of resamples.
    """
    if first._sample != second._sample or len(first.draws) != len(second.draws):
        raise ValueError(
            "the scores must be over the same points, with the same groups, n_boot and seed; "
            f"got {first.n} and {second.n} points, {first.n_groups} and {second.n_groups} groups, "
            f"n_boot {len(first.draws)} and {len(second.draws)}"
        )
    return first.rho - second.rho, _interval(first.draws - second.draws)


def _why(x: Array, y: Array) -> str:
    for name, values in (("objective", x), ("error", y)):
        if len(np.unique(values)) == 1:
            return f"the {name} is {values[0]:g} everywhere"
    return "the size alone gives the order of the objective or of the error"


def _ranks(counts: Array, values: Array) -> Array:
    """Average ranks (b, n) of ``values`` (n,), of which a sample has ``counts`` (b, n) each."""
    order = values.argsort(kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    of_level = np.add.reduceat(counts[:, order], starts, axis=1)
    level = np.searchsorted(ordered[starts], values)
    ranks: Array = (of_level.cumsum(1) - (of_level - 1) / 2)[:, level]
    return ranks


def _strata(z: Array, adjust: Adjust) -> list[Index]:
    """The points that are ranked among each other."""
    if adjust != "stratified":
        return [np.arange(len(z))]
    return [np.flatnonzero(z == one) for one in np.unique(z)]


def _ranked(counts: Array, values: Array, z: Array, adjust: Adjust) -> Array:
    ranks = np.empty_like(counts)
    for own in _strata(z, adjust):
        ranks[:, own] = _ranks(counts[:, own], values[own])
    return ranks


def _pearson(counts: Array, a: Array, b: Array) -> Array:
    """Correlation (b,) along the last axis, each column ``counts`` times; NaN for a constant."""
    with np.errstate(divide="ignore", invalid="ignore"):
        total = counts.sum(1, keepdims=True)
        a = a - (counts * a).sum(1, keepdims=True) / total
        b = b - (counts * b).sum(1, keepdims=True) / total
        aa, bb, ab = ((counts * u * v).sum(1) for u, v in ((a, a), (b, b), (a, b)))
        # Ranks that differ have a sum of squares of at least 1/2: far above rounding.
        r: Array = np.where((aa > 1e-6) & (bb > 1e-6), ab / np.sqrt(aa * bb), math.nan)
    return r


def _correlations(counts: Array, rx: Array, ry: Array, z: Array, adjust: Adjust) -> Array:
    """The score (b,) of each sample from its ranks (b, n)."""
    if adjust != "partial":
        total, weights = np.zeros(len(counts)), np.zeros(len(counts))
        for own in _strata(z, adjust):
            r = _pearson(counts[:, own], rx[:, own], ry[:, own])
            weight = np.where(np.isnan(r), 0.0, counts[:, own].sum(1) - 1)
            total += weight * np.nan_to_num(r)
            weights += weight
        with np.errstate(invalid="ignore"):
            mean: Array = total / weights
        return mean
    rz = _ranks(counts, z)
    xy, xz, yz = _pearson(counts, rx, ry), _pearson(counts, rx, rz), _pearson(counts, ry, rz)
    left = (1 - xz**2) * (1 - yz**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        partial = np.where(left > 1e-12, (xy - xz * yz) / np.sqrt(left), math.nan).clip(-1, 1)
    # A resample may have one size only: then nothing is to be adjusted for.
    found: Array = np.where(np.isnan(xz) & np.isnan(yz), xy, partial)
    return found


def _score(x: Array, y: Array, z: Array, adjust: Adjust) -> float:
    once = np.ones((1, len(x)))
    rx, ry = _ranked(once, x, z, adjust), _ranked(once, y, z, adjust)
    return float(_correlations(once, rx, ry, z, adjust)[0])


def _bootstrap(
    x: Array, y: Array, z: Array, group: Index, adjust: Adjust, n_boot: int, seed: int
) -> Array:
    """Scores (n_boot,) of resamples of whole groups, ranked anew; NaN where one has no score."""
    generator = numpy_generator(seed, Purpose.BOOTSTRAP, 0)
    number = int(group.max()) + 1
    times = generator.multinomial(number, np.full(number, 1 / number), size=n_boot)
    draws = []
    for block in np.array_split(times, -(-n_boot * len(x) // _CELLS)):
        counts = block[:, group].astype(np.float64)
        rx, ry = _ranked(counts, x, z, adjust), _ranked(counts, y, z, adjust)
        draws.append(_correlations(counts, rx, ry, z, adjust))
    return np.concatenate(draws)


def _permutation_p(
    rho: float, x: Array, y: Array, z: Array, group: Index, adjust: Adjust, n_boot: int, seed: int
) -> float:
    """Twice the smaller tail among permutations of the objective between groups of equal sizes."""
    alike: dict[tuple[float, ...], list[Index]] = {}
    size = np.ones_like(z) if adjust == "none" else z
    for one in range(int(group.max()) + 1):
        members = np.flatnonzero(group == one)
        members = members[size[members].argsort(kind="stable")]
        alike.setdefault(tuple(size[members]), []).append(members)
    classes = [np.stack(blocks) for blocks in alike.values() if len(blocks) > 1]
    if not classes:
        warn_caller("no two groups have the same sizes: the DCS has no permutation p")
        return math.nan
    generator = numpy_generator(seed, Purpose.BOOTSTRAP, 1)
    once = np.ones((1, len(x)))
    rx, ry = _ranked(once, x, z, adjust)[0], _ranked(once, y, z, adjust)
    below = above = 0
    for block in np.array_split(np.arange(n_boot), -(-n_boot * len(x) // _CELLS)):
        order = np.tile(np.arange(len(x)), (len(block), 1))
        for blocks in classes:
            shuffled = generator.random((len(block), len(blocks))).argsort(1)
            order[:, blocks.ravel()] = blocks[shuffled].reshape(len(block), -1)
        counts = np.ones(order.shape)
        found = _correlations(counts, rx[order], np.broadcast_to(ry, order.shape), z, adjust)
        # Permutations that give the same score up to rounding are ties.
        below += int((found <= rho + 1e-12).sum())
        above += int((found >= rho - 1e-12).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (n_boot + 1))


def _interval(draws: Array) -> tuple[float, float]:
    found = draws[~np.isnan(draws)]
    if not len(found):
        return math.nan, math.nan
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _formula(rho: float, z: Array, adjust: Adjust) -> tuple[float, float]:
    """Fisher's interval; NaN where no degree of freedom is left."""
    # Each stratum has a mean of its own; the partial correlation one more slope.
    free = sum(len(own) - 1 for own in _strata(z, adjust)) - 2 - (adjust == "partial")
    if math.isnan(rho) or free <= 0:
        return math.nan, math.nan
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * math.sqrt((1 + rho**2 / 2) / free)
    middle = math.atanh(rho) if abs(rho) < 1 else math.copysign(math.inf, rho)
    return math.tanh(middle - half), math.tanh(middle + half)
