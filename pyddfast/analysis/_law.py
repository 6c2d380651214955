"""The scaling law's curves, and least squares on many noisy copies of them at once.

y_k = a n₁^{b₁} ∏_{j=2..k} (n_j / n_{j-1})^{b_j} + d with n_j = j n₁ and b_j = b 2^{-(j-1)/τ} is
y_k = exp(log a + b X_k(τ)) + d with X_k = log n₁ + Σ_{j=2..k} 2^{-(j-1)/τ} log(j / (j-1)).
Inside an epoch X grows with the utility of that epoch, so that the law has no jumps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyddfast.analysis._inputs import Array

__all__ = ["LOG_A", "LOG_TAU", "LONGEST_TAU", "B", "Curve", "D", "Problem", "powers"]

# Columns of a curve's parameters.
LOG_A, B, LOG_TAU, D = range(4)

# Wide enough that a published value (b from -0.5 to -0.005, τ from 1 to 10) is never near them.
_B_BOUNDS = (-5.0, -1e-4)
_SMALLEST_TAU = 0.1  # δ = 0.001: nothing is left after the first epoch
LONGEST_TAU = 10.0  # times the last epoch: δ^k > 0.93 to the end, which no curve tells from 1
# Of the search for a start; the polish does the rest.
_GRID_B = -np.geomspace(1e-3, 2.0, 40)
_GRID_D = np.linspace(0.0, 1.0, 21)  # of the smallest error
_GRID_TAU = 8


@dataclass(frozen=True)
class Curve:
    """Errors (n,) after epochs (n,), with the samples that one epoch shows."""

    epochs: Array
    error: Array
    samples: float


def powers(tau: Array, epochs: Array, samples: float) -> tuple[Array, Array]:
    """X (..., n) at half-lives (...), and its derivative by log τ."""
    rate = math.log(2) / tau[..., None]
    whole = np.maximum(np.floor(epochs), 1.0)
    j = np.arange(2, int(whole.max()) + 1)
    age = (j - 1) * rate
    terms = np.exp(-age) * np.log(j / (j - 1))
    sums = [np.zeros((*tau.shape, len(j) + 1)) for _ in range(2)]
    np.cumsum(terms, -1, out=sums[0][..., 1:])
    np.cumsum(age * terms, -1, out=sums[1][..., 1:])
    # Of the epoch under way; the first one has no age.
    age = np.where(epochs < 1, 0.0, whole) * rate
    rest = np.exp(-age) * np.log(epochs / whole)
    at = whole.astype(int) - 1
    return math.log(samples) + sums[0][..., at] + rest, sums[1][..., at] + age * rest


class Problem:
    """Which parameters of which curve are free, shared or fixed.

    Args:
        curves: At least one.
        a: Fixed value, ``"shared"`` by all curves, or None: free.
        d: Likewise.

    Attributes:
        index: int (curves, 4): place of a parameter in the free vector, -1: fixed.
        count: Length of the free vector.
        bounds: (count, 2).
        observed: (n,), the errors of all curves.
    """

    def __init__(
        self, curves: Sequence[Curve], a: float | str | None, d: float | str | None
    ) -> None:
        self.curves = curves
        self.observed = np.concatenate([curve.error for curve in curves])
        self.index = np.full((len(curves), 4), -1)
        self._fixed = np.zeros((len(curves), 4))
        last = max(float(curve.epochs.max()) for curve in curves)
        bounds: list[tuple[float, float]] = []

        def place(
            column: int, rule: float | str | None, limits: Sequence[tuple[float, float]]
        ) -> None:
            if rule == "shared":
                self.index[:, column] = len(bounds)
                bounds.append((max(low for low, _ in limits), min(high for _, high in limits)))
            elif rule is None:
                self.index[:, column] = len(bounds) + np.arange(len(curves))
                bounds.extend(limits)
            else:
                self._fixed[:, column] = rule

        anything = (-math.inf, math.inf)
        taus = (math.log(_SMALLEST_TAU), math.log(LONGEST_TAU * last))
        place(B, None, [_B_BOUNDS] * len(curves))
        place(LOG_TAU, None, [taus] * len(curves))
        log_a = math.log(a) if isinstance(a, float) else a
        place(LOG_A, log_a, [anything] * len(curves))
        place(D, d, [(0.0, float(curve.error.min())) for curve in curves])
        self.bounds, self.count = np.array(bounds), len(bounds)

    def parameters(self, free: Array) -> Array:
        """(copies, curves, 4) from free vectors (copies, count)."""
        found: Array = np.where(self.index < 0, self._fixed, free[:, self.index])
        return found

    def model(self, free: Array) -> tuple[Array, Array]:
        """Errors (copies, n) and their derivatives (copies, n, count)."""
        values, slopes = [], []
        for curve, index, own in zip(
            self.curves, self.index, self.parameters(free).swapaxes(0, 1), strict=True
        ):
            log_a, b, log_tau, d = own.T[..., None]
            x, dx = powers(np.exp(log_tau[:, 0]), curve.epochs, curve.samples)
            # A trial step may go anywhere; it is then refused.
            with np.errstate(over="ignore", invalid="ignore"):
                part = np.exp(log_a + b * x)
                by_column = {LOG_A: part, B: part * x, LOG_TAU: part * b * dx, D: np.ones_like(x)}
            values.append(part + d)
            slope = np.zeros((*x.shape, self.count))
            for column, by in by_column.items():
                if index[column] >= 0:
                    slope[..., index[column]] += by
            slopes.append(slope)
        return np.concatenate(values, 1), np.concatenate(slopes, 1)

    def fit(self) -> tuple[Array, float]:
        """Free vector (count,) of the least squares, and their sum.

        With a fixed or shared there may be several minima: a n^b b, the slope of the curve, has the
        same value at two b; and at a bound of τ a step may end.  So there are many starts.
        """
        starts = np.unique(self._starts(), axis=0)  # fewer, where d is fixed
        solved, squares = self.solve(np.tile(self.observed, (len(starts), 1)), starts)
        # A last start of what is best for each curve by itself, then all together.
        errors = (self.model(solved)[0] - self.observed) ** 2
        ends = np.cumsum([len(curve.error) for curve in self.curves])[:-1]
        merged = solved[squares.argmin()].copy()
        for own, index in zip(np.split(errors, ends, 1), self.index, strict=True):
            private = [at for at in index if at >= 0 and (self.index == at).sum() == 1]
            merged[private] = solved[own.sum(1).argmin(), private]
        last, last_squares = self.solve(self.observed[None], merged[None])
        solved, squares = np.append(solved, last, 0), np.append(squares, last_squares)
        best = int(squares.argmin())
        return solved[best], float(squares[best])

    def _starts(self) -> Array:
        """Free vectors (starts, count): at each d and τ of a grid the best b; a is linear."""
        last = max(float(curve.epochs.max()) for curve in self.curves)
        tau = np.geomspace(_SMALLEST_TAU * 3, LONGEST_TAU * last, _GRID_TAU)
        free = np.zeros((len(_GRID_D), len(tau), self.count))
        for number, (curve, index) in enumerate(zip(self.curves, self.index, strict=True)):
            ds = self._offsets(number)
            x, _ = powers(tau, curve.epochs, curve.samples)
            basis = np.exp(_GRID_B[:, None, None] * (x - x[..., :1]))  # without n₁^b, so near 1
            left = curve.error - ds[:, None]
            cross = np.einsum("dn,btn->dbt", left, basis)
            square = (basis**2).sum(-1)
            log_first = _GRID_B[:, None] * x[..., 0]
            if index[LOG_A] < 0:
                scale = np.exp(self._fixed[number, LOG_A] + log_first)[None]
            else:
                scale = np.maximum(cross / square, 1e-12)
            rss = (left**2).sum(-1)[:, None, None] - 2 * scale * cross + scale**2 * square
            log_a = np.broadcast_to(np.log(scale) - log_first, rss.shape)
            at_b = rss.argmin(1)
            found = {
                B: _GRID_B[at_b],
                LOG_TAU: np.log(tau),
                LOG_A: np.take_along_axis(log_a, at_b[:, None], 1)[:, 0],
                D: ds[:, None],
            }
            for column, values in found.items():
                if index[column] >= 0:  # of what is shared, the mean
                    free[..., index[column]] += values / (self.index == index[column]).sum()
        starts: Array = free.reshape(-1, self.count).clip(*self.bounds.T)
        return starts

    def _offsets(self, number: int) -> Array:
        if (column := self.index[number, D]) < 0:
            return np.full_like(_GRID_D, self._fixed[number, D])
        offsets: Array = self.bounds[column, 1] * _GRID_D
        return offsets

    def solve(
        self, observed: Array, start: Array, held: npt.NDArray[np.bool_] | None = None
    ) -> tuple[Array, Array]:
        """Least squares of copies at once, by Levenberg and Marquardt's steps inside the bounds.

        Args:
            observed: (copies, n).
            start: (copies, count).
            held: (copies, count), parameters that stay where they are.

        Returns:
            Free vectors (copies, count) and residual sums of squares (copies,).
        """
        low, high = self.bounds.T
        free = start.clip(low, high)
        stuck = np.zeros(free.shape, bool) if held is None else held
        damping = np.full(len(free), 1e-3)
        values, slopes = self.model(free)
        rss = ((values - observed) ** 2).sum(1)
        still = np.zeros(len(free), int)
        eye = np.eye(self.count)
        for _ in range(400):  # steps; ten to fifty are usual, the valleys are long
            gradient = np.einsum("cnp,cn->cp", slopes, values - observed)
            # At a bound that the step would leave.
            out = stuck | ((free <= low) & (gradient > 0)) | ((free >= high) & (gradient < 0))
            normal = np.einsum("cnp,cnq->cpq", slopes, slopes)
            scale = np.sqrt(np.einsum("cpp->cp", normal))
            scale[(scale == 0) | out] = 1.0
            normal = normal / (scale[:, :, None] * scale[:, None, :])
            normal = np.where(out[:, :, None] | out[:, None, :], eye, normal)
            right = np.where(out, 0.0, -gradient / scale)
            step = np.linalg.solve(normal + damping[:, None, None] * eye, right[..., None])[..., 0]
            trial = (free + step / scale).clip(low, high)
            trial_values, trial_slopes = self.model(trial)
            with np.errstate(over="ignore", invalid="ignore"):
                trial_rss = ((trial_values - observed) ** 2).sum(1)
            better = trial_rss < rss
            # Converged: five steps in a row that gain nothing to speak of.
            small = ~better | (rss - trial_rss <= 1e-12 * rss)
            still = np.where(small, still + 1, 0)
            free = np.where(better[:, None], trial, free)
            values = np.where(better[:, None], trial_values, values)
            slopes = np.where(better[:, None, None], trial_slopes, slopes)
            rss = np.where(better, trial_rss, rss)
            damping = np.where(better, damping / 5, damping * 4).clip(1e-14, 1e12)
            if (still >= 5).all():
                break
        return free, rss
