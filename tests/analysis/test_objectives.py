"""Objectives equal the losses that the methods compute on the same images, and float64."""

from __future__ import annotations

import json
import math

import pytest
import small_scale_cases
import synthesis_cases
import torch
from expert_cases import experts
from PIL import Image
from torch.nn import functional as F

from pyddfast.analysis.objectives import (
    DCObjective,
    DMObjective,
    DWAObjective,
    FunctionObjective,
    SRe2LObjective,
    TMObjective,
    evaluate_objectives,
)
from pyddfast.analysis.objectives.batch_norm import slot_batches
from pyddfast.data import DistilledSet, ImageDataset, ImageFolder, normalize
from pyddfast.methods import DCConfig, DMConfig, DWAConfig, SRe2LConfig, TMConfig, dwa, sre2l, tm
from pyddfast.methods.dc import GradientWork
from pyddfast.methods.dm import DMWork
from pyddfast.methods.recover import Job
from pyddfast.methods.small_scale import Networks, RealImages
from pyddfast.models import create
from pyddfast.ops import gradient_distance
from pyddfast.train.distributed import Ranks

CPU = torch.device("cpu")
SQUARES = small_scale_cases.squares()


def first_row(folder):
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])


def picked(data: ImageDataset, per_class: int) -> DistilledSet:
    members = [(data.labels == c).nonzero()[:per_class, 0] for c in range(data.num_classes)]
    rows = torch.cat(members)
    return DistilledSet(
        data.images[rows], data.labels[rows], data.num_classes, data.normalization, data.class_names
    )


def recovered(method, config, tmp_path, objective):
    """The recover step's own loss of the first step, and the objective's of the first images."""
    data, teacher = synthesis_cases.dataset(), synthesis_cases.teacher()
    # One image a class: the whole set is one batch.
    one = picked(data, 1)
    method(data, teacher, config, source=one, job=Job(out=tmp_path / "run", device="cpu"))
    (value,) = objective(teacher)([one])
    return first_row(tmp_path / "run"), value


SRE2L = {"ipc": 1, "iterations": 1, "init": "set", "preset": "cifar-100", "jitter": (0, 0)}


# Plain, and with the recover step's own augmentation.
@pytest.mark.parametrize(("crop", "jitter"), [(False, (0, 0)), (True, (-3, 3))])
def test_sre2l_is_the_recover_steps_loss(tmp_path, crop, jitter):
    config = SRe2LConfig(**{**SRE2L, "crop": crop, "jitter": jitter})
    row, value = recovered(
        sre2l,
        config,
        tmp_path,
        lambda teacher: SRe2LObjective(
            teacher, statistics="batches", first_multiplier=10.0, ce=True, crop=crop, jitter=jitter
        ),
    )
    assert value.parts["bn"] == pytest.approx(row["bn"], rel=1e-5)
    assert value.parts["cross_entropy"] == pytest.approx(row["cross_entropy"], rel=1e-5)
    assert value.value == pytest.approx(row["cross_entropy"] + 0.01 * row["bn"], rel=1e-5)


def test_dwa_is_the_recover_steps_loss_with_perturbed_weights(tmp_path):
    config = DWAConfig(**SRE2L, var_weight=11.0, adjust_steps=3, crop=False, rho=0.5)
    row, value = recovered(
        dwa,
        config,
        tmp_path,
        lambda teacher: DWAObjective(
            teacher,
            statistics="batches",
            first_multiplier=10.0,
            var_weight=11.0,
            perturb=True,
            adjust_steps=3,
            rho=0.5,
        ),
    )
    assert value.value == pytest.approx(row["bn"], rel=1e-5)
    data, teacher = synthesis_cases.dataset(), synthesis_cases.teacher()
    plain = DWAObjective(teacher, statistics="batches", first_multiplier=10.0, var_weight=11.0)
    assert plain([picked(data, 1)])[0].value != pytest.approx(row["bn"], rel=1e-3)


