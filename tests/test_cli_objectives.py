"""``pyddfast analyze``: pools, objectives, corruptions, dynamics and grids, from sets on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pyddfast import data
from pyddfast.analysis.objectives import DMObjective, SRe2LObjective
from pyddfast.analysis.pool import dcs_subsets
from pyddfast.cli import main, options
from pyddfast.coresets import Scores, Selection, embed
from pyddfast.data import DistilledSet, ImageDataset
from pyddfast.train.teacher_folder import load_teacher

pytestmark = pytest.mark.usefixtures("one_thread")
THIN = ["--model", "convnet-d2", "--model-option", "width=4"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> ImageDataset:
    """Eight images of each class."""

    def load(name: str, *, split: str = "train", **rest: Any) -> ImageDataset:
        whole = data.load("fashion-mnist-mini", split=split)
        rows = [(whole.labels == k).nonzero()[:8, 0] for k in range(10)]
        return whole.subset(torch.cat(rows))

    monkeypatch.setattr(options, "load", load)
    return load("fashion-mnist-mini")


@pytest.fixture
def pool(tmp_path: Path, small: ImageDataset) -> Path:
    Scores(torch.linspace(0, 1, 80), "el2n", "hard").save(tmp_path / "el2n.npz")
    command = ["analyze", "subsets", "--out", str(tmp_path / "pool"), "--ipcs", "1", "3"]
    command += ["--offsets", "0.5", "--el2n", str(tmp_path / "el2n.npz"), "--teacher-epochs", "1"]
    command += ["--teacher-model", "convnet-d2", "--teacher-option", "width=4", "norm=batch"]
    assert main(command) == 0
    return tmp_path / "pool"


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def test_a_pool_and_its_objectives(pool: Path, tmp_path: Path, small: ImageDataset) -> None:
    teacher = load_teacher(pool, small, "cpu").model
    scores = Scores.load(tmp_path / "el2n.npz")
    expected = dcs_subsets(scores, embed(small, teacher), ipcs=(1, 3), offsets=(0.5,))
    listed = read(pool / "pool.json")
    assert listed == expected.record()
    for one in expected:
        found = Selection.load(pool / one.name / "selection.npz")
        assert torch.equal(found.indices, one.selection.indices)
    command = ["analyze", "objective", str(pool), "--which", "sre2l", "dm", "--teacher", str(pool)]
    command += ["--networks", "2", "--real-batch", "4", *THIN, "--out", str(tmp_path / "values")]
    assert main(command) == 0
    rows = {row["set"]: row for row in read(tmp_path / "values" / "table.json")}
    assert len(rows) == 16
    assert rows["cal-ipc3-x2"]["group"] == "cal-ipc3"
    assert rows["cal-ipc3-x2"]["ipc"] == 6
    one = small.subset(next(p for p in expected if p.name == "cal-ipc3").selection.indices)
    model = ("convnet-d2", {"width": 4})
    for objective in (
        SRe2LObjective(teacher),
        DMObjective(small, model, networks=2, real_batch=4),
    ):
        assert rows["cal-ipc3"][objective.name] == pytest.approx(objective([one])[0].value)
    # Resumed: what is there is not computed again.
    file = tmp_path / "values" / "values" / "dm.json"
    changed = read(file)
    changed["objectives"]["dm"]["values"]["cal-ipc3"]["value"] = 7.0
    file.write_text(json.dumps(changed))
    assert main([*command, "--resume"]) == 0
    rows = {row["set"]: row for row in read(tmp_path / "values" / "table.json")}
    assert rows["cal-ipc3"]["dm"] == 7.0


def test_the_worst_are_named(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [one["name"] for one in read(pool / "pool.json")["subsets"]]
    errors = dict.fromkeys(names, 0.4) | {"cal-ipc3": 0.8}
    (tmp_path / "errors.json").write_text(json.dumps(errors))
    command = ["analyze", "subsets", "--out", str(pool), "--ipcs", "1", "3", "--offsets", "0.5"]
    command += ["--el2n", str(tmp_path / "el2n.npz"), "--teacher-epochs", "1", "--resume"]
    command += ["--teacher-model", "convnet-d2", "--teacher-option", "width=4", "norm=batch"]
    assert main([*command, "--errors", str(tmp_path / "errors.json")]) == 0
    assert "dropped cal-ipc3: error 0.800 > 0.650" in capsys.readouterr().err
    assert len(read(pool / "pool.json")["subsets"]) == 14


def test_corrupted_images_and_accuracy_on_them(pool: Path, tmp_path: Path) -> None:
    tree, out = tmp_path / "tree", tmp_path / "ood.json"
    command = ["analyze", "corrupt", "--out", str(tree), "--corruptions", "contrast", "brightness"]
    assert main([*command, "--severities", "1", "5"]) == 0
    command = ["analyze", "ood", str(pool), "--tree", str(tree), "--out", str(out)]
    assert main(command) == 0
    (found,) = read(out)["weights"].values()
    assert found["accuracies"].keys() == {
        "brightness 1", "brightness 5", "contrast 1", "contrast 5",
    }  # fmt: skip
    values = found["accuracies"]
    assert found["ood"] == pytest.approx(sum(values.values()) / 4)
    assert found["by_severity"]["5"] == pytest.approx(
        (values["brightness 5"] + values["contrast 5"]) / 2
    )
    test = options.load("fashion-mnist-mini", split="test")
    teacher = load_teacher(pool, test, "cpu").model
    logits = teacher(data.normalize(test.images, test.normalization))
    assert found["id"] == pytest.approx(float((logits.argmax(1) == test.labels).float().mean()))

    # Two runs of one name are told apart, and a new folder of the results is made.
    for parent in ("first", "second"):
        shutil.copytree(pool, tmp_path / parent / "teacher")
    twice = [str(tmp_path / parent / "teacher") for parent in ("first", "second")]
    new = tmp_path / "new" / "ood.json"
    assert main(["analyze", "ood", *twice, "--tree", str(tree), "--out", str(new)]) == 0
    both = read(new)["weights"]
    assert [Path(name).relative_to(tmp_path).parts[0] for name in both] == ["first", "second"]
    assert list(both.values()) == [found, found]


def test_dynamics_starts_and_a_grid(tmp_path: Path) -> None:
    run = tmp_path / "dm"
    command = ["distill", "dm", "--ipc", "1", "--iterations", "4", "--snapshot-every", "2"]
    assert main([*command, "--real-batch", "4", *THIN, "--out", str(run)]) == 0
    # A row comes every ten steps: these stand for a longer run.
    rows = [{"step": 10 * i, "loss": 3.0 - i} for i in range(3)]
    (run / "matching" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    out = tmp_path / "dynamics"
    command = ["analyze", "dynamics", str(run), "--students", "2", "--student-epochs", "1", *THIN]
    assert main([*command, "--out", str(out)]) == 0
    found = read(out / "results.json")
    assert found["loss"]["slope_per_1000"] == pytest.approx(-100)
    assert {step: len(each) for step, each in found["accuracies"].items()} == {"2": 2, "4": 2}
    assert (out / "figure.svg").read_text().startswith("<svg")

    parts = {"epoch 20": 0.9, "epoch 21": 9.0}
    values = {"objectives": {"tm": {"values": {"dc": {"value": 4.95, "parts": parts}}}}}
    (tmp_path / "objectives.json").write_text(json.dumps(values))
    command = ["analyze", "start-epochs", str(tmp_path / "objectives.json"), "--limit", "2"]
    assert main([*command, "--out", str(tmp_path / "starts")]) == 0
    assert read(tmp_path / "starts" / "results.json") == {
        "curves": {"dc": {"20": 0.9, "21": 9.0}},
        "spikes": [["dc", 21, 9.0]],
    }

    made = DistilledSet.load(run / "set")
    made.save(tmp_path / "copy")
    command = ["analyze", "grid", str(run), str(tmp_path / "copy"), "--classes", "3", "Bag"]
    assert main([*command, "--out", str(tmp_path / "grid")]) == 0
    assert {p.name for p in (tmp_path / "grid").iterdir()} == {"00003.svg", "00008.svg"}
    text = (tmp_path / "grid" / "00008.svg").read_text()
    assert all(word in text for word in ("Bag", "dm", "copy"))


def test_what_does_not_fit_is_told_in_a_line(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no.json").write_text("[1]")
    other = data.Normalization((0.5,), (0.5,))
    labels = torch.arange(10)
    images = torch.zeros((10, 1, 28, 28), dtype=torch.uint8)
    DistilledSet(images, labels, 10, other).save(tmp_path / "other")
    out = ["--out", str(tmp_path / "new")]
    for arguments, message in (
        (["objective", str(pool), "--which", "sre2l"], "sre2l needs --teacher"),
        (["objective", str(pool), "--which", "tm"], "tm needs --experts"),
        (["objective", "--which", "dm"], "give one set or more"),
        (["objective", str(pool), str(pool), "--which", "dm"], "different names"),
        (["objective", str(tmp_path / "other"), "--which", "dm"], "other has normalization"),
        # Before a teacher is trained.
        (["subsets", "--ipcs", "5", "0"], "different sizes of at least 1, got [5, 0]"),
        (
            ["subsets", "--ipcs", "2", "--offsets", "0.5", "2"],
            "offsets must lie in [0, 1], got 2.0",
        ),
        (["objective", str(pool), "--which"], "--which must name at least one objective"),
        (["subsets", "--ipcs", "601"], "ipc = 601 is larger than a class"),
        (["subsets", "--errors", str(tmp_path / "no.json")], "an object of subsets and errors"),
        (["corrupt", "--corruptions", "rain"], "got 'rain'"),
        (["ood", str(pool), "--tree", str(pool)], "holds no CORRUPTION/SEVERITY folders"),
        (["ood", "--tree", str(pool)], "give at least one run"),
        (["corrupt", "--corruptions"], "must not be empty"),
        (["dynamics", str(tmp_path)], "metrics.jsonl is missing"),
        (["start-epochs", str(tmp_path)], "objectives.json is missing; a run of pyddfast analyze"),
        (["grid", str(tmp_path / "other"), "--classes"], "--classes must name at least one"),
        (["start-epochs", str(tmp_path / "no.json")], "holds no values of tm"),
        (["grid", str(pool), "--classes", "3"], "a run without a set"),
    ):
        assert main(["analyze", *arguments, *out]) == 2, arguments
        assert message in capsys.readouterr().err
        assert not (tmp_path / "new").exists()
