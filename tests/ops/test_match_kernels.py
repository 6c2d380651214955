"""The CUDA kernels of ``gradient_distance`` on the emulator: configurations and schedules."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from pyddfast import ops
from pyddfast.ops.match import METRICS
from pyddfast.ops.reference import match as twin
from tests.tolerances import FLOAT32, ROUNDING, assert_close

# What csrc/match/gradient_distance.cu decides by.
LISTS = {
    "rows shorter than a warp, and longer than a CTA": ((5, 27), (2, 300)),
    "two launches; more rows than the last CTA has threads": ((600, 2), *[(1, 3)] * 64),
    "where rows do not matter, more than one a tensor": ((3, 1500), (7,)),
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def run(shapes, metric: str, dtype: torch.dtype, *, exact: bool) -> list[Tensor]:
    """The distance and its gradients: the op's, or the twin's in float64 on the same input."""
    g = torch.Generator().manual_seed(0)
    syn, real = ([torch.randn(s, generator=g).to(dtype) for s in shapes] for _ in range(2))
    if exact:
        syn, real = ([x.double() for x in xs] for xs in (syn, real))
    syn = [s.requires_grad_() for s in syn]
    distance = (twin if exact else ops).gradient_distance(syn, real, metric)
    wanted = [s for s in syn if metric != "ours" or s.ndim > 1]
    return [distance.detach(), *torch.autograd.grad(1.7 * distance, wanted)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shapes", LISTS.values(), ids=LISTS)
def test_configuration(host: ModuleType, shapes, metric: str, dtype: torch.dtype) -> None:
    results = (run(shapes, metric, dtype, exact=exact) for exact in (False, True))
    for got, want in zip(*results, strict=True):
        assert_close(got, want, 2 * FLOAT32 + ROUNDING[got.dtype], absolute=1e-6)


SHAPES = LISTS["two launches; more rows than the last CTA has threads"]


def test_bits_do_not_depend_on_the_schedule(host: ModuleType) -> None:
    expected = run(SHAPES, "ours", torch.float32, exact=False)
    for seed in range(1, 4):
        host.set_seed(seed)
        got = run(SHAPES, "ours", torch.float32, exact=False)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
