"""How many operators a recover step calls: where GPUs are fast, the host's time of a step.

The official step (SRe2L, ``recover/data_synthesis.py``) is restated: slices, resize, flip and roll;
a hook on every BatchNorm layer; priors, whose weight is 0 in all published settings, computed all
the same; Adam; a clamp a channel.  Both run the same ResNet-18 at 224 px.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import cache
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyddfast import models
from pyddfast.data import IMAGENET_NORMALIZATION
from pyddfast.methods.engine import Loop, Stage, _Step
from pyddfast.methods.objective import BatchNormObjective, Site
from pyddfast.methods.synthesis import TaskInfo
from pyddfast.train.distributed import Ranks

SIZE = 224  # the stem of large images, as published; two of them, as the count is any batch's
# Neither `detach`, which torch calls as it saves an output for the backward, nor the markers of its
# profiler are operators of the step.
NOT_COUNTED = ("aten.detach.", "profiler.")


class Calls(TorchDispatchMode):
    """Counts by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not str(func).startswith(NOT_COUNTED):
            self.names[str(func)] += 1
        return func(*args, **(kwargs or {}))


def network() -> nn.Module:
    return models.create("resnet18", 1000, image_size=SIZE).eval().requires_grad_(False)


def our_step(mode: Literal["tap", "fused"]) -> Counter[str]:
    teacher = network()
    loop = Loop(
        classes=(0, 1),
        ipc=1,
        stages=(Stage(SIZE, 3),),
        batch_size=2,
        order="class",
        lr=0.25,
        residual=0.0,
        jitter=(0, 32),
        min_scale=lambda step: 0.08,
        pad=None,
        precision="fp32",
        channels_last=False,
        cuda_graph=False,
        quantize="round",
        seed=0,
    )
    site = Site([teacher], torch.device("cpu"), None, Ranks(), math.inf)
    objective = BatchNormObjective(site, weight=0.01, first_multiplier=10.0, mode=mode)
    first = torch.zeros(2, 3, SIZE, SIZE)
    try:
        task = TaskInfo(1000, IMAGENET_NORMALIZATION)
        step = _Step(task, site, objective, loop, loop.chunks[0], first)
        step.run()  # packs the targets, makes Adam's state
        with Calls() as calls:
            step.run()
    finally:
        objective.close()
    return calls.names


@cache
def official_step() -> Counter[str]:
    teacher = network()
    features: list[Tensor] = []

    def hook(layer: Any, inputs: Any, output: Any) -> None:
        x = inputs[0]
        mean = x.mean([0, 2, 3])
        var = x.permute(1, 0, 2, 3).contiguous().view([x.shape[1], -1]).var(1, unbiased=False)
        features.append(
            torch.norm(layer.running_var.data - var, 2)
            + torch.norm(layer.running_mean.data - mean, 2)
        )

    for layer in teacher.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(hook)
    images = torch.zeros(2, 3, SIZE, SIZE, requires_grad=True)
    labels = torch.tensor([0, 1])
    optimizer = torch.optim.Adam([images], lr=0.25, betas=(0.5, 0.9), eps=1e-8)

    def step() -> None:
        features.clear()
        cut = images[:, :, 20:180, 10:200]
        views = F.interpolate(cut, (SIZE, SIZE), mode="bilinear", antialias=True).flip(-1)
        views = torch.roll(views, shifts=(3, 4), dims=(2, 3))
        optimizer.zero_grad()
        cross_entropy = F.cross_entropy(teacher(views), labels)
        scales = [10.0] + [1.0] * (len(features) - 1)
        statistics = sum(f * s for f, s in zip(features, scales, strict=True))
        v = views
        differences = (
            v[:, :, :, :-1] - v[:, :, :, 1:],
            v[:, :, :-1, :] - v[:, :, 1:, :],
            v[:, :, 1:, :-1] - v[:, :, :-1, 1:],
            v[:, :, :-1, :-1] - v[:, :, 1:, 1:],
        )
        variation = sum(torch.norm(d) for d in differences)
        size = torch.norm(v.view(2, -1), dim=1).mean()
        loss = cross_entropy + 0.01 * statistics + 0.0 * variation + 0.0 * size
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        for c, (m, s) in enumerate(
            zip(IMAGENET_NORMALIZATION.mean, IMAGENET_NORMALIZATION.std, strict=True)
        ):
            images.data[:, c] = torch.clamp(images.data[:, c], -m / s, (1 - m) / s)

    step()
    with Calls() as calls:
        step()
    return calls.names


# Mode; calls that are allowed; those of the statistics: a call each way in each of the 20 layers,
# in mode tap also the view, one distance each way, and the packing.
@pytest.mark.parametrize(("mode", "most"), [("tap", 270), ("fused", 190)])
def test_a_recover_step_calls_few_operators(mode: Literal["tap", "fused"], most: int) -> None:
    names = our_step(mode)
    op = "channel_stats" if mode == "tap" else "bn_eval_stats"
    for name in (f"{op}.default", f"{op}_grad.default"):
        assert names[f"pyddfast.{name}"] == 20
    for name in ("bn_distance.default", "bn_distance_grad.default"):
        assert names[f"pyddfast.{name}"] == 1
    assert names["pyddfast.crop_flip_roll.default"] == 2  # forward and backward
    assert names["aten.convolution.default"] == names["aten.convolution_backward.default"] == 20
    assert sum(names.values()) <= most
    assert sum(official_step().values()) > 900
