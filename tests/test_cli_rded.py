"""``pyddfast distill rded | ca2d`` on folders, in one process and under torchrun."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from pyddfast.cli import main
from pyddfast.data import DistilledSet
from pyddfast.data.stored import read_tensors
from tests.methods.rded_cases import write_photos
from tests.processes import TORCHRUN, run_python

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder data set, and a run on it that trained its own teacher."""
    root = tmp_path_factory.mktemp("folder")
    for split in ("train", "test"):
        write_photos(root / split)
    new = ["--teacher-epochs", "1", "--teacher-option", "width=4", "norm=batch"]
    assert main([*rded(root), *new, "--out", str(root / "run")]) == 0
    return root


def rded(root: Path, method: str = "rded") -> list[str]:
    words = ["distill", method, "--data", "folder", "--root", str(root), "--image-size", "16"]
    return [*words, "--ipc", "1", "--factor", "2", "--pool", "6", "--batch-size", "20"]


def test_torchrun_makes_the_set_of_one_process(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*rded(folder), "--teacher", str(folder / "run"), "--workers", "1"]
    assert main([*arguments, "--out", str(tmp_path / "one")]) == 0
    run_python(*TORCHRUN, "-m", "pyddfast", *arguments, "--out", str(tmp_path / "two"))
    for name in ("set.safetensors", "set.json"):
        one, two = ((tmp_path / run / "set" / name).read_bytes() for run in ("one", "two"))
        assert one == two
    # The set was made once before, by the run that trained the teacher.
    assert (tmp_path / "one" / "set" / name).read_bytes() == (
        folder / "run" / "set" / name
    ).read_bytes()
    assert len(list((tmp_path / "two" / "crops" / "classes").iterdir())) == 5
    assert main([*arguments, "--out", str(tmp_path / "one"), "--resume"]) == 0
    # The value of on_error may change between the parts of a run.
    assert main([*arguments, "--on-error", "skip", "--out", str(tmp_path / "one"), "--resume"]) == 0
    capsys.readouterr()


def test_dali_makes_the_set_that_pillow_makes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*rded(folder), "--teacher", str(folder / "run"), "--backend", "dali"]
    assert main([*arguments, "--out", str(tmp_path / "dali")]) == 0
    for name in ("set.safetensors", "set.json"):
        one, two = (root / "set" / name for root in (folder / "run", tmp_path / "dali"))
        assert one.read_bytes() == two.read_bytes()
    embedded = ["distill", "rded", "--data", "fashion-mnist-mini", "--backend", "dali"]
    assert main([*embedded, "--out", str(tmp_path / "none")]) == 2
    assert "backend='dali' reads image files in their own sizes" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_ca2d_takes_the_scores_of_a_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score = ["score", "--data", "folder", "--root", str(folder), "--image-size", "16"]
    score += ["--epochs", "9", "--window", "2", "--model-option", "width=4", "norm=batch"]
    assert main([*score, "--out", str(tmp_path / "score")]) == 0
    arguments = [*rded(folder, "ca2d"), "--teacher", str(folder / "run")]
    arguments += ["--scores", str(tmp_path / "score")]
    assert main([*arguments, "--out", str(tmp_path / "ca2d")]) == 0
    made = DistilledSet.load(tmp_path / "ca2d" / "set")
    assert made.meta["method"] == "ca2d"
    cad = read_tensors(tmp_path / "score" / "scores.safetensors")[0]["cad"]
    for label in range(5):
        members = torch.arange(7 * label, 7 * label + 7)
        head = members[cad[members].sort(descending=True, stable=True).indices[:6]].tolist()
        assert set(made.meta["source_indices"][label]) <= set(head)
        boxes, _ = read_tensors(
            tmp_path / "ca2d" / "crops" / "classes" / f"{label:06d}.safetensors"
        )
        assert boxes["pool"].tolist() == head
    capsys.readouterr()
    wrong = [*arguments[:-1], str(folder), "--out", str(tmp_path / "x")]
    assert main(wrong) == 2
    assert "scores.safetensors is missing" in capsys.readouterr().err
    # As many images of the same classes, but others.
    other = tmp_path / "other"
    shutil.copytree(folder / "train", other / "train")
    first = next((other / "train").glob("*/*"))
    first.rename(first.with_name(f"new{first.suffix}"))
    arguments[arguments.index("--root") + 1] = str(other)
    assert main([*arguments, "--out", str(tmp_path / "x")]) == 2
    assert "scored other images or labels than the data set given" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_under_torchrun_what_is_missing_is_said(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from pyddfast.cli import options
    from pyddfast.train.distributed import Ranks

    monkeypatch.setattr(options, "join_ranks", lambda: Ranks(0, 2))
    assert main([*rded(folder), "--out", str(tmp_path / "a")]) == 2
    assert "give a trained teacher: --teacher" in capsys.readouterr().err
    teacher = ["--teacher", str(folder / "run")]
    assert main([*rded(folder, "ca2d"), *teacher, "--out", str(tmp_path / "b")]) == 2
    assert "give the scores of a finished run: --scores" in capsys.readouterr().err
