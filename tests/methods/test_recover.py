"""SRe2L, CDA and DWA against the official loops, restated step by step in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyddfast.data import DistilledSet, ImageDataset, Normalization
from pyddfast.methods import (
    CDAConfig,
    DWAConfig,
    EDCConfig,
    FADRMConfig,
    Job,
    SRe2LConfig,
    SynthesisConfig,
    TaskInfo,
    cda,
    dwa,
    sre2l,
)
from pyddfast.methods.cda import PUBLISHED as CDA
from pyddfast.methods.cda import smallest_crop
from pyddfast.methods.dwa import PUBLISHED as DWA
from pyddfast.methods.dwa import adjust_weights
from pyddfast.methods.sre2l import PUBLISHED as SRE2L
from pyddfast.methods.synthesis import initial_noise, resolve
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
    share_known,
    teacher,
)

STEPS, BATCH = 6, 3


pytestmark = pytest.mark.usefixtures("one_thread")


def restated(
    networks: list[nn.Module],
    config: SynthesisConfig,
    initial: Callable[[int, int], Tensor],
    params: Callable[[int], Tensor],
    *,
    var_weight: float = 1.0,
    priors: tuple[float, float] = (0.0, 0.0),
    adjust: tuple[int, float] | None = None,
) -> Tensor:
    """Float pixels of the whole set; batches of ``BATCH`` classes, one image of each."""
    assert config.lr is not None
    assert config.bn_weight is not None
    official = config.semantics == "official"
    made = torch.empty(CLASSES, config.ipc, 3, SIZE, SIZE, dtype=torch.float64)
    chunk = 0
    for slot in range(config.ipc):
        doubles = [copy.deepcopy(network).double() for network in networks]
        hooks = []
        for network in doubles:
            network.requires_grad_(adjust is not None)
            found = [Hook(m) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
            for hook in found:
                hook.var_weight = var_weight
            hooks.append(found)
        for start in range(0, CLASSES, BATCH):
            if not official:  # weights start anew for every batch
                for network, original in zip(doubles, networks, strict=True):
                    network.load_state_dict(original.state_dict())
            labels = torch.arange(start, min(start + BATCH, CLASSES))
            images = torch.stack([initial(c, slot) for c in labels.tolist()]).double()
            images.requires_grad_()
            adam = torch.optim.Adam([images], lr=config.lr, betas=(0.5, 0.9), eps=1e-8)
            rows = params(chunk)
            for step in range(STEPS):
                adam.param_groups[0]["lr"] = (
                    0.5 * config.lr * (1 + math.cos(math.pi * step / STEPS))
                )
                network, found = doubles[step % len(doubles)], hooks[step % len(doubles)]
                views = augmented(images, rows[step])
                adam.zero_grad()
                if step == 0 and adjust is not None:
                    for _ in range(adjust[0]):
                        network.zero_grad()
                        F.cross_entropy(network(views), labels).backward(retain_graph=True)
                        weights = list(network.parameters())
                        norm = sum((w.grad**2).sum() for w in weights) ** 0.5  # type: ignore[operator]
                        for w in weights:
                            w.data += adjust[1] / adjust[0] * w.grad / (norm + 1e-12)
                    if not official:
                        adam.zero_grad()
                loss = F.cross_entropy(network(views), labels)
                scale = [config.first_multiplier] + [1.0] * (len(found) - 1)
                values = [hook.value * s for hook, s in zip(found, scale, strict=True)]
                loss = loss + config.bn_weight * torch.stack(values).sum()
                tv = (
                    (views[:, :, :, :-1] - views[:, :, :, 1:]).norm()
                    + (views[:, :, :-1] - views[:, :, 1:]).norm()
                    + (views[:, :, :-1, 1:] - views[:, :, 1:, :-1]).norm()
                    + (views[:, :, :-1, :-1] - views[:, :, 1:, 1:]).norm()
                )
                loss = loss + priors[0] * tv + priors[1] * views.flatten(1).norm(dim=1).mean()
                loss.backward()
                adam.step()
                for c in range(3):
                    m, s = NORMALIZATION.mean[c], NORMALIZATION.std[c]
                    images.data[:, c].clamp_(-m / s, (1 - m) / s)
            made[labels, slot] = images.detach()
            chunk += 1
    return pixels(made.flatten(0, 1))


def noise(label: int, slot: int) -> Tensor:
    return initial_noise(0, label, slot, (3, SIZE, SIZE))


SETTINGS = {"ipc": 2, "iterations": STEPS, "batch_size": BATCH, "lr": 0.1, "bn_weight": 0.05}


@pytest.mark.parametrize("crop", [False, True])
def test_sre2l_is_the_official_loop(crop: bool) -> None:
    networks = [teacher(0), teacher(1)]  # taking turns
    config = SRe2LConfig(**SETTINGS, crop=crop, jitter=(-2, 3), tv=2e-3, l2=1e-2)
    made = sre2l(dataset(), networks, config)
    want = restated(
        networks,
        config,
        noise,
        lambda chunk: draw_crop_flip_roll(
            0,
            torch.arange(STEPS),
            chunk,
            (SIZE, SIZE),
            scale=(0.08, 1.0) if crop else None,
            flip=crop,
            shift=(-2, 3),
        ),
        priors=(2e-3, 1e-2),
    )
    assert_pixels(made, want)
    assert (made.kind, made.class_names) == ("synthetic", tuple("abcde"))


def test_official_pixels_are_cut_off() -> None:
    config = SRe2LConfig(**{**SETTINGS, "batch_size": 5}, jitter=(0, 2), seed=4)
    rounded = sre2l(dataset(), teacher(), config).images.int()
    cut = sre2l(dataset(), teacher(), replace(config, semantics="official")).images.int()
    assert set((rounded - cut).unique().tolist()) == {0, 1}
    # Half of the values have a fraction of at least one half.
    assert 0.4 < (rounded - cut).double().mean() < 0.6


@pytest.mark.parametrize("curriculum", ["step", "linear", "cosine"])
def test_cda_shrinks_the_crops(curriculum: str) -> None:
    network = teacher()
    config = CDAConfig(**SETTINGS, jitter=(0, 2), curriculum=curriculum, milestone=0.5)  # type: ignore[arg-type]
    made = cda(dataset(), network, config)
    # The definition of the paper and the code, at six steps with the milestone at three.
    shares = {
        "step": [1.0, 1.0, 1.0],
        "linear": [1.0, 2 / 3, 1 / 3],
        "cosine": [1.0, 0.75, 0.25],
    }[curriculum] + [0.0] * 3

    def params(chunk: int) -> Tensor:
        rows = [
            draw_crop_flip_roll(
                0,
                torch.tensor([step]),
                chunk,
                (SIZE, SIZE),
                scale=(0.08 + 0.92 * share, 1.0),
                shift=(0, 2),
            )
            for step, share in enumerate(shares)
        ]
        return torch.cat(rows)

    assert_pixels(made, restated([network], config, noise, params))


def test_smallest_crop_without_a_milestone_is_sre2ls() -> None:
    assert [smallest_crop(s, iterations=4, milestone=0.0) for s in range(4)] == [0.08] * 4
    assert smallest_crop(3999, iterations=4000) == pytest.approx(0.08, abs=1e-6)


@pytest.mark.parametrize("semantics", ["paper", "official"])
def test_dwa_is_the_official_loop(semantics: str) -> None:
    data, network = dataset(), teacher()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    config = DWAConfig(
        **SETTINGS, crop=True, jitter=(0, 2), var_weight=2.0, adjust_steps=3, rho=0.5,
        semantics=semantics,  # type: ignore[arg-type]
    )  # fmt: skip
    made = dwa(data, network, config)
    mean = torch.tensor(NORMALIZATION.mean)[:, None, None]
    std = torch.tensor(NORMALIZATION.std)[:, None, None]

    def initial(label: int, slot: int) -> Tensor:
        # Class c holds the images c, c + 5, ...; "official" takes them as they come.
        row = label + CLASSES * slot if semantics == "official" else chosen[label][slot]
        return (data.images[row] / 255 - mean) / std

    chosen = dwa_order(data, config)
    if semantics == "paper":
        assert any(rows != sorted(rows) for rows in chosen.values())
    want = restated(
        [network],
        config,
        initial,
        lambda chunk: draw_crop_flip_roll(
            0, torch.arange(STEPS), chunk, (SIZE, SIZE), shift=(0, 2)
        ),
        var_weight=2.0,
        adjust=(3, 0.5),
    )
    assert_pixels(made, want, truncated=semantics == "official")
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_dwa_in_fp16_takes_the_first_gradient_in_full() -> None:
    # Of one size with the gradient of the BatchNorm loss, so that its share decides signs.
    config = DWAConfig(
        ipc=1, iterations=1, batch_size=CLASSES, lr=0.1, bn_weight=0.1, crop=True, jitter=(0, 2),
        var_weight=2.0, adjust_steps=15, semantics="official",
    )  # fmt: skip
    exact, half = (
        dwa(dataset(), teacher(), replace(config, precision=precision)).images  # type: ignore[arg-type]
        for precision in ("fp32", "fp16")
    )
    # Adam's first step goes by the gradient's sign; a share 65536 times too small moves 5 % of the
    # pixels the other way.
    assert (exact != half).double().mean() < 0.01


def dwa_order(data, config: DWAConfig) -> dict[int, list[int]]:
    from pyddfast.random import Purpose, permutation

    chosen = {}
    for label in range(CLASSES):
        members = [i for i in range(len(data)) if i % CLASSES == label]
        order = permutation(config.seed, Purpose.INITIAL, len(members), label)
        chosen[label] = [members[i] for i in order.tolist()][: config.ipc]
    return chosen


def test_adjusting_weights_climbs_by_rho_and_returns_the_images_gradient() -> None:
    network = teacher().double()
    fresh = copy.deepcopy(network)
    start = torch.cat([w.detach().flatten().clone() for w in network.parameters()])
    views = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.tensor([0, 1, 2])
    with torch.no_grad():
        before = F.cross_entropy(network(views), labels)
    into = adjust_weights(network, views, labels, steps=1, rho=0.3)
    moved = torch.cat([w.detach().flatten() for w in network.parameters()]) - start
    assert float(moved.norm()) == pytest.approx(0.3, rel=1e-9)
    with torch.no_grad():
        assert F.cross_entropy(network(views), labels) > before
    leaf = views.clone().requires_grad_()
    F.cross_entropy(fresh(leaf), labels).backward()
    assert leaf.grad is not None
    assert torch.allclose(into, leaf.grad, rtol=1e-12, atol=0)


def test_first_images_from_a_distilled_set_and_of_another_size() -> None:
    data = dataset(size=2 * SIZE)
    small = DistilledSet(
        images=data.images[:CLASSES].flip(0),
        labels=data.labels[:CLASSES].flip(0),
        num_classes=CLASSES,
        normalization=NORMALIZATION,
    )
    # No step moves a pixel by more than lr, here less than a level.
    config = SRe2LConfig(ipc=1, iterations=1, lr=1e-4, init="set", image_size=SIZE)
    made = sre2l(data, teacher(), config, source=small)
    want = F.interpolate(
        data.images[:CLASSES].float(), size=(SIZE, SIZE), mode="bilinear", antialias=True
    )
    assert (made.images - want).abs().max() < 0.51


def test_a_larger_set_begins_with_the_smaller_and_classes_can_be_chosen() -> None:
    network = teacher()
    one = sre2l(dataset(), network, SRe2LConfig(**{**SETTINGS, "ipc": 1}))
    two = sre2l(dataset(), network, SRe2LConfig(**SETTINGS))
    assert torch.equal(two.images[::2], one.images)
    some = sre2l(
        TaskInfo(CLASSES, NORMALIZATION),
        network,
        SRe2LConfig(**{**SETTINGS, "ipc": 1}, classes=(4, 1), image_size=SIZE, jitter=(0, 1)),
    )
    assert some.labels.tolist() == [4, 1]  # in the order given
    assert some.num_classes == CLASSES
    assert some.class_names == ()


def test_presets_are_the_published_values() -> None:
    def filled(published, config: SynthesisConfig, size: int) -> tuple[object, ...]:
        task = TaskInfo(1000, NORMALIZATION)
        values = resolve(replace(config, image_size=size), task, published)
        return (
            values.iterations, values.batch_size, values.lr, values.bn_weight, values.jitter,
            values.crop,
        )  # fmt: skip

    # large-scale.md, sections 3.1 to 3.3, from the scripts and read-me files.
    sre, curriculum, directed = SRe2LConfig(), CDAConfig(), DWAConfig()
    assert filled(SRE2L, sre, 224) == (4000, 100, 0.25, 0.01, (0, 32), True)
    assert filled(SRE2L, sre, 64) == (4000, 100, 0.1, 1.0, (-4, 4), True)
    assert filled(SRE2L, sre, 32) == (1000, 100, 0.25, 0.01, (0, 4), False)
    assert filled(CDA, curriculum, 224) == (4000, 100, 0.25, 0.01, (0, 32), True)
    assert filled(CDA, curriculum, 64) == (4000, 100, 0.4, 0.05, (0, 4), True)
    larger = replace(curriculum, preset="imagenet-21k")
    assert filled(CDA, larger, 224) == (2000, 100, 0.05, 0.25, (0, 32), True)
    assert filled(DWA, directed, 224) == (2000, 100, 0.25, 0.01, (0, 32), True)
    assert filled(DWA, directed, 64) == (2000, 200, 0.1, 0.01, (0, 4), True)
    assert filled(DWA, directed, 28) == (1000, 100, 0.25, 0.01, (0, 4), False)
    chosen = resolve(replace(sre, lr=0.5), TaskInfo(3, NORMALIZATION), SRE2L)
    assert (chosen.lr, chosen.classes, chosen.preset) == (0.5, (0, 1, 2), "imagenet-1k")
    for size, var_weight, steps in ((224, 2.0, 15), (64, 11.0, 12), (32, 11.0, 12)):
        values = resolve(replace(directed, image_size=size), TaskInfo(9, NORMALIZATION), DWA)
        assert (values.var_weight, values.adjust_steps, values.rho) == (var_weight, steps, 0.015)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SRe2LConfig(ipc=0), "ipc must be at least 1"),
        (lambda: SRe2LConfig(iterations=0), "iterations"),
        (lambda: SRe2LConfig(lr=0.0), "lr must be positive"),
        (lambda: SRe2LConfig(tv=-1.0), "tv must not be negative"),
        (lambda: SRe2LConfig(jitter=(3, 1)), "jitter"),
        (lambda: SRe2LConfig(jitter=(1,)), r"jitter must be \(smallest, largest\)"),  # type: ignore[arg-type]
        (
            lambda: sre2l(dataset(), teacher(), SRe2LConfig(), job=Job(device="nosuch")),
            "device 'nosuch' cannot be used here",
        ),
        (lambda: SRe2LConfig(precision="fp8"), "precision must be one of fp32"),  # type: ignore[arg-type]
        (lambda: SRe2LConfig(classes=(1, 1)), "classes must be different"),
        (lambda: CDAConfig(milestone=1.5), "milestone"),
        (lambda: CDAConfig(crop=False), "crop=False"),
        (lambda: CDAConfig(curriculum="sine"), "curriculum"),  # type: ignore[arg-type]
        (lambda: DWAConfig(adjust_steps=0), "adjust_steps"),
        (lambda: DWAConfig(rho=-1.0), "rho must not be negative"),
        (
            lambda: sre2l(dataset(), teacher(), SRe2LConfig(classes=(5,))),
            r"classes must lie in \[0, 5\), got 5",
        ),
        (
            lambda: sre2l(dataset(), teacher(), SRe2LConfig(preset="imagenet-21k")),
            "preset must be one of imagenet-1k, tiny-imagenet, cifar-100",
        ),
        (
            lambda: sre2l(dataset(), teacher(), SRe2LConfig(batch_size=3, semantics="official")),
            "batch_size = 3 divides, got 5",
        ),
        (
            lambda: dwa(dataset(), teacher(), DWAConfig(ipc=5)),
            "ipc = 5 first images are needed of class 0, .* has 4",
        ),
        (
            lambda: dwa(TaskInfo(CLASSES, NORMALIZATION), teacher(), DWAConfig(image_size=SIZE)),
            "init='data' needs a source",
        ),
        (lambda: sre2l(dataset(), teacher(), SRe2LConfig(init="set")), "init='set' needs"),
        (
            lambda: sre2l(dataset(), teacher(), SRe2LConfig(), source=dataset()),
            "init='noise' takes no source",
        ),
        (
            lambda: sre2l(
                TaskInfo(CLASSES, Normalization((0.5,), (0.5,))), teacher(),
                SRe2LConfig(init="data", image_size=SIZE), source=dataset(),
            ),
            "3 channels, the task 1",
        ),
    ],
)  # fmt: skip
def test_refuses_before_any_work(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
    with pytest.raises(TypeError, match="must be an nn"):
        sre2l(dataset(), [teacher, teacher()])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SRe2LConfig(ipc=1.5), "ipc must be an int, got 1.5"),  # type: ignore[arg-type]
        (lambda: SRe2LConfig(ipc=True), "ipc must be an int, got True"),
        (lambda: SRe2LConfig(iterations=3.5), "iterations must be an int"),  # type: ignore[arg-type]
        (lambda: SRe2LConfig(batch_size=2.0), "batch_size must be an int"),  # type: ignore[arg-type]
        (lambda: SRe2LConfig(jitter=(0, 0.5)), r"jitter must be two ints, got \(0, 0.5\)"),  # type: ignore[arg-type]
        (lambda: DWAConfig(adjust_steps=2.0), "adjust_steps must be an int"),  # type: ignore[arg-type]
        (lambda: EDCConfig(cell=4.0), "cell must be an int"),  # type: ignore[arg-type]
        (lambda: FADRMConfig(stage_sizes=(8.0,)), "stage_sizes must be ints"),  # type: ignore[arg-type]
    ],
)
def test_settings_of_another_type(make: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize(
    ("method", "config"),
    [
        (sre2l, SRe2LConfig(ipc=1, iterations=150)),
        (cda, CDAConfig(ipc=1, iterations=150)),
        (dwa, DWAConfig(ipc=1, iterations=150)),
    ],
)
def test_a_real_teacher_knows_the_saved_images_and_their_statistics(
    fashion: tuple[ImageDataset, nn.Module],
    method: Callable[..., DistilledSet],
    config: SynthesisConfig,
    tmp_path: Path,
) -> None:
    data, network = fashion
    method(data, network, config).save(tmp_path / "set")
    made = DistilledSet.load(tmp_path / "set")

    def seen(images: Tensor) -> tuple[float, float]:
        """Accuracy and the statistics' distance of uint8 images."""
        found = [Hook(m) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        accuracy = share_known(network, images, data.normalization)
        return accuracy, sum(hook.value.item() for hook in found)

    accuracy, distance = seen(made.images)
    noise = torch.randint(
        0, 256, made.images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    chance, far = seen(noise)
    assert accuracy >= 0.9
    assert chance <= 0.3
    assert distance < far / 2
