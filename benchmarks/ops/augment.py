"""``augment``: random-resized crop, flip and normalisation of a batch from a uint8 set in memory.

`eager` is the twin's expression, batched matrix products; `torch (image by image)` is what a tensor
pipeline does: slice, ``F.interpolate(antialias=True)``, flip; `PIL` crops and resizes the same
pixels with Pillow, as torchvision's transforms do; `PIL from JPEG` decodes them first.  All get the
same boxes and flips, drawn beforehand.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Case, Step
from pyddfast import ops
from pyddfast.ops.reference import augment as twin

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
SCALE = (0.08, 1.0)  # of RandomResizedCrop, the default everywhere
# (batch, side): RDED's students on ImageNet-1k, an ImageNet batch that stays in the heap between
# steps; CIFAR, where fixed costs count.
CPU_SHAPES = [(32, 224), (256, 32)]
QUICK_SHAPES = [(4, 32)]
CUDA_SHAPES = [(128, 224), (1024, 224), (256, 32)]
DTYPES = [torch.float32, torch.bfloat16]

Inputs = Mapping[str, Tensor]


def pictures(seed: int, count: int, height: int, width: int) -> Tensor:
    """uint8 (count, 3, height, width) with the smoothness of photographs and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 12, 12, generator=generator)
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic")
    noise = 0.03 * torch.randn(smooth.shape, generator=generator)
    return ((smooth + noise).clamp(0, 1) * 255).round().to(torch.uint8)


def make_inputs(batch: int, side: int, device: torch.device) -> Callable[[int], Inputs]:
    def make(seed: int) -> Inputs:
        index = torch.arange(batch)
        drawn = ops.draw_augmentation(
            seed, index, torch.zeros_like(index), 0, (side, side), scale=SCALE
        )
        assert drawn.box is not None
        assert drawn.flip is not None
        given = {
            "images": pictures(seed, batch, side, side),
            "index": index.flip(0),
            "box": drawn.box,
            "flip": drawn.flip,
        }
        return {name: value.to(device) for name, value in given.items()}

    return make


def our_views(inputs: Inputs, dtype: torch.dtype) -> Step:
    params = ops.AugmentParams(box=inputs["box"], flip=inputs["flip"])
    images, index = inputs["images"], inputs["index"]
    return lambda: ops.augment(images, index, params, mean=MEAN, std=STD, dtype=dtype)


def expression(
    images: Tensor, index: Tensor, box: Tensor, flip: Tensor, mean: Tensor, std: Tensor
) -> Tensor:
    none = (None, None, None, None)
    size = (images.shape[2], images.shape[3])
    return twin.augment(
        images, index, box, flip, *none, mean, std, size, shuffle_first=True, antialias=True
    )


def moments(device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)


def twin_views(
    function: Callable[..., Tensor],
) -> Callable[[Inputs, torch.dtype], Step]:
    def bind(inputs: Inputs, dtype: torch.dtype) -> Step:
        arguments = [inputs[name] for name in ("images", "index", "box", "flip")]
        mean, std = moments(arguments[0].device)
        return lambda: function(*arguments, mean, std).to(dtype)

    return bind


def tensor_views(inputs: Inputs, dtype: torch.dtype) -> Step:
    images, index = inputs["images"], inputs["index"].tolist()
    boxes, flips = inputs["box"].tolist(), inputs["flip"].tolist()
    mean, std = (value[:, None, None] for value in moments(images.device))

    def step() -> Tensor:
        out = torch.empty((len(index), *images.shape[1:]), device=images.device)
        for b, (i, (top, left, height, width), flip) in enumerate(
            zip(index, boxes, flips, strict=True)
        ):
            crop = images[i : i + 1, :, top : top + height, left : left + width].float()
            view = F.interpolate(crop, size=images.shape[2:], mode="bilinear", antialias=True)[0]
            out[b] = view.flip(-1) if flip else view
        return out.div_(255).sub_(mean).div_(std).to(dtype)

    return step


def pil_views(inputs: Inputs, dtype: torch.dtype, *, jpeg: bool = False) -> Step:
    import numpy as np
    from PIL import Image

    pixels = inputs["images"].permute(0, 2, 3, 1).contiguous().numpy()
    stored: list[Any] = [Image.fromarray(image) for image in pixels]
    if jpeg:
        files = [io.BytesIO() for _ in stored]
        for image, file in zip(stored, files, strict=True):
            image.save(file, "JPEG", quality=90)
        stored = [file.getvalue() for file in files]
    index, boxes = inputs["index"].tolist(), inputs["box"].tolist()
    flips = inputs["flip"].tolist()
    mean, std = (value[:, None, None] for value in moments(torch.device("cpu")))
    side = inputs["images"].shape[-1]

    def step() -> Tensor:
        views = []
        for i, (top, left, height, width), flip in zip(index, boxes, flips, strict=True):
            image = Image.open(io.BytesIO(stored[i])) if jpeg else stored[i]
            image = image.crop((left, top, left + width, top + height))
            image = image.resize((side, side), Image.Resampling.BILINEAR)
            if flip:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
            views.append(tensor.float().div_(255).sub_(mean).div_(std))
        return torch.stack(views).to(dtype)

    return step


def augment_cases(device: torch.device, quick: bool) -> list[Case]:
    """Views of a whole batch."""
    shapes = QUICK_SHAPES if quick else CUDA_SHAPES if device.type == "cuda" else CPU_SHAPES
    cases = []
    for dtype in DTYPES:
        for batch, side in shapes:
            binds: dict[str, Callable[[Inputs, torch.dtype], Step]] = {
                "ours": our_views,
                "eager": twin_views(expression),
                "torch (image by image)": tensor_views,
                "torch.compile": twin_views(torch.compile(expression, dynamic=False)),
            }
            if device.type == "cpu":
                binds["PIL"] = pil_views
                binds["PIL from JPEG"] = lambda x, d: pil_views(x, d, jpeg=True)
            pixels = batch * 3 * side * side
            cases.append(
                Case(
                    op="augment",
                    part="forward",
                    shape=(batch, 3, side, side),
                    dtype=str(dtype).removeprefix("torch."),
                    # the crops' mean area is just over half of the image, read once
                    bytes_floor=pixels * dtype.itemsize + round(pixels * sum(SCALE) / 2),
                    make_inputs=make_inputs(batch, side, device),
                    providers={
                        name: lambda x, bind=bind, dtype=dtype: bind(x, dtype)  # type: ignore[misc]
                        for name, bind in binds.items()
                    },
                )
            )
    return cases
