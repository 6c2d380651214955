"""``norm_relu_pool`` on the blocks of ConvNet-D3 and D4, differentiated up to twice.

`eager` is the official composition of GroupNorm, ReLU and AvgPool2d, `torch.compile` the same
compiled; that has no double backward, which torch refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Case, Step
from pyddfast import ops

# (images, side): the three blocks of ConvNet-D3 at 32 px, which D4 at 64 px has after one more.
CPU_SHAPES = [(50, 32), (50, 16), (50, 8), (20, 64)]
CUDA_SHAPES = [(100, 32), (100, 16), (100, 8), (1000, 32), (250, 64)]
QUICK_SHAPES = [(2, 32), (2, 8)]
CHANNELS = 128
# Planes that any implementation moves: of x, and of a quarter the size of y and its gradient.  The
# backward reads x and the gradient and writes one of x; the double backward reads both and a
# cotangent of x, and writes one of each.
PLANES = {"forward": 1.25, "forward+backward": 3.5, "forward+double backward": 7.0}

Inputs = Mapping[str, Tensor]
Block = Callable[[Tensor, Tensor, Tensor], Tensor]


def composite(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.avg_pool2d(F.relu(F.group_norm(x, x.shape[1], weight, bias)), 2)


def norm_relu_pool_cases(device: torch.device, quick: bool) -> list[Case]:
    """The block, its gradients, and theirs."""
    shapes = QUICK_SHAPES if quick else CUDA_SHAPES if device.type == "cuda" else CPU_SHAPES
    functions: dict[str, Block] = {
        "ours": ops.norm_relu_pool,
        "eager": composite,
        "torch.compile": torch.compile(composite, dynamic=False),
    }
    return [
        Case(
            op="norm_relu_pool",
            part=part,
            shape=(count, CHANNELS, side, side),
            dtype="float32",
            bytes_floor=int(planes * count * CHANNELS * side * side * 4),
            make_inputs=make_inputs(count, side, device),
            providers={
                name: step_of(function, part)
                for name, function in functions.items()
                if not ("double" in part and name == "torch.compile")
            },
        )
        for count, side in shapes
        for part, planes in PLANES.items()
    ]


def make_inputs(count: int, side: int, device: torch.device) -> Callable[[int], Inputs]:
    def make(seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device)

        shape = (count, CHANNELS, side, side)
        return {
            "x": randn(*shape).requires_grad_(),
            "weight": randn(CHANNELS).requires_grad_(),
            "bias": randn(CHANNELS).requires_grad_(),
            "upstream": randn(count, CHANNELS, side // 2, side // 2).requires_grad_(),
            "of_x": randn(*shape),
            "of_weight": randn(CHANNELS),
            "of_bias": randn(CHANNELS),
        }

    return make


def step_of(function: Block, part: str) -> Callable[[Inputs], Step]:
    def bind(inputs: Inputs) -> Step:
        x, weight, bias, upstream = (inputs[n] for n in ("x", "weight", "bias", "upstream"))
        cotangents = [inputs[name] for name in ("of_x", "of_weight", "of_bias")]
        if part == "forward":
            x, weight, bias = x.detach(), weight.detach(), bias.detach()
            return lambda: function(x, weight, bias)
        leaves = (x, weight, bias)
        if part == "forward+backward":
            constant = upstream.detach()
            return lambda: torch.autograd.grad(function(*leaves), leaves, constant)

        def twice() -> tuple[Tensor, ...]:
            first = torch.autograd.grad(function(*leaves), leaves, upstream, create_graph=True)
            return torch.autograd.grad(first, (upstream, x, weight), cotangents)

        return twice

    return bind
