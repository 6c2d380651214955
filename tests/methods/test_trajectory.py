"""TM and DATM: against the official expression in float64, guards, resumption, bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pyddfast.data import ImageDataset, Normalization, Trajectories, write_replay_buffer
from pyddfast.methods import DATMConfig, Job, TMConfig, datm, tm
from pyddfast.methods import trajectory as engine
from pyddfast.methods.datm import PAPER, start_epochs
from pyddfast.methods.datm import PUBLISHED as DATM_PUBLISHED
from pyddfast.methods.tm import PUBLISHED as TM_PUBLISHED
from pyddfast.methods.trajectory import Matching, Student, resolve_published
from pyddfast.ops.dsa import draw_dsa, dsa
from pyddfast.random import Purpose, permutation, randint
from pyddfast.train import Recipe, expert_recipe, train_experts

CLASSES, SIDE = 3, 8
RECIPE = expert_recipe(5, batch_size=12, lr=0.05)


def data(per_class=8):
    """A bright square whose place tells the class."""
    g = torch.Generator().manual_seed(3)
    labels = torch.arange(CLASSES).repeat_interleave(per_class)
    images = torch.randint(0, 120, (len(labels), 1, SIDE, SIDE), generator=g)
    for i, label in enumerate(labels.tolist()):
        images[i, 0, 2 * label : 2 * label + 3, 2 * label : 2 * label + 3] += 110
    names = tuple("abc")
    norm = Normalization((0.4,), (0.3,))
    return ImageDataset(images.to(torch.uint8), labels, names, norm, "squares", "train")


def network(seed):
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.GroupNorm(6, 6), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(6 * 16, CLASSES),
    )  # fmt: skip


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    return train_experts(
        data(), network, test_set=data(), out=tmp_path_factory.mktemp("experts") / "run", count=3,
        recipe=RECIPE, progress=False, device="cpu",
    )  # fmt: skip


SETTINGS = {
    "ipc": 2, "iterations": 5, "syn_steps": 3, "expert_epochs": 2, "min_start_epoch": 0,
    "max_start_epoch": 3, "batch_syn": 4, "lr_img": 5.0, "lr_lr": 1e-3, "lr_init": 0.05, "seed": 2,
}  # fmt: skip


def official(experts, images, labels, config, *, lr_y=0.0, momentum_y=0.0, bounds=None):
    """The published loop with a flat vector, plain autograd and SGD written out, in float64."""
    net = network(0).double()
    names = [(name, p.shape) for name, p in net.named_parameters()]
    images, labels, lr = (
        images.clone(),
        labels.clone(),
        torch.tensor(config.lr_init, dtype=torch.float64),
    )
    learned = [images, lr] + ([labels] if labels.is_floating_point() else [])
    rates = [config.lr_img, config.lr_lr, lr_y]
    momenta, moving = [0.5, 0.5, momentum_y], [torch.zeros_like(x) for x in learned]
    losses = []
    for it in range(config.iterations):
        for x in learned:
            x.requires_grad_()
        order = permutation(config.seed, Purpose.EXPERT, len(experts), it // len(experts))
        expert = int(order[it % len(experts)])
        low, high = (0, config.max_start_epoch) if bounds is None else bounds(it)
        start = int(randint(config.seed, Purpose.TRAJECTORY, low, high, it))
        theta0 = experts.flat(expert, start).double()
        target = experts.flat(expert, start + config.expert_epochs).double()
        theta, chunks = theta0.clone().requires_grad_(), []
        for step in range(it * config.syn_steps, (it + 1) * config.syn_steps):
            if not chunks:
                order = permutation(config.seed, Purpose.TRAJECTORY_BATCH, len(images), step)
                chunks = [order[k : k + config.batch_syn] for k in range(0, len(order), 4)]
            ids = chunks.pop()
            drawn = draw_dsa(config.seed, ids, torch.full_like(ids, step), step, (SIDE, SIDE))
            x, y = dsa(images[ids], drawn, align_corners=True), labels[ids]
            at, weights = 0, {}
            for name, shape in names:
                weights[name] = theta[at : at + shape.numel()].reshape(shape)
                at += shape.numel()
            z = torch.func.functional_call(net, weights, (x,))
            soft = y.softmax(1) if y.is_floating_point() else F.one_hot(y, CLASSES).double()
            loss = -(soft * z.log_softmax(1)).sum() / len(z)
            (grad,) = torch.autograd.grad(loss, theta, create_graph=True)
            theta = theta - lr * grad
        loss = (theta - target).square().sum() / (theta0 - target).square().sum()
        losses.append(float(loss.detach()))
        gradients = torch.autograd.grad(loss, learned)
        with torch.no_grad():
            for k, (x, g) in enumerate(zip(learned, gradients, strict=True)):
                moving[k] = g.clone() if it == 0 else momenta[k] * moving[k] + g
                learned[k] = x - rates[k] * moving[k]
        images, lr = learned[0].detach(), learned[1].detach()
        labels = learned[2].detach() if len(learned) > 2 else labels
        learned = [images, lr] + ([labels] if labels.is_floating_point() else [])
    return losses, images, lr, labels


@pytest.mark.parametrize("unroll", ["exact", "full"])
@pytest.mark.parametrize("learned", [False, True], ids=["tm", "datm"])
def test_iterations_are_the_official_ones(experts, unroll, learned):
    config = TMConfig(**SETTINGS, unroll=unroll)
    g = torch.Generator().manual_seed(0)
    images = torch.randn(6, 1, SIDE, SIDE, generator=g, dtype=torch.float64)
    labels = torch.arange(3).repeat_interleave(2)
    if learned:
        labels = torch.randn(6, CLASSES, generator=g, dtype=torch.float64)
    given = {"lr_y": 0.7, "momentum_y": 0.9} if learned else {}
    losses, expected, lr, soft = official(experts, images, labels, config, **given)
    student = Student(network(0).double(), fused=True)
    matching = Matching(
        config, student, experts, images, labels, lr_labels=0.7, momentum_labels=0.9,
        start_epochs=lambda it: (0, 3),
    )  # fmt: skip
    found = [matching.step(it)["loss"] for it in range(5)]
    assert found == pytest.approx(losses, rel=1e-10)
    torch.testing.assert_close(matching.images.detach(), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(matching.lr.detach(), lr, rtol=1e-10, atol=0)
    torch.testing.assert_close(matching.labels.detach(), soft, rtol=0, atol=1e-9)
    assert (expected - images).abs().max() > 0.01  # something was learned


def test_tm_makes_a_set(experts, tmp_path):
    seen = []
    job = Job(device="cpu", out=tmp_path / "run", on_progress=lambda *at: seen.append(at))
    made = tm(data(), experts.folder, TMConfig(**SETTINGS), model=network, job=job)
    assert made.images.dtype == torch.float32
    assert made.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert made.kind == "synthetic"
    assert made.lr == pytest.approx(0.05, rel=0.5)
    assert made.lr != 0.05
    assert seen == [(k, 5) for k in range(1, 6)]
    assert made.meta["skipped_iterations"] == 0
    assert made.meta["published_ipc"] == 1
    # Nearer to the experts than the first images are.
    without = tm(data(), experts, TMConfig(**{**SETTINGS, "lr_img": 1e-9, "lr_lr": 1e-12}),
                 model=network, job=Job(device="cpu"))  # fmt: skip
    assert made.meta["final_loss"] < without.meta["final_loss"]
    # The first images are real ones.
    first = without.images[0]
    real = (data().images[data().labels == 0].float() / 255 - 0.4) / 0.3
    assert (real - first).abs().amax((1, 2, 3)).min() < 1e-4


def test_datm_labels_are_the_experts(experts):
    config = DATMConfig(**{**SETTINGS, "iterations": 1, "lr_img": 1e-9}, lr_labels=1e-9,
                        first_max_start_epoch=2, expansion_end=2, threshold=10.0)  # fmt: skip
    made = datm(data(), experts, config, model=network, job=Job(device="cpu"))
    assert made.soft_labels is not None
    total, count = torch.zeros(6, CLASSES), torch.zeros(6, 1)
    with torch.no_grad():
        for expert in range(3):
            net = network(0)
            nn.utils.vector_to_parameters(experts.flat(expert, 5), net.parameters())
            z = net(made.images)
            right = z.argmax(1, keepdim=True) == made.labels[:, None]
            total, count = total + z * right, count + right
            if expert == 0:
                assert right.all()  # that is how they were chosen
    torch.testing.assert_close(made.soft_labels, total / count, rtol=1e-4, atol=1e-4)


def test_datm_start_epochs_grow():
    config = DATMConfig(min_start_epoch=2, first_max_start_epoch=10, max_start_epoch=20,
                        expansion_end=100)  # fmt: skip
    found = [start_epochs(config, it) for it in (0, 9, 10, 55, 99, 100, 5000)]
    assert found == [(2, 10), (2, 10), (2, 11), (2, 15), (2, 19), (2, 20), (2, 20)]


def test_published_values():
    """A few of the tables, and what serves between them."""
    cifar = data()
    config, ipc = resolve_published(TMConfig(ipc=20), cifar, TM_PUBLISHED)
    assert (config.preset, ipc, config.syn_steps, config.lr_init) == ("cifar-10", 10, 30, 1e-3)
    config, ipc = resolve_published(TMConfig(ipc=50, preset="cifar-100"), cifar, TM_PUBLISHED)
    assert (config.syn_steps, config.batch_syn, config.max_start_epoch) == (80, 125, 40)
    config, _ = resolve_published(DATMConfig(preset="tiny-imagenet"), cifar, DATM_PUBLISHED)
    assert (config.syn_steps, config.lr_lr, config.init, config.min_start_epoch) == (
        40, 1e-4, "correct", 10,
    )  # fmt: skip
    # Table 2 of the paper and its two readings of N.
    assert (PAPER["synthesis-table2"]["syn_steps"], PAPER["synthesis-fig4"]["syn_steps"]) == (
        80,
        20,
    )


def test_own_values_are_kept():
    config, _ = resolve_published(TMConfig(ipc=1, lr_img=3.0, syn_steps=2), data(), TM_PUBLISHED)
    assert (config.lr_img, config.syn_steps, config.lr_lr) == (3.0, 2, 1e-7)


class Killed(BaseException):
    pass


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("method", ["tm", "datm"])
def test_killed_and_resumed_gives_the_same_bytes(experts, tmp_path, monkeypatch, method):
    def run(folder):
        if method == "tm":
            return tm(data(), experts, TMConfig(**SETTINGS), model=network, job=folder)
        config = DATMConfig(**SETTINGS, lr_labels=0.5, first_max_start_epoch=2, expansion_end=4,
                            threshold=10.0)  # fmt: skip
        return datm(data(), experts, config, model=network, job=folder)

    def job(name):
        return Job(device="cpu", out=tmp_path / name, checkpoint_seconds=0.0)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked child has no others
    whole = run(job("whole"))
    metrics = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    real = Matching.step
    for kill_at in (0, 2, 4):
        pid = os.fork()
        if pid == 0:

            def step(self, iteration, kill_at=kill_at):
                row = real(self, iteration)
                if iteration == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return row

            monkeypatch.setattr(Matching, "step", step)
            run(job(str(kill_at)))
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        again = run(job(str(kill_at)))
        assert torch.equal(again.images, whole.images)
        assert again.lr == whole.lr
        assert again.soft_labels is None or torch.equal(again.soft_labels, whole.soft_labels)
        assert again.meta == whole.meta
        # The last row is the process's peak memory, the only value that differs.
        rows = (tmp_path / str(kill_at) / "metrics.jsonl").read_text().splitlines()
        assert (len(rows), rows[:-1]) == (len(metrics), metrics[:-1])
    torch.set_num_threads(threads)


def test_a_useless_loss_moves_nothing_and_is_told(experts, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_PATIENCE", 4)
    # With a start epoch of 0 and this rate the student is flung past any threshold.
    config = TMConfig(**{**SETTINGS, "lr_init": 1e30, "iterations": 9})
    with pytest.raises(ValueError, match=r"last 4 iterations, up to 3, moved nothing.*epochs \[0"):
        tm(data(), experts, config, model=network, job=Job(device="cpu", out=tmp_path / "run"))
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [('"skipped": true' in row, '"loss": null' in row) for row in rows] == [(True, True)] * 4
    # What went before counts when it goes on: three were saved, the fourth is taken again.
    job = Job(device="cpu", out=tmp_path / "saved", checkpoint_seconds=0)
    for _ in range(2):
        with pytest.raises(ValueError, match="last 4 iterations, up to 3"):
            tm(data(), experts, config, model=network, job=job)


def test_a_threshold_keeps_images_and_momentum(experts):
    config = TMConfig(**SETTINGS, threshold=1e-3)
    images = torch.randn(6, 1, SIDE, SIDE)
    student = Student(network(0), fused=True)
    matching = Matching(
        config, student, experts, images, torch.arange(3).repeat_interleave(2),
        start_epochs=lambda it: (0, 3),
    )  # fmt: skip
    row = matching.step(0)
    assert row["skipped"]
    assert row["loss"] > 1e-3
    assert torch.equal(matching.images.detach(), images)
    assert not any(name.startswith("momentum") for name in matching.state())


def test_the_learning_rate_stays_positive_or_stops(experts):
    steep = {**SETTINGS, "lr_lr": 1e3}
    config = TMConfig(**steep, threshold=1e300)
    made = tm(data(), experts, config, model=network, job=Job(device="cpu"))
    assert made.lr == pytest.approx(1e-5)  # the floor
    config = TMConfig(**steep, semantics="official")
    with pytest.raises(ValueError, match=r"learning rate is -.* after iteration \d \(expert"):
        tm(data(), experts, config, model=network, job=Job(device="cpu"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_start_epoch": 5}, "need experts of 6 epochs; those in .* have 5"),
        ({"min_start_epoch": 3}, "min_start_epoch = 3 must lie below max_start_epoch = 3"),
        ({"ipc": 9}, "ipc = 9 first images are needed of class 0"),
    ],
)
def test_what_does_not_fit(experts, changes, message):
    with pytest.raises(ValueError, match=message):
        tm(data(), experts, TMConfig(**{**SETTINGS, **changes}), model=network,
           job=Job(device="cpu"))  # fmt: skip


def test_experts_of_another_architecture(experts):
    with pytest.raises(ValueError, match=r"of another architecture: .* has shape"):
        tm(data(), experts, TMConfig(**SETTINGS), model="mlp", job=Job(device="cpu"))


def test_resnet_18_distils_at_64_pixels(tmp_path):
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 3, 64, 64), generator=g, dtype=torch.uint8)
    norm = Normalization((0.5,) * 3, (0.25,) * 3)
    whole = ImageDataset(pixels, torch.arange(4) % 2, ("a", "b"), norm, "noise", "train")
    # The stem that DC-BENCH's ResNets have at this size; the other costs 16 times as much.
    net = ("resnet18", {"norm": "instance", "stem": "imagenet"})
    found = train_experts(
        whole, net, test_set=whole, out=tmp_path / "experts", count=1, epochs=1, progress=False,
        device="cpu",
    )  # fmt: skip
    given = {
        "ipc": 1, "iterations": 1, "syn_steps": 1, "expert_epochs": 1, "min_start_epoch": 0,
        "max_start_epoch": 1, "batch_syn": 2, "lr_img": 1.0, "lr_lr": 1e-6, "lr_init": 0.01,
    }  # fmt: skip
    made = {}
    for unroll in ("exact", "full"):
        config = DATMConfig(
            **given, unroll=unroll, init="real", lr_labels=1.0, first_max_start_epoch=1,
            expansion_end=1, threshold=1e3,
        )  # fmt: skip
        out = tmp_path / unroll
        made[unroll] = datm(whole, found, config, model=net, job=Job(device="cpu", out=out))
        assert made[unroll].meta["skipped_iterations"] == 0
        # At least the images, the two vectors of parameters and the network.
        row = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
        assert row["peak_memory_mib"] > 3 * 4 * 11_000_000 / 2**20
    exact, full = made["exact"], made["full"]
    first = (pixels[:2].float() / 255 - 0.5) / 0.25
    assert (exact.images - full.images).norm() < 1e-3 * (full.images - first).norm()
    torch.testing.assert_close(exact.soft_labels, full.soft_labels, rtol=1e-4, atol=1e-4)
    assert exact.lr == pytest.approx(full.lr, rel=1e-5)


def test_no_expert_is_right(experts, tmp_path):
    wrong = [[[torch.zeros(shape) for shape in experts.shapes] for _ in range(6)]]
    wrong[0][5][-1][1] = 1.0  # the last bias: everything is class 1
    write_replay_buffer(tmp_path / "replay_buffer_0.pt", wrong)
    config = DATMConfig(**SETTINGS, lr_labels=1.0)
    with pytest.raises(ValueError, match=r"images of class 0 are to be .* 0 of 8 are"):
        datm(data(), Trajectories(tmp_path), config, model=network, job=Job(device="cpu"))


@pytest.mark.parametrize(
    ("config", "name", "value", "message"),
    [
        (TMConfig, "ipc", 0, "ipc must be at least 1"),
        (TMConfig, "lr_img", -1.0, "lr_img must be positive"),
        (TMConfig, "init", "correct", "init must be real or noise"),
        (TMConfig, "unroll", "half", "unroll must be one of exact, full"),
        (TMConfig, "dsa_strategy", "crop_blur", "blur"),
        (TMConfig, "threshold", 0.0, "threshold must be positive"),
        (DATMConfig, "paper", "fig9", "paper must be one of synthesis-table2"),
    ],
)
def test_settings_are_checked(config, name, value, message):
    with pytest.raises(ValueError, match=re.escape(message) if "(" in message else message):
        config(**{name: value})


def test_the_recipe_of_experts():
    assert isinstance(RECIPE, Recipe)
    assert (RECIPE.lr, RECIPE.momentum, RECIPE.schedule) == (0.05, 0.0, "constant")
