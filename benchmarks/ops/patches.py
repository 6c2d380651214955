"""``multi_crop`` and ``mosaic``: RDED's crops of ImageNet photographs, and its images.

`eager` cuts every crop out and resizes it with ``F.interpolate(antialias=True)``, as RDED's
official code does through torchvision; `PIL` resizes with Pillow.  A mosaic is denormalised and cut
off to bytes, ready to be stored; `torch.compile` compiles the eager expression.  Crops differ in
size, for each of which that would be compiled anew: for them it compiles the twin's, two batched
matrix products, as long as all photographs are of one size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Case, Step
from benchmarks.ops.augment import MEAN, STD, moments, pictures
from pyddfast import ops
from pyddfast.ops.augment import draw_crop_boxes
from pyddfast.ops.reference import patches as twin

CROPS = 5  # of an image, as in RDED's scripts
FACTOR = 2
# (images, height, width, size, pad_to): ImageNet's median photograph; its patch for factor 2
CPU_CROPS = [(4, 375, 500, 112, 224)]
QUICK_CROPS = [(2, 30, 40, 8, 16)]
CUDA_CROPS = [(64, 375, 500, 112, 224)]
# (patches, size of an image): 10 images a class
CPU_MOSAICS = [(40, 224)]
QUICK_MOSAICS = [(8, 16)]
CUDA_MOSAICS = [(4000, 224)]

Inputs = Mapping[str, Tensor]


def crop_inputs(shape: tuple[int, ...], device: torch.device) -> Callable[[int], Inputs]:
    count, height, width, *_ = shape

    def make(seed: int) -> Inputs:
        ids = torch.arange(count).repeat_interleave(CROPS)
        visits = torch.arange(CROPS).repeat(count)
        boxes = draw_crop_boxes(seed, ids, visits, (height, width), ratio=(1.0, 1.0))
        return {
            "images": pictures(seed, count, height, width).to(device),
            "boxes": boxes.view(count, CROPS, 4).to(device),
        }

    return make


def our_crops(inputs: Inputs, size: int, pad_to: int) -> Step:
    images, boxes = inputs["images"], inputs["boxes"]
    return lambda: ops.multi_crop(images, boxes, size=size, pad_to=pad_to, mean=MEAN, std=STD)


def tensor_crops(inputs: Inputs, size: int, pad_to: int) -> Step:
    images, boxes = inputs["images"], inputs["boxes"].transpose(0, 1).tolist()
    mean, std = (value[:, None, None] for value in moments(images.device))
    before = (pad_to - size) // 2
    after = pad_to - size - before

    def step() -> Tensor:
        batches = []
        for crops in boxes:
            rows = []
            for image, (top, left, height, width) in zip(images, crops, strict=True):
                cut = image[None, :, top : top + height, left : left + width].float() / 255
                rows.append(F.interpolate(cut, (size, size), mode="bilinear", antialias=True)[0])
            batches.append((torch.stack(rows) - mean) / std)
        return F.pad(torch.stack(batches), (before, after, before, after))

    return step


def matrix_crops(function: Callable[..., Tensor]) -> Callable[[Inputs, int, int], Step]:
    def bind(inputs: Inputs, size: int, pad_to: int) -> Step:
        images, boxes = inputs["images"], inputs["boxes"]
        mean, std = moments(images.device)
        return lambda: function(images, boxes, size, pad_to, mean, std, torch.float32)

    return bind


def pil_crops(inputs: Inputs, size: int, pad_to: int) -> Step:
    import numpy as np
    from PIL import Image

    pixels = inputs["images"].permute(0, 2, 3, 1).contiguous().numpy()
    photos = [Image.fromarray(image) for image in pixels]
    boxes = inputs["boxes"].transpose(0, 1).tolist()
    mean, std = (value[:, None, None] for value in moments(torch.device("cpu")))
    before = (pad_to - size) // 2
    after = pad_to - size - before

    def step() -> Tensor:
        batches = []
        for crops in boxes:
            rows = []
            for photo, (top, left, height, width) in zip(photos, crops, strict=True):
                small = photo.crop((left, top, left + width, top + height)).resize(
                    (size, size), Image.Resampling.BILINEAR
                )
                tensor = torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()
                rows.append(tensor.float().div_(255).sub_(mean).div_(std))
            batches.append(torch.stack(rows))
        return F.pad(torch.stack(batches), (before, after, before, after))

    return step


def multi_crop_cases(device: torch.device, quick: bool) -> list[Case]:
    """All crops of a few photographs, as the teacher's batch."""
    shapes = QUICK_CROPS if quick else CUDA_CROPS if device.type == "cuda" else CPU_CROPS
    cases = []
    for shape in shapes:
        count, height, width, size, pad_to = shape
        compiled = matrix_crops(torch.compile(twin.multi_crop, dynamic=False))
        binds = {"ours": our_crops, "eager": tensor_crops, "torch.compile": compiled}
        if device.type == "cpu":
            binds["PIL"] = pil_crops
        cases.append(
            Case(
                op="multi_crop",
                part="forward",
                shape=(count, 3, height, width),
                dtype="uint8",
                bytes_floor=count * 3 * (height * width + CROPS * pad_to * pad_to * 4),
                make_inputs=crop_inputs(shape, device),
                providers={
                    name: lambda x, bind=bind, size=size, pad_to=pad_to: bind(x, size, pad_to)  # type: ignore[misc]
                    for name, bind in binds.items()
                },
            )
        )
    return cases


def tensor_mosaic(patches: Tensor, mean: Tensor, std: Tensor, size: int) -> Tensor:
    images = twin.mosaic(patches, size, FACTOR, "nearest") * std + mean
    return (images * 255).clamp(0, 255).to(torch.uint8)


def mosaic_cases(device: torch.device, quick: bool) -> list[Case]:
    """A class's images as bytes."""
    shapes = QUICK_MOSAICS if quick else CUDA_MOSAICS if device.type == "cuda" else CPU_MOSAICS

    def ours(size: int) -> Callable[[Inputs], Step]:
        return lambda x: (
            lambda: ops.mosaic(
                x["patches"], size=size, factor=FACTOR, mean=MEAN, std=STD, quantize="truncate"
            )
        )

    def of(function: Callable[..., Tensor], size: int) -> Callable[[Inputs], Step]:
        def bind(x: Inputs) -> Step:
            patches = x["patches"]
            mean, std = (value[:, None, None] for value in moments(patches.device))
            return lambda: function(patches, mean, std, size)

        return bind

    def make(count: int, side: int) -> Callable[[int], Inputs]:
        def inputs(seed: int) -> Inputs:
            mean, std = (value[:, None, None] for value in moments(torch.device("cpu")))
            patches = (pictures(seed, count, side, side) / 255 - mean) / std
            return {"patches": patches.to(device)}

        return inputs

    return [
        Case(
            op="mosaic",
            part="forward",
            shape=(count, 3, size // FACTOR, size // FACTOR),
            dtype="float32",
            bytes_floor=count * 3 * (size // FACTOR) ** 2 * 5,  # 4 read, 1 written
            make_inputs=make(count, size // FACTOR),
            providers={
                "ours": ours(size),
                "eager": of(tensor_mosaic, size),
                "torch.compile": of(torch.compile(tensor_mosaic, dynamic=False), size),
            },
        )
        for count, size in shapes
    ]
