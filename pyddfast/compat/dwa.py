"""DWA: ``distillation/utils.py`` of AngusDujw/Diversity-Driven-Synthesis (c5b125f)."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from pyddfast.compat._hooks import RunningStatisticsHook
from pyddfast.compat._images import (
    IMAGENET,
    Normalization,
    clip,
    clip_with,
    denormalize,
    denormalize_with,
    get_image_prior_losses,
    lr_cosine_policy,
)
from pyddfast.ops import _checks

__all__ = [
    "BNFeatureHook",
    "clip",
    "clip_image",
    "denormalize",
    "denormalize_image",
    "get_image_prior_losses",
    "lr_cosine_policy",
]

_NORMALIZATIONS: dict[str, Normalization] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": IMAGENET,
}


class _Arguments(Protocol):
    r_var: float


class BNFeatureHook(RunningStatisticsHook):
    """Distance of the batch statistics of a BatchNorm's input, with a weight on the variance.

    ``r_feature`` = r_var · ‖running_var − var‖₂ + ‖running_mean − mean‖₂.

    Args:
        module: ``nn.BatchNorm2d`` or another BatchNorm, in eval mode when it runs.
        args: The script's arguments, of which `r_var` is used.

    Raises:
        TypeError: `module` is no BatchNorm, or ``args.r_var`` no number.
        ValueError: As of :class:`pyddfast.compat.sre2l.BNFeatureHook`, or a non-finite ``r_var``.
        RuntimeError: From its forward, inside a replica of ``nn.DataParallel``.
    """

    def __init__(self, module: nn.Module, args: _Arguments) -> None:
        self.r_var = _checks.number(args.r_var, "args.r_var")
        super().__init__(module, self.r_var)


def clip_image(image_tensor: Tensor, dataset: str) -> Tensor:
    """Each channel to the range of pixels in [0, 1], in place.

    Args:
        image_tensor: (B, 3, ...) floating point, normalised.
        dataset: ``"cifar10"``, ``"cifar100"`` or ``"imagenet"``.

    Returns:
        `image_tensor`.

    Raises:
        TypeError: `image_tensor` is not a floating-point tensor.
        ValueError: A wrong shape, or an unknown `dataset`.
    """
    return clip_with(image_tensor, _normalization(dataset))


def denormalize_image(image_tensor: Tensor, dataset: str) -> Tensor:
    """Pixels in [0, 1] of normalised images, in place; arguments and errors as `clip_image`."""
    return denormalize_with(image_tensor, _normalization(dataset))


def _normalization(dataset: str) -> Normalization:
    _checks.one_of(dataset, tuple(_NORMALIZATIONS), "dataset")
    return _NORMALIZATIONS[dataset]
