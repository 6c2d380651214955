"""Groups of rows: a class is a segment of the rows sorted by class.

``segments`` is int64 (S + 1,): segment s holds the rows ``segments[s]`` to ``segments[s + 1]``, so
that operators over classes read contiguous memory and empty classes need no special case.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyddfast.ops import _checks


def class_segments(labels: Tensor, num_classes: int | None = None) -> tuple[Tensor, Tensor]:
    """Sort rows by class, and tell where each class begins.

    Args:
        labels: int64 (N,), classes from 0 up.
        num_classes: Number of classes S; default the highest label plus 1.

    Returns:
        ``(order, segments)`` on the labels' device: int64 (N,), the rows of class 0 in their order,
        then those of class 1 ...; and int64 (S + 1,), so that the rows of class s are
        ``order[segments[s] : segments[s + 1]]``.

    Raises:
        TypeError: ``labels`` is not an int64 tensor, or ``num_classes`` not an int.
        ValueError: ``labels`` is not one-dimensional, or a label is outside [0, S).

    Example:
        >>> order, segments = class_segments(torch.tensor([2, 0, 2, 0]))
        >>> order.tolist(), segments.tolist()
        ([1, 3, 0, 2], [0, 2, 2, 4])
    """
    _checks.tensor(labels, "labels")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, got {labels.dtype}")
    if labels.ndim != 1:
        raise ValueError(f"labels must have shape (N,), got {tuple(labels.shape)}")
    low, high = (int(v) for v in labels.aminmax()) if len(labels) else (0, -1)
    classes = high + 1 if num_classes is None else _checks.count(num_classes, "num_classes")
    if len(labels) and not 0 <= low <= high < classes:
        raise ValueError(f"labels must lie in [0, {classes}), got values from {low} to {high}")
    segments = labels.new_zeros(classes + 1)
    torch.cumsum(torch.bincount(labels, minlength=classes), 0, out=segments[1:])
    return labels.argsort(stable=True), segments


def offsets(segments: Any, rows: int, what: str) -> list[int]:
    """The offsets of `segments` over the `rows` rows of `what` as ints; None is one segment."""
    if segments is None:
        return [0, rows]
    _checks.tensor(segments, "segments")
    if segments.dtype != torch.int64:
        raise TypeError(f"segments must be int64, got {segments.dtype}")
    if segments.ndim != 1 or not len(segments):
        raise ValueError(f"segments must have shape (S + 1,), got {tuple(segments.shape)}")
    values: list[int] = segments.tolist()
    if values[0] != 0 or values[-1] != rows:
        raise ValueError(
            f"segments must begin at 0 and end at {rows}, the rows of {what}, "
            f"got {values[0]} and {values[-1]}"
        )
    for number, (start, stop) in enumerate(itertools.pairwise(values)):
        if start > stop:
            raise ValueError(f"segments must not fall, got {start} and {stop} at segment {number}")
    return values


def check_sizes(sizes: Sequence[int], needed: int, what: str) -> None:
    """Raise where a class has fewer than `needed` rows; `what` begins the sentence."""
    short = [(label, size) for label, size in enumerate(sizes) if size < needed]
    if short:
        shown = ", ".join(f"class {label} has {size}" for label, size in short[:5])
        more = f" and {len(short) - 5} more classes" if len(short) > 5 else ""
        raise ValueError(f"{what} is larger than a class: {shown}{more}")
