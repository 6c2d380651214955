"""The CUDA kernels of ``dsa`` on the emulator: launch configurations and schedules."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from pyddfast import ops
from pyddfast.ops import DSAParams
from pyddfast.ops.reference import dsa as twin
from tests.tolerances import FLOAT32, ROUNDING, assert_close

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
STAGES = {
    "color": ("brightness", "saturation", "contrast"),
    "means left out": ("brightness",),
    "shift": ("crop", "cutout", "flip"),
    "scale": ("scale",),
    "rotate": ("rotate",),
}
# images, channels, sides, Siamese: what csrc/dsa/dsa.cu decides by (256 threads, 4 channels).
CONFIGURATIONS = {
    "less than a CTA": (1, 3, (5, 7), False),
    "a CTA exactly": (1, 1, (16, 16), True),
    "images across CTAs": (3, 2, (11, 13), False),
    "five channels": (2, 5, (17, 19), True),
}


def run(stage: str, name: str, dtype: torch.dtype, *, exact: bool = False) -> list[Tensor]:
    """Views and the images' gradient: the op's, or the twin's in float64 on the same inputs."""
    count, channels, size, siamese = CONFIGURATIONS[name]
    generator = torch.Generator().manual_seed(5)
    images, upstream = (
        torch.randn(count, channels, *size, generator=generator).to(dtype) for _ in range(2)
    )
    ids = None if siamese else torch.arange(count)
    drawn = ops.draw_dsa(2, ids, ids, 0, size, mode="all")
    values = {k: drawn.values[k] for k in STAGES[stage]}
    values = {k: v.float() if v.is_floating_point() else v for k, v in values.items()}
    if exact:
        images, upstream = images.double(), upstream.double()
        values = {k: v.double() if v.is_floating_point() else v for k, v in values.items()}
    params = DSAParams(STAGES[stage], values, drawn.cutout_size)
    op = twin.dsa if exact else ops.dsa
    views = op(images.requires_grad_(), params, align_corners=siamese)
    return [views, *torch.autograd.grad(views, images, upstream)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("stage", STAGES)
def test_configuration(host: ModuleType, stage: str, name: str, dtype: torch.dtype) -> None:
    for got, want in zip(run(stage, name, dtype), run(stage, name, dtype, exact=True), strict=True):
        assert got.dtype is dtype
        assert_close(got, want, FLOAT32 + ROUNDING[dtype])


@pytest.mark.parametrize("stage", STAGES)
def test_bits_do_not_depend_on_the_schedule(host: ModuleType, stage: str) -> None:
    expected = run(stage, "images across CTAs", torch.float32)
    for seed in range(1, 4):
        host.set_seed(seed)
        got = run(stage, "images across CTAs", torch.float32)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
