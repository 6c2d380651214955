"""EDC: ``Branch_full_ImageNet_1k/recover/utils.py`` of shaoshitong/EDC (80116a7)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyddfast import ops
from pyddfast.compat import _stored, gvbsm
from pyddfast.compat._hooks import CollectingHook, Statistic, device_of, named_module, running
from pyddfast.compat._images import clip, denormalize, get_image_prior_losses, lr_cosine_policy

__all__ = [
    "BNFeatureHook",
    "ConvFeatureHook",
    "clip",
    "denormalize",
    "get_image_prior_losses",
    "lr_cosine_policy",
]

CLASSES = 1000  # of the branch; written into it


class _ClassStatistics:
    """Statistics of the training data a class, one file each.

    Args:
        folder: Of all classes of one kind of hook; a file is ``folder/class_0/name/running.npz``.
        name: Of the layer.
        keys: Names of the statistics in a file.
        device: Where they are kept.
    """

    def __init__(
        self, folder: Path, name: str, keys: tuple[str, ...], device: torch.device
    ) -> None:
        self.paths = [folder / f"class_{i}" / name / "running.npz" for i in range(CLASSES)]
        self.keys = keys
        self.complete = all(path.exists() for path in self.paths)
        self.tables: dict[str, Tensor] = {}  # (classes, size of the statistic)
        self.counter = torch.zeros(CLASSES, dtype=torch.int64, device=device)
        if self.complete:
            rows = [_stored.load(path, keys, device) for path in self.paths]
            self.tables = {key: torch.stack([row[key] for row in rows]) for key in keys}

    def add(self, labels: Tensor, stats: Sequence[Tensor]) -> None:
        """Adds samples: each of `stats` is (B, size).

        Raises:
            ValueError: A label is not one of the classes.
        """
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < CLASSES:
            raise ValueError(
                f"targets run from {int(labels.min())} to {int(labels.max())}; allowed are 0 to "
                f"{CLASSES - 1}"
            )
        for key, values in zip(self.keys, stats, strict=True):
            table = self.tables.setdefault(key, values.new_zeros((CLASSES, values.shape[1])))
            table.index_add_(0, labels, values)
        self.counter += labels.bincount(minlength=CLASSES)

    def save(self, swapped: dict[str, str]) -> None:
        """Writes the means over each class's samples, those of `swapped` under the other name.

        Raises:
            ValueError: A class has had no sample.
        """
        missing = (self.counter == 0).nonzero().flatten().tolist()
        if missing:
            raise ValueError(
                f"the pass over the training data has had no sample of {len(missing)} of {CLASSES} "
                f"classes ({', '.join(map(str, missing[:10]))} ...); each needs one"
            )
        means = {key: table / self.counter[:, None] for key, table in self.tables.items()}
        self.tables = {swapped.get(key, key): table for key, table in means.items()}
        for i, path in enumerate(self.paths):
            _stored.save(path, {key: table[i] for key, table in self.tables.items()})
        self.complete = True

    def of(self, labels: Tensor) -> list[Tensor]:
        """The mean over a batch's labels of their classes' statistics."""
        if not self.complete:
            raise RuntimeError(
                f"{self.paths[0]} and its kin are missing: take the training data's statistics "
                "first (set_hook(pre=True), a pass over the data, save())"
            )
        return [ops.class_targets(self.tables[key], labels) for key in self.keys]


class _Labelled:
    """What the script tells a hook: the batch's labels and whose images are coming."""

    targets: Tensor | None = None
    tea_tag = False

    def set_label(self, targets: Tensor) -> None:
        """The classes of the next batch: (B,) integers."""
        self.targets = targets

    def set_ori(self) -> None:
        """Synthetic images are coming."""
        self.tea_tag = False

    def set_tea(self) -> None:
        """Real images are coming, to be compared with (``category_aware="local"``)."""
        self.tea_tag = True

    def _labels(self) -> Tensor:
        if self.targets is None:
            raise RuntimeError("the hook has no labels: call set_label(targets) before the forward")
        return self.targets.long()


