"""G-VBSM: several teachers in turn, and statistics of convolutions beside those of BatchNorm.

"Generalized Large-Scale Data Condensation via Various Backbone and Statistical Matching" (Shao,
Yin, Zhou, Zhang, Shen, CVPR 2024), sections 3.2 to 3.4; official code
shaoshitong/G_VBSM_Dataset_Condensation (1ed80b0), ``Branch_*/recover``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
from pyddfast.methods.sre2l import SMALLEST_CROP
from pyddfast.methods.synthesis import Task, Teachers, resolve

__all__ = ["GVBSMConfig", "densification", "gvbsm"]

# Branch_*/recover/recover.sh and the defaults of the scripts.  A batch is what one GPU holds: the
# script's divided by its GPUs, since statistics are a GPU's.
_SMALL: dict[str, Any] = {
    "iterations": 4000, "batch_size": 50, "lr": 0.05, "bn_weight": 0.01, "jitter": (0, 32),
    "crop": False, "pad": 4, "momentum": 0.8, "drop_rate": 0.4, "cell": 4,
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "imagenet-1k": {
        "iterations": 4000, "batch_size": 40, "lr": 0.1, "bn_weight": 0.01, "jitter": (0, 32),
        "crop": True, "pad": 0, "momentum": 0.4, "drop_rate": 0.0, "cell": 16,
    },
    "tiny-imagenet": {**_SMALL, "pad": 8},
    "cifar-100": _SMALL,
    "cifar-10": {**_SMALL, "batch_size": 100},
}  # fmt: skip

# Of the passes over the training data; see DataPass.batch_size.
_DATA_BATCH = {"imagenet-1k": 256, "tiny-imagenet": 64, "cifar-100": 64, "cifar-10": 64}
# Pixels a side that images are pooled to for the densification.
_POOLED = 32


@dataclass(frozen=True)
class GVBSMConfig(FeatureConfig):
    """Settings of G-VBSM; what is None takes the value published for the preset.

    A batch holds all images of a class, then those of the next.

    ``semantics="official"`` also starts the moving averages at 0, so that they are too small for
    the first steps; takes for the variance of a convolution's input the mean over the batches of
    theirs (256 images, 64 below ImageNet); and cuts pixels off to bytes (half a level darker on
    average).  The averages start anew with every batch of images in both; the official ones run
    on, which depends on what a process made before and is forgotten within a few steps.

    Attributes:
        crop: Random resized crop and flip before the roll; False: padded crops and flip.
        pad: Pixels of padding around the image without a crop.
        density_weight: Weight of the data densification; published: 1.
        density_temperature: Its temperature; published: 4.
    """

    pad: int | None = None
    density_weight: float = 1.0
    density_temperature: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pad is not None and self.pad < 0:
            raise ValueError(f"pad must not be negative, got {self.pad}")
        if not 0 <= self.density_weight < float("inf"):
            raise ValueError(f"density_weight must not be negative, got {self.density_weight}")
        if not 0 < self.density_temperature < float("inf"):
            raise ValueError(
                f"density_temperature must be positive, got {self.density_temperature}"
            )
        if self.cuda_graph and self.density_weight and self.ipc > 1:
            raise ValueError(
                "cuda_graph does not go with density_weight > 0: eigenvalues wait for the device"
            )


def densification(views: Tensor, groups: Mapping[int, Tensor], temperature: float) -> Tensor:
    """The data densification of section 3.2: images of a class should differ.

    For each class the Kullback-Leibler divergence of softmax(λ / T), without gradient, from
    softmax(λ), with λ the eigenvalues of X Xᵀ and X the class's views, pooled to 32 x 32 and
    flattened; the sum over the classes.

    Args:
        views: (B, C, S, S).
        groups: Number of images n >= 2: int64 (classes, n), the rows of ``views`` of all classes
            that have n.
        temperature: T.

    Returns:
        Scalar; 0 without groups.
    """
    pooled = F.adaptive_avg_pool2d(views, (_POOLED, _POOLED)).flatten(1)
    total = views.new_zeros(())
    for rows in groups.values():
        images = pooled[rows]
        values = torch.linalg.eigvalsh(images @ images.transpose(1, 2))
        target = (values.detach() / temperature).softmax(-1)
        total = total + F.kl_div(values.log_softmax(-1), target, reduction="sum")
    return total


class _Objective(FeatureObjective):
    def __init__(self, site: Site, *, density: tuple[float, float], **options: Any) -> None:
        super().__init__(site, **options)
        self.density, self.groups = density, dict[int, Tensor]()

    def begin(self, chunk: Chunk) -> None:
        super().begin(chunk)
        rows: dict[int, list[list[int]]] = {}
        for label in dict.fromkeys(chunk.labels):
            same = [row for row, other in enumerate(chunk.labels) if other == label]
            if len(same) > 1:  # one image has one eigenvalue, and no divergence
                rows.setdefault(len(same), []).append(same)
        self.groups = {n: torch.tensor(same, device=self.device) for n, same in rows.items()}

    def further(self, forward: Forward) -> Tensor | None:
        weight, temperature = self.density
        if not weight or not self.groups:
            return None
        return weight * densification(forward.views, self.groups, temperature)


def gvbsm(
    task: Task,
    teachers: Teachers,
    config: GVBSMConfig | None = None,
    *,
    source: ImageSource | None = None,
    data: ImageSource | None = None,
    job: Job | None = None,
) -> DistilledSet:
    """Distill by G-VBSM's recover step.

    A first pass over the data takes the statistics of the convolutions' inputs, once a teacher; in
    a run folder they stay in ``statistics/``.

    Args:
        task: As :func:`sre2l`.
        teachers: Networks with BatchNorm or convolutions; several (four published) take turns.
        config: Settings; default :class:`GVBSMConfig`.
        source: As :func:`sre2l`.
        data: Real images whose statistics are taken; default: ``task``.
        job: As :func:`sre2l`.

    Returns:
        As :func:`sre2l`.

    Raises:
        ValueError: As :func:`sre2l`, or there are no real images.
    """
    config = GVBSMConfig() if config is None else config
    settings = resolve(config, task, PUBLISHED)
    real = check_data(task, data)
    pad = None if settings.crop else settings.pad
    return recover(
        "gvbsm",
        task,
        teacher_list(teachers),
        settings,
        job or Job(),
        source=source,
        min_scale=lambda step: SMALLEST_CROP,
        pad=pad,
        objective=feature_objective(
            _Objective,
            settings,
            task,
            real,
            pad=pad,
            batch_size=_DATA_BATCH[settings.preset],
            density=(settings.density_weight, settings.density_temperature),
        ),
        facts={"data": describe_data(real)},
    )
