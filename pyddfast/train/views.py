"""Training views of a set that lives on the device, by the recipe's augmentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pyddfast.data import Normalization, ResidentDataset, network_input
from pyddfast.ops.augment import AugmentParams, augment, draw_augmentation, draw_cutmix
from pyddfast.ops.dsa import draw_dsa, dsa
from pyddfast.train.recipes import Recipe

__all__ = ["Draws", "KeyedDraws", "Mix", "Views", "keyed_draws", "make_views"]

_WHOLE = slice(None)


class Mix(NamedTuple):
    """What a whole batch is mixed with.

    Attributes:
        partner: int64 (B,), the position that each view is mixed with.
        box: CutMix's box int64 (4,): y0, x0, y1, x1 in the view; None for MixUp.
        lam: MixUp's weight of the view itself.
    """

    partner: Tensor
    box: Tensor | None
    lam: float = 1.0


class Draws(Protocol):
    """The choices that views are made by."""

    def mix(self, step: int, count: int) -> Mix | None:
        """What the step's batch of ``count`` views is mixed with, if it is."""

    def params(self, ids: Tensor, visits: Tensor, step: int, rows: Tensor) -> AugmentParams:
        """Of the views of ``ids[rows]``, mixing aside."""


@dataclass(frozen=True)
class KeyedDraws:
    """The recipe's choices, by image and visit, and by step.

    Attributes:
        recipe: its augmentation fields.
        seed: of the choices.
        image_size: height and width of the images.
        factor: of PatchShuffle; 1: none.
    """

    recipe: Recipe
    seed: int
    image_size: tuple[int, int]
    factor: int = 1

    def mix(self, step: int, count: int) -> Mix | None:
        """CutMix, where the recipe has it."""
        if self.recipe.cutmix is None:
            return None
        height, width = self.image_size
        out = self.recipe.image_size or height, self.recipe.image_size or width
        return Mix(*draw_cutmix(self.seed, step, count, out, alpha=self.recipe.cutmix))

    def params(self, ids: Tensor, visits: Tensor, step: int, rows: Tensor) -> AugmentParams:
        """PatchShuffle, crop and flip."""
        return draw_augmentation(
            self.seed,
            ids[rows],
            visits[rows],
            step,
            self.image_size,
            size=self.recipe.image_size,
            scale=self.recipe.rrc_scale,
            ratio=self.recipe.rrc_ratio,
            flip=self.recipe.flip,
            factor=self.factor,
        )


def keyed_draws(
    recipe: Recipe, seed: int, image_size: tuple[int, int], kind: str, factor: int
) -> KeyedDraws:
    """The draws of a set; PatchShuffle applies exactly to ``"patches"`` with ``factor`` > 1."""
    shuffled = recipe.patch_shuffle == "auto" and kind == "patches"
    return KeyedDraws(recipe, seed, image_size, factor if shuffled else 1)


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
    draws: Draws | None = None,
) -> Views:
    """The view function of one training.

    Args:
        images: uint8 (N, C, H, W), or normalised float32 (not for augmentation ``"rrc"``), on the
            training device, or a set that streams them there.
        normalization: of the pixels.
        recipe: its augmentation fields.
        seed: of the random choices.
        kind: of the set; PatchShuffle applies exactly to ``"patches"`` with ``factor`` > 1.
        factor: patches an axis.
        dtype: of the views of augmentation ``"rrc"``; others are float32.
        channels_last: memory format of the views of augmentation ``"rrc"``.
        draws: choices of augmentation ``"rrc"`` in place of those drawn from ``seed``.
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
        drawn = draws or keyed_draws(recipe, seed, (height, width), kind, factor)

        def mixed_rows(ids: Tensor, step: int, part: slice) -> Tensor:
            """Mixing belongs to the whole batch: a part also makes its partners' views."""
            rows = own_rows(ids, step, part)
            mix = drawn.mix(step, len(ids))
            if mix is None or len(rows) == len(ids):
                return rows
            return torch.cat([rows, mix.partner[rows]])

        def rrc(ids: Tensor, visits: Tensor, step: int, part: slice = _WHOLE) -> Tensor:
            rows, wanted = mixed_rows(ids, step, part), len(own_rows(ids, step, part))
            mix, partner = drawn.mix(step, len(ids)), None
            if mix is not None:
                partner = mix.partner
                if wanted < len(ids):
                    partner = torch.arange(wanted, 2 * wanted).repeat(2)
            params = drawn.params(ids, visits, step, rows)
            if mix is not None and mix.box is not None:
                params = replace(params, partner=partner, mix_box=mix.box)
            views = augment(
                *pixels(ids[rows]),
                params.to(device),
                mean=normalization.mean,
                std=normalization.std,
                size=recipe.image_size,
                shuffle_first=recipe.patch_shuffle_first,
                antialias=recipe.antialias,
                dtype=dtype,
                channels_last=channels_last,
            )
            if mix is not None and mix.box is None and partner is not None:
                views = mix.lam * views + (1 - mix.lam) * views[partner.to(device)]
            return views[:wanted]

        return finish(rrc, mixed_rows)

    # Normalised once: DSA works on normalised images, and these sets are small.
    kept = None if stored is None else network_input(stored, normalization)

    def normalised(ids: Tensor) -> Tensor:
        if kept is not None:
            return kept[ids.to(device)]
        return network_input(pixels(ids)[0], normalization)

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
