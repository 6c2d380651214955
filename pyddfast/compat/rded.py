"""RDED: ``synthesize/utils.py`` and ``validation/utils.py`` of LINs-lab/RDED (3f6453d).

Random numbers come from the generators that the official code takes them from, in its order:
torch's for crops and partners, NumPy's for CutMix, Python's for strips.
"""

from __future__ import annotations

import math
import random
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyddfast import ops
from pyddfast.compat.fkd import Mixed, rand_bbox
from pyddfast.ops import _checks

__all__ = [
    "MultiRandomCrop",
    "ShufflePatches",
    "cross_entropy",
    "mix_aug",
    "mix_images",
    "selector",
]

_SCALE = (0.08, 1.0)  # RandomResizedCrop's default, which the official code leaves
_TRIES = 10  # draws of torchvision's RandomResizedCrop before it takes the central square


class _Arguments(Protocol):
    """The script's arguments: ``mix_type``, and the Beta parameter of the mixing it names."""

    mix_type: str | None
    cutmix: float
    mixup: float


class MultiRandomCrop(nn.Module):
    """Square random resized crops of one image, all cut and resized in one pass.

    Args:
        num_crop: Crops of an image.
        size: Side of a distilled image.
        factor: Its patches an axis; a crop has ``size // factor`` pixels a side.
    """

    def __init__(self, num_crop: int = 5, size: int = 224, factor: int = 2) -> None:
        super().__init__()
        self.num_crop = num_crop
        self.size = size
        self.factor = factor

    def forward(self, image: Tensor) -> Tensor:
        """Cut the crops.

        Args:
            image: (C, H, W): floating point in [0, 1] as ``ToTensor`` gives it, or uint8 as
                ``PILToTensor`` does, which saves converting the pixels between the crops.

        Returns:
            (num_crop, C, size // factor, size // factor) in [0, 1], of the image's dtype; float32
            for uint8.

        Raises:
            TypeError: The image is no tensor, or of another dtype.
            ValueError: Its shape is not (C, H, W), or the factor exceeds the size.
        """
        if not isinstance(image, Tensor):
            raise TypeError(f"image must be a tensor, got {type(image).__name__}")
        if image.ndim != 3 or 0 in image.shape:
            raise ValueError(f"image must have shape (C, H, W), got {tuple(image.shape)}")
        if self.size // self.factor < 1:
            raise ValueError(f"factor must be at most size = {self.size}, got {self.factor}")
        height, width = image.shape[1:]
        boxes = torch.tensor([[_draw_square(height, width) for _ in range(self.num_crop)]])
        return ops.multi_crop(
            image[None],
            boxes,
            size=self.size // self.factor,
            mean=(0.0,) * len(image),
            std=(1.0,) * len(image),
            dtype=torch.float32 if image.dtype == torch.uint8 else image.dtype,
        )[:, 0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_crop={self.num_crop}, size={self.size})"


