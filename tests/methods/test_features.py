"""G-VBSM and EDC against the official loops, restated step by step in float64."""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyddfast.data import DistilledSet, ImageDataset, normalize
from pyddfast.methods import (
    EDCConfig,
    FADRMConfig,
    GVBSMConfig,
    Job,
    SynthesisConfig,
    TaskInfo,
    edc,
    fadrm,
    gvbsm,
)
from pyddfast.methods.data_pass import training_views
from pyddfast.methods.edc import PUBLISHED as EDC
from pyddfast.methods.gvbsm import PUBLISHED as GVBSM
from pyddfast.methods.gvbsm import densification
from pyddfast.methods.synthesis import initial_noise, resolve
from pyddfast.ops.synthesis import draw_crop_flip_roll
from pyddfast.random import Purpose, permutation, randint, uniform
from tests.compat.restated import Averages, Recorder, cells, channels, distance, moments
from tests.methods.synthesis_cases import (
    CLASSES,
    NORMALIZATION,
    SIZE,
    assert_pixels,
    augmented,
    dataset,
    pixels,
    share_known,
    teacher,
)

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, BATCH, CELL, IPC = 5, 3, 4, 2
SETTINGS: dict[str, Any] = {
    "ipc": IPC, "iterations": STEPS, "batch_size": BATCH, "lr": 0.1, "bn_weight": 0.02,
    "jitter": (0, 2), "momentum": 0.6, "cell": CELL,
}  # fmt: skip
# All images of a class, then those of the next: ten images in batches of three.
PLACES = [(label, slot) for label in range(CLASSES) for slot in range(IPC)]
CHUNKS = [PLACES[i : i + BATCH] for i in range(0, len(PLACES), BATCH)]


def layers(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.Conv2d)]


