"""Training views of a set that lives on the device, by the recipe's augmentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from pyddfast.data import Normalization, normalize
from pyddfast.ops.augment import augment, draw_augmentation
from pyddfast.ops.dsa import draw_dsa, dsa
from pyddfast.train.recipes import Recipe

__all__ = ["Views", "make_views"]

# (ids, visits, step) -> normalised views (B, C, H, W); ids and visits int64 on the CPU.
Views: TypeAlias = Callable[[Tensor, Tensor, int], Tensor]


def make_views(
    images: Tensor,
    normalization: Normalization,
    recipe: Recipe,
    *,
    seed: int,
    kind: str = "real",
    factor: int = 1,
) -> Views:
    """The view function of one training.

    Args:
        images: uint8 (N, C, H, W), on the training device.
        normalization: of the pixels.
        recipe: its augmentation fields.
        seed: of the random choices.
        kind: of the set; PatchShuffle applies exactly to ``"patches"`` with ``factor`` > 1.
        factor: patches an axis.

    Returns:
        A function of (ids, visits, step) that gives the normalised float32 views.
    """
    height, width = images.shape[-2:]
    device = images.device
    if recipe.augmentation == "rrc":
        shuffled = recipe.patch_shuffle == "auto" and kind == "patches" and factor > 1

        def rrc(ids: Tensor, visits: Tensor, step: int) -> Tensor:
            params = draw_augmentation(
                seed,
                ids,
                visits,
                step,
                (height, width),
                size=recipe.image_size,
                scale=recipe.rrc_scale,
                ratio=recipe.rrc_ratio,
                flip=recipe.flip,
                factor=factor if shuffled else 1,
                cutmix=recipe.cutmix,
            )
            return augment(
                images,
                ids.to(device),
                params.to(device),
                mean=normalization.mean,
                std=normalization.std,
                size=recipe.image_size,
                shuffle_first=recipe.patch_shuffle_first,
                antialias=recipe.antialias,
            )

        return rrc

    # Normalised once: DSA works on normalised images, and these sets are small.
    stored = normalize(images, normalization)
    if recipe.augmentation == "none":
        return lambda ids, visits, step: stored[ids.to(device)]

    def siamese(ids: Tensor, visits: Tensor, step: int) -> Tensor:
        params = draw_dsa(
            seed,
            ids,
            visits,
            step,
            (height, width),
            strategy=recipe.dsa_strategy,
            mode=recipe.dsa_mode,
        )
        with torch.no_grad():
            return dsa(
                stored[ids.to(device)],
                params.to(device),
                align_corners=recipe.dsa_align_corners,
            )

    return siamese
