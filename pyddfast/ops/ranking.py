"""Picks by score, class by class: the best, a window, strata, weighted draws.

All classes at once: sorts and sums over N, no loop over classes.  Draws are keyed by the sample's
row, so that they depend neither on its class nor on how many are picked.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from pyddfast.ops import _checks, _memory
from pyddfast.ops._segments import check_sizes, class_segments, offsets
from pyddfast.random import Purpose, uniform

__all__ = [
    "beta_keys",
    "beta_sample",
    "segmented_topk",
    "segmented_window",
    "stratified",
]

# Lanes of a sample's selection draws; random selection has lane 0.
_STRATUM_LANE, _BETA_LANE = 1, 2
# int64 tables of a number for each class and bin that stratified holds at once.
_TABLES = 6


@torch.no_grad()
def segmented_topk(
    scores: Tensor,
    labels: Tensor | None = None,
    *,
    segments: Tensor | None = None,
    num_classes: int | None = None,
    k: int | None = None,
    fraction: float | None = None,
    largest: bool = True,
) -> Tensor:
    """The k best of every class, best first; ties go to the lowest index.

    Args:
        scores: (N,) floating point; infinities are values as others.
        labels: int64 (N,) classes in any order; or give ``segments``, or neither for one class.
        segments: int64 (S + 1,), offsets of classes whose scores are contiguous
            (:func:`class_segments`).
        num_classes: Number of classes that ``labels`` may have; default the highest plus 1.
        k: Picks of every class; exactly so many, or an error.
        fraction: Or a share of each class in [0, 1]: of n, ``round(fraction · n)``, halves to even.
        largest: Whether high scores are picked.

    Returns:
        int64 (K,), indices into ``scores``, class after class.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape or argument is wrong, both or neither of two alternatives is given, a
            class has fewer than k, or a score is NaN.

    Example:
        >>> scores, labels = torch.tensor([0.1, 0.9, 0.4, 0.5]), torch.tensor([0, 1, 0, 1])
        >>> segmented_topk(scores, labels, k=1).tolist()
        [2, 1]
    """
    ranked, sizes = _ranking(scores, labels, segments, num_classes, largest)
    return _slices(ranked, sizes, 0, _budgets(sizes, k, fraction))


@torch.no_grad()
def segmented_window(
    scores: Tensor,
    labels: Tensor | None = None,
    *,
    segments: Tensor | None = None,
    num_classes: int | None = None,
    k: int | None = None,
    fraction: float | None = None,
    offset: float = 0.0,
    unit: Literal["fraction", "count"] = "fraction",
    largest: bool = True,
) -> Tensor:
    """The k scores of every class that follow its ``offset`` best (SelMatch, EL2N-Best).

    Args:
        scores: (N,) floating point.
        labels: As in :func:`segmented_topk`, as are ``segments`` to ``fraction``.
        segments: Offsets of the classes.
        num_classes: Number of classes.
        k: Picks of every class.
        fraction: Or a share of each.
        offset: Where the window begins: with the unit ``"fraction"`` a share in [0, 1] of the
            n − k + 1 places, 0 the first and 1 the last, rounded down from the decimal as it is
            written (0.7 of 1290 is 903); with ``"count"`` an int, the number of better scores.
        unit: Of ``offset``.  SelMatch's β is ``offset=int(β · k), unit="count"``.
        largest: Whether the ranking begins with high scores.

    Returns:
        int64 (K,), indices into ``scores``, class after class, each in the order of its ranking.

    Raises:
        TypeError: A dtype is wrong, or a count not an int.
        ValueError: As :func:`segmented_topk`; or ``offset`` is out of range, for a count also where
            a class ends before the window does.
    """
    _checks.one_of(unit, ("fraction", "count"), "unit")
    if unit == "count":
        first = _checks.count(offset, "offset")
    elif not 0 <= _checks.number(offset, "offset") <= 1:
        raise ValueError(f"offset must lie in [0, 1], got {offset}")
    ranked, sizes = _ranking(scores, labels, segments, num_classes, largest)
    budgets = _budgets(sizes, k, fraction)
    if unit == "count":
        # A class of which nothing is taken needs no place for the window.
        ends = torch.where(budgets > 0, sizes - budgets, first)
        check_sizes(ends.tolist(), first, f"offset = {first} before the picks")
        return _slices(ranked, sizes, first, budgets)
    places = (sizes - budgets).tolist()
    share = Fraction(str(float(offset)))
    begin = torch.tensor([math.floor(share * n) for n in places], dtype=torch.int64)
    return _slices(ranked, sizes, begin.to(sizes.device), budgets)


@torch.no_grad()
def stratified(
    scores: Tensor,
    labels: Tensor | None = None,
    *,
    segments: Tensor | None = None,
    num_classes: int | None = None,
    k: int | None = None,
    fraction: float | None = None,
    bins: int = 50,
    mis_scores: Tensor | None = None,
    mis_ratio: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Draw from all bins of score alike, the emptiest first, so that every difficulty is covered.

    Zheng et al., "Coverage-centric Coreset Selection for High Pruning Rates" (ICLR 2023): drop the
    samples that look mislabelled, cut the range of the other scores into bins of one width, and go
    through the bins by rising population; each gives its share of what is still to be taken, or all
    it has.  The paper's bins span all classes (no ``labels``); with classes each has its own range,
    its own budget, and drops its own share.

    Args:
        scores: (N,) floating point, finite.
        labels: As in :func:`segmented_topk`, as are ``segments`` to ``fraction``.
        segments: Offsets of the classes.
        num_classes: Number of classes.
        k: Picks of every class.
        fraction: Or a share of each, of its size before anything is dropped.
        bins: 50 as in the paper.
        mis_scores: (N,) floating point, the lowest of which are dropped: the area under the margin.
        mis_ratio: Share of each class that is dropped, in [0, 1), rounded down; the paper's code
            uses 0 to 0.4, more where more is pruned.
        seed: Of the draws.

    Returns:
        int64 (K,), indices into ``scores``, class after class, in each bin after bin by rising
        population.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: As :func:`segmented_topk`; or a score is infinite, ``bins`` or ``mis_ratio`` out
            of range, or ``mis_scores`` missing.
    """
    bins = _checks.count(bins, "bins", 1)
    if not 0 <= _checks.number(mis_ratio, "mis_ratio") < 1:
        raise ValueError(f"mis_ratio must lie in [0, 1), got {mis_ratio}")
    if mis_ratio and mis_scores is None:
        raise ValueError(f"mis_ratio = {mis_ratio} needs mis_scores")
    rows, sizes = _classes(scores, labels, segments, num_classes)
    if bool(scores.isinf().any()):
        raise ValueError("scores must be finite to be cut into bins")
    budgets = _budgets(sizes, k, fraction)
    if mis_scores is not None:
        _values(mis_scores, "mis_scores")
        if mis_scores.shape != scores.shape:
            raise ValueError(f"mis_scores must have shape ({len(scores)},), as scores")
        _checks.same_device(scores, mis_scores, "mis_scores", first="scores")
        share = Fraction(str(float(mis_ratio)))
        drop = torch.tensor([math.floor(share * n) for n in sizes.tolist()], dtype=torch.int64)
        drop = drop.to(sizes.device)
        ranked = _sorted(mis_scores, rows, sizes, largest=False)
        rows = _slices(ranked, sizes, drop, sizes - drop)
        sizes = sizes - drop
        short = torch.where(budgets > sizes, sizes - budgets, 0).tolist()
        if any(short):
            label = next(i for i, n in enumerate(short) if n)
            raise ValueError(
                f"class {label} has {int(sizes[label])} samples left after mis_ratio = "
                f"{mis_ratio}, fewer than the {int(budgets[label])} to pick"
            )

    classes = len(sizes)
    _memory.check_fits(
        8 * _TABLES * classes * bins,
        rows.device,
        f"{bins} bins for each of {classes} classes",
        "give fewer bins",
    )
    # In the order of the rows, so that draws do not depend on the order of the members.
    number = torch.arange(classes, device=rows.device).repeat_interleave(sizes)
    rows, order = rows.sort()
    group = _bins(scores[rows].double(), number[order], classes, bins)
    population = torch.bincount(group, minlength=classes * bins).view(classes, bins)
    # By rising population; empty bins share nothing, as if they were not there.
    ranked = population.argsort(dim=1, stable=True)
    population = population.gather(1, ranked)
    taken = _allocation(population, budgets)

    draws = uniform(seed, Purpose.SELECTION, rows, lanes=_STRATUM_LANE).to(rows.device)
    place = ranked.argsort(dim=1) + bins * torch.arange(classes, device=rows.device)[:, None]
    order = draws.argsort(stable=True)
    order = order[place.flatten()[group[order]].argsort(stable=True)]
    return _slices(rows[order], population.flatten(), 0, taken.flatten())


