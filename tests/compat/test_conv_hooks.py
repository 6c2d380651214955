"""The hooks of G-VBSM and EDC against the official formulas in float64."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyddfast.compat import edc, gvbsm
from tests.compat.restated import (
    Averages,
    Recorder,
    all_stats,
    cells,
    channels,
    distance,
    images,
    moments,
)
from tests.compat.restated import planes as network

BOUND = 1e-10  # of the value and of the gradient, relative
CLASSES = 3


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three classes for EDC."""
    monkeypatch.setattr(edc, "CLASSES", CLASSES)


def hooked(model: nn.Sequential) -> list[nn.Module]:
    return [m for m in model if isinstance(m, nn.BatchNorm2d | nn.Conv2d)]


def step(model: nn.Module, hooks: list, x: Tensor) -> tuple[list[Tensor], Tensor]:
    x = x.clone().requires_grad_()
    loss = model(x).square().mean()
    loss = loss + 0.1 * sum((i + 1) * hook.r_feature for i, hook in enumerate(hooks))
    (gradient,) = torch.autograd.grad(loss, x)
    return [loss.detach(), *(hook.r_feature.detach() for hook in hooks)], gradient


def check(ours: list, theirs: list) -> None:
    for (values, gradient), (expected, slope) in zip(ours, theirs, strict=True):
        for value, reference in zip(values, expected, strict=True):
            assert abs(value - reference) <= BOUND * abs(reference)
        assert (gradient - slope).norm() <= BOUND * slope.norm()


def training_data() -> list[tuple[Tensor, Tensor]]:
    """Two batches of different size, every class in both."""
    return [
        (1 + 2 * images(10, batch=4), torch.tensor([0, 1, 2, 1])),
        (1 + 2 * images(11, batch=3), torch.tensor([2, 0, 1])),
    ]


def seen_by(
    model: nn.Module, layer: nn.Module, batches: list[Tensor] | None = None
) -> list[Tensor]:
    """The inputs of a layer for some batches, by default those of the training data."""
    seen: list[Tensor] = []
    recorder = Recorder(layer, seen.append)
    for x in batches or [x for x, _ in training_data()]:
        model(x)
    recorder.close()
    return seen


def stored_target(model: nn.Module, layer: nn.Module) -> list[Tensor]:
    """A BatchNorm's running statistics; else the mean of the batches' statistics, by size."""
    if isinstance(layer, nn.BatchNorm2d):
        return [layer.running_mean.clone(), layer.running_var.clone()]
    seen = seen_by(model, layer)
    parts = [[s * len(x) / 7 for s in all_stats(x)] for x in seen]
    return [sum(statistic) for statistic in zip(*parts, strict=True)]


def class_tables(model: nn.Module, layer: nn.Module) -> list[Tensor]:
    """Means over the images of a class of statistics inside an image: (classes, size) each."""
    labels = torch.cat([label for _, label in training_data()])
    rows = []
    for x in torch.cat(seen_by(model, layer)):
        stats = [*moments(x.flatten(1))]
        if isinstance(layer, nn.Conv2d):
            stats += cells(x[None])
        rows.append(stats)
    tables = []
    for statistic in zip(*rows, strict=True):
        values = torch.stack(statistic)
        tables.append(torch.stack([values[labels == c].mean(0) for c in range(CLASSES)]))
    return tables


def gvbsm_hooks(model: nn.Sequential, folder: Path, momentum: float, drop: float = 0.0) -> list:
    return [
        gvbsm.BNFeatureHook(layer, training_momentum=momentum)
        if isinstance(layer, nn.BatchNorm2d)
        else gvbsm.ConvFeatureHook(
            layer,
            save_path=folder,
            data_number=7,
            name=f"Sequential={i}",
            training_momentum=momentum,
            drop_rate=drop,
        )
        for i, layer in enumerate(hooked(model))
    ]


def edc_hooks(model: nn.Sequential, folder: Path, category_aware: str = "global") -> list:
    hooks: list = []
    for i, layer in enumerate(hooked(model)):
        common = {
            "save_path": folder,
            "name": f"Sequential={i}",
            "training_momentum": 0.8,  # of EDC's script
            "category_aware": category_aware,
        }
        if isinstance(layer, nn.BatchNorm2d):
            hooks.append(edc.BNFeatureHook(layer, **common))
        else:
            hooks.append(edc.ConvFeatureHook(layer, data_number=7, drop_rate=0.0, **common))
    return hooks


def compared(
    model: nn.Sequential, momentum: float, targets: list[list[list[Tensor]]]
) -> list[Recorder]:
    """A recorder a layer: the mean over its targets of its moving averages' distance from them."""

    def recorder(layer: nn.Module, targets: list[list[Tensor]]) -> Recorder:
        averages = Averages(momentum)

        def measure(x: Tensor) -> Tensor:
            stats = channels(x) if isinstance(layer, nn.BatchNorm2d) else all_stats(x)
            straight = averages.straight(stats)
            return sum(distance(straight, target) for target in targets) / len(targets)

        return Recorder(layer, measure)

    return [recorder(layer, t) for layer, t in zip(hooked(model), targets, strict=True)]