def _draw_square(height: int, width: int) -> list[int]:
    """Top, left, height, width by ``RandomResizedCrop.get_params`` for the ratio (1, 1)."""
    for _ in range(_TRIES):
        area = height * width * torch.empty(1).uniform_(*_SCALE).item()
        torch.empty(1).uniform_(0.0, 0.0)  # the ratio's draw: always 1, but it moves the generator
        side = round(math.sqrt(area))
        if 0 < side <= min(height, width):
            top = int(torch.randint(0, height - side + 1, size=(1,)))
            left = int(torch.randint(0, width - side + 1, size=(1,)))
            return [top, left, side, side]
    side = min(height, width)
    return [(height - side) // 2, (width - side) // 2, side, side]


def cross_entropy(y_pre: Tensor, y: Tensor) -> Tensor:
    """−log softmax(y_pre)[y] of every row, in the official three steps.

    It is 0 where the probability rounds to 1 and infinite where it underflows; only so do the picks
    agree with the official ones.  ``ops.sample_scores(y_pre, y).nll`` does neither.

    Args:
        y_pre: Floating point (B, C), logits.
        y: int64 (B,) or (B, 1).

    Returns:
        (B,).

    Raises:
        TypeError: ``y_pre`` is not floating point.
        ValueError: Shapes do not fit.
    """
    _checks.float_tensor(y_pre, "y_pre")
    if y_pre.ndim != 2 or y.numel() != len(y_pre):
        raise ValueError(
            f"y_pre must have shape (B, C) and y one label a row, "
            f"got {tuple(y_pre.shape)} and {tuple(y.shape)}"
        )
    return -y_pre.softmax(dim=1).gather(1, y.view(-1, 1)).log()[:, 0]


@torch.no_grad()
def selector(
    n: int, model: nn.Module, images: Tensor, labels: Tensor, size: int, m: int = 5
) -> Tensor:
    """The best crop of every image, and of those the ``n`` that the model is surest of.

    Crops are padded as they are scored, one crop of every image at a time, so that the padded batch
    of all crops never exists.  Equal scores go to the first crop and the first image.

    Args:
        n: Patches to keep; all images if there are fewer.
        model: Takes (B, C, size, size); put in evaluation mode.
        images: Floating point (N, m, C, h, w), normalised.
        labels: int64 (N,).
        size: Side that crops are padded to with zeros.
        m: Crops of an image.

    Returns:
        (n, C, h, w), best first, on the current CUDA device; on the images' device without one.

    Raises:
        TypeError: ``images`` is not floating point.
        ValueError: Shapes do not fit, or a crop is larger than ``size``.
    """
    _checks.float_tensor(images, "images")
    if images.ndim != 5 or images.shape[1] != m or labels.shape != images.shape[:1]:
        raise ValueError(
            f"images must have shape (N, m, C, h, w) with m = {m} and labels (N,), "
            f"got {tuple(images.shape)} and {tuple(labels.shape)}"
        )
    vertical, horizontal = (size - side for side in images.shape[-2:])
    if min(vertical, horizontal) < 0:
        raise ValueError(f"size must be at least a crop's {tuple(images.shape[-2:])}, got {size}")
    if torch.cuda.is_available():
        images, labels = images.cuda(), labels.cuda()
    model.eval()
    top, left = vertical // 2, horizontal // 2
    border = (left, horizontal - left, top, vertical - top)
    scores = torch.stack(
        [cross_entropy(model(F.pad(images[:, crop], border)), labels) for crop in range(m)]
    )
    crop = scores.argmin(dim=0)
    image = torch.arange(len(images), device=images.device)
    order = scores[crop, image].argsort(stable=True)[:n]
    return images[order, crop[order]]


def mix_images(input_img: Tensor, out_size: int, factor: int, n: int) -> Tensor:
    """Tile patches: image t holds the ranks t, n + t, 2n + t, ...

    Args:
        input_img: Floating point (K, 3, h, w), at least n · factor² patches, best first.
        out_size: Side of an image.
        factor: Tiles along each side; the first ones take the remaining pixels.
        n: Images.

    Returns:
        float32 (n, 3, out_size, out_size) on the CPU.

    Raises:
        TypeError: ``input_img`` is not floating point.
        ValueError: There are too few patches, or the factor does not fit the size.
    """
    _checks.float_tensor(input_img, "input_img")
    if len(input_img) < n * factor**2:
        raise ValueError(
            f"n = {n} images of {factor} x {factor} tiles need {n * factor**2} patches, "
            f"input_img has {len(input_img)}"
        )
    patches = input_img.detach()[: n * factor**2]
    return ops.mosaic(patches, size=out_size, factor=factor).float().cpu()


class ShufflePatches(nn.Module):
    """Whole columns, then whole rows of a factor × factor grid in random order.

    Args:
        factor: Strips an axis; the last one has the remaining pixels.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def shuffle_weight(self, img: Tensor, factor: int) -> Tensor:
        """Strips of the last axis in random order; arguments and errors as :meth:`forward`."""
        return img.index_select(-1, _shuffled(img.shape[-1], factor).to(img.device))

    def forward(self, img: Tensor) -> Tensor:
        """Shuffle one image.

        Args:
            img: (C, H, W).

        Returns:
            (C, H, W).

        Raises:
            ValueError: The shape is another, or there are fewer pixels than strips.
        """
        if img.ndim != 3 or min(img.shape[1:]) < self.factor:
            raise ValueError(
                f"img must have shape (C, H, W) with at least {self.factor} pixels a side, "
                f"got {tuple(img.shape)}"
            )
        columns = _shuffled(img.shape[2], self.factor)
        rows = _shuffled(img.shape[1], self.factor)
        return img[:, rows.to(img.device)[:, None], columns.to(img.device)]


def _shuffled(length: int, factor: int) -> Tensor:
    """Positions 0 to ``length`` with their strips in random order."""
    side = length // factor
    starts = [i * side for i in range(factor)]
    strips = [
        range(start, length if i == factor - 1 else start + side) for i, start in enumerate(starts)
    ]
    random.shuffle(strips)
    return torch.tensor([position for strip in strips for position in strip])


def mix_aug(
    images: Tensor,
    args: _Arguments,
    rand_index: Tensor | None = None,
    lam: float | None = None,
    bbox: list[int] | None = None,
) -> Mixed:
    """The mixing that ``args.mix_type`` names: ``"mixup"``, ``"cutmix"`` (in place), else none.

    Args:
        images: Floating point (B, C, H, W).
        args: ``mix_type`` and, by its name, the parameter of the Beta distribution.
        rand_index: Not used, as in the official code; drawn anew.
        lam: Not used.
        bbox: Not used.

    Returns:
        The images, the partners on the CPU, the weight, and the box of CutMix (h0, w0, h1, w1) as
        plain ints, or None each.
    """
    if args.mix_type not in ("mixup", "cutmix"):
        return images, None, None, None
    partner = torch.randperm(len(images))
    other = partner.to(images.device)
    alpha = getattr(args, args.mix_type)
    weight = float(np.random.beta(alpha, alpha))  # noqa: NPY002 - the official stream
    if args.mix_type == "mixup":
        return weight * images + (1 - weight) * images[other], partner, weight, None
    h0, w0, h1, w1 = rand_bbox(images.shape, weight)
    images[:, :, h0:h1, w0:w1] = images[other, :, h0:h1, w0:w1]
    return images, partner, weight, [h0, w0, h1, w1]