def _bins(values: Tensor, number: Tensor, classes: int, bins: int) -> Tensor:
    """Class · bins + bin of each value, for bins of one width over its class's range."""
    values = values * 0.5  # the range of all float64 has no float64
    low, high = (
        values.new_zeros(classes).scatter_reduce(0, number, values, how, include_self=False)
        for how in ("amin", "amax")
    )
    width = (high - low) / bins
    step = torch.where(width > 0, width, 1.0)[number]
    return number * bins + ((values - low[number]) / step).long().clamp(max=bins - 1)


def _allocation(population: Tensor, budgets: Tensor) -> Tensor:
    """Picks of each bin: its share of what is still to be taken, or all it has.

    Args:
        population: int64 (classes, bins), rising along a row.
        budgets: int64 (classes,).
    """
    taken = torch.zeros_like(population)
    rest = budgets.clone()
    for place in range(population.shape[1]):
        share = rest // (population.shape[1] - place)
        taken[:, place] = torch.minimum(population[:, place], share)
        rest -= taken[:, place]
    return taken


@torch.no_grad()
def beta_sample(
    scores: Tensor,
    one_minus_p: Tensor,
    labels: Tensor | None = None,
    *,
    segments: Tensor | None = None,
    num_classes: int | None = None,
    k: int | None = None,
    fraction: float | None = None,
    pruned: float | None = None,
    c_d: float = 4.0,
    c_total: int = 15,
    seed: int = 0,
) -> Tensor:
    """DUAL's draw without replacement, weighted by score and a Beta density of the mean p.

    The highest :func:`beta_keys`, of which the first pick is distributed as the weights, the second
    as those of the rest, and so on.  Samples of weight 0 come last, in their order.

    Args:
        scores: (N,) floating point, DUAL's; not negative.
        one_minus_p: (N,) floating point, 1 − mean p.
        labels: As in :func:`segmented_topk`, as are ``segments`` to ``fraction``.
        segments: Offsets of the classes.
        num_classes: Number of classes.
        k: Picks of every class.
        fraction: Or a share of each.
        pruned: r; default what is left out, 1 − K / N.
        c_d: 4 in the paper for CIFAR, 11 for ImageNet-1k; positive.
        c_total: 15 in the paper, 16 in its code.
        seed: Of the draw.

    Returns:
        int64 (K,), indices into ``scores``, class after class, in the order they are drawn.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: As :func:`segmented_topk` and :func:`beta_keys`.
    """
    _, sizes = _classes(scores, labels, segments, num_classes)
    picked = int(_budgets(sizes, k, fraction).sum())
    if pruned is None:
        pruned = 1 - picked / max(1, len(scores))
    keys, _ = beta_keys(scores, one_minus_p, pruned=pruned, c_d=c_d, c_total=c_total, seed=seed)
    return segmented_topk(
        keys, labels, segments=segments, num_classes=num_classes, k=k, fraction=fraction
    )


