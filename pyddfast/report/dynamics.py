"""Figures of a synthesis over time and of TM's loss over starting epochs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from pyddfast.analysis.dynamics import LossDynamics
from pyddfast.report.figures import COLORS, figure_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["dynamics_figure", "start_epoch_figure"]

# Points of a smoothed curve: as many as an eye tells apart in a column's width.
_POINTS = 100
# Above so many times the median a value is a spike, which would flatten all other curves.
_SPIKE = 3.0


def dynamics_figure(dynamics: LossDynamics) -> Figure:
    """Matching loss (left axis) and students' accuracy (right axis) over iterations.

    Single losses are faint, means of a hundred stretches of the run dark; accuracies are mean ±
    standard deviation.  The title has both trends with their intervals.

    Args:
        dynamics: Of :func:`pyddfast.analysis.dynamics.loss_dynamics`.

    Returns:
        A matplotlib figure.
    """
    figure, (axes,) = figure_of(1, 1, width=6.4, height=3.8)
    x, y = dynamics.iterations, dynamics.losses
    axes.plot(x, y, color=COLORS[0], alpha=0.2, linewidth=0.6)
    parts = min(_POINTS, len(x))
    axes.plot(
        [float(part.mean()) for part in np.array_split(x, parts)],
        [float(part.mean()) for part in np.array_split(y, parts)],
        color=COLORS[0],
        linewidth=1.4,
    )
    axes.set_xlabel("iteration")
    axes.set_ylabel(f"matching loss ({dynamics.column})", color=COLORS[0])
    low, high = dynamics.loss.ci
    title = f"loss: {dynamics.loss.slope:+.3g} in 1000 iterations [{low:.3g}, {high:.3g}]"
    if dynamics.accuracies:
        right = axes.twinx()
        right.errorbar(
            list(dynamics.accuracies),
            [100 * statistics.fmean(each) for each in dynamics.accuracies.values()],
            yerr=[
                100 * statistics.stdev(each) if len(each) > 1 else 0.0
                for each in dynamics.accuracies.values()
            ],
            color=COLORS[1],
            marker="o",
            capsize=3,
        )
        right.set_ylabel("test accuracy (%)", color=COLORS[1])
        right.spines["top"].set_visible(False)
    if dynamics.accuracy is not None:
        slope, (low, high) = dynamics.accuracy.slope, dynamics.accuracy.ci
        title += f"\naccuracy: {100 * slope:+.3g} points [{100 * low:.3g}, {100 * high:.3g}]"
    axes.set_title(title, fontsize=9, loc="left")
    return figure


def start_epoch_figure(
    curves: Mapping[str, Mapping[int, float]], *, limit: float | None = None
) -> Figure:
    """TM's loss by starting epoch, a line a set.

    What lies above the limit is drawn as a triangle at the edge with its value beside it: the plot
    is cut, visibly, and the data are not (DC spikes at epochs 27 and 28 in the paper).

    Args:
        curves: By set, the loss by starting epoch.
        limit: Top of the plot; None: three times the median of all values, where one is above it.

    Returns:
        A matplotlib figure; its ``spikes`` are what lies above, (set, epoch, loss).

    Raises:
        ValueError: There is no value.
    """
    values = [value for curve in curves.values() for value in curve.values()]
    if not values:
        raise ValueError("curves must hold at least one value")
    top = limit if limit is not None else _SPIKE * statistics.median(values)
    spikes = [
        (name, epoch, value)
        for name, curve in curves.items()
        for epoch, value in curve.items()
        if value > top
    ]
    figure, (axes,) = figure_of(1, 1, width=6.4, height=3.8)
    for number, (name, curve) in enumerate(curves.items()):
        color = COLORS[number % len(COLORS)]
        axes.plot(list(curve), list(curve.values()), color=color, marker="o", label=name)
        for _, epoch, value in (spike for spike in spikes if spike[0] == name):
            axes.plot([epoch], [top], color=color, marker="^", clip_on=False, zorder=3)
            axes.annotate(
                f"{name} {value:.3g}",
                (epoch, top),
                xytext=(0, 5),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                annotation_clip=False,
            )
    if spikes:
        axes.set_ylim(top=top)
    axes.set_xlabel("starting epoch of the expert")
    axes.set_ylabel("normalised distance")
    axes.legend(frameon=False)
    figure.spikes = spikes  # type: ignore[attr-defined]
    return figure
