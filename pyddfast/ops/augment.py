"""Training views from a uint8 set: gather, PatchShuffle, RRC, flip, CutMix, normalise in one call.

Every random choice is a tensor in :class:`AugmentParams`; :func:`draw_augmentation` draws them from
Philox, so that the same sample at the same visit gets the same view in any batch, worker or rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pyddfast.ops import _native
from pyddfast.ops._checks import FLOAT_DTYPES
from pyddfast.ops.reference import augment as reference
from pyddfast.random import Purpose, numpy_generator, permutation, randint, uniform

__all__ = ["AugmentParams", "augment", "draw_augmentation", "draw_crop_boxes", "draw_cutmix"]

# torchvision's RandomResizedCrop.get_params draws this often before it falls back.
_TRIES = 10


@dataclass(frozen=True)
class AugmentParams:
    """What one batch's views are made of; None leaves the step out.

    Attributes:
        box: int64 (B, 4): top, left, height, width of each crop.
        flip: bool (B,): mirror left to right.
        row_order: int64 (B, factor): the strip of rows that stands at each place.
        col_order: int64 (B, factor): likewise for columns; given together with ``row_order``.
        partner: int64 (B,): the batch position that CutMix pastes from.
        mix_box: int64 (4,): y0, x0, y1, x1 of the pasted region in the output (ends excluded);
            given together with ``partner``.
    """

    box: Tensor | None = None
    flip: Tensor | None = None
    row_order: Tensor | None = None
    col_order: Tensor | None = None
    partner: Tensor | None = None
    mix_box: Tensor | None = None

    def to(self, device: torch.device | str) -> AugmentParams:
        """The same parameters on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return AugmentParams(
            **{k: v if v is None else v.to(device, non_blocking=True) for k, v in moved.items()}
        )


