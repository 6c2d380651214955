"""Dyn-Unc (He et al., "Large-scale Dataset Pruning with Dynamic Uncertainty", 2023)."""

from __future__ import annotations

from typing import Any, Literal

from pyddfast.coresets.recorded import dynamics_scores
from pyddfast.coresets.selection import Scores
from pyddfast.data import ImageDataset
from pyddfast.train.models import ModelSpec

__all__ = ["dyn_unc_scores"]


def dyn_unc_scores(
    dataset: ImageDataset,
    model: ModelSpec = "convnet-d3",
    *,
    epochs: int = 60,
    window: int = 10,
    mode: Literal["train", "eval"] = "eval",
    drop_last: bool = True,
    repeats: int = 1,
    **run: Any,
) -> Scores:
    """Mean over windows of the standard deviation of p_y within the window; high is uncertain.

    The official code takes p_y from a second, un-augmented forward pass in evaluation mode inside
    each step; ``mode="eval"`` takes it from one such pass at the end of each epoch, and ``"train"``
    from the training steps themselves, at no cost.  Without the code's factor 10.

    Args:
        dataset: Training data, scored as well.
        model: As :func:`pyddfast.train.train_teacher` takes it.
        epochs: Passes over the data; 60 is what follow-up work uses on ImageNet-1k.
        window: J.
        mode: Which p_y.
        drop_last: Leave the window at the last epoch out, as formula and official code do.
        repeats: Number of trainings.
        **run: ``recipe``, ``test_set``, ``seed``, ``device``, ``out`` and ``progress`` of
            :func:`pyddfast.coresets.dynamics_scores`.
    """
    return dynamics_scores(
        dataset,
        model,
        "dyn_unc",
        epochs=epochs,
        window=window,
        mode=mode,
        drop_last=drop_last,
        repeats=repeats,
        **run,
    )
