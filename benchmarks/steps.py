"""Whole steps of distillation, training and selection: the official expression against ours.

``official`` restates what the official codes run, on torch's operators alone; ``ours`` is the same
step by this library.  All get the same inputs and draws, and what they compute is compared.
Beside the times stands the share of our step that is spent inside our operators, which is all that
faster operators can still save.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import dm_iteration, trajectory
from benchmarks.hook_memory import official_hooks
from benchmarks.ops.kd import eager_kd, our_kd
from benchmarks.ops.select import Picker, location_loop, location_step
from benchmarks.ops.stats import FIRST, official_feature
from benchmarks.ops.synthesis import chain as official_view
from pyddfast import ops
from pyddfast.data import IMAGENET_NORMALIZATION, ImageFolder
from pyddfast.models import create
from pyddfast.nn import BNStatLoss

Run = Callable[[], Tensor | None]
"""One step; returns what it computed, where the providers draw alike."""


@dataclass(frozen=True)
class StepCase:
    """A step and its providers, which hold their state and their inputs.

    Attributes:
        step: Name of the step.
        setting: Its sizes, in words.
        providers: ``ours``; ``official``; and, where shapes stay, ``torch.compile``, the official
            step with the part that our operators take over compiled.
    """

    step: str
    setting: str
    providers: dict[str, Run]


def compiled(quick: bool, make: Callable[[], Run]) -> dict[str, Run]:
    """The provider that is compiled: not in a quick run, for the minute that compiling takes."""
    return {} if quick else {"torch.compile": make()}


# --- SRe2L -----------------------------------------------------------------------------------

BN_WEIGHT = 0.01  # r_bn on ImageNet
RECOVER = {"lr": 0.25, "betas": (0.5, 0.9), "eps": 1e-8}
# top, left, height, width, flip, down, right: a typical draw at 224 px, its eighths for others.
VIEW = (24, 40, 160, 144, 1, 16, 8)


def official_prior(x: Tensor) -> Tensor:
    """TV and L2, which the official code computes at weight 0 too."""
    tv = sum(
        torch.norm(d)
        for d in (
            x[:, :, :, :-1] - x[:, :, :, 1:],
            x[:, :, :-1, :] - x[:, :, 1:, :],
            x[:, :, :-1, 1:] - x[:, :, 1:, :-1],
            x[:, :, :-1, :-1] - x[:, :, 1:, 1:],
        )
    )
    return tv + torch.norm(x.view(len(x), -1), dim=1).mean()


def official_clamp(images: Tensor) -> None:
    """Channel by channel, by the data."""
    moments = zip(IMAGENET_NORMALIZATION.mean, IMAGENET_NORMALIZATION.std, strict=True)
    for channel, (m, s) in enumerate(moments):
        images.data[:, channel] = torch.clamp(images.data[:, channel], -m / s, (1 - m) / s)


def gradient_of(images: Tensor) -> Tensor:
    """Of the step just made: Adam's first step would show signs alone."""
    assert images.grad is not None
    return images.grad


@contextmanager
def recover(arch: str, device: torch.device, quick: bool) -> Iterator[StepCase]:
    """An iteration of SRe2L's synthesis: view, teacher, statistics loss, Adam, clamp."""
    batch, side = (2, 64) if quick else (100, 224) if device.type == "cuda" else (8, 224)
    start = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(batch, device=device)
    params = torch.tensor([v if i == 4 else v * side // 224 for i, v in enumerate(VIEW)])
    on_device = params.to(device)

    def network() -> nn.Module:
        torch.manual_seed(0)
        model = create(arch, num_classes=1000, in_channels=3, image_size=side)
        return model.to(device).eval().requires_grad_(False)

    def official(feature: Callable[[Tensor, Tensor, Tensor], Tensor] = official_feature) -> Run:
        images = start.clone().to(device).requires_grad_()
        optimizer = torch.optim.Adam([images], **RECOVER)  # type: ignore[arg-type]
        model = network()
        hooks = official_hooks(model, feature)

        def step() -> Tensor:
            views = official_view(images, params)  # on the host: waits for no device
            optimizer.zero_grad()
            cross_entropy = F.cross_entropy(model(views), targets)
            loss = cross_entropy + BN_WEIGHT * hooks() + 0.0 * official_prior(views)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            official_clamp(images)
            loss.item()  # printed, and compared with the best so far, whose images are kept
            images.data.clone()
            return gradient_of(images)

        return step

    def ours() -> Run:
        images = start.clone().to(device).requires_grad_()
        optimizer = torch.optim.Adam([images], **RECOVER)  # type: ignore[arg-type]
        model = network()
        statistics = BNStatLoss(model, FIRST, mode="fused")
        moments = {"mean": IMAGENET_NORMALIZATION.mean, "std": IMAGENET_NORMALIZATION.std}

        def step() -> Tensor:
            views = ops.crop_flip_roll(images, on_device)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(views), targets) + BN_WEIGHT * statistics()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                ops.clamp_normalized(images, **moments, inplace=True)
            return gradient_of(images)

        return step

    yield StepCase(
        f"SRe2L recover, {arch}",
        f"{batch} images of {side} px",
        {
            "ours": ours(),
            "official": official(),
            **compiled(quick, lambda: official(torch.compile(official_feature))),
        },
    )


# --- RDED ------------------------------------------------------------------------------------


@contextmanager
def rded_synthesis(device: torch.device, quick: bool) -> Iterator[StepCase]:
    """From JPEG files to mosaics (`benchmarks/rded.py`); a quick run has a small teacher.

    Nothing is compiled: crops differ in size, for each of which Inductor would compile anew.
    """
    from benchmarks import rded  # here: the other steps go without Pillow
    from benchmarks.photos import write_photos

    classes, pool = rded.CLASSES, 4 if quick else rded.POOL
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), classes, pool)
        photos = ImageFolder(folder)
        torch.manual_seed(0)
        if quick:
            model: nn.Module = nn.Sequential(
                nn.AvgPool2d(32), nn.Flatten(), nn.Linear(147, classes)
            )
        else:
            model = create("resnet18", num_classes=classes, image_size=rded.SIZE).eval()
        model.to(device)
        yield StepCase(
            "RDED synthesis",
            f"{len(photos)} photos, {rded.CROPS} crops each, teacher {type(model).__name__}",
            {
                name: lambda make=make: make(photos, model, 0).float()  # type: ignore[misc]
                for name, make in rded.PROVIDERS.items()
            },
        )


