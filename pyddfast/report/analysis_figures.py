"""Figures of the analyses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from pyddfast._extras import require
from pyddfast.analysis import Convergence, RobustScore, ScalingLaw
from pyddfast.report.figures import COLORS, figure_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["convergence_figure", "dcs_figure", "scaling_law_figure", "scores_figure"]

# What a score of 1 / (1 + e) means.
_EVEN = {
    "LRS": "as much above random images as below the full data",
    "ARS": "as good as random images",
}

Points = tuple[Sequence[float], Sequence[float], Sequence[float]]


def dcs_figure(points: Mapping[str, Points], *, of_size: str = "size {:g}") -> Figure:
    """Error against objective, a point a subset, a colour a size; side by side.

    Args:
        points: By title, e.g. the objective and its score: objectives, errors (fractions) and
            sizes.
        of_size: A format of the legend's entries.

    Returns:
        A matplotlib figure.
    """
    figure, axes = figure_of(1, len(points), width=1.2 + 3.2 * len(points))
    sizes = sorted({size for _, _, own in points.values() for size in own})
    for one, (title, (objective, error, size)) in zip(axes, points.items(), strict=True):
        for number, value in enumerate(sizes):
            at = [i for i, other in enumerate(size) if other == value]
            one.plot(
                [objective[i] for i in at],
                [100 * error[i] for i in at],
                linestyle="none",
                marker="o",
                markersize=4,
                color=COLORS[number % len(COLORS)],
                label=of_size.format(value),
            )
        one.set_xlabel(title)
        one.set_ylabel("test error (%)")
    if len(sizes) > 1:
        _legend(axes[-1])
    return figure


def scaling_law_figure(laws: Mapping[str, ScalingLaw]) -> Figure:
    """Measured errors, the fitted laws and their 95 % bands, over epochs.

    Args:
        laws: By display name.

    Returns:
        A matplotlib figure.
    """
    figure, (axes,) = figure_of(1, 1)
    for number, (name, law) in enumerate(laws.items()):
        color = COLORS[number % len(COLORS)]
        # 60 epochs, evenly spread on the axis, draw a smooth line.
        dense = np.unique(np.geomspace(law.epochs[0], law.epochs[-1], 60).round())
        low, high = law.predict_interval(dense)
        axes.fill_between(dense, 100 * low, 100 * high, color=color, alpha=0.2, linewidth=0)
        axes.plot(
            dense,
            100 * law.predict(dense),
            color=color,
            label=f"{name}: b {law.b:.3f}, τ {law.tau:.2f}, δ {law.delta:.2f}",
        )
        axes.plot(law.epochs, 100 * law.error, linestyle="none", marker="o", color=color)
    _over_epochs(axes)
    return figure


def convergence_figure(
    curves: Mapping[str, tuple[Sequence[float], Sequence[Sequence[float]]]],
    found: Mapping[str, Convergence],
) -> Figure:
    """Error against epochs, a faint line a seed; dashed where it is near its plateau.

    Args:
        curves: By display name: epochs, and a list of errors (fractions) a seed.
        found: Their convergences, of those that have one.

    Returns:
        A matplotlib figure.
    """
    figure, (axes,) = figure_of(1, 1)
    for number, (name, (epochs, seeds)) in enumerate(curves.items()):
        color, rows = COLORS[number % len(COLORS)], 100 * np.asarray(seeds)
        axes.plot(epochs, rows.mean(0), color=color, marker="o", markersize=4, label=name)
        axes.plot(epochs, rows.T, color=color, alpha=0.3, linewidth=0.8)
        if name in found:
            axes.axvline(found[name].epochs, color=color, linestyle=(0, (4, 3)), linewidth=1)
    _over_epochs(axes)
    return figure


def scores_figure(scores: Mapping[str, RobustScore], *, label: Literal["LRS", "ARS"]) -> Figure:
    """A row a set: the score of each evaluation, their mean and its 95 % interval.

    Args:
        scores: By the set's display name.
        label: Which of the two.

    Returns:
        A matplotlib figure.
    """
    figure, (axes,) = figure_of(1, 1, height=0.9 + 0.4 * len(scores))
    for row, score in enumerate(scores.values()):
        axes.plot(
            score.values, [row] * len(score.values), "o", color=COLORS[0], markersize=4, alpha=0.4
        )
        half = 0.0 if math.isnan(score.ci[0]) else (score.ci[1] - score.ci[0]) / 2
        axes.errorbar(score.mean, row, xerr=half, color=COLORS[0], marker="D", capsize=4)
    even = 1 / (1 + math.e)  # of the exponent 0
    axes.axvline(even, color=COLORS[-1], linestyle=(0, (4, 3)), linewidth=1)
    axes.set_yticks(range(len(scores)), list(scores))
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.set_xlabel(f"{label} (dashed: {_EVEN[label]})")
    return figure


def _over_epochs(axes: Axes) -> None:
    ticker = require("matplotlib.ticker", "methods")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")  # 50, not a power of ten
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.set_xlabel("epochs")
    axes.set_ylabel("test error (%)")
    _legend(axes)


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=8)
