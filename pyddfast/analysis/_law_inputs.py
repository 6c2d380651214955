"""Checks of what a scaling law is fitted to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from pyddfast.analysis._inputs import Array, Values, vector
from pyddfast.analysis._law import Curve
from pyddfast.analysis._law_grid import GRID_D

__all__ = ["LawMethod", "checked_curve", "checked_epochs", "checked_options", "of_curve"]

# The law's sum runs over every epoch, for every refit of the bootstrap.
_MOST_EPOCHS = 10_000

LawMethod: TypeAlias = Literal["varpro", "grid"]


def of_curve(given: object, name: str, argument: str) -> Any:
    if not isinstance(given, Mapping):
        return given
    if name not in given:
        raise ValueError(f"{argument} has no {name!r}, only {', '.join(map(str, given))}")
    return given[name]


def checked_epochs(argument: str, values: Values, *, rising: bool = True) -> Array:
    """Positive numbers, ``rising`` where they are the epochs of a curve."""
    array = vector(argument, values)
    if not len(array) or (array <= 0).any() or (array > _MOST_EPOCHS).any():
        raise ValueError(
            f"{argument} must be positive and at most {_MOST_EPOCHS:g}, got {array.tolist()}"
        )
    if rising and (np.diff(array) <= 0).any():
        raise ValueError(f"{argument} must rise, got {array.tolist()}")
    return array


def checked_curve(of: str, epochs: Values, error: Values, samples: float) -> Curve:
    """A curve; ``of`` names it in the errors."""
    when = checked_epochs(f"epochs{of}", epochs)
    array = vector(f"error{of}", error, length=len(when))
    if array.min() <= 0 or array.max() > 1:
        raise ValueError(
            f"error{of} must be fractions in (0, 1], got {array.min():g} to {array.max():g}"
        )
    if array[-1] >= array[0]:
        raise ValueError(
            f"error{of} must fall: it is {array[0]:g} at epoch {when[0]:g} and {array[-1]:g} at "
            f"epoch {when[-1]:g}"
        )
    if not samples > 0 or not math.isfinite(samples):
        raise ValueError(f"samples_per_epoch{of} must be positive, got {samples}")
    return Curve(when, array, float(samples))


def checked_options(
    several: bool,
    a: float | str | None,
    d: float | str | None,
    method: LawMethod,
    n_boot: int,
    smallest: float,
) -> tuple[float | str | None, float | str | None]:
    """Check, and give a and d as float, "shared" or None; ``smallest`` is the smallest error."""
    if method not in get_args(LawMethod):
        raise ValueError(f"method must be one of {', '.join(get_args(LawMethod))}; got {method!r}")
    if n_boot < 1:
        raise ValueError(f"n_boot must be at least 1, got {n_boot}")
    if method == "grid" and d is None:
        d = GRID_D
    rules: list[float | str | None] = []
    for name, rule in (("a", a), ("d", d)):
        if rule == "shared" and (not several or method == "grid"):
            raise ValueError(
                f"{name}='shared' is for several curves by name, fitted by varpro; "
                f"got {'several curves' if several else 'one curve'} and method={method!r}"
            )
        if isinstance(rule, str) and rule != "shared":
            raise ValueError(f"{name} must be a number, 'shared' or None, got {rule!r}")
        rules.append(rule if rule is None or isinstance(rule, str) else float(rule))
    a, d = rules
    if isinstance(a, float) and not 0 < a < math.inf:
        raise ValueError(f"a must be positive, got {a:g}")
    if isinstance(d, float) and not 0 <= d < smallest:
        raise ValueError(f"d must be in [0, {smallest:g}), below the smallest error, got {d:g}")
    return a, d
