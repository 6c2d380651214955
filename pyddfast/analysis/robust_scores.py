"""DD-Ranking's scores of a distilled set: label-robust (LRS) and augmentation-robust (ARS).

They are meant to tell what the images are worth from what soft labels and augmentation are worth
(NUS-HPC-AI-Lab/DD-Ranking 0.2.0, ``metrics/hard_label.py``, ``soft_label.py``, ``aug_robust.py``).
With accuracies as fractions both lie in [0, 1].  0.2689 is, for LRS, as much above random images as
below the full data, and for ARS as good as random images.  The official code puts percentages into
the same formulas, so its values leave this range by orders of magnitude; they cannot be converted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pyddfast.analysis._inputs import Array, Values, vector
from pyddfast.analysis._student import mean_interval
from pyddfast.data import DistilledSet, ImageSource
from pyddfast.train import Recipe, Regime, train_student
from pyddfast.train.models import ModelSpec

__all__ = ["LEARNING_RATES", "RobustScore", "ars", "lrs", "searched_accuracies"]

# The protocol: rates that are tried, students a set, and epochs between two evaluations.
LEARNING_RATES = (0.001, 0.005, 0.01, 0.05, 0.1)
_EVALUATIONS_A_SET = 5
_TEST_INTERVAL = 20


@dataclass(frozen=True)
class RobustScore:
    """A score of several evaluations.

    Attributes:
        mean: In [0, 1].
        std: Sample standard deviation; NaN for one evaluation.
        ci: 95 % interval of the mean (Student's t); NaN for one evaluation.
        values: The score of each evaluation.
        parts: The differences of accuracies, in [-1, 1], that it is made of.
    """

    mean: float
    std: float
    ci: tuple[float, float]
    values: tuple[float, ...]
    parts: Mapping[str, tuple[float, ...]]


def lrs(
    full_hard: Values | float,
    synthetic_hard: Values | float,
    synthetic: Values | float,
    random: Values | float,
    *,
    weight: float = 0.5,
) -> RobustScore:
    """Label-robust score: near the full data with hard labels, and far above random images.

    With HLR = full_hard - synthetic_hard (what hard labels do not recover) and
    IOR = synthetic - random (the improvement over random images),
    LRS = (e^α - e^-1) / (e - e^-1) for α = weight · IOR - (1 - weight) · HLR.

    Args:
        full_hard: Test accuracies of students of the whole data set with hard labels, fractions;
            one for each evaluation, or one for all.
        synthetic_hard: Of the distilled set with hard labels.
        synthetic: Of the distilled set with its own labels; of a hard-label method the same again.
        random: Of as many random images, labelled as ``synthetic``.
        weight: Of the improvement over random.

    Returns:
        The score, with ``parts`` ``"hlr"`` and ``"ior"``.

    Raises:
        TypeError: Values are not numbers.
        ValueError: An accuracy is no fraction, lengths do not fit, or ``weight`` is not in [0, 1].
    """
    full, hard, own, other = _accuracies(
        full_hard=full_hard, synthetic_hard=synthetic_hard, synthetic=synthetic, random=random
    )
    _check_weight(weight)
    hlr, ior = full - hard, own - other
    return _score(weight * ior - (1 - weight) * hlr, {"hlr": hlr, "ior": ior})


def ars(
    synthetic_augmented: Values | float,
    random_augmented: Values | float,
    synthetic_plain: Values | float,
    random_plain: Values | float,
    *,
    weight: float = 0.5,
) -> RobustScore:
    """Augmentation-robust score: above random images with augmentation and without.

    ARS = (e^β - e^-1) / (e - e^-1) for β = weight · (improvement over random with augmentation)
    + (1 - weight) · (improvement without).

    Args:
        synthetic_augmented: Test accuracies of students of the distilled set with augmentation,
            fractions; one for each evaluation, or one for all.
        random_augmented: Of as many random images, likewise.
        synthetic_plain: Of the distilled set without augmentation.
        random_plain: Of the random images without augmentation.
        weight: Of the improvement with augmentation.

    Returns:
        The score, with ``parts`` ``"augmented"`` and ``"plain"``.

    Raises:
        TypeError: Values are not numbers.
        ValueError: An accuracy is no fraction, lengths do not fit, or ``weight`` is not in [0, 1].
    """
    own, other, own_plain, other_plain = _accuracies(
        synthetic_augmented=synthetic_augmented,
        random_augmented=random_augmented,
        synthetic_plain=synthetic_plain,
        random_plain=random_plain,
    )
    _check_weight(weight)
    augmented, plain = own - other, own_plain - other_plain
    parts = {"augmented": augmented, "plain": plain}
    return _score(weight * augmented + (1 - weight) * plain, parts)


def searched_accuracies(
    sets: DistilledSet | Sequence[DistilledSet],
    model: ModelSpec,
    *,
    test_set: ImageSource,
    recipe: Recipe,
    learning_rates: Sequence[float] = LEARNING_RATES,
    seeds: Sequence[int] = tuple(range(_EVALUATIONS_A_SET)),
    out: str | Path | None = None,
    **options: Any,
) -> tuple[float, ...]:
    """The accuracies that DD-Ranking's protocol asks for, one an evaluation.

    For every seed, students of all learning rates; the best accuracy of any of them, tested every
    20 epochs, counts (their class of hard-label methods tests every 10).  So both the rate and the
    epoch are chosen on the test set.  The protocol searches for random images and for hard labels
    always, for a set with its own labels where it has no learning rate of its own: then give
    ``learning_rates=(its own,)``.

    Args:
        sets: The set, or one for each seed (random images are drawn anew for each evaluation).
        model: Of the students.
        test_set: As for :func:`pyddfast.train.train_student`.
        recipe: How they are trained; its regime says which labels.
        learning_rates: What is tried.
        seeds: One evaluation each.
        out: Run folder; students that are done are not trained again.
        **options: Further ones of ``train_student``, such as ``teacher``.

    Returns:
        Fractions, in the order of the seeds.

    Raises:
        ValueError: There is no learning rate or seed, a seed twice, ``sets`` are not as many as
            seeds, or as ``train_student``.
    """
    if not learning_rates or not seeds:
        raise ValueError("learning_rates and seeds must not be empty")
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must be different, got {list(seeds)}")
    several = [sets] * len(seeds) if isinstance(sets, DistilledSet) else list(sets)
    if len(several) != len(seeds):
        raise ValueError(f"sets must be one, or one a seed: got {len(several)}, {len(seeds)} seeds")
    regime: Regime = recipe.regime
    best = []
    for seed, made in zip(seeds, several, strict=True):
        tried = [
            train_student(
                made,
                regime,
                model,
                test_set=test_set,
                recipe=replace(recipe, lr=rate),
                seeds=(seed,),
                evaluations=max(1, recipe.epochs // _TEST_INTERVAL),
                out=None if out is None else Path(out) / f"seed{seed}-lr{rate:g}",
                **options,
            )
            for rate in learning_rates
        ]
        best.append(max(found.best_mean for found in tried))
    return tuple(best)


def _accuracies(**given: Values | float) -> list[Array]:
    """Vectors of one length; a single value stands for every evaluation."""
    arrays = {
        name: vector(name, [values] if np.ndim(values) == 0 else values)  # type: ignore[arg-type, list-item]
        for name, values in given.items()
    }
    count = max(len(array) for array in arrays.values())
    for name, array in arrays.items():
        if len(array) not in (1, count) or not len(array):
            raise ValueError(f"{name} must have 1 or {count} values, got {len(array)}")
        if array.min() < 0 or array.max() > 1:
            bad = array[(array < 0) | (array > 1)][0]
            raise ValueError(
                f"{name} must be fractions in [0, 1], got {bad:g}; divide percentages by 100"
            )
    return [np.broadcast_to(array, count) for array in arrays.values()]


def _check_weight(weight: float) -> None:
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be in [0, 1], got {weight}")


def _score(exponent: Array, parts: Mapping[str, Array]) -> RobustScore:
    lowest = math.exp(-1)
    values = (np.exp(exponent) - lowest) / (math.e - lowest)
    return RobustScore(
        mean=float(values.mean()),
        std=float(values.std(ddof=1)) if len(values) > 1 else math.nan,
        ci=mean_interval(values),
        values=tuple(values.tolist()),
        parts={name: tuple(part.tolist()) for name, part in parts.items()},
    )
