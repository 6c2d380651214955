"""The CUDA kernels of ``patch_stats`` on the emulator: launch configurations."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from pyddfast import ops
from pyddfast.ops.reference import stats as twin
from tests.ops.test_stats import activation
from tests.tolerances import FLOAT32, ROUNDING, assert_close

# (batch, channels, height, width), cell: what csrc/stats/patch_stats.cu decides by.
CONFIGURATIONS = {
    ((2, 2, 16, 32), 16): "not resized; two cells",
    ((2, 3, 7, 20), 16): "resized; two cells",
    ((19, 2, 5, 5), 16): "three parts of the batch, the last one not full",
    ((9, 4, 3, 3), 4): "backward: two groups of planes",
    ((1, 1, 10, 14), 2): "more cells of a channel than lanes of a warp",
    ((1, 33, 2, 2), 2): "more channels of a cell than lanes",
    ((1, 1, 20, 20), 17): "cells of more pixels than threads; two tiles of the plane",
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def run(shape: tuple[int, ...], cell: int, dtype: torch.dtype, *, exact: bool) -> list[Tensor]:
    """The statistics and the gradient: the op's, or the twin's in float64 on the same input."""
    x = activation(shape).to(dtype)
    x = (x.double() if exact else x).requires_grad_()
    outputs = twin.patch_stats(x, cell=cell) if exact else ops.patch_stats(x, cell)
    factors = [torch.linspace(-1, 2, o.numel()).half().view(o.shape).to(o) for o in outputs]
    return [*outputs[1:], *torch.autograd.grad(outputs, x, factors)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "cell"), CONFIGURATIONS)
def test_configuration(
    host: ModuleType, shape: tuple[int, ...], cell: int, dtype: torch.dtype
) -> None:
    results = (run(shape, cell, dtype, exact=exact) for exact in (False, True))
    for got, want in zip(*results, strict=True):
        assert_close(got, want, 2 * FLOAT32 + ROUNDING[got.dtype], absolute=1e-6)


def test_bits_do_not_depend_on_the_schedule(host: ModuleType) -> None:
    expected = run((9, 3, 7, 20), 16, torch.float32, exact=False)
    for seed in range(1, 5):
        host.set_seed(seed)
        got = run((9, 3, 7, 20), 16, torch.float32, exact=False)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
