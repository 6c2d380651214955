"""SRe2L and CDA: ``utils.py`` of VILA-Lab/SRe2L (8d00cba), in ``SRe2L/recover`` and ``CDA``."""

from __future__ import annotations

from torch import nn

from pyddfast.compat._hooks import RunningStatisticsHook
from pyddfast.compat._images import clip, denormalize, get_image_prior_losses, lr_cosine_policy

__all__ = ["BNFeatureHook", "clip", "denormalize", "get_image_prior_losses", "lr_cosine_policy"]


class BNFeatureHook(RunningStatisticsHook):
    """Distance of the batch statistics of a BatchNorm's input from the running ones.

    ``r_feature`` = ‖running_var − var‖₂ + ‖running_mean − mean‖₂, over channels; the variance of
    the batch is the biased one.

    Args:
        module: ``nn.BatchNorm2d`` or another BatchNorm, in eval mode when it runs.

    Raises:
        TypeError: `module` is no BatchNorm.
        ValueError: It has no running statistics; later, from its forward, it is in training mode.
        RuntimeError: From its forward, inside a replica of ``nn.DataParallel``.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