@torch.no_grad()
def beta_keys(
    scores: Tensor,
    one_minus_p: Tensor,
    *,
    pruned: float,
    c_d: float = 4.0,
    c_total: int = 15,
    seed: int = 0,
) -> tuple[Tensor, tuple[float, float]]:
    """Random keys of which any number of highest are DUAL's Beta sampling of so many samples.

    Sample i has the weight Beta(mean p; a, b) · score, where b = 15 (1 − m)(1 − r^c_d), m is the
    mean of "mean p" over the ten highest scores, r the pruned share, and a = c_total − b: at high r
    easier samples are taken (Cho et al., "Lightweight Dataset Pruning without Full Training via
    Example Difficulty and Prediction Uncertainty", 2025).  A key is log weight plus a Gumbel draw
    keyed by the sample, so that its highest are a draw without replacement.

    At high r the density is infinite at p = 1, where the score vanishes: how far p is from 1
    decides their product, and a number p does not tell that.  So it is given as 1 − p.

    Args:
        scores: (N,) floating point, DUAL's; not negative.
        one_minus_p: (N,) floating point in [0, 1], 1 − mean p.
        pruned: r, the share that is left out, in [0, 1].
        c_d: 4 in the paper for CIFAR, 11 for ImageNet-1k; positive.
        c_total: 15 in the paper, 16 in its code.
        seed: Of the draw.

    Returns:
        ``(keys, (a, b))``: float64 (N,), −inf for samples of weight 0 (of score 0, or whose p is
        exactly 0 or 1, so that it never moved); and the parameters of the density.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A value is out of range, or the shapes differ.
    """
    _values(scores, "scores")
    _values(one_minus_p, "one_minus_p")
    if one_minus_p.shape != scores.shape:
        raise ValueError(
            f"one_minus_p has shape {tuple(one_minus_p.shape)}, there are {len(scores)} scores"
        )
    _checks.same_device(scores, one_minus_p, "one_minus_p", first="scores")
    if not 0 <= _checks.number(pruned, "pruned") <= 1:
        raise ValueError(f"pruned must lie in [0, 1], got {pruned}")
    _checks.positive(c_d, "c_d")
    if c_total not in (15, 16):
        raise ValueError(f"c_total must be 15 (paper) or 16 (its code), got {c_total}")
    values, rest = scores.double(), one_minus_p.double()
    if not len(values):
        return values, (math.nan, math.nan)
    low, high = (float(v) for v in rest.aminmax())
    if not 0 <= low <= high <= 1:
        raise ValueError(f"one_minus_p must lie in [0, 1], got values from {low} to {high}")
    if float(values.min()) < 0:
        raise ValueError(f"scores must not be negative, got {float(values.min())}")
    if float(values.max()) == math.inf:
        raise ValueError("scores must be finite: an infinite one has no weight")
    anchor = float(rest[values.topk(min(10, len(values))).indices].mean())  # 1 - m
    b = 15 * anchor * (1 - pruned**c_d)
    a = c_total - b
    log_weight = (a - 1) * torch.log1p(-rest) + (b - 1) * rest.log() + values.log()
    # A factor 0 wins against an infinite density: 1 - p and p vanish more slowly than the score.
    nothing = (values == 0) | (rest == 0) | (rest == 1)
    log_weight = log_weight.masked_fill(nothing, -torch.inf)
    draw = uniform(seed, Purpose.SELECTION, torch.arange(len(rest)), lanes=_BETA_LANE)
    gumbel = -torch.log(-torch.log(draw.clamp(min=1e-300)))
    return log_weight + gumbel.to(rest.device), (a, b)


