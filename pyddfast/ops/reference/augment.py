"""Readable twin of ``augment``: separable interpolation as one small matrix an image and axis."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["augment", "resize_weights", "strip_positions"]


def resize_weights(
    start: Tensor, length: Tensor, size: int, source: int, *, antialias: bool, dtype: torch.dtype
) -> Tensor:
    """Weights of bilinear interpolation of a crop, along one axis.

    The sampling points are those of ``interpolate(align_corners=False)``: output i looks at
    ``(i + 0.5) * length / size`` from the crop's start.  With ``antialias`` the triangle widens by
    the scale where the crop is shrunk; what falls outside the crop is dropped and the rest
    rescaled.  Enlarging, both forms agree.

    Args:
        start: int64 (B,), first pixel of each crop.
        length: int64 (B,), pixels of each crop.
        size: pixels of the output.
        source: pixels of the image that holds the crops.
        antialias: widen the triangle by the scale.
        dtype: of the result; the weights are made in float64.

    Returns:
        (B, size, source) matrices; each row sums to 1 and is 0 outside the crop.
    """
    device = start.device
    start64, length64 = start.double()[:, None, None], length.double()[:, None, None]
    scale = length64 / size
    width = scale.clamp(min=1.0) if antialias else torch.ones_like(scale)
    centre = (torch.arange(size, device=device, dtype=torch.float64)[:, None] + 0.5) * scale
    if not antialias:
        # Points beyond the outermost pixel centres take the border pixel.
        centre = torch.maximum(torch.minimum(centre, length64 - 0.5), torch.full_like(scale, 0.5))
    pixel = torch.arange(source, device=device, dtype=torch.float64) + 0.5 - start64
    weights = (1.0 - (pixel - centre).abs() / width).clamp(min=0.0)
    weights = weights * ((pixel > 0) & (pixel < length64))
    return (weights / weights.sum(-1, keepdim=True)).to(dtype)


def strip_positions(order: Tensor, source: int) -> Tensor:
    """Source position of every pixel after an axis was cut into strips and the strips reordered.

    Args:
        order: int64 (B, factor), the strip that stands at each place.
        source: pixels along the axis; strips have ``source // factor``, the last one the rest too.

    Returns:
        int64 (B, source).
    """
    factor = order.shape[1]
    pixel = torch.arange(source, device=order.device)
    strip = (pixel // (source // factor)).clamp(max=factor - 1)
    place = order.argsort(dim=1)
    return (place[:, strip] * source + pixel).argsort(dim=1)


def augment(
    images: Tensor,
    index: Tensor,
    box: Tensor | None,
    flip: Tensor | None,
    row_order: Tensor | None,
    col_order: Tensor | None,
    partner: Tensor | None,
    mix_box: Tensor | None,
    mean: Tensor,
    std: Tensor,
    size: tuple[int, int],
    *,
    shuffle_first: bool,
    antialias: bool,
) -> Tensor:
    """Gather, PatchShuffle, crop and resize, flip, CutMix, normalise; see ``ops.augment``.

    ``mean`` and ``std``, (C,), give the dtype of the arithmetic and of the result.
    """
    dtype = mean.dtype
    views = images[index]
    if row_order is not None and col_order is not None and shuffle_first:
        views = _shuffle(views, row_order, col_order)
    views = views.to(dtype) / 255
    height, width = images.shape[-2:]
    if box is not None:
        top, left, rows, cols = box.unbind(1)
        down = resize_weights(top, rows, size[0], height, antialias=antialias, dtype=dtype)
        across = resize_weights(left, cols, size[1], width, antialias=antialias, dtype=dtype)
        views = down[:, None] @ views @ across[:, None].mT
    if flip is not None:
        views = torch.where(flip[:, None, None, None], views.flip(-1), views)
    if row_order is not None and col_order is not None and not shuffle_first:
        views = _shuffle(views, row_order, col_order)
    if partner is not None and mix_box is not None:
        rows = torch.arange(size[0], device=views.device)
        cols = torch.arange(size[1], device=views.device)
        y0, x0, y1, x1 = mix_box.unbind()
        inside = ((rows >= y0) & (rows < y1))[:, None] & ((cols >= x0) & (cols < x1))
        views = torch.where(inside, views[partner], views)
    return (views - mean[:, None, None]) / std[:, None, None]


def _shuffle(views: Tensor, row_order: Tensor, col_order: Tensor) -> Tensor:
    rows = strip_positions(row_order, views.shape[-2])
    cols = strip_positions(col_order, views.shape[-1])
    batch = torch.arange(len(views), device=views.device)[:, None, None]
    # Advanced indices around the channel slice put the channel last; movedim puts it back.
    return views[batch, :, rows[:, :, None], cols[:, None, :]].movedim(-1, 1)
