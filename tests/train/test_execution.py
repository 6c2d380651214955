"""How a training is executed changes its result by rounding alone; the moving average restated."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from train_cases import NORMALIZATION, blobs, distilled, linear, tiny

from pyddfast.data import ResidentDataset, write_layout
from pyddfast.models import create
from pyddfast.nn import NormReluPool
from pyddfast.train import (
    Epochs,
    Execution,
    Plan,
    Samples,
    evaluate,
    recipe,
    teacher_recipe,
    train_student,
    train_teacher,
)
from pyddfast.train.batch_norm import HostBatchNorm
from pyddfast.train.distributed import divide
from pyddfast.train.labels import HardLabels, ViewLabels
from pyddfast.train.loop import Trainer
from pyddfast.train.views import make_views

pytestmark = pytest.mark.usefixtures("one_thread")


def deep(seed):
    """Two layers and no batch norm, whose statistics would be of a part."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )


def run(model, r, *, execution=Execution(), labels=None, batch_size=8, epochs=3):  # noqa: B008
    data, model = blobs(), copy.deepcopy(model)
    views = make_views(
        data.images, NORMALIZATION, r, seed=3, kind="patches", factor=2,
        dtype=execution.dtype, channels_last=execution.channels_last,
    )  # fmt: skip
    trainer = Trainer(
        model, r, Plan(18, batch_size, False, Epochs(epochs)), views,
        labels or HardLabels(data.labels), seed=3, execution=execution,
    )  # fmt: skip
    while not trainer.done:
        trainer.run_step()
    return trainer


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


# 3 does not divide the batch of 8; in the last batch, of 2, some of 5 passes would be empty.
@pytest.mark.parametrize("accumulate", [2, 3, 5])
@pytest.mark.parametrize("regime", ["hl", "sl-kd"])
def test_accumulated_gradients_are_those_of_the_batch(regime, accumulate):
    r = recipe(regime, "large", 10, batch_size=8, lr=0.01)
    teacher = ViewLabels(deep(5), 4.0, t_squared=False) if regime == "sl-kd" else None
    model = deep(0)
    whole = run(model, r, labels=teacher)
    parts = run(model, r, labels=teacher, execution=Execution(accumulate=accumulate))
    assert torch.equal(weights(run(model, r, labels=teacher)), weights(whole))
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-4, atol=1e-6)


def test_instance_norms_are_one_operator_unless_it_is_declined():
    r, net = (
        teacher_recipe(3, augmentation="none", batch_size=8),
        create("convnet-d2", 3, 1, 8, width=4),
    )
    fused, plain = run(net, r), run(net, r, execution=Execution(fused=False))
    swapped = [
        [m for m in t.model.modules() if isinstance(m, NormReluPool)] for t in (fused, plain)
    ]
    assert [len(found) for found in swapped] == [2, 0]
    assert fused.model.state_dict().keys() == plain.model.state_dict().keys()
    torch.testing.assert_close(weights(fused), weights(plain), rtol=1e-4, atol=1e-5)
    assert not torch.equal(weights(fused), torch.cat([p.flatten() for p in net.parameters()]))


@pytest.mark.parametrize("augmentation", ["rrc", "dsa", "none"])
def test_the_views_of_a_part_are_those_of_the_batch(augmentation):
    data = blobs()
    scale = "large" if augmentation == "rrc" else "small"
    r = recipe("sl-kd", scale, augmentation=augmentation)
    views = make_views(data.images, NORMALIZATION, r, seed=5, kind="patches", factor=2)
    ids, visits = torch.arange(18).flip(0), torch.arange(18) % 4
    whole = views(ids, visits, 2)
    if augmentation == "rrc":
        plain = make_views(data.images, NORMALIZATION, recipe("sl", "large"), seed=5)
        assert not torch.equal(whole, plain(ids, visits, 2))  # CutMix does something
    parts = [views(ids, visits, 2, part) for part in divide(18, 4)]
    assert [len(part) for part in parts] == [4, 5, 4, 5]
    assert torch.equal(torch.cat(parts), whole)