def _values(scores: Tensor, name: str) -> None:
    """`scores` is floating point (N,) without NaN; reads its values."""
    _checks.float_tensor(scores, name)
    if scores.ndim != 1:
        raise ValueError(f"{name} must have shape (N,), got {tuple(scores.shape)}")
    bad = scores.isnan()
    if bool(bad.any()):
        raise ValueError(f"{name} must not hold NaN; sample {int(bad.nonzero()[0])} has one")


def _classes(
    scores: Tensor, labels: Tensor | None, segments: Tensor | None, num_classes: int | None
) -> tuple[Tensor, Tensor]:
    """Rows class after class, and the classes' sizes."""
    _values(scores, "scores")
    if labels is None:
        if num_classes is not None:
            raise ValueError(f"num_classes = {num_classes} needs labels")
        bounds = torch.tensor(offsets(segments, len(scores), "scores"), device=scores.device)
        return torch.arange(len(scores), device=scores.device), bounds.diff()
    if segments is not None:
        raise ValueError("give either labels or segments, got both")
    order, bounds = class_segments(labels, num_classes)
    if labels.shape != scores.shape:
        raise ValueError(
            f"labels must have shape ({len(scores)},), one for each score, "
            f"got {tuple(labels.shape)}"
        )
    _checks.same_device(scores, labels, "labels", first="scores")
    return order, bounds.diff()


def _ranking(
    scores: Tensor,
    labels: Tensor | None,
    segments: Tensor | None,
    num_classes: int | None,
    largest: bool,
) -> tuple[Tensor, Tensor]:
    """Rows class after class, each by rank, and the classes' sizes."""
    rows, sizes = _classes(scores, labels, segments, num_classes)
    return _sorted(scores, rows, sizes, largest), sizes


def _sorted(scores: Tensor, rows: Tensor, sizes: Tensor, largest: bool) -> Tensor:
    """The rows of each class by score, ties in their order."""
    number = torch.empty_like(rows)
    number[rows] = torch.arange(len(sizes), device=rows.device).repeat_interleave(sizes)
    ranked = scores.sort(descending=largest, stable=True).indices
    return ranked[number[ranked].sort(stable=True).indices]


def _budgets(sizes: Tensor, k: int | None, fraction: float | None) -> Tensor:
    """Picks of each class."""
    if (k is None) == (fraction is None):
        raise ValueError(f"give either k or fraction, got k={k} and fraction={fraction}")
    if k is not None:
        check_sizes(sizes.tolist(), _checks.count(k, "k"), f"k = {k}")
        return torch.full_like(sizes, k)
    assert fraction is not None
    if not 0 <= _checks.number(fraction, "fraction") <= 1:
        raise ValueError(f"fraction must lie in [0, 1], got {fraction}")
    return (fraction * sizes.double()).round().long()  # halves to even


def _slices(rows: Tensor, sizes: Tensor, begin: Tensor | int, lengths: Tensor) -> Tensor:
    """From each group of rows, its elements from ``begin`` on, so many."""
    first = sizes.cumsum(0) - sizes + begin
    before = lengths.cumsum(0) - lengths
    place = torch.arange(int(lengths.sum()), device=rows.device)
    return rows[place + (first - before).repeat_interleave(lengths)]