# Whole sets: any batch size, one that does not divide the set as well, gives the same.
@pytest.mark.parametrize("batch_size", [7, 100])
# Equation 1 and equation 2 with the official weight.
@pytest.mark.parametrize(("kind", "var_weight"), [(SRe2LObjective, 1.0), (DWAObjective, 2.0)])
def test_statistics_of_the_whole_set_in_float64(kind, var_weight, batch_size):
    data, teacher = synthesis_cases.dataset(), synthesis_cases.teacher()
    one = picked(data, 3)
    (value,) = kind(teacher, batch_size=batch_size)([one])
    wide = synthesis_cases.teacher().double()
    hooks = [synthesis_cases.Hook(m) for m in wide.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for hook in hooks:
        hook.var_weight = var_weight
    with torch.no_grad():
        wide(normalize(one.images, one.normalization, dtype=torch.float64))
    assert value.value == pytest.approx(float(sum(hook.value for hook in hooks)), rel=1e-5)
    layers = [value.parts[f"layer {number}"] for number in range(len(hooks))]
    assert layers == pytest.approx([float(hook.value) for hook in hooks], rel=1e-5)


def test_batches_are_the_recover_steps_slots_and_average():
    assert [b.tolist() for b in slot_batches(torch.tensor([1, 0, 0, 1, 0]), 2)] == [
        [1, 0], [2, 3], [4],
    ]  # fmt: skip
    data, teacher = synthesis_cases.dataset(), synthesis_cases.teacher()
    both, first = picked(data, 2), picked(data, 1)
    second = both_minus(both)
    objective = SRe2LObjective(teacher, statistics="batches")
    values = [v.value for v in objective([both, first, second])]
    assert values[0] == pytest.approx((values[1] + values[2]) / 2, rel=1e-6)
    whole = SRe2LObjective(teacher)([both])[0].value
    assert whole < values[0]  # the batches' means scatter around the whole's


def both_minus(both):
    rows = torch.arange(1, len(both), 2)
    return DistilledSet(
        both.images[rows], both.labels[rows], both.num_classes, both.normalization, both.class_names
    )


def test_a_teacher_is_left_as_it_was():
    teacher = synthesis_cases.teacher().train()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    objective = DWAObjective(teacher, statistics="batches", perturb=True)
    objective([picked(synthesis_cases.dataset(), 1)])
    assert teacher.training
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    assert not any(m._forward_pre_hooks for m in teacher.modules())


# As published, equation 5 without a class index, and without augmentation.
@pytest.mark.parametrize(
    ("per_class", "strategy"), [(True, "color_crop_cutout"), (False, "flip_scale"), (True, "")]
)
def test_dm_is_the_methods_loss(per_class, strategy):
    one = picked(SQUARES, 2)
    config = DMConfig(
        ipc=2, real_batch=5, per_class=per_class, dsa_strategy=strategy, lr_img=1.0, init="real"
    )
    steps = []
    for step in range(2):
        real = RealImages(SQUARES, CPU, 0)
        networks = Networks(small_scale_cases.MODEL, real, 0, fused=True)
        work = DMWork(real, networks, config, Ranks())
        with torch.no_grad():
            work.synthetic.images.copy_(normalize(one.images, one.normalization))
        steps.append(float(work.run_step(step)))
    objective = DMObjective(
        SQUARES,
        small_scale_cases.MODEL,
        networks=2,
        per_class=per_class,
        real_batch=5,
        dsa_strategy=strategy,
        batch_size=4,
    )
    (value,) = objective([one])
    assert list(value.parts.values()) == pytest.approx(steps, rel=1e-4)
    assert value.value == pytest.approx(sum(steps) / 2, rel=1e-4)


# Instance norm, and batch norm with the statistics of real images.
@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("strategy", ["", "flip_crop"])
def test_dc_is_the_methods_first_loss(norm, strategy):
    model = ("convnet-d2", {"width": 6, "norm": norm})
    one = picked(SQUARES, 2)
    config = DCConfig(
        ipc=2, real_batch=5, outer_loops=1, inner_epochs=0, lr_img=0.1, iterations=2, init="real",
        dsa_strategy=strategy,
    )  # fmt: skip
    steps = []
    for step in range(2):
        real = RealImages(SQUARES, CPU, 0)
        networks = Networks(model, real, 0, fused=True)
        work = GradientWork(real, networks, config, Ranks())
        with torch.no_grad():
            work.synthetic.images.copy_(normalize(one.images, one.normalization))
        steps.append(float(work.run_step(step)))
    objective = DCObjective(
        SQUARES, model, networks=2, real_batch=5, dsa_strategy=strategy, batch_size=4
    )
    (value,) = objective([one])
    assert list(value.parts.values()) == pytest.approx(steps, rel=1e-4)


def test_dc_of_all_real_images_in_float64():
    one = picked(SQUARES, 2)
    (value,) = DCObjective(SQUARES, small_scale_cases.MODEL, networks=1, batch_size=4)([one])
    real = RealImages(SQUARES, CPU, 0)
    network = Networks(small_scale_cases.MODEL, real, 0, fused=False).make(0).double()

    def gradient(source, label):
        images = normalize(source.images[source.labels == label], source.normalization)
        target = torch.full((len(images),), label)
        loss = F.cross_entropy(network(images.double()), target)
        return torch.autograd.grad(loss, list(network.parameters()))

    expected = [float(gradient_distance(gradient(one, c), gradient(SQUARES, c))) for c in range(3)]
    assert value.value == pytest.approx(sum(expected) / 3, rel=1e-4)


TM = {"syn_steps": 3, "expert_epochs": 1, "batch_syn": 4}


def test_tm_is_the_methods_loss(tmp_path):
    folder = experts(tmp_path / "experts")
    config = TMConfig(
        ipc=2, iterations=1, min_start_epoch=0, max_start_epoch=1, lr_init=0.03, lr_img=1e-9,
        lr_lr=1e-9, **TM,
    )  # fmt: skip
    made = tm(
        SQUARES, folder, config, model=small_scale_cases.MODEL,
        job=Job(out=tmp_path / "run", device="cpu"),
    )  # fmt: skip
    objective = TMObjective(folder, small_scale_cases.MODEL, start_epochs=(0, 0), lr=0.03, **TM)
    (value,) = objective([made])
    assert value.value == pytest.approx(first_row(tmp_path / "run")["loss"], rel=1e-5)


def test_tm_is_the_mean_of_its_curve_over_experts_and_takes_the_sets_rate(tmp_path):
    folder = experts(tmp_path, count=2)
    one = picked(SQUARES, 2)

    def value(**options):
        objective = TMObjective(folder, small_scale_cases.MODEL, **{**TM, **options})
        return objective([one])[0]

    whole = value(start_epochs=(0, 2))
    assert list(whole.parts) == ["epoch 0", "epoch 1", "epoch 2"]
    assert whole.value == pytest.approx(sum(whole.parts.values()) / 3)
    alone = [value(start_epochs=(t, t)).value for t in range(3)]
    assert list(whole.parts.values()) == pytest.approx(alone)
    single = value(start_epochs=(0, 2), num_experts=1)
    assert single.value != pytest.approx(whole.value)
    learned = DistilledSet(one.images, one.labels, 3, one.normalization, one.class_names, lr=0.2)
    objective = TMObjective(folder, small_scale_cases.MODEL, start_epochs=(0, 2), **TM)
    assert objective([learned])[0].value == value(start_epochs=(0, 2), lr=0.2).value


def test_tm_with_stored_labels(tmp_path):
    folder = experts(tmp_path)
    one = picked(SQUARES, 2)
    sure = DistilledSet(
        one.images, one.labels, 3, one.normalization, one.class_names,
        soft_labels=100.0 * F.one_hot(one.labels, 3).float(),
    )  # fmt: skip
    options = {"start_epochs": (0, 1), "dsa_strategy": "", **TM}
    by_class = TMObjective(folder, small_scale_cases.MODEL, **options)
    stored = TMObjective(folder, small_scale_cases.MODEL, labels="stored", **options)
    assert stored([sure])[0].value == pytest.approx(by_class([one])[0].value, rel=1e-6)
    unsure = DistilledSet(
        one.images, one.labels, 3, one.normalization, one.class_names,
        soft_labels=torch.zeros(6, 3),
    )  # fmt: skip
    assert stored([unsure])[0].value != pytest.approx(by_class([one])[0].value, rel=1e-3)


def test_repeated_images_change_nothing_where_the_loss_is_a_mean():
    """Degenerate subsets: DM, DC and the statistics see means alone."""
    one = picked(SQUARES, 2)
    rows = torch.arange(len(one)).repeat_interleave(2)
    twice = DistilledSet(one.images[rows], one.labels[rows], 3, one.normalization, one.class_names)
    for objective in (
        DMObjective(SQUARES, small_scale_cases.MODEL, networks=1),
        DCObjective(SQUARES, small_scale_cases.MODEL, networks=1),
    ):
        first, second = objective([one, twice])
        assert second.value == pytest.approx(first.value, rel=1e-5)


def test_a_folder_is_streamed(tmp_path):
    one = picked(SQUARES, 2)
    for position, label in enumerate(one.labels.tolist()):
        file = tmp_path / "abc"[label] / f"{position}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(one.images[position, 0].numpy()).save(file)
    folder = ImageFolder(tmp_path, image_size=8, normalization=SQUARES.normalization)
    objective = DMObjective(SQUARES, small_scale_cases.MODEL, networks=1)
    first, second = objective([one, folder])
    assert second.value == pytest.approx(first.value, rel=1e-6)


def test_any_callable_and_the_record():
    sets = {"two": picked(SQUARES, 2), "three": picked(SQUARES, 3)}
    mean = FunctionObjective("brightness", lambda one: float(one.images.float().mean()))
    lost = FunctionObjective("lost", lambda one: math.nan)
    teacher = synthesis_cases.teacher()
    record = evaluate_objectives([mean, lost], sets)
    assert record["sets"]["three"] == {"count": 9, "ipc": 3.0}
    for name, one in sets.items():
        found = record["objectives"]["brightness"]["values"][name]
        assert found == {"value": float(one.images.float().mean()), "parts": {}}
    assert record["objectives"]["lost"]["values"]["two"]["value"] is None
    settings = DWAObjective(teacher).settings()
    assert (settings["var_weight"], settings["ce"], settings["perturb"]) == (2.0, False, False)
    assert SRe2LObjective(teacher).settings()["first_multiplier"] == 1.0
    json.dumps({**record, "settings": settings}, allow_nan=False)
    with pytest.raises(ValueError, match=r"differently named.*brightness.*brightness"):
        evaluate_objectives([mean, mean], sets)


def test_bad_input(tmp_path):
    one, teacher = picked(SQUARES, 1), synthesis_cases.teacher()
    with pytest.raises(ValueError, match="statistics must be whole or batches, got 'all'"):
        SRe2LObjective(teacher, statistics="all")
    with pytest.raises(ValueError, match=r"perturb=True .* statistics='batches'"):
        DWAObjective(teacher, perturb=True)
    with pytest.raises(ValueError, match="networks must be at least 1, got 0"):
        DMObjective(SQUARES, networks=0)
    with pytest.raises(ValueError, match=r"start_epochs must be \(first, last\), got \(3, 2\)"):
        TMObjective(tmp_path, start_epochs=(3, 2))
    with pytest.raises(ValueError, match=r"num_classes of the set is 5, the data's 3"):
        DMObjective(SQUARES, small_scale_cases.MODEL)([synthesis_cases.dataset()])
    with pytest.raises(ValueError, match="no image of class 0"):
        DMObjective(SQUARES, small_scale_cases.MODEL)(
            [SQUARES.subset(SQUARES.labels.nonzero()[:, 0])]
        )
    with pytest.raises(ValueError, match=r"need experts of 5 epochs; those in .* have 3"):
        TMObjective(experts(tmp_path), small_scale_cases.MODEL, start_epochs=(0, 3))([one])
    instance = create("convnet-d2", 3, in_channels=1, image_size=8, width=6)
    with pytest.raises(ValueError, match=r"has no nn\.BatchNorm2d"):
        SRe2LObjective(instance)([one])
