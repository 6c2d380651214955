"""FADRM against its loop, restated in float64; stages across kills and ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyddfast.data import DistilledSet, normalize
from pyddfast.methods import FADRMConfig, Job, TaskInfo, fadrm
from pyddfast.methods.engine import Stage
from pyddfast.methods.fadrm import PUBLISHED, plan_stages
from pyddfast.methods.synthesis import resolve
from pyddfast.ops.synthesis import draw_crop_flip_roll
from tests.methods.synthesis_cases import (
    CLASSES,
    NORMALIZATION,
    SIZE,
    Hook,
    assert_pixels,
    augmented,
    dataset,
    pixels,
    teacher,
)

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = SIZE - 2  # a stage of another size; the ConvNet's head is of one size for both
CONFIG = FADRMConfig(
    ipc=1, iterations=7, batch_size=3, lr=0.1, bn_weight=0.05, jitter=(0, 2), residual=0.3,
    stage_sizes=(SMALL, SIZE, SIZE), init="set",
)  # fmt: skip


def small_teacher(seed: int = 0) -> nn.Module:
    """The tests' teacher with a head that takes any size."""
    network = teacher(seed)
    gen = torch.Generator().manual_seed(seed)
    head = nn.Linear(6, CLASSES)
    with torch.no_grad():
        head.weight.copy_(torch.randn(CLASSES, 6, generator=gen))
        head.bias.zero_()
    features = network.features
    assert isinstance(features, nn.Module)
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()


def patches() -> DistilledSet:
    data = dataset()
    return DistilledSet(
        images=data.images[:CLASSES],
        labels=data.labels[:CLASSES],
        num_classes=CLASSES,
        normalization=NORMALIZATION,
        kind="patches",
    )


def resize(images: Tensor, size: int) -> Tensor:
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


def restated() -> Tensor:
    """The official loop: stages of 3, 2 and 2 steps, two teachers in turn."""
    networks = [small_teacher(0).double(), small_teacher(1).double()]
    hooks = [[Hook(m) for m in n.modules() if isinstance(m, nn.BatchNorm2d)] for n in networks]
    made = torch.empty(CLASSES, 3, SIZE, SIZE, dtype=torch.float64)
    whole = normalize(patches().images, NORMALIZATION).double()
    for chunk, labels in enumerate((torch.tensor([0, 1, 2]), torch.tensor([3, 4]))):
        first = whole[labels]
        images = resize(first, SMALL)
        step = 0
        for size, length in ((SMALL, 3), (SIZE, 2), (SIZE, 2)):
            if step:
                images = 0.7 * resize(images, size) + 0.3 * resize(first, size)
            images = images.detach().requires_grad_()
            adam = torch.optim.Adam([images], lr=0.1, betas=(0.5, 0.9), eps=1e-8)
            for _ in range(length):
                adam.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * step / 7))
                params = draw_crop_flip_roll(
                    0, torch.tensor([step]), chunk, (size, size), shift=(0, 2)
                )
                adam.zero_grad()
                loss = F.cross_entropy(networks[step % 2](augmented(images, params[0])), labels)
                values = [hook.value for hook in hooks[step % 2]]
                (loss + 0.05 * (10 * values[0] + sum(values[1:]))).backward()
                adam.step()
                for c in range(3):
                    m, s = NORMALIZATION.mean[c], NORMALIZATION.std[c]
                    images.data[:, c].clamp_(-m / s, (1 - m) / s)
                step += 1
        made[labels] = images.detach()
    return pixels(made)


def test_fadrm_is_the_official_loop() -> None:
    networks = [small_teacher(0), small_teacher(1)]
    made = fadrm(dataset(), networks, CONFIG, source=patches())
    assert_pixels(made, restated())
    assert made.meta["method"] == "fadrm"
    cut = fadrm(dataset(), networks, replace(CONFIG, semantics="official"), source=patches())
    assert set((made.images.int() - cut.images.int()).unique().tolist()) == {0, 1}


@pytest.mark.parametrize("stop", [2, 3, 4, 9])  # inside a stage, at its end, after it, next chunk
def test_a_stop_in_any_stage_changes_no_byte(stop: int, tmp_path: Path) -> None:
    networks = [small_teacher(0), small_teacher(1)]
    whole = fadrm(dataset(), networks, CONFIG, source=patches())

    def interrupt(done: int, total: int) -> None:
        assert total == 14
        if done == stop:
            raise KeyboardInterrupt

    # The checkpoint of a step is written after its report: the next one stops.
    job = Job(out=tmp_path / "run", checkpoint_seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        fadrm(
            dataset(), networks, CONFIG, source=patches(), job=replace(job, on_progress=interrupt)
        )
    seen: list[int] = []
    watch = replace(job, on_progress=lambda done, total: seen.append(done))
    made = fadrm(dataset(), networks, CONFIG, source=patches(), job=watch)
    assert torch.equal(made.images, whole.images)
    assert seen[0] == (7 if stop > 7 else stop)  # from the checkpoint before the one that was lost


def test_stages_share_the_steps() -> None:
    assert plan_stages((6, 8, 8), 7) == (Stage(6, 3), Stage(8, 2), Stage(8, 2))
    assert plan_stages((200, 224, 200, 224), 2000) == tuple(
        Stage(size, 500) for size in (200, 224, 200, 224)
    )


def test_presets_are_the_published_values() -> None:
    # recover/scripts/*/recover_fadrm_ipc50.sh
    for size, iterations, lr, jitter in ((224, 2000, 0.25, 32), (64, 1000, 0.01, 4)):
        config = FADRMConfig(image_size=size)
        values = resolve(config, TaskInfo(1000, NORMALIZATION), PUBLISHED)
        assert (values.iterations, values.lr, values.jitter) == (iterations, lr, (0, jitter))
        assert (values.batch_size, values.bn_weight, values.crop) == (100, 0.01, True)
        assert (values.residual, values.first_multiplier) == (0.5, 10.0)


def test_without_a_residual_and_with_one_stage_it_is_sre2l_from_images() -> None:
    from pyddfast.methods import SRe2LConfig, sre2l

    shared = {"ipc": 1, "iterations": 5, "batch_size": 3, "lr": 0.1, "bn_weight": 0.05}
    one = fadrm(
        dataset(),
        teacher(),
        FADRMConfig(**shared, jitter=(0, 2), stage_sizes=(SIZE,), init="set"),  # type: ignore[arg-type]
        source=patches(),
    )
    other = sre2l(
        dataset(),
        teacher(),
        SRe2LConfig(**shared, jitter=(0, 2), crop=True, init="set"),  # type: ignore[arg-type]
        source=patches(),
    )
    assert torch.equal(one.images, other.images)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FADRMConfig(residual=1.5), r"residual must lie in \[0, 1\]"),
        (lambda: FADRMConfig(stage_sizes=(0, 8)), "stage_sizes must be at least 1"),
        (lambda: FADRMConfig(init="noise", semantics="official"), "has no init='noise'"),
        (
            lambda: fadrm(dataset(), teacher(), FADRMConfig(ipc=1, stage_sizes=(8, 6))),
            "last of stage_sizes must be the image size 8",
        ),
        (
            lambda: fadrm(dataset(), teacher(), FADRMConfig(ipc=1, iterations=3)),
            "iterations = 3 are too few for 4 stages",
        ),
        (
            lambda: fadrm(dataset(), teacher(), FADRMConfig(ipc=1, stage_sizes=(16, 8))),
            "teacher 0 does not take images of 3 x 16 x 16",
        ),
    ],
)
def test_refuses_before_any_work(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
