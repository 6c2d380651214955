"""The uncertainty of a table: against numpy and scipy, and by simulating tables without effects."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pyddfast.report import Difference, Result, compare, differences, percent, summary


def test_mean_spread_and_sampling_error() -> None:
    cell = Result("RDED", "HL", (0.7, 0.72, 0.68), 2000)
    assert cell.mean == pytest.approx(np.mean([0.7, 0.72, 0.68]))
    assert cell.std == pytest.approx(np.std([0.7, 0.72, 0.68], ddof=1))
    assert cell.sampling_error == pytest.approx(math.sqrt(0.7 * 0.3 / 2000))
    seeds = np.std([0.7, 0.72, 0.68], ddof=1) / math.sqrt(3)
    assert cell.standard_error == pytest.approx(math.hypot(seeds, math.sqrt(0.7 * 0.3 / 2000)))
    assert Result("RDED", "HL", (0.7,), 2000).std is None


def test_without_sampling_error_it_is_students_t_test() -> None:
    # Two cells of equal spread, so that own and pooled variance agree; endless test images.
    values = np.array([0.60, 0.62, 0.61, 0.65])
    first = Result("a", "HL", tuple(values + 0.031), 10**12)
    second = Result("b", "HL", tuple(values), 10**12)
    want = stats.ttest_ind(first.accuracies, second.accuracies)
    interval = want.confidence_interval(0.95)
    (got,) = compare([(second, first)])
    assert (got.first, got.second) == (first, second)
    assert got.value == pytest.approx(0.031)
    assert got.half_width == pytest.approx((interval.high - interval.low) / 2, rel=1e-4)
    assert got.distinguishable == (want.pvalue < 0.05)


def test_without_seed_spread_it_is_the_normal_test_of_two_proportions() -> None:
    first, second = Result("a", "HL", (0.75, 0.75), 2000), Result("b", "HL", (0.70, 0.70), 2000)
    (got,) = compare([(first, second)])
    error = math.sqrt((0.75 * 0.25 + 0.7 * 0.3) / 2000)
    assert got.half_width == pytest.approx(1.959964 * error, rel=1e-5)
    assert got.distinguishable


def test_a_cell_with_a_wide_spread_of_its_own_keeps_it() -> None:
    calm = [Result(name, "HL", (0.700, 0.702, 0.701), 10**9) for name in "abc"]
    wild = Result("d", "HL", (0.60, 0.80, 0.79), 10**9)
    judged = differences([*calm, wild])
    widths = {frozenset((d.first.method, d.second.method)): d.half_width for d in judged}
    assert widths[frozenset("ad")] > widths[frozenset("ab")]


def test_holm_names_more_than_bonferroni_and_stops_at_the_first_failure() -> None:
    # z = 5 and 2.1 of two comparisons: 2.1 passes at 5 % but not at 2.5 %.
    def pair(z: float, name: str) -> tuple[Result, Result]:
        error = math.sqrt(0.5 / 10**6)  # of a difference of two proportions near 1/2
        return (
            Result(name, "HL", (0.5 + z * error, 0.5 + z * error), 10**6),
            Result(name + "'", "HL", (0.5, 0.5), 10**6),
        )

    assert [d.distinguishable for d in compare([pair(5, "a"), pair(2.1, "b")])] == [True, True]
    assert [d.distinguishable for d in compare([pair(2.1, "a"), pair(2.0, "b")])] == [False, False]
    assert [d.distinguishable for d in compare([pair(2.1, "a")])] == [True]


def test_tables_without_effects_rarely_name_a_difference() -> None:
    generator = np.random.default_rng(5)
    named = 0
    for _ in range(300):
        # The test set is the same for all cells of a table: its error is common to all of them.
        common = generator.normal(0, math.sqrt(0.75 * 0.25 / 2000))
        cells = [
            Result(m, r, tuple(0.75 + common + generator.normal(0, 0.012, 3)), 2000)
            for m in "abc"
            for r in ("HL", "SL", "SL+KD")
        ]
        named += any(d.distinguishable for d in differences(cells))
    assert named / 300 < 0.05


def test_shared_test_images_are_compared_one_by_one() -> None:
    generator = np.random.default_rng(1)
    hard = generator.random(500)  # what is hard for one student is hard for the other

    def right(skill: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
        seeds = (skill + generator.normal(0, 0.05, (2, 500)) > hard).astype(float)
        return tuple(seeds.mean(1)), tuple(seeds.mean(0))

    cells = []
    for name, skill in (("a", 0.70), ("b", 0.74)):
        accuracies, per_image = right(skill)
        cells.append(Result(name, "HL", accuracies, 500, per_image))
    (got,) = compare([(cells[0], cells[1])])
    gaps = np.subtract(cells[1].per_image, cells[0].per_image)
    seeds = sum(np.var(c.accuracies, ddof=1) for c in cells) / 2  # pooled
    spread = sum(max(seeds, np.var(c.accuracies, ddof=1)) for c in cells) / 2
    total = spread + np.var(gaps) / 500
    want = stats.t.isf(0.025, 2 * (total / spread) ** 2) * math.sqrt(total)
    assert got.half_width == pytest.approx(want, rel=1e-6)
    apart = [Result(c.method, c.regime, c.accuracies, c.test_count) for c in cells]
    assert got.half_width < 0.7 * compare([(apart[0], apart[1])])[0].half_width


def test_per_image_must_belong_to_the_accuracies() -> None:
    with pytest.raises(ValueError, match="must have 4 values"):
        Result("a", "HL", (0.5,), 4, (1.0, 0.0))
    with pytest.raises(ValueError, match="mean"):
        Result("a", "HL", (0.5,), 4, (1.0, 1.0, 1.0, 0.0))
    with pytest.raises(ValueError, match="share their test set"):
        compare([(Result("a", "HL", (0.5,), 2, (1.0, 0.0)), Result("b", "HL", (0.0,), 1, (0.0,)))])


def test_percent_rounds_halves_up_and_does_not_see_binary_fractions() -> None:
    assert percent(0.6505) == "65.1"  # 65.05 is a little less in binary
    assert percent(0.6515) == "65.2"
    assert percent(1301 / 2000) == percent((0.65 + 0.65 + 0.6515) / 3) == "65.1"
    assert percent(0.650499999) == "65.0"
    assert percent(0.07185, 2) == "7.19"
    assert percent(1.0) == "100.0"


def test_a_difference_and_its_width_that_read_the_same_get_another_digit() -> None:
    first, second = Result("a", "HL", (0.8, 0.8), 100), Result("b", "HL", (0.7, 0.7), 100)
    for value, width, shown in ((0.0718, 0.0722, "7.18 points (± 7.22)"), (0.072, 0.05, "(± 5.0)")):
        (sentence,) = summary([Difference(first, second, value, width, True)])
        assert shown in sentence
    (sentence,) = summary([Difference(first, second, 0.0718, 0.0722, False)])
    assert sentence == "HL: a and b not distinguishable (7.18 ± 7.22)."


def test_summary_says_what_the_differences_say() -> None:
    cells = [
        Result("Random", "HL", (0.70, 0.71, 0.69), 2000),
        Result("RDED", "HL", (0.80, 0.81, 0.79), 2000),
        Result("Random", "SL", (0.70, 0.715, 0.69), 2000),
        Result("RDED", "SL", (0.71, 0.70, 0.70), 2000),
    ]
    judged = differences(cells)
    pairs = [(d.first.method, d.first.regime, d.second.method, d.second.regime) for d in judged]
    assert len(pairs) == 4
    hl, sl, random, rded = summary(judged)
    assert hl.startswith("HL: RDED above Random by 10.0 points (± ")
    assert sl.startswith("SL: RDED and Random not distinguishable (0.2 ± ")
    assert random.startswith("Random: SL and HL not distinguishable")
    assert rded.startswith("RDED: HL above SL by 9.7 points")
    brief = summary(judged, brief=True)
    assert brief == [
        hl,
        "SL: 1 pair not distinguishable.",
        "Random: 1 pair not distinguishable.",
        rded,
    ]


@pytest.mark.parametrize(("accuracies", "count"), [((), 10), ((1.2,), 10), ((0.5,), 0)])
def test_refuses(accuracies: tuple[float, ...], count: int) -> None:
    with pytest.raises(ValueError, match="must"):
        Result("a", "HL", accuracies, count)
