"""Area under the margin (Pleiss et al., NeurIPS 2020): low for samples with a wrong label."""

from __future__ import annotations

from typing import Any

from pyddfast.coresets.recorded import dynamics_scores
from pyddfast.coresets.selection import Scores
from pyddfast.data import ImageDataset
from pyddfast.train.models import ModelSpec

__all__ = ["aum_scores"]


def aum_scores(
    dataset: ImageDataset,
    model: ModelSpec = "convnet-d3",
    *,
    epochs: int = 150,
    repeats: int = 1,
    **run: Any,
) -> Scores:
    """Mean over a training of the label's logit minus the largest other; high is easy.

    Of logits, as in the paper, where some codebases take probabilities.  Its 150 epochs, the part
    of a longer training before the learning rate falls, are the default; to train at a constant
    rate as there give ``recipe=teacher_recipe(epochs, schedule="constant")``.

    Args:
        dataset: Training data, scored as well.
        model: As :func:`pyddfast.train.train_teacher` takes it.
        epochs: Passes over the data.
        repeats: Number of trainings.
        **run: ``recipe``, ``test_set``, ``seed``, ``device``, ``out`` and ``progress`` of
            :func:`pyddfast.coresets.dynamics_scores`.
    """
    return dynamics_scores(dataset, model, "aum", epochs=epochs, repeats=repeats, **run)
