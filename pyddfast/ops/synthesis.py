"""The image side of synthesis by optimisation (SRe2L and its successors).

One optimisation step augments all images of a batch alike, adds priors, and keeps pixels valid;
at the end the images become bytes.  Nothing here reads a value back to the host, so that a step
can be captured in a CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from pyddfast.ops import _checks, _native
from pyddfast.ops._autograd import functorch_active, needs_graph, savable, wants_graph
from pyddfast.ops._native import raw
from pyddfast.ops.augment import draw_crop_boxes
from pyddfast.ops.reference import synthesis as reference
from pyddfast.random import Purpose, randint, uniform

__all__ = [
    "clamp_normalized",
    "crop_flip_roll",
    "draw_crop_flip_roll",
    "image_prior",
    "to_uint8",
]

# Lanes of one step's draws; the box takes 0 to 39.
_FLIP_LANE, _DOWN_LANE, _RIGHT_LANE, _TOP_LANE, _LEFT_LANE = 40, 41, 42, 43, 44


def crop_flip_roll(
    images: Tensor, params: Tensor, out_size: int | tuple[int, int] | None = None
) -> Tensor:
    """Augment a whole batch alike: crop and resize, flip, then roll.

    The chain of SRe2L's recover step (VILA-Lab/SRe2L, ``recover/data_synthesis.py``): one
    ``RandomResizedCrop`` (bilinear, antialiased where it shrinks), one horizontal flip and one
    ``torch.roll`` for all images.  Differentiable, to any order.

    Args:
        images: (B, C, H, W) floating point.
        params: int64 (7,) on the images' device: top, left, height, width of the crop in pixels,
            1 to mirror left to right, and how far to roll down and to the right (any integers).
            :func:`draw_crop_flip_roll` draws them.  On the CPU the box is checked; on a device a
            check would wait for it, and a box outside the images gives NaN.
        out_size: height and width of the result; None keeps (H, W).

    Returns:
        (B, C, *out_size), the dtype of ``images``, under autocast too.

    Raises:
        TypeError: a dtype is wrong, or ``out_size`` is not of ints.
        ValueError: shapes or devices do not fit, ``out_size`` is not one or two positive numbers,
            or the box is empty or leaves the images.

    Example:
        >>> whole = torch.tensor([0, 0, 4, 4, 0, 1, 0])
        >>> x = torch.rand(2, 3, 4, 4)
        >>> torch.equal(crop_flip_roll(x, whole), x.roll(1, 2))
        True
    """
    _checks.float_tensor(images, "images")
    _checks.tensor(params, "params")
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"images must have shape (B, C, H, W), got {tuple(images.shape)}")
    if params.dtype != torch.int64:
        raise TypeError(f"params must be int64, got {params.dtype}")
    if params.shape != (7,):
        raise ValueError(f"params must have shape (7,), got {tuple(params.shape)}")
    if params.device != images.device:
        raise ValueError(f"params is on {params.device}, images on {images.device}")
    height, width = int(images.shape[-2]), int(images.shape[-1])
    size = (height, width) if out_size is None else _checks.size(out_size, "out_size")
    if params.device.type == "cpu" and not torch.compiler.is_compiling():
        top, left, h, w = params[:4].tolist()
        fits = top >= 0 and left >= 0 and top + h <= height and left + w <= width
        if not fits or h < 1 or w < 1:
            raise ValueError(
                f"the box {[top, left, h, w]} (top, left, height, width) of params must not be "
                f"empty and must lie inside the images of {height} x {width} pixels"
            )
    if functorch_active() or not _native.usable(images):
        return reference.crop_flip_roll(images, params, size)
    return _linear(images, savable(params), size, adjoint=False)


def _linear(x: Tensor, params: Tensor, size: tuple[int, int], *, adjoint: bool) -> Tensor:
    """The map from images to views, or its adjoint; `size` is the result's."""
    if needs_graph(x):
        result: Tensor = _CropFlipRoll.apply(x, params, size, adjoint)  # type: ignore[no-untyped-call]
        return result
    result = raw.crop_flip_roll(x, params, *size, adjoint)
    return result


