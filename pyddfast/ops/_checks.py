"""Argument checks of the operators: an error names the argument, what was given and allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LARGEST = torch.finfo(torch.float64).max
_DTYPE_NAMES = "float16, bfloat16, float32 or float64"


def tensor(value: Any, name: str) -> None:
    """`value` is a torch tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a torch.Tensor, not {type(value).__name__}")


def float_tensor(value: Any, name: str) -> None:
    """`value` is a floating-point tensor."""
    tensor(value, name)
    if value.layout is not torch.strided or value.is_nested:
        layout = "nested" if value.is_nested else value.layout
        raise TypeError(f"{name} is a {layout} tensor; it must be dense (torch.strided)")
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} has dtype {value.dtype}; allowed are {_DTYPE_NAMES}")


def unsound_row(x: Tensor) -> int | None:
    """The first row of `x` (N, D) with NaN or an infinity; reads its values."""
    # A row's sum sees NaN and infinities at the speed of memory; only where it is not finite, which
    # large finite values may cause too, every value is looked at.
    if bool(x.sum(1).isfinite().all()):
        return None
    bad = ~x.isfinite().all(1)
    return int(bad.nonzero()[0, 0]) if bool(bad.any()) else None


def number(value: Any, name: str) -> float:
    """`value` is a finite Python number; returns it as a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        hint = " (use float(...): a tensor here would cost a device synchronisation)"
        raise TypeError(
            f"{name} is a Python number, not {type(value).__name__}"
            f"{hint if isinstance(value, Tensor) else ''}"
        )
    # A comparison, which torch.compile can trace, unlike isfinite; an int may be beyond all floats.
    if not -LARGEST <= value <= LARGEST:
        raise ValueError(f"{name} is {value}; it must be finite")
    return float(value)


def positive(value: Any, name: str) -> float:
    """`value` is a positive, finite Python number; returns it as a float."""
    if number(value, name) <= 0:
        raise ValueError(f"{name} is {value}; it must be above 0")
    return float(value)


def count(value: Any, name: str, least: int = 0) -> int:
    """`value` is an int of at least `least`; returns it."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        allowed = "not be negative" if least == 0 else f"be at least {least}"
        raise ValueError(f"{name} must {allowed}, got {value}")
    return value


def temperature(value: Any, name: str = "temperature") -> float:
    """A temperature that float32 arithmetic can divide by; returns it as a float."""
    if not 1e-30 <= positive(value, name) <= 1e30:
        raise ValueError(f"{name} is {value}; allowed are 1e-30 to 1e30")
    return float(value)


def size(value: Any, name: str) -> tuple[int, int]:
    """`value` is a positive int, or two for height and width; returns both."""
    sides = tuple(value) if isinstance(value, Sequence) else (value, value)
    if any(isinstance(side, bool) or not isinstance(side, int) for side in sides):
        raise TypeError(f"{name} is one int or two (height, width), not {value}")
    if len(sides) != 2:
        raise ValueError(f"{name} is one int or two (height, width), not {value}")
    if min(sides) < 1:
        raise ValueError(f"{name} must be positive, got {value}")
    return sides


def one_of(value: Any, allowed: Sequence[str], name: str) -> int:
    """`value` is one of `allowed`; returns its index."""
    try:
        return allowed.index(value)
    except ValueError:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(allowed)}") from None


def logits(value: Any, name: str) -> None:
    """The argument `name` is (..., C >= 1), floating point."""
    float_tensor(value, name)
    if value.dim() == 0 or value.shape[-1] == 0:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; (..., C >= 1) is needed")


def logits_pair(student: Any, other: Any, name: str, *, first: str = "student") -> None:
    """The arguments `first` and `name` are (..., C) of the same shape and device."""
    logits(student, first)
    float_tensor(other, name)
    if student.shape != other.shape:
        raise ValueError(
            f"{name} has shape {tuple(other.shape)}, {first} {tuple(student.shape)}; "
            "they must be the same"
        )
    same_device(student, other, name, first=first)


def same_device(student: Tensor, other: Tensor, name: str, *, first: str = "student") -> None:
    """The argument `name` is on the device of the argument `first`."""
    if student.device != other.device:
        raise ValueError(f"{name} is on {other.device}, {first} on {student.device}")


def row_weight(weight: Any, student: Tensor) -> None:
    """`weight` is None or one factor a row, without gradient."""
    if weight is None:
        return
    float_tensor(weight, "weight")
    if weight.shape != student.shape[:-1]:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; one factor a row is "
            f"{tuple(student.shape[:-1])}"
        )
    same_device(student, weight, "weight")
    if weight.requires_grad:
        raise ValueError("weight requires grad; it is a constant here: pass weight.detach()")


def labels(target: Any, student: Tensor, *, check_range: bool, first: str = "student") -> None:
    """`target` is one int64 class index a row; `check_range` reads its values."""
    tensor(target, "target")
    if target.dtype is not torch.int64:
        raise TypeError(f"target has dtype {target.dtype}; class indices are int64")
    if target.shape != student.shape[:-1]:
        raise ValueError(
            f"target has shape {tuple(target.shape)}; one label a row is "
            f"{tuple(student.shape[:-1])}"
        )
    same_device(student, target, "target", first=first)
    if check_range and target.numel():
        low, high = torch.aminmax(target)
        if int(low) < 0 or int(high) >= student.shape[-1]:
            raise ValueError(
                f"target has labels from {int(low)} to {int(high)}; "
                f"allowed are 0 to {student.shape[-1] - 1}"
            )


def probabilities(value: Tensor, name: str) -> None:
    """The rows of `value` (..., C) are not negative and sum to 1; reads its values."""
    if not value.numel():
        return
    # What C values lose that were rounded to the dtype is at most half its spacing at 1.
    tolerance = max(1e-3, torch.finfo(value.dtype).eps)
    wide = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if float(wide.amin()) >= 0 and float((wide.sum(-1) - 1).abs().amax()) <= tolerance:
        return
    rows = wide.reshape(-1, wide.shape[-1])
    sums = rows.sum(-1)
    sound = (rows >= 0).all(-1) & ((sums - 1).abs() <= tolerance)
    row = int((~sound).nonzero()[0])
    least, total = float(rows[row].amin()), float(sums[row])
    raise ValueError(
        f"{name} holds probabilities, from 0 on and with a sum of 1 in each row; "
        f"row {row} has {least:g} as its smallest and a sum of {total:g}"
    )


def row_features(features: Any, logits: Tensor) -> None:
    """`features` are floating point (..., D) beside logits of shape (..., C)."""
    float_tensor(features, "features")
    rows = tuple(logits.shape[:-1])
    if features.dim() != logits.dim() or tuple(features.shape[:-1]) != rows:
        raise ValueError(
            f"features has shape {tuple(features.shape)}, logits {tuple(logits.shape)}; "
            f"one feature vector a row is {(*rows, 'D')}"
        )
    if features.shape[-1] == 0:
        raise ValueError(f"features has shape {tuple(features.shape)}; D >= 1 is needed")
    same_device(logits, features, "features", first="logits")


def no_nan(logits: Tensor, name: str = "logits") -> None:
    """The rows of the argument `name` hold no NaN; reads its values."""
    bad = logits.isnan().flatten()
    if bool(bad.any()):
        row = int(bad.nonzero()[0, 0]) // logits.shape[-1]
        raise ValueError(f"{name} hold NaN, first in row {row}; -inf is allowed")
