"""Students end to end: regimes, records, and runs killed at any moment."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import signal
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from train_cases import blobs, distilled, linear, tiny

from pyddfast.data import normalize
from pyddfast.data.stored import read_tensors, write_tensors
from pyddfast.train import (
    Epochs,
    Samples,
    Steps,
    evaluate,
    official_recipe,
    recipe,
    train_student,
    train_teacher,
)
from pyddfast.train import run as run_module
from pyddfast.train.models import build_model

QUIET = {"progress": False, "device": "cpu"}


@pytest.fixture(scope="module")
def data():
    return blobs(), blobs(per_class=20, seed=1, split="test")


@pytest.fixture(scope="module")
def teacher(data):
    return train_teacher(data[0], linear, test_set=data[1], epochs=20, **QUIET).model


@pytest.mark.parametrize("scale", ["small", "large"])
@pytest.mark.parametrize("regime", ["hl", "sl", "sl-kd"])
def test_every_regime_learns_and_records(data, teacher, regime, scale):
    given = distilled(data[0])
    # The published rates are for deep networks: for 60 epochs of a linear model AdamW's is too
    # small to see, and the large-scale SGD's too large.  Hard crops would cut the place that
    # tells a class.
    change = {"lr": 1e-2 if regime != "hl" else 0.05, "rrc_scale": (0.8, 1.0)}
    used = recipe(regime, scale, 10, **change)
    result = train_student(
        given,
        regime,
        linear,
        test_set=data[1],
        teacher=None if regime == "hl" else teacher,
        recipe=used,
        budget=Epochs(60),
        seeds=(0, 5),
        evaluations=4,
        **QUIET,
    )
    # Three classes: chance is 0.33, its standard error on 60 images 0.06.
    assert result.mean > 0.6
    assert [seed.seed for seed in result.seeds] == [0, 5]
    accuracies = [seed.last_accuracy for seed in result.seeds]
    assert result.mean == statistics.fmean(accuracies)
    assert result.std == statistics.stdev(accuracies)
    assert result.sampling_error == math.sqrt(result.mean * (1 - result.mean) / 60)
    for seed in result.seeds:
        assert [row["epoch"] for row in seed.history] == [15, 30, 45, 60]
        best = max(row["test_accuracy"] for row in seed.history)
        assert seed.best_accuracy == best
        assert seed.best_epoch == min(
            row["epoch"] for row in seed.history if row["test_accuracy"] == best
        )
        assert seed.last_epoch == 60
        assert seed.last_accuracy == seed.history[-1]["test_accuracy"]
    config = result.config
    assert config["budget"]["total_epochs"] == 60
    assert config["budget"]["schedule_scale"] == round(60 / used.epochs, 6)
    assert config["recipe"]["in_paper"] == (regime != "sl-kd" or scale == "large")
    assert (
        config["labels"]["source"]
        == {
            "hl": "class index",
            "sl": "teacher on each stored image, un-augmented, once",
            "sl-kd": "teacher on every augmented view",
        }[regime]
    )
    if regime != "hl":
        assert config["teacher"]["accuracy"] == evaluate(teacher, data[1])
    json.dumps(result.to_dict(), allow_nan=False)


def test_the_same_seed_gives_the_same_student_and_another_another(data):
    def run(*seeds):
        return train_student(
            distilled(data[0]), "hl", tiny, test_set=data[1], budget=Epochs(3), seeds=seeds, **QUIET
        )

    a, b = run(0, 1), run(1)
    assert a.seeds[1].history == b.seeds[0].history
    assert a.seeds[0].history != a.seeds[1].history
    assert math.isnan(b.std)
    assert b.to_dict()["std"] is None


@pytest.mark.parametrize(
    ("budget", "steps", "samples"),
    # 18 images in batches of 5: 4 steps an epoch, the last of 3.
    [(Epochs(2), 8, 36), (Steps(7), 7, 33), (Samples(25), 6, 25)],
)
def test_budgets(data, budget, steps, samples):
    used = recipe("hl", "small", batch_size=5)
    result = train_student(
        distilled(data[0]), "hl", linear, test_set=data[1], recipe=used, budget=budget, seeds=[0],
        **QUIET,
    )  # fmt: skip
    assert result.config["budget"]["total_steps"] == steps
    assert result.config["budget"]["total_samples"] == samples
    assert result.seeds[0].history[-1]["samples"] == samples


def test_default_recipe_follows_the_image_size(data):
    result = train_student(
        distilled(data[0]), "hl", linear, test_set=data[1], budget=Steps(1), seeds=[0], **QUIET
    )
    assert result.config["recipe"]["scale"] == "small"
    large, test = blobs(size=72), blobs(size=72, seed=1)
    result = train_student(
        distilled(large), "hl", lambda seed: nn.Sequential(nn.Flatten(), nn.Linear(72 * 72, 3)),
        test_set=test, budget=Steps(1), seeds=[0], **QUIET,
    )  # fmt: skip
    assert result.config["recipe"]["scale"] == "large"
    # 6 images a class: below the table.
    assert result.config["recipe"]["batch_size"] == 50
    assert "our choice" in result.config["recipe"]["notes"][0]


def test_stored_labels_are_used_as_they_are(data, teacher):
    from pyddfast.train import soft_labels

    logits = soft_labels(distilled(data[0]), teacher)
    stored = distilled(data[0], soft_labels=logits)
    options = {"test_set": data[1], "budget": Epochs(4), "seeds": [0], **QUIET}
    a = train_student(stored, "sl", linear, labels="stored", **options)
    b = train_student(stored, "sl", linear, teacher=teacher, **options)
    assert a.seeds[0].history == b.seeds[0].history
    assert a.config["labels"]["source"] == "the set's stored soft labels"
    assert a.config["teacher"] is None


def files(folder: Path):
    return {p.name: p.read_bytes() for p in folder.glob("seed*.safetensors")}


def rows(folder: Path):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run_in(folder, data, regime="hl", teacher=None):
    return train_student(
        distilled(data[0]), regime, tiny, test_set=data[1], teacher=teacher,
        recipe=recipe(regime, "small", batch_size=9), budget=Epochs(2), seeds=(0, 1),
        evaluations=2, checkpoint_seconds=0.0, out=folder, **QUIET,
    )  # fmt: skip


class Killed(BaseException):
    """Passes every ``except Exception``, as a kill does."""


# HL: SGD with momentum; SL+KD: AdamW and a teacher.
@pytest.mark.parametrize("regime", ["hl", "sl-kd"])
def test_killed_at_every_write_and_resumed(tmp_path, data, teacher, monkeypatch, regime):
    options = {"regime": regime, "teacher": None if regime == "hl" else teacher}
    whole = run_in(tmp_path / "whole", data, **options)
    write = run_module.write_bytes
    count = 0
    die_at, after = -1, False

    def counted(path, content):
        nonlocal count
        count += 1
        if count == die_at and not after:
            raise Killed
        write(path, content)
        if count == die_at:
            raise Killed

    monkeypatch.setattr(run_module, "write_bytes", counted)
    run_in(tmp_path / "counted", data, **options)
    total = count
    # 2 seeds of 4 steps, each checkpointed, with two end files; config and result.
    assert total == 2 * (4 + 2) + 2
    for die_at in range(1, total + 1):
        for after in (False, True):
            folder = tmp_path / f"{die_at}-{after}"
            count = 0
            with pytest.raises(Killed):
                run_in(folder, data, **options)
            count = -1000
            resumed = run_in(folder, data, **options)
            assert files(folder) == files(tmp_path / "whole")
            assert rows(folder) == rows(tmp_path / "whole")
            assert [s.history for s in resumed.seeds] == [s.history for s in whole.seeds]


SCRIPT = """
import sys, time, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from train_cases import blobs, distilled, tiny
from pyddfast.train import Epochs, recipe, train_student
from torch import nn