class _CropFlipRoll(torch.autograd.Function):
    """Linear, so that the backward of either map is the other one, to any order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, params: Tensor, size: tuple[int, int], adjoint: bool) -> Any:
        ctx.save_for_backward(params)
        ctx.size, ctx.adjoint = (int(x.shape[2]), int(x.shape[3])), adjoint
        return raw.crop_flip_roll(x, params, *size, adjoint)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (params,) = ctx.saved_tensors
        back = not ctx.adjoint
        if wants_graph():
            return _linear(grad, params, ctx.size, adjoint=back), None, None, None
        return raw.crop_flip_roll(grad, params, *ctx.size, back), None, None, None


def draw_crop_flip_roll(
    seed: int,
    steps: Tensor,
    batch: int,
    image_size: tuple[int, int],
    *,
    scale: tuple[float, float] | None = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    pad: int = 0,
    flip: bool = True,
    shift: tuple[int, int] = (0, 32),
) -> Tensor:
    """Draw the parameters of :func:`crop_flip_roll` for many steps of one batch.

    Args:
        seed: the run's seed.
        steps: int64 (T,), the steps to draw for, in [0, 2**32).
        batch: number of the batch; batches and steps have their own draws.
        image_size: height and width.
        scale: smallest and largest share of the area that a crop covers; None: no crop.
        ratio: smallest and largest width / height of a crop.
        pad: crops of ``image_size`` anywhere in images that have so many more pixels on each side
            (pad them before :func:`crop_flip_roll`); for ``scale=None``.
        flip: mirror every second step on average.
        shift: smallest and largest offset of the roll, both included.

    Returns:
        int64 (T, 7) on the CPU, one row a step.

    Raises:
        ValueError: a range is empty, ``pad`` is negative or goes with a scale.
    """
    if pad < 0 or (pad and scale is not None):
        raise ValueError(f"pad must be 0 or more, and 0 with a scale, got {pad} and {scale}")
    low, high = shift
    if low > high:
        raise ValueError(f"shift must be (smallest, largest), got {shift}")
    count = len(steps)
    params = torch.zeros((count, 7), dtype=torch.int64)
    params[:, 2:4] = torch.tensor(image_size)
    if scale is not None:
        params[:, :4] = draw_crop_boxes(
            seed,
            steps,
            torch.full_like(steps, batch),
            image_size,
            scale=scale,
            ratio=ratio,
            purpose=Purpose.SYNTHESIS,
        )
    if pad:
        for column, lane in ((0, _TOP_LANE), (1, _LEFT_LANE)):
            params[:, column] = randint(seed, Purpose.SYNTHESIS, 0, 2 * pad + 1, steps, batch, lane)
    if flip:
        params[:, 4] = uniform(seed, Purpose.SYNTHESIS, steps, batch, _FLIP_LANE) < 0.5
    for column, lane in ((5, _DOWN_LANE), (6, _RIGHT_LANE)):
        params[:, column] = randint(seed, Purpose.SYNTHESIS, low, high + 1, steps, batch, lane)
    return params


def clamp_normalized(
    images: Tensor, *, mean: Sequence[float], std: Sequence[float], inplace: bool = False
) -> Tensor:
    """Move normalised values to the nearest that are pixels: mean/std of [0, 1] a channel.

    Args:
        images: (B, C, ...) floating point, normalised.
        mean: one value a channel, in units of [0, 1] pixels.
        std: one positive value a channel.
        inplace: write to ``images``, which must not need a gradient outside ``torch.no_grad``.

    Returns:
        ``images`` with channel c in [−mean_c/std_c, (1 − mean_c)/std_c], NaN kept.

    Raises:
        TypeError: ``images`` is not floating point.
        ValueError: numbers of channels differ, a ``mean`` is not finite, or a ``std`` not positive.
    """
    _check_normalization(images, mean, std)
    return reference.clamp_normalized(images, mean, std, inplace=inplace)


def to_uint8(
    images: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    quantize: Literal["round", "truncate"] = "round",
) -> Tensor:
    """Undo the normalisation and store the pixels as bytes.

    ``clamp(x · std + mean, 0, 1) · 255`` in float32 (float64 for float64 images), then rounded to
    nearest, ties to even (``"round"``), or cut off as the official codes do (``"truncate"``, on
    average half a level darker).  With ``"round"`` bytes that were normalised come back.

    Args:
        images: (B, C, H, W) floating point, normalised.
        mean: one value a channel, in units of [0, 1] pixels.
        std: one positive value a channel.
        quantize: ``"round"`` or ``"truncate"``.

    Returns:
        uint8, the shape of ``images``.

    Raises:
        TypeError: ``images`` is not floating point.
        ValueError: numbers of channels differ, a ``mean`` is not finite, a ``std`` not positive, or
            ``quantize`` does not exist.
    """
    _check_normalization(images, mean, std)
    _checks.one_of(quantize, ("round", "truncate"), "quantize")
    return reference.to_uint8(images, mean, std, truncate=quantize == "truncate")


def image_prior(images: Tensor, tv: float = 0.0, l2: float = 0.0) -> Tensor:
    """Smoothness and size of the images: tv · TV + l2 · L2 (``get_image_prior_losses``).

    TV is the sum of four norms over the whole batch: of the differences to the right, lower, lower
    left and lower right neighbours.  L2 is the mean over the images of an image's L2 norm.  A term
    whose coefficient is 0 is not computed.

    Args:
        images: (B, C, H, W) floating point.
        tv: coefficient of TV, not negative.
        l2: coefficient of L2, not negative.

    Returns:
        Scalar, float32 (float64 for float64 images); gradient 0 where a norm is 0.

    Raises:
        TypeError: ``images`` is not floating point, or a coefficient not a number.
        ValueError: shape or coefficient is wrong.
    """
    _checks.float_tensor(images, "images")
    if images.ndim != 4:
        raise ValueError(f"images must have shape (B, C, H, W), got {tuple(images.shape)}")
    for name, value in (("tv", tv), ("l2", l2)):
        if _checks.number(value, name) < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    wide = torch.float64 if images.dtype == torch.float64 else torch.float32
    total = images.new_zeros((), dtype=wide)
    if tv:
        total = total + tv * reference.tv_prior(images)
    if l2:
        total = total + l2 * reference.l2_prior(images)
    return total


def _check_normalization(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
    _checks.float_tensor(images, "images")
    if images.ndim < 2 or images.shape[1] != len(mean) or len(std) != len(mean):
        raise ValueError(
            f"mean and std need one value for each channel of images {tuple(images.shape)}, "
            f"got {len(mean)} and {len(std)}"
        )
    if not all(-math.inf < value < math.inf for value in mean):
        raise ValueError(f"mean must be finite, got {tuple(mean)}")
    if not all(0 < value < math.inf for value in std):
        raise ValueError(f"std must be positive, got {tuple(std)}")
