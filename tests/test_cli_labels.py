"""The commands of sets and stored labels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pyddfast import data
from pyddfast.cli import main
from pyddfast.data import SoftLabels, write_layout
from pyddfast.train import Epochs, train_student, train_teacher
from pyddfast.train import recipe as recipe_of
from pyddfast.train.stored import open_labels
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


def test_relabel_and_train_on_what_it_stored(
    small: data.ImageDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ("convnet-d1", {"width": 4, "norm": "batch"})
    teacher = train_teacher(
        small, model, test_set=small, epochs=1, out=tmp_path / "teacher", device="cpu"
    )
    rows = torch.cat([(small.labels == label).nonzero()[:3, 0] for label in range(10)])
    part = small.subset(rows)
    made = data.DistilledSet(
        part.images, part.labels, 10, part.normalization, part.class_names, kind="real"
    )
    made.save(tmp_path / "set")
    paths = {name: str(tmp_path / name) for name in ("set", "teacher", "labels", "run")}
    recipe = ["--recipe", "batch_size=8", "warmup_epochs=0"]
    words = ["relabel", "--set", paths["set"], "--teacher", paths["teacher"], "--epochs", "2"]
    words += ["--out", paths["labels"], "--form", "float32", "--seed", "3", "--device", "cpu"]
    assert main([*words, *recipe]) == 0
    assert "2 epochs of 30 images, 10 classes, float32" in capsys.readouterr().out
    assert main([*words, *recipe]) == 2  # without --resume nothing is touched
    assert "holds a run; resume it (--resume" in capsys.readouterr().err
    train = ["train", "--set", paths["set"], "--regime", "sl-kd", "--labels", paths["labels"]]
    train += ["--model", "convnet-d1", "--model-option", "width=4", "norm=batch", "--seeds", "1"]
    train += ["--seed", "3", "--evaluations", "1", "--device", "cpu"]
    assert main([*train, "--out", paths["run"]]) == 2
    assert "labels for 2 epochs, the training has 200" in capsys.readouterr().err
    assert main([*train, "--out", paths["run"], "--epochs", "2"]) == 0
    # As with the teacher beside the student.
    config = json.loads((tmp_path / "run" / "students" / "config.json").read_text())["config"]
    assert config["teacher"] is None
    assert config["labels"]["form"] == "float32"
    train_student(
        made,
        "sl-kd",
        model,
        test_set=data.load("fashion-mnist-mini", split="test"),
        teacher=teacher.model,
        recipe=recipe_of("sl-kd", "large", batch_size=8, warmup_epochs=0),
        budget=Epochs(2),
        seeds=(3,),
        evaluations=1,
        device="cpu",
        out=tmp_path / "online",
    )
    online = load_file(tmp_path / "online" / "seed3.safetensors")
    replayed = load_file(tmp_path / "run" / "students" / "seed3.safetensors")
    for name, value in online.items():
        assert torch.equal(value, replayed[name])


def test_official_labels_find_their_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """D4M's folders and Minimax's files sort otherwise as text than by number."""
    official_folder(tmp_path / "fkd", batch_sizes=(9, 9, 6), num_classes=12, elements=7)
    rng = np.random.default_rng(0)
    for label in range(12):
        folder = tmp_path / "set" / str(label)
        folder.mkdir(parents=True)
        for number in (9, 10):
            pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{label}-image{number}.png")
    words = ["labels", "import", str(tmp_path / "fkd"), str(tmp_path / "store")]
    assert main([*words, "--set", str(tmp_path / "set")]) == 0
    store, distilled = SoftLabels(tmp_path / "store"), data.read_layout(tmp_path / "set")
    store.check(distilled)
    hidden = tmp_path / "set" / "3" / ".ipynb_checkpoints"
    hidden.mkdir()
    Image.new("RGB", (4, 4)).save(hidden / "3-image9-checkpoint.png")
    (tmp_path / "set" / ".ipynb_checkpoints").mkdir()
    assert main([*words[:3], str(tmp_path / "again"), "--set", str(tmp_path / "set")]) == 0
    assert SoftLabels(tmp_path / "again").sha256 == store.sha256
    shutil.rmtree(hidden)
    (tmp_path / "set" / ".ipynb_checkpoints").rmdir()
    # As torchvision's ImageFolder counts them.
    files = [f for d in sorted((tmp_path / "set").iterdir()) for f in sorted(d.iterdir())]
    for epoch in range(2):
        for number in range(3):
            file = tmp_path / "fkd" / f"epoch_{epoch}" / f"batch_{number}.tar"
            official = torch.load(file, weights_only=False)[6]
            index = store.batch(epoch, number).index
            assert index is not None
            for mine, theirs in zip(index, official, strict=True):
                pixels = np.array(Image.open(files[theirs]))
                assert np.array_equal(distilled.images[mine].permute(1, 2, 0).numpy(), pixels)
    assert main(["labels", "export", str(tmp_path / "store"), str(tmp_path / "out")]) == 2
    assert "counts images as its set does" in capsys.readouterr().err
    with pytest.raises(ValueError, match="official files: make a store by pyddfast labels import"):
        open_labels(tmp_path / "fkd")
    made = data.DistilledSet(
        distilled.images, distilled.labels.flip(0), 12, distilled.normalization
    )
    made.save(tmp_path / "flipped")
    words[-1] += "2"
    assert main([*words, "--set", str(tmp_path / "flipped")]) == 2
    assert "not in the order of their classes" in capsys.readouterr().err
    with pytest.raises(ValueError, match="image_order must hold each of 0 to 23 once"):
        data.import_fkd(tmp_path / "fkd", words[-1], image_order=torch.zeros(24))