def take_statistics(model: nn.Module, hooks: list) -> None:
    """The scripts' first pass over the training data."""
    collecting = [hook for hook in hooks if hasattr(hook, "set_hook")]
    for hook in collecting:
        hook.set_hook(pre=True)
    for x, labels in training_data():
        for hook in collecting:
            if hasattr(hook, "set_label"):
                hook.set_label(labels)
        model(x)
    for hook in collecting:
        hook.save()
        hook.set_hook(pre=False)


@pytest.mark.parametrize("momentum", [0.4, 0.0], ids=["script", "no-past"])
@pytest.mark.parametrize("reload", [False, True], ids=["first-run", "from-files"])
def test_gvbsm(tmp_path: Path, momentum: float, reload: bool) -> None:
    model = network()
    ours = gvbsm_hooks(model, tmp_path, momentum)
    take_statistics(model, ours)
    if reload:
        for hook in ours:
            hook.close()
        ours = gvbsm_hooks(model, tmp_path, momentum)
        assert all(hook.load_tag for hook in ours if isinstance(hook, gvbsm.ConvFeatureHook))
    # Three steps: the averages start at 0 and differ from the batch in each.
    found = [step(model, ours, images(seed)) for seed in (1, 2, 3)]
    for hook in ours:
        hook.close()

    first_pass = [seen_by(model, layer) for layer in hooked(model)]
    theirs = compared(model, momentum, [[stored_target(model, m)] for m in hooked(model)])
    if not reload:  # BatchNorm's hook has no set_hook: the first pass moves its averages
        for layer, recorder, seen in zip(hooked(model), theirs, first_pass, strict=True):
            for x in seen if isinstance(layer, nn.BatchNorm2d) else []:
                recorder.measure(x)
    check(found, [step(model, theirs, images(seed)) for seed in (1, 2, 3)])


@pytest.mark.parametrize("reload", [False, True], ids=["first-run", "from-files"])
def test_edc_global(tmp_path: Path, reload: bool) -> None:
    model = network()
    ours = edc_hooks(model, tmp_path)
    assert not any(hook.load_tag for hook in ours)
    take_statistics(model, ours)
    if reload:
        for hook in ours:
            hook.close()
        ours = edc_hooks(model, tmp_path)
        assert all(hook.load_tag for hook in ours)
    labels = torch.tensor([2, 1, 2])
    for hook in ours:
        hook.set_label(labels)
    found = [step(model, ours, images(seed)) for seed in (1, 2, 3)]
    for hook in ours:
        hook.close()

    targets = []
    for layer in hooked(model):
        tables = class_tables(model, layer)
        if isinstance(layer, nn.Conv2d):  # the official file has the cells' two under each other
            tables[2], tables[3] = tables[3], tables[2]
        classes = [table[labels].mean(0) for table in tables]
        targets.append([stored_target(model, layer), classes])
    theirs = compared(model, 0.8, targets)
    check(found, [step(model, theirs, images(seed)) for seed in (1, 2, 3)])


def test_edc_local_compares_with_the_real_batch(tmp_path: Path) -> None:
    model = network()
    ours = edc_hooks(model, tmp_path, "local")
    for hook in ours:
        hook.set_tea()
    real = images(20, batch=5)
    model(real)
    for hook in ours:
        hook.set_ori()
    found = [step(model, ours, images(seed)) for seed in (1, 2)]
    for hook in ours:
        hook.close()

    targets = []
    for layer in hooked(model):
        (seen,) = seen_by(model, layer, [real])
        stats = channels(seen) if isinstance(layer, nn.BatchNorm2d) else all_stats(seen)
        targets.append([list(stats)])
    theirs = compared(model, 0.8, targets)
    check(found, [step(model, theirs, images(seed)) for seed in (1, 2)])


def test_the_files_are_the_official_ones(tmp_path: Path) -> None:
    model = network()
    hooks = edc_hooks(model, tmp_path)
    take_statistics(model, hooks)
    convolution, batch_norm = hooked(model)[2], hooked(model)[1]
    names = ("running_dd_mean", "running_dd_var", "running_patch_mean", "running_patch_var")
    with np.load(tmp_path / "ConvFeatureHook/Sequential=2/running.npz") as archive:
        for name, value in zip(names, stored_target(model, convolution), strict=True):
            np.testing.assert_allclose(archive[name], value.numpy(), rtol=1e-12)
    tables = class_tables(model, convolution)
    with np.load(tmp_path / "ConvFeatureHook/class_1/Sequential=2/running.npz") as archive:
        # EDC's save() writes means as variances and variances as means.
        for name, table in zip(names, [*tables[:2], tables[3], tables[2]], strict=True):
            np.testing.assert_allclose(archive[name], table[1].numpy(), rtol=1e-12)
    with np.load(tmp_path / "BNFeatureHook/class_2/Sequential=1/running.npz") as archive:
        assert sorted(archive.files) == ["running_dd_mean", "running_dd_var"]
        for name, table in zip(names, class_tables(model, batch_norm), strict=False):
            np.testing.assert_allclose(archive[name], table[2].numpy(), rtol=1e-12)


