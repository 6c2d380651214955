"""DUAL: uncertain and hard samples, early in training.

"Lightweight Dataset Pruning without Full Training via Example Difficulty and Prediction
Uncertainty" (Cho et al., 2025).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyddfast import ops
from pyddfast.coresets.recorded import dynamics_scores
from pyddfast.coresets.selection import Scores
from pyddfast.data import ImageDataset
from pyddfast.train.models import ModelSpec

__all__ = ["beta_sampling", "dual_scores"]


def dual_scores(
    dataset: ImageDataset,
    model: ModelSpec = "convnet-d3",
    *,
    epochs: int = 30,
    window: int = 10,
    repeats: int = 1,
    **run: Any,
) -> Scores:
    """Mean over windows of std(p_y) · (1 − mean p_y); high is uncertain and hard.

    Taken from the training steps' own logits, over the paper's 30 epochs (60 on ImageNet-1k).

    Args:
        dataset: Training data, scored as well.
        model: As :func:`pyddfast.train.train_teacher` takes it.
        epochs: Passes over the data.
        window: J.
        repeats: Number of trainings.
        **run: ``recipe``, ``test_set``, ``seed``, ``device``, ``out`` and ``progress`` of
            :func:`pyddfast.coresets.dynamics_scores`.
    """
    return dynamics_scores(
        dataset, model, "dual", epochs=epochs, window=window, repeats=repeats, **run
    )


def beta_sampling(
    scores: Scores,
    one_minus_p: Tensor,
    *,
    pruned: float,
    c_d: float = 4.0,
    c_total: int = 15,
    seed: int = 0,
) -> Scores:
    """Random keys, so that the highest are DUAL's Beta sampling of that many samples.

    Sample i is drawn without replacement with a weight ∝ Beta(mean p; a, b) · score, where
    b = 15 (1 − m)(1 − r^c_d), m is the mean of "mean p" over the ten highest scores, r the pruned
    share, and a = c_total − b: at high r easier samples are taken.  A key is log weight plus a
    Gumbel draw keyed by the sample, so ``select(keys, labels, ...)`` of any budget is such a draw.

    At high r the density is infinite at p = 1, where the score vanishes: how far p is from 1
    decides their product, and a number p does not tell that.  So it is given as 1 − p.

    Args:
        scores: Of DUAL; not negative.
        one_minus_p: Floating point (N,), 1 − mean p: ``TrainingDynamics.values("one_minus_p")``.
        pruned: r, the share that is left out, in [0, 1].
        c_d: 4 in the paper for CIFAR, 11 for ImageNet-1k.
        c_total: 15 in the paper, 16 in its code.
        seed: Of the draw.

    Returns:
        float64 keys; −inf for samples of weight 0: of score 0, or whose p is exactly 0 or 1, so
        that it never moved.

    Raises:
        ValueError: A value is out of range, or the sizes differ.
    """
    keys, (a, b) = ops.beta_keys(
        scores.values.cpu(), one_minus_p.cpu(), pruned=pruned, c_d=c_d, c_total=c_total, seed=seed
    )
    return Scores(
        keys,
        f"{scores.name}-beta",
        "drawn",
        {
            **scores.meta,
            "pruned": pruned,
            "c_d": c_d,
            "c_total": c_total,
            "a": a,
            "b": b,
            "sampling_seed": seed,
        },
    )
