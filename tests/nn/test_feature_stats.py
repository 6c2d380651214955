"""FeatureStatLoss and its accumulator against the official formulas restated in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pyddfast.nn import FeatureStatLoss, FeatureStats, FeatureStatsAccumulator
from tests.compat.restated import (
    Averages,
    Recorder,
    all_stats,
    cells,
    channels,
    distance,
    images,
    moments,
    planes,
)

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES, BOUND = 3, 1e-10  # relative, of value and gradient


def batches() -> list[tuple[Tensor, Tensor]]:
    """Three of unequal size; no class twice in the same share."""
    return [
        (1 + 2 * images(10, batch=4), torch.tensor([0, 1, 2, 1])),
        (1 + 2 * images(11, batch=3), torch.tensor([2, 0, 1])),
        (0.5 - images(12, batch=2), torch.tensor([2, 2])),
    ]


def layers(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.Conv2d)]


def inputs(model: nn.Module, layer: nn.Module) -> list[Tensor]:
    """What a layer sees of each batch."""
    seen: list[Tensor] = []
    recorder = Recorder(layer, seen.append)
    for x, _ in batches():
        model(x)
    recorder.close()
    return seen


def side_by_side(pairs: list[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
    """Means and variances of layers that have two or four statistics each."""
    return tuple(torch.cat([part for stats in pairs for part in stats[side::2]]) for side in (0, 1))  # type: ignore[return-value]


def accumulated(model: nn.Module, **options: object) -> FeatureStats:
    taken = FeatureStatsAccumulator(model, 16, CLASSES)
    for x, labels in batches():
        taken.update(x, labels)
    return taken.result(**options)  # type: ignore[arg-type]


def close(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours, theirs, rtol=BOUND, atol=1e-12)


@pytest.mark.parametrize("convention", ["whole", "batch_mean"])
def test_statistics_of_all_data(convention: str) -> None:
    model = planes()
    got = accumulated(model, convention=convention)
    want: list[tuple[Tensor, ...]] = []
    for layer in layers(model):
        seen = inputs(model, layer)
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            want.append((layer.running_mean, layer.running_var))
        elif convention == "whole":
            want.append(all_stats(torch.cat(seen)))
        else:
            parts = [[s * len(x) / 9 for s in all_stats(x)] for x in seen]
            want.append(tuple(sum(statistic) for statistic in zip(*parts, strict=True)))
    mean, var = side_by_side(want)
    assert close(got.mean, mean)
    assert close(got.var, var)
    # Planes of 32, 20 and 7 pixels have 4, 4 and 1 cells.
    assert got.sizes == (3, 4, 6, 6, 4, 5, 5, 1)


@pytest.mark.parametrize("within", [False, True])
def test_statistics_a_class(within: bool) -> None:
    model = planes()
    got = accumulated(model, within_images=within)
    assert got.class_mean is not None
    assert got.class_var is not None
    labels = torch.cat([label for _, label in batches()])
    for c in range(CLASSES):
        want: list[tuple[Tensor, ...]] = []
        for layer in layers(model):
            x = torch.cat(inputs(model, layer))[labels == c]
            has_cells = isinstance(layer, nn.Conv2d)
            if within:
                rows = [
                    (*moments(image.flatten(1)), *(cells(image[None]) if has_cells else ()))
                    for image in x
                ]
                want.append(tuple(torch.stack(s).mean(0) for s in zip(*rows, strict=True)))
            else:
                want.append(all_stats(x) if has_cells else channels(x))
        mean, var = side_by_side(want)
        assert close(got.class_mean[c], mean)
        assert close(got.class_var[c], var)


def test_a_stopped_pass_goes_on_and_a_class_without_images_is_nan() -> None:
    model = planes()
    whole = accumulated(model)
    first = FeatureStatsAccumulator(model, 16, CLASSES)
    for x, labels in batches()[:2]:
        first.update(x, labels)
    second = FeatureStatsAccumulator(model, 16, CLASSES)
    second.load_state_dict(first.state_dict())
    second.update(*batches()[2])
    for name in ("mean", "var", "class_mean", "class_var"):
        assert torch.equal(getattr(second.result(), name), getattr(whole, name)), name
    lonely = FeatureStatsAccumulator(model, 16, CLASSES)
    lonely.update(*batches()[2])
    made = lonely.result()
    assert made.class_var is not None
    assert made.class_var[:2].isnan().all()
    assert made.class_var[2].isfinite().all()


@pytest.mark.parametrize(
    ("momentum", "from_zero", "class_weight"),
    # G-VBSM and EDC as published; averages as the formulas mean them; other shares.
    [(0.4, True, 0.0), (0.8, True, 0.5), (0.8, False, 0.5), (0.0, False, 0.3)],
)
def test_the_distance_and_its_gradient(
    momentum: float, from_zero: bool, class_weight: float
) -> None:
    model, labels = planes(), torch.tensor([2, 0, 0])
    stats = accumulated(model)
    steps = [images(seed) for seed in range(4)]
    shares = [1 - class_weight, class_weight] if class_weight else [1.0]

    def run(loss_of: object) -> list[tuple[Tensor, Tensor]]:
        made = []
        for x in steps:
            x = x.clone().requires_grad_()
            logits = model(x)
            value = loss_of()  # type: ignore[operator]
            (slope,) = torch.autograd.grad(logits.square().mean() + 0.1 * value, x)
            made.append((value.detach(), slope))
        return made

    with FeatureStatLoss(
        model, stats, first_multiplier=7.0, momentum=momentum, from_zero=from_zero,
        class_weight=class_weight,
    ) as ours:  # fmt: skip
        ours.begin(labels)
        got = run(ours)

    assert stats.class_mean is not None
    assert stats.class_var is not None
    targets = [(stats.mean, stats.var)]
    if class_weight:
        targets.append((stats.class_mean[labels].mean(0), stats.class_var[labels].mean(0)))
    recorders, place = [], 0
    for layer in layers(model):
        count = 2 if isinstance(layer, nn.Conv2d) else 1
        parts = []  # of each target: mean, variance (, cells' mean, cells' variance)
        for mean, var in targets:
            ends, vectors = place, []
            for size in stats.sizes[_segment(stats, place) :][:count]:
                vectors += [mean[ends : ends + size], var[ends : ends + size]]
                ends += size
            parts.append(vectors)
        place = ends
        averages = Averages(momentum)

        def measure(
            x: Tensor, parts: list = parts, count: int = count, averages: Averages = averages
        ) -> Tensor:
            new = all_stats(x) if count == 2 else channels(x)
            if not averages.values and not from_zero:
                averages.values = [s.detach() for s in new]
            straight = averages.straight(new)
            return sum(
                share * distance(straight, part) for share, part in zip(shares, parts, strict=True)
            )  # type: ignore[return-value]

        recorders.append(Recorder(layer, measure))

    def theirs() -> Tensor:
        values = [recorder.r_feature for recorder in recorders]
        return 7.0 * values[0] + torch.stack(values[1:]).sum()

    for (value, slope), (expected, reference) in zip(got, run(theirs), strict=True):
        assert abs(value - expected) <= BOUND * expected
        assert (slope - reference).norm() <= BOUND * reference.norm()


def _segment(stats: FeatureStats, place: int) -> int:
    """Number of the segment that begins there."""
    ends = [0]
    for size in stats.sizes:
        ends.append(ends[-1] + size)
    return ends.index(place)


def values(loss: FeatureStatLoss, model: nn.Module, steps: range, labels: Tensor) -> list[Tensor]:
    made = []
    for seed in steps:
        model(images(seed).requires_grad_())
        made.append(loss().detach())
    return made


def test_what_is_left_out_neither_counts_nor_moves() -> None:
    model, labels = planes(), torch.tensor([0, 1, 2])
    stats = accumulated(model)
    with FeatureStatLoss(model, stats, momentum=0.5, first_multiplier=3.0) as loss:
        # The first convolution is out at the second call, all are at the third.
        keep = torch.ones(3, 5, dtype=torch.bool)
        keep[1, 0] = False
        keep[2] = False
        loss.begin(labels, keep)
        first, second, third = values(loss, model, range(3), labels)
        averages = loss.state_dict()["mean"]
        assert third == 0
        loss.begin(labels)
        whole = values(loss, model, range(2), labels)
        assert torch.allclose(first, whole[0], rtol=1e-12)
        assert second < whole[1]
        moved = loss.state_dict()["mean"]
        assert torch.equal(averages[7:], moved[7:])  # 3 channels and 4 cells of the first
        loss.begin(labels)
        values(loss, model, range(1), labels)
        assert torch.equal(averages[:7], loss.state_dict()["mean"][:7])


def test_it_goes_on_from_a_checkpoint_and_passes_forwards_without_gradients() -> None:
    model, labels = planes(), torch.tensor([0, 1, 2])
    stats = accumulated(model)
    with FeatureStatLoss(model, stats, momentum=0.8) as loss:
        loss.begin(labels)
        whole = values(loss, model, range(4), labels)
        loss.begin(labels)
        values(loss, model, range(2), labels)
        kept = {name: value.clone() for name, value in loss.state_dict().items()}
    with FeatureStatLoss(model, stats, momentum=0.8) as loss:
        loss.begin(labels)
        loss.load_state_dict(kept)
        model(images(2).requires_grad_())
        with torch.no_grad():
            model(images(9))
        assert torch.equal(loss(), whole[2])
        assert torch.equal(values(loss, model, range(3, 4), labels)[0], whole[3])


def test_a_forward_that_fails_leaves_no_statistics() -> None:
    model, labels = planes(), torch.tensor([0, 1, 2])
    with FeatureStatLoss(model, accumulated(model)) as loss:
        loss.begin(labels)
        model(images(0).requires_grad_())
        stop = model[2].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(images(1).requires_grad_())
        stop.remove()
        with torch.no_grad():
            model(images(2))
        with pytest.raises(RuntimeError, match="no forward since"):
            loss()


class Named(nn.Module):
    """A layer that gets its input by name."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.layer(input=x)
        return made