class BNFeatureHook(_Labelled, CollectingHook, gvbsm.BNFeatureHook):
    """Distance of a moving average of batch statistics from the running and the classes' ones.

    ``category_aware="global"``: ½ (‖running_var − v̄‖₂ + ‖running_mean − m̄‖₂) + ½ the same with the
    mean over the batch's labels of their classes' statistics.  ``"local"``: the distance from the
    statistics of the last batch after `set_tea`.  Averages and gradient as in
    :mod:`pyddfast.compat.gvbsm`.

    Classes' statistics come from ``save_path/BNFeatureHook/class_0/name/running.npz`` and so on; a
    class's variance is the mean over its images of the variance inside an image.  Where a file is
    missing, ``load_tag`` is False, and a pass over the training data between
    ``set_hook(pre=True)`` and `save`, with `set_label` before each forward, takes them.

    Args:
        module: ``nn.BatchNorm2d`` or another BatchNorm, on its device, in eval mode when it runs.
        save_path: Folder of the statistics.
        training_momentum: Weight of the past, 0 to 1.
        name: Of the layer; each has its own.
        gpu: Not used: statistics lie where the module is.
        flatness_weight: Kept as an attribute.
        category_aware: ``"global"``; anything else means ``"local"``.

    Raises:
        TypeError: `module` is no BatchNorm.
        ValueError: `name` is missing, the momentum is out of range, or a file is damaged; later, as
            of :class:`pyddfast.compat.gvbsm.BNFeatureHook`.
        RuntimeError: From the forward: without labels or classes' statistics, or inside a replica
            of ``nn.DataParallel``.
    """

    def __init__(
        self,
        module: nn.Module,
        save_path: str | os.PathLike[str] = "./",
        training_momentum: float = 0.4,
        name: str | None = None,
        gpu: int | None = 0,
        flatness_weight: float = 0.25,
        category_aware: str = "global",
    ) -> None:
        self.module = named_module(module, name)
        super().__init__(module, training_momentum)
        self.flatness_weight = flatness_weight
        self.category_aware = category_aware
        self._local: list[Tensor] | None = None
        self.load_tag = True
        if category_aware == "global":
            folder = Path(save_path, "BNFeatureHook")
            keys = ("running_dd_mean", "running_dd_var")
            self._classes = _ClassStatistics(folder, str(name), keys, device_of(module))
            self.load_tag = self._classes.complete

    def save(self) -> None:
        """Write the classes' statistics to their files."""
        if not self.load_tag:
            self._classes.save(swapped={})

    def _measure(self, module: nn.Module, x: Tensor) -> Tensor | None:
        if self._collecting:
            if self.category_aware == "global" and not self._classes.complete:
                with torch.no_grad():
                    self._classes.add(self._labels(), _within_images(x))
            return None
        target = running(module)
        if self.category_aware != "global" and self.tea_tag:
            with torch.no_grad():
                _, *self._local = ops.channel_stats(x, target[0])
            return None
        view, *stats = ops.channel_stats(x, target[0])
        if self.category_aware == "global":
            self._compare(stats, [target, self._classes.of(self._labels())])
        else:
            self._compare(stats, [_local(self._local)])
        return view


class ConvFeatureHook(_Labelled, gvbsm.ConvFeatureHook):
    """The same for a convolution: channels and cells, from the training data's and the classes'.

    The four terms of :class:`pyddfast.compat.gvbsm.ConvFeatureHook`, combined as
    :class:`BNFeatureHook` combines its two.  `save` writes the classes' means of the cells under
    the name of the variances and the other way round, as the official one does.

    Args:
        module: The convolution, on its device.
        save_path: Folder of the statistics.
        data_number: Samples of the training data.
        name: Of the layer; each has its own.
        gpu: Not used: statistics lie where the module is.
        training_momentum: Weight of the past, 0 to 1.
        drop_rate: Share of the forwards in which ``r_feature`` is 0, drawn from Python's `random`.
        flatness_weight: Kept as an attribute.
        category_aware: ``"local"``; anything else means ``"global"``.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: `module` or `name` is missing, a number is out of range, or a file is damaged.
        RuntimeError: As of :class:`BNFeatureHook`.
    """

    def __init__(
        self,
        module: nn.Module | None = None,
        save_path: str | os.PathLike[str] = "./",
        data_number: int = 1281167,
        name: str | None = None,
        gpu: int | None = 0,
        training_momentum: float = 0.4,
        drop_rate: float = 0.4,
        flatness_weight: float = 0.25,
        category_aware: str = "global",
    ) -> None:
        super().__init__(module, save_path, data_number, name, gpu, training_momentum, drop_rate)
        self.flatness_weight = flatness_weight
        self.category_aware = category_aware
        self._local: list[Tensor] | None = None
        self._stored = self.load_tag  # the statistics of all classes together
        if category_aware != "local":
            folder = Path(save_path, "ConvFeatureHook")
            device = device_of(self.module)
            self._classes = _ClassStatistics(folder, str(name), self._keys, device)
            self.load_tag = self.load_tag and self._classes.complete

    def save(self) -> None:
        """Write the training data's and the classes' statistics to their files."""
        if self.load_tag:
            return
        super().save()
        if self.category_aware != "local":
            mean, var = "running_patch_mean", "running_patch_var"
            self._classes.save(swapped={mean: var, var: mean})

    def _measure(self, module: nn.Module, x: Tensor) -> Tensor | None:
        if self.category_aware == "local" and self.tea_tag and not self._collecting:
            with torch.no_grad():
                _, *self._local = ops.patch_stats(x, self.cell)
            return None
        return super()._measure(module, x)

    def _targets(self) -> Sequence[Sequence[Statistic]]:
        if self.category_aware == "local":
            return [_local(self._local)]
        return [*super()._targets(), self._classes.of(self._labels())]

    def _collect(self, x: Tensor) -> None:
        if not self._stored:
            super()._collect(x)
        if self.category_aware != "local" and not self._classes.complete:
            self._classes.add(self._labels(), (*_within_images(x), *_within_cells(x, self.cell)))


def _local(stats: list[Tensor] | None) -> list[Tensor]:
    if stats is None:
        raise RuntimeError("no real images yet: call set_tea() and run the model on them first")
    return stats


def _within_images(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each plane: (B, C) both."""
    var, mean = torch.var_mean(x, dim=(2, 3), correction=0)
    return mean, var


def _within_cells(x: Tensor, cell: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each image's cells, over channels: (B, cells) both."""
    height, width = (-(-size // cell) * cell for size in x.shape[2:])
    if (height, width) != tuple(x.shape[2:]):
        x = F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
    cells = x.reshape(*x.shape[:2], height // cell, cell, width // cell, cell)
    var, mean = torch.var_mean(cells, dim=(1, 3, 5), correction=0)
    return mean.flatten(1), var.flatten(1)