def augment(
    images: Tensor,
    index: Tensor,
    params: AugmentParams,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    size: int | tuple[int, int] | None = None,
    shuffle_first: bool = True,
    antialias: bool = True,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Tensor:
    """Make a batch of training views.

    Order: gather by index, PatchShuffle, crop and bilinear resize (RRC), horizontal flip, CutMix,
    normalise: that of RDED's validation (LINs-lab/RDED, ``validation/main.py``).  The arithmetic is
    float32 (float64 for ``dtype=torch.float64``).

    Args:
        images: uint8 (N, C, H, W), the whole set.
        index: int64 (B,), which images; any order, repeats allowed.
        params: the batch's random choices, on the device of ``images``.
        mean: per channel, for pixels scaled to [0, 1].
        std: per channel, positive.
        size: output height and width; None keeps (H, W).  Another size needs ``params.box``.
        shuffle_first: PatchShuffle before the crop (RDED's order); False: after the flip.
        antialias: as in ``interpolate(antialias=...)``; matters only where a crop is shrunk.
        dtype: floating-point type of the result.
        channels_last: memory format of the result.

    Returns:
        (B, C, *size) of ``dtype``.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: shapes or devices do not fit, a size is not positive, or strips would be empty;
            on the CPU also an index, box, order or partner out of range (on CUDA its pixels are
            NaN; ``PYDDFAST_DEBUG=1`` makes it an error there too).
    """
    out_size = _check(images, index, params, mean, std, size, dtype, shuffle_first)
    if dtype in FLOAT_DTYPES and _native.usable(images, images.new_empty(0, dtype=dtype)):
        views: Tensor = _native.raw.augment(
            images,
            index,
            params.box,
            params.flip,
            params.row_order,
            params.col_order,
            params.partner,
            params.mix_box,
            mean,
            std,
            *out_size,
            shuffle_first,
            antialias,
            dtype,
            channels_last,
        )
        return views
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    views = reference.augment(
        images,
        index,
        params.box,
        params.flip,
        params.row_order,
        params.col_order,
        params.partner,
        params.mix_box,
        torch.tensor(tuple(mean), dtype=compute, device=images.device),
        torch.tensor(tuple(std), dtype=compute, device=images.device),
        out_size,
        shuffle_first=shuffle_first,
        antialias=antialias,
    ).to(dtype)
    return views.contiguous(memory_format=torch.channels_last) if channels_last else views


def draw_crop_boxes(
    seed: int,
    ids: Tensor,
    visits: Tensor,
    image_size: tuple[int, int] | Tensor,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    purpose: int = Purpose.CROP,
    first_lane: int = 0,
) -> Tensor:
    """Random-resized-crop boxes by the recipe of torchvision's ``RandomResizedCrop.get_params``.

    Ten tries of an area (uniform in ``scale``) and an aspect ratio (log-uniform in ``ratio``); the
    first box that fits is placed uniformly.  If none fits: the largest central box whose aspect
    ratio lies within ``ratio``.

    Args:
        seed: the run's seed.
        ids: int64 (B,), sample ids in [0, 2**32).
        visits: int64 (B,), how often each sample was drawn before.
        image_size: height and width of all images, or int64 (B, 2) with those of each.
        scale: smallest and largest share of the area.
        ratio: smallest and largest width / height.
        purpose: of the draws; each sample and visit takes 40 lanes from ``first_lane``.
        first_lane: to draw several boxes for one visit.

    Returns:
        int64 (B, 4): top, left, height, width.

    Raises:
        ValueError: a range is empty or not positive, or an image size is not positive.
    """
    extent = torch.as_tensor(image_size, dtype=torch.int64).cpu()
    if extent.shape not in ((2,), (len(ids), 2)):
        raise ValueError(
            f"image_size must be a pair or have shape ({len(ids)}, 2), got {tuple(extent.shape)}"
        )
    if (extent < 1).any():
        wrong = extent.view(-1, 2)[(extent < 1).view(-1, 2).any(dim=1)][0]
        raise ValueError(f"image_size must be positive, got {tuple(wrong.tolist())}")
    height, width = extent[..., :1], extent[..., 1:]
    for name, (low, high) in (("scale", scale), ("ratio", ratio)):
        if not 0 < low <= high < math.inf:
            raise ValueError(f"{name} must satisfy 0 < low <= high, got {(low, high)}")
    lanes = first_lane + torch.arange(4 * _TRIES)
    draws = uniform(seed, purpose, ids[:, None], visits[:, None], lanes)
    u_area, u_ratio, u_top, u_left = draws.view(len(ids), _TRIES, 4).unbind(2)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * u_area)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = (low + (high - low) * u_ratio).exp()
    w = (area * aspect).sqrt().round()
    h = (area / aspect).sqrt().round()
    fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
    tried = torch.stack(
        [((height - h + 1) * u_top).floor(), ((width - w + 1) * u_left).floor(), h, w], dim=2
    ).long()
    # argmax of the first True; rows without one take the fallback.
    first = fits.to(torch.uint8).argmax(dim=1)
    box = tried[torch.arange(len(ids)), first]
    return torch.where(fits.any(dim=1)[:, None], box, _central_box(height, width, ratio))


def draw_cutmix(
    seed: int, step: int, batch: int, size: tuple[int, int], *, alpha: float = 1.0
) -> tuple[Tensor, Tensor]:
    """CutMix for a whole batch: one partner order and one box (Yun et al., ICCV 2019).

    As the official code of FKD, SRe2L and RDED: lam ~ Beta(alpha, alpha), a box of sides
    ``int(side * sqrt(1 - lam))`` whose centre is uniform over the pixels, clipped at the border.

    Args:
        seed: the run's seed.
        step: global step; the draws belong to the global batch.
        batch: images of the global batch.
        size: height and width of the views.
        alpha: of the Beta distribution, positive.

    Returns:
        partner int64 (batch,) and box int64 (4,): y0, x0, y1, x1.

    Raises:
        ValueError: ``alpha`` is not positive.
    """
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be positive, got {alpha}")
    partner = permutation(seed, Purpose.CUTMIX, batch, step)
    # Lanes 0 and 1 are the centre's; lane 2 seeds the generator that draws the Beta.
    lam = float(numpy_generator(seed, Purpose.CUTMIX_BOX, step, 0, 2).beta(alpha, alpha))
    cut = math.sqrt(1.0 - lam)
    box = []
    for lane, side in enumerate(size):
        half = int(side * cut) // 2
        centre = int(randint(seed, Purpose.CUTMIX_BOX, 0, side, step, 0, lane))
        box.append((min(max(centre - half, 0), side), min(max(centre + half, 0), side)))
    (y0, y1), (x0, x1) = box
    return partner, torch.tensor([y0, x0, y1, x1])


