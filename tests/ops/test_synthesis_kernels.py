"""The CUDA kernels of ``crop_flip_roll`` on the emulator: launch configurations."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from pyddfast import ops
from pyddfast.ops._native import raw
from pyddfast.ops.reference import synthesis as twin
from tests.tolerances import FLOAT32, ROUNDING, assert_close

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# channels, image, box (top, left, height, width), view: what csrc/synthesis/*.cu decides by.
CONFIGURATIONS = {
    "one tile of 16 x 32": (1, (16, 32), (3, 5, 7, 20), (16, 32)),
    "a pixel more each way": (2, (17, 33), (0, 0, 17, 33), (17, 33)),
    "tiles beside the box": (1, (50, 70), (1, 2, 6, 5), (9, 9)),
    "one pixel to a view: the adjoint in two strips": (1, (5, 6), (4, 5, 1, 1), (40, 7)),
    "shrunk by 20: a view in three strips": (1, (90, 80), (0, 1, 90, 77), (5, 4)),
    "17 channels: two launches": (17, (6, 5), (1, 1, 4, 3), (6, 5)),
}


def run(name: str, dtype: torch.dtype = torch.float32, *, exact: bool = False) -> list[Tensor]:
    """The views and the images' gradient: the op's, or the twin's in float64 on the same inputs."""
    channels, side, box, view = CONFIGURATIONS[name]
    generator = torch.Generator().manual_seed(5)
    images, upstream = (
        torch.randn(2, channels, *size, generator=generator).to(dtype) for size in (side, view)
    )
    if exact:
        images, upstream = images.double(), upstream.double()
    op = twin.crop_flip_roll if exact else ops.crop_flip_roll
    views = op(images.requires_grad_(), torch.tensor([*box, 1, 3, -2]), view)
    return [views, *torch.autograd.grad(views, images, upstream)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configuration(host: ModuleType, name: str, dtype: torch.dtype) -> None:
    for got, want in zip(run(name, dtype), run(name, dtype, exact=True), strict=True):
        assert got.dtype is dtype
        assert_close(got, want, FLOAT32 + ROUNDING[dtype])


def test_bits_do_not_depend_on_the_schedule(host: ModuleType) -> None:
    expected = run("tiles beside the box")
    for seed in range(1, 5):
        host.set_seed(seed)
        got = run("tiles beside the box")
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("box", [(0, 0, 17, 16), (-1, 0, 2, 2), (3, 40, 2, 2), (2, 2, 0, 1)])
def test_a_box_outside_gives_nan_both_ways(host: ModuleType, box: tuple[int, ...]) -> None:
    """Where the box is on a device nobody looks at it before."""
    params, images = torch.tensor([*box, 0, 1, 1]), torch.zeros(1, 1, 16, 16)
    for adjoint in (False, True):
        assert bool(raw.crop_flip_roll(images, params, 16, 16, adjoint).isnan().all())
