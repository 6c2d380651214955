"""The loop against plain torch: schedules, optimisers, orders, views."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from train_cases import NORMALIZATION, blobs, linear, tiny

from pyddfast.data import normalize
from pyddfast.ops.augment import augment, draw_augmentation
from pyddfast.random import Purpose, permutation
from pyddfast.train import Epochs, Plan, Steps, recipe, teacher_recipe
from pyddfast.train.labels import FixedLabels, HardLabels, ViewLabels
from pyddfast.train.loop import Trainer, learning_rate, make_optimizer
from pyddfast.train.views import make_views


def test_step_schedule_is_torch_step_lr_at_the_published_length():
    r = recipe("hl", "small")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=r.lr)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=151, gamma=0.1)
    steps_per_epoch = 3
    for epoch in range(300):
        expected = scheduler.get_last_lr()[0]
        for k in range(steps_per_epoch):
            got = learning_rate(r, epoch * steps_per_epoch + k, 300 * steps_per_epoch)
            assert got == pytest.approx(expected, rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_step_schedule_shrinks_with_the_budget():
    r = recipe("hl", "small")
    # 30 of 300 epochs, 2 steps each: 151/300 of 60 steps is 30.2.
    rates = [learning_rate(r, s, 60) for s in range(60)]
    assert rates[:30] == [0.01] * 30
    assert rates[30:] == pytest.approx([0.001] * 30, rel=1e-12)


def test_cosine_with_warmup():
    r = recipe("sl", "large")
    total, warmup = 2000, 50
    rates = [learning_rate(r, s, total) for s in range(total)]
    assert rates[:warmup] == pytest.approx([1e-3 * (s + 1) / 50 for s in range(50)], rel=1e-12)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=r.lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total - warmup)
    for step in range(warmup, total):
        # torch's recursion gathers rounding; near the end the rate itself is about 1e-9.
        assert rates[step] == pytest.approx(scheduler.get_last_lr()[0], rel=1e-6, abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_stretched_cosine_ends_at_half():
    r = recipe("sl", "small", cosine_stretch=2.0)
    assert learning_rate(r, 999, 1000) == pytest.approx(
        0.5e-3 * (1 + math.cos(math.pi * 0.999 / 2)), rel=1e-12
    )


def test_weight_decay_groups():
    model = tiny(0)
    adamw = make_optimizer(model, recipe("sl", "small"))
    assert isinstance(adamw, torch.optim.AdamW)
    decayed, rest = adamw.param_groups
    assert [p.ndim for p in decayed["params"]] == [4, 2]
    assert decayed["weight_decay"] == 0.01
    assert rest["weight_decay"] == 0
    assert len(rest["params"]) == 4
    sgd = make_optimizer(model, recipe("hl", "small"))
    assert isinstance(sgd, torch.optim.SGD)
    assert len(sgd.param_groups) == 1
    assert len(sgd.param_groups[0]["params"]) == 6
    with pytest.raises(ValueError, match="no trainable"):
        make_optimizer(nn.Flatten(), recipe("sl"))


def trainer(model, r, plan, data, seed=3, labels=None):
    views = make_views(data.images, data.normalization, r, seed=seed)
    return Trainer(model, r, plan, views, labels or HardLabels(data.labels), seed=seed)


@pytest.mark.parametrize("schedule", ["step", "step-reset"])
def test_hl_training_is_a_plain_torch_loop(schedule):
    data, r = blobs(), recipe(
        "hl", "small", augmentation="none", batch_size=8, epochs=6, milestone=3, lr=0.05,
        schedule=schedule,
    )  # fmt: skip
    model = linear(0)
    twin = copy.deepcopy(model)
    run = trainer(model, r, Plan(18, 8, False, Epochs(6)), data)
    while not run.done:
        run.run_step()

    def sgd(lr):
        return torch.optim.SGD(
            twin.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True
        )

    optimizer, x = sgd(0.05), normalize(data.images, NORMALIZATION)
    for epoch in range(6):
        if epoch == 3 and schedule == "step-reset":
            optimizer = sgd(0.005)
        if epoch == 3:
            optimizer.param_groups[0]["lr"] = 0.005
        order = permutation(3, Purpose.EPOCH_ORDER, 18, epoch)
        for ids in (order[:8], order[8:16], order[16:]):
            optimizer.zero_grad()
            F.cross_entropy(twin(x[ids]), data.labels[ids]).backward()
            optimizer.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert torch.equal(run.visits, torch.full((18,), 6))


def test_labels_give_the_published_losses():
    g = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(4, 3, generator=g), 9 * torch.randn(4, 3, generator=g)
    ids = torch.tensor([2, 0, 3, 1])

    def kl(p_logits, q_logits, t=20.0):
        p = (p_logits.double() / t).log_softmax(1)
        q = (q_logits.double() / t).log_softmax(1)
        return (q.exp() * (q - p)).sum(1).mean()

    fixed = FixedLabels(teacher, 20.0, t_squared=False, source="test").loss(student, ids, student)
    torch.testing.assert_close(fixed.double(), kl(student, teacher[ids]), rtol=1e-5, atol=1e-9)
    squared = FixedLabels(teacher, 20.0, t_squared=True, source="test").loss(student, ids, student)
    torch.testing.assert_close(squared, 400 * fixed, rtol=1e-6, atol=0)
    network = nn.Linear(5, 3)
    views = torch.randn(4, 5, generator=g)
    online = ViewLabels(network, 20.0, t_squared=False).loss(student, ids, views)
    torch.testing.assert_close(online.double(), kl(student, network(views)), rtol=1e-5, atol=1e-9)
    labels = torch.tensor([0, 1, 2, 1])
    hard = HardLabels(labels).loss(student, ids, student)
    expected = -student.double().log_softmax(1)[torch.arange(4), labels[ids]].mean()
    torch.testing.assert_close(hard.double(), expected, rtol=1e-6, atol=0)


def test_the_teacher_gets_no_gradient_and_sees_the_students_view():
    data, seen = blobs(), []

    class Recorder(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = linear(0)

        def forward(self, x):
            seen.append(x.clone())
            return self.net(x)

    teacher, student = Recorder().eval(), Recorder()
    r = recipe("sl-kd", "large", batch_size=9)
    run = trainer(
        student, r, Plan(18, 9, False, Epochs(1)), data,
        labels=ViewLabels(teacher, 20.0, t_squared=False),
    )  # fmt: skip
    run.run_step()
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())


# Exactly for patches with factor > 1 in the large-scale recipes.
@pytest.mark.parametrize(
    ("kind", "factor", "patch_shuffle", "shuffled"),
    [
        ("patches", 2, "auto", True),
        ("patches", 1, "auto", False),
        ("real", 2, "auto", False),
        ("synthetic", 2, "auto", False),
        ("patches", 2, "off", False),
    ],
)
def test_patch_shuffle_applies_exactly_to_patches(kind, factor, patch_shuffle, shuffled):
    data, r = blobs(), recipe("hl", "large", 10, patch_shuffle=patch_shuffle)
    ids, visits = torch.arange(18), torch.arange(18) % 4
    got = make_views(data.images, NORMALIZATION, r, seed=5, kind=kind, factor=factor)(
        ids, visits, 2
    )
    params = draw_augmentation(5, ids, visits, 2, (8, 8), factor=2 if shuffled else 1)
    expected = augment(data.images, ids, params, mean=(0.5,), std=(0.25,))
    assert torch.equal(got, expected)
    assert (params.row_order is not None) == shuffled


def test_small_scale_ignores_the_factor():
    data, r = blobs(), recipe("hl", "small")
    ids = torch.arange(18)
    plain = make_views(data.images, NORMALIZATION, r, seed=5)(ids, ids, 0)
    patches = make_views(data.images, NORMALIZATION, r, seed=5, kind="patches", factor=2)
    assert torch.equal(patches(ids, ids, 0), plain)


def test_dropout_is_keyed_and_global_generators_are_left_alone():
    data, r = blobs(), teacher_recipe(2, batch_size=9)
    weights = []
    for disturb in (0, 5):
        torch.rand(disturb)
        torch.manual_seed(1)
        model = tiny(0)
        before = torch.get_rng_state()
        run = trainer(model, r, Plan(18, 9, False, Epochs(2)), data)
        while not run.done:
            assert torch.equal(torch.get_rng_state(), before)
            run.run_step()
            torch.rand(disturb)
            before = torch.get_rng_state()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_batch_norm_on_one_image_is_refused_before_any_work():
    data = blobs()
    r = recipe("hl", "small", batch_size=6)
    with pytest.raises(ValueError, match="1 is batch norm"):
        trainer(tiny(0), r, Plan(18, 1, False, Epochs(1)), data)
    # 13 = 6 + 7: the single last image joins its neighbours.
    trainer(tiny(0), r, Plan(13, 6, False, Steps(4)), blobs()).run_step()


def test_a_diverged_loss_is_none():
    data, r = blobs(), recipe("hl", "small", lr=1e30)
    run = trainer(linear(0), r, Plan(18, 9, False, Epochs(4)), data)
    while not run.done:
        run.run_step()
    assert run.read_loss() is None
    assert run.read_loss() == 0.0
