"""Picks by score against Python's sort and loops over classes and bins."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from pyddfast import ops
from pyddfast.random import Purpose, uniform

GEN = torch.Generator().manual_seed(5)
N, CLASSES = 400, 6
LABELS = torch.randint(0, CLASSES, (N,), generator=GEN)
LABELS[LABELS == 4] = 5  # class 4 is empty
# Sixteen levels, so that ties are everywhere.
TIED = torch.randint(0, 16, (N,), generator=GEN).double()
SCORES = torch.randn(N, generator=GEN, dtype=torch.float64)


def members(label: int) -> list[int]:
    return [i for i in range(N) if LABELS[i] == label]


def ranked(scores: Tensor, label: int, largest: bool = True) -> list[int]:
    sign = -1 if largest else 1
    return sorted(members(label), key=lambda i: (sign * float(scores[i]), i))


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_topk_is_pythons_stable_sort_of_each_class(largest: bool, dtype: torch.dtype) -> None:
    scores = TIED.to(dtype)
    want = [i for c in range(CLASSES) for i in ranked(TIED, c, largest)]
    got = ops.segmented_topk(scores, LABELS, fraction=1.0, largest=largest, num_classes=CLASSES)
    assert got.tolist() == want
    # The same classes as contiguous rows.
    order, segments = ops.class_segments(LABELS, CLASSES)
    sorted_ = ops.segmented_topk(scores[order], segments=segments, fraction=1.0, largest=largest)
    assert order[sorted_].tolist() == want
    some = ops.segmented_topk(scores, LABELS, fraction=0.37, largest=largest)
    want = [
        i for c in range(CLASSES)
        for i in ranked(TIED, c, largest)[: round(0.37 * len(members(c)))]
    ]  # fmt: skip
    assert some.tolist() == want


def test_topk_of_one_class_and_of_nothing() -> None:
    assert (
        ops.segmented_topk(TIED, k=9).tolist() == sorted(range(N), key=lambda i: (-TIED[i], i))[:9]
    )
    assert ops.segmented_topk(TIED, LABELS, num_classes=CLASSES, k=0).tolist() == []
    assert ops.segmented_topk(TIED[:0], LABELS[:0], num_classes=2, k=0).tolist() == []
    assert ops.segmented_topk(TIED[:0], LABELS[:0], fraction=0.5).tolist() == []
    infinite = torch.tensor([0.0, -math.inf, math.inf])
    assert ops.segmented_topk(infinite, k=3).tolist() == [2, 0, 1]
    # 2.5 and 3.5 round to even.
    labels = torch.tensor([0] * 5 + [1] * 7)
    picks = ops.segmented_topk(torch.arange(12.0), labels, fraction=0.5)
    assert picks.tolist() == [4, 3, 11, 10, 9, 8]


def test_a_thousand_classes_of_imagenets_size() -> None:
    # 1.28 million scores: against one class after the other, for a few of them.
    count = 1_281_167
    scores = torch.rand(count, generator=GEN)
    labels = torch.randint(0, 1000, (count,), generator=GEN)
    picks = ops.segmented_topk(scores, labels, k=50).view(1000, 50)
    for label in (0, 123, 999):
        rows = (labels == label).nonzero().squeeze(1)
        assert torch.equal(picks[label], rows[scores[rows].argsort(descending=True)[:50]])


@pytest.mark.parametrize("offset", [0.0, 0.3, 1.0])  # first, inner and last window
def test_window_by_share(offset: float) -> None:
    labels = LABELS.clamp(max=3)
    got = ops.segmented_window(SCORES, labels, k=5, offset=offset)
    want: list[int] = []
    for c in range(4):
        rows = sorted((i for i in range(N) if labels[i] == c), key=lambda i: -float(SCORES[i]))
        begin = math.floor(round(offset * (len(rows) - 5), 9))
        want += rows[begin : begin + 5]
    assert got.tolist() == want


def test_window_by_count() -> None:
    labels = LABELS.clamp(max=3)
    for largest in (True, False):
        got = ops.segmented_window(SCORES, labels, k=4, offset=7, unit="count", largest=largest)
        rows = ops.segmented_topk(SCORES, labels, k=11, largest=largest).view(4, 11)
        assert torch.equal(got.view(4, 4), rows[:, 7:])
    # A decimal share is that decimal: the product of floats is 902.99...
    scores = torch.arange(1300.0).flip(0)
    assert ops.segmented_window(scores, k=10, offset=0.7)[0] == 903
    # An empty class of which nothing is taken has no place for a window, and needs none.
    picks = ops.segmented_window(SCORES, LABELS, fraction=0.1, offset=3, unit="count")
    assert len(picks) == sum(round(0.1 * len(members(c))) for c in range(CLASSES))


def strata(scores: Tensor, rows: list[int], budget: int, bins: int, seed: int) -> list[int]:
    """One class, by a loop over its bins."""
    if not rows:
        return []
    low, high = float(scores[rows].min()), float(scores[rows].max())
    width = (high - low) / bins or 1.0
    groups: list[list[int]] = [[] for _ in range(bins)]
    for row in sorted(rows):
        groups[min(int((float(scores[row]) - low) / width), bins - 1)].append(row)
    draw = {row: float(uniform(seed, Purpose.SELECTION, row, lanes=1)) for row in rows}
    picks: list[int] = []
    left = bins
    for group in sorted(groups, key=len):
        share = min(len(group), (budget - len(picks)) // left)
        picks += sorted(group, key=lambda row: draw[row])[:share]
        left -= 1
    return picks


@pytest.mark.parametrize("bins", [1, 7, 50])  # a plain draw; some; the paper's, many empty
def test_strata_of_each_class(bins: int) -> None:
    got = ops.stratified(SCORES, LABELS, fraction=0.4, bins=bins, seed=3)
    want: list[int] = []
    for c in range(CLASSES):
        rows = members(c)
        want += strata(SCORES, rows, round(0.4 * len(rows)), bins, 3)
    assert got.tolist() == want
    other = ops.stratified(SCORES, LABELS, fraction=0.4, bins=bins, seed=4)
    assert other.tolist() != want


def test_strata_over_all_classes() -> None:
    got = ops.stratified(SCORES, k=120, seed=1)
    assert got.tolist() == strata(SCORES, list(range(N)), 120, 50, 1)
    assert len(set(got.tolist())) == 120
    # Rows of a class as a segment of its own give the class's picks, with their own draws.
    whole = ops.stratified(SCORES, segments=torch.tensor([0, 150, N]), k=40, seed=1)
    assert whole[:40].tolist() == strata(SCORES, list(range(150)), 40, 50, 1)
    assert whole[40:].tolist() == strata(SCORES, list(range(150, N)), 40, 50, 1)


def test_strata_drop_the_samples_that_look_mislabelled() -> None:
    margin = torch.randn(N, generator=torch.Generator().manual_seed(8))
    lowest = margin.argsort()[: int(0.3 * N)].tolist()
    kept = sorted(set(range(N)) - set(lowest))
    got = ops.stratified(SCORES, k=100, mis_scores=margin, mis_ratio=0.3, seed=2)
    assert got.tolist() == strata(SCORES, kept, 100, 50, 2)
    # Of each class its own share, rounded down; the budget is of what was there before.
    got = ops.stratified(SCORES, LABELS, fraction=0.5, mis_scores=margin, mis_ratio=0.3, seed=2)
    want: list[int] = []
    for c in range(CLASSES):
        rows = members(c)
        left = ranked(margin, c, largest=False)[int(0.3 * len(rows)) :]
        want += strata(SCORES, left, round(0.5 * len(rows)), 50, 2)
    assert got.tolist() == want


def test_beta_draws_by_its_weights() -> None:
    rest = torch.tensor([0.9, 0.7, 0.5, 0.3, 0.1], dtype=torch.float64)
    score = torch.tensor([0.2, 0.5, 0.4, 0.1, 0.0], dtype=torch.float64)
    # Fewer than ten: the anchor is the mean of all; r is 1 - 2/5, and c_d = 1.
    b = 15 * 0.5 * (1 - 0.6)
    weight = torch.distributions.Beta(15 - b, b).log_prob(1 - rest).exp() * score
    weight = weight / weight.sum()
    pairs: Counter[tuple[int, ...]] = Counter()
    for seed in range(2000):
        picks = ops.beta_sample(score, rest, k=2, c_d=1, seed=seed).tolist()
        pairs[tuple(picks)] += 1
    for (first, second), hits in pairs.items():
        # Without replacement: the second by the weights of the others.
        want = weight[first] * weight[second] / (1 - weight[first])
        assert abs(hits / 2000 - float(want)) < 0.034  # three standard errors at most
    assert all(4 not in pair for pair in pairs)


def test_beta_of_each_class_and_its_parameters() -> None:
    rest = torch.rand(N, generator=GEN, dtype=torch.float64)
    score = torch.rand(N, generator=GEN, dtype=torch.float64)
    keys, (a, b) = ops.beta_keys(score, rest, pruned=0.8, c_total=16, seed=9)
    anchor = rest[score.argsort(descending=True)[:10]].mean()
    assert b == pytest.approx(15 * float(anchor) * (1 - 0.8**4))
    assert a == pytest.approx(16 - b)
    labels = LABELS.clamp(max=3)
    got = ops.beta_sample(score, rest, labels, k=6, pruned=0.8, c_total=16, seed=9)
    assert torch.equal(got, ops.segmented_topk(keys, labels, k=6))
    # The share that is pruned is what is not picked.
    some = ops.beta_sample(score, rest, fraction=0.25, seed=9)
    assert torch.equal(some, ops.beta_sample(score, rest, fraction=0.25, pruned=0.75, seed=9))
    # Samples of weight 0 come last.
    score[:3] = 0
    assert sorted(ops.beta_sample(score, rest, k=N)[-3:].tolist()) == [0, 1, 2]
    assert ops.beta_sample(score[:0], rest[:0], k=0).tolist() == []


V = torch.arange(4.0)
L = torch.tensor([0, 0, 0, 1])
BAD = torch.tensor([0.0, torch.nan, 0.0, 0.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.segmented_topk(V, L), "either k or fraction, got k=None"),
        (lambda: ops.segmented_topk(V, L, k=1, fraction=0.5), "either k or fraction"),
        (lambda: ops.segmented_topk(V, L, k=2), "k = 2 is larger than a class: class 1 has 1"),
        (lambda: ops.segmented_topk(V, L, k=1, num_classes=3), "class 2 has 0"),
        (lambda: ops.segmented_topk(V, L, k=-1), "k must not be negative"),
        (lambda: ops.segmented_topk(V, L, fraction=1.5), r"fraction must lie in \[0, 1\]"),
        (lambda: ops.segmented_topk(BAD, L, k=1), "scores must not hold NaN; sample 1"),
        (lambda: ops.segmented_topk(V[:3], L, k=1), r"labels must have shape \(3,\)"),
        (lambda: ops.segmented_topk(V[None], L, k=1), r"scores must have shape \(N,\)"),
        (lambda: ops.segmented_topk(V, L, segments=L, k=1), "either labels or segments"),
        (lambda: ops.segmented_topk(V, k=1, num_classes=2), "num_classes = 2 needs labels"),
        (lambda: ops.segmented_window(V, L, k=1, offset=1.5), r"offset must lie in \[0, 1\]"),
        (lambda: ops.segmented_window(V, L, k=1, offset=1, unit="count"), "class 1 has 0"),
        (lambda: ops.segmented_window(V, L, k=1, unit="share"), "unit is 'share'"),
        (lambda: ops.stratified(V, L, k=1, bins=0), "bins must be at least 1"),
        (lambda: ops.stratified(V / 0, L, k=1), "NaN"),
        (lambda: ops.stratified((V + 1) / 0, L, k=1), "finite to be cut into bins"),
        (lambda: ops.stratified(V, L, k=1, mis_ratio=0.2), "needs mis_scores"),
        (lambda: ops.stratified(V, k=1, mis_ratio=1.0, mis_scores=V), r"\[0, 1\)"),
        (lambda: ops.stratified(V, k=1, mis_ratio=0.5, mis_scores=V[:2]), "mis_scores must have"),
        (
            lambda: ops.stratified(V, k=3, mis_ratio=0.5, mis_scores=V),
            "class 0 has 2 samples left after mis_ratio = 0.5, fewer than the 3 to pick",
        ),
        (lambda: ops.beta_sample(V, V / 9, k=2, c_total=14), "c_total must be 15"),
        (lambda: ops.beta_sample(V, V, k=2), r"one_minus_p must lie in \[0, 1\].* to 3"),
        (lambda: ops.beta_sample(-V, V / 9, k=2), "scores must not be negative"),
        (lambda: ops.beta_sample(V, V[:2], k=2), "one_minus_p has shape"),
        (lambda: ops.beta_sample(V, V / 9, k=2, pruned=1.5), "pruned must lie"),
        (lambda: ops.beta_sample(V, V / 9, k=2, pruned=0.0, c_d=-2.0), r"c_d is -2\.0; it must be"),
        (lambda: ops.beta_sample(V, V / 9, k=2, c_d=math.nan), "c_d is nan"),
        (lambda: ops.beta_sample((V + 1) / 0, V / 9, k=2), "scores must be finite"),
        (lambda: ops.stratified(V, L, k=1, bins=10**12), "10{12} bins for each of 2 classes needs"),
    ],
)  # fmt: skip
def test_ranking_refuses(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_ranking_refuses_types() -> None:
    with pytest.raises(TypeError, match="scores has dtype"):
        ops.segmented_topk(L, k=1)
    with pytest.raises(TypeError, match="labels must be int64"):
        ops.segmented_topk(V, L.int(), k=1)
    with pytest.raises(TypeError, match=r"k must be an int, got 1\.5"):
        ops.segmented_topk(V, L, k=1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"offset must be an int, got 0\.5"):
        ops.segmented_window(V, k=1, offset=0.5, unit="count")


def test_strata_of_the_largest_range() -> None:
    most = torch.finfo(torch.float64).max
    scores = most * torch.tensor([-1.0, -0.9, 0.9, 1.0], dtype=torch.float64)
    for seed in range(4):  # of two bins one each
        picked = ops.stratified(scores, k=2, bins=2, seed=seed)
        assert sorted((picked // 2).tolist()) == [0, 1]