def draw_augmentation(
    seed: int,
    ids: Tensor,
    visits: Tensor,
    step: int,
    image_size: tuple[int, int],
    *,
    size: int | tuple[int, int] | None = None,
    scale: tuple[float, float] | None = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    factor: int = 1,
    cutmix: float | None = None,
) -> AugmentParams:
    """Draw every random choice of a batch of views.

    Per-sample choices are keyed by (seed, sample id, visit), CutMix by (seed, step).

    Args:
        seed: the run's seed.
        ids: int64 (B,), sample ids: the index into the set.
        visits: int64 (B,), how often each sample was drawn before.
        step: global step.
        image_size: height and width of the stored images.
        size: of the views; None keeps ``image_size``.
        scale: of the crops (see :func:`draw_crop_boxes`); None leaves the crop out.
        ratio: of the crops.
        flip: probability of a horizontal flip; 0 leaves it out.
        factor: PatchShuffle's strips an axis; 1 leaves it out.
        cutmix: alpha of CutMix; None leaves it out.

    Returns:
        CPU tensors; ``.to(device)`` moves them.

    Raises:
        ValueError: a value is out of range.
    """
    ids, visits = ids.cpu(), visits.cpu()
    if not 0 <= flip <= 1:
        raise ValueError(f"flip must be a probability, got {flip}")
    if not 1 <= factor <= min(image_size):
        raise ValueError(f"factor must lie in [1, {min(image_size)}], got {factor}")
    out = image_size if size is None else (size, size) if isinstance(size, int) else size
    if scale is not None:
        box = draw_crop_boxes(seed, ids, visits, image_size, scale=scale, ratio=ratio)
    elif tuple(out) != tuple(image_size):
        box = torch.tensor([[0, 0, *image_size]]).expand(len(ids), 4)
    else:
        box = None
    flips = uniform(seed, Purpose.FLIP, ids, visits) < flip if flip > 0 else None
    row_order = col_order = None
    if factor > 1:
        keys = uniform(
            seed, Purpose.PATCH_SHUFFLE, ids[:, None], visits[:, None], torch.arange(2 * factor)
        )
        row_order = keys[:, :factor].argsort(dim=1, stable=True)
        col_order = keys[:, factor:].argsort(dim=1, stable=True)
    partner = mix_box = None
    if cutmix is not None:
        partner, mix_box = draw_cutmix(seed, step, len(ids), out, alpha=cutmix)
    return AugmentParams(box, flips, row_order, col_order, partner, mix_box)


