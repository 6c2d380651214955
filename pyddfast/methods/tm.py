"""TM: distilled images that train a student along an expert's way (also called MTT).

"Dataset Distillation by Matching Training Trajectories" (Cazenavette et al., CVPR 2022; official
code GeorgeCazenavette/mtt-distillation, ``distill.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pyddfast.data import DistilledSet, ImageDataset, Trajectories
from pyddfast.methods.recover import Job
from pyddfast.methods.trajectory import (
    Matching,
    Student,
    TrajectoryConfig,
    dataset_labels,
    first_images,
    match,
    resolve_published,
)
from pyddfast.train.distributed import resolve_device
from pyddfast.train.models import ModelSpec

__all__ = ["TMConfig", "tm"]


def _row(n: int, m: int, t: int, img: float, lr: float, init: float, batch: int | None) -> Any:
    return {
        "iterations": 5000, "syn_steps": n, "expert_epochs": m, "min_start_epoch": 0,
        "max_start_epoch": t, "lr_img": img, "lr_lr": lr, "lr_init": init, "batch_syn": batch,
    }  # fmt: skip


# The paper's appendix as DC-BENCH's commands give it; batches of None are the whole set.
PUBLISHED: Mapping[str, Mapping[int, Mapping[str, Any]]] = {
    "cifar-10": {
        1: _row(50, 2, 2, 100.0, 1e-7, 1e-2, None),
        10: _row(30, 2, 20, 100.0, 1e-5, 1e-3, None),
        50: _row(30, 2, 40, 1000.0, 1e-5, 1e-3, None),
    },
    "cifar-100": {
        1: _row(20, 3, 20, 1000.0, 1e-5, 1e-2, None),
        10: _row(20, 2, 20, 1000.0, 1e-5, 1e-2, None),
        50: _row(80, 2, 40, 1000.0, 1e-5, 1e-2, 125),
    },
    "tiny-imagenet": {
        1: _row(10, 2, 10, 1e4, 1e-4, 1e-2, None),
        10: _row(20, 2, 40, 1e4, 1e-4, 1e-2, 200),
        50: _row(20, 2, 40, 1e4, 1e-4, 1e-2, 300),
    },
}

THRESHOLD = 10.0


@dataclass(frozen=True)
class TMConfig(TrajectoryConfig):
    """Settings of TM; what is None takes the value published for (data set, IPC).

    The published runs at IPC 1 and 10 of CIFAR whiten the images first: give a whitened data set
    and experts that were trained on it.

    Attributes:
        init: First images: real ones, or noise.
    """

    init: Literal["real", "noise"] = "real"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init not in ("real", "noise"):
            raise ValueError(f"init must be real or noise, got {self.init!r}")


def tm(
    dataset: ImageDataset,
    experts: Trajectories | str | Path,
    config: TMConfig | None = None,
    *,
    model: ModelSpec = "convnet-d3",
    job: Job | None = None,
) -> DistilledSet:
    """Distill by trajectory matching.

    Args:
        dataset: First images and classes; as the experts saw it (whitened or not).
        experts: Trajectories of :func:`pyddfast.train.train_experts` or of the official scripts, or
            their folder.
        config: Settings; default :class:`TMConfig`.
        model: The distilling network, of the experts' architecture.
        job: Device, run folder, progress.

    Returns:
        A set of kind ``"synthetic"`` of float32 images, ``ipc`` a class, class after class, with
        the learned learning rate in ``.lr``; ``meta`` holds settings, skipped iterations, the mean
        loss of the last hundred and the peak memory.

    Raises:
        ValueError: Settings, experts, network and data do not fit together; before any work.  The
            loss stays useless for 20 iterations in a row: the message names the start epochs.
        FileNotFoundError: There are no trajectories in the folder.
    """
    config = TMConfig() if config is None else config
    job = job or Job()
    settings, published_ipc = resolve_published(config, dataset, PUBLISHED)
    if settings.threshold is None and settings.semantics == "paper":
        settings = replace(settings, threshold=THRESHOLD)
    low, high = settings.min_start_epoch, settings.max_start_epoch
    assert low is not None
    assert high is not None
    device = resolve_device(job.device)

    def make(student: Student, found: Trajectories) -> Matching:
        return Matching(
            settings,
            student,
            found,
            first_images(dataset, settings, noise=settings.init == "noise").to(device),
            dataset_labels(dataset.num_classes, settings.ipc).to(device),
            start_epochs=lambda iteration: (low, high),
        )

    return match(
        "tm", dataset, experts, settings, job, model=model, published_ipc=published_ipc, make=make
    )
