"""Forgetting events (Toneva et al., ICLR 2019): how often a learned sample is lost again."""

from __future__ import annotations

from typing import Any

from pyddfast.coresets.dynamics import NeverLearned
from pyddfast.coresets.recorded import dynamics_scores
from pyddfast.coresets.selection import Scores
from pyddfast.data import ImageDataset
from pyddfast.train.models import ModelSpec

__all__ = ["forgetting_scores"]


def forgetting_scores(
    dataset: ImageDataset,
    model: ModelSpec = "convnet-d3",
    *,
    epochs: int = 200,
    repeats: int = 5,
    never_learned: NeverLearned = "max",
    **run: Any,
) -> Scores:
    """Mean number of forgetting events over trainings; high is hard.

    Counted on the logits of the training steps, as in the paper, whose 200 epochs and 5 seeds are
    the defaults.

    Args:
        dataset: Training data, scored as well.
        model: As :func:`pyddfast.train.train_teacher` takes it.
        epochs: Passes over the data.
        repeats: Number of trainings.
        never_learned: As for :meth:`pyddfast.coresets.TrainingDynamics.values`.
        **run: ``recipe``, ``test_set``, ``seed``, ``device``, ``out`` and ``progress`` of
            :func:`pyddfast.coresets.dynamics_scores`.
    """
    return dynamics_scores(
        dataset,
        model,
        "forgetting",
        epochs=epochs,
        repeats=repeats,
        never_learned=never_learned,
        **run,
    )
