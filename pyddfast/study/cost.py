"""What a study takes, before it begins: images trained on, and seconds on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F

from pyddfast.data import ImageDataset, network_input
from pyddfast.models import create
from pyddfast.nn import fuse_norm_relu_pool
from pyddfast.study.jobs import Job, Plan
from pyddfast.study.sets import METHODS
from pyddfast.study.spec import Study
from pyddfast.train import recipe as published_recipe
from pyddfast.train.distributed import resolve_device
from pyddfast.train.student import SMALL_SIDE

__all__ = ["images_trained", "seconds"]


def images_trained(job: Job, study: Study, train: ImageDataset, test: ImageDataset) -> float:
    """Images that a job passes forward and backward; a pass forward alone counts a third."""
    s, count, classes = job.settings, len(train), train.num_classes
    if job.kind == "teacher":
        return 0.0 if s["folder"] else float(s["epochs"] * count)
    if job.kind == "embedding":
        return count / 3
    if job.kind == "young":
        return float(s["networks"] * (s["epochs"] + 1 / 3) * count)
    if job.kind == "recorded":
        return float(s["epochs"] * count)
    if job.kind == "cad":
        return float(s["epochs"] * s["ipc"] * classes + s["ticks"] * count / 3)
    if job.kind == "experts":
        return float(s["count"] * s["epochs"] * count)
    if job.kind == "set":
        steps = METHODS[s["method"]].steps
        return (
            0.0
            if steps is None
            else steps(count, classes, s["ipc"], s["epochs"] or 300, s["options"])
        )
    if job.kind == "student":
        return _student_images(job, train, test)
    if job.kind == "ood":
        return len(s["severities"]) * (len(job.needs) - 2) * len(test) / 3
    return count / 3


def _student_images(job: Job, train: ImageDataset, test: ImageDataset) -> float:
    s, ipc = job.settings, job.needs["set"].settings["ipc"]
    small = train.images.shape[-1] <= SMALL_SIDE
    if s["samples"] is not None:
        seen = float(s["samples"])
    else:
        used = published_recipe(s["regime"], scale="small" if small else "large", ipc=ipc)
        seen = float((s["epochs"] or used.epochs) * ipc * train.num_classes)
    # SL+KD asks the teacher about every view.
    asked = seen / 3 if s["regime"] == "sl-kd" else 0.0
    return float(seen + asked + (s["evaluations"] + 1) * len(test) / 3)


def seconds(
    plan: Plan,
    study: Study,
    train: ImageDataset,
    test: ImageDataset,
    device: str | None = None,
) -> dict[str, float]:
    """Estimated seconds of each job on this machine as it is now, by key.

    Each network is timed on some training steps; what a job does beside training is left out, so
    that the estimate is a lower one.
    """
    rates: dict[str, float] = {}
    found = {}
    for key, job in plan.jobs.items():
        network = job.settings.get("network") or {"model": "convnet-d3", "options": {}}
        if job.kind == "embedding":
            network = job.needs["teacher"].settings["network"]
        asked = [need for need in job.needs.values() if need.kind == "teacher"]
        if job.kind == "set" and asked:
            network = asked[0].settings["network"]
        name = repr(network)
        if name not in rates:
            rates[name] = _images_per_second(network, train, device)
        found[key] = images_trained(job, study, train, test) / rates[name]
    return found


def _images_per_second(
    network: Mapping[str, Any], train: ImageDataset, device: str | None
) -> float:
    """Of training steps of a network."""
    target = resolve_device(device)
    channels, height, width = train.images.shape[1:]
    model = create(
        network["model"], train.num_classes, channels, (height, width), **network["options"]
    )
    model = fuse_norm_relu_pool(model).to(target)  # as trainings do
    batch = network_input(train.images[:64].to(target), train.normalization)
    labels = train.labels[:64].to(target)
    began, steps = 0.0, 3
    for step in range(steps + 1):
        if step == 1:  # the first one warms up
            began = time.perf_counter()
        F.cross_entropy(model(batch), labels).backward()  # type: ignore[no-untyped-call]
    if target.type == "cuda":
        torch.cuda.synchronize(target)
    return steps * len(batch) / (time.perf_counter() - began)
