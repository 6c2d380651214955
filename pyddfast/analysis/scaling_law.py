"""The data-filtering scaling law of error against epochs (supplement §3, eqs. 7 and 8).

After Goyal et al., "Scaling Laws for Data Filtering" (CVPR 2024): with n_j the samples seen after j
epochs, y_k = a n₁^{b₁} ∏_{j=2..k} (n_j / n_{j-1})^{b_j} + d, where the utility b of the samples
halves every τ epochs, b_{k+1} = b 2^{-k/τ} = b δ^k.

The paper calls 2.8947, 5.2632 and 1.9474 values of δ.  They exceed 1 and are points of
linspace(1, 10, 20): they are half-lives τ.  Here both are always given, δ = 2^{-1/τ}.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, overload

import numpy as np

from pyddfast._warnings import warn_caller
from pyddfast.analysis._inputs import Array, Values
from pyddfast.analysis._law import LOG_A, LOG_TAU, LONGEST_TAU, B, Curve, D, Problem, powers
from pyddfast.analysis._law_grid import Grid
from pyddfast.analysis._law_inputs import (
    LawMethod,
    checked_curve,
    checked_epochs,
    checked_options,
    of_curve,
)
from pyddfast.analysis._law_intervals import noisy_copies, profile, profile_limit
from pyddfast.analysis._student import LEVEL

__all__ = ["LawMethod", "ScalingLaw", "fit_scaling_law", "scaling_law_difference"]

Interval: TypeAlias = tuple[float, float]

_NAMES = {LOG_A: "a", B: "b", LOG_TAU: "tau", D: "d"}
_TAIL = (1 - LEVEL) / 2


@dataclass(frozen=True)
class ScalingLaw:
    """A fitted law of one curve.

    Attributes:
        a: Factor.
        b: Utility of the samples in the first epoch; the error falls as n^b.
        tau: Half-life of the utility, in epochs.
        delta: What an epoch leaves of the utility, 2^(-1/τ).
        d: Error that remains.
        ci: 95 % intervals of the parameters that are not fixed, by the bootstrap.
        ci_profile: Likewise, by the profile of the residual sum of squares.
        residual: Standard deviation of what the law leaves of the error.
        epochs: (n,), as given.
        error: (n,), observed.
        samples_per_epoch: Samples that an epoch shows.
        method: How it was fitted.
        draws: (n_boot, 4), the bootstrap's a, b, τ, d.
    """

    a: float
    b: float
    tau: float
    delta: float
    d: float
    ci: Mapping[str, Interval]
    ci_profile: Mapping[str, Interval]
    residual: float
    epochs: Array
    error: Array
    samples_per_epoch: float
    method: LawMethod
    draws: Array = field(repr=False, compare=False)
    _fit: object = field(repr=False, compare=False)

    @property
    def undetermined(self) -> tuple[str, ...]:
        """Names of the parameters that the curve hardly determines.

        b and τ whose profile interval is wider than themselves, d whose is wider than half the room
        that the smallest error leaves, and a τ at the end of its range: no decay shows.
        """
        room = {"b": abs(self.b), "tau": self.tau, "d": self.error.min() / 2}
        wide = {
            n for n, (low, high) in self.ci_profile.items() if high - low > room.get(n, math.inf)
        }
        if self.tau > 0.99 * LONGEST_TAU * self.epochs[-1]:
            wide.add("tau")
        return tuple(name for name in room if name in wide)

    def predict(self, k: Values | float) -> Array:
        """Error after ``k`` epochs; of their shape."""
        errors: Array = _predict(np.array([[self.a, self.b, self.tau, self.d]]), self, k)[0]
        return errors

    def predict_interval(self, k: Values | float) -> tuple[Array, Array]:
        """95 % interval of the law at ``k`` epochs, from the bootstrap."""
        low, high = np.quantile(_predict(self.draws, self, k), [_TAIL, 1 - _TAIL], axis=0)
        return low, high


@overload
def fit_scaling_law(
    epochs: Values,
    error: Values,
    samples_per_epoch: float,
    *,
    a: float | None = None,
    d: float | None = None,
    method: LawMethod = "varpro",
    n_boot: int = 500,
    seed: int = 0,
) -> ScalingLaw: ...


@overload
def fit_scaling_law(
    epochs: Values | Mapping[str, Values],
    error: Mapping[str, Values],
    samples_per_epoch: float | Mapping[str, float],
    *,
    a: float | Literal["shared"] | None = None,
    d: float | Literal["shared"] | None = None,
    method: LawMethod = "varpro",
    n_boot: int = 500,
    seed: int = 0,
) -> dict[str, ScalingLaw]: ...


def fit_scaling_law(
    epochs: Values | Mapping[str, Values],
    error: Values | Mapping[str, Values],
    samples_per_epoch: float | Mapping[str, float],
    *,
    a: float | str | None = None,
    d: float | str | None = None,
    method: LawMethod = "varpro",
    n_boot: int = 500,
    seed: int = 0,
) -> ScalingLaw | dict[str, ScalingLaw]:
    """Fit the law to one curve, or to several at once.

    ``"varpro"`` (variable projection) searches a grid of b, τ and d, in which a follows linearly,
    and ends with least squares over everything that is free.  a, b and d trade off against each
    other: a few epochs hardly tell them apart.  Fixing d, or sharing d and a between curves of one
    network and regime, as Goyal et al. do, narrows b and τ.

    ``"grid"`` is the search as published: the best of 100 a x 100 b x 20 τ, with d fixed, default
    0.1.  The grid of a is of (a n / 10⁵)^b, Goyal et al.'s form for pools of 12.8 million samples;
    the result is given as eq. 7's a.  Far smaller sets end at its edge, which is warned about: fix
    a for them.  Their code tries a random tenth of its grid, here it is searched whole; and it
    multiplies d by the product over the epochs, which eq. 7 does not.

    Args:
        epochs: (n,), positive and rising; of several curves by name, or the same for all.
        error: (n,), test errors as fractions; of several curves by name.
        samples_per_epoch: n₁, the samples that an epoch shows.
        a: Fixed value, ``"shared"``: one for all curves, or None: each its own.
        d: Likewise.
        method: How it is fitted.
        n_boot: Refits to the law with new noise of the residuals' size, whose variance is drawn,
            too, since a few points say little about it.
        seed: Seed of the noise.

    Returns:
        The law, or one a curve by its name.  A parameter that the curve hardly determines is warned
        about.

    Raises:
        TypeError: Values are not numbers.
        ValueError: A curve does not fall, has too few points, values out of range, or an option
            does not fit.
    """
    several = isinstance(error, Mapping)
    names = list(error) if isinstance(error, Mapping) else ["error"]
    if not names:
        raise ValueError("error holds no curve")
    curves = [
        checked_curve(
            f" of {name}" if several else "",
            of_curve(epochs, name, "epochs"),
            of_curve(error, name, "error"),
            of_curve(samples_per_epoch, name, "samples_per_epoch"),
        )
        for name in names
    ]
    smallest = min(float(curve.error.min()) for curve in curves)
    a, d = checked_options(several, a, d, method, n_boot, smallest)
    if method == "grid":
        assert not isinstance(a, str)
        assert isinstance(d, float)
        laws = [_by_grid(curve, a, d, n_boot, seed) for curve in curves]
    else:
        laws = _by_least_squares(curves, a, d, n_boot, seed)
    for name, law in zip(names, laws, strict=True):
        _warn_undetermined(law, f" of {name}" if several else "")
    return dict(zip(names, laws, strict=True)) if several else laws[0]


def scaling_law_difference(
    first: ScalingLaw, second: ScalingLaw, *, level: float = LEVEL
) -> dict[str, tuple[float, Interval]]:
    """How much two laws differ in b and τ: do two subsets scale alike?

    Laws of one fit share their noise and what they share of a and d; others are independent.

    Args:
        first: One law.
        second: The other.
        level: Of each interval; 0.975 lets both hold together at 95 %.

    Returns:
        For ``"b"`` and ``"tau"``, ``first`` minus ``second`` and its interval.

    Raises:
        ValueError: The laws do not have the same number of bootstrap draws, or ``level`` does not
            lie in (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    one, other = first.draws, second.draws
    if len(one) != len(other):
        raise ValueError(f"the laws must have the same n_boot, got {len(one)} and {len(other)}")
    if first._fit is not second._fit:
        other = np.roll(other, 1, 0)  # equal seeds drew equal noise, which these do not share
    return {
        name: (
            getattr(first, name) - getattr(second, name),
            _middle(one[:, at] - other[:, at], level),
        )
        for name, at in (("b", B), ("tau", LOG_TAU))
    }


def _by_least_squares(
    curves: Sequence[Curve], a: float | str | None, d: float | str | None, n_boot: int, seed: int
) -> list[ScalingLaw]:
    problem = Problem(curves, a, d)
    freedom = _freedom(len(problem.observed), problem.count)
    solved, rss = problem.fit()
    copies = noisy_copies(problem.model(solved[None])[0][0], rss, freedom, n_boot, seed)
    refitted, _ = problem.solve(copies, np.tile(solved, (n_boot, 1)))
    best, draws = problem.parameters(solved[None])[0], problem.parameters(refitted)
    ends, fit = profile(problem, solved, rss), object()
    return [
        _law(
            curve,
            best[number],
            draws[:, number],
            {column: _ends(ends[at]) for column, at in enumerate(index) if at >= 0},
            math.sqrt(rss / freedom),
            "varpro",
            fit,
        )
        for number, (curve, index) in enumerate(zip(curves, problem.index, strict=True))
    ]


def _by_grid(curve: Curve, a: float | None, d: float, n_boot: int, seed: int) -> ScalingLaw:
    grid = Grid(curve, a, d)
    squares = grid.squares(curve.error)
    rss = float(squares.min())
    freedom = _freedom(len(curve.error), 3 if a is None else 2)
    if edges := grid.edges(squares):
        warn_caller(f"the best point lies at the edge of the published grid of {', '.join(edges)}")
    copies = noisy_copies(grid.fitted(squares), rss, freedom, n_boot, seed)
    draws = np.stack([grid.parameters(grid.squares(copy)) for copy in copies])
    near = grid.profile(squares, profile_limit(rss, freedom))
    residual = math.sqrt(rss / freedom)
    return _law(curve, grid.parameters(squares), draws, near, residual, "grid", object())


def _law(
    curve: Curve,
    best: Array,
    draws: Array,
    near: Mapping[int, Interval],
    residual: float,
    method: LawMethod,
    fit: object,
) -> ScalingLaw:
    """From log a, b, log τ, d, their draws (n_boot, 4), and the free ones' profile intervals."""
    draws = draws.copy()
    draws[:, [LOG_A, LOG_TAU]] = np.exp(draws[:, [LOG_A, LOG_TAU]])
    sampled = {column: _middle(draws[:, column]) for column in near}
    natural = {c: _exp(ends) if c in (LOG_A, LOG_TAU) else ends for c, ends in near.items()}
    tau = math.exp(best[LOG_TAU])
    return ScalingLaw(
        a=math.exp(best[LOG_A]),
        b=float(best[B]),
        tau=tau,
        delta=_delta(tau),
        d=float(best[D]),
        ci=_named(sampled),
        ci_profile=_named(natural),
        residual=residual,
        epochs=curve.epochs,
        error=curve.error,
        samples_per_epoch=curve.samples,
        method=method,
        draws=draws,
        _fit=fit,
    )


def _named(intervals: Mapping[int, Interval]) -> dict[str, Interval]:
    named = {name: intervals[c] for c, name in _NAMES.items() if c in intervals}
    low, high = named["tau"]
    return named | {"delta": (_delta(low), _delta(high))}


def _delta(tau: float) -> float:
    return float(2 ** (-1 / tau))


def _ends(pair: Array) -> Interval:
    return float(pair[0]), float(pair[1])


def _exp(interval: Interval) -> Interval:
    return math.exp(interval[0]), math.exp(interval[1])


def _middle(draws: Array, level: float = LEVEL) -> Interval:
    return _ends(np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]))


def _freedom(points: int, parameters: int) -> int:
    if points <= parameters:
        raise ValueError(
            f"{points} points cannot tell {parameters} free parameters and their uncertainty; "
            "give more epochs, or fix or share a and d"
        )
    return points - parameters


def _warn_undetermined(law: ScalingLaw, of: str) -> None:
    """What a reader should not take for known."""
    wide = [
        "{} = {:.3g} (95 % interval {:.3g} to {:.3g})".format(
            name, getattr(law, name), *law.ci_profile[name]
        )
        for name in law.undetermined
    ]
    if wide:
        warn_caller(
            f"the curve{of} hardly determines {', '.join(wide)}; fix or share d and a, or give "
            "more epochs"
        )


def _predict(parameters: Array, law: ScalingLaw, k: Values | float) -> Array:
    """(draws, k) from a, b, τ, d (draws, 4)."""
    wanted = checked_epochs("k", np.atleast_1d(np.asarray(k)), rising=False)
    a, b, tau, d = parameters.T[..., None]
    x, _ = powers(tau[:, 0], wanted, law.samples_per_epoch)
    errors: Array = a * np.exp(b * x) + d
    return errors[:, 0] if np.ndim(k) == 0 else errors