def statistics(layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    return (*channels(x), *cells(x, CELL)) if isinstance(layer, nn.Conv2d) else channels(x)


def real_batches(size: int, pad: int | None) -> list[tuple[Tensor, Tensor]]:
    """The pass over the data: every image once, in the keyed order, in views of its own."""
    data = dataset()
    order = permutation(0, Purpose.STATISTICS, len(data))
    made = []
    for ids in order.split(size):
        views = training_views(
            [data.images[i] for i in ids.tolist()], ids, NORMALIZATION,
            size=SIZE, pad=pad, seed=0,
        )  # fmt: skip
        made.append((views.double(), data.labels[ids]))
    return made


def inputs(model: nn.Module, layer: nn.Module, batches: list[Tensor]) -> list[Tensor]:
    seen: list[Tensor] = []
    recorder = Recorder(layer, seen.append)
    for x in batches:
        model(x)
    recorder.close()
    return seen


def data_target(
    model: nn.Module, layer: nn.Module, pad: int | None, official: bool
) -> list[Tensor]:
    if isinstance(layer, nn.BatchNorm2d):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        return [layer.running_mean, layer.running_var]
    batches = [x for x, _ in real_batches(64, pad)]
    seen = inputs(model, layer, batches)
    if not official:
        return list(statistics(layer, torch.cat(seen)))
    parts = [[s * len(x) / len(dataset()) for s in statistics(layer, x)] for x in seen]
    return [sum(s) for s in zip(*parts, strict=True)]  # type: ignore[misc]


def class_target(
    model: nn.Module, layer: nn.Module, pad: int | None, official: bool, labels: list[int]
) -> list[Tensor]:
    batches = real_batches(64, pad)
    x = torch.cat(inputs(model, layer, [x for x, _ in batches]))
    members = torch.cat([y for _, y in batches])
    rows = []
    for label in labels:
        own = x[members == label]
        if not official:
            rows.append(list(statistics(layer, own)))
            continue
        # The mean over the images of what is inside one; cells' two exchanged, as the code saves.
        each = []
        for image in own:
            stats = [*moments(image.flatten(1))]
            if isinstance(layer, nn.Conv2d):
                mean, var = cells(image[None], CELL)
                stats += [var, mean]
            each.append(stats)
        rows.append([torch.stack(s).mean(0) for s in zip(*each, strict=True)])
    return [torch.stack(s).mean(0) for s in zip(*rows, strict=True)]


def restated(
    networks: list[nn.Module],
    config: GVBSMConfig | EDCConfig,
    initial: Callable[[int, int], Tensor],
    views: Callable[[Tensor, int, int], Tensor],
    *,
    pad: int | None,
    drop: Callable[[int, int, int], bool] = lambda step, chunk, layer: False,
    targets: Callable[..., list[list[Tensor]]],
    beside: Callable[..., Tensor],
) -> Tensor:
    """Float pixels of the whole set."""
    assert config.lr is not None
    assert config.bn_weight is not None
    assert config.momentum is not None
    official = config.semantics == "official"
    made = torch.empty(len(PLACES), 3, SIZE, SIZE, dtype=torch.float64)
    doubles = [copy.deepcopy(network).double().requires_grad_(False) for network in networks]
    now = [0, 0]  # step and chunk, for what is left out
    for chunk, places in enumerate(CHUNKS):
        labels = torch.tensor([label for label, _ in places])
        recorders: list[list[Recorder]] = []
        for network in doubles:
            found = []
            for number, layer in enumerate(layers(network)):
                with torch.no_grad():  # the hooks that are there already must not see this
                    wanted = targets(network, layer, pad, official, labels.tolist())
                averages = Averages(config.momentum)

                def measure(
                    x: Tensor,
                    layer: nn.Module = layer,
                    number: int = number,
                    averages: Averages = averages,
                    wanted: list[list[Tensor]] = wanted,
                ) -> Tensor | None:
                    if not torch.is_grad_enabled():
                        return None
                    if isinstance(layer, nn.Conv2d) and drop(*now, number):
                        return torch.zeros((), dtype=torch.float64)
                    new = statistics(layer, x)
                    if not averages.values and not official:
                        averages.values = [s.detach() for s in new]
                    straight = averages.straight(new)
                    return sum(distance(straight, part) for part in wanted) / len(wanted)  # type: ignore[return-value]

                found.append(Recorder(layer, measure))
            recorders.append(found)
        images = torch.stack([initial(*place) for place in places]).double().requires_grad_()
        average = images.detach().clone()
        adam = torch.optim.Adam([images], lr=config.lr, betas=(0.5, 0.9), eps=1e-8)
        for step in range(STEPS):
            adam.param_groups[0]["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * step / STEPS))
            network, hooks = doubles[step % len(doubles)], recorders[step % len(doubles)]
            now[:] = step, chunk
            seen = views(images, step, chunk)
            adam.zero_grad()
            logits = network(seen)
            scale = [config.first_multiplier] + [1.0] * (len(hooks) - 1)
            values = [hook.r_feature * s for hook, s in zip(hooks, scale, strict=True)]
            loss = F.cross_entropy(logits, labels) + config.bn_weight * torch.stack(values).sum()
            with torch.no_grad():
                smooth = network(views(average, step, chunk))
            loss = loss + beside(seen, labels, logits, smooth)
            average = 0.9 * average + 0.1 * images.detach()
            loss.backward()
            adam.step()
            for c in range(3):
                m, s = NORMALIZATION.mean[c], NORMALIZATION.std[c]
                images.data[:, c].clamp_(-m / s, (1 - m) / s)
        for (label, slot), image in zip(places, images.detach(), strict=True):
            made[label * IPC + slot] = image
        for hook in (hook for found in recorders for hook in found):
            hook.close()
    return pixels(made)


def noise(label: int, slot: int) -> Tensor:
    return initial_noise(0, label, slot, (3, SIZE, SIZE))


def densified(views: Tensor, labels: Tensor) -> Tensor:
    """The official nuclear loss: the general eigenvalues of each class's Gram matrix."""
    pooled = nn.AdaptiveAvgPool2d((32, 32))(views).flatten(1)
    total = torch.zeros((), dtype=torch.float64)
    for label in set(labels.tolist()):
        own = pooled[labels == label]
        values = torch.linalg.eigvals(own @ own.T).real
        target = (values / 4).softmax(-1).detach()
        total = total + (target * (target.log() - values.log_softmax(-1))).nansum()
    return total


@pytest.mark.parametrize(
    ("semantics", "crop", "drop_rate"),
    # ImageNet's views; those of the small sets with convolutions left out, in both meanings.
    [("paper", True, 0.0), ("paper", False, 0.4), ("official", False, 0.4)],
)
def test_gvbsm_is_the_official_loop(semantics: str, crop: bool, drop_rate: float) -> None:
    networks = [teacher(0), teacher(1)]
    config = GVBSMConfig(
        **SETTINGS, crop=crop, pad=2, drop_rate=drop_rate, semantics=semantics,  # type: ignore[arg-type]
        density_weight=1.0,
    )  # fmt: skip
    made = gvbsm(dataset(), networks, config)

    def views(images: Tensor, step: int, chunk: int) -> Tensor:
        one = torch.tensor([step])
        if crop:
            params = draw_crop_flip_roll(0, one, chunk, (SIZE, SIZE), shift=(0, 2))
            return augmented(images, params[0])
        params = draw_crop_flip_roll(0, one, chunk, (SIZE, SIZE), scale=None, pad=2, shift=(0, 2))
        top, left, _, _, flip, down, right = params[0].tolist()
        assert 0 <= min(top, left) <= max(top, left) <= 4
        cut = F.pad(images, (2, 2, 2, 2))[:, :, top : top + SIZE, left : left + SIZE]
        return (cut.flip(-1) if flip else cut).roll((down, right), (2, 3))

    want = restated(
        networks,
        config,
        noise,
        views,
        pad=None if crop else 2,
        drop=lambda step, chunk, layer: bool(
            uniform(0, Purpose.FEATURE_DROP, step, chunk, layer) < drop_rate
        ),
        targets=lambda model, layer, pad, official, labels: [
            data_target(model, layer, pad, official)
        ],
        beside=lambda views, labels, logits, smooth: densified(views, labels),
    )
    assert_pixels(made, want, truncated=semantics == "official")


@pytest.mark.parametrize("semantics", ["paper", "official"])
def test_edc_is_the_official_loop(semantics: str) -> None:
    data, networks = dataset(), [teacher(0), teacher(1)]
    official = semantics == "official"
    config = EDCConfig(
        **SETTINGS, smallest_crop=0.5, flatness_weight=2.0, flatness_decay=0.9,
        semantics=semantics,  # type: ignore[arg-type]
    )  # fmt: skip
    made = edc(data, networks, config)

    def initial(label: int, slot: int) -> Tensor:
        # Class c holds the images c, c + 5, ...
        if official:
            drawn = int(randint(0, Purpose.INITIAL, 0, 4, label, slot))
            image = normalize(data.images[label + CLASSES * drawn][None], NORMALIZATION)[0]
            mirrored = bool(uniform(0, Purpose.INITIAL, label, slot, 1) < 0.5)
            return image.flip(-1) if mirrored else image
        drawn = int(permutation(0, Purpose.INITIAL, 4, label)[slot])
        return normalize(data.images[label + CLASSES * drawn][None], NORMALIZATION)[0]

    def views(images: Tensor, step: int, chunk: int) -> Tensor:
        one = torch.tensor([step])
        params = draw_crop_flip_roll(0, one, chunk, (SIZE, SIZE), scale=(0.5, 1.0), shift=(0, 2))
        return augmented(images, params[0])

    def flatness(views: Tensor, labels: Tensor, logits: Tensor, smooth: Tensor) -> Tensor:
        target = (smooth / 4).softmax(1)
        terms = target * (target.log() - (logits / 4).log_softmax(1))
        return 2.0 * (terms.mean() if official else terms.sum() / len(logits))

    want = restated(
        networks,
        config,
        initial,
        views,
        pad=4,
        targets=lambda model, layer, pad, official, labels: [
            data_target(model, layer, pad, official),
            class_target(model, layer, pad, official, labels),
        ],
        beside=flatness,
    )
    assert_pixels(made, want, truncated=official)


def test_densification_and_its_gradient() -> None:
    gen = torch.Generator().manual_seed(0)
    views = 0.02 * torch.randn(7, 3, 20, 20, generator=gen).double().requires_grad_()
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 1])
    groups = {3: torch.tensor([[0, 1, 2], [3, 4, 6]])}
    ours, theirs = densification(views, groups, 4.0), densified(views, labels)
    assert torch.allclose(ours, theirs, rtol=1e-10)
    assert ours > 1e-3  # eigenvalues of the order of one, neither equal nor far apart
    (one,), (other,) = (torch.autograd.grad(x, views) for x in (ours, theirs))
    assert (one - other).norm() <= 1e-9 * other.norm()


