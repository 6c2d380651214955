"""Readable twin of ``dsa``: each transform of differentiable Siamese augmentation, one function.

``images`` are (N, C, H, W) floating point; a parameter has N rows (one an image) or 1 (Siamese: the
same for the batch).  All are differentiable in ``images`` by autograd.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from pyddfast.ops.dsa import DSAParams

__all__ = [
    "affine",
    "brightness",
    "contrast",
    "crop",
    "cutout",
    "dsa",
    "flip",
    "rotate",
    "saturation",
    "scale",
]


def dsa(images: Tensor, params: DSAParams, *, align_corners: bool) -> Tensor:
    """Apply the transforms one after the other."""
    for name in params.transforms:
        value = params.values[name]
        if name == "brightness":
            images = brightness(images, value.to(images.dtype))
        elif name == "saturation":
            images = saturation(images, value.to(images.dtype))
        elif name == "contrast":
            images = contrast(images, value.to(images.dtype))
        elif name == "crop":
            images = crop(images, value)
        elif name == "cutout":
            images = cutout(images, value, params.cutout_size)
        elif name == "flip":
            images = flip(images, value)
        elif name == "scale":
            images = scale(images, value, align_corners=align_corners)
        else:
            images = rotate(images, value, align_corners=align_corners)
    return images


def flip(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror left to right where ``mirrored``, bool (N or 1,)."""
    return torch.where(_per_image(mirrored), images.flip(-1), images)


def brightness(images: Tensor, shift: Tensor) -> Tensor:
    """Add ``shift`` (N or 1,) to every pixel."""
    return images + _per_image(shift)


def saturation(images: Tensor, gain: Tensor) -> Tensor:
    """Scale each pixel's distance from the mean of its channels by ``gain`` (N or 1,)."""
    mean = images.mean(dim=1, keepdim=True)
    return (images - mean) * _per_image(gain) + mean


def contrast(images: Tensor, gain: Tensor) -> Tensor:
    """Scale each value's distance from its image's mean by ``gain`` (N or 1,)."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * _per_image(gain) + mean


def crop(images: Tensor, shift: Tensor) -> Tensor:
    """Translate by ``shift``, int64 (N or 1, 2): ``out[i, j] = images[i + s0, j + s1]``, else 0."""
    height, width = images.shape[-2:]
    device = images.device
    rows = torch.arange(height, device=device) + shift[:, :1]
    cols = torch.arange(width, device=device) + shift[:, 1:]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((cols >= 0) & (cols < width))[:, None]
    batch = torch.arange(len(images), device=device)[:, None, None]
    moved = images[
        batch, :, rows.clamp(0, height - 1)[:, :, None], cols.clamp(0, width - 1)[:, None]
    ].movedim(-1, 1)
    return torch.where(inside[:, None], moved, torch.zeros((), dtype=moved.dtype, device=device))


def cutout(images: Tensor, centre: Tensor, size: tuple[int, int]) -> Tensor:
    """Zero a rectangle of ``size`` around ``centre``, int64 (N or 1, 2), clipped at the border."""
    cut = []
    for axis in (0, 1):
        last = images.shape[2 + axis] - 1
        start = centre[:, axis : axis + 1] - size[axis] // 2
        low, high = start.clamp(0, last), (start + size[axis] - 1).clamp(0, last)
        pixel = torch.arange(last + 1, device=images.device)
        cut.append((pixel >= low) & (pixel <= high) & (size[axis] > 0))
    mask = cut[0][:, :, None] & cut[1][:, None]
    return images * ~mask[:, None]


def scale(images: Tensor, factor: Tensor, *, align_corners: bool) -> Tensor:
    """Sample at ``factor`` times the centred coordinates; (N or 1, 2) for x and y, < 1 enlarges."""
    zero = torch.zeros_like(factor[:, 0])
    theta = torch.stack([factor[:, 0], zero, zero, zero, factor[:, 1], zero], dim=1)
    return affine(images, theta.view(-1, 2, 3), align_corners=align_corners)


def rotate(images: Tensor, angle: Tensor, *, align_corners: bool) -> Tensor:
    """Rotate about the centre by ``angle`` (N or 1,) in radians."""
    angle = angle.to(images.dtype)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1)
    return affine(images, theta.view(-1, 2, 3), align_corners=align_corners)


def affine(images: Tensor, theta: Tensor, *, align_corners: bool) -> Tensor:
    """Bilinear sampling with zeros outside, by (N or 1, 2, 3) matrices from output to input."""
    if images.numel() == 0:  # which affine_grid refuses
        return images.clone()
    theta = theta.to(images.dtype).expand(len(images), 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=align_corners)
    return F.grid_sample(
        images, grid, mode="bilinear", padding_mode="zeros", align_corners=align_corners
    )


def _per_image(value: Tensor) -> Tensor:
    return value.view(-1, 1, 1, 1)
