"""Patches (RDED, CA2D): many crops of an image, the best of them, and images tiled from them.

The three steps of "On the Diversity and Realism of Distilled Dataset" (Sun et al., CVPR 2024,
§3.2) with the semantics of its official code, ``synthesize/utils.py`` of LINs-lab/RDED, except
that the score neither underflows nor loses digits and that ties have a defined order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from pyddfast.ops import _native
from pyddfast.ops._checks import FLOAT_DTYPES
from pyddfast.ops.reference import patches as reference
from pyddfast.ops.scores import sample_scores

__all__ = ["PatchSelection", "mosaic", "multi_crop", "select_patches"]

Quantize: TypeAlias = Literal["round", "truncate"]


class PatchSelection(NamedTuple):
    """The best patches of each class, best first.

    Attributes:
        classes: int64 (G,), ascending.
        images: int64 (G, n), positions in the batch that was scored.
        crops: int64 (G, n), which crop of the image.
        scores: (G, n), −log p_y, ascending in each row; float64 for float64 logits, else float32.
    """

    classes: Tensor
    images: Tensor
    crops: Tensor
    scores: Tensor


def multi_crop(
    images: Tensor | Sequence[Tensor],
    boxes: Tensor,
    *,
    size: int,
    pad_to: int | None = None,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Crop, resize, normalise and zero-pad m crops of every image, ready for a teacher.

    The resize is bilinear and antialiased: it agrees with
    ``torch.nn.functional.interpolate(antialias=True)`` of the cut-out crop within rounding and
    with PIL's BILINEAR within its rounding to bytes.  Zeros are added after the normalisation, so
    the border is the mean colour (as in the official ``selector``), with ``floor(padding / 2)``
    before the crop.

    Args:
        images: (N, C, H, W), or a sequence of N images (C, H_i, W_i) of any sizes and strides (a
            decoded (H, W, C) image needs no copy: ``.permute(2, 0, 1)``); uint8, or floating
            point in [0, 1].
        boxes: int64 (N, m, 4): top, left, height, width in pixels.
        size: Height and width of a resized crop, at least 1.
        pad_to: Height and width of the result; default ``size``.
        mean: One value a channel, in units of [0, 1] pixels; 0 with ``std`` 1 leaves pixels.
        std: One positive value a channel.
        dtype: Floating-point type of the result.  float64 computes in float64, others in float32.

    Returns:
        (m, N, C, pad_to, pad_to) of ``dtype``: crop-major, so that ``.flatten(0, 1)`` is the
        batch that the official code scores.  Differentiable with respect to floating-point images.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes do not fit, or a box is empty or leaves its image (of boxes on CUDA, and
            under ``torch.compile``, such a crop is NaN; ``PYDDFAST_DEBUG=1`` makes it an error).

    Example:
        >>> images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
        >>> boxes = torch.tensor([[[0, 0, 8, 8], [2, 2, 4, 4]]] * 2)
        >>> multi_crop(images, boxes, size=4, pad_to=8, mean=(0,) * 3, std=(1,) * 3).shape
        torch.Size([2, 2, 3, 8, 8])
    """
    pad_to = size if pad_to is None else pad_to
    if not 1 <= size <= pad_to:
        raise ValueError(f"need 1 <= size <= pad_to, got size={size}, pad_to={pad_to}")
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point type, got {dtype}")
    if boxes.dtype != torch.int64:
        raise TypeError(f"boxes must be int64, got {boxes.dtype}")
    if boxes.ndim != 3 or boxes.shape[0] != len(images) or boxes.shape[2] != 4:
        raise ValueError(
            f"boxes must have shape (N, m, 4) with N = {len(images)} as images has, "
            f"got {tuple(boxes.shape)}"
        )
    if isinstance(images, Tensor) and images.ndim != 4:
        raise ValueError(f"images must have shape (N, C, H, W), got {tuple(images.shape)}")
    channels = len(mean)
    if len(std) != channels or not all(value > 0 for value in std):
        raise ValueError(
            f"std must hold {channels} positive values, one for each mean, got {tuple(std)}"
        )
    for number, image in enumerate(images):
        if image.dtype != torch.uint8 and not image.dtype.is_floating_point:
            raise TypeError(f"images must be uint8 or floating point, got {image.dtype}")
        if image.ndim != 3 or image.shape[0] != channels:
            raise ValueError(
                f"image {number} must have shape (C, H, W) with C = {channels} as mean has, "
                f"got {tuple(image.shape)}"
            )
        if isinstance(images, Tensor):
            break  # the others are alike
    # Elsewhere a look at values waits for the device; a compiled graph cannot ask about them.
    if _native.debug() or (boxes.is_cpu and not torch.compiler.is_compiling()):
        _check_boxes(images, boxes)

    batch = [images] if isinstance(images, Tensor) else list(images)
    if batch and dtype in FLOAT_DTYPES and _have_kernel(batch, dtype):
        if dtype is not torch.float64:  # the arithmetic is float32 then
            batch = [x.float() if x.dtype is torch.float64 else x for x in batch]
        result: Tensor = _native.raw.multi_crop(
            batch, boxes.to(batch[0].device), size, pad_to, mean, std, dtype
        )
        return result

    arguments = (
        size,
        pad_to,
        torch.tensor(mean, dtype=torch.float64),
        torch.tensor(std, dtype=torch.float64),
        dtype,
    )
    if isinstance(images, Tensor):
        return reference.multi_crop(images, boxes.to(images.device), *arguments)
    if not images:
        return torch.empty((boxes.shape[1], 0, channels, pad_to, pad_to), dtype=dtype)
    return torch.cat(
        [
            reference.multi_crop(image[None], box[None].to(image.device), *arguments)
            for image, box in zip(images, boxes, strict=True)
        ],
        dim=1,
    )


