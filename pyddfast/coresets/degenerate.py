"""Degenerate subsets: samples repeated, to tell what an objective makes of them (DCS)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pyddfast.coresets.selection import Selection

__all__ = ["repeated"]


def repeated(
    selection: Selection, labels: Tensor, *, times: int = 2, keep_size: bool = False
) -> Selection:
    """A subset whose every element occurs ``times`` times, copies side by side.

    The paper's adversarial subsets of §7.2 repeat every element twice; whether they have twice the
    size or half the elements it does not say.

    Args:
        selection: The subset.
        labels: int64 (N,), of the data set.
        times: Number of copies.
        keep_size: Keep the number of images of each class, with the first 1/``times`` of its picks;
            False: keep the picks, and ``times`` as many images.

    Returns:
        Positions with repetitions; ``meta["repeated"]`` says how.

    Raises:
        ValueError: ``times`` is below 1, or with ``keep_size`` a class's picks do not divide by it
            or have no order; or ``labels`` are of another data set.
    """
    if times < 1:
        raise ValueError(f"times must be at least 1, got {times}")
    rows = torch.arange(len(selection))
    if len(rows) and int(selection.indices.max()) >= len(labels):
        raise ValueError(
            f"labels are of {len(labels)} samples, the selection has sample "
            f"{int(selection.indices.max())}"
        )
    if keep_size:
        if selection.order != "ranked":
            raise ValueError("keep_size takes the first picks of a class, and these have no order")
        classes = labels[selection.indices]
        kept = []
        for label in sorted(set(classes.tolist())):
            own = (classes == label).nonzero()[:, 0]
            if len(own) % times:
                raise ValueError(
                    f"class {label} has {len(own)} picks, which does not divide by times = {times}"
                )
            kept.append(own[: len(own) // times])
        rows = torch.cat(kept) if kept else rows
    rows = rows.repeat_interleave(times)
    return replace(
        selection,
        indices=selection.indices[rows],
        weights=None if selection.weights is None else selection.weights[rows],
        scores=None if selection.scores is None else selection.scores[rows],
        meta={**selection.meta, "repeated": {"times": times, "keep_size": keep_size}},
    )
