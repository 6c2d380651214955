"""Random coresets: the baseline that every other selection has to beat."""

from __future__ import annotations

import torch

from pyddfast.coresets.selection import Scores
from pyddfast.random import Purpose, uniform

__all__ = ["random_scores"]


def random_scores(count: int, *, seed: int = 0) -> Scores:
    """Uniform scores, so that the highest of each class are a class-balanced random choice.

    A sample's score depends on the seed and its position only: the choice for a smaller budget is
    the beginning of the choice for a larger one.

    Args:
        count: Number of samples.
        seed: Seed of the choice, in [0, 2**64).

    Returns:
        float64 scores in [0, 1).

    Raises:
        ValueError: ``count`` is negative or the seed is out of range.
    """
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    values = uniform(seed, Purpose.SELECTION, torch.arange(count))
    return Scores(values=values, name="random", high_means="nothing", meta={"seed": seed})
