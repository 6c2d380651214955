"""DATM: trajectory matching of easy or hard epochs, with learned soft labels.

"Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching" (Guo et al., ICLR
2024; official code NUS-HPC-AI-Lab/DATM, ``distill/DATM.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pyddfast.data import DistilledSet, ImageDataset, Trajectories, network_input
from pyddfast.methods.recover import Job
from pyddfast.methods.synthesis import check_counts
from pyddfast.methods.trajectory import (
    Matching,
    Student,
    TrajectoryConfig,
    dataset_labels,
    first_images,
    match,
    resolve_published,
)
from pyddfast.random import Purpose, permutation
from pyddfast.train.distributed import resolve_device
from pyddfast.train.models import ModelSpec

__all__ = ["DATMConfig", "datm"]


def _row(
    n: int, m: int, epochs: tuple[int, int | None, int], batch: int, img: float, y: float,
    lr: float = 1e-5, *, end: int = 1000, init: str = "correct", threshold: float = 1.0,
) -> Any:  # fmt: skip
    low, first, high = epochs
    return {
        "iterations": 10_000, "syn_steps": n, "expert_epochs": m, "min_start_epoch": low,
        "first_max_start_epoch": first or high, "max_start_epoch": high, "batch_syn": batch,
        "lr_img": img, "lr_labels": y, "lr_lr": lr, "lr_init": 1e-2, "expansion_end": end,
        "init": init, "threshold": threshold,
    }  # fmt: skip


# configs/*/ConvIN/IPC*.yaml; ema_decay stands in each and is used nowhere.
PUBLISHED: Mapping[str, Mapping[int, Mapping[str, Any]]] = {
    "cifar-10": {
        1: _row(80, 2, (0, None, 4), 10, 100.0, 5.0, 1e-7, threshold=1.1),
        10: _row(80, 2, (0, 10, 20), 100, 100.0, 2.0),
        50: _row(80, 2, (0, 20, 40), 500, 1000.0, 2.0, end=2000),
        500: _row(40, 2, (40, None, 60), 1000, 50.0, 10.0),
        1000: _row(100, 2, (40, None, 60), 1000, 50.0, 10.0),
    },
    "cifar-100": {
        1: _row(40, 3, (0, 10, 20), 1000, 1000.0, 10.0),
        10: _row(80, 2, (0, 30, 50), 1000, 1000.0, 10.0, end=2000),
        50: _row(80, 2, (20, None, 70), 1000, 1000.0, 10.0, init="real"),
        100: _row(80, 2, (30, None, 70), 1000, 50.0, 10.0),
    },
    "tiny-imagenet": {
        1: _row(40, 2, (0, 15, 20), 1000, 1e4, 10.0, 1e-4, end=2000),
        10: _row(40, 2, (10, None, 50), 500, 100.0, 10.0, 1e-4),
        50: _row(20, 2, (40, None, 70), 1000, 100.0, 10.0, 1e-4),
    },
}

# "Hard Truths About Soft Labels", supplement: section 2 and Table 2 synthesise with N = 80, section
# 7.1 its plotted runs with N = 20 (ResNet-18 sets the limit) and its losses with N = 80.
_TABLE_2: Mapping[str, Any] = {
    "syn_steps": 80, "expert_epochs": 2, "min_start_epoch": 20, "first_max_start_epoch": 35,
    "max_start_epoch": 35, "batch_syn": 250, "lr_labels": 10.0, "lr_img": 100.0,
}  # fmt: skip
PAPER: Mapping[str, Mapping[str, Any]] = {
    "synthesis-table2": _TABLE_2,
    "synthesis-fig4": {**_TABLE_2, "syn_steps": 20},
    # Epochs 20 to 35, both included.
    "loss-analysis": {**_TABLE_2, "first_max_start_epoch": 36, "max_start_epoch": 36},
}


@dataclass(frozen=True)
class DATMConfig(TrajectoryConfig):
    """Settings of DATM; what is None takes the value published for (data set, IPC).

    Attributes:
        paper: Settings of "Hard Truths About Soft Labels" in place of those published with DATM:
            synthesis-table2, synthesis-fig4 or loss-analysis (Tiny-ImageNet).
        init: First images: correct, those that an expert classifies right; real or noise.
        lr_labels: Learning rate of the label logits (momentum 0.9).
        first_max_start_epoch: One past the last start epoch at first; it grows to max_start_epoch.
        expansion_end: Iteration at which it has.
    """

    paper: Literal["synthesis-table2", "synthesis-fig4", "loss-analysis"] | None = None
    init: Literal["correct", "real", "noise"] | None = None
    lr_labels: float | None = None
    first_max_start_epoch: int | None = None
    expansion_end: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.paper is not None and self.paper not in PAPER:
            raise ValueError(f"paper must be one of {', '.join(PAPER)}, got {self.paper!r}")
        if self.init not in (None, "correct", "real", "noise"):
            raise ValueError(f"init must be correct, real or noise, got {self.init!r}")
        check_counts(self, "first_max_start_epoch", "expansion_end")
        if self.lr_labels is not None and not self.lr_labels > 0:
            raise ValueError(f"lr_labels must be positive, got {self.lr_labels}")


def datm(
    dataset: ImageDataset,
    experts: Trajectories | str | Path,
    config: DATMConfig | None = None,
    *,
    model: ModelSpec = "convnet-d3",
    job: Job | None = None,
) -> DistilledSet:
    """Distill by difficulty-aligned trajectory matching.

    Args:
        dataset: First images and classes; as the experts saw it (whitened or not).
        experts: Trajectories of :func:`pyddfast.train.train_experts` (with ``Sharpness()`` and 100
            epochs as published) or of the official scripts, or their folder.
        config: Settings; default :class:`DATMConfig`.
        model: The distilling network, of the experts' architecture.
        job: Device, run folder, progress.

    Returns:
        As :func:`pyddfast.methods.tm`, with the learned label logits in ``.soft_labels``.

    Raises:
        ValueError: As :func:`pyddfast.methods.tm`; or fewer than ``ipc`` images of a class are
            classified right by any expert.
        FileNotFoundError: There are no trajectories in the folder.
    """
    config = DATMConfig() if config is None else config
    job = job or Job()
    if config.paper is not None:
        values = PAPER[config.paper].items()
        config = replace(config, **{k: v for k, v in values if getattr(config, k) is None})
    if config.max_start_epoch is not None and config.first_max_start_epoch is None:
        config = replace(config, first_max_start_epoch=config.max_start_epoch)
    settings, published_ipc = resolve_published(config, dataset, PUBLISHED)
    device = resolve_device(job.device)

    def make(student: Student, found: Trajectories) -> Matching:
        if settings.init == "correct":
            images = classified_right(dataset, settings, student, found)
        else:
            images = first_images(dataset, settings, noise=settings.init == "noise")
        images = images.to(device)
        assert settings.lr_labels is not None
        return Matching(
            settings,
            student,
            found,
            images,
            first_labels(dataset, settings, student, found, images),
            lr_labels=settings.lr_labels,
            momentum_labels=0.9,
            start_epochs=lambda iteration: start_epochs(settings, iteration),
        )

    return match(
        "datm", dataset, experts, settings, job, model=model, published_ipc=published_ipc, make=make
    )


def start_epochs(config: DATMConfig, iteration: int) -> tuple[int, int]:
    """The range [low, high) of start epochs of an iteration: it grows linearly at its upper end."""
    low, first, last = config.min_start_epoch, config.first_max_start_epoch, config.max_start_epoch
    assert low is not None
    assert first is not None
    assert last is not None
    assert config.expansion_end is not None
    grown = first + int((last - first) * iteration / config.expansion_end)
    return low, min(grown, last)


def classified_right(
    dataset: ImageDataset, config: DATMConfig, student: Student, experts: Trajectories
) -> Tensor:
    """Per class the first images, in keyed random order, that the first expert classifies right.

    Where it leaves too few, the next experts' follow.
    """
    chosen = []
    for label in range(dataset.num_classes):
        members = (dataset.labels == label).nonzero()[:, 0]
        members = members[permutation(config.seed, Purpose.INITIAL, len(members), label)]
        images = network_input(dataset.images[members], dataset.normalization).to(student.device)
        picks: list[int] = []
        for expert in range(len(experts)):
            theta = experts.flat(expert, experts.epochs).to(student.device)
            right = student.predict(theta, images).argmax(1) == label
            picks += [k for k in right.nonzero()[:, 0].tolist() if k not in picks]
            if len(picks) >= config.ipc:
                break
        if len(picks) < config.ipc:
            raise ValueError(
                f"ipc = {config.ipc} images of class {label} are to be classified right by an "
                f"expert; {len(picks)} of {len(members)} are: lower ipc or use init='real'"
            )
        chosen.append(images[picks[: config.ipc]].cpu())
    return torch.cat(chosen)


def first_labels(
    dataset: ImageDataset,
    config: DATMConfig,
    student: Student,
    experts: Trajectories,
    images: Tensor,
) -> Tensor:
    """Logits: the mean of the experts' that are right; of the first expert for other images."""
    labels = dataset_labels(dataset.num_classes, config.ipc).to(images.device)
    if config.init != "correct":
        theta = experts.flat(0, experts.epochs).to(images.device)
        return student.predict(theta, images)
    total = torch.zeros(len(images), dataset.num_classes, device=images.device)
    count = torch.zeros(len(images), 1, device=images.device)
    for expert in range(len(experts)):
        logits = student.predict(experts.flat(expert, experts.epochs).to(images.device), images)
        right = (logits.argmax(1) == labels)[:, None]
        total += logits * right
        count += right
    return total / count
