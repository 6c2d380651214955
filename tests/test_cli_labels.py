"""The commands of sets and stored labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyddfast import data
from pyddfast.cli import main
from pyddfast.data import SoftLabels, write_layout
from pyddfast.train import train_teacher
from tests.data.fkd_files import official_folder


@pytest.fixture
def small() -> data.ImageDataset:
    """Thirty images of each class."""
    whole = data.load("fashion-mnist-mini")
    rows = [(whole.labels == label).nonzero()[:30, 0] for label in range(10)]
    return whole.subset(torch.cat(rows))


def test_check_set_finds_a_wrong_order(
    small: data.ImageDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ("convnet-d1", {"width": 16, "norm": "batch"})
    teacher = train_teacher(
        small, model, test_set=small, epochs=4, out=tmp_path / "teacher", progress=False
    )
    # The same images in folders that are numbered from 1 and wrap around.
    made = data.DistilledSet(small.images, (small.labels + 1) % 10, 10, small.normalization)
    write_layout(made, tmp_path / "set", "rded")
    words = ["check-set", str(tmp_path / "set"), "--teacher", str(tmp_path / "teacher")]
    assert main([*words, "--device", "cpu", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["count"], report["ipc"], report["layout"]) == (300, [30, 30], "rded")
    assert report["suggestion"] == "labels that begin at 1 (one subtracted)"
    # The accuracy on the same images with the right labels, which the teacher's training measured.
    assert report["suggested_accuracy"] == teacher.record["accuracy"] > 2 * report["accuracy"]
    assert main([*words, "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "300 images of 1 x 28 x 28\n10 classes, 30 images each\nlayout: rded\n" in text
    assert f"right about {report['accuracy']:.2%} of them (chance 10.00%)" in text
    assert "warning: it would be right about" in text


def test_check_set_without_a_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in (0, 2):
        folder = tmp_path / "set" / f"new{label:03d}"
        folder.mkdir(parents=True)
        pixels = np.zeros((4, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"class{label:03d}_id000.png")
    assert main(["check-set", str(tmp_path / "set"), "--num-classes", "4"]) == 0
    out = capsys.readouterr().out
    assert "2 images of 3 x 4 x 6" in out
    assert "warning: 2 of 4 classes have no image" in out
    assert main(["check-set", str(tmp_path / "set"), "--num-classes", "2"]) == 2
    assert "has the label 2, there are 2 classes" in capsys.readouterr().err
    assert main(["check-set", str(tmp_path / "set"), "--teacher", str(tmp_path)]) == 2
    assert "teacher.json is missing" in capsys.readouterr().err


def test_labels_go_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    official_folder(tmp_path / "fkd")
    paths = {name: str(tmp_path / name) for name in ("fkd", "store", "again", "files", "short")}
    assert main(["labels", "import", paths["fkd"], paths["store"], "--sampler-seed", "3"]) == 0
    assert "2 epochs of 11 images, 7 classes, float16" in capsys.readouterr().out
    assert SoftLabels(paths["store"]).info.sampler_seed == 3
    assert main(["labels", "export", paths["store"], paths["files"]]) == 0
    assert main(["labels", "import", paths["files"], paths["again"], "--sampler-seed", "3"]) == 0
    for name in ("logits.npy", "views.npy", "mixes.npy", "store.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "store" / name).read_bytes()
    assert main(["labels", "recode", paths["store"], paths["short"], "--form", "top3"]) == 0
    assert SoftLabels(paths["short"]).info.form == "top3"
    capsys.readouterr()
    assert main(["labels", "recode", paths["store"], paths["short"], "--form", "top9"]) == 2
    assert "needs more than 9 classes, there are 7" in capsys.readouterr().err
