"""The command that compares sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyddfast import data
from pyddfast.cli import main
from pyddfast.coresets import random_scores, select

SMALL = ["--model", "convnet-d1", "--model-option", "width=4", "--epochs", "1", "--seeds", "2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets as the commands leave them, in RUN/set."""
    folder = tmp_path_factory.mktemp("runs")
    train = data.load("fashion-mnist-mini", split="train")
    for seed, name in enumerate(("a", "b")):
        picked = select(random_scores(len(train), seed=seed), train.labels, ipc=1, method="random")
        picked.to_distilled(train).save(folder / name / "set")
    return folder


def test_compares_runs_by_their_names(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["compare", "--sets", str(runs / "a"), str(runs / "b" / "set"), *SMALL]
    assert main([*command, "--regimes", "hl", "--out", str(out)]) == 0
    cells = json.loads((out / "results.json").read_text())["cells"]
    assert [(c["method"], c["regime"], len(c["accuracies"])) for c in cells] == [
        ("a", "HL", 2),
        ("b", "HL", 2),
    ]
    said = capsys.readouterr().out
    for cell in cells:
        assert f"{100 * cell['mean']:.1f} ±" in said
    assert str(out / "report.html") in said.replace("\n", "")
    # Again without --resume: refused; with it: read.
    assert main([*command, "--regimes", "hl", "--out", str(out)]) == 2
    assert main([*command, "--regimes", "hl", "--out", str(out), "--resume"]) == 0


def test_refuses_before_any_work(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for words, message in (
        (["--sets", str(runs / "a"), str(runs / "a" / "set")], "different names, got a, a"),
        (["--sets", str(runs / "a"), str(runs / "b"), "--names", "x"], "1 names for 2 sets"),
        (["--sets", str(runs / "a"), str(runs / "b")], "regime 'sl' needs a teacher"),
    ):
        assert main(["compare", *words, *SMALL, "--out", str(out)]) == 2
        assert message in capsys.readouterr().err
    assert not out.exists()
