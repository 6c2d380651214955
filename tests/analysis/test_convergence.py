"""Epochs to the plateau, of curves whose epochs are known."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pyddfast.analysis import convergence, convergence_ratio

EPOCHS = [10, 20, 40, 80, 160, 320]


def curve(half: float, plateau: float = 0.4) -> list[float]:
    """From 0.2 above the plateau, down by a factor of e every ``half`` doublings of the epochs."""
    return [plateau + 0.2 * math.exp(-step / half) for step in range(5)] + [plateau]


def test_hand_worked() -> None:
    # 0.41 lies half way, in the logarithm, between 20 epochs (0.42) and 40 (0.40).
    found = convergence(EPOCHS, [0.5, 0.42, 0.40, 0.405, 0.401, 0.40])
    assert found.epochs == pytest.approx(20 * math.sqrt(2))
    assert (found.plateau, found.settled) == (0.40, True)
    assert all(map(math.isnan, (*found.ci, *found.plateau_ci)))
    # To within 5 points, 0.45: 5/8 of the way from 10 epochs (0.5) to 20.
    wide = convergence(EPOCHS, [0.5, 0.42, 0.40, 0.405, 0.401, 0.40], within=0.05)
    assert wide.epochs == pytest.approx(10 * 2 ** (5 / 8))


def test_seeds_give_the_interval() -> None:
    halves = (0.5, 0.6, 0.7)
    found = convergence(EPOCHS, [curve(half, 0.4 + half / 100) for half in halves])
    alone = [convergence(EPOCHS, curve(half)).epochs for half in halves]
    assert found.per_seed == pytest.approx(alone)
    logs = np.log(alone)
    assert found.epochs == pytest.approx(stats.gmean(alone))
    interval = stats.t.interval(0.95, 2, logs.mean(), stats.sem(logs))
    assert found.ci == pytest.approx(np.exp(interval))
    assert found.plateau == pytest.approx(0.406)
    assert found.plateau_ci == pytest.approx(
        stats.t.interval(0.95, 2, 0.406, stats.sem([0, 1e-3, 2e-3]))
    )
    array = convergence(np.array(EPOCHS), np.array([curve(half) for half in halves]))
    assert array.epochs == pytest.approx(found.epochs)


def test_ratio_of_a_distilled_set_and_a_coreset() -> None:
    slow = convergence(EPOCHS, [curve(half) for half in (1.0, 1.1, 1.2)])
    fast = convergence(EPOCHS, [curve(half) for half in (0.4, 0.45)])
    ratio, (low, high) = convergence_ratio(slow, fast)
    assert ratio == pytest.approx(slow.epochs / fast.epochs)
    theirs = stats.ttest_ind(np.log(slow.per_seed), np.log(fast.per_seed), equal_var=False)
    assert (low, high) == pytest.approx(np.exp(theirs.confidence_interval()))
    assert 1 < low < ratio < high
    other = convergence(EPOCHS, curve(0.4), within=0.02)
    with pytest.raises(ValueError, match=r"within must be the same, got 0.01 and 0.02"):
        convergence_ratio(slow, other)
    assert all(map(math.isnan, convergence_ratio(slow, convergence(EPOCHS, curve(0.4)))[1]))


def test_a_curve_that_still_falls_is_told() -> None:
    with pytest.warns(UserWarning, match="still falls in the second half of 320 epochs"):
        found = convergence(EPOCHS, [0.6, 0.5, 0.45, 0.4, 0.35, 0.3])
    assert not found.settled
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert convergence(EPOCHS, curve(0.5)).settled


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"error": [0.5, 0.5, 0.495]}, "error of curve 0 must fall by more than 0.01: it is 0.5"),
        ({"error": [[0.5, 0.4, 0.3], [0.5, 0.6, 0.7]]}, "error of curve 1 must fall"),
        ({"error": [50, 40, 30]}, r"fractions in \[0, 1\], got 30 to 50"),
        ({"error": [0.5, 0.4]}, "error of curve 0 must have 3 values, got 2"),
        ({"error": []}, "error of curve 0 must have 3 values, got 0"),
        ({"error": [0.5, math.nan, 0.4]}, "error of curve 0 must be finite"),
        ({"epochs": [1, 2], "error": [0.5, 0.4]}, "epochs must be at least 3, got 2"),
        ({"epochs": [1, 3, 2]}, "epochs must rise"),
        ({"within": 1}, r"within must be in \(0, 1\), got 1; a point is 0.01"),
    ],
)
def test_refuses(change: dict[str, Any], message: str) -> None:
    given = {"epochs": [1, 2, 4], "error": [0.5, 0.4, 0.3], **change}
    with pytest.raises(ValueError, match=message):
        convergence(given.pop("epochs"), given.pop("error"), **given)
