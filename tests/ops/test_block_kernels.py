"""The CUDA kernels of the block family on the emulator: launch configurations."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from tests.ops.test_block import check, derivatives, inputs, ours

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Shape: by its tiles of 2 x 4 csrc/block/norm_relu_pool.cu chooses the threads of a plane.
CONFIGURATIONS = {
    "8 tiles, 8 lanes a plane; planes that fill no CTA": (3, 7, 8, 8),
    "9 tiles: a warp a plane": (2, 3, 6, 9),
    "32 tiles: its last size with a tile a lane": (1, 5, 16, 16),
    "33 tiles: four a lane": (1, 2, 22, 11),
    "128 tiles: all four used": (1, 2, 32, 32),
    "129 tiles: a CTA a plane": (1, 2, 86, 12),
    "512 tiles: its last size": (1, 1, 64, 64),
    "513 tiles: read again for each look": (1, 2, 54, 73),
    "more channels than a CTA sums, 33 samples": (33, 6, 2, 3),
}


def make(name: str) -> list[Tensor]:
    return inputs(CONFIGURATIONS[name], True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configuration(host: ModuleType, name: str, dtype: torch.dtype) -> None:
    check(make(name), dtype, 1e-5, True, True)
    if dtype is torch.float32:  # the switches are not a kernel's own
        check(inputs(CONFIGURATIONS[name], False), dtype, 1e-5, False, False)


@pytest.mark.parametrize("name", ["33 tiles: four a lane", "129 tiles: a CTA a plane"])
def test_bits_do_not_depend_on_the_schedule(host: ModuleType, name: str) -> None:
    tensors = [t.float() for t in make(name)]
    expected = derivatives(ours, tensors, 1e-5, True, True)
    for seed in range(1, 5):
        host.set_seed(seed)
        got = derivatives(ours, tensors, 1e-5, True, True)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