def test_the_moving_average_is_evaluated_and_saved(tmp_path):
    decay, model, seen = 0.9, tiny(0), []
    data, test = blobs(), blobs(per_class=20, seed=1)
    r = recipe("hl", "small", batch_size=9, lr=0.05, ema=decay)
    views = make_views(data.images, NORMALIZATION, r, seed=0)
    trainer = Trainer(
        model, r, Plan(18, 9, False, Epochs(3)), views, HardLabels(data.labels), seed=0
    )
    while not trainer.done:
        trainer.run_step()
        seen.append({k: v.double().clone() for k, v in model.state_dict().items()})
    average = seen[0]
    for state in seen[1:]:
        average = {k: decay * average[k] + (1 - decay) * v for k, v in state.items()}
    got = trainer.result.state_dict()
    for name in ("0.weight", "1.running_var", "5.bias"):
        torch.testing.assert_close(got[name].double(), average[name], rtol=1e-5, atol=1e-7)
        assert not torch.equal(got[name], model.state_dict()[name])

    out = train_student(
        distilled(data), "hl", tiny, test_set=test, recipe=r, budget=Epochs(3), seeds=(0,),
        out=tmp_path / "run", progress=False, device="cpu",
    )  # fmt: skip
    from safetensors.torch import load_file

    student = tiny(0)
    student.load_state_dict(load_file(out.seeds[0].weights))
    assert evaluate(student, test) == out.seeds[0].last_accuracy
    teacher = train_teacher(
        data, tiny, test_set=test, recipe=teacher_recipe(3, batch_size=9, ema=decay),
        out=tmp_path / "teacher", progress=False, device="cpu",
    )  # fmt: skip
    plain = train_teacher(
        data, tiny, test_set=test, recipe=teacher_recipe(3, batch_size=9), progress=False,
        device="cpu",
    )  # fmt: skip
    assert teacher.record["accuracy"] == evaluate(teacher.model, test)
    again = load_file(tmp_path / "teacher" / "teacher.safetensors")
    assert torch.equal(again["5.bias"], teacher.model.state_dict()["5.bias"])
    assert not torch.equal(again["5.bias"], plain.model.state_dict()["5.bias"])
    with pytest.raises(ValueError, match="ema must lie between 0 and 1"):
        recipe("hl", "small", ema=1.0)


def test_bf16_stays_near_float32():
    model, r = deep(0), recipe("hl", "large", 10, batch_size=8, lr=0.05)
    exact = run(model, r)
    execution = Execution(precision="bf16", channels_last=True)
    rounded = run(model, r, execution=execution)
    moved = (weights(exact) - torch.cat([p.detach().flatten() for p in model.parameters()])).norm()
    error = (weights(rounded) - weights(exact)).norm()
    # bf16 keeps 8 bits: some thousandths of a gradient, over nine steps.
    assert 0 < error < 0.05 * moved
    assert all(p.dtype == torch.float32 for p in rounded.model.parameters())
    assert rounded.views(torch.arange(4), torch.zeros(4, dtype=torch.int64), 0).dtype == (
        torch.bfloat16
    )


def test_compiled_training_is_the_eager_one():
    model, r = deep(0), recipe("hl", "large", 10, batch_size=9, lr=0.05)
    eager = run(model, r, batch_size=9, epochs=2)
    compiled = run(model, r, execution=Execution(compile=True), batch_size=9, epochs=2)
    torch.testing.assert_close(weights(compiled), weights(eager), rtol=1e-4, atol=1e-6)
    assert compiled.read_loss() == pytest.approx(eager.read_loss(), rel=1e-5)


