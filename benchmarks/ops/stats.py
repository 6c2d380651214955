"""The stats family: the BatchNorm loss of SRe2L on the inputs of a ResNet-18's 20 BatchNorm layers.

A step is what the hooks add to a recover step: the loss of all layers, and its gradient together
with the gradient that arrives at each activation from the layers behind it.  `eager` is the
official hook (SRe2L, recover/utils.py:BNFeatureHook) as it is; `torch.compile` is the sum of all
hooks compiled as one function.  `channel_stats` has these losses alone; `bn_eval_stats` the
eval-mode batch normalisations as well, for all providers.  `patch_stats` is the hook of G-VBSM and
EDC on one convolution's input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Case, Step
from pyddfast import ops

# (channels, side) of the BatchNorm inputs of torchvision's resnet18 at 224 px, and how often.
LAYERS = [(64, 112, 1), (64, 56, 4), (128, 28, 5), (256, 14, 5), (512, 7, 5)]
# Batch and image side.  16: a CPU's memory; 100: SRe2L's batch; 32 px with batch 4: a smoke test.
CPU_SHAPES, QUICK_SHAPES, CUDA_SHAPES = [(16, 224)], [(4, 32)], [(100, 224)]
FIRST = 10.0  # first_bn_multiplier

Inputs = Mapping[str, Tensor]
Forward = Callable[[Inputs], tuple[Tensor, list[Tensor]]]
"""Loss, and the activations that the network goes on with."""


def shapes(batch: int, side: int) -> list[tuple[int, int, int, int]]:
    """Of the 20 activations; the last stages of a small image are 1 x 1."""
    scale = 224 // side
    return [
        (batch, channels, max(1, size // scale), max(1, size // scale))
        for channels, size, count in LAYERS
        for _ in range(count)
    ]


def make_inputs(
    batch: int, side: int, dtype: torch.dtype, device: torch.device
) -> Callable[[int], Inputs]:
    def make(seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        inputs = {}
        for i, shape in enumerate(shapes(batch, side)):
            x, upstream = (torch.randn(shape, generator=generator) for _ in range(2))
            inputs[f"x{i}"] = x.to(device, dtype).requires_grad_()
            inputs[f"g{i}"] = upstream.to(device, dtype)
            # Running statistics near the batch's, a few tenths of a standard deviation off.
            inputs[f"mean{i}"] = (0.2 * torch.randn(shape[1], generator=generator)).to(device)
            inputs[f"var{i}"] = (0.8 + 0.4 * torch.rand(shape[1], generator=generator)).to(device)
        return inputs

    return make


def named(inputs: Inputs, name: str) -> list[Tensor]:
    return [inputs[f"{name}{i}"] for i in range(len(inputs) // 4)]


def official_feature(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """One hook."""
    batch_mean = x.mean([0, 2, 3])
    batch_var = x.permute(1, 0, 2, 3).contiguous().view([x.shape[1], -1]).var(1, unbiased=False)
    return torch.norm(var - batch_var, 2) + torch.norm(mean - batch_mean, 2)


def official_loss(
    xs: Sequence[Tensor], means: Sequence[Tensor], variances: Sequence[Tensor]
) -> Tensor:
    features = [official_feature(x, m, v) for x, m, v in zip(xs, means, variances, strict=True)]
    return FIRST * features[0] + torch.stack(features[1:]).sum()


def official_with_norm(
    xs: Sequence[Tensor], means: Sequence[Tensor], variances: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    ys = [F.batch_norm(x, m, v) for x, m, v in zip(xs, means, variances, strict=True)]
    return official_loss(xs, means, variances), ys


def distance(
    stats: Sequence[tuple[Tensor, Tensor]], means: Sequence[Tensor], variances: Sequence[Tensor]
) -> Tensor:
    mean, var = (torch.cat(part) for part in zip(*stats, strict=True))
    sizes = [len(m) for m in means]
    weights = [FIRST] + [1.0] * (len(sizes) - 1)
    target = torch.cat(list(means)), torch.cat(list(variances))
    return ops.bn_distance(mean, var, *target, sizes, layer_weight=weights)[0]


def our_tap(inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
    xs, means, variances = (named(inputs, name) for name in ("x", "mean", "var"))
    taps = [ops.channel_stats(x, m) for x, m in zip(xs, means, strict=True)]
    return distance([tap[1:] for tap in taps], means, variances), [tap[0] for tap in taps]


def our_fused(inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
    xs, means, variances = (named(inputs, name) for name in ("x", "mean", "var"))
    results = [ops.bn_eval_stats(x, m, v) for x, m, v in zip(xs, means, variances, strict=True)]
    return distance([r[1:] for r in results], means, variances), [r[0] for r in results]


def hooks_of(loss: Callable[..., Tensor]) -> Forward:
    def forward(inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
        xs, means, variances = (named(inputs, name) for name in ("x", "mean", "var"))
        return loss(xs, means, variances), xs

    return forward


def with_norm(expression: Callable[..., tuple[Tensor, list[Tensor]]]) -> Forward:
    def forward(inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
        return expression(*(named(inputs, name) for name in ("x", "mean", "var")))

    return forward


def step_of(forward: Forward) -> Callable[[Inputs], Step]:
    """The loss, and the gradient of loss and activations together."""

    def bind(inputs: Inputs) -> Step:
        xs, upstreams = named(inputs, "x"), named(inputs, "g")

        def step() -> object:
            loss, activations = forward(inputs)
            one = torch.ones_like(loss)
            return loss, torch.autograd.grad([loss, *activations], xs, [one, *upstreams])

        return step

    return bind


def cases(device: torch.device, quick: bool, *, norm: bool) -> list[Case]:
    chosen = CUDA_SHAPES if device.type == "cuda" else CPU_SHAPES
    expression = official_with_norm if norm else official_loss
    compiled = torch.compile(expression, fullgraph=True, dynamic=False)
    if norm:
        providers = {
            "ours": step_of(our_fused),
            "eager": step_of(with_norm(official_with_norm)),
            "torch.compile": step_of(with_norm(compiled)),
        }
    else:
        providers = {
            "ours": step_of(our_tap),
            "eager": step_of(hooks_of(official_loss)),
            "torch.compile": step_of(hooks_of(compiled)),
        }
    return [
        Case(
            op="bn_eval_stats" if norm else "channel_stats",
            part="forward+backward",
            shape=(batch, 3, side, side),
            dtype="float32",
            # Forward: x read (and y written).  Backward: x and g read, the gradient written.
            bytes_floor=(5 if norm else 4) * 4 * elements(batch, side),
            make_inputs=make_inputs(batch, side, torch.float32, device),
            providers=providers,
        )
        for batch, side in (QUICK_SHAPES if quick else chosen)
    ]


def elements(batch: int, side: int) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes(batch, side))


def channel_stats_cases(device: torch.device, quick: bool) -> list[Case]:
    """The loss of all layers beside the network: hooks against taps."""
    return cases(device, quick, norm=False)


def bn_eval_stats_cases(device: torch.device, quick: bool) -> list[Case]:
    """The same with the batch normalisations that the statistics are fused into."""
    return cases(device, quick, norm=True)


# --- patch_stats ---------------------------------------------------------------------------------

# (channels, side) of the inputs of torchvision's resnet18's convolutions at 224 px, and of those of
# its CIFAR form at 32 px.
CONVOLUTIONS = {
    224: [(3, 224), (64, 56), (128, 28), (256, 14), (512, 7)],
    32: [(3, 32), (64, 32), (128, 16), (256, 8), (512, 4)],
}
CELL = 16


def official_patches(x: Tensor) -> tuple[Tensor, ...]:
    """The hook of a convolution in G-VBSM and EDC, and the activation itself to go on with."""
    mean = x.mean([0, 2, 3])
    var = x.permute(1, 0, 2, 3).contiguous().view([x.shape[1], -1]).var(1, unbiased=False)
    down, across = (-(-side // CELL) for side in x.shape[2:])
    size = (down * CELL, across * CELL)
    planes = x if size == x.shape[2:] else F.interpolate(x, size, mode="bilinear")
    cells = planes.view(*x.shape[:2], down, CELL, across, CELL).permute(2, 4, 0, 1, 3, 5)
    cells = cells.reshape(down * across, -1)
    return x.view_as(x), mean, var, cells.mean(1), cells.var(1, unbiased=False)


def patch_inputs(shape: tuple[int, ...], device: torch.device) -> Callable[[int], Inputs]:
    cells = (-(-shape[2] // CELL)) ** 2

    def make(seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        sizes = [shape, *[(n,) for n in (shape[1], shape[1], cells, cells)]]
        grads = [torch.randn(size, generator=generator).to(device) for size in sizes]
        x = torch.randn(shape, generator=generator).relu().to(device).requires_grad_()
        return {"x": x, **{f"g{i}": grad for i, grad in enumerate(grads)}}

    return make


def patch_step(function: Callable[[Tensor], tuple[Tensor, ...]]) -> Callable[[Inputs], Step]:
    def bind(inputs: Inputs) -> Step:
        x, grads = inputs["x"], [inputs[f"g{i}"] for i in range(5)]
        return lambda: torch.autograd.grad(function(x), x, grads)

    return bind


def patch_stats_cases(device: torch.device, quick: bool) -> list[Case]:
    """What a hook adds to one convolution: its statistics, and their gradient."""
    batch = 100 if device.type == "cuda" else 16
    shapes = [(batch, c, s, s) for side in CONVOLUTIONS for c, s in CONVOLUTIONS[side]]
    functions = {
        "ours": ops.patch_stats,
        "eager": official_patches,
        "torch.compile": torch.compile(official_patches, fullgraph=True, dynamic=False),
    }
    return [
        Case(
            op="patch_stats",
            part="forward+backward",
            shape=shape,
            dtype="float32",
            # Forward: x read.  Backward: x and its gradient read, the gradient written.
            bytes_floor=4 * 4 * torch.Size(shape).numel(),
            make_inputs=patch_inputs(shape, device),
            providers={name: patch_step(function) for name, function in functions.items()},
        )
        for shape in ([(2, 8, 7, 7)] if quick else shapes)
    ]