def test_views_of_the_data_are_training_views() -> None:
    gen = torch.Generator().manual_seed(1)
    images = [torch.randint(0, 256, (3, h, w), generator=gen, dtype=torch.uint8)
              for h, w in ((8, 8), (8, 8), (10, 6))]  # fmt: skip
    ids = torch.tensor([5, 17, 2])
    whole = training_views(images, ids, NORMALIZATION, size=8, pad=None, seed=3)
    # Each image's view is its own, whatever the batch.
    for i in range(3):
        one = training_views(
            images[i : i + 1], ids[i : i + 1], NORMALIZATION, size=8, pad=None, seed=3
        )
        assert torch.equal(one[0], whole[i])
    padded = training_views(images[:2], ids[:2], NORMALIZATION, size=8, pad=2, seed=3)
    for i in range(2):
        draws = uniform(3, Purpose.STATISTICS, ids[i], 1, [0, 1])
        top, left = (draws * 5).long().tolist()
        cut = F.pad(images[i], (2, 2, 2, 2))[:, top : top + 8, left : left + 8]
        mirrored = bool(uniform(3, Purpose.STATISTICS, ids[i], 1, 40) < 0.5)
        want = normalize((cut.flip(-1) if mirrored else cut)[None], NORMALIZATION)[0]
        assert torch.allclose(padded[i], want, atol=1e-6)


