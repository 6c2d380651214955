"""``crop_flip_roll``: the augmentation of a recover step, with parameters in a tensor.

`eager` is the official chain (SRe2L): slices, ``F.interpolate``, ``flip``, ``roll``, with the
parameters as Python numbers, which on a GPU the host has to know; `torch.compile` compiles the
composition that reads them from the tensor, as ours does, so that a step can be captured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Case, Step
from pyddfast import ops
from pyddfast.ops.reference import synthesis as twin

# (images, side): SRe2L's batch for ImageNet (16 on a CPU), Tiny-ImageNet and CIFAR-100.
CPU_SHAPES = [(16, 224), (100, 64), (100, 32)]
CUDA_SHAPES = [(100, 224), (100, 64), (100, 32)]
QUICK_SHAPES = [(2, 64), (2, 32)]
SMALLEST_CROPPED = 64  # CIFAR-100's code neither crops nor mirrors, it only rolls

Inputs = Mapping[str, Tensor]
Views = Callable[[Tensor, Tensor], Tensor]


def chain(images: Tensor, params: Tensor) -> Tensor:
    top, left, height, width, flip, down, right = params.tolist()
    views = images[:, :, top : top + height, left : left + width]
    if views.shape != images.shape:
        views = F.interpolate(views, images.shape[2:], mode="bilinear", antialias=True)
    if flip:
        views = views.flip(-1)
    return views.roll((down, right), (2, 3))


def composite(images: Tensor, params: Tensor) -> Tensor:
    return twin.crop_flip_roll(images, params, (images.shape[2], images.shape[3]))


def crop_flip_roll_cases(device: torch.device, quick: bool) -> list[Case]:
    """Images to views, and the gradient back."""
    shapes = QUICK_SHAPES if quick else CUDA_SHAPES if device.type == "cuda" else CPU_SHAPES
    functions: dict[str, Views] = {
        "ours": ops.crop_flip_roll,
        "eager": chain,
        "torch.compile": torch.compile(composite, dynamic=False),
    }
    if device.type == "cuda":
        del functions["eager"]  # it waits for the device: nothing to capture
    return [
        Case(
            op="crop_flip_roll",
            part=part,
            shape=(count, 3, side, side),
            dtype="float32",
            # The images are read and as many pixels written; so it is backwards.
            bytes_floor=2 * count * 3 * side * side * 4 * (1 if part == "forward" else 2),
            make_inputs=make_inputs(count, side, device),
            providers={name: step_of(f, part) for name, f in functions.items()},
        )
        for count, side in shapes
        for part in ("forward", "forward+backward")
    ]


def make_inputs(count: int, side: int, device: torch.device) -> Callable[[int], Inputs]:
    def make(seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        images, upstream = (
            torch.randn(count, 3, side, side, generator=generator).to(device) for _ in range(2)
        )
        # A box of about half the area, as drawn on average.
        low, part = side // 7, side * 2 // 3
        cropped = side >= SMALLEST_CROPPED
        box = [low, low + 1, part, part + 3, 1] if cropped else [0, 0, side, side, 0]
        params = torch.tensor([*box, 4, 3], device=device)
        return {"images": images.requires_grad_(), "upstream": upstream, "params": params}

    return make


def step_of(function: Views, part: str) -> Callable[[Inputs], Step]:
    def bind(inputs: Inputs) -> Step:
        images, params, upstream = inputs["images"], inputs["params"], inputs["upstream"]
        if part == "forward":
            images = images.detach()
            return lambda: function(images, params)
        return lambda: torch.autograd.grad(function(images, params), images, upstream)

    return bind
