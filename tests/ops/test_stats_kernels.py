"""The CUDA kernels of the stats family on the emulator: launch configurations."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from pyddfast import ops
from pyddfast.ops import _native
from pyddfast.ops.reference import stats as twin
from tests.tolerances import FLOAT32, ROUNDING, assert_close

# (shape, channels last): what csrc/stats/channel_stats.cu decides by.
CONFIGURATIONS = {
    ((3, 2, 4, 8), False): "vectors; several planes a tile",
    ((3, 2, 3, 5), False): "elements; several planes a tile, the last tile not full",
    ((1200, 1, 3, 3), False): "two tiles of whole planes",
    ((2, 2, 91, 91), False): "elements; two pieces a plane, of different length",
    ((1, 1, 128, 100), False): "vectors; two pieces a plane",
    ((2, 4, 3, 3), True): "vectors; one group of channels, not full",
    ((2, 67, 3, 3), True): "elements; two groups of channels",
    ((2, 132, 9, 9), True): "vectors; three groups, two tiles of rows",
    ((3, 8), False): "no positions: rows",
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def activation(shape: tuple[int, ...], last: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    x = (torch.randn(shape, generator=generator) * 2 + 5).to(dtype)
    return x.to(memory_format=torch.channels_last) if last else x


def run(x: Tensor, *, norm: bool) -> list[Tensor]:
    """All outputs and the gradient of one op; the twin's in float64 for a float64 x."""
    x = x.detach().requires_grad_()
    channels = x.shape[1]
    wide = x.dtype is torch.float64
    vectors = [torch.linspace(a, b, channels) for a, b in ((4, 6), (1, 2), (-1, 2), (-1, 1))]
    if norm and wide:
        outputs = twin.bn_eval_stats(x, *vectors, eps=1e-5, activation="relu6")
    elif norm:
        outputs = ops.bn_eval_stats(x, *vectors, activation="relu6")
    else:
        outputs = twin.channel_stats(x) if wide else ops.channel_stats(x)
    factors = [torch.linspace(-1, 2, o.numel()).view(o.shape) for o in outputs]
    upstreams = [f.to(torch.float16).to(o.dtype) for f, o in zip(factors, outputs, strict=True)]
    return [*outputs, *torch.autograd.grad(outputs, x, upstreams)]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "last"), CONFIGURATIONS)
def test_configuration(
    host: ModuleType, shape: tuple[int, ...], last: bool, dtype: torch.dtype, norm: bool
) -> None:
    x = activation(shape, last, dtype)
    for got, want in zip(run(x, norm=norm), run(x.double(), norm=norm), strict=True):
        assert_close(got, want, 2 * FLOAT32 + ROUNDING[got.dtype], absolute=1e-6)


def test_rounds_of_rows(host: ModuleType) -> None:
    """From 2048 tiles on a CTA goes through several of them."""
    x = activation((32, 2, 64, 132), True)  # 2112 tiles of 128 rows: two rounds
    mean, var = ops.channel_stats(x)[1:]
    assert_close(mean, x.double().mean([0, 2, 3]), FLOAT32)
    assert_close(var, x.double().var([0, 2, 3], unbiased=False), FLOAT32)


@pytest.mark.parametrize("last", [False, True])
def test_bits_do_not_depend_on_the_schedule(host: ModuleType, last: bool) -> None:
    x = activation((3, 5, 40, 40), last)
    expected = run(x, norm=True)
    for seed in range(1, 6):
        host.set_seed(seed)
        for got, want in zip(run(x, norm=True), expected, strict=True):
            assert torch.equal(got, want)


def distance(layers: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(layers)
    sizes = [1 + 13 * (i % 5) for i in range(layers)]
    sizes[-1] = 300  # a CTA of the backward has 256 threads
    values = [torch.rand(sum(sizes), generator=generator) for _ in range(2)]
    values += [torch.rand(2, sum(sizes), generator=generator) for _ in range(2)]
    for tensor in values:
        tensor.requires_grad_()
    loss, per_layer = ops.bn_distance(*values, sizes, layer_weight=[1.0 + i for i in range(layers)])
    return [loss, per_layer, *torch.autograd.grad(loss, values)]


@pytest.mark.parametrize("layers", [1, 32, 33, 256])  # a warp a layer: one round, more, the most
def test_configuration_of_the_distance(host: ModuleType, layers: int) -> None:
    got = distance(layers)
    with _native.emulated("pyddfast"):  # the CPU kernels
        want = distance(layers)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, FLOAT32)
