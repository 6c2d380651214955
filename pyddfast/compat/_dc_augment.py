"""The augmentation of DC's own evaluation: one random change of each image, from numpy's generator.

``augment`` of VICO-UoE/DatasetCondensation, ``utils.py``, which its copies kept; used for MNIST and
for networks with batch norm where DSA is off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pyddfast._extras import require

__all__ = ["dc_augment"]

_ENTRIES = ("crop", "scale", "rotate", "noise")


def dc_augment(images: Tensor, param: Mapping[str, Any] | None) -> Tensor:
    """Change each image by one entry, drawn from numpy's (and for noise torch's) global generator.

    Args:
        images: (N, C, H, W) float32.
        param: ``strategy``: entries of crop, scale, rotate and noise joined by ``_``, or "none";
            ``crop`` pixels, ``scale`` share of the side, ``rotate`` degrees, ``noise`` its standard
            deviation.  None changes nothing.

    Returns:
        New images; the same tensor where nothing is changed.

    Raises:
        ValueError: An unknown entry.
        ModuleNotFoundError: scipy, of the ``methods`` extra, is not installed and rotate is drawn.
    """
    if param is None or param["strategy"] == "none":
        return images
    entries = param["strategy"].split("_")
    if unknown := sorted(set(entries) - set(_ENTRIES)):
        raise ValueError(
            f"dc_aug_param['strategy'] joins entries of {', '.join(_ENTRIES)}; got {unknown}"
        )
    means = images.mean((0, 2, 3))
    return torch.stack([_changed(image, entries, param, means) for image in images])


def _changed(image: Tensor, entries: list[str], param: Mapping[str, Any], means: Tensor) -> Tensor:
    draw: Any = np.random  # the legacy generator, which the official code draws from
    entry = draw.permutation(entries)[0]
    if entry == "crop":
        return _crop(image, int(param["crop"]), means, draw)
    if entry == "scale":
        low, high = 1 - param["scale"], 1 + param["scale"]
        # Both sides are shares of the height there.
        sides = [int(draw.uniform(low, high) * image.shape[1]) for _ in range(2)]
        return _scaled(image, *sides)
    if entry == "rotate":
        return _rotated(image, int(draw.randint(-param["rotate"], param["rotate"])), means)
    return image + float(param["noise"]) * torch.randn_like(image)


def _crop(image: Tensor, reach: int, means: Tensor, draw: Any) -> Tensor:
    """A window of the image within a frame of the batch's mean colour."""
    _, height, width = image.shape
    framed = means[:, None, None].repeat(1, height + 2 * reach, width + 2 * reach)
    framed[:, reach : reach + height, reach : reach + width] = image
    top, left = (int(draw.permutation(2 * reach)[0]) for _ in range(2))
    return framed[:, top : top + height, left : left + width]


def _scaled(image: Tensor, height: int, width: int) -> Tensor:
    """Nearest neighbours, around the middle; zeros outside."""
    size = image.shape[1:]
    side = max(height, width, *size)
    framed = image.new_zeros(len(image), side, side)
    top, left = (side - height) // 2, (side - width) // 2
    framed[:, top : top + height, left : left + width] = F.interpolate(
        image[None], (height, width)
    )[0]
    return _middle(framed, size)


def _rotated(image: Tensor, degrees: int, means: Tensor) -> Tensor:
    """Cubic splines on the CPU; the batch's mean grey outside."""
    turned: Any = require("scipy.ndimage", "methods").rotate(
        image.cpu().numpy(), degrees, axes=(-2, -1), cval=float(means.double().mean())
    )
    return _middle(torch.as_tensor(turned).to(image), image.shape[1:])


def _middle(image: Tensor, size: torch.Size) -> Tensor:
    top, left = ((have - want) // 2 for have, want in zip(image.shape[1:], size, strict=True))
    return image[:, top : top + size[0], left : left + size[1]]
