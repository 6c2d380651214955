"""``dsa``: each entry of the standard strategy as one call of the official code does it.

`eager` is the official expression (VICO-UoE/DatasetCondensation, ``utils.py``), restated: it draws
and applies in one call, `scale` and `rotate` in a Python loop over the images.  Ours draws from the
same streams.  `torch.compile` compiles the composition of torch operators that does the same with
parameters drawn before, so that its time is that of the pixels alone: the comparison by which
kernels stay.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from importlib import import_module

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Case, Step
from pyddfast import ops
from pyddfast.ops.reference import dsa as twin

# The package's attribute of this name is the function.
dsa_op = import_module("pyddfast.ops.dsa")

# (images, side): the real batch of DC and DM, a synthetic one of TM, the paper's of DATM.
CPU_SHAPES = [(256, 32), (50, 32), (250, 64)]
CUDA_SHAPES = [(256, 32), (1000, 32), (250, 64)]
QUICK_SHAPES = [(4, 32)]
ENTRIES = ("color", "crop", "cutout", "flip", "scale", "rotate")

Inputs = Mapping[str, Tensor]


class Draws:
    """The official draws, from the global generators.

    Args:
        seed: -1: parameters of each image.  Else the Siamese form: every draw seeds the generators
            anew, and all images get what the first one has drawn.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, drawn: Callable[[], Tensor]) -> Tensor:
        """The parameters of all images."""
        if self.seed == -1:
            return drawn()
        torch.manual_seed(self.seed)
        self.seed += 1
        first = drawn()
        return first[:1].expand_as(first)


def official(images: Tensor, entry: str, seed: int = -1) -> Tensor:
    """The official transform, default strengths."""
    n, device, draw = len(images), images.device, Draws(seed)

    def rand() -> Tensor:
        return torch.rand(n, 1, 1, 1, device=device)

    draw(lambda: torch.randint(0, 1, (1,)))  # the choice of the entry, which the caller has made
    if entry == "color":
        images = images + (draw(rand) - 0.5)
        mean = images.mean(dim=1, keepdim=True)
        images = (images - mean) * (draw(rand) * 2) + mean
        mean = images.mean(dim=[1, 2, 3], keepdim=True)
        return (images - mean) * (draw(rand) + 0.5) + mean
    if entry == "flip":
        return torch.where(draw(rand) < 0.5, images.flip(3), images)
    if entry in ("crop", "cutout"):
        return (crop if entry == "crop" else cutout)(images, draw)
    if entry == "scale":
        low, high = 1 / 1.2, 1.2
        x, y = (draw(lambda: torch.rand(n) * (high - low) + low) for _ in range(2))
        rows = [[[x[i], 0, 0], [0, y[i], 0]] for i in range(n)]
    else:
        angle = draw(lambda: (torch.rand(n) - 0.5) * 2 * 15.0 / 180 * math.pi)
        rows = [
            [
                [torch.cos(angle[i]), torch.sin(-angle[i]), 0],
                [torch.sin(angle[i]), torch.cos(angle[i]), 0],
            ]
            for i in range(n)
        ]
    theta = torch.tensor(rows, dtype=torch.float)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False).to(device)
    return F.grid_sample(images, grid, align_corners=False)


def pixel_grid(n: int, height: int, width: int, device: torch.device) -> tuple[Tensor, ...]:
    ranges = (torch.arange(size, device=device) for size in (n, height, width))
    return torch.meshgrid(*ranges, indexing="ij")


def crop(images: Tensor, draw: Draws) -> Tensor:
    n, _, height, width = images.shape
    batch, rows, columns = pixel_grid(n, height, width, images.device)
    places = []
    for pixel, size in ((rows, height), (columns, width)):
        ends = -int(size * 0.125 + 0.5), int(size * 0.125 + 0.5) + 1
        shift = draw(functools.partial(torch.randint, *ends, [n, 1, 1], device=images.device))
        places.append(torch.clamp(pixel + shift + 1, 0, size + 1))
    padded = F.pad(images, [1, 1, 1, 1])
    return padded.permute(0, 2, 3, 1).contiguous()[batch, places[0], places[1]].permute(0, 3, 1, 2)


def cutout(images: Tensor, draw: Draws) -> Tensor:
    n, _, height, width = images.shape
    sizes = int(height * 0.5 + 0.5), int(width * 0.5 + 0.5)
    batch, rows, columns = pixel_grid(n, *sizes, images.device)
    places = []
    for pixel, size, side in ((rows, sizes[0], height), (columns, sizes[1], width)):
        end = side + (1 - size % 2)
        offset = draw(functools.partial(torch.randint, 0, end, [n, 1, 1], device=images.device))
        places.append(torch.clamp(pixel + offset - size // 2, 0, side - 1))
    mask = torch.ones(n, height, width, dtype=images.dtype, device=images.device)
    mask[batch, places[0], places[1]] = 0
    return images * mask.unsqueeze(1)


def dsa_cases(device: torch.device, quick: bool) -> list[Case]:
    """Images to views, draws included where the official code has them, and the gradient back."""
    shapes = QUICK_SHAPES if quick else CUDA_SHAPES if device.type == "cuda" else CPU_SHAPES
    return [
        Case(
            op="dsa",
            part=f"{entry} {part}",
            shape=(count, 3, side, side),
            dtype="float32",
            # The images are read and as many pixels written; so it is backwards.
            bytes_floor=2 * count * 3 * side * side * 4 * (1 if part == "forward" else 2),
            make_inputs=make_inputs(count, side, device),
            providers=providers(entry, part, (side, side), count, device),
            own_draws=frozenset({"eager", "ours with draws"}),
        )
        for count, side in shapes
        for entry in ENTRIES
        for part in ("forward", "forward+backward")
    ]


def make_inputs(count: int, side: int, device: torch.device) -> Callable[[int], Inputs]:
    def make(seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        images, upstream = (
            torch.randn(count, 3, side, side, generator=generator).to(device) for _ in range(2)
        )
        return {"images": images.requires_grad_(), "upstream": upstream}

    return make


def providers(
    entry: str, part: str, size: tuple[int, int], count: int, device: torch.device
) -> dict[str, Callable[[Inputs], Step]]:
    ids = torch.arange(count)
    drawn = ops.draw_dsa(0, ids, ids * 0, 0, size, strategy=entry).to(device)

    def composite(images: Tensor) -> Tensor:
        return twin.dsa(images, drawn, align_corners=False)

    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "ours": lambda images: ops.dsa(images, drawn),
        "torch.compile": torch.compile(composite, dynamic=False),
    }
    if device.type != "cuda":  # the official loop waits for the device: nothing to capture
        functions["ours with draws"] = lambda images: ops.dsa(
            images, dsa_op.draw_dsa_official(images, strategy=entry)[0]
        )
        functions["eager"] = lambda images: official(images, entry)
    return {name: step_of(function, part) for name, function in functions.items()}


def step_of(function: Callable[[Tensor], Tensor], part: str) -> Callable[[Inputs], Step]:
    def bind(inputs: Inputs) -> Step:
        images, upstream = inputs["images"], inputs["upstream"]
        if part == "forward":
            images = images.detach()
            return lambda: function(images)
        return lambda: torch.autograd.grad(function(images), images, upstream)

    return bind
