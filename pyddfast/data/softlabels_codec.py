"""How a store keeps logits: as they are, in one byte each, or the largest few of each row."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Codec", "codec_of"]

Arrays = dict[str, npt.NDArray[Any]]

# The top-k form keeps what the other classes have together at this temperature, which every
# soft-label codebase of this line trains with.
_TEMPERATURE = 20.0
_TOP = re.compile(r"top([1-9]\d*)")


class Codec(Protocol):
    """Rows of logits to arrays and back."""

    def fields(self, num_classes: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Each array's dtype and the shape of one row of it."""

    def encode(self, logits: Tensor) -> Arrays:
        """Arrays of rows, from logits (B, C)."""

    def decode(self, arrays: Arrays, num_classes: int) -> Tensor:
        """Logits (B, C) of arrays that nobody else writes to."""


def codec_of(form: str, num_classes: int) -> Codec:
    """The codec of a name.

    Args:
        form: ``"float16"``, ``"float32"``, ``"int8"`` or ``"top<k>"``, e.g. ``"top50"``.
        num_classes: of the logits.

    Raises:
        ValueError: there is no such form, or k is not below the number of classes.
    """
    if form in ("float16", "float32"):
        return _Plain(form)
    if form == "int8":
        return _Bytes()
    match = _TOP.fullmatch(form)
    if match is None:
        raise ValueError(f"form must be float16, float32, int8 or top<k>, got {form!r}")
    k = int(match[1])
    if k >= num_classes:
        raise ValueError(f"form {form!r} needs more than {k} classes, there are {num_classes}")
    if num_classes > 2**16:
        raise ValueError(f"form {form!r} counts at most {2**16} classes, there are {num_classes}")
    return _Top(k)


@dataclass(frozen=True)
class _Plain:
    dtype: str

    def fields(self, num_classes: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {"logits": (np.dtype(self.dtype).str, (num_classes,))}

    def encode(self, logits: Tensor) -> Arrays:
        return {"logits": logits.to(getattr(torch, self.dtype)).numpy()}

    def decode(self, arrays: Arrays, num_classes: int) -> Tensor:
        return torch.from_numpy(arrays["logits"])


class _Bytes:
    """256 even steps from a row's smallest to its largest logit."""

    def fields(self, num_classes: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {"logits": ("|u1", (num_classes,)), "range": ("<f4", (2,))}

    def encode(self, logits: Tensor) -> Arrays:
        rows = logits.float()
        low, high = rows.aminmax(dim=1, keepdim=True)
        step = (high - low) / 255
        steps = ((rows - low) / step.clamp(min=torch.finfo(torch.float32).tiny)).round()
        return {
            "logits": steps.clamp(0, 255).to(torch.uint8).numpy(),
            "range": torch.cat([low, step], dim=1).numpy(),
        }

    def decode(self, arrays: Arrays, num_classes: int) -> Tensor:
        spans = torch.from_numpy(arrays["range"])
        return spans[:, :1] + spans[:, 1:] * torch.from_numpy(arrays["logits"])


@dataclass(frozen=True)
class _Top:
    """The k largest logits, and one value for all others that keeps their share at T = 20."""

    k: int

    def fields(self, num_classes: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {"logits": ("<f2", (self.k + 1,)), "classes": ("<u2", (self.k,))}

    def encode(self, logits: Tensor) -> Arrays:
        rows = logits.double()
        values, classes = rows.sort(dim=1, descending=True, stable=True)
        kept, others = values[:, : self.k], values[:, self.k :]
        total = (others / _TEMPERATURE).logsumexp(dim=1, keepdim=True)
        rest = _TEMPERATURE * (total - math.log(others.shape[1]))
        return {
            "logits": torch.cat([kept, rest], dim=1).half().numpy(),
            "classes": classes[:, : self.k].numpy().astype("<u2"),
        }

    def decode(self, arrays: Arrays, num_classes: int) -> Tensor:
        values = torch.from_numpy(arrays["logits"]).float()
        classes = torch.from_numpy(arrays["classes"].astype(np.int64))
        rows = values[:, self.k :].repeat(1, num_classes)
        return rows.scatter_(1, classes, values[:, : self.k])
