"""``DiffAugment`` as the small-scale codebases share it; they differ in ``align_corners`` alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyddfast.ops.dsa import DSAConfig, draw_dsa_official, dsa

__all__ = ["diff_augment"]

_MODES = {"S": "single", "M": "all"}


def diff_augment(x: Tensor, strategy: str, seed: int, param: Any, *, align_corners: bool) -> Tensor:
    """Draw as the official function, with its side effects, and apply the transforms.

    Args:
        x: (N, C, H, W) floating point.
        strategy: Entries joined by ``_``; ``""``, ``"none"`` and ``"None"`` leave ``x`` as it is.
        seed: -1: parameters of each image from torch's global generators; else one draw for all,
            the generators reseeded before each.
        param: ``ParamDiffAug``: ``aug_mode``, ``prob_flip``, ``ratio_scale``, ``ratio_rotate``,
            ``ratio_crop_pad``, ``ratio_cutout``, ``brightness``, ``saturation``, ``contrast``;
            ``Siamese``, ``batchmode`` and ``latestseed`` are written.
        align_corners: Of scale and rotate.

    Returns:
        The augmented images, contiguous.

    Raises:
        ValueError: An unknown entry or ``aug_mode``.
    """
    # MTT and its heirs call it batchmode, VICO's codes Siamese.
    param.Siamese = param.batchmode = seed != -1
    param.latestseed = seed
    if not strategy or strategy.lower() == "none":
        return x
    if param.aug_mode not in _MODES:
        raise ValueError(f"param.aug_mode must be one of {sorted(_MODES)}, got {param.aug_mode!r}")
    config = DSAConfig(
        flip=param.prob_flip,
        scale=param.ratio_scale,
        rotate=param.ratio_rotate,
        crop=param.ratio_crop_pad,
        cutout=param.ratio_cutout,
        brightness=param.brightness,
        saturation=param.saturation,
        contrast=param.contrast,
    )
    params, param.latestseed = draw_dsa_official(
        x, seed=seed, strategy=strategy, mode=_MODES[param.aug_mode], config=config
    )
    return dsa(x, params, align_corners=align_corners).contiguous()
