"""Measured values as arrays, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

__all__ = ["Array", "Values", "vector"]

Array: TypeAlias = npt.NDArray[np.float64]
Values: TypeAlias = Sequence[float] | npt.NDArray[np.floating | np.integer] | Tensor


def vector(name: str, values: Values, *, length: int | None = None, nan: bool = False) -> Array:
    """A float64 vector.

    Args:
        name: Of the argument, for the errors.
        values: Real numbers, one axis.
        length: That it must have.
        nan: Let NaN and infinities pass.

    Raises:
        TypeError: They are not numbers.
        ValueError: They have another shape or length, or are not finite.
    """
    if isinstance(values, Tensor):
        # numpy knows no bfloat16.
        values = (values.double() if values.is_floating_point() else values).numpy(force=True)
    try:
        array = np.array(values)
    except ValueError as error:  # rows of unequal length
        raise ValueError(f"{name} must have one axis: {error}") from error
    if array.ndim != 1:
        raise ValueError(f"{name} must have one axis, got the shape {array.shape}")
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must hold real numbers, got {array.dtype}")
    if length is not None and len(array) != length:
        raise ValueError(f"{name} must have {length} values, got {len(array)}")
    array = array.astype(np.float64)
    if not nan and not np.isfinite(array).all():
        row = int((~np.isfinite(array)).argmax())
        raise ValueError(f"{name} must be finite, got {array[row]} at position {row}")
    return array
