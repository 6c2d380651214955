"""EL2N-SL: EL2N against a teacher's soft labels ("Rethinking Dataset Distillation", §4).

A sample's score is E ‖softmax(f(x)/T) − softmax(teacher(x)/T)‖₂ / T over networks f: the gradient
norm of KL(teacher ‖ f) by the logits.  At T = 20 both distributions are nearly uniform, so the
difference is formed from logits, in wide precision.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyddfast.coresets.el2n import class_logits, mean_over_models, scoring_networks
from pyddfast.coresets.selection import Scores
from pyddfast.data import ImageDataset, ImageSource
from pyddfast.ops.scores import sample_scores
from pyddfast.train.models import ModelSpec
from pyddfast.train.recipes import Recipe

__all__ = ["el2n_sl_of_models", "el2n_sl_scores"]


def el2n_sl_of_models(
    dataset: ImageSource,
    models: Iterable[nn.Module],
    teacher: nn.Module,
    *,
    temperature: float = 20.0,
    device: torch.device | str | None = None,
    meta: dict[str, Any] | None = None,
) -> Scores:
    """EL2N-SL of networks against a teacher, averaged over the networks.

    Args:
        dataset: Images of one size; un-augmented, all networks in evaluation mode.
        models: One or more networks, taken one after the other.
        teacher: Gives the soft labels.
        temperature: T; 20 in the paper.
        device: Where to run; default where each network's parameters are.
        meta: For the record of the scores.

    Returns:
        float64 scores (N,); high is far from the teacher.

    Raises:
        ValueError: There is no network, or one gives another number of logits than classes.
    """
    labels, soft = dataset.labels.cpu(), class_logits(teacher, "the teacher", dataset, device)

    def score(logits: Tensor) -> Tensor:
        return sample_scores(logits, labels, temperature=temperature, teacher=soft).el2n_sl

    values, count = mean_over_models(dataset, models, score, device)
    return Scores(
        values=values,
        name="el2n-sl",
        high_means="far from the teacher",
        meta={"models": count, "mode": "eval", "temperature": temperature, **(meta or {})},
    )


def el2n_sl_scores(
    dataset: ImageDataset,
    teacher: nn.Module,
    model: ModelSpec = "convnet-d3",
    *,
    temperature: float = 20.0,
    repeats: int = 10,
    epochs: int = 20,
    recipe: Recipe | None = None,
    test_set: ImageSource | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> Scores:
    """Train ``repeats`` networks for a few epochs and average their EL2N-SL.

    The paper leaves open which networks score: these are the ones of
    :func:`pyddfast.coresets.el2n_scores`, so that the two scores differ in the labels only.

    Args:
        dataset: Training data, scored as well.
        teacher: Gives the soft labels.
        model: The scoring networks, as :func:`pyddfast.train.train_teacher` takes them.
        temperature: T; 20 in the paper.
        repeats: Number of networks.
        epochs: Passes over the data before the score is taken.
        recipe: How to train; its epochs are replaced by ``epochs``.
        test_set: For the networks' accuracy in the record; default ``dataset`` itself.
        seed: Seed of all networks.
        device: Default CUDA where there is one, else the CPU.
        out: Folder of the networks' runs; finished ones are not repeated.
        progress: Show it on stderr.

    Returns:
        float64 scores (N,).

    Raises:
        ValueError: As :func:`el2n_sl_of_models` and ``el2n_scores``.
    """
    networks, meta = scoring_networks(
        dataset,
        model,
        repeats=repeats,
        epochs=epochs,
        recipe=recipe,
        test_set=test_set,
        seed=seed,
        device=device,
        out=out,
        progress=progress,
    )
    scores = el2n_sl_of_models(dataset, networks, teacher, temperature=temperature)
    return replace(scores, meta={**scores.meta, **meta})
