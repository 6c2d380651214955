"""Recording a training: which logits are told, when ticks end, and runs killed at any write."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from train_cases import blobs, linear, tiny

from pyddfast.coresets import TrainingDynamics
from pyddfast.train import (
    Epochs,
    Recording,
    Samples,
    Steps,
    predict,
    teacher_recipe,
    train_teacher,
)
from pyddfast.train.models import build_model, model_digest
from pyddfast.train.plan import Plan
from pyddfast.train.record import tick_ends

QUIET = {"progress": False, "device": "cpu"}
DATA, TEST = blobs(), blobs(seed=1)
COUNT = len(DATA)


class Listing:
    """Keeps everything it is told."""

    def __init__(self):
        self.rows, self.ends = [], []

    def update(self, logits, targets, indices):
        assert not logits.requires_grad
        self.rows += zip(indices.tolist(), targets.tolist(), logits.clone(), strict=True)

    def end_tick(self):
        self.ends.append(len(self.rows))

    def logits(self, tick):
        """Those of a tick, in the order of the data."""
        start = self.ends[tick - 1] if tick else 0
        rows = sorted(self.rows[start : self.ends[tick]], key=lambda row: row[0])
        assert [i for i, _, _ in rows] == list(range(COUNT))
        assert [y for _, y, _ in rows] == DATA.labels.tolist()
        return torch.stack([row for _, _, row in rows])


def train(model, recording, **options):
    used = teacher_recipe(3, batch_size=7, augmentation="none")
    given = {"recipe": used, **options}
    return train_teacher(DATA, model, test_set=TEST, recording=recording, **given, **QUIET)


def test_training_mode_tells_the_logits_of_the_steps():
    seen = Listing()
    # One step an epoch: its logits are those of the network before it.
    whole = teacher_recipe(2, batch_size=COUNT, augmentation="none")
    before = []
    train(
        linear, Recording(seen), recipe=whole,
        on_epoch=lambda done, network: before.append(predict(network, DATA)),
    )  # fmt: skip
    start = build_model(linear, 0, num_classes=3, in_channels=1, image_size=(8, 8))
    assert seen.ends == [COUNT, 2 * COUNT]
    # A sum over 64 pixels in another order.
    torch.testing.assert_close(seen.logits(0), predict(start, DATA), rtol=0, atol=1e-5)
    torch.testing.assert_close(seen.logits(1), before[0], rtol=0, atol=1e-5)


def test_evaluation_mode_tells_the_logits_after_the_tick():
    seen, after = Listing(), []

    def keep(done, network):
        assert network.training
        after.append(predict(network, DATA))

    teacher = train(tiny, Recording(seen, mode="eval"), on_epoch=keep)
    assert seen.ends == [COUNT, 2 * COUNT, 3 * COUNT]
    for tick in range(3):
        assert torch.equal(seen.logits(tick), after[tick])
    assert torch.equal(seen.logits(2), predict(teacher.model, DATA))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_recording_changes_no_weight(mode):
    plain = train(tiny, None)
    recorded = train(tiny, Recording(Listing(), mode=mode))
    assert recorded.record["sha256"] == plain.record["sha256"]


def ends(ticks, budget, mode):
    return tick_ends(ticks, mode, Plan(18, 7, False, budget))  # 7, 7 and 4 images an epoch


def test_snapshots_end_at_equally_spaced_steps():
    assert ends(4, Steps(8), "eval") == [2, 4, 6, 8]
    assert ends(3, Steps(8), "eval") == [3, 6, 8]
    assert ends(2, Samples(10), "eval") == [1, 2]  # below an epoch
    assert ends(1, Steps(8), "eval") == [8]
    assert ends("epoch", Epochs(2), "eval") == [3, 6]
    # 32 of 36 images are a second tick; 22 of them, the end of the first.
    assert ends("epoch", Samples(32), "eval") == [3, 5]
    assert ends("epoch", Samples(22), "eval") == [4]
    assert ends("epoch", Samples(5), "eval") == [1]
    with pytest.raises(ValueError, match="ticks = 9 is more than the 8 steps"):
        ends(9, Steps(8), "eval")


def test_ticks_of_training_steps_end_with_an_epoch():
    assert ends("epoch", Epochs(2), "train") == [3, 6]
    assert ends("epoch", Steps(8), "train") == [3, 6]  # the last epoch is not whole
    assert ends(7, Epochs(8), "train") == [6, 9, 12, 15, 18, 21, 24]
    assert ends(2, Steps(17), "train") == [9, 15]  # 3 and 2 of 5 whole epochs
    with pytest.raises(ValueError, match="ticks = 3 in mode 'train' needs 3 whole epochs"):
        ends(3, Steps(8), "train")
    with pytest.raises(ValueError, match="has 2 steps of the 3 of an epoch"):
        ends("epoch", Steps(2), "train")


def test_refuses_what_is_no_tick_or_mode():
    for ticks in (0, True, 1.5, "epochs"):
        with pytest.raises(ValueError, match="ticks must be"):
            Recording(Listing(), ticks)
        with pytest.raises(ValueError, match="ticks must be"):
            ends(ticks, Epochs(1), "eval")
    with pytest.raises(ValueError, match="mode must be"):
        Recording(Listing(), mode="test")


def test_the_last_partial_epoch_of_training_steps_is_not_told():
    seen = Listing()
    train(tiny, Recording(seen), budget=Samples(2 * COUNT + 10))
    assert seen.ends == [COUNT, 2 * COUNT]
    assert len(seen.rows) == 2 * COUNT


def test_a_budget_compresses_the_schedule():
    # 20 samples in batches of 7, 7, 4 and 2.
    teacher = train(linear, None, budget=Samples(20), evaluations=2)
    assert [row["samples"] for row in teacher.record["history"]] == [18, 20]
    assert teacher.record["epochs"] == 20 / 18
    # Cosine at steps 2 and 3 of 4.
    lrs = [row["lr"] for row in teacher.record["history"]]
    assert lrs == pytest.approx([0.05 / 2, 0.05 * 0.5 * (1 + 2**-0.5 * -1)], rel=1e-9)


class Stored(Listing):
    """Keeps a teacher's logits and the last layer's inputs as well."""

    def __init__(self):
        super().__init__()
        self.beside = []

    def update(self, logits, targets, indices, *, teacher, features):
        super().update(logits, targets, indices)
        assert not features.requires_grad
        assert not teacher.requires_grad
        self.beside += zip(indices.tolist(), teacher.clone(), features.clone(), strict=True)


class Both:
    """Tells two recorders the same."""

    def __init__(self, *recorders):
        self.recorders = recorders

    def update(self, *given, **beside):
        for recorder in self.recorders:
            recorder.update(*given, **beside)

    def end_tick(self):
        for recorder in self.recorders:
            recorder.end_tick()


@pytest.mark.parametrize("soft_labels", ["image", "view"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_scores_of_a_teacher_and_the_last_layer_are_those_of_what_was_stored(mode, soft_labels):
    guide, seen = linear(0), Stored()
    with torch.no_grad():
        guide[1].weight.copy_(torch.randn(3, 64, generator=torch.Generator().manual_seed(1)) / 4)
    dynamics = TrainingDynamics(
        COUNT, record=("el2n_sl", "sharp", "grand"), soft_temperature=20.0, window=2
    )
    augmented = teacher_recipe(3, batch_size=7)  # no view is the image
    recording = Recording(
        Both(dynamics, seen), mode=mode, teacher=guide, soft_labels=soft_labels, features=True
    )
    network = train(tiny, recording, recipe=augmented).model
    # No hook is left on the network, nor was anything else trained.
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in network.modules())
    assert train(tiny, None, recipe=augmented).record["sha256"] == model_digest(network)

    whole = predict(guide, DATA)
    want = {name: torch.zeros(COUNT, dtype=torch.float64) for name in dynamics.record}
    others = 0
    for (i, y, z), (j, t, h) in zip(seen.rows, seen.beside, strict=True):
        assert i == j
        fixed = torch.allclose(t, whole[i], atol=1e-5)
        others += not fixed
        assert fixed or (mode == "train" and soft_labels == "view")
        z, t, h = z.double(), t.double(), h.double()
        p, q, one = z.softmax(0), t.softmax(0), torch.eye(3, dtype=torch.float64)[y]
        want["el2n_sl"][i] += ((z / 20).softmax(0) - (t / 20).softmax(0)).norm() / 20 / 3
        want["sharp"][i] += torch.cosine_similarity(p - one, p - q, dim=0) / 3
        want["grand"][i] += (p - one).norm() * (1 + h @ h).sqrt() / 3
    assert (others > COUNT) == (mode == "train" and soft_labels == "view")
    for name, values in want.items():
        assert (dynamics.values(name) - values).abs().max() < 1e-5, name
    # The features are the inputs of the last layer.
    if mode == "eval":
        ids, logits = [row[0] for row in seen.rows[-COUNT:]], seen.logits(2)
        features = torch.stack([row[2] for row in seen.beside[-COUNT:]])
        torch.testing.assert_close(network[-1](features), logits[ids], rtol=0, atol=1e-5)


def test_refuses_a_teacher_or_network_that_has_not_what_is_told(tmp_path):
    class Halved(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = linear(0)

        def forward(self, x):
            return self.layers(x) / 2

    for model, options, message in (
        (linear, {"teacher": nn.Sequential(nn.Flatten(), nn.Linear(64, 4))}, r"logits \(1, 4\)"),
        (lambda seed: Halved(), {"features": True}, "are not the output of a torch.nn.Linear"),
    ):
        with pytest.raises(ValueError, match=message):
            train(model, Recording(Stored(), **options), out=tmp_path / "run")
        assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="soft_labels must be 'image' or 'view', got 'none'"):
        Recording(Stored(), soft_labels="none")


class Killed(BaseException):
    pass


@pytest.mark.parametrize(("mode", "ticks"), [("train", "epoch"), ("eval", 4)])
def test_killed_at_every_write_and_resumed(tmp_path, monkeypatch, mode, ticks):
    guide = tiny(3)

    def run(folder):
        extras = ("el2n_sl", "sharp", "grand")
        recorder = TrainingDynamics(COUNT, window=2, record=extras, soft_temperature=20.0)
        used = teacher_recipe(2, batch_size=7)
        recording = Recording(recorder, ticks, mode, guide, "view", features=True)
        teacher = train_teacher(
            DATA, tiny, test_set=TEST, recipe=used, out=folder, checkpoint_seconds=0.0,
            recording=recording, **QUIET,
        )  # fmt: skip
        return teacher, recorder

    whole, recorder = run(tmp_path / "whole")
    assert recorder.tick == (2 if mode == "train" else 4)
    bytes_of = (tmp_path / "whole" / "recorder.safetensors").read_bytes
    rename, count, die_at = Path.replace, 0, 0

    def counted(temporary, path):
        nonlocal count
        count += 1
        if count == die_at:
            raise Killed
        return rename(temporary, path)

    # A file takes its name by one rename.
    monkeypatch.setattr(Path, "replace", counted)
    # Configuration, 6 steps with a checkpoint each, recorder, weights, record.
    for die_at in range(1, 11):
        count, folder = 0, tmp_path / str(die_at)
        with pytest.raises(Killed):
            run(folder)
        count = 100
        teacher, _ = run(folder)
        assert teacher.record["sha256"] == whole.record["sha256"]
        assert (folder / "recorder.safetensors").read_bytes() == bytes_of()
    # A finished run is read, recorder and all.
    _, read = run(tmp_path / "whole")
    loaded = TrainingDynamics.load(tmp_path / "whole" / "recorder.safetensors")
    for name in ("el2n", "aum", "forgetting", "el2n_sl", "sharp", "grand"):
        assert torch.equal(read.values(name), recorder.values(name))
        assert torch.equal(loaded.values(name), recorder.values(name))


def test_another_recorder_and_a_missing_file_are_named(tmp_path):
    train(linear, Recording(TrainingDynamics(COUNT)), out=tmp_path / "run")
    with pytest.raises(ValueError, match="window is 3 here, 10 there"):
        train(linear, Recording(TrainingDynamics(COUNT, window=3)), out=tmp_path / "run")
    with pytest.raises(ValueError, match="recording"):
        train(linear, None, out=tmp_path / "run")
    (tmp_path / "run" / "recorder.safetensors").unlink()
    with pytest.raises(ValueError, match=r"recorder\.safetensors is missing"):
        train(linear, Recording(TrainingDynamics(COUNT)), out=tmp_path / "run")
