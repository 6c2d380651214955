"""Training views of a set that lives on the device, by the recipe's augmentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from pyddfast.data import Normalization, ResidentDataset, normalize
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


@dataclass(frozen=True)
class _Streamed:
    """Views whose images can be read before they are asked for."""

    make: Views
    rows: Callable[[Tensor, int, slice], Tensor]
    data: ResidentDataset

    def __call__(self, ids: Tensor, visits: Tensor, step: int, part: slice = _WHOLE, /) -> Tensor:
        return self.make(ids, visits, step, part)

    def prefetch(self, ids: Tensor, step: int, part: slice) -> None:
        """Begin to read the images of the views that are asked for next."""
        self.data.prefetch(ids[self.rows(ids, step, part)])


def make_views(
    images: Tensor | ResidentDataset,
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
        images: uint8 (N, C, H, W), on the training device, or a set that streams them there.
        normalization: of the pixels.
        recipe: its augmentation fields.
        seed: of the random choices.
        kind: of the set; PatchShuffle applies exactly to ``"patches"`` with ``factor`` > 1.
        factor: patches an axis.
        dtype: of the views of augmentation ``"rrc"``; others are float32.
        channels_last: memory format of the views of augmentation ``"rrc"``.
    """
    if isinstance(images, ResidentDataset):
        streamed = images if images.images is None else None
        (height, width), stored = images.image_shape[1:], images.images
    else:
        streamed, (height, width), stored = None, images.shape[-2:], images
    device = images.device

    def pixels(ids: Tensor) -> tuple[Tensor, Tensor]:
        """A tensor of images, and where in it those of ``ids`` are."""
        if streamed is None:
            assert stored is not None
            return stored, ids.to(device)
        return streamed.batch(ids), torch.arange(len(ids), device=device)

    def finish(make: Views, rows: Callable[[Tensor, int, slice], Tensor]) -> Views:
        return make if streamed is None else _Streamed(make, rows, streamed)

    def own_rows(ids: Tensor, step: int, part: slice) -> Tensor:
        return torch.arange(len(ids))[part]

    if recipe.augmentation == "rrc":
        shuffled = recipe.patch_shuffle == "auto" and kind == "patches" and factor > 1

        out = recipe.image_size or height, recipe.image_size or width

        def mixed_rows(ids: Tensor, step: int, part: slice) -> Tensor:
            """CutMix belongs to the whole batch: a part also makes its partners' views."""
            rows = own_rows(ids, step, part)
            if recipe.cutmix is None or len(rows) == len(ids):
                return rows
            order, _ = draw_cutmix(seed, step, len(ids), out, alpha=recipe.cutmix)
            return torch.cat([rows, order[rows]])

        def rrc(ids: Tensor, visits: Tensor, step: int, part: slice = _WHOLE) -> Tensor:
            rows, wanted = mixed_rows(ids, step, part), len(own_rows(ids, step, part))
            partner = mix_box = None
            if recipe.cutmix is not None:
                partner, mix_box = draw_cutmix(seed, step, len(ids), out, alpha=recipe.cutmix)
                if wanted < len(ids):
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
                *pixels(ids[rows]),
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

        return finish(rrc, mixed_rows)

    # Normalised once: DSA works on normalised images, and these sets are small.
    kept = None if stored is None else normalize(stored, normalization)

    def normalised(ids: Tensor) -> Tensor:
        if kept is not None:
            return kept[ids.to(device)]
        return normalize(pixels(ids)[0], normalization)

    if recipe.augmentation == "none":

        def plain(ids: Tensor, visits: Tensor, step: int, part: slice = _WHOLE) -> Tensor:
            return normalised(ids[part])

        return finish(plain, own_rows)

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
                normalised(ids[part]),
                params.to(device),
                align_corners=recipe.dsa_align_corners,
            )

    return finish(siamese, own_rows)
