"""EDC: G-VBSM from real images, in small batches, with a second target that knows the classes.

"Elucidating the Design Space of Dataset Condensation" (Shao, Zhou, Chen, Shen, NeurIPS 2024),
section 3; official code shaoshitong/EDC (80116a7), ``Branch_*/recover``.  This is the synthesis;
the smoothed learning rate and the averaged network that EDC evaluates are the student's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pyddfast.data import DistilledSet, ImageSource
from pyddfast.data.digest import describe_data
from pyddfast.methods.chunks import Chunk
from pyddfast.methods.data_pass import check_data
from pyddfast.methods.features import (
    FeatureConfig,
    FeatureObjective,
    feature_objective,
)
from pyddfast.methods.objective import Forward, Site
from pyddfast.methods.recover import Job, recover, teacher_list
from pyddfast.methods.synthesis import Task, Teachers, resolve

__all__ = ["EDCConfig", "edc"]

# Branch_*/recover/recover.sh and the scripts; a batch is what one GPU holds.
_SMALL: dict[str, Any] = {
    "iterations": 2000, "batch_size": 25, "lr": 0.05, "bn_weight": 0.01, "jitter": (0, 0),
    "crop": True, "smallest_crop": 0.5, "momentum": 0.8, "drop_rate": 0.0, "cell": 4,
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "imagenet-1k": {
        **_SMALL, "iterations": 1000, "batch_size": 20, "bn_weight": 0.1, "cell": 16,
    },
    "imagenet-10": {
        **_SMALL, "iterations": 50, "batch_size": 100, "momentum": 0.0, "cell": 16,
    },
    "tiny-imagenet": _SMALL,
    "cifar-100": _SMALL,
    "cifar-10": {**_SMALL, "iterations": 75, "batch_size": 10, "smallest_crop": 0.08},
}  # fmt: skip

# Of the pass over the training data: images of a batch, and padding where views are padded crops.
_DATA_PASS: dict[str, tuple[int, int | None]] = {
    "imagenet-1k": (256, None),
    "imagenet-10": (256, None),
    "tiny-imagenet": (64, 8),
    "cifar-100": (64, 4),
    "cifar-10": (64, 4),
}
# Of the logits in the flatness regularisation; the paper's and the code's.
_TEMPERATURE = 4.0


@dataclass(frozen=True)
class EDCConfig(FeatureConfig):
    """Settings of EDC; what is None takes the value published for the preset.

    ImageNet's first images are RDED's: ``init="set"`` and such a set.  A batch holds all images of
    a class, then those of the next.

    ``semantics="official"`` also does what the published code does: a class's variance is the mean
    over its images of the variance inside an image, which is smaller than the one it is compared
    with; its means and variances of cells are exchanged; a convolution's variance over all data is
    the mean over the batches of theirs (256 images, 64 below ImageNet); averages start at 0; first
    images are drawn with replacement, and mirrored by chance; the flatness term is divided by the
    number of classes; pixels are cut off to bytes (half a level darker on average).  The averages
    start anew with every batch of images in both; the official ones run on, which depends on what
    a process made before and is forgotten within some steps.  The code's ``ShufflePatches(2)`` of
    first images draws an order and joins the parts in the old one: they stay as they are.

    Attributes:
        init: First images: data, set or noise.
        smallest_crop: Smallest share of the area that a crop covers.
        class_weight: Weight of the classes' statistics; those of all data have the rest to 1.
        flatness_weight: Weight of the flatness regularisation: the divergence of the teacher's
            view of the images' moving average from that of the images.  The published commands
            do without: 0.
        flatness_decay: Weight of the past in that average; published: 0.99.
    """

    init: Literal["noise", "data", "set"] = "data"
    smallest_crop: float | None = None
    class_weight: float = 0.5
    flatness_weight: float = 0.0
    flatness_decay: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.smallest_crop is not None and not 0 < self.smallest_crop <= 1:
            raise ValueError(f"smallest_crop must lie in (0, 1], got {self.smallest_crop}")
        for name in ("class_weight", "flatness_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.flatness_weight < float("inf"):
            raise ValueError(f"flatness_weight must not be negative, got {self.flatness_weight}")


class _Objective(FeatureObjective):
    def __init__(
        self, site: Site, *, flatness: float, decay: float, by_classes: bool, **options: Any
    ) -> None:
        super().__init__(site, **options)
        self.flatness, self.decay, self.by_classes = flatness, decay, by_classes
        self.average: Tensor | None = None  # of the images

    def begin(self, chunk: Chunk) -> None:
        super().begin(chunk)
        self.average = None

    def further(self, forward: Forward) -> Tensor | None:
        if not self.flatness:
            return None
        with torch.no_grad():
            if self.average is None:
                self.average = forward.images.clone()
            target = (forward.predict(self.average) / _TEMPERATURE).softmax(1)
            # Before Adam's step, so that it lags the images by one.
            self.average.lerp_(forward.images, 1 - self.decay)
        logs = (forward.logits / _TEMPERATURE).log_softmax(1)
        scale = self.flatness / (target.numel() if self.by_classes else len(target))
        return scale * F.kl_div(logs, target, reduction="sum")

    def state(self) -> dict[str, Tensor]:
        kept = {} if self.average is None else {"average": self.average}
        return {**super().state(), **kept}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        super().restore(tensors)
        if "average" in tensors:
            self.average = tensors["average"].to(self.device)


def edc(
    task: Task,
    teachers: Teachers,
    config: EDCConfig | None = None,
    *,
    source: ImageSource | None = None,
    data: ImageSource | None = None,
    job: Job | None = None,
) -> DistilledSet:
    """Distill by EDC's synthesis; arguments, result and errors as :func:`gvbsm`.

    The pass over the data takes statistics a class as well.  Every class needs an image.
    """
    config = EDCConfig() if config is None else config
    settings = resolve(config, task, PUBLISHED)
    real = check_data(task, data, settings.classes)
    assert settings.smallest_crop is not None
    official = settings.semantics == "official"
    batch_size, pad = _DATA_PASS[settings.preset]
    smallest = settings.smallest_crop
    return recover(
        "edc",
        task,
        teacher_list(teachers),
        settings,
        job or Job(),
        source=source,
        min_scale=lambda step: smallest,
        objective=feature_objective(
            _Objective,
            settings,
            task,
            real,
            pad=pad,
            batch_size=batch_size,
            classes=task.num_classes,
            class_weight=settings.class_weight,
            flatness=settings.flatness_weight,
            decay=settings.flatness_decay,
            by_classes=official,
        ),
        with_replacement=official and settings.init != "noise",
        facts={"data": describe_data(real)},
    )
