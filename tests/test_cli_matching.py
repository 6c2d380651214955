"""``pyddfast distill dc|dsa|dm`` and the tensor files of official codes, from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pyddfast.cli import main
from pyddfast.data import DistilledSet

pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = ["--ipc", "1", "--iterations", "2", "--real-batch", "4", "--model-option", "width=4"]


@pytest.mark.parametrize("method", ["dc", "dsa", "dm"])
def test_a_set_is_made_resumed_trained_on_and_exported(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["distill", method, *SHORT, "--out", str(out)]
    assert main(command) == 0
    made = DistilledSet.load(out / "set")
    assert made.labels.tolist() == list(range(10))
    assert (made.meta["method"], made.images.dtype) == (method, torch.float32)
    assert main(command) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    train = ["train", "--set", str(out), "--regime", "hl", "--protocol", "official", "--epochs"]
    train += ["2", "--seeds", "1", "--model-option", "width=4", "--out", str(tmp_path / "students")]
    assert main(train) == 0
    file = tmp_path / f"res_{method.upper()}_FashionMNIST_ConvNet_1ipc.pt"
    assert main(["set", "export", str(out), str(file), "--layout", "vico"]) == 0
    command = ["set", "import", str(file), str(tmp_path / "back"), "--layout", "vico"]
    capsys.readouterr()
    assert main([*command, "--data", "fashion-mnist"]) == 0
    assert "normalised as vico normalises fashion-mnist" in capsys.readouterr().out
    back = DistilledSet.load(tmp_path / "back")
    assert torch.equal(back.images, made.images)
    assert back.normalization == made.normalization
    assert back.meta["method"] == method


def test_what_does_not_fit_is_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (["distill", "dc", "--ipc", "7"], "give both for ipc = 7"),
        (["distill", "dm", "--png", "--zca"], "leave --png or --zca out"),
        (["distill", "dm", "--model", "resnet20"], "name must be one of"),
    ):
        assert main([*arguments, "--out", str(tmp_path / "run")]) == 2
        assert message in capsys.readouterr().err
