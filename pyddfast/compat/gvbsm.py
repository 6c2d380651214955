"""G-VBSM: ``Branch_full_ImageNet_1k/recover/utils.py`` of its codebase.

shaoshitong/G_VBSM_Dataset_Condensation, 1ed80b0.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pyddfast import ops
from pyddfast.compat import _stored
from pyddfast.compat._hooks import (
    CollectingHook,
    MovingStatisticsHook,
    Statistic,
    check_batch_norm,
    device_of,
    named_module,
    running,
    share,
)
from pyddfast.compat._images import clip, denormalize, get_image_prior_losses, lr_cosine_policy
from pyddfast.ops import _checks

__all__ = [
    "BNFeatureHook",
    "ConvFeatureHook",
    "clip",
    "denormalize",
    "get_image_prior_losses",
    "lr_cosine_policy",
]


class BNFeatureHook(MovingStatisticsHook):
    """Distance of a moving average of batch statistics from the running ones.

    ``r_feature`` = ‖running_var − v̄‖₂ + ‖running_mean − m̄‖₂ with
    v̄ ← momentum · v̄ + (1 − momentum) · var; its gradient goes to the current batch as if that were
    the average.  The averages (``dd_mean``, ``dd_var``) start at 0.

    Args:
        module: ``nn.BatchNorm2d`` or another BatchNorm, in eval mode when it runs.
        training_momentum: Weight of the past, 0 to 1.

    Raises:
        TypeError: `module` is no BatchNorm.
        ValueError: It has no running statistics, or the momentum is out of range; later, from its
            forward, it is in training mode.
        RuntimeError: From its forward, inside a replica of ``nn.DataParallel``.
    """

    names = ("dd_mean", "dd_var")

    def __init__(self, module: nn.Module, training_momentum: float = 0.4) -> None:
        check_batch_norm(module)
        super().__init__(module, training_momentum)

    def _measure(self, module: nn.Module, x: Tensor) -> Tensor | None:
        target = running(module)
        view, *stats = ops.channel_stats(x, target[0])
        self._compare(stats, [target])
        return view


class ConvFeatureHook(CollectingHook, MovingStatisticsHook):
    """Distance of moving averages of a convolution's input statistics from the training data's.

    ``r_feature`` is a sum of four 2-norms: variances and means of the channels, and of the 16 x 16
    cells of the plane after its resize to a multiple of 16 (`ops.patch_stats`).  Averages and
    gradient as :class:`BNFeatureHook`.

    The training data's statistics come from ``save_path/ConvFeatureHook/name/running.npz``.  Where
    that file is missing, ``load_tag`` is False, and a pass over the training data between
    ``set_hook(pre=True)`` and `save` takes them.

    Args:
        module: The convolution, on its device.
        save_path: Folder of the statistics.
        data_number: Samples of the training data, the divisor of that pass.
        name: Of the layer; each has its own.
        gpu: Not used: statistics lie where the module is.
        training_momentum: Weight of the past, 0 to 1.
        drop_rate: Share of the forwards in which ``r_feature`` is 0.  Drawn from Python's `random`,
            as the official hook draws.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: `module` or `name` is missing, a number is out of range, or the file is damaged.
        RuntimeError: From the forward, inside a replica of ``nn.DataParallel``.
    """

    names: tuple[str, ...] = ("dd_mean", "dd_var", "patch_mean", "patch_var")
    cell = 16  # pixels; 4 in the branches for smaller images

    def __init__(
        self,
        module: nn.Module | None = None,
        save_path: str | os.PathLike[str] = "./",
        data_number: int = 1281167,
        name: str | None = None,
        gpu: int | None = 0,
        training_momentum: float = 0.4,
        drop_rate: float = 0.4,
    ) -> None:
        self.module = named_module(module, name)
        self.data_number = _checks.positive(data_number, "data_number")
        self.drop_rate = share(drop_rate, "drop_rate")
        self.save_path = Path(save_path, "ConvFeatureHook", str(name), "running.npz")
        self.load_tag = self.save_path.exists()
        for key in self._keys:
            setattr(self, key, 0.0)
        if self.load_tag:
            device = device_of(self.module)
            for key, value in _stored.load(self.save_path, self._keys, device).items():
                setattr(self, key, value)
        super().__init__(self.module, training_momentum)

    @property
    def _keys(self) -> tuple[str, ...]:
        """Attributes with the training data's statistics, and their names in the file."""
        return tuple(f"running_{name}" for name in self.names)

    def save(self) -> None:
        """Write the training data's statistics to their file."""
        _stored.save(self.save_path, {key: getattr(self, key) for key in self._keys})

    def _measure(self, module: nn.Module, x: Tensor) -> Tensor | None:
        if self._collecting:
            with torch.no_grad():
                self._collect(x)
            return None
        if random.random() > 1.0 - self.drop_rate:
            self.r_feature = torch.zeros(1, device=x.device)
            return None
        view, *stats = ops.patch_stats(x, self.cell)
        self._compare(stats, self._targets())
        return view

    def _targets(self) -> Sequence[Sequence[Statistic]]:
        return [[getattr(self, key) for key in self._keys]]

    def _collect(self, x: Tensor) -> None:
        """Adds a batch of training data."""
        if self.load_tag:  # complete, while the file of another layer was missing
            return
        _, *stats = ops.patch_stats(x, self.cell)
        for key, value in zip(self._keys, stats, strict=True):
            setattr(self, key, getattr(self, key) + value * (len(x) / self.data_number))