def test_a_second_first_pass_changes_nothing(tmp_path: Path) -> None:
    # The scripts repeat the pass for all layers when the file of one is missing.
    model = network()
    hooks = edc_hooks(model, tmp_path)
    take_statistics(model, hooks)
    for hook in hooks:
        hook.close()
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.npz")}
    lost = tmp_path / "ConvFeatureHook/class_0/Sequential=0/running.npz"
    lost.unlink()
    hooks = edc_hooks(model, tmp_path)
    assert [hook.load_tag for hook in hooks] == [False, True, True, True, True]
    take_statistics(model, hooks)
    for path, content in files.items():
        with np.load(path) as now, np.load(io.BytesIO(content)) as before:
            for key in before.files:
                np.testing.assert_array_equal(now[key], before[key])


def test_dropped_forwards_are_those_of_the_official_stream(tmp_path: Path) -> None:
    model = network()
    take_statistics(model, gvbsm_hooks(model, tmp_path, 0.4))
    for layer in hooked(model):
        layer._forward_pre_hooks.clear()
    hooks = gvbsm_hooks(model, tmp_path, 0.4, drop=0.4)
    convolutions = [hook for hook in hooks if isinstance(hook, gvbsm.ConvFeatureHook)]
    random.seed(3)
    dropped = []
    for seed in range(8):
        x = images(seed)
        model(x)
        for hook in convolutions:
            dropped.append(bool(hook.r_feature.shape == (1,) and hook.r_feature.item() == 0.0))
    after = random.random()
    random.seed(3)
    assert dropped == [random.random() > 0.6 for _ in dropped]
    assert after == random.random()
    assert 0 < sum(dropped) < len(dropped)


def test_errors(tmp_path: Path) -> None:
    layer, norm_layer = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(3).eval()
    with pytest.raises(ValueError, match="name is None; a module and the name"):
        gvbsm.ConvFeatureHook(layer, tmp_path)
    with pytest.raises(ValueError, match="module is None"):
        edc.ConvFeatureHook(None, tmp_path, name="a")
    with pytest.raises(ValueError, match="name is None"):
        edc.BNFeatureHook(norm_layer, tmp_path)
    with pytest.raises(TypeError, match="module is a BatchNorm module, not Conv2d"):
        gvbsm.BNFeatureHook(layer)
    with pytest.raises(ValueError, match=r"drop_rate is 1\.5; allowed are 0 to 1"):
        gvbsm.ConvFeatureHook(layer, tmp_path, name="a", drop_rate=1.5)
    with pytest.raises(ValueError, match="training_momentum is -1; allowed are 0 to 1"):
        gvbsm.BNFeatureHook(norm_layer, -1)
    hook = edc.BNFeatureHook(norm_layer, tmp_path, name="a")
    with pytest.raises(RuntimeError, match="call set_label"):
        norm_layer(images(0).float())
    hook.set_label(torch.tensor([0, 1, 2]))
    with pytest.raises(RuntimeError, match=r"class_0/a/running\.npz and its kin are missing"):
        norm_layer(images(0).float())
    hook.set_hook(pre=True)
    hook.set_label(torch.tensor([0, 1, CLASSES]))
    with pytest.raises(ValueError, match="targets run from 0 to 3; allowed are 0 to 2"):
        norm_layer(images(0).float())
    hook.set_label(torch.tensor([0, 1, 1]))
    norm_layer(images(0).float())
    with pytest.raises(ValueError, match=r"no sample of 1 of 3 classes \(2 "):
        hook.save()
    hook.close()
    local = edc.BNFeatureHook(norm_layer, tmp_path, name="a", category_aware="local")
    with pytest.raises(RuntimeError, match="no real images yet"):
        norm_layer(images(0).float())
    local.close()
    replica = layer._replicate_for_data_parallel
    damaged = tmp_path / "ConvFeatureHook/b/running.npz"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"PK\x03\x04 not a whole archive")
    with pytest.raises(ValueError, match=r"b/running\.npz does not hold the statistics"):
        gvbsm.ConvFeatureHook(layer, tmp_path, name="b")
    np.savez(damaged, running_dd_var=np.array([None, {}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"b/running\.npz does not hold the statistics"):
        gvbsm.ConvFeatureHook(layer, tmp_path, name="b")
    gvbsm.ConvFeatureHook(layer, tmp_path, name="c")
    with pytest.raises(RuntimeError, match="ConvFeatureHook does not work under nn"):
        replica()(images(0).float())