def _central_box(height: Tensor, width: Tensor, ratio: tuple[float, float]) -> Tensor:
    low, high = ratio
    aspect = width.double() / height  # an integer by an integer would be float32
    h = torch.where(aspect < low, (width.double() / low).round().long(), height)
    w = torch.where(aspect > high, (height.double() * high).round().long(), width)
    # A ratio range far from the image's can round a side to 0.
    h, w = h.clamp(min=1), w.clamp(min=1)
    return torch.cat([(height - h) // 2, (width - w) // 2, h, w], dim=-1)


def _check(
    images: Tensor,
    index: Tensor,
    params: AugmentParams,
    mean: Sequence[float],
    std: Sequence[float],
    size: int | tuple[int, int] | None,
    dtype: torch.dtype,
    shuffle_first: bool,
) -> tuple[int, int]:
    """Check shapes, dtypes and devices, and on the CPU values (elsewhere that would wait)."""
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise TypeError(
            f"images must be uint8 (N, C, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    if index.dtype != torch.int64 or index.ndim != 1:
        raise TypeError(f"index must be int64 (B,), got {index.dtype} {tuple(index.shape)}")
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point type, got {dtype}")
    channels, height, width = images.shape[1:]
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"mean and std need {channels} values, one a channel, got {len(mean)} and {len(std)}"
        )
    if any(not value > 0 for value in std):
        raise ValueError(f"std must be positive, got {tuple(std)}")
    out = (height, width) if size is None else (size, size) if isinstance(size, int) else size
    if min(out) < 1:
        raise ValueError(f"size must be positive, got {out}")
    if params.box is None and out != (height, width):
        raise ValueError(f"size {out} differs from the images' {(height, width)}: give params.box")
    for name, other in (("row_order", "col_order"), ("partner", "mix_box")):
        if (getattr(params, name) is None) != (getattr(params, other) is None):
            raise ValueError(f"params.{name} and params.{other} must be given together")
    batch = len(index)
    shapes: dict[str, tuple[int | None, ...]] = {
        "box": (batch, 4),
        "flip": (batch,),
        "row_order": (batch, None),
        "col_order": (batch, None),
        "partner": (batch,),
        "mix_box": (4,),
    }
    for name, shape in shapes.items():
        value = getattr(params, name)
        if value is None:
            continue
        wanted = torch.bool if name == "flip" else torch.int64
        if value.dtype != wanted:
            raise TypeError(f"params.{name} must be {wanted}, got {value.dtype}")
        if value.ndim != len(shape) or any(
            want is not None and have != want for have, want in zip(value.shape, shape, strict=True)
        ):
            raise ValueError(f"params.{name} must have shape {shape}, got {tuple(value.shape)}")
        if value.device != images.device:
            raise ValueError(
                f"params.{name} is on {value.device}, images are on {images.device}; use .to()"
            )
    if index.device != images.device:
        raise ValueError(f"index is on {index.device}, images are on {images.device}")
    sides = (height, width) if shuffle_first else out
    for name, side in zip(("row_order", "col_order"), sides, strict=True):
        order = getattr(params, name)
        if order is not None and not 1 <= order.shape[1] <= side:
            raise ValueError(f"params.{name} cuts {side} pixels into {order.shape[1]} strips")
    if _native.debug() or (images.is_cpu and not torch.compiler.is_compiling()):
        _check_values(len(images), (height, width), index, params)
    return out


def _check_values(
    count: int, extent: tuple[int, int], index: Tensor, params: AugmentParams
) -> None:
    batch = len(index)
    if not batch:
        return
    if int(index.min()) < 0 or int(index.max()) >= count:
        raise ValueError(
            f"index must lie in [0, {count}), got {int(index.min())} to {int(index.max())}"
        )
    if params.box is not None:
        corner, span = params.box[:, :2], params.box[:, 2:]
        limit = torch.tensor(extent, device=index.device)
        bad = ((corner < 0) | (span < 1) | (corner + span > limit)).any(1)
        if bool(bad.any()):
            first = int(bad.to(torch.uint8).argmax())
            raise ValueError(
                f"params.box[{first}] = {params.box[first].tolist()} (top, left, height, width) "
                f"must not be empty and must lie inside the image of {extent[0]} x {extent[1]}"
            )
    for name in ("row_order", "col_order"):
        order = getattr(params, name)
        if order is not None:
            wanted = torch.arange(order.shape[1], device=order.device)
            if not bool((order.sort(dim=1).values == wanted).all()):
                raise ValueError(f"params.{name} must hold permutations of 0 .. {len(wanted) - 1}")
    if params.partner is not None:
        low, high = int(params.partner.min()), int(params.partner.max())
        if low < 0 or high >= batch:
            raise ValueError(f"params.partner must lie in [0, {batch}), got {low} to {high}")
