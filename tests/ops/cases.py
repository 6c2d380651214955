"""What the contract suite needs to know of an operator: its inputs, its options, its twin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyddfast import ops
from pyddfast.ops import reference
from tests.tolerances import FLOAT32, FLOAT64, PROBABILITIES


def logits(rows: int, classes: int, seed: int, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, classes, generator=generator, dtype=torch.float64) * scale


@dataclass(frozen=True)
class OpCase:
    """An operator on rows with two differentiable inputs."""

    name: str
    make: Callable[[int, int], tuple[Tensor, Tensor]]  # (rows, classes) -> the two inputs, float64
    op: Callable[..., tuple[Tensor, ...]]  # (a, b, reduction, weight) -> outputs, the loss first
    twin: Callable[..., tuple[Tensor, ...]]
    absolute: float = 0.0  # allowed beside the relative error, see tests/tolerances.py

    def bound(self, dtype: torch.dtype) -> float:
        return FLOAT64 if dtype is torch.float64 else FLOAT32

    def __str__(self) -> str:
        return self.name


def _kd(kind: str) -> OpCase:
    def make(rows: int, classes: int) -> tuple[Tensor, Tensor]:
        student, teacher = logits(rows, classes, 1), logits(rows, classes, 2)
        if kind == "probs":
            return student, torch.softmax(teacher / TEMPERATURE, -1)
        if kind == "log_probs":
            return student, torch.log_softmax(teacher / TEMPERATURE, -1)
        return student, teacher

    def op(a: Tensor, b: Tensor, reduction: str, weight: Tensor | None) -> tuple[Tensor, ...]:
        return ops.kd_loss(
            a,
            b,
            TEMPERATURE,
            teacher_kind=kind,
            reduction=reduction,
            weight=weight,
            return_score=True,
        )

    def twin(a: Tensor, b: Tensor, reduction: str, weight: Tensor | None) -> tuple[Tensor, ...]:
        return reference.kd_loss(
            a,
            b,
            TEMPERATURE,
            teacher_kind=kind,
            reduction=reduction,
            t_squared=False,
            weight=weight,
        )

    return OpCase(f"kd_loss-{kind}", make, op, twin, 0.0 if kind == "logits" else PROBABILITIES)


TEMPERATURE = 4.0  # neither 1 nor a rounding-free inverse would do for all: 4 scales exactly,
# tests/ops/test_kd.py has others
CE_WEIGHT = 0.3  # any value that is not a power of two


def _soft_ce() -> OpCase:
    def make(rows: int, classes: int) -> tuple[Tensor, Tensor]:
        return logits(rows, classes, 3), torch.softmax(logits(rows, classes, 4), -1)

    def op(a: Tensor, b: Tensor, reduction: str, weight: Tensor | None) -> tuple[Tensor, ...]:
        return (ops.soft_ce(a, b, 1.5, reduction=reduction, weight=weight),)

    def twin(a: Tensor, b: Tensor, reduction: str, weight: Tensor | None) -> tuple[Tensor, ...]:
        return (reference.soft_ce(a, b, temperature=1.5, reduction=reduction, weight=weight),)

    return OpCase("soft_ce", make, op, twin)


def labels_for(a: Tensor) -> Tensor:
    """A label a row, the same for every dtype and layout of `a`."""
    rows = a.shape[:-1].numel()
    return (torch.arange(rows, device=a.device) * 7 % a.shape[-1]).reshape(a.shape[:-1])


def _mse_ce() -> OpCase:
    def make(rows: int, classes: int) -> tuple[Tensor, Tensor]:
        return logits(rows, classes, 5), logits(rows, classes, 6)

    def op(a: Tensor, b: Tensor, reduction: str, weight: Tensor | None) -> tuple[Tensor, ...]:
        options: dict[str, Any] = {"ce_weight": CE_WEIGHT, "reduction": reduction}
        return (ops.mse_ce(a, b, labels_for(a), weight=weight, **options),)

    def twin(a: Tensor, b: Tensor, reduction: str, weight: Tensor | None) -> tuple[Tensor, ...]:
        options: dict[str, Any] = {"ce_weight": CE_WEIGHT, "reduction": reduction}
        return (reference.mse_ce(a, b, labels_for(a), weight=weight, **options),)

    return OpCase("mse_ce", make, op, twin)


CASES = [_kd("logits"), _kd("probs"), _kd("log_probs"), _soft_ce(), _mse_ce()]
