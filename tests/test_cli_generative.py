"""``pyddfast distill d4m|minimax`` from the command line, on tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pyddfast.cli import main
from pyddfast.data import DistilledSet
from tests.methods.generative_cases import tiny_dit, tiny_sd

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 12 images as files of two sizes."""
    pil = pytest.importorskip("PIL.Image")
    root = tmp_path_factory.mktemp("data")
    g = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        for name in ("bird", "cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(12):
                side = 8 + 2 * (number % 2)
                image = torch.randint(0, 256, (side, side, 3), generator=g).to(torch.uint8)
                pil.fromarray(image.numpy()).save(root / split / name / f"{number}.png")
    return root


def test_both_methods_make_sets_of_image_files(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sd, dit = tiny_sd(tmp_path / "sd", channels=3), tiny_dit(tmp_path / "dit", channels=3)
    words = tmp_path / "words.txt"
    words.write_text("a bird\t0\na cat\t1\na dog\t2\n")
    data = ["--data", "folder", "--root", str(folder), "--ipc", "2", "--png"]
    d4m = ["distill", "d4m", *data, "--model", str(sd), "--steps", "4", "--prompts", str(words)]
    d4m += ["--image-size", "8", "--out", str(tmp_path / "d4m")]
    assert main(d4m) == 0
    made = DistilledSet.load(tmp_path / "d4m" / "set")
    assert (made.images.shape, made.images.dtype) == ((6, 3, 8, 8), torch.uint8)
    assert made.meta["prompts"] == ["a bird", "a cat", "a dog"]
    assert len(list((tmp_path / "d4m" / "png").glob("*/*.png"))) == 6
    file = next((tmp_path / "d4m" / "matching").glob("*-ipc2-kmexpand1.json"))
    again = [*d4m[:-1], str(tmp_path / "again"), "--prototypes", str(file)]
    assert main(again) == 0
    assert torch.equal(DistilledSet.load(tmp_path / "again" / "set").images, made.images)
    assert main([*d4m, "--resume"]) == 0
    minimax = ["distill", "minimax", *data, "--model", str(dit), "--steps", "3", "--epochs", "1"]
    minimax += ["--phase-classes", "2", "--model-classes", "2", "1", "0"]
    assert main([*minimax, "--out", str(tmp_path / "minimax")]) == 0
    made = DistilledSet.load(tmp_path / "minimax" / "set")
    assert made.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert made.meta["model_classes"] == [2, 1, 0]
    capsys.readouterr()


def test_what_does_not_fit_is_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "words.txt").write_text("one\n")
    for arguments, message in (
        (["d4m", "--prompts", str(tmp_path / "words.txt")], "10 are needed, got 1"),
        (["d4m"], "is no folder; give a local one"),
        (["minimax", "--model-classes", "1"], "one for each of 10 classes"),
        (["minimax"], "is no folder; give a local one"),
    ):
        command = ["distill", *arguments, "--model", str(tmp_path / "none")]
        assert main([*command, "--out", str(tmp_path / "run")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
