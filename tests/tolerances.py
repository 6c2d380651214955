"""The one table of error bounds: norm-wise relative error against float64, ``|x - ref| / |ref|``.

A bound is on the operator in exact input terms: the float64 reference gets the same (rounded)
inputs.  Gradients in a 16-bit dtype are rounded once more, to `ROUNDING` of that dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

# fp32 arithmetic inside, a few roundings of 6e-8 each and their sums.
FLOAT32 = 1e-6
# fp64 inputs: cancellation-free forms leave a few hundred roundings of 1e-16.
FLOAT64 = 1e-12
# A teacher that holds probabilities is itself rounded to fp32, so p - q and the KL carry an error
# of that size relative to q and not to p - q: an absolute one here, the row's mass being 1.
PROBABILITIES = 2e-6

# Half a unit in the last place: what rounding a result to this dtype costs.
ROUNDING = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}


def error(value: Tensor, reference: Tensor) -> float:
    """Norm-wise relative error; absolute where the reference is 0.  NaN matches no number."""
    value, reference = value.detach().double().cpu(), reference.detach().double().cpu()
    assert value.shape == reference.shape, (value.shape, reference.shape)
    difference = torch.linalg.vector_norm(value - reference)
    scale = torch.linalg.vector_norm(reference)
    return float(difference / scale) if scale > 0 else float(difference)


def assert_close(
    value: Tensor, reference: Tensor, bound: float, what: str = "", *, absolute: float = 0.0
) -> None:
    """Norm-wise error within `bound` of the reference's norm, plus `absolute`."""
    scale = float(torch.linalg.vector_norm(reference.detach().double()))
    distance = error(value, reference) * (scale if scale > 0 else 1.0)
    allowed = bound * scale + absolute
    assert distance <= allowed, f"{what}: error {distance:.3e}, allowed {allowed:.3e}"
