"""Figures of analyses show the numbers they are given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyddfast.analysis import ars, convergence, fit_scaling_law, lrs
from pyddfast.report.analysis_figures import (
    convergence_figure,
    dcs_figure,
    scaling_law_figure,
    scores_figure,
)


def points_of(axes: Any) -> list[tuple[float, float]]:
    return [
        (float(x), float(y))
        for line in axes.lines
        if line.get_marker() == "o"
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    ]


def test_every_subset_is_a_point_of_its_size() -> None:
    points = {"a": ([1.0, 2, 3], [0.5, 0.6, 0.7], [10, 10, 50]), "b": ([4.0], [0.1], [50])}
    first, second = dcs_figure(points).axes
    assert sorted(points_of(first)) == [(1.0, 50.0), (2.0, 60.0), (3.0, 70.0)]
    assert points_of(second) == [(4.0, 10.0)]
    assert [t.get_text() for t in second.get_legend().get_texts()] == ["size 10", "size 50"]
    colors = {
        name: [line.get_color() for line in a.lines] for name, a in (("a", first), ("b", second))
    }
    assert colors["b"] == colors["a"] != [colors["a"][0]] * 2  # a size has one colour in both
    assert (first.get_xlabel(), first.get_ylabel()) == ("a", "test error (%)")


@pytest.mark.filterwarnings("ignore:the curve hardly determines")
def test_law_and_data_are_drawn_with_their_band() -> None:
    epochs, error = [1, 2, 5, 10, 50], [0.6, 0.55, 0.5, 0.49, 0.48]
    law = fit_scaling_law(epochs, error, 1000, d=0.1, n_boot=50)
    (axes,) = scaling_law_figure({"mine": law}).axes
    assert points_of(axes) == [
        (k, pytest.approx(100 * e)) for k, e in zip(epochs, error, strict=True)
    ]
    curve = axes.lines[0]
    assert curve.get_ydata() == pytest.approx(100 * law.predict(curve.get_xdata()))
    assert curve.get_label() == f"mine: b {law.b:.3f}, τ {law.tau:.2f}, δ {law.delta:.2f}"
    band = axes.collections[0].get_paths()[0].vertices
    low, high = law.predict_interval(10)
    at_ten = sorted(y for x, y in band if x == 10)
    assert (at_ten[0], at_ten[-1]) == (pytest.approx(100 * low), pytest.approx(100 * high))


def test_convergence_marks_the_epochs() -> None:
    epochs = [10, 20, 40, 80]
    seeds = [[0.5, 0.42, 0.40, 0.40], [0.6, 0.44, 0.40, 0.40]]
    found = convergence(epochs, seeds)
    (axes,) = convergence_figure({"set": (epochs, seeds)}, {"set": found}).axes
    assert points_of(axes) == list(zip(epochs, (55.0, 43.0, 40.0, 40.0), strict=True))
    assert np.asarray(axes.lines[-1].get_xdata()).tolist() == [found.epochs] * 2


def test_scores_stand_in_rows_with_their_intervals() -> None:
    scores = {"DM": lrs(0.6, 0.4, [0.5, 0.52], 0.4), "DC": lrs(0.6, 0.4, 0.45, 0.4)}
    (axes,) = scores_figure(scores, label="LRS").axes
    assert points_of(axes) == [(v, row) for row, s in enumerate(scores.values()) for v in s.values]
    ends = axes.collections[0].get_segments()[0][:, 0]
    assert tuple(ends) == pytest.approx(scores["DM"].ci)
    assert [t.get_text() for t in axes.get_yticklabels()] == ["DM", "DC"]
    # The dashed line is the score of the exponent 0.
    assert axes.lines[-1].get_xdata()[0] == pytest.approx(ars(0.4, 0.4, 0.3, 0.3).mean)
