"""Repeated subsets: which elements, how often, and of which size."""

from __future__ import annotations

import pytest
import torch

from pyddfast.coresets import Scores, repeated, select

LABELS = torch.tensor([0, 1] * 6)
PICKED = select(Scores(torch.arange(12.0), "toy", "hard"), LABELS, ipc=4)  # 10 8 6 4 11 9 7 5


def test_every_element_twice() -> None:
    twice = repeated(PICKED, LABELS)
    assert twice.indices.tolist() == [i for i in PICKED.indices.tolist() for _ in range(2)]
    assert twice.scores is not None
    assert twice.scores.tolist() == twice.indices.tolist()
    assert twice.meta["repeated"] == {"times": 2, "keep_size": False}
    assert twice.meta["method"] == "toy-topk"


def test_the_same_size_of_half_the_elements() -> None:
    same = repeated(PICKED, LABELS, keep_size=True)
    assert same.indices.tolist() == [10, 10, 8, 8, 11, 11, 9, 9]
    assert repeated(PICKED, LABELS, times=4, keep_size=True).indices.tolist() == [10] * 4 + [11] * 4
    assert repeated(PICKED, LABELS, times=1).indices.tolist() == PICKED.indices.tolist()


def test_refuses() -> None:
    with pytest.raises(ValueError, match="times must be at least 1, got 0"):
        repeated(PICKED, LABELS, times=0)
    with pytest.raises(ValueError, match="labels are of 2 samples, the selection has sample"):
        repeated(PICKED, LABELS[:2])
    with pytest.raises(ValueError, match="class 0 has 4 picks, which does not divide by times = 3"):
        repeated(PICKED, LABELS, times=3, keep_size=True)
    drawn = select(Scores(torch.arange(12.0), "toy", "hard"), LABELS, ipc=4, strategy="stratified")
    with pytest.raises(ValueError, match="have no order"):
        repeated(drawn, LABELS, keep_size=True)
