"""Rows sorted by class, and the offsets of the classes."""

from __future__ import annotations

import pytest
import torch

from pyddfast import ops
from pyddfast.ops import _segments


def test_class_segments_are_the_rows_of_each_class_in_their_order() -> None:
    labels = torch.randint(0, 7, (500,), generator=torch.Generator().manual_seed(1))
    labels[labels == 3] = 4  # an empty class in the middle
    order, segments = ops.class_segments(labels, 9)  # and two at the end
    assert segments.shape == (10,)
    for label in range(9):
        rows = order[segments[label] : segments[label + 1]].tolist()
        assert rows == [i for i in range(500) if labels[i] == label]


def test_class_segments_of_nothing() -> None:
    order, segments = ops.class_segments(torch.zeros(0, dtype=torch.int64), 2)
    assert (order.tolist(), segments.tolist()) == ([], [0, 0, 0])
    assert ops.class_segments(torch.zeros(0, dtype=torch.int64))[1].tolist() == [0]


def test_class_segments_refuses() -> None:
    with pytest.raises(TypeError, match="labels must be int64"):
        ops.class_segments(torch.zeros(3))
    with pytest.raises(ValueError, match=r"labels must have shape \(N,\)"):
        ops.class_segments(torch.zeros(3, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\[0, 2\), got values from 0 to 2"):
        ops.class_segments(torch.tensor([0, 2]), 2)
    with pytest.raises(ValueError, match=r"from -1 to 1"):
        ops.class_segments(torch.tensor([-1, 1]))
    with pytest.raises(TypeError, match=r"num_classes must be an int"):
        ops.class_segments(torch.tensor([0]), 2.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([1, 4], "begin at 0"),
        ([0, 3], "end at 4, the rows of x"),
        ([0, 3, 2, 4], "got 3 and 2 at segment 1"),
        ([], "shape"),
        ([[0, 4]], "shape"),
    ],
)
def test_offsets_refuse(segments: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _segments.offsets(torch.tensor(segments, dtype=torch.int64), 4, "x")


def test_offsets_are_the_numbers() -> None:
    assert _segments.offsets(None, 4, "x") == [0, 4]
    assert _segments.offsets(torch.tensor([0, 0, 4]), 4, "x") == [0, 0, 4]
    with pytest.raises(TypeError, match="segments must be int64"):
        _segments.offsets(torch.tensor([0.0, 4.0]), 4, "x")
