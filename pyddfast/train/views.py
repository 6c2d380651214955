"""Training views of a set that lives on the device, by the recipe's augmentation."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from pyddfast.data import Normalization, normalize
from pyddfast.ops.augment import augment, draw_augmentation, draw_cutmix
from pyddfast.ops.dsa import draw_dsa, dsa
from pyddfast.train.recipes import Recipe

__all__ = ["Views", "make_views"]

_WHOLE = slice(None)


class Views(Protocol):
    """Makes the views of a batch, or of a part of it; the part's are those of the whole batch."""

    def __call__(self, ids: Tensor, visits: Tensor, step: int, part: slice = _WHOLE, /) -> Tensor:
        """Normalised views (P, C, H, W) of ``ids[part]``.

        Args:
            ids: int64 (B,), images of the step's whole batch, on the CPU.
            visits: int64 (B,), how often each was seen before.
            step: global step.
            part: which of them are wanted.
        """


def make_views(
    images: Tensor,
    normalization: Normalization,
    recipe: Recipe,
    *,
    seed: int,
    kind: str = "real",
    factor: int = 1,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Views:
    """The view function of one training.

    Args:
        images: uint8 (N, C, H, W), on the training device.
        normalization: of the pixels.
        recipe: its augmentation fields.
        seed: of the random choices.
        kind: of the set; PatchShuffle applies exactly to ``"patches"`` with ``factor`` > 1.
        factor: patches an axis.
        dtype: of the views of augmentation ``"rrc"``; others are float32.
        channels_last: memory format of the views of augmentation ``"rrc"``.
    """
    height, width = images.shape[-2:]
    device = images.device
    if recipe.augmentation == "rrc":
        shuffled = recipe.patch_shuffle == "auto" and kind == "patches" and factor > 1

        def rrc(ids: Tensor, visits: Tensor, step: int, part: slice = _WHOLE) -> Tensor:
            rows = torch.arange(len(ids))[part]
            wanted, partner, mix_box = len(rows), None, None
            if recipe.cutmix is not None:
                # CutMix belongs to the whole batch; a part also makes its partners' views.
                out = recipe.image_size or height, recipe.image_size or width
                order, mix_box = draw_cutmix(seed, step, len(ids), out, alpha=recipe.cutmix)
                partner = order[rows]
                if wanted < len(ids):
                    rows = torch.cat([rows, partner])
                    partner = torch.arange(wanted, 2 * wanted).repeat(2)
            params = draw_augmentation(
                seed,
                ids[rows],
                visits[rows],
                step,
                (height, width),
                size=recipe.image_size,
                scale=recipe.rrc_scale,
                ratio=recipe.rrc_ratio,
                flip=recipe.flip,
                factor=factor if shuffled else 1,
            )
            views = augment(
                images,
                ids[rows].to(device),
                replace(params, partner=partner, mix_box=mix_box).to(device),
                mean=normalization.mean,
                std=normalization.std,
                size=recipe.image_size,
                shuffle_first=recipe.patch_shuffle_first,
                antialias=recipe.antialias,
                dtype=dtype,
                channels_last=channels_last,
            )
            return views[:wanted]

        return rrc

    # Normalised once: DSA works on normalised images, and these sets are small.
    stored = normalize(images, normalization)
    if recipe.augmentation == "none":

        def plain(ids: Tensor, visits: Tensor, step: int, part: slice = _WHOLE) -> Tensor:
            return stored[ids[part].to(device)]

        return plain

    def siamese(ids: Tensor, visits: Tensor, step: int, part: slice = _WHOLE) -> Tensor:
        params = draw_dsa(
            seed,
            ids[part],
            visits[part],
            step,
            (height, width),
            strategy=recipe.dsa_strategy,
            mode=recipe.dsa_mode,
        )
        with torch.no_grad():
            return dsa(
                stored[ids[part].to(device)],
                params.to(device),
                align_corners=recipe.dsa_align_corners,
            )

    return siamese