def test_an_input_by_its_name() -> None:
    model, labels = planes(), torch.tensor([0, 1, 2])
    named = nn.Sequential(
        *[Named(m) if isinstance(m, nn.Conv2d | nn.BatchNorm2d) else m for m in model]
    )
    stats = accumulated(named)
    assert torch.equal(stats.mean, accumulated(model).mean)
    with FeatureStatLoss(named, stats) as loss:
        loss.begin(labels)
        got = values(loss, named, range(1), labels)
    with FeatureStatLoss(model, stats) as loss:
        loss.begin(labels)
        assert torch.equal(got[0], values(loss, model, range(1), labels)[0])


def test_a_copy_between_forward_and_loss() -> None:
    model, labels = planes(), torch.tensor([0, 1, 2])
    with FeatureStatLoss(model, accumulated(model)) as loss:
        loss.begin(labels)
        before = model(images(0).requires_grad_())
        copied = copy.deepcopy(model)
        value = loss()
        loss.begin(labels)
        model(images(0).requires_grad_())
        assert torch.equal(copied(images(1).requires_grad_()), model(images(1)))
        assert torch.equal(copied(images(0)), before)
        model(images(0).requires_grad_())
        assert torch.equal(loss(), value)  # the copy's forwards are its own


def test_errors() -> None:
    model = planes()
    stats = accumulated(model)
    with pytest.raises(ValueError, match=r"neither nn\.BatchNorm2d nor nn\.Conv2d"):
        FeatureStatsAccumulator(nn.Linear(2, 2), 16)
    with pytest.raises(ValueError, match="'1' is in training mode"):
        FeatureStatsAccumulator(planes().train(), 16)
    alone = FeatureStats(stats.sizes, stats.mean, stats.var)
    with pytest.raises(ValueError, match=r"class_weight = 0.5 needs statistics a class"):
        FeatureStatLoss(model, alone, class_weight=0.5)
    with FeatureStatLoss(model, alone) as loss:
        with pytest.raises(RuntimeError, match="begin"):
            loss()
        loss.begin(torch.tensor([0]))
        with pytest.raises(RuntimeError, match="reached '0'"):
            loss()
    with pytest.raises(ValueError, match="no batch has been added"):
        FeatureStatsAccumulator(model, 16).result()
    model.add_module("unused", nn.Conv2d(3, 3, 1).double())
    model.forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="does not reach '0'"):
        FeatureStatsAccumulator(model, 16).update(images(0), torch.tensor([0, 0, 0]))
