"""FADRM: ``recover/utils_recover.py`` of Jiacheng8/FADRM (f445e38)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from pyddfast.compat._images import (
    clip_with,
    denormalize_with,
    get_image_prior_losses,
    lr_cosine_policy,
)
from pyddfast.compat.sre2l import BNFeatureHook

__all__ = ["BNFeatureHook", "clip", "denormalize", "get_image_prior_losses", "lr_cosine_policy"]


class _Arguments(Protocol):
    mean_norm: Sequence[float]
    std_norm: Sequence[float]


def clip(image_tensor: Tensor, args: _Arguments, use_fp16: bool = False) -> Tensor:
    """Each channel to the range of pixels in [0, 1], in place.

    Args:
        image_tensor: (B, C, ...) floating point, normalised.
        args: The script's arguments: ``mean_norm`` and ``std_norm``, a value a channel.
        use_fp16: computes the bounds in float16.

    Returns:
        `image_tensor`.

    Raises:
        TypeError: `image_tensor` is not a floating-point tensor.
        ValueError: It has not one channel for each mean.
    """
    return clip_with(image_tensor, (args.mean_norm, args.std_norm), use_fp16)


def denormalize(image_tensor: Tensor, args: _Arguments, use_fp16: bool = False) -> Tensor:
    """Pixels in [0, 1] of normalised images, in place; arguments and errors as `clip`."""
    return denormalize_with(image_tensor, (args.mean_norm, args.std_norm), use_fp16)
