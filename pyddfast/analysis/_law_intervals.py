"""How well a curve determines the scaling law's parameters."""

from __future__ import annotations

import numpy as np

from pyddfast.analysis._inputs import Array
from pyddfast.analysis._law import Problem
from pyddfast.analysis._student import half_width
from pyddfast.random import Purpose, numpy_generator

__all__ = ["noisy_copies", "profile", "profile_limit"]


def noisy_copies(fitted: Array, rss: float, free: int, n_boot: int, seed: int) -> Array:
    """The law with new noise (n_boot, n).

    The variance of each copy's noise is drawn as well, rss / χ² with ``free`` degrees of freedom: a
    few points say little about it, and a fixed one would give intervals that are too short.
    """
    generator = numpy_generator(seed, Purpose.BOOTSTRAP, 2)
    variance = rss / generator.chisquare(free, (n_boot, 1))
    noise = generator.standard_normal((n_boot, len(fitted)))
    copies: Array = fitted + np.sqrt(variance) * noise
    return copies


def profile_limit(rss: float, free: int) -> float:
    """The sum of squares that a parameter inside its interval stays below."""
    return rss * (1 + half_width(free) ** 2 / free)


def profile(problem: Problem, best: Array, rss: float) -> Array:
    """Ends (count, 2) of each free parameter's interval; an end that is not found is its bound.

    Held at the end of its interval, all others fitted, a parameter has a sum of squares at the
    limit of the F test.
    """
    count, free = problem.count, len(problem.observed) - problem.count
    limit = profile_limit(rss, free)
    _, slopes = problem.model(best[None])
    covariance = np.linalg.pinv(slopes[0].T @ slopes[0]) * rss / free
    error = np.sqrt(np.diag(covariance).clip(1e-24))  # not 0, where the fit is exact
    # Two copies a parameter: below and above.
    column = np.repeat(np.arange(count), 2)
    sign = np.tile([-1.0, 1.0], count)
    rows = np.arange(2 * count)
    held = np.zeros((2 * count, count), bool)
    held[rows, column] = True
    edge = np.where(sign < 0, problem.bounds[column, 0], problem.bounds[column, 1])
    observed = np.broadcast_to(problem.observed, (2 * count, len(problem.observed)))

    inside = np.broadcast_to(best, held.shape).copy()  # solutions within the limit
    outside = edge.copy()  # values beyond it, once found
    found, stride = np.zeros(2 * count, bool), error[column].copy()
    for _ in range(80):  # doublings, to any bound from an exact fit's 1e-12, and then halvings
        here = inside[rows, column]
        ahead = here + sign * stride
        ahead = np.where(sign < 0, np.maximum(ahead, edge), np.minimum(ahead, edge))
        target = np.where(found, (here + outside) / 2, ahead)
        start = inside.copy()
        start[rows, column] = target
        solved, squares = problem.solve(observed, start, held)
        within = squares <= limit
        inside = np.where(within[:, None], solved, inside)
        outside = np.where(within, outside, target)
        found |= ~within
        stride = np.where(found, stride, 2 * stride)
        gap = np.abs(outside - inside[rows, column])
        done = np.where(found, gap <= 1e-4 * error[column], inside[rows, column] == edge)
        if done.all():
            break
    ends: Array = np.where(found, inside[rows, column], edge).reshape(count, 2)
    return ends