def test_the_padding_of_a_larger_image_grows_with_it() -> None:
    gen = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (4, 3, 16, 16), generator=gen, dtype=torch.uint8)
    ids = torch.arange(4)
    padded = training_views(list(images), ids, NORMALIZATION, size=8, pad=2, seed=3)
    for i in range(4):  # 2 of 8 pixels are 4 of 16
        top, left = (uniform(3, Purpose.STATISTICS, ids[i], 1, [0, 1]) * 9).long().tolist()
        cut = F.pad(images[i], (4, 4, 4, 4))[:, top : top + 16, left : left + 16]
        mirrored = bool(uniform(3, Purpose.STATISTICS, ids[i], 1, 40) < 0.5)
        cut = (cut.flip(-1) if mirrored else cut)[None].double()
        small = F.interpolate(cut, (8, 8), mode="bilinear", antialias=True) / 255
        mean, std = (
            torch.tensor(values, dtype=torch.float64)[:, None, None]
            for values in (NORMALIZATION.mean, NORMALIZATION.std)
        )
        assert torch.allclose(padded[i].double(), ((small - mean) / std)[0], atol=1e-5)


KEPT = GVBSMConfig(**SETTINGS, pad=2, crop=False, drop_rate=0.3)
KEPT_EDC = EDCConfig(**SETTINGS, flatness_weight=1.0)