def test_dropout_differs_between_the_parts_of_a_batch():
    data, r = blobs(), recipe("hl", "small", augmentation="none", batch_size=8)
    views = make_views(data.images, NORMALIZATION, r, seed=3)
    model, masks = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3)), []
    model[1].register_forward_hook(lambda module, given, out: masks.append(out == 0))
    trainer = Trainer(
        model, r, Plan(16, 8, False, Epochs(1)), views, HardLabels(data.labels[:16]), seed=3,
        execution=Execution(accumulate=2),
    )  # fmt: skip
    trainer.run_step()
    assert len(masks) == 2
    assert not torch.equal(*masks)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_host_batch_norm_in_one_process_is_batch_norm(momentum, tmp_path):
    torch.manual_seed(0)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        norm = nn.BatchNorm2d(3, momentum=momentum)
        nn.init.uniform_(norm.weight)
        nn.init.uniform_(norm.bias)
        twin = HostBatchNorm(copy.deepcopy(norm), None)
        assert twin.state_dict().keys() == norm.state_dict().keys()
        for _ in range(2):
            x, up = 10 + torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
            grads = []
            for layer in (norm, twin):
                leaf = x.clone().requires_grad_()
                y = layer(leaf)
                y.backward(up)
                grads.append((y, leaf.grad, layer.weight.grad, layer.bias.grad))
            for a, b in zip(*grads, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        for name, value in norm.state_dict().items():
            torch.testing.assert_close(twin.state_dict()[name], value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(twin.eval()(x), norm.eval()(x), rtol=1e-5, atol=1e-5)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"precision": "fp16"}, ValueError, "precision must be one of"),
        ({"batch_norm": "none"}, ValueError, "batch_norm must be one of"),
        ({"accumulate": 0}, ValueError, "accumulate must be at least 1"),
        ({"accumulate": 1.5}, TypeError, "accumulate must be an int"),
        ({"compile": "yes"}, TypeError, "compile must be True or False"),
        ({"cuda_graph": True, "accumulate": 2}, ValueError, "exclude each other"),
    ],
)
def test_unknown_ways_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        Execution(**change)


def test_a_cuda_graph_needs_cuda(tmp_path):
    with pytest.raises(ValueError, match="cuda_graph needs a CUDA device, got cpu"):
        train_student(
            distilled(blobs()), "hl", linear, test_set=blobs(), device="cpu",
            execution=Execution(cuda_graph=True), out=tmp_path / "run",
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_another_execution_is_warned_of_other_batch_norm_statistics_are_refused(tmp_path):
    def again(execution):
        return train_student(
            distilled(blobs()), "hl", linear, test_set=blobs(), budget=Samples(18), seeds=(0,),
            execution=execution, out=tmp_path / "run", progress=False, device="cpu",
        )  # fmt: skip

    assert again(Execution()).config["execution"]["precision"] == "fp32"
    with pytest.warns(UserWarning, match="execution.precision was 'fp32', now 'bf16'"):
        again(Execution(precision="bf16"))
    with pytest.raises(ValueError, match="batch_norm_parts was 1, now 2"):
        again(Execution(accumulate=2))


# Accumulation divides the batch that CutMix mixes; DSA reads single images.
@pytest.mark.parametrize(
    ("regime", "scale", "accumulate"),
    [("hl", "large", 1), ("sl-kd", "large", 2), ("hl", "small", 1)],
)
def test_a_streamed_set_trains_the_same_student(tmp_path, regime, scale, accumulate):
    data = blobs()
    root = write_layout(distilled(data), tmp_path / "set", "sre2l")
    used = recipe(regime, scale, 10, batch_size=8)

    def student(limit):
        given = ResidentDataset.open(
            root, normalization=NORMALIZATION, limit_bytes=limit, on_overflow="stream"
        )
        assert (given.images is None) == (limit == 0)
        return train_student(
            given, regime, deep, test_set=given if limit == 0 else data, recipe=used,
            teacher=deep(5) if regime == "sl-kd" else None, budget=Epochs(2), seeds=(0,),
            execution=Execution(accumulate=accumulate), out=tmp_path / f"run{limit}",
            progress=False, device="cpu",
        )  # fmt: skip

    a, b = student(0), student(10**6)
    assert a.seeds[0].weights.read_bytes() == b.seeds[0].weights.read_bytes()
    assert a.seeds[0].history == b.seeds[0].history
    assert a.config["set"] == b.config["set"]


def test_a_set_on_another_device_is_refused(tmp_path):
    elsewhere = ResidentDataset(distilled(blobs()))
    elsewhere.device = torch.device("meta")
    with pytest.raises(ValueError, match="the set is on device meta, the training on cpu"):
        train_student(elsewhere, "hl", linear, test_set=blobs(), out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
