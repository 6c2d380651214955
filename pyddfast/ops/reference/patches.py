"""Readable twins of the patch operators: crops, their selection, and the mosaic.

Every function runs in float64 as well as in float32, on any device.  Arguments are checked by
:mod:`pyddfast.ops.patches`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pyddfast.ops.reference.scores import negative_log_prob

__all__ = [
    "filter_weights",
    "mosaic",
    "mosaic_slots",
    "multi_crop",
    "rank_patches",
    "select_patches",
]


def filter_weights(start: Tensor, length: Tensor, full: int, size: int) -> Tensor:
    """Weights of the antialiased bilinear resize of ``[start, start + length)`` to ``size``.

    The triangle filter is widened by the reduction ratio, cut off at the crop's border and
    normalised, as PIL's BILINEAR and ``interpolate(antialias=True)`` do.

    Args:
        start: First source position of each crop, int64 (...).
        length: Source extent of each crop, int64 (...), at least 1.
        full: Extent of the whole image along this axis.
        size: Extent of the result.

    Returns:
        float64 (..., size, full), rows summing to 1, zero outside the crop.
    """
    scale = (length.double() / size)[..., None]
    support = scale.clamp(min=1.0)
    center = (torch.arange(size, dtype=torch.float64, device=start.device) + 0.5) * scale
    # The window of source pixels is found in integers, as both libraries do it: the centre of its
    # outermost pixel may lie on the triangle's edge, never beyond.
    first = (center - support + 0.5).floor().clamp(min=0)
    last = torch.minimum((center + support + 0.5).floor(), length.double()[..., None])
    position = torch.arange(full, device=start.device) - start[..., None]
    position = position.double()[..., None, :]
    distance = (position + 0.5 - center[..., None]).abs() / support[..., None]
    inside = (position >= first[..., None]) & (position < last[..., None])
    weight = torch.where(inside, (1.0 - distance).clamp(min=0.0), 0.0)
    return weight / weight.sum(-1, keepdim=True)


def multi_crop(
    images: Tensor,
    boxes: Tensor,
    size: int,
    pad_to: int,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Crops of equally large images, resized, normalised and padded.

    Args:
        images: (N, C, H, W), uint8 or floating point in [0, 1].
        boxes: int64 (N, m, 4): top, left, height, width.
        size: Height and width of the resized crop.
        pad_to: Height and width of the result.
        mean: (C,).
        std: (C,).
        dtype: Type of the result; the arithmetic runs in float64 if it is that, else in float32.

    Returns:
        (m, N, C, pad_to, pad_to): crop-major, as the official selection reads it.
    """
    math = torch.float64 if dtype == torch.float64 else torch.float32
    height, width = images.shape[-2:]
    top, left, box_height, box_width = boxes.transpose(0, 1).unbind(-1)
    rows = filter_weights(top, box_height, height, size).to(math)
    columns = filter_weights(left, box_width, width, size).to(math)
    pixels = images.to(math)
    if images.dtype == torch.uint8:
        pixels = pixels / 255
    # (m, N, 1, size, H) @ (N, C, H, W) @ (m, N, 1, W, size)
    resized = rows.unsqueeze(2) @ pixels @ columns.unsqueeze(2).mT
    shift, spread = (value.to(images.device, math)[:, None, None] for value in (mean, std))
    normalized = (resized - shift) / spread
    before = (pad_to - size) // 2
    after = pad_to - size - before
    return F.pad(normalized, (before, after, before, after)).to(dtype)


def select_patches(logits: Tensor, labels: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Classes, images, crops and scores of the best patches; see the public function.

    Args:
        logits: (m, N, C).
        labels: int64 (N,); every class that occurs does so at least ``n`` times.
        n: Patches a class.

    Returns:
        classes (G,), images (G, n), crops (G, n), scores (G, n).
    """
    return rank_patches(negative_log_prob(logits, labels.expand(logits.shape[:2])), labels, n)


def rank_patches(scores: Tensor, labels: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The selection from the scores (m, N) of all crops; as ``select_patches``."""
    # torch's argmin and stable sort both put the lowest index first among equals.
    crop = scores.argmin(dim=0)
    best = scores.gather(0, crop[None])[0]
    classes, counts = torch.unique(labels, return_counts=True)
    ranked = best.sort(stable=True).indices
    ranked = ranked[labels[ranked].sort(stable=True).indices]  # class-major, best first
    starts = counts.cumsum(0) - counts
    images = ranked[starts[:, None] + torch.arange(n, device=scores.device)]
    return classes, images, crop[images], best[images]


def mosaic_slots(size: int, factor: int) -> list[tuple[int, int]]:
    """Start and extent of each strip: the first ``size % factor`` strips are a pixel longer."""
    extent, longer = divmod(size, factor)
    slots, start = [], 0
    for strip in range(factor):
        length = extent + (strip < longer)
        slots.append((start, length))
        start += length
    return slots


def mosaic(patches: Tensor, size: int, factor: int, mode: str) -> Tensor:
    """Images of ``factor`` × ``factor`` tiles; tile k of image t holds the patch of rank k·n + t.

    Args:
        patches: (n · factor², C, h, w), best first.
        size: Height and width of an image.
        factor: Tiles along each side.
        mode: ``"nearest"`` or ``"bilinear"``.

    Returns:
        (n, C, size, size) of the patches' type.
    """
    n = patches.shape[0] // factor**2
    images = patches.new_zeros((n, patches.shape[1], size, size))
    slots = mosaic_slots(size, factor)
    for tile in range(factor**2):
        (top, height), (left, width) = slots[tile // factor], slots[tile % factor]
        images[:, :, top : top + height, left : left + width] = F.interpolate(
            patches[tile * n : (tile + 1) * n], size=(height, width), mode=mode
        )
    return images
