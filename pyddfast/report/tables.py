"""Accuracies with their uncertainty, and what can be said about their differences.

Two things blur an accuracy: the seed of the training, and the finite test set.  A difference is
named only where it is larger than both together, corrected for the number of differences looked
at; everything else is "not distinguishable".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from itertools import combinations

from pyddfast._extras import require

__all__ = ["LEVEL", "Difference", "Result", "compare", "differences", "percent", "summary"]

# Family-wise probability of naming a difference that is none; the usual 5 %.
LEVEL = 0.05


def percent(share: float, digits: int = 1) -> str:
    """A share in per cent, halves away from zero: the one rounding of tables, text and figures.

    Args:
        share: Unrounded, 1 for 100 %.
        digits: After the point.

    Returns:
        ``"65.1"`` for 0.6505, which binary formatting takes for a little less.
    """
    value = Decimal(str(round(100 * share, 9)))  # without the last bits of binary fractions
    return str(value.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


@dataclass(frozen=True)
class Result:
    """Accuracy of one method under one regime.

    Args:
        method: Display name, e.g. ``"RDED"``.
        regime: Display name, e.g. ``"SL+KD"``.
        accuracies: One value in [0, 1] a seed.
        test_count: Number of test images behind each of them.
        per_image: For each test image the share of the seeds that are right, in the order of the
            test set; or nothing.  Results that have it are compared image by image.

    Raises:
        ValueError: There is no accuracy, one is outside [0, 1], no test image, or ``per_image``
            does not fit.
    """

    method: str
    regime: str
    accuracies: tuple[float, ...]
    test_count: int
    per_image: tuple[float, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not self.accuracies or not all(0 <= a <= 1 for a in self.accuracies):
            raise ValueError(f"accuracies must be values in [0, 1], got {self.accuracies}")
        if self.test_count < 1:
            raise ValueError(f"test_count must be at least 1, got {self.test_count}")
        if self.per_image:
            if len(self.per_image) != self.test_count:
                raise ValueError(
                    f"per_image must have {self.test_count} values, got {len(self.per_image)}"
                )
            share = math.fsum(self.per_image) / self.test_count
            if abs(share - self.mean) > 1e-9:
                raise ValueError(f"per_image has the mean {share}, the accuracies {self.mean}")

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return math.fsum(self.accuracies) / len(self.accuracies)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds (divisor n − 1); None for one seed."""
        if len(self.accuracies) < 2:
            return None
        squares = math.fsum((a - self.mean) ** 2 for a in self.accuracies)
        return math.sqrt(squares / (len(self.accuracies) - 1))

    @property
    def sampling_error(self) -> float:
        """Standard error from the finite test set, √(a(1 − a)/n); all seeds share the images."""
        return math.sqrt(self.mean * (1 - self.mean) / self.test_count)

    @property
    def standard_error(self) -> float:
        """Standard error of the mean from seeds and test images together."""
        seeds = (self.std or 0.0) ** 2 / len(self.accuracies)
        return math.sqrt(seeds + self.sampling_error**2)


@dataclass(frozen=True)
class Difference:
    """One comparison: ``first`` minus ``second``.

    Attributes:
        first: The one with the higher mean.
        second: The other.
        value: Difference of the means, not negative.
        half_width: Half the interval at the family's level (Bonferroni).
        distinguishable: Whether the difference survives Holm's correction.
    """

    first: Result
    second: Result
    value: float
    half_width: float
    distinguishable: bool


def _pooled(results: Sequence[Result]) -> tuple[float, int]:
    """Variance over seeds within cells, pooled over the cells, and its degrees of freedom."""
    freedom = sum(len(r.accuracies) - 1 for r in results)
    squares = math.fsum((a - r.mean) ** 2 for r in results for a in r.accuracies)
    return (squares / freedom if freedom else 0.0), freedom


def _sampling_variance(first: Result, second: Result) -> float:
    """Variance of the difference from the finite test set.

    Image by image where both results have that: what both get right or wrong says nothing about
    their difference.  Otherwise as if the test sets were independent, which is an upper bound.
    """
    if not (first.per_image and second.per_image):
        return first.sampling_error**2 + second.sampling_error**2
    if first.test_count != second.test_count:
        raise ValueError(
            "results with per_image must share their test set, "
            f"got {first.test_count} and {second.test_count} images"
        )
    gaps = [a - b for a, b in zip(first.per_image, second.per_image, strict=True)]
    mean = math.fsum(gaps) / len(gaps)
    return math.fsum((gap - mean) ** 2 for gap in gaps) / len(gaps) ** 2


