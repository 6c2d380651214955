"""The error of a measured call: norm-wise, against our op on the same inputs in float64.

The tests hold the ops' float64 to independent formulas; here it is the yardstick of every provider.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks.harness import Case

__all__ = ["exact_result", "relative_error"]


def _floats(result: object) -> list[Tensor]:
    leaves = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
    return [x.detach() for x in leaves if x.is_floating_point()]


def _wide(x: Tensor) -> Tensor:
    x = x.detach()
    return x.double().cpu() if x.is_floating_point() else x.cpu()


def exact_result(case: Case) -> list[Tensor] | None:
    """What the call computes, in float64 on the CPU; None where it has no float64 form."""
    if "ours" not in case.providers:
        return None
    inputs = case.make_inputs(0)
    wide = {name: _wide(x).requires_grad_(x.requires_grad) for name, x in inputs.items()}
    try:
        found = _floats(case.providers["ours"](wide)())
    except (RuntimeError, TypeError, ValueError):
        return None  # an op that takes no float64
    return found if found and all(x.dtype is torch.float64 for x in found) else None


def relative_error(result: object, exact: list[Tensor] | None) -> float | None:
    """The largest norm-wise relative error of the tensors that a call has returned.

    None where there is nothing to hold them to, or where a peer computes something else.
    """
    found = _floats(result)
    if exact is None or [x.shape for x in found] != [x.shape for x in exact]:
        return None
    errors = []
    for got, want in zip(found, exact, strict=True):
        scale = float(want.norm())
        errors.append(float((_wide(got) - want).norm()) / (scale if scale > 0 else 1.0))
    return max(errors)
