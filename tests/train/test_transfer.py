"""Students of several architectures on one set, and their mean."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pytest
from train_cases import blobs, distilled, linear, tiny

from pyddfast import models
from pyddfast.cli import main
from pyddfast.train import Steps, dcbench_students, train_student, train_transfer

QUIET = {"progress": False, "device": "cpu", "evaluations": 1, "budget": Steps(3)}


@pytest.fixture(scope="module")
def data():
    return blobs(), blobs(per_class=20, seed=1, split="test")


def test_dcbench_has_these_students():
    # The publication's counts on CIFAR-10: 411K, 11M, 58M.
    counted = {"MLP": 411_146, "ResNet-18": 11_173_962, "ResNet-152": 58_201_290}
    for name, spec in dcbench_students(32).items():
        given, options = (spec, {}) if isinstance(spec, str) else spec
        network = models.create(given, num_classes=10, image_size=32, **options)
        assert sum(p.numel() for p in network.parameters()) == pytest.approx(
            counted[name], rel=0.03
        )
        assert not any("running_mean" in key for key in network.state_dict())
    assert dcbench_students(63)["ResNet-18"][1]["stem"] == "cifar"
    assert dcbench_students(64)["ResNet-18"][1]["stem"] == "imagenet"


def test_each_student_is_that_of_train_student_and_the_mean_is_theirs(data, tmp_path):
    made, test = distilled(data[0], meta={"method": "dm"}), data[1]
    students = {"linear": linear, "tiny": tiny}
    how = {**QUIET, "test_set": test, "seeds": (0, 4), "protocol": "official"}
    found = train_transfer(made, "hl", students, out=tmp_path / "run", **how)
    single = {name: train_student(made, "hl", one, **how) for name, one in students.items()}
    for name, one in single.items():
        assert found.students[name].mean == one.mean
        assert found.students[name].config["recipe"]["notes"] == ["the official evaluation of dm"]
    accuracy = {n: [seed.last_accuracy for seed in one.seeds] for n, one in single.items()}
    means = [(a + b) / 2 for a, b in zip(accuracy["linear"], accuracy["tiny"], strict=True)]
    assert found.seed_means == pytest.approx(means)
    assert found.mean == pytest.approx(statistics.fmean(means))
    assert found.std == pytest.approx(statistics.stdev(means))
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    assert stored == json.loads(json.dumps(found.to_dict()))
    # A student that is done is not trained again, one that is missing is.
    (tmp_path / "run" / "tiny" / "seed4.json").unlink()
    kept = tmp_path / "run" / "linear" / "seed0.safetensors"
    written = kept.stat().st_mtime_ns
    again = train_transfer(made, "hl", students, out=tmp_path / "run", **how)
    assert again.seed_means == found.seed_means
    assert kept.stat().st_mtime_ns == written


def test_nothing_is_trained_where_one_student_does_not_fit(data, tmp_path):
    made = distilled(data[0])
    for students, message in (
        ({}, "at least one model"),
        ({"a/b": linear}, "cannot be"),
        ({"result.json": linear}, "is a file of the run"),
        ({"linear": linear, "small": ("resnet18", {"norm": "none"})}, "norm must be"),
    ):
        with pytest.raises(ValueError, match=message):
            train_transfer(made, "hl", students, test_set=data[1], out=tmp_path / "run", **QUIET)
    with pytest.raises(TypeError, match="models by name, got list"):
        train_transfer(made, "hl", [linear], test_set=data[1], **QUIET)
    with pytest.raises(ValueError, match="needs a teacher"):
        train_transfer(made, "sl", {"linear": linear}, test_set=data[1], **QUIET)
    assert not (tmp_path / "run").exists()


def test_the_command_shows_each_and_the_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"MLP": ("mlp", {"width": 4}), "ConvNet": ("convnet-d1", {"width": 4})}
    # ResNet-152 on the whole test set takes minutes.
    monkeypatch.setattr("pyddfast.cli.training.dcbench_students", lambda side: small)
    assert main(["coreset", "random", "--ipc", "1", "--out", str(tmp_path / "set")]) == 0
    run = ["train", "--set", str(tmp_path / "set"), "--regime", "hl", "--transfer"]
    run += ["--steps", "2", "--seeds", "1", "--out", str(tmp_path / "run")]
    capsys.readouterr()
    assert main(run) == 0
    shown = capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "students" / "result.json").read_text())
    means = [one["mean"] for one in result["students"].values()]
    assert result["mean"] == pytest.approx(statistics.fmean(means))
    assert result["std"] is None
    assert list(result["students"]) == list(small)
    for mean in (*means, result["mean"]):
        assert f"{math.floor(1000 * mean + 0.5) / 10:.1f}" in shown
    assert main([*run, "--model", "mlp"]) == 2
    assert "--transfer has its students" in capsys.readouterr().err