def _have_kernel(images: list[Tensor], dtype: torch.dtype) -> bool:
    """Whether the kernel serves these images: one dtype and device, no gradient wanted."""
    first = images[0]
    if any(x.dtype is not first.dtype or x.device != first.device for x in images):
        return False
    if first.dtype is not torch.uint8 and first.dtype not in FLOAT_DTYPES:
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for x in images):
        return False
    return _native.usable(first, first.new_empty(0, dtype=dtype))


def _check_boxes(images: Tensor | Sequence[Tensor], boxes: Tensor) -> None:
    if boxes.numel() == 0:
        return
    if isinstance(images, Tensor):
        extent = torch.tensor([list(images.shape[-2:])])
    else:
        extent = torch.tensor([list(image.shape[-2:]) for image in images])
    corner, span = boxes.cpu()[..., :2], boxes.cpu()[..., 2:]
    bad = (corner < 0) | (span < 1) | (corner > extent[:, None, :] - span)  # no overflow
    if bad.any():
        image, crop, _ = bad.nonzero()[0].tolist()
        where = extent[min(image, len(extent) - 1)].tolist()
        raise ValueError(
            f"boxes[{image}, {crop}] = {boxes[image, crop].tolist()} (top, left, height, width) "
            f"must not be empty and must lie inside its image of {where[0]} x {where[1]} pixels"
        )


def select_patches(logits: Tensor, labels: Tensor, n: int) -> PatchSelection:
    """The best crop of every image, and of each class the ``n`` images whose crop is best.

    The score of a crop is −log p_y under the teacher.  It is computed so that a confident crop
    keeps its digits and a hopeless one stays finite (the official softmax, gather, log does
    neither).  Images are ordered by ascending score.  Ties go to the lowest crop, then to the
    image that comes first.

    Args:
        logits: (m, N, C) floating point: the teacher's logits, crop-major as ``multi_crop`` gives
            its crops.  Any classes may be mixed in one call.
        labels: int64 (N,), in [0, C).
        n: Images to keep of each class that occurs in ``labels``.

    Returns:
        A :class:`PatchSelection`, one row a class.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: Shapes do not fit, labels are out of range, logits hold NaN, or a class has
            fewer than ``n`` images.
    """
    if not logits.dtype.is_floating_point:
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    if logits.ndim != 3 or logits.shape[0] < 1 or logits.shape[2] < 1:
        raise ValueError(f"logits must have shape (m, N, C), got {tuple(logits.shape)}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, got {labels.dtype}")
    if labels.shape != logits.shape[1:2]:
        raise ValueError(
            f"labels must have shape ({logits.shape[1]},) as logits has images, "
            f"got {tuple(labels.shape)}"
        )
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[2]:
        raise ValueError(
            f"labels must lie in [0, {logits.shape[2]}), "
            f"got values from {int(labels.min())} to {int(labels.max())}"
        )
    labels = labels.to(logits.device)
    present, counts = torch.unique(labels, return_counts=True)
    if bool((counts < n).any()):
        short = {int(c): int(k) for c, k in zip(present, counts, strict=True) if k < n}
        raise ValueError(f"n = {n} patches asked of classes with fewer images: {short}")

    scores = sample_scores(logits.detach(), labels.expand(logits.shape[:2])).nll
    selection = PatchSelection(*reference.rank_patches(scores, labels, n))
    if bool(selection.scores.isnan().any()):
        raise ValueError("logits must not hold NaN or +inf: their scores have no order")
    return selection


