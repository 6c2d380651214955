"""Teachers: learning, records, early checkpoints, resumption."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from train_cases import blobs, linear, tiny

from pyddfast.data import Normalization
from pyddfast.train import (
    Execution,
    evaluate,
    recipe,
    teacher_recipe,
    train_teacher,
)
from pyddfast.train import run as run_module

QUIET = {"progress": False, "device": "cpu"}


def test_learns_and_records():
    train, test = blobs(), blobs(per_class=20, seed=1)
    teacher = train_teacher(train, tiny, test_set=test, epochs=40, evaluations=2, seed=3, **QUIET)
    assert not teacher.model.training
    # Chance is 0.33 on 60 images.
    assert teacher.record["accuracy"] > 0.6
    assert teacher.record["accuracy"] == evaluate(teacher.model, test)
    assert [row["epoch"] for row in teacher.record["history"]] == [20, 40]
    assert teacher.record["config"]["recipe"]["epochs"] == 40
    again = train_teacher(train, tiny, test_set=test, epochs=40, evaluations=2, seed=3, **QUIET)
    assert again.record["sha256"] == teacher.record["sha256"]
    other = train_teacher(train, tiny, test_set=test, epochs=40, evaluations=2, seed=4, **QUIET)
    assert other.record["sha256"] != teacher.record["sha256"]


def test_the_network_is_the_one_that_a_later_call_reads(tmp_path):
    train, test = blobs(), blobs(per_class=20, seed=1)
    network = ("convnet-d1", {"width": 8})  # its instance norms are trained fused
    first, second = (
        train_teacher(train, network, test_set=test, epochs=2, out=tmp_path / "t", **QUIET)
        for _ in range(2)
    )
    assert str(first.model) == str(second.model)
    images = test.images.float()
    with torch.no_grad():
        assert torch.equal(first.model(images), second.model(images))


def test_on_epoch_sees_every_epoch_and_changes_nothing():
    train, test, seen = blobs(), blobs(seed=1), []

    def score(epoch, model):
        seen.append((epoch, evaluate(model, train)))
        assert model.training

    watched = train_teacher(train, tiny, test_set=test, epochs=3, on_epoch=score, **QUIET)
    plain = train_teacher(train, tiny, test_set=test, epochs=3, **QUIET)
    assert [epoch for epoch, _ in seen] == [1, 2, 3]
    assert seen[-1][1] == evaluate(watched.model, train)
    assert watched.record["sha256"] == plain.record["sha256"]


def test_execution_changes_the_rounding_alone(tmp_path):
    train, test = blobs(), blobs(per_class=20, seed=1)
    options = {"test_set": test, "recipe": teacher_recipe(4, batch_size=7), **QUIET}
    plain = dict(train_teacher(train, linear, **options).model.named_parameters())
    made = {}
    for how in (Execution(accumulate=3), Execution(precision="bf16")):
        out = tmp_path / how.precision
        made[how] = train_teacher(train, linear, execution=how, out=out, **options)
        stored = json.loads((out / "config.json").read_text())["environment"]
        assert (stored["execution"], stored["processes"]) == (how.to_dict(), 1)
    for how, teacher in made.items():
        near = 1e-5 if how.precision == "fp32" else 2e-2  # bf16 has 8 bits
        for name, value in teacher.model.named_parameters():
            error = (value - plain[name]).abs().max()
            assert 0 < error <= near * plain[name].abs().max(), (how, name)
    # Statistics of parts of a batch are another training.
    parts = [
        train_teacher(train, tiny, execution=Execution(accumulate=n), **options) for n in (1, 2)
    ]
    assert [made.record["config"]["batch_norm_parts"] for made in parts] == [1, 2]
    assert (parts[0].model[0].weight - parts[1].model[0].weight).abs().max() > 1e-4


class Killed(BaseException):
    pass


def test_killed_at_every_write_and_resumed(tmp_path, monkeypatch):
    train, test = blobs(), blobs(seed=1)

    def run(folder):
        return train_teacher(
            train, tiny, test_set=test, recipe=teacher_recipe(2, batch_size=7), out=folder,
            checkpoint_seconds=0.0, **QUIET,
        )  # fmt: skip

    whole = run(tmp_path / "whole")
    write, count, die_at = run_module.write_bytes, 0, 0

    def counted(path, content):
        nonlocal count
        count += 1
        if count == die_at:
            raise Killed
        write(path, content)

    monkeypatch.setattr(run_module, "write_bytes", counted)
    # 2 epochs of 3 steps, each checkpointed; config, weights, record.
    for die_at in range(1, 10):
        count = 0
        with pytest.raises(Killed):
            run(tmp_path / str(die_at))
        count = 100
        assert run(tmp_path / str(die_at)).record["sha256"] == whole.record["sha256"]
        assert (tmp_path / str(die_at) / "teacher.safetensors").read_bytes() == (
            tmp_path / "whole" / "teacher.safetensors"
        ).read_bytes()
    # A finished run is read.
    read = run(tmp_path / "whole")
    assert read.record == whole.record
    for a, b in zip(read.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_overrides():
    r = teacher_recipe(7, lr=0.2, flip=0.0)
    assert (r.epochs, r.lr, r.flip, r.momentum, r.schedule) == (7, 0.2, 0.0, 0.9, "cosine")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "either epochs or recipe"),
        ({"epochs": 1, "recipe": teacher_recipe(1)}, "either epochs or recipe"),
        ({"epochs": 0}, "epochs must be a positive int"),
        ({"recipe": recipe("sl")}, "hard labels"),
        ({"epochs": 1, "test_set": blobs(classes=2)}, "3 classes, the test set 2"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"test_set": blobs(seed=1), **change}
    with pytest.raises(ValueError, match=message):
        train_teacher(blobs(), linear, **given, **QUIET)


def copy_of(dataset, **change):
    return dataclasses.replace(dataset, images=dataset.images.clone(), **change)


def test_other_data_of_the_same_name_and_count_is_refused(tmp_path):
    train, test = blobs(), blobs(seed=1)

    def run(train, test):
        return train_teacher(train, tiny, test_set=test, epochs=1, out=tmp_path / "run", **QUIET)

    first = run(train, test)
    assert run(copy_of(train), copy_of(test)).record == first.record
    flipped = copy_of(train)
    flipped.images[3, 0, 2, 5] ^= 1
    labels = train.labels.clone()
    labels[[0, -1]] = labels[[-1, 0]]
    other = Normalization((0.5,), (0.2,))
    for changed in (flipped, copy_of(train, labels=labels), copy_of(train, normalization=other)):
        with pytest.raises(ValueError, match=r"another configuration: dataset\."):
            run(changed, test)
    flipped = copy_of(test)
    flipped.images[3, 0, 2, 5] ^= 1
    with pytest.raises(ValueError, match=r"another configuration: test_set\.sha256"):
        run(train, flipped)


def test_damaged_weights_and_records_are_named(tmp_path):
    out = tmp_path / "run"

    def run(seed=0, folder=out):
        return train_teacher(
            blobs(), tiny, test_set=blobs(seed=1), epochs=1, seed=seed, out=folder, **QUIET
        )

    first = run()
    weights, record = out / "teacher.safetensors", out / "teacher.json"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"teacher.safetensors is damaged"):
        run()
    # Whole, but of another training.
    run(1, tmp_path / "other")
    weights.write_bytes((tmp_path / "other" / "teacher.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"teacher.safetensors does not hold the weights"):
        run()
    weights.write_bytes(content)
    text = record.read_bytes()
    for damaged in (b"[]", b"{}", b"[" * 100_000):
        record.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"teacher.json is not"):
            run()
    record.write_bytes(text)
    assert run().record == first.record


@pytest.mark.filterwarnings("ignore:the training loss of the teacher")
def test_a_diverged_teacher_is_warned_of_and_recorded():
    def run(lr):
        used = teacher_recipe(4, lr=lr)
        return train_teacher(blobs(), tiny, test_set=blobs(seed=1), recipe=used, **QUIET)

    with pytest.warns(UserWarning, match=r"teacher was not finite.*lower lr \(1e\+30\)"):
        assert run(1e30).record["diverged"] is True
    assert run(0.05).record["diverged"] is False


def test_a_device_that_is_not_there_is_named(tmp_path):
    for device in ("cuda:99", "gpu"):
        with pytest.raises(ValueError, match=f"device '{device}' cannot be used here"):
            train_teacher(
                blobs(), linear, test_set=blobs(), epochs=1, device=device, out=tmp_path / "run"
            )
    assert not (tmp_path / "run").exists()
