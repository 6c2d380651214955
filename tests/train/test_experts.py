"""Experts: snapshots along a plain and a sharpness-aware training, and resumption."""

from __future__ import annotations

import copy
import os
import signal
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from train_cases import blobs, linear

from pyddfast.data import normalize
from pyddfast.random import Purpose, generator, permutation
from pyddfast.train import Sharpness, expert_recipe, train_experts
from pyddfast.train import experts as module

QUIET = {"progress": False, "device": "cpu"}
# Two steps an epoch (of 12 and 6 images), nothing drawn but the order.
RECIPE = expert_recipe(3, batch_size=12, augmentation="none", lr=0.1)


def normed(seed):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.GroupNorm(4, 4), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 3),
    )  # fmt: skip


def train(out, model=normed, count=1, **options):
    data = blobs()
    options = {"recipe": RECIPE, **QUIET, **options}
    return train_experts(data, model, test_set=data, out=out, count=count, seed=5, **options)


def by_hand(data, expert, step):
    """Snapshots of an expert in float64, ``step(network, images, labels)`` each batch."""
    seed = generator(5, Purpose.EXPERT, expert).initial_seed()
    with torch.random.fork_rng():
        torch.manual_seed(generator(seed, Purpose.MODEL_INIT).initial_seed())
        network = normed(seed).double()
    images = normalize(data.images, data.normalization).double()

    def flat():
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    found = [flat()]
    for epoch in range(3):
        order = permutation(seed, Purpose.EPOCH_ORDER, len(data), epoch)
        for part in (order[:12], order[12:]):
            step(network, images[part], data.labels[part])
        found.append(flat())
    return found


def plain_step(network, images, labels):
    grads = torch.autograd.grad(F.cross_entropy(network(images), labels), [*network.parameters()])
    with torch.no_grad():
        for p, g in zip(network.parameters(), grads, strict=True):
            p -= 0.1 * g


def sharp_step(network, images, labels):
    """GSAM with DATM's settings, written with whole vectors."""

    def gradient(at):
        other = copy.deepcopy(network)
        nn.utils.vector_to_parameters(at, other.parameters())
        loss = F.cross_entropy(other(images), labels)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*other.parameters()])])

    w = torch.cat([p.detach().flatten() for p in network.parameters()])
    g = gradient(w)
    h = gradient(w + 0.01 * w.square() * g / (w.abs() * g).norm())
    across = g - (g @ h) / (h @ h) * h
    nn.utils.vector_to_parameters(w - 0.1 * (h - 0.3 * across), network.parameters())


@pytest.mark.parametrize(
    ("sharpness", "step"), [(None, plain_step), (Sharpness(), sharp_step)], ids=["sgd", "gsam"]
)
def test_snapshots_are_those_of_the_training(tmp_path, sharpness, step):
    found = train(tmp_path, count=2, sharpness=sharpness)
    assert (len(found), found.epochs) == (2, 3)
    for expert in range(2):
        for epoch, expected in enumerate(by_hand(blobs(), expert, step)):
            torch.testing.assert_close(
                found.flat(expert, epoch).double(), expected, rtol=0, atol=2e-6
            )
    # On a CPU the official script's snapshots are all the last one.
    assert (found.flat(0, 0) - found.flat(0, 3)).norm() > 0.1
    assert (found.flat(0, 3) - found.flat(1, 3)).norm() > 0.1


def test_the_first_gradient_is_the_one_that_is_told(tmp_path):
    """GSAM's second pass is no step of its own: the log has the plain loss at the start."""
    one = expert_recipe(1, batch_size=18, augmentation="none", lr=1e-6)
    rows = []
    for name, sharpness in (("plain", None), ("sharp", Sharpness(rho=0.5))):
        train(tmp_path / name, recipe=one, sharpness=sharpness)
        rows.append((tmp_path / name / "expert_0000" / "metrics.jsonl").read_text())
    assert rows[0].split('"train_loss": ')[1][:8] == rows[1].split('"train_loss": ')[1][:8]


def test_files_of_ten_and_finished_folders(tmp_path):
    found = train(tmp_path / "a", linear, count=12, recipe=expert_recipe(1))
    names = sorted(f.name for f in (tmp_path / "a").glob("replay*"))
    assert names == ["replay_buffer_0.pt", "replay_buffer_1.pt"]
    assert len(found) == 12
    assert not list((tmp_path / "a").rglob("epoch_*"))  # no second copy is kept
    before = [(tmp_path / "a" / name).stat().st_mtime_ns for name in names]
    again = train(tmp_path / "a", linear, count=12, recipe=expert_recipe(1))
    assert [(tmp_path / "a" / name).stat().st_mtime_ns for name in names] == before
    assert torch.equal(again.flat(11, 1), found.flat(11, 1))
    # An expert depends on its number, not on how many there are.
    fewer = train(tmp_path / "b", linear, count=2, recipe=expert_recipe(1))
    assert torch.equal(fewer.flat(1, 1), found.flat(1, 1))


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_killed_and_resumed_gives_the_same_bytes(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked child has no others
    train(tmp_path / "whole", count=2)
    expected = (tmp_path / "whole" / "replay_buffer_0.pt").read_bytes()
    real = module._keep
    for kill_at in range(6):  # after each snapshot of each expert
        pid = os.fork()
        if pid == 0:
            seen = []

            def keep(folder, epoch, network, seen=seen, kill_at=kill_at):
                real(folder, epoch, network)
                seen.append(epoch)
                if len(seen) > kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

            monkeypatch.setattr(module, "_keep", keep)
            train(tmp_path / str(kill_at), count=2, checkpoint_seconds=0.0)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        train(tmp_path / str(kill_at), count=2)
        assert (tmp_path / str(kill_at) / "replay_buffer_0.pt").read_bytes() == expected
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must be a positive int, got 0"),
        ({"recipe": expert_recipe(1, lr=1e30, batch_size=4)}, "expert 0 was not finite: lower lr"),
    ],
)
def test_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", **options)


@pytest.mark.parametrize(("field", "value"), [("rho", 0.0), ("alpha", -0.1)])
def test_sharpness_is_checked(field, value):
    with pytest.raises(ValueError, match=f"{field} must"):
        Sharpness(**{field: value})
