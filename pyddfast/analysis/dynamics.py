"""Does a synthesis get anywhere?  Its matching loss and its students' accuracy over iterations.

Figures 4b and 4c of "Rethinking Dataset Distillation: Hard Truths About Soft Labels": over 10,000
and 50,000 iterations of DATM the loss moves in the third decimal, and the accuracy gains little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyddfast._extras import require
from pyddfast.analysis._inputs import Array, vector
from pyddfast.data.stored import parse_json
from pyddfast.train.run import METRICS

__all__ = ["LossDynamics", "Trend", "loss_dynamics", "trend"]

# Stretches of a run that are taken as independent: of 3000 runs of 600 rows whose neighbours
# correlate by 0.8, ten cover the slope in 94.5 %, twenty in 93 %, and five, whose intervals are a
# third wider, in 95.5 %.
_BLOCKS = 10
# Names of a matching loss in the rows of the methods, in the order of preference.
_LOSSES = ("loss", "bn", "statistics")
_CLOCKS = ("iteration", "step")


@dataclass(frozen=True)
class Trend:
    """A straight line through a run.

    Attributes:
        slope: Change in 1000 iterations.
        ci: 95 % interval of it; NaN where there are too few points.
        total: Slope times the length of the run.
    """

    slope: float
    ci: tuple[float, float]
    total: float


@dataclass(frozen=True, eq=False)
class LossDynamics:
    """What a run logged.

    Attributes:
        column: Which loss.
        iterations: (n,), counted from 1 where the method counts so.
        losses: (n,).
        skipped: Iterations without a loss (TM and DATM skip what is above their threshold).
        loss: Its trend, within starting epochs where the rows have them: which ones are drawn, and
            not only the images, changes over a run of DATM.
        accuracies: Of students, by iteration.
        accuracy: Their trend; None without them.
    """

    column: str
    iterations: Array
    losses: Array
    skipped: int
    loss: Trend
    accuracies: Mapping[int, tuple[float, ...]]
    accuracy: Trend | None

    def to_dict(self) -> dict[str, Any]:
        """Trends and accuracies, without the rows; JSON values, None for NaN."""

        def plain(found: Trend | None) -> dict[str, Any] | None:
            if found is None:
                return None
            low, high = (None if math.isnan(end) else end for end in found.ci)
            return {"slope_per_1000": found.slope, "ci": [low, high], "total": found.total}

        return {
            "column": self.column,
            "rows": len(self.losses),
            "first": int(self.iterations[0]),
            "last": int(self.iterations[-1]),
            "skipped": self.skipped,
            "loss": plain(self.loss),
            "accuracy": plain(self.accuracy),
            "accuracies": {str(k): list(v) for k, v in self.accuracies.items()},
        }


def loss_dynamics(
    run: str | Path,
    *,
    accuracies: Mapping[int, Sequence[float]] | None = None,
    column: str | None = None,
) -> LossDynamics:
    """Read a run's losses and fit their trend.

    Args:
        run: Folder with ``metrics.jsonl`` (of a command's small-scale run: OUT/matching).
        accuracies: Of students of the set after so many iterations, in [0, 1]; see
            :func:`pyddfast.methods.snapshots`.
        column: Which value of the rows; None: ``loss``, or ``bn`` of SRe2L's kin.  Chunks of one
            step are averaged.

    Returns:
        Losses, trend and its interval: least squares, whose standard error comes from the means of
        ten consecutive stretches of the run (t with 8 degrees of freedom), so that neighbouring
        rows need not be independent.

    Raises:
        FileNotFoundError: There are no metrics.
        ValueError: No row has the column (those that there are are named), fewer than two rows, or
            an accuracy outside [0, 1].
    """
    file = Path(run) / METRICS
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; a synthesis run has it")
    rows = [
        parse_json(line, f"{file}, line {number},")
        for number, line in enumerate(file.read_bytes().splitlines(), 1)
    ]
    known = sorted({name for row in rows for name in row})
    chosen = column or next((name for name in _LOSSES if name in known), None)
    clock = next((name for name in _CLOCKS if name in known), None)
    if chosen is None or chosen not in known or clock is None:
        raise ValueError(f"{file} has no {column or 'loss'} by step; its columns: {known}")
    held = [row for row in rows if chosen in row]
    found = [row for row in held if row[chosen] is not None and not row.get("skipped")]
    times = np.array([row[clock] for row in found], dtype=np.float64)
    values = np.array([row[chosen] for row in found], dtype=np.float64)
    starts = np.array([row.get("start_epoch", 0) for row in found])
    if "chunk" in known:
        times, index = np.unique(times, return_inverse=True)
        values = np.bincount(index, weights=values) / np.bincount(index)
        starts = np.zeros(len(times), dtype=int)
    if len(times) < 2:
        raise ValueError(f"{file} has {len(times)} rows with {chosen}; a trend needs two")
    measured = {int(k): tuple(float(x) for x in v) for k, v in (accuracies or {}).items()}
    points = [(k, x) for k, each in measured.items() for x in each]
    if bad := [x for _, x in points if not 0 <= x <= 1]:
        raise ValueError(f"accuracies must lie in [0, 1], got {bad[0]}")
    return LossDynamics(
        chosen,
        times,
        values,
        len(held) - len(found),
        trend(times, values, groups=starts),
        dict(sorted(measured.items())),
        # A student is a point: seeds are what makes them independent.
        trend(*zip(*points, strict=True), blocks=len(points)) if len(measured) > 1 else None,
    )


def trend(
    times: Sequence[float] | Array,
    values: Sequence[float] | Array,
    *,
    groups: Sequence[int] | Array | None = None,
    blocks: int = _BLOCKS,
) -> Trend:
    """A straight line by least squares, its interval by the means of consecutive stretches.

    Args:
        times: (n,), iterations.
        values: (n,).
        groups: (n,), a level of its own for each value of it.
        blocks: Number of stretches of as many points each; ``n``: points are independent.

    Raises:
        ValueError: Lengths differ, or all times are equal within their groups.
    """
    x = vector("times", times)
    y = vector("values", values, length=len(x))
    level = np.zeros(len(x), dtype=int)
    if groups is not None:
        level = np.unique(np.asarray(groups), return_inverse=True)[1]
    counts = np.bincount(level)
    dx = x - (np.bincount(level, weights=x) / counts)[level]
    dy = y - (np.bincount(level, weights=y) / counts)[level]
    spread = float(dx @ dx)
    if spread == 0:
        raise ValueError("times must differ")
    slope = float(dx @ dy) / spread
    length = float(x.max() - x.min())
    parts = min(blocks, len(x))
    if len(x) <= len(counts) + 1 or parts < 3:
        return Trend(1000 * slope, (math.nan, math.nan), slope * length)
    residuals = (dy - slope * dx)[np.argsort(x, kind="stable")]
    means = np.array([part.mean() for part in np.array_split(residuals, parts)])
    # Of one point, as if points were independent; levels and slope come from the same points.
    variance = float(means @ means) / (parts - 2) * len(x) / parts
    variance *= (len(x) - 2) / (len(x) - len(counts) - 1)
    quantile = float(require("scipy.stats", "methods").t.ppf(0.975, parts - 2))
    half = 1000 * quantile * math.sqrt(variance / spread)
    return Trend(1000 * slope, (1000 * slope - half, 1000 * slope + half), slope * length)
