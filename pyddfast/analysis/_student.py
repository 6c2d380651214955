"""Student's intervals of a few seeds."""

from __future__ import annotations

import math

from pyddfast._extras import require
from pyddfast.analysis._inputs import Array

__all__ = ["LEVEL", "difference_interval", "half_width", "mean_interval"]

LEVEL = 0.95  # of the intervals, the usual one


def half_width(freedom: float) -> float:
    """Half the 95 % interval of Student's t, in standard errors."""
    return float(require("scipy.special", "methods").stdtrit(freedom, (1 + LEVEL) / 2))


def mean_interval(values: Array) -> tuple[float, float]:
    """95 % interval of the mean of independent values (n,); NaN for one value."""
    if len(values) < 2:
        return math.nan, math.nan
    half = half_width(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    middle = float(values.mean())
    return middle - half, middle + half


def difference_interval(first: Array, second: Array) -> tuple[float, float]:
    """95 % interval of the difference of two means, of variances of their own (Welch)."""
    if min(len(first), len(second)) < 2:
        return math.nan, math.nan
    parts = [float(v.var(ddof=1)) / len(v) for v in (first, second)]
    total, value = sum(parts), float(first.mean() - second.mean())
    if total == 0:
        return value, value
    own = zip(parts, (first, second), strict=True)
    freedom = total**2 / sum(part**2 / (len(v) - 1) for part, v in own)
    half = half_width(freedom) * math.sqrt(total)
    return value - half, value + half