class Slow(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.net = tiny(seed)

    def forward(self, x):
        time.sleep({sleep} if self.training else 0)
        return self.net(x)

train_student(
    distilled(blobs()), "hl", Slow, test_set=blobs(per_class=20, seed=1),
    recipe=recipe("hl", "small", batch_size=7), budget=Epochs(20), seeds=(0, 1),
    evaluations=5, checkpoint_seconds=0.05, out=sys.argv[1], device="cpu", progress=False,
)
"""


def start(tmp_path, folder, sleep):
    script = tmp_path / f"train-{sleep}.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), sleep=sleep))
    return subprocess.Popen([sys.executable, str(script), str(folder)])


def test_a_process_killed_with_sigkill_and_resumed_writes_the_same_bytes(tmp_path):
    whole = tmp_path / "whole"
    assert start(tmp_path, whole, 0).wait(timeout=120) == 0
    folder = tmp_path / "killed"
    # Killed in seed 0 and in seed 1, between evaluations: after 1 and after 6 rows of metrics.
    for wanted in (1, 6):
        process = start(tmp_path, folder, 0.02)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            metrics = folder / "metrics.jsonl"
            if metrics.exists() and metrics.read_bytes().count(b"\n") >= wanted:
                break
            time.sleep(0.01)
        # Past at least one checkpoint after that row.
        time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (folder / "result.json").exists()
    assert start(tmp_path, folder, 0.0).wait(timeout=120) == 0
    assert files(folder) == files(whole)
    assert len(files(whole)) == 2
    assert rows(folder) == rows(whole)


def test_a_finished_run_is_read_not_trained(tmp_path, data, monkeypatch):
    first = run_in(tmp_path / "run", data)
    monkeypatch.setattr("pyddfast.train.student.fit", None)
    again = run_in(tmp_path / "run", data)
    assert again.to_dict() == first.to_dict()
    assert again.seeds[0].weights == tmp_path / "run" / "seed0.safetensors"
    model = tiny(0)
    model.load_state_dict(load_file(first.seeds[1].weights))
    assert evaluate(model, data[1]) == first.seeds[1].last_accuracy
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()
    with pytest.raises(ValueError, match=r"recipe\.loss was 'ce', now 'kl'"):
        run_in(tmp_path / "run", data, regime="sl", teacher=linear(0))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"regime": "sl"}, ValueError, "needs a teacher"),
        ({"regime": "kd"}, ValueError, "regime must be one of"),
        ({"labels": "teacher"}, ValueError, "labels must be"),
        ({"labels": "stored"}, ValueError, "is for regime 'sl'"),
        ({"regime": "sl", "labels": "stored"}, ValueError, "no soft_labels"),
        ({"recipe": recipe("sl")}, ValueError, "recipe is for regime 'sl'"),
        (
            {"recipe": recipe("hl", "small"), "scale": "large"},
            ValueError,
            "recipe is for scale 'small'",
        ),
        ({"seeds": []}, ValueError, "seeds"),
        ({"seeds": [1, 1]}, ValueError, "seeds"),
        ({"test_set": blobs(classes=2)}, ValueError, "3 classes, the test set 2"),
        ({"test_set": blobs(size=9)}, ValueError, "test images are"),
        ({"test_set": blobs().subset([])}, ValueError, "test_set has no images"),
        ({"evaluations": 0}, ValueError, "evaluations"),
        ({"model": "convnet-d99"}, ValueError, "convnet-d99"),
        ({"model": 3}, TypeError, "model must be"),
        ({"model": lambda seed: 3}, TypeError, "model returned int"),
        ({"model": tiny, "budget": Samples(19)}, ValueError, "batch norm"),
    ],
)
def test_bad_input_is_named_before_any_work(tmp_path, change, error, message):
    given = {
        "regime": "hl", "model": linear, "test_set": blobs(), "out": tmp_path / "run", **change
    }  # fmt: skip
    with pytest.raises(error, match=message):
        train_student(distilled(blobs()), given.pop("regime"), given.pop("model"), **given, **QUIET)
    assert not (tmp_path / "run").exists()


def test_class_order_is_checked(data):
    other = blobs()
    other = type(other)(
        other.images, other.labels, ("class 1", "class 0", "class 2"), other.normalization
    )
    with pytest.raises(ValueError, match="class 0 is 'class 0' in the set, 'class 1' in"):
        train_student(distilled(data[0]), "hl", linear, test_set=other, **QUIET)


def test_progress_without_a_terminal_tells_what_is_left(capsys, monkeypatch):
    progress_module = importlib.import_module("pyddfast.train.progress")  # not the function
    monkeypatch.setattr(progress_module, "_LINE_SECONDS", 0.0)
    clock = iter([0.0, 0.0, 3.0, 6.0, 7.0])  # began, lines, two advances, end
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    with progress_module.progress("stage", 40) as advance:
        advance(10)
        advance(10)
    assert capsys.readouterr().err.splitlines() == [
        "stage: 10 of 40, 9 s left",
        "stage: 20 of 40, 6 s left",
        "stage: 7.0 s",
    ]


def test_progress_is_one_line_a_stage_without_a_terminal(data, capsys):
    train_student(
        distilled(data[0]), "hl", linear, test_set=data[1], budget=Steps(1), seeds=[0], device="cpu"
    )
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("train hl students: ")
    assert err.count("\n") == 1


def test_a_model_by_name_with_options(data):
    result = train_student(
        distilled(data[0]), "hl", ("convnet-d2", {"width": 4}), test_set=data[1], budget=Steps(2),
        seeds=[0], **QUIET,
    )  # fmt: skip
    assert result.config["model"] == {"name": "convnet-d2", "options": {"width": 4}}
    torch.manual_seed(0)
    assert 0 <= result.mean <= 1


def test_another_test_set_of_the_same_name_and_count_is_refused(tmp_path, data):
    run_in(tmp_path / "run", data)
    changed = dataclasses.replace(data[1], images=data[1].images.clone())
    run_in(tmp_path / "run", (data[0], changed))
    changed.images[0, 0, 0, 0] ^= 1
    with pytest.raises(ValueError, match=r"another configuration: test_set\.sha256"):
        run_in(tmp_path / "run", (data[0], changed))


def test_a_seed_without_its_weights_is_done_again(tmp_path, data):
    folder = tmp_path / "run"
    first = run_in(folder, data)
    before, logged = files(folder), rows(folder)
    (folder / "seed0.safetensors").unlink()
    again = run_in(folder, data)
    assert files(folder) == before
    assert sorted(map(str, rows(folder))) == sorted(map(str, logged))
    assert [s.history for s in again.seeds] == [s.history for s in first.seeds]
    assert again.seeds[0].weights.is_file()


def test_damaged_files_of_a_run_are_named(tmp_path, data):
    folder = tmp_path / "run"
    run_in(folder, data)

    def refused(name, content, message):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"run/{name}.*{message}"):
            run_in(folder, data)
        (folder / name).write_bytes(before)

    result = json.loads((folder / "seed1.json").read_text())
    other = {**result, "last_accuracy": 2.0}
    for value in ([], {}, 5, {**result, "history": []}, {**result, "seed": 0}, other):
        refused("seed1.json", json.dumps(value).encode(), "is not the result of seed 1")
    refused("seed1.json", b"[" * 100_000, "is not valid JSON")
    weights = (folder / "seed1.safetensors").read_bytes()
    refused("seed1.safetensors", weights[:-2] + b"\1\1", "is damaged")
    (folder / "seed1.json").unlink()
    refused("metrics.jsonl", b"[1]\n", "line 1, is no JSON object")
    refused("metrics.jsonl", b'{"seed": 1, "epoch": 1}\n', "has a row without a step")
    refused("metrics.jsonl", b"\xff\n", "line 1, is not valid JSON")
    # A kill can cut the last line.
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"seed": 1, "st')
    run_in(folder, data)
    assert len(rows(folder)) == 4


def test_damaged_checkpoints_are_named(tmp_path, data, monkeypatch):
    folder = tmp_path / "run"

    def stop(self, name):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run_module.RunFolder, "remove", stop)  # of the checkpoint, at the end
        with pytest.raises(Killed):
            run_in(folder, data)
    (folder / "seed0.json").unlink()
    file = folder / "checkpoint.safetensors"
    content = file.read_bytes()
    tensors, state = read_tensors(file)
    flipped = bytearray(content)
    flipped[-9] ^= 1
    file.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"checkpoint.safetensors is damaged"):
        run_in(folder, data)
    fewer = {k: v for k, v in tensors.items() if k != "visits"}
    no_counters = {k: v for k, v in state.items() if k != "counters"}
    cases = [(tensors, []), (tensors, {}), (tensors, None), (tensors, no_counters), (fewer, state)]
    for some, told in cases:
        write_tensors(file, some, told)
        with pytest.raises(ValueError, match=r"checkpoint.safetensors is no checkpoint of this"):
            run_in(folder, data)
    file.write_bytes(content)
    whole = run_in(tmp_path / "whole", data)
    assert [s.history for s in run_in(folder, data).seeds] == [s.history for s in whole.seeds]


def test_a_diverged_student_is_warned_of_and_recorded(tmp_path, data):
    def run():
        return train_student(
            distilled(data[0]), "hl", tiny, test_set=data[1], budget=Epochs(4), seeds=(0, 1),
            recipe=recipe("hl", "small", lr=1e30), out=tmp_path / "run", **QUIET,
        )  # fmt: skip

    for _ in range(2):  # trained, then read
        with pytest.warns(UserWarning, match=r"seeds \[0, 1\] was not finite"):
            result = run()
        assert result.diverged == (0, 1)
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    assert stored["diverged"] == [0, 1]
    assert [seed["diverged"] for seed in stored["seeds"]] == [True, True]
    healthy = run_in(None, data)
    assert healthy.diverged == ()
    assert healthy.to_dict()["seeds"][0]["diverged"] is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [0, -1]}, "seed must lie in"),  # the second one, before the first is trained
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
    ],
)
def test_bad_input_leaves_no_folder(tmp_path, data, change, message):
    given = {**QUIET, "out": tmp_path / "run", **change}
    with pytest.raises(ValueError, match=message):
        train_student(distilled(data[0]), "hl", linear, test_set=data[1], **given)
    assert not (tmp_path / "run").exists()


def test_a_model_that_fails_in_its_first_step_gives_the_folder_back(tmp_path, data):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train_student(
            distilled(data[0]), "hl", lambda seed: nn.Sequential(nn.Flatten(), nn.Linear(9, 3)),
            test_set=data[1], out=tmp_path / "run", **QUIET,
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_the_official_protocol_is_the_official_loop(data, tmp_path):
    """One batch an epoch, no augmentation: weights equal those of the loop as it is published."""
    images = normalize(data[0].images, data[0].normalization)
    made = distilled(
        dataclasses.replace(data[0], images=images), meta={"method": "dc"}, kind="synthetic"
    )
    used = dataclasses.replace(official_recipe("dc", epochs=6), lr=0.05)
    train_student(
        made, "hl", linear, test_set=data[1], recipe=used, seeds=(3,), out=tmp_path / "run", **QUIET
    )
    weights = load_file(tmp_path / "run" / "seed3.safetensors")
    net = build_model(linear, 3, num_classes=3, in_channels=1, image_size=(8, 8)).double()
    lr = 0.05

    def optimizer():
        return torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)

    chosen = optimizer()
    for epoch in range(6 + 1):
        chosen.zero_grad()
        nn.functional.cross_entropy(net(images.double()), made.labels).backward()
        chosen.step()
        if epoch in [6 // 2 + 1]:
            lr *= 0.1
            chosen = optimizer()
    for name, value in net.state_dict().items():
        assert torch.allclose(weights[name].double(), value, rtol=0, atol=1e-6), name


def test_the_official_protocol_takes_the_learned_rate_and_labels(data):
    soft = nn.functional.one_hot(data[0].labels, 3) * 8.0
    made = distilled(data[0], meta={"method": "datm"}, lr=0.07, soft_labels=soft)
    options = {"test_set": data[1], "protocol": "official", "seeds": (0,), "budget": Steps(3)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = train_student(made, "sl", linear, labels="stored", **options, **QUIET)
    assert result.config["recipe"]["lr"] == 0.07
    assert result.config["recipe"]["temperature"] == 1.0
    # The paper's protocol leaves it aside, which is told.
    with pytest.warns(UserWarning, match=r"rate 0\.07 was learned with the set.* take 0\.01: only"):
        train_student(made, "hl", linear, **{**options, "protocol": "paper"}, **QUIET)
    with pytest.raises(ValueError, match="official evaluation of datm is regime 'sl'"):
        train_student(made, "hl", linear, **options, **QUIET)
    with pytest.warns(UserWarning, match="without its learned learning rate"):
        train_student(distilled(data[0], meta={"method": "tm"}), "hl", linear, **options, **QUIET)
    with pytest.raises(ValueError, match="known for sets of"):
        train_student(distilled(data[0]), "hl", linear, **options, **QUIET)


def test_sets_and_test_sets_are_both_whitened_or_neither(data):
    whitened = dataclasses.replace(
        data[0], images=normalize(data[0].images, data[0].normalization), whitened=True
    )
    with pytest.raises(ValueError, match="images of the set are ZCA-whitened"):
        train_student(distilled(whitened, whitened=True), "hl", linear, test_set=data[1], **QUIET)
    with pytest.raises(ValueError, match="those of the test set are ZCA-whitened"):
        train_student(distilled(data[0]), "hl", linear, test_set=whitened, **QUIET)
    floats = distilled(dataclasses.replace(whitened, whitened=False))
    with pytest.raises(ValueError, match="augmentation 'rrc' takes uint8"):
        train_student(floats, "hl", linear, test_set=data[1], scale="large", **QUIET)


def test_float_images_train_as_the_bytes_they_are(data):
    floats = dataclasses.replace(data[0], images=normalize(data[0].images, data[0].normalization))
    results = [
        train_student(distilled(one), "hl", linear, test_set=test, budget=Steps(9), **QUIET)
        for one, test in ((data[0], data[1]), (floats, data[1]))
    ]
    assert [s.history for s in results[0].seeds] == [s.history for s in results[1].seeds]
