"""DCS against independent routes, hand-worked values and simulations of a known correlation."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from pyddfast.analysis import DCS, dcs, dcs_difference
from pyddfast.random import Purpose, numpy_generator


def points(
    seed: int, n: int, rho: float, *, sizes: int = 4, pairs: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Objective and error, correlated by ``rho`` given the size, which moves them apart.

    With ``pairs`` two points in a row share their size and most of their noise.
    """
    generator = np.random.default_rng(seed)
    factor = np.linalg.cholesky([[1.0, rho], [rho, 1.0]])
    noise = factor @ generator.standard_normal((2, n))
    size = generator.integers(0, sizes, n)
    if pairs:
        shared = factor @ generator.standard_normal((2, n // 2))
        noise = math.sqrt(0.1) * noise + math.sqrt(0.9) * shared.repeat(2, 1)
        size = size[: n // 2].repeat(2)
    shift = 3 * size / sizes
    return noise[0] + shift, noise[1] - shift, 10.0 * 2.0**size


def residual_route(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> float:
    """The correlation of what is left of the ranks after a regression on the ranks of the size."""
    design = np.stack([np.ones(len(z)), stats.rankdata(z)], 1)

    def left(values: np.ndarray) -> np.ndarray:
        ranks = stats.rankdata(values)
        return np.asarray(ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0])

    return float(stats.pearsonr(left(x), left(y)).statistic)


def stratified_route(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> float:
    found = []
    for one in np.unique(z):
        own = z == one
        if len(set(x[own])) > 1 and len(set(y[own])) > 1:
            found.append((own.sum() - 1, stats.spearmanr(x[own], y[own]).statistic))
    return float(sum(w * r for w, r in found) / sum(w for w, _ in found))


def score(*args: Any, **options: Any) -> DCS:
    return dcs(*args, **{"n_boot": 200, **options})


@pytest.mark.parametrize("decimals", [8, 0])  # 0: many ties
def test_is_the_correlation_of_rank_residuals(decimals: int) -> None:
    x, y, z = (v.round(decimals) for v in points(1, 158, 0.4, sizes=7))
    found = score(x, y, z)
    assert found.rho == pytest.approx(residual_route(x, y, z), abs=1e-12)
    assert found.raw_rho == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert found.raw_rho < 0 < found.rho  # the size hides what it is about
    other = score(x, y, z, adjust="stratified")
    assert other.rho == pytest.approx(stratified_route(x, y, z), abs=1e-12)
    assert score(x, y, adjust="none").rho == found.raw_rho
    assert (found.n, found.n_groups, found.dropped) == (158, 158, 0)


def test_hand_worked() -> None:
    # Ranks 1 2 3 4 5 | 2 1 4 3 5 | size 1.5 1.5 4 4 4: r_xy = .8, r_xz = r_yz = √3/2.
    x, y, z = [1.0, 2, 3, 4, 5], [2.0, 1, 4, 3, 5], [10, 10, 50, 50, 50]
    assert score(x, y, z).rho == pytest.approx((0.8 - 0.75) / 0.25)
    # Within the sizes: -1 with weight 1, 1/2 with weight 2.
    assert score(x, y, z, adjust="stratified").rho == pytest.approx(0.0)
    assert score(torch.tensor(x, dtype=torch.bfloat16), y, z).rho == score(x, y, z).rho
    assert score(torch.tensor(x), np.array(y), torch.tensor(z)).raw_rho == pytest.approx(0.8)
    # Only the order counts; an infinite loss is the last.
    assert score([1.0, 2, 3, 4, math.inf], y, z).rho == score(x, y, z).rho
    many = score(np.arange(30.0), np.arange(30.0), [1, 2] * 15)
    assert (many.rho, many.ci_formula) == (1.0, (1.0, 1.0))


def test_interval_by_formula() -> None:
    x, y, z = points(2, 50, 0.5)
    found = score(x, y, z)
    half = 1.959964 * math.sqrt((1 + found.rho**2 / 2) / (50 - 1 - 3))
    middle = math.atanh(found.rho)
    expected = (math.tanh(middle - half), math.tanh(middle + half))
    assert found.ci_formula == pytest.approx(expected, abs=1e-6)
    other = score(x, y, z, adjust="stratified")
    half = 1.959964 * math.sqrt((1 + other.rho**2 / 2) / (50 - 3 - 3))  # three means more
    assert math.atanh(other.ci_formula[1]) - math.atanh(other.rho) == pytest.approx(half, abs=1e-6)
    assert all(map(math.isnan, score(*points(2, 4, 0.5)).ci_formula))


@pytest.mark.parametrize("adjust", ["partial", "stratified", "none"])
def test_bootstrap_draws_whole_groups_and_ranks_them_anew(adjust: Any) -> None:
    x, y, z = (v.round(1) for v in points(3, 24, 0.5, pairs=True))
    groups = [f"subset {i // 2}" for i in range(24)]
    found = score(x, y, z, adjust=adjust, groups=groups, seed=5)
    assert found.n_groups == 12
    route = {"partial": residual_route, "stratified": stratified_route}.get(
        adjust, lambda x, y, z: float(stats.spearmanr(x, y).statistic)
    )
    times = numpy_generator(5, Purpose.BOOTSTRAP, 0).multinomial(12, [1 / 12] * 12, size=200)
    for draw, counts in zip(found.draws, times, strict=True):
        rows = np.repeat(np.arange(24), counts.repeat(2))
        assert draw == pytest.approx(route(x[rows], y[rows], z[rows]), abs=1e-9)
    assert found.ci == pytest.approx(tuple(np.quantile(found.draws, [0.025, 0.975])))
    again = score(x, y, z, adjust=adjust, groups=groups, seed=5)
    assert again == found
    assert score(x, y, z, adjust=adjust, groups=torch.arange(24) // 2, seed=5) == found
    assert score(x, y, z, adjust=adjust, groups=groups, seed=6).ci != found.ci


def test_p_is_that_of_all_permutations_within_sizes() -> None:
    x, y, z = points(12, 8, 0.9, sizes=2)
    assert sorted(np.unique(z, return_counts=True)[1]) == [4, 4]
    order = z.argsort(kind="stable")
    x, y, z = x[order], y[order], z[order]
    found = dcs(x, y, z, n_boot=20000)
    every = [
        residual_route(np.concatenate([x[list(a)], x[list(b)]]), y, z)
        for a in itertools.permutations(range(4))
        for b in itertools.permutations(range(4, 8))
    ]
    tail = np.mean(np.array(every) >= found.rho - 1e-9)
    assert 0 < tail < 0.2
    assert found.p == pytest.approx(2 * tail, abs=4 * math.sqrt(tail / 20000) * 2)


def test_permutations_exchange_groups_of_equal_sizes_only() -> None:
    # Each subset with its repetition: four units in place of eight points, 4! orders; the observed
    # one and no other has the highest correlation.
    x, y = [1.0, 2, 3, 4, 11, 12, 13, 14], [1.0, 2, 3, 4, 11, 12, 13, 14]
    z, groups = [10] * 4 + [20] * 4, [0, 1, 2, 3, 0, 1, 2, 3]
    found = dcs(x, y, z, groups=groups, n_boot=20000)
    assert found.p == pytest.approx(2 / 24, abs=0.008)
    with pytest.warns(UserWarning, match="no two groups have the same sizes"):
        assert math.isnan(score([1.0, 3, 2, 4, 5], [2.0, 1, 3, 4, 5], [1, 2, 3, 4, 5]).p)


def test_a_known_correlation_lies_in_the_interval_as_often_as_stated() -> None:
    # What the ranks of very many points give is what the scores of few estimate.
    truth = residual_route(*points(0, 400_000, 0.5))
    simulations, inside = 500, {"bootstrap": 0, "formula": 0, "naive": 0}
    for seed in range(simulations):
        found = dcs(*points(seed + 1, 40, 0.5), n_boot=1)
        inside["formula"] += found.ci_formula[0] <= truth <= found.ci_formula[1]
        paired = points(seed + 1, 40, 0.5, pairs=True)
        groups = (np.arange(40) // 2).tolist()
        clustered = dcs(*paired, groups=groups, n_boot=250)
        inside["bootstrap"] += clustered.ci[0] <= truth <= clustered.ci[1]
        inside["naive"] += clustered.ci_formula[0] <= truth <= clustered.ci_formula[1]
    # 95 % and what 500 simulations leave open (99.9 %: 3.3 binomial standard errors).
    slack = 3.3 * math.sqrt(0.95 * 0.05 / simulations)
    assert abs(inside["formula"] / simulations - 0.95) < slack
    assert abs(inside["bootstrap"] / simulations - 0.95) < slack
    assert inside["naive"] / simulations < 0.95 - slack  # dependent points need the groups


def test_p_is_below_five_percent_in_five_of_a_hundred_without_correlation() -> None:
    ps = [dcs(*points(seed, 30, 0.0), n_boot=199).p for seed in range(500)]
    share = float(np.mean(np.array(ps) <= 0.05))
    assert abs(share - 0.05) < 3.3 * math.sqrt(0.95 * 0.05 / 500)


def test_difference_of_two_scores() -> None:
    x, y, z = points(7, 60, 0.8)
    noise = np.random.default_rng(0).standard_normal(60)
    good, bad = score(x, y, z), score(noise, y, z)
    value, (low, high) = dcs_difference(good, bad)
    assert value == good.rho - bad.rho
    assert 0 < low < value < high
    assert dcs_difference(good, good) == (0.0, (0.0, 0.0))  # they share every resample
    with pytest.raises(ValueError, match=r"same points.*60 and 59 points"):
        dcs_difference(good, score(x[1:], y[1:], z[1:]))


def test_undefined_scores_are_nan_with_a_warning() -> None:
    _, y, z = points(8, 20, 0.5)
    with pytest.warns(UserWarning, match="objective is 0.806 everywhere"):
        found = score(np.full(20, 0.806), y, z)
    assert all(map(math.isnan, (found.rho, *found.ci, *found.ci_formula, found.p, found.raw_rho)))
    with pytest.warns(UserWarning, match="error is 1 everywhere"):
        assert math.isnan(score(y, np.ones(20), z, adjust="stratified").rho)
    with pytest.warns(UserWarning, match="size alone"):
        assert math.isnan(score(-z, y, z).rho)


def test_points_with_a_nan_are_left_out_and_counted() -> None:
    x, y, z = points(9, 30, 0.5)
    holed, missing = x.copy(), y.copy()
    holed[3], missing[7] = math.nan, math.nan
    with pytest.warns(UserWarning, match="2 of 30 points"):
        found = score(holed, missing, z)
    keep = np.delete(np.arange(30), [3, 7])
    assert found.dropped == 2
    assert found.rho == score(x[keep], y[keep], z[keep]).rho
    assert found.ci == score(x[keep], y[keep], z[keep]).ci


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": [1.0, 2, 3]}, "error must have 3 values, got 6"),
        ({"objective": [math.nan] * 3 + [1.0, 2, 3]}, "at least 4 points without NaN, got 3"),
        ({"objective": [[1.0] * 6]}, r"one axis, got the shape \(1, 6\)"),
        ({"size": None}, "needs size; give it, or adjust='none'"),
        ({"size": [10] * 6}, "size is 10 everywhere.*adjust='none'"),
        ({"size": [10, 20, 30, 0, 1, 2]}, "size must be positive, got 0"),
        ({"size": [10, 20, 30, math.nan, 1, 2]}, "size must be finite, got nan at position 3"),
        ({"groups": [0, 0, 0, 1, 1, 2]}, "groups must be at least 4 different ones, got 3"),
        ({"groups": [0]}, "groups must have 6 values, got 1"),
        ({"adjust": "rank"}, "adjust must be one of partial, stratified, none; got 'rank'"),
        ({"n_boot": 0}, "n_boot must be at least 1, got 0"),
    ],
)
def test_refuses(change: dict[str, Any], message: str) -> None:
    given = {
        "objective": [3.0, 1, 2, 5, 4, 6],
        "error": [1.0, 2, 3, 4, 5, 6],
        "size": [1, 1, 2, 2, 3, 3],
        **change,
    }
    with pytest.raises(ValueError, match=message):
        dcs(given.pop("objective"), given.pop("error"), given.pop("size"), **given)


def test_refuses_what_are_no_numbers() -> None:
    with pytest.raises(TypeError, match="objective must hold real numbers"):
        dcs(["a", "b", "c", "d"], [1.0, 2, 3, 4], adjust="none")  # type: ignore[list-item]