def mosaic(
    patches: Tensor,
    *,
    size: int,
    factor: int,
    mode: Literal["nearest", "bilinear"] = "nearest",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    quantize: Quantize | None = None,
) -> Tensor:
    """Tile ranked patches to images: image t of n holds the ranks t, n + t, 2n + t, ...

    Tiles are filled row by row.  Where ``factor`` does not divide ``size`` the first rows and
    columns of tiles are one pixel larger, as the official ``mix_images`` does it.

    Args:
        patches: (n · factor², C, h, w) floating point, best first.
        size: Height and width of an image.
        factor: Tiles along each side, in [1, size].
        mode: Resize of a patch to its tile: ``"nearest"`` (official; a copy where sizes agree) or
            ``"bilinear"`` (``align_corners=False``, no antialiasing).
        mean: With ``std``, undoes the normalisation: ``x · std + mean``.
        std: One value a channel.
        quantize: Returns bytes: ``x · 255`` clamped to [0, 255] and rounded to nearest
            (``"round"``) or cut off (``"truncate"``, the official code).

    Returns:
        (n, C, size, size) of the patches' dtype, or uint8.  Differentiable if not quantised.

    Raises:
        TypeError: ``patches`` is not floating point.
        ValueError: Shapes do not fit or an option is unknown.
    """
    if not patches.dtype.is_floating_point:
        raise TypeError(f"patches must be floating point, got {patches.dtype}")
    if patches.ndim != 4 or 0 in patches.shape[1:]:
        raise ValueError(f"patches must have shape (K, C, h, w), got {tuple(patches.shape)}")
    if not 1 <= factor <= size:
        raise ValueError(f"need 1 <= factor <= size, got factor={factor}, size={size}")
    if patches.shape[0] % factor**2:
        raise ValueError(
            f"patches must come in multiples of factor² = {factor**2}, got {patches.shape[0]}"
        )
    if mode not in ("nearest", "bilinear"):
        raise ValueError(f"mode must be 'nearest' or 'bilinear', got {mode!r}")
    if quantize not in (None, "round", "truncate"):
        raise ValueError(f"quantize must be None, 'round' or 'truncate', got {quantize!r}")
    if (mean is None) != (std is None):
        raise ValueError("mean and std must be given together")
    channels = patches.shape[1]
    if mean is not None and std is not None and not len(mean) == len(std) == channels:
        raise ValueError(
            f"mean and std need {channels} values as patches has channels, "
            f"got {len(mean)} and {len(std)}"
        )
    wants_gradient = torch.is_grad_enabled() and patches.requires_grad
    if not wants_gradient and patches.dtype in FLOAT_DTYPES and _native.usable(patches):
        result: Tensor = _native.raw.mosaic(
            patches,
            size,
            factor,
            mode == "bilinear",
            mean or (),
            std or (),
            (None, "round", "truncate").index(quantize),
        )
        return result
    # 16-bit patches in float32, as in the kernels
    wide = patches.float() if patches.dtype.itemsize < 4 else patches
    images = reference.mosaic(wide, size, factor, mode)
    if mean is not None and std is not None:
        spread, shift = (
            torch.tensor(value, dtype=images.dtype, device=images.device)[:, None, None]
            for value in (std, mean)
        )
        images = images * spread + shift
    if quantize is None:
        return images.to(patches.dtype)
    scaled = (images * 255).clamp(0, 255)
    return (scaled.round() if quantize == "round" else scaled.trunc()).to(torch.uint8)