def compare(pairs: Sequence[tuple[Result, Result]], *, level: float = LEVEL) -> list[Difference]:
    """Judge differences together, by t-tests with Holm's correction for their number.

    The variance of a difference is that of both means over seeds plus that from the finite test
    set.  A few seeds estimate a variance badly, so a cell's is the larger of its own and the one
    pooled over all cells, with the degrees of freedom of the pool (Satterthwaite, the sampling part
    taken as known).

    Args:
        pairs: What to compare.
        level: Probability of naming any difference that is none.

    Returns:
        One difference a pair, in their order, each with the higher mean first.

    Raises:
        ValueError: Results to be compared image by image have test sets of different sizes.
    """
    special = require("scipy.special", "methods")
    stdtr, stdtrit = special.stdtr, special.stdtrit  # Student's t: distribution and quantile
    variance, freedom = _pooled(list({id(r): r for pair in pairs for r in pair}.values()))
    ordered = [(a, b) if a.mean >= b.mean else (b, a) for a, b in pairs]
    rows = []
    for first, second in ordered:
        seeds = math.fsum(
            max(variance, (r.std or 0.0) ** 2) / len(r.accuracies) for r in (first, second)
        )
        total = seeds + _sampling_variance(first, second)
        error = math.sqrt(total)
        # A billion degrees of freedom are the normal distribution.
        t_freedom = freedom * (total / seeds) ** 2 if seeds > 0 else 1e9
        value = first.mean - second.mean
        if error > 0:
            p_value = 2 * float(stdtr(t_freedom, -value / error))
        else:
            p_value = 0.0 if value > 0 else 1.0
        half_width = -error * float(stdtrit(t_freedom, level / (2 * len(ordered))))
        rows.append((value, half_width, p_value))
    # Holm: the k-th smallest of n p-values stands against level / (n - k), until one fails.
    named = set()
    by_p = sorted(range(len(rows)), key=lambda i: rows[i][2])
    for k, index in enumerate(by_p):
        if rows[index][2] > level / (len(rows) - k):
            break
        named.add(index)
    return [
        Difference(first, second, value, half_width, index in named)
        for index, ((first, second), (value, half_width, _)) in enumerate(
            zip(ordered, rows, strict=True)
        )
    ]


def differences(results: Sequence[Result], *, level: float = LEVEL) -> list[Difference]:
    """Every pair of methods within a regime, then every pair of regimes within a method.

    Args:
        results: All cells of the table.
        level: Family-wise level.

    Returns:
        The judged differences.
    """
    pairs = list(combinations(results, 2))
    within_regime = [(a, b) for a, b in pairs if a.regime == b.regime]
    within_method = [(a, b) for a, b in pairs if a.method == b.method and a.regime != b.regime]
    return compare(within_regime + within_method, level=level)


def summary(judged: Sequence[Difference], *, brief: bool = False) -> list[str]:
    """What the differences say, one sentence a regime or method, computed from them alone.

    Args:
        judged: As :func:`differences` gives them.
        brief: Only count the pairs that are not distinguishable.

    Returns:
        Sentences such as ``"HL: RDED above Random by 3.1 points (± 2.0); EL2N-Easy and Random are
        not distinguishable (0.4 ± 2.1)."``
    """
    groups: dict[str, list[str]] = {}
    open_pairs: dict[str, int] = {}
    for d in judged:
        same_regime = d.first.regime == d.second.regime
        group = d.first.regime if same_regime else d.first.method
        a, b = (
            (d.first.method, d.second.method) if same_regime else (d.first.regime, d.second.regime)
        )
        # A digit more where both would read the same, such as 7.2 ± 7.2.
        digits = 1 if percent(d.value) != percent(d.half_width) else 2
        points, width = percent(d.value, digits), percent(d.half_width, digits)
        parts = groups.setdefault(group, [])
        if brief and not d.distinguishable:
            open_pairs[group] = open_pairs.get(group, 0) + 1
            continue
        parts.append(
            f"{a} above {b} by {points} points (± {width})"
            if d.distinguishable
            else f"{a} and {b} not distinguishable ({points} ± {width})"
        )
    for group, count in open_pairs.items():
        groups[group].append(f"{count} pair{'s' if count > 1 else ''} not distinguishable")
    return [f"{group}: {'; '.join(parts)}." for group, parts in groups.items()]
