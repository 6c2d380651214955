"""The scaling law's fit by a grid, as Goyal et al. and the paper do it."""

from __future__ import annotations

import numpy as np

from pyddfast.analysis._inputs import Array
from pyddfast.analysis._law import LOG_A, LOG_TAU, B, Curve, powers

__all__ = ["GRID_D", "Grid"]

# Goyal et al.'s values, for pools of 12.8 million samples; a is of (a n / 1e5)^b.  The paper's own
# half-lives lie on 20 values of this range.
_A = np.linspace(1e-4, 0.02, 100)
_B = np.linspace(-0.005, -0.5, 100)
_TAU = np.linspace(1.0, 10.0, 20)
GRID_D = 0.1


class Grid:
    """One curve's sums of squares over the grid.

    Args:
        curve: The curve.
        a: Fixed, of eq. 7; or None: on the grid.
        d: Fixed.
    """

    def __init__(self, curve: Curve, a: float | None, d: float) -> None:
        x, _ = powers(_TAU, curve.epochs, curve.samples)
        log_a = _B[:, None] * np.log(_A / 1e5) if a is None else np.full((100, 1), np.log(a))
        # (b, a, τ, n)
        fitted = np.exp(log_a[:, :, None, None] + _B[:, None, None, None] * x) + d
        self._shape = fitted.shape[:3]
        self._fitted = fitted.reshape(-1, fitted.shape[-1])
        self._own = (self._fitted**2).sum(1)
        self._log_a, self._d, self._free_a = log_a, d, a is None

    def squares(self, observed: Array) -> Array:
        """Sum of squared residuals of the errors (n,) at each point of the grid."""
        # Ten times as fast as the differences; its rounding, 1e-15, is far below any residual's
        # square that tells two points of the grid apart.
        found: Array = self._own - 2 * (self._fitted @ observed) + observed @ observed
        return found.clip(0)

    def parameters(self, squares: Array) -> Array:
        """Of the best point: log a, b, log τ, d."""
        at_b, at_a, at_tau = np.unravel_index(int(squares.argmin()), self._shape)
        log_a = self._log_a[at_b, at_a]
        return np.array([log_a, _B[at_b], np.log(_TAU[at_tau]), self._d])

    def fitted(self, squares: Array) -> Array:
        """Errors (n,) of the best point."""
        found: Array = self._fitted[squares.argmin()]
        return found

    def edges(self, squares: Array) -> list[str]:
        """Names of the parameters whose best value is the first or last of its grid."""
        at = np.unravel_index(int(squares.argmin()), self._shape)
        ends = [(0, size - 1) for size in self._shape]
        free = {"b": True, "a": self._free_a, "tau": True}
        return [
            name
            for (name, searched), here, end in zip(free.items(), at, ends, strict=True)
            if searched and here in end
        ]

    def profile(self, squares: Array, limit: float) -> dict[int, tuple[float, float]]:
        """The range of each free parameter over the points whose sum of squares is within limit."""
        at_b, at_a, at_tau = np.unravel_index(np.flatnonzero(squares <= limit), self._shape)
        values = {B: _B[at_b], LOG_TAU: np.log(_TAU[at_tau])}
        if self._free_a:
            values[LOG_A] = self._log_a[at_b, at_a]
        return {column: (float(v.min()), float(v.max())) for column, v in values.items()}
