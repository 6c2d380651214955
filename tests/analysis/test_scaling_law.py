"""The scaling law against curves of known parameters."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from scipy import optimize

from pyddfast.analysis import ScalingLaw, fit_scaling_law, scaling_law_difference

EPOCHS = [1, 2, 4, 6, 8, 10, 15, 20, 30, 50]
# The paper's HL values, random and EL2N-Easy at IPC 100 of ImageNet-1K; a and d are not published.
RANDOM, EASY = (3.0, -0.1859, 5.2632, 0.1), (3.0, -0.1558, 1.9474, 0.1)
SAMPLES = 1e5


def law(parameters: tuple[float, float, float, float], epochs: list[int] = EPOCHS) -> np.ndarray:
    """Eqs. 7 and 8 as they are written."""
    a, b, tau, d = parameters
    errors = []
    for k in epochs:
        product = SAMPLES**b
        for j in range(2, k + 1):
            b_j = b * (1 / 2) ** ((j - 1) / tau)
            product *= ((j * SAMPLES) / ((j - 1) * SAMPLES)) ** b_j
        errors.append(a * product + d)
    return np.array(errors)


def _at(epochs: list[int], a: float, b: float, tau: float, d: float, samples: float) -> np.ndarray:
    x = [
        sum(0.5 ** ((j - 1) / tau) * math.log(j / (j - 1)) for j in range(2, k + 1)) for k in epochs
    ]
    return np.asarray(a * np.exp(b * (math.log(samples) + np.array(x))) + d)


def noisy(parameters: tuple[float, float, float, float], seed: int, sd: float) -> np.ndarray:
    return law(parameters) + sd * np.random.default_rng(seed).standard_normal(len(EPOCHS))


def fit(error: Any, **options: Any) -> Any:
    return fit_scaling_law(EPOCHS, error, SAMPLES, **{"n_boot": 20, **options})


def values(found: ScalingLaw) -> tuple[float, float, float, float]:
    return found.a, found.b, found.tau, found.d


@pytest.mark.parametrize("truth", [RANDOM, EASY, (5.0, -0.3, 9.0, 0.0), (1.2, -0.05, 2.8947, 0.05)])
@pytest.mark.parametrize("known", ["", "d", "a", "ad"])
def test_noiseless_parameters_come_back(
    truth: tuple[float, float, float, float], known: str
) -> None:
    fixed = {name: truth["ab?d".index(name)] for name in known}
    found = fit(law(truth), **fixed)
    assert values(found) == pytest.approx(truth, rel=1e-6, abs=1e-8)
    if truth[0] == 3 and known == "a":
        assert fit(law(truth), a=3).b == fit(law(truth), a=np.float32(3)).b == found.b
    assert found.delta == pytest.approx(2 ** (-1 / truth[2]))
    assert found.predict([1, 7, 200]) == pytest.approx(law(truth, [1, 7, 200]), rel=1e-8)
    assert found.predict(7).shape == ()
    assert found.ci_profile.keys() == found.ci.keys() == {"a", "b", "tau", "delta", "d"} - {*known}


def test_several_noiseless_curves_share_what_they_share() -> None:
    other = (3.0, -0.25, 3.0, 0.1)
    curves = {"random": law(RANDOM), "easy": law(EASY), "other": law(other)}
    found = fit(curves, a="shared", d="shared")
    for name, truth in (("random", RANDOM), ("easy", EASY), ("other", other)):
        assert values(found[name]) == pytest.approx(truth, rel=1e-6)
    # Of its own data each: other epochs, other sizes.
    mixed = fit_scaling_law(
        {"random": EPOCHS, "easy": EPOCHS[:7]},
        {"random": law(RANDOM), "easy": law(EASY)[:7]},
        {"random": SAMPLES, "easy": SAMPLES},
        d="shared",
        n_boot=5,
    )
    assert values(mixed["easy"]) == pytest.approx(EASY, rel=1e-5)


def test_noisy_fit_is_the_least_squares_of_another_solver() -> None:
    y = noisy(RANDOM, 0, 0.003)

    def model(epochs: np.ndarray, a: float, b: float, tau: float) -> np.ndarray:
        return law((a, b, tau, 0.1), epochs.astype(int).tolist())

    theirs, covariance = optimize.curve_fit(model, EPOCHS, y, [2.0, -0.1, 4.0])
    found = fit(y, d=0.1, n_boot=4000)
    assert values(found)[:3] == pytest.approx(theirs, rel=1e-4)
    rss = ((model(np.array(EPOCHS), *theirs) - y) ** 2).sum()
    assert found.residual == pytest.approx(math.sqrt(rss / 7), rel=1e-6)
    # Near the minimum both intervals are Student's: t(7) = 2.365 standard errors on either side.
    for name, row in (("b", 1), ("tau", 2)):
        width = 2 * 2.3646 * math.sqrt(covariance[row, row])
        for low, high in (found.ci[name], found.ci_profile[name]):
            assert high - low == pytest.approx(width, rel=0.1)
            assert low < theirs[row] < high


@pytest.mark.parametrize("b_tau", [(-0.096, 5.1), (-0.095, 6.0)])
def test_no_half_life_stays_at_the_end_of_its_range(b_tau: tuple[float, float]) -> None:
    # With a and d fixed, a search from the best point of a grid once ended there.
    epochs = [1, 2, 3, 4, 5, 6, 10]
    b, tau = b_tau
    found = fit_scaling_law(
        epochs, _at(epochs, 0.62, b, tau, 0.37, 100.0), 100.0, a=0.62, d=0.37, n_boot=1
    )
    assert (found.b, found.tau) == pytest.approx(b_tau, rel=1e-6)


def test_profile_ends_lie_at_the_limit_of_the_f_test() -> None:
    y = noisy(RANDOM, 1, 0.003)
    found = fit(y, d=0.1)
    for end in found.ci_profile["tau"]:

        def left(p: np.ndarray, tau: float = end) -> np.ndarray:
            return law((math.exp(p[0]), p[1], tau, 0.1)) - y

        squares = 2 * optimize.least_squares(left, [1.0, -0.18], xtol=1e-14, ftol=1e-14).cost
        limit = 7 * found.residual**2 * (1 + 2.3646**2 / 7)
        assert squares == pytest.approx(limit, rel=1e-4)


@pytest.mark.filterwarnings("ignore:the curve hardly determines")
def test_true_parameters_lie_in_the_intervals_as_often_as_stated() -> None:
    simulations, hits = 100, dict.fromkeys(("b", "tau", "boot b", "boot tau"), 0)
    for seed in range(simulations):
        found = fit(noisy(RANDOM, seed, 0.003), d=0.1, n_boot=300)
        for name, truth in (("b", RANDOM[1]), ("tau", RANDOM[2])):
            hits[name] += found.ci_profile[name][0] <= truth <= found.ci_profile[name][1]
            hits[f"boot {name}"] += found.ci[name][0] <= truth <= found.ci[name][1]
    slack = 3.3 * math.sqrt(0.95 * 0.05 / simulations)  # 99.9 % of such tests pass
    assert all(abs(count / simulations - 0.95) < slack for count in hits.values()), hits


def test_difference_of_two_laws_tells_equal_from_unequal() -> None:
    curves = {
        "random": noisy(RANDOM, 0, 0.001),
        "again": noisy(RANDOM, 1, 0.001),
        "easy": noisy(EASY, 2, 0.001),
    }
    found = fit(curves, d=0.1, a=3.0, n_boot=300)
    for name, truth in (("b", RANDOM[1] - EASY[1]), ("tau", RANDOM[2] - EASY[2])):
        value, (low, high) = scaling_law_difference(found["random"], found["easy"])[name]
        assert low < truth < high
        assert low < value < high
        assert low * high > 0  # they differ
        value, (low, high) = scaling_law_difference(found["random"], found["again"])[name]
        assert low < 0 < high
    both = (found["random"], found["again"])
    gap = found["random"].draws[:, 1] - found["again"].draws[:, 1]
    _, ends = scaling_law_difference(*both, level=0.975)["b"]
    assert ends == pytest.approx(np.quantile(gap, [0.0125, 0.9875]))
    with pytest.raises(ValueError, match=r"level must lie in \(0, 1\), got 95"):
        scaling_law_difference(*both, level=95)
    # Laws of two fits are independent: variances add, though equal seeds drew equal noise.
    alone = [fit(curves[name], d=0.1, a=3.0, n_boot=2000) for name in ("random", "again")]
    _, (low, high) = scaling_law_difference(*alone)["b"]
    widths = [one.ci["b"][1] - one.ci["b"][0] for one in alone]
    assert high - low == pytest.approx(math.hypot(*widths), rel=0.1)
    with pytest.raises(ValueError, match="same n_boot, got 300 and 2000"):
        scaling_law_difference(found["random"], alone[1])


def test_inside_an_epoch_the_utility_is_that_of_the_epoch() -> None:
    a, b, tau, d = RANDOM
    found = fit(law(RANDOM))
    after_two = law(RANDOM, [2])[0] - d
    inside = after_two * (2.5 / 2) ** (b * 0.5 ** (2 / tau)) + d
    assert float(found.predict(2.5)) == pytest.approx(inside, rel=1e-8)
    assert float(found.predict(0.5)) == pytest.approx(a * (SAMPLES / 2) ** b + d, rel=1e-8)
    # A curve measured inside epochs gives the law back.
    epochs = [0.5, 1.25, 2.5, 5, 7.75, 12.5, 30]
    again = fit_scaling_law(epochs, found.predict(epochs), SAMPLES, n_boot=5)
    assert values(again) == pytest.approx(RANDOM, rel=1e-5)


@pytest.mark.filterwarnings("ignore:the curve hardly determines")
def test_prediction_interval_covers_the_law() -> None:
    found = fit(noisy(RANDOM, 3, 0.003), d=0.1, n_boot=300)
    low, high = found.predict_interval([20, 200])
    truth = law(RANDOM, [20, 200])
    assert (low < truth).all()
    assert (truth < high).all()
    assert high[1] - low[1] > high[0] - low[0]  # less is known beyond the data


def test_what_a_curve_does_not_determine_is_warned_about() -> None:
    with pytest.warns(UserWarning, match=r"hardly determines b = .*, tau = .*, d = .*fix or share"):
        low, high = fit(noisy(RANDOM, 0, 0.003)).ci_profile["b"]
    assert low / high > 2  # as the page says
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit(noisy(RANDOM, 0, 0.003), d=0.1).undetermined == ()
    # A power law alone: its τ, the end of the range, is no estimate, however narrow its interval.
    epochs = np.array([1, 2, 4, 8, 16, 32, 64])
    with pytest.warns(UserWarning, match="hardly determines tau = 640 "):
        found = fit_scaling_law(epochs, 0.1 + 0.5 * epochs**-0.3, 1000.0, d=0.1)
    assert found.undetermined == ("tau",)


@pytest.mark.filterwarnings("ignore:the curve hardly determines")
def test_grid_is_the_best_of_every_point() -> None:
    # A pool of the size that the published grid is for.
    b, a, tau = np.linspace(-0.005, -0.5, 100)[36], np.linspace(1e-4, 0.02, 100)[60], 5.2631578947
    epochs, pool = [2, 4, 6, 8, 10], 12.8e6
    y = []
    for k in epochs:
        product = (a * pool / 1e5) ** b
        for j in range(2, k + 1):
            product *= (j / (j - 1)) ** (b * 0.5 ** ((j - 1) / tau))
        y.append(product + 0.1)
    found = fit_scaling_law(epochs, y, pool, method="grid", n_boot=3)
    assert (found.b, found.tau, found.d) == pytest.approx((b, tau, 0.1))
    assert found.a == pytest.approx((a / 1e5) ** b)
    assert found.predict(epochs) == pytest.approx(y)
    shaken = np.add(y, [0.004, -0.003, 0.002, -0.001, 0.003])
    found = fit_scaling_law(epochs, shaken, pool, method="grid", a=found.a, d=0.1, n_boot=50)
    best = math.inf
    for each_b in np.linspace(-0.005, -0.5, 100):
        for each_tau in np.linspace(1, 10, 20):
            x = np.cumsum(
                [math.log(j / (j - 1)) * 0.5 ** ((j - 1) / each_tau) for j in range(2, 11)]
            )
            tried = found.a * np.exp(each_b * (math.log(pool) + x[[0, 2, 4, 6, 8]])) + 0.1
            if (squares := ((tried - shaken) ** 2).sum()) < best:
                best, where = squares, (each_b, each_tau)
    assert (found.b, found.tau) == pytest.approx(where)
    assert found.residual == pytest.approx(math.sqrt(best / 3))
    with pytest.warns(UserWarning, match="at the edge of the published grid of"):
        fit(law(RANDOM), method="grid", n_boot=1)


def test_published_values_are_half_lives_of_a_grid() -> None:
    grid = np.linspace(1, 10, 20)
    for value, delta in ((2.8947, 0.787), (5.2632, 0.877), (1.9474, 0.701)):
        assert np.abs(grid - value).min() < 5e-5
        assert 2 ** (-1 / value) == pytest.approx(delta, abs=5e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"error": [0.5, 0.5, 0.6]}, "error must fall: it is 0.5 at epoch 1 and 0.6 at epoch 4"),
        ({"error": [50.0, 40, 30]}, r"fractions in \(0, 1\], got 30 to 50"),
        ({"error": [0.5, 0.4]}, "error must have 3 values, got 2"),
        ({"error": [0.5, math.nan, 0.3]}, "error must be finite, got nan at position 1"),
        ({}, "3 points cannot tell 4 free parameters"),
        ({"epochs": [1, 4, 2]}, r"epochs must rise, got \[1.0, 4.0, 2.0\]"),
        ({"epochs": [0, 1, 2]}, "epochs must be positive and at most 10000, got"),
        ({"samples_per_epoch": 0}, "samples_per_epoch must be positive, got 0"),
        ({"d": 0.3}, r"d must be in \[0, 0.3\), below the smallest error, got 0.3"),
        ({"a": -1.0}, "a must be positive, got -1"),
        ({"a": "free"}, "a must be a number, 'shared' or None, got 'free'"),
        ({"d": "shared"}, "'shared' is for several curves.*one curve"),
        ({"method": "newton"}, "method must be one of varpro, grid; got 'newton'"),
        ({"n_boot": 0}, "n_boot must be at least 1"),
        ({"error": {}}, "error holds no curve"),
        ({"error": {"x": [0.5, 0.4, 0.5]}}, "error of x must fall"),
        ({"error": {"x": [0.5, 0.4, 0.3]}, "epochs": {"y": [1]}}, "epochs has no 'x', only y"),
    ],
)
def test_refuses(change: dict[str, Any], message: str) -> None:
    given = {"epochs": [1, 2, 4], "error": [0.5, 0.4, 0.3], "samples_per_epoch": 1000, **change}
    with pytest.raises(ValueError, match=message):
        fit_scaling_law(**given)


def test_a_curve_that_rises_in_between_is_fitted_without_numpys_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.simplefilter("ignore", UserWarning)  # it hardly determines its parameters
        law = fit_scaling_law(
            [1, 2, 4, 8, 16, 32], [0.6, 0.5, 0.55, 0.4, 0.45, 0.3], samples_per_epoch=1000
        )
    assert law.b < 0
    assert np.isfinite([law.a, law.tau, law.d]).all()