@pytest.mark.parametrize(("method", "config"), [(gvbsm, KEPT), (edc, KEPT_EDC)])
def test_a_stop_in_the_pass_or_in_a_batch_changes_no_byte(
    method: Callable[..., DistilledSet],
    config: SynthesisConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features, passes, ours = (
        sys.modules[f"pyddfast.methods.{name}"] for name in ("data_pass", "edc", "gvbsm")
    )
    monkeypatch.setattr(ours, "_DATA_BATCH", {"cifar-100": 6})
    monkeypatch.setattr(passes, "_DATA_PASS", {"cifar-100": (6, 2)})
    networks = [teacher(0), teacher(1)]
    whole = method(dataset(), networks, config, job=Job(out=tmp_path / "whole"))
    job = Job(out=tmp_path / "run", checkpoint_seconds=0.0)
    real, calls = features.training_views, [0]
    # Twenty images are four batches a teacher.  Stopped at the third of the first teacher, then,
    # six later, at the last of the second; then two batches are left, and then none.
    stops = [3, 9, 0]

    def views(*args: Any, **options: Any) -> Tensor:
        calls[0] += 1
        if calls[0] == stops[0]:
            raise KeyboardInterrupt
        made: Tensor = real(*args, **options)
        return made

    def interrupt(done: int, total: int) -> None:
        assert total == 4 * STEPS
        if done == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(features, "training_views", views)
    for expected in (3, 9, 10):
        with pytest.raises(KeyboardInterrupt):
            method(dataset(), networks, config, job=replace(job, on_progress=interrupt))
        assert calls[0] == expected
        stops.pop(0)
    made = method(dataset(), networks, config, job=job)
    assert calls[0] == 10
    assert torch.equal(made.images, whole.images)
    names = sorted(
        f.relative_to(tmp_path / "whole") for f in (tmp_path / "whole").rglob("*.safetensors")
    )
    assert [str(name) for name in names] == [
        *(f"chunks/{index:06d}.safetensors" for index in range(4)),
        "statistics/00.safetensors",
        "statistics/01.safetensors",
    ]
    for name in names:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    rows = [json.loads(r) for r in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(row["features"]) for row in rows)


def test_other_data_and_damaged_statistics_are_refused(tmp_path: Path) -> None:
    job = Job(out=tmp_path / "run")
    gvbsm(dataset(), teacher(), KEPT, job=job)
    other = dataset()
    other.images[0, 0, 0, 0] ^= 1
    with pytest.raises(ValueError, match=r"data\.sha256 was"):
        gvbsm(dataset(), teacher(), KEPT, data=other, job=job)
    file = tmp_path / "run" / "statistics" / "00.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"00\.safetensors is damaged"):
        gvbsm(dataset(), teacher(), KEPT, job=job)


def test_presets_are_the_published_values() -> None:
    def filled(published: dict[str, dict[str, Any]], config: Any, size: int) -> tuple[Any, ...]:
        values = resolve(replace(config, image_size=size), TaskInfo(1000, NORMALIZATION), published)
        return (
            values.iterations, values.batch_size, values.lr, values.bn_weight, values.jitter,
            values.crop, values.momentum, values.drop_rate, values.cell,
        )  # fmt: skip

    # recover.sh and the scripts' defaults; batches are divided by the script's GPUs.
    assert filled(GVBSM, GVBSMConfig(), 224) == (4000, 40, 0.1, 0.01, (0, 32), True, 0.4, 0.0, 16)
    small = (4000, 50, 0.05, 0.01, (0, 32), False, 0.8, 0.4, 4)
    assert filled(GVBSM, GVBSMConfig(), 64) == filled(GVBSM, GVBSMConfig(), 32) == small
    assert [GVBSM[name]["pad"] for name in ("tiny-imagenet", "cifar-100")] == [8, 4]
    assert filled(EDC, EDCConfig(), 224) == (1000, 20, 0.05, 0.1, (0, 0), True, 0.8, 0.0, 16)
    small = (2000, 25, 0.05, 0.01, (0, 0), True, 0.8, 0.0, 4)
    assert filled(EDC, EDCConfig(), 64) == filled(EDC, EDCConfig(), 32) == small
    ten = (75, 10, 0.05, 0.01, (0, 0), True, 0.8, 0.0, 4)
    assert filled(EDC, EDCConfig(preset="cifar-10"), 32) == ten
    ten = (50, 100, 0.05, 0.01, (0, 0), True, 0.0, 0.0, 16)
    assert filled(EDC, EDCConfig(preset="imagenet-10"), 224) == ten


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GVBSMConfig(momentum=1.5), r"momentum must lie in \[0, 1\], got 1.5"),
        (lambda: GVBSMConfig(drop_rate=-0.1), "drop_rate must lie in"),
        (lambda: GVBSMConfig(cell=0), "cell must be at least 1"),
        (lambda: GVBSMConfig(bn_mode="fused"), "bn_mode must be 'tap'"),
        (lambda: GVBSMConfig(pad=-1), "pad must not be negative"),
        (lambda: GVBSMConfig(density_temperature=0.0), "density_temperature must be positive"),
        (lambda: GVBSMConfig(cuda_graph=True), "cuda_graph does not go with density_weight"),
        (lambda: EDCConfig(class_weight=2.0), r"class_weight must lie in \[0, 1\]"),
        (lambda: EDCConfig(smallest_crop=0.0), r"smallest_crop must lie in \(0, 1\]"),
        (lambda: EDCConfig(flatness_weight=-1.0), "flatness_weight must not be negative"),
        (
            lambda: gvbsm(TaskInfo(CLASSES, NORMALIZATION), teacher(), KEPT),
            "statistics are taken from real images: give data=",
        ),
        (
            lambda: edc(
                TaskInfo(CLASSES + 1, NORMALIZATION), teacher(classes=CLASSES + 1), KEPT_EDC,
                data=dataset(), source=dataset(),
            ),
            "data has no image of class 5",
        ),
        (
            lambda: edc(TaskInfo(3, NORMALIZATION), teacher(classes=3), KEPT_EDC, data=dataset()),
            r"labels of data must lie in \[0, 3\), got 4",
        ),
    ],
)  # fmt: skip
def test_refuses_before_any_work(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("method", "config"),
    [
        # The published roll, to 32 px, turns images of 28 px round and wants thousands of steps.
        (gvbsm, GVBSMConfig(ipc=1, iterations=250, jitter=(0, 4))),
        (edc, EDCConfig(ipc=1, iterations=60)),
        (fadrm, FADRMConfig(ipc=1, iterations=150)),
    ],
)
def test_a_real_teacher_knows_the_saved_images(
    fashion: tuple[ImageDataset, nn.Module],
    method: Callable[..., DistilledSet],
    config: SynthesisConfig,
    tmp_path: Path,
) -> None:
    data, network = fashion
    method(data, network, config).save(tmp_path / "set")
    made = DistilledSet.load(tmp_path / "set")
    assert share_known(network, made.images, data.normalization) >= 0.9