# --- a student on soft labels with a teacher -------------------------------------------------


@contextmanager
def student(device: torch.device, quick: bool) -> Iterator[StepCase]:
    """SL+KD: the teacher's label of the view, KL at T = 20, EL2N-SL beside it, AdamW."""
    batch, side, classes = (4, 32, 100) if quick else (100, 224, 1000)
    if device.type == "cpu" and not quick:
        batch, side = 16, 64
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, side, side, generator=generator).to(device)

    def step_of(loss_of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Run:
        torch.manual_seed(0)
        size = {"num_classes": classes, "in_channels": 3, "image_size": side}
        model, teacher = (create("resnet18", **size).to(device) for _ in range(2))  # type: ignore[arg-type]
        teacher.eval().requires_grad_(False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)

        def step() -> Tensor:
            with torch.no_grad():
                labels = teacher(images)
            loss, score = loss_of(model(images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            return score.detach()

        return step

    yield StepCase(
        "SL+KD student, resnet18",
        f"{batch} images of {side} px, {classes} classes",
        {
            "ours": step_of(our_kd),
            "official": step_of(eager_kd),
            **compiled(quick, lambda: step_of(torch.compile(eager_kd))),
        },
    )


# --- matching --------------------------------------------------------------------------------


@contextmanager
def distribution_matching(device: torch.device, quick: bool) -> Iterator[StepCase]:
    """An iteration of DM at CIFAR-10's size (`benchmarks/dm_iteration.py`); draws differ."""
    ipc, batch = (1, 8) if quick else (10, 256)
    steps = dm_iteration.providers(ipc, batch, device)

    def counted(step: Callable[[int], object]) -> Run:
        iteration = itertools.count()

        def run() -> None:
            step(next(iteration))

        return run

    yield StepCase(
        "DM, convnet-d3",
        f"10 classes, {ipc} images and {batch} real ones a class",
        {
            "ours": counted(steps["ours"]),
            "official": counted(steps["official"]),
            **compiled(quick, lambda: counted(steps["torch.compile"])),
        },
    )


@contextmanager
def trajectory_matching(device: torch.device, quick: bool) -> Iterator[StepCase]:
    """An outer step of TM (`benchmarks/trajectory.py`); ours unrolls exactly and keeps no step."""
    width, batch, steps = (8, 4, 2) if quick else (128, 50, 5)
    problem = trajectory.Problem(width, batch, device)
    inner = trajectory.providers(width, device)
    yield StepCase(
        "TM, convnet-d3",
        f"{steps} inner steps on {batch} images of 32 px",
        {
            "ours": lambda: problem.outer(inner["exact unroll"], steps)[0],
            "official": lambda: problem.outer(inner["official"], steps)[0],
            **compiled(quick, lambda: lambda: problem.outer(inner["compiled"], steps)[0]),
        },
    )


# --- selection -------------------------------------------------------------------------------


@contextmanager
def selection(device: torch.device, quick: bool) -> Iterator[StepCase]:
    """Facility location class by class, from features to picks."""
    classes, rows, dim, k = (3, 60, 16, 5) if quick else (10, 1300, 512, 130)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(classes * rows, dim, generator=generator).to(device)
    segments = rows * torch.arange(classes + 1)

    def official(pick: Picker) -> Run:
        return lambda: torch.cat([pick(part, k) + rows * c for c, part in enumerate(x.split(rows))])

    yield StepCase(
        "Coreset selection, facility location",
        f"{classes} classes of {rows} rows of {dim} features, {k} picks each",
        {
            "ours": lambda: ops.facility_location(x, k, segments=segments).picks,
            "official": official(location_loop(location_step)),
            **compiled(quick, lambda: official(location_loop(torch.compile(location_step)))),
        },
    )


STEPS: dict[str, Callable[[torch.device, bool], AbstractContextManager[StepCase]]] = {
    "recover-resnet18": functools.partial(recover, "resnet18"),
    "recover-resnet50": functools.partial(recover, "resnet50"),
    "rded": rded_synthesis,
    "student": student,
    "dm": distribution_matching,
    "tm": trajectory_matching,
    "selection": selection,
}
"""Name to what makes the step's case, (device, quick), as a context that removes its files."""
