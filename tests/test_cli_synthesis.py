"""``pyddfast distill`` of the methods that optimise images: in one process and under torchrun."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pyddfast import data
from pyddfast.cli import main
from pyddfast.data import DistilledSet, read_layout
from tests.processes import TORCHRUN, run_python

TINY = ["--iterations", "3", "--ipc", "1", "--batch-size", "5"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that trained its own teacher: a ConvNet-D3 with BatchNorm, for one short epoch."""
    out = tmp_path_factory.mktemp("sre2l") / "run"
    new = ["--teacher-epochs", "1", "--teacher-option", "norm=batch", "width=4"]
    assert main(["distill", "sre2l", *TINY, *new, "--out", str(out)]) == 0
    return out


def test_sre2l_trains_a_teacher_synthesises_and_resumes(
    teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = DistilledSet.load(teacher / "set")
    assert (made.kind, made.meta["method"], len(made)) == ("synthetic", "sre2l", 10)
    assert made.images.shape[1:] == (1, 28, 28)
    assert made.meta["preset"] == "cifar-100"
    assert made.labels.tolist() == list(range(10))
    rows = (teacher / "synthesis" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["chunk"] for row in rows] == [0, 1]
    before = (teacher / "set" / "set.safetensors").read_bytes()
    again = ["distill", "sre2l", *TINY, "--teacher-epochs", "1"]
    again += ["--teacher-option", "norm=batch", "width=4", "--out", str(teacher)]
    capsys.readouterr()
    assert main([*again, "--resume"]) == 0
    shown = capsys.readouterr().out
    assert "10 images of 28x28, 1 for each class" in shown
    assert f"the teacher puts {100 * made.meta['teacher_accuracy']:.1f} %" in shown
    assert (teacher / "set" / "set.safetensors").read_bytes() == before
    assert main(again) == 2
    assert "resume it" in capsys.readouterr().err


def test_the_others_take_a_trained_teacher_and_write_official_layouts(
    teacher: Path, tmp_path: Path
) -> None:
    for method, extra in (
        ("cda", ["--curriculum", "linear"]),
        ("fadrm", ["--stage-sizes", "28", "28"]),
        ("gvbsm", ["--momentum", "0.5"]),
        ("edc", ["--flatness-weight", "1", "--data", "fashion-mnist-mini"]),
        ("dwa", ["--adjust-steps", "2"]),
    ):
        out = tmp_path / method
        arguments = ["distill", method, *TINY, *extra, "--teacher", str(teacher), "--out", str(out)]
        assert main([*arguments, "--layout", "sre2l"]) == 0
        made = DistilledSet.load(out / "set")
        assert made.meta["method"] == method
        back = read_layout(out / "images", normalization=made.normalization)
        assert torch.equal(back.images, made.images)
    source = data.load("fashion-mnist-mini")
    # DWA starts from real images, and three steps do not take it far.
    away = (made.images.int() - source.images[0].int()).abs()
    assert away.double().mean() > 0
    assert made.meta["init"] == "data"


def test_torchrun_makes_the_set_of_one_process(teacher: Path, tmp_path: Path) -> None:
    arguments = ["distill", "sre2l", *TINY, "--init", "data", "--teacher", str(teacher)]
    assert main([*arguments, "--out", str(tmp_path / "one")]) == 0
    run_python(*TORCHRUN, "-m", "pyddfast", *arguments, "--out", str(tmp_path / "two"))
    one, two = (tmp_path / n / "set" / "set.safetensors" for n in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sre2l", "--ipc", "0"], "ipc must be at least 1"),
        (["sre2l", "--classes", "3", "10"], "classes must lie in [0, 10), got 10"),
        (["sre2l", "--init", "set"], "--init set and --first-set need each other"),
        (["sre2l", "--teacher", "NOWHERE"], "teacher.json is missing"),
        (["cda", "--milestone", "2"], "milestone must lie in [0, 1]"),
        (["dwa", "--preset", "imagenet-21k"], "preset must be one of imagenet-1k"),
        (
            ["sre2l", "--teacher", "NOWHERE", "--pretrained", "efficientnet_lite0"],
            "at most one of --teacher and --pretrained",
        ),
    ],
)
def test_errors_are_one_line_and_nothing_is_left(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tmp_path / "nowhere") if word == "NOWHERE" else word for word in arguments]
    assert main(["distill", *words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
