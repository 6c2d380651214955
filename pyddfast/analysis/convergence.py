"""How long a set goes on teaching: epochs until the error is near its plateau (§8.3, Figure 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pyddfast._warnings import warn_caller
from pyddfast.analysis._inputs import Array, Values, vector
from pyddfast.analysis._law_inputs import checked_epochs
from pyddfast.analysis._student import difference_interval, mean_interval

__all__ = ["Convergence", "convergence", "convergence_ratio"]


@dataclass(frozen=True)
class Convergence:
    """When students of a set are near their lowest error.

    Attributes:
        epochs: Epochs until the error is within ``within`` of the plateau, geometric mean over
            seeds.
        ci: 95 % interval over seeds (Student's t of the logarithms); NaN for one seed.
        per_seed: The epochs of each seed.
        plateau: Lowest error, mean over seeds.
        plateau_ci: Its 95 % interval over seeds.
        settled: Whether every seed was there by half of the longest training.  If not, the error
            may go on falling: the plateau is an upper, the epochs are a lower bound.
        within: As given.
    """

    epochs: float
    ci: tuple[float, float]
    per_seed: tuple[float, ...]
    plateau: float
    plateau_ci: tuple[float, float]
    settled: bool
    within: float


def convergence(
    epochs: Values, error: Values | Sequence[Values], *, within: float = 0.01
) -> Convergence:
    """Epochs until the error is within a point of its plateau.

    The plateau of a curve is its lowest error; between two measured epochs the error is taken to
    fall linearly with their logarithm.

    Args:
        epochs: (n,), positive and rising.
        error: (n,) or (seeds, n), test errors as fractions, of trainings of so many epochs or along
            one training.
        within: How near to the plateau, as a fraction: 0.01 is the paper's point.

    Returns:
        Epochs and plateau.  A curve that may not have reached its plateau is warned about.

    Raises:
        TypeError: Values are not numbers.
        ValueError: Fewer than 3 epochs, an error that is no fraction, a curve that does not fall by
            more than ``within``, or lengths that differ.
    """
    if not 0 < within < 1:
        raise ValueError(f"within must be in (0, 1), got {within}; a point is 0.01")
    when = checked_epochs("epochs", epochs)
    if len(when) < 3:
        raise ValueError(f"epochs must be at least 3, got {len(when)}")
    curves = list(error) if len(error) and np.ndim(error[0]) else [error]
    rows = np.stack([_curve(number, curve, when, within) for number, curve in enumerate(curves)])  # type: ignore[arg-type]
    lowest = rows.min(1)
    reached = np.array([_crossing(np.log(when), row, row.min() + within) for row in rows])
    settled = bool((np.exp(reached) <= when[-1] / 2).all())
    if not settled:
        warn_caller(
            f"the error still falls in the second half of {when[-1]:g} epochs: its plateau may be "
            "lower, and is then reached later than given"
        )
    low, high = mean_interval(reached)
    return Convergence(
        epochs=math.exp(reached.mean()),
        ci=(math.exp(low), math.exp(high)),
        per_seed=tuple(np.exp(reached).tolist()),
        plateau=float(lowest.mean()),
        plateau_ci=mean_interval(lowest),
        settled=settled,
        within=within,
    )


def convergence_ratio(first: Convergence, second: Convergence) -> tuple[float, tuple[float, float]]:
    """How many times as long ``first`` takes as ``second``.

    Returns:
        The ratio of the epochs and its 95 % interval over seeds (Welch, of the logarithms).  A
        lower bound where ``first`` is not settled.

    Raises:
        ValueError: They are not within the same distance of the plateau.
    """
    if first.within != second.within:
        raise ValueError(f"within must be the same, got {first.within:g} and {second.within:g}")
    low, high = difference_interval(np.log(first.per_seed), np.log(second.per_seed))
    return first.epochs / second.epochs, (math.exp(low), math.exp(high))


def _curve(number: int, values: Values, epochs: Array, within: float) -> Array:
    row = vector(f"error of curve {number}", values, length=len(epochs))
    if row.min() < 0 or row.max() > 1:
        raise ValueError(
            f"error of curve {number} must be fractions in [0, 1], got {row.min():g} to "
            f"{row.max():g}"
        )
    if row[0] - row.min() <= within:
        raise ValueError(
            f"error of curve {number} must fall by more than {within:g}: it is {row[0]:g} at epoch "
            f"{epochs[0]:g} and {row.min():g} at its lowest"
        )
    return row


def _crossing(x: Array, row: Array, level: float) -> float:
    """Where the line through the points first comes down to the level."""
    at = int((row <= level).argmax())
    share = (row[at - 1] - level) / (row[at - 1] - row[at])
    return float(x[at - 1] + share * (x[at] - x[at - 1]))
