"""One batch of stored soft labels: how its views were made and what the teacher said of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor

__all__ = ["LabelBatch", "check_batch", "coords_of", "is_plain", "replay_boxes"]

# float32 coordinates of a box that ends at the image's border may add up to a little more than 1.
_BORDER = 1e-5


@dataclass(frozen=True, eq=False)
class LabelBatch:
    """The content of one official FKD file, under its names and in its order.

    Attributes:
        coords: float32 (B, 4): top and height over the image's height, left and width over its
            width, as (top, left, height, width).
        flip: bool (B,): mirrored left to right.
        mix_index: int64 (B,), the batch position that each view is mixed with; None without mixing.
        mix_lam: drawn mixing weight (CutMix's box has about the area ``1 - lam``), or None.
        mix_bbox: CutMix's box y0, x0, y1, x1 in the view (ends excluded); None for MixUp.
        logits: teacher logits of the mixed views, float16 or float32 (B, C).
        index: int64 (B,), the images; None where the file leaves it to the sampler's seed.
        patch_order: integers (B, 2, factor): strips of columns and of rows (EDC), or None.
    """

    coords: Tensor
    flip: Tensor
    mix_index: Tensor | None
    mix_lam: float | None
    mix_bbox: tuple[int, int, int, int] | None
    logits: Tensor
    index: Tensor | None = None
    patch_order: Tensor | None = None

    def __len__(self) -> int:
        return len(self.flip)

    @property
    def kind(self) -> str:
        """``"none"``, ``"mixup"`` or ``"cutmix"``."""
        if self.mix_index is None:
            return "none"
        return "mixup" if self.mix_bbox is None else "cutmix"


def check_batch(batch: LabelBatch, name: object) -> None:
    """Refuse a batch whose parts do not fit together.

    Args:
        batch: what was read or is to be written.
        name: what to call it in the error, e.g. its file.

    Raises:
        ValueError: a type, shape or value is wrong; the message says which of `name`.
    """
    _tensor(name, "flip", batch.flip, (torch.bool,), (None,))
    count = len(batch)
    _tensor(name, "coords", batch.coords, (torch.float32,), (count, 4))
    _tensor(name, "logits", batch.logits, (torch.float16, torch.float32), (count, None))
    if count == 0 or batch.logits.shape[1] == 0:
        raise ValueError(f"{name}: a batch needs at least one image and one class")
    corner, extent = batch.coords[:, :2], batch.coords[:, 2:]
    inside = (corner >= 0) & (extent > 0) & (corner + extent <= 1 + _BORDER)
    if not bool(inside.all()):
        row = int(inside.all(1).to(torch.uint8).argmin())
        raise ValueError(
            f"{name}: coords[{row}] = {batch.coords[row].tolist()} (top, left, height, width as "
            "shares of the image) is empty or leaves the image"
        )
    if batch.index is not None:
        _tensor(name, "index", batch.index, (torch.int64,), (count,))
        if int(batch.index.min()) < 0:
            raise ValueError(f"{name}: index holds {int(batch.index.min())}")
    if batch.patch_order is not None:
        _tensor(
            name, "patch_order", batch.patch_order, (torch.int32, torch.int64), (count, 2, None)
        )
        if batch.patch_order.shape[2] == 0:
            raise ValueError(f"{name}: patch_order has no strips")
        low, high = int(batch.patch_order.min()), int(batch.patch_order.max())
        if low < 0 or high > 255:
            raise ValueError(f"{name}: patch_order must lie in [0, 256), got {low} to {high}")
    _check_mix(batch, name, count)


def coords_of(boxes: Tensor, size: tuple[int, int] | Tensor) -> Tensor:
    """Boxes in pixels as an FKD file holds them.

    Args:
        boxes: int64 (B, 4): top, left, height, width.
        size: height and width of all images, or int64 (B, 2) with those of each.

    Returns:
        float32 (B, 4); :func:`replay_boxes` gives the boxes back.
    """
    return (boxes.double() / _sides(size)).float()


def replay_boxes(coords: Tensor, size: tuple[int, int] | Tensor) -> Tensor:
    """The pixels that an official reader crops.

    It multiplies by the image's sides and leaves rounding to PIL, which rounds the four edges, half
    to even (``Image.crop``); flooring would lose a pixel to float32 now and then.

    Args:
        coords: float32 (B, 4), as in :class:`LabelBatch`.
        size: height and width of all images, or int64 (B, 2) with those of each.

    Returns:
        int64 (B, 4): top, left, height, width.

    Raises:
        ValueError: a box is empty or leaves the image.
    """
    sides = _sides(size)
    pixels = coords.double() * sides
    corner, extent = pixels[:, :2], pixels[:, 2:]
    start = corner.round()
    boxes = torch.cat([start, (corner + extent).round() - start], dim=1).long()
    limit = sides[..., :2].long()
    bad = ((boxes[:, :2] < 0) | (boxes[:, 2:] < 1) | (boxes[:, :2] + boxes[:, 2:] > limit)).any(1)
    if bool(bad.any()):
        row = int(bad.to(torch.uint8).argmax())
        height, width = limit.expand(len(boxes), 2)[row].tolist()
        raise ValueError(
            f"stored box {boxes[row].tolist()} (top, left, height, width) is empty or leaves the "
            f"image of {height} x {width}: the labels belong to other images"
        )
    return boxes


def _sides(size: tuple[int, int] | Tensor) -> Tensor:
    """What each number of a box is a share of, float64 (..., 4)."""
    return torch.as_tensor(size, dtype=torch.float64).repeat_interleave(2, dim=-1)[
        ..., [0, 2, 1, 3]
    ]


def is_plain(value: object) -> TypeGuard[Tensor]:
    """Whether a tensor is one block of numbers."""
    return (
        isinstance(value, Tensor)
        and not value.is_nested
        and value.layout == torch.strided
        and not value.is_meta
    )


def _tensor(
    name: object,
    field: str,
    value: object,
    dtypes: tuple[torch.dtype, ...],
    shape: tuple[int | None, ...],
) -> None:
    allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    text = f"({', '.join('any' if side is None else str(side) for side in shape)})"
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: {field} must be a tensor, got {type(value).__name__}")
    if not is_plain(value) or value.requires_grad or value.is_neg():
        raise ValueError(
            f"{name}: {field} must be a plain tensor, without gradient; got {value.dtype} "
            f"{value.layout}, nested={value.is_nested}, requires_grad={value.requires_grad}"
        )
    fits = value.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(value.shape, shape, strict=False)
    )
    if value.dtype not in dtypes or not fits:
        raise ValueError(
            f"{name}: {field} must be {allowed} {text}, got {value.dtype} {tuple(value.shape)}"
        )


def _check_mix(batch: LabelBatch, name: object, count: int) -> None:
    if batch.mix_index is None:
        if batch.mix_lam is not None or batch.mix_bbox is not None:
            raise ValueError(f"{name}: mix_lam or mix_bbox without mix_index")
        return
    _tensor(name, "mix_index", batch.mix_index, (torch.int64,), (count,))
    if int(batch.mix_index.min()) < 0 or int(batch.mix_index.max()) >= count:
        raise ValueError(f"{name}: mix_index must lie in [0, {count}), the batch's positions")
    if not isinstance(batch.mix_lam, float) or not 0 <= batch.mix_lam <= 1:
        raise ValueError(f"{name}: mix_lam must be a float in [0, 1], got {batch.mix_lam!r}")
    if batch.mix_bbox is not None:
        y0, x0, y1, x1 = batch.mix_bbox
        if not (0 <= y0 <= y1 < 2**31 and 0 <= x0 <= x1 < 2**31):
            raise ValueError(
                f"{name}: mix_bbox must be y0 <= y1 and x0 <= x1, got {batch.mix_bbox}"
            )
