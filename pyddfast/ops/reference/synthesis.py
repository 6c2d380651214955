"""Readable twins of the image-side steps of synthesis: augmentation, priors, pixel range, bytes.

Every function runs in float64 as well as in float32, on any device, without reading a value back
to the host.  Arguments are checked by :mod:`pyddfast.ops.synthesis`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyddfast.ops.reference.patches import filter_weights

__all__ = ["clamp_normalized", "crop_flip_roll", "l2_prior", "to_uint8", "tv_prior"]


def crop_flip_roll(images: Tensor, params: Tensor, out_size: tuple[int, int]) -> Tensor:
    """One crop, resize, flip and roll for all images, as a product with two sparse matrices.

    The parameters may lie on the device: where a slice would need their values on the host, the
    rows of the resize matrix carry them.  Flip and roll only permute those rows.

    Args:
        images: (B, C, H, W) floating point.
        params: int64 (7,): top, left, height, width, flip, shift down, shift right.
        out_size: height and width of the result.

    Returns:
        (B, C, *out_size) of the images' dtype; the arithmetic is float64 for that, else float32.
    """
    top, left, height, width, flip, down, right = params.unbind()
    math = torch.float64 if images.dtype == torch.float64 else torch.float32
    row = (torch.arange(out_size[0], device=images.device) - down) % out_size[0]
    column = (torch.arange(out_size[1], device=images.device) - right) % out_size[1]
    column = torch.where(flip != 0, out_size[1] - 1 - column, column)
    rows = _resize_weights(row, top, height, images.shape[-2], out_size[0]).to(math)
    columns = _resize_weights(column, left, width, images.shape[-1], out_size[1]).to(math)
    # Autocast would round the pixels to 16 bits, which it does not do to an interpolation.
    with torch.autocast(images.device.type, enabled=False):
        return (rows @ images.to(math) @ columns.mT).to(images.dtype)


def _resize_weights(
    position: Tensor, start: Tensor, length: Tensor, full: int, size: int
) -> Tensor:
    """Rows ``position`` of the resize of ``[start, start + length)`` to ``size``: (size, full)."""
    if size < full:  # may shrink a crop: antialiased
        return filter_weights(start, length, full, size)[position]
    # A crop is never shrunk: the two nearest pixels, the border repeated.
    center = ((position.double() + 0.5) * (length.double() / size) - 0.5).clamp(min=0)
    center = torch.minimum(center, length - 1) + start
    pixel = torch.arange(full, device=start.device)
    return (1 - (pixel - center[:, None]).abs()).clamp(min=0)


def clamp_normalized(
    images: Tensor, mean: Sequence[float], std: Sequence[float], *, inplace: bool
) -> Tensor:
    """Each channel to [−mean/std, (1 − mean)/std], the range of pixels in [0, 1]."""
    # Bounds are numbers, not tensors: nothing is copied to the device, which a graph could not.
    result = images if inplace else images.clone()
    for channel, (m, s) in enumerate(zip(mean, std, strict=True)):
        result[:, channel].clamp_(-m / s, (1 - m) / s)
    return result


def to_uint8(
    images: Tensor, mean: Sequence[float], std: Sequence[float], *, truncate: bool
) -> Tensor:
    """Bytes of normalised images: clamp(x · std + mean, 0, 1) · 255, rounded or cut off."""
    math = torch.float64 if images.dtype == torch.float64 else torch.float32
    result = torch.empty_like(images, dtype=torch.uint8)
    for channel, (m, s) in enumerate(zip(mean, std, strict=True)):
        pixels = (images[:, channel].to(math) * s + m).clamp(0, 1) * 255
        result[:, channel] = (pixels.trunc() if truncate else pixels.round()).to(torch.uint8)
    return result


def tv_prior(images: Tensor) -> Tensor:
    """Norms of the differences to the right, lower, lower left and lower right neighbour, summed.

    Norms over the whole batch, as ``get_image_prior_losses`` of VILA-Lab/SRe2L.
    """
    differences = (
        images[..., :, :-1] - images[..., :, 1:],
        images[..., :-1, :] - images[..., 1:, :],
        images[..., :-1, 1:] - images[..., 1:, :-1],
        images[..., :-1, :-1] - images[..., 1:, 1:],
    )
    return torch.stack([_norm(d) for d in differences]).sum()


def l2_prior(images: Tensor) -> Tensor:
    """Mean over the images of an image's L2 norm."""
    return _norm(images.flatten(1), dim=1).mean()


def _norm(x: Tensor, dim: int | None = None) -> Tensor:
    """In float32, or float64 for that: a norm over many pixels may be beyond float16."""
    math = torch.float64 if x.dtype == torch.float64 else torch.float32
    norm: Tensor = torch.linalg.vector_norm(x, dim=dim, dtype=math)
    return norm
