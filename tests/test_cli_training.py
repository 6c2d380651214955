"""``pyddfast train`` on sets that official codes wrote, under torchrun, and ``evaluate``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pyddfast import models
from pyddfast.cli import main
from pyddfast.cli.sets import test_view as shorter_side
from pyddfast.data import IMAGENET_NORMALIZATION, DistilledSet, ImageFolder, write_layout
from pyddfast.train import evaluate
from tests.processes import TORCHRUN, run_python

SYNSETS = ("n01518878", "n01530575", "n02102040")
SMALL = ["--regime", "hl", "--model", "convnet-d1", "--model-option", "width=4", "--steps", "2"]
SMALL += ["--seeds", "1", "--evaluations", "1", "--device", "cpu"]

pytestmark = pytest.mark.usefixtures("one_thread")


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A test split of real folders: JPEGs of several sizes."""
    root = tmp_path_factory.mktemp("data")
    for label, name in enumerate(SYNSETS):
        for split, count in (("train", 2), ("val", 3)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                shape = (90 + 5 * label, 100 + 7 * i, 3)
                Image.fromarray(pixels(10 * label + i, *shape)).save(folder / f"{i}.JPEG")
    return root


@pytest.fixture(scope="module")
def distilled() -> DistilledSet:
    images = torch.from_numpy(pixels(1, 6, 3, 70, 70))
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    return DistilledSet(images, labels, 3, IMAGENET_NORMALIZATION, kind="synthetic")


@pytest.mark.parametrize("image_format", ["png", "jpeg"])
@pytest.mark.parametrize("layout", ["sre2l", "rded", "d4m", "synset"])
def test_every_layout_trains_and_evaluates(
    root: Path,
    distilled: DistilledSet,
    tmp_path: Path,
    layout: str,
    image_format: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = write_layout(
        distilled, tmp_path / "set", layout, image_format=image_format, synsets=SYNSETS  # type: ignore[arg-type]
    )  # fmt: skip
    out = tmp_path / "run"
    data = ["--data", "folder", "--root", str(root)]
    # Of the side 70: test images are resized to 80, as 256 is to 224.
    train = ["train", "--set", str(images), "--layout", "auto", *SMALL, *data, "--factor", "2"]
    assert main([*train, "--precision", "bf16", "--accumulate", "2", "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert f"layout {layout}; folder " in told.err
    assert "is class 0, n01518878" in told.err
    result = json.loads((out / "students" / "result.json").read_text())
    config = result["config"]
    assert config["recipe"]["scale"] == "large"
    assert (config["set"]["kind"], config["set"]["factor"]) == ("patches", 2)
    assert config["set"]["image_shape"] == [3, 70, 70]
    assert config["execution"]["precision"] == "bf16"
    assert config["test_set"]["count"] == 9

    student = models.create("convnet-d1", num_classes=3, image_size=(70, 70), width=4)
    student.load_state_dict(load_file(out / "students" / "seed0.safetensors"))
    test = ImageFolder(root / "val", image_size=70, resize=80)
    assert result["seeds"][0]["last_accuracy"] == evaluate(student, test.resident())
    if image_format == "png" and layout == "synset":
        for weights in (out, out / "students" / "seed0.safetensors"):
            assert main(["evaluate", str(weights), *data]) == 0
            shown = capsys.readouterr().out
            assert f"{100 * result['mean']:.2f}" in shown
            assert "9 test images" in shown


def failing(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err.replace("\n", " ")


def test_sets_that_do_not_fit_the_test_classes_are_told(
    root: Path, distilled: DistilledSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", "folder", "--root", root, "--out", tmp_path / "run"]
    other = ("n01518878", "n01530575", "n99999999")
    named = write_layout(distilled, tmp_path / "named", "synset", synsets=other)
    train = ["train", *SMALL, *data, "--set"]
    assert "n99999999 is none of the class_names" in failing(capsys, *train, named)
    more = DistilledSet(distilled.images, distilled.labels + 1, 4, IMAGENET_NORMALIZATION)
    numbered = write_layout(more, tmp_path / "numbered", "sre2l")
    assert "new003 has the label 3, there are 3 classes" in failing(capsys, *train, numbered)
    assert "take 88,200 bytes on cpu, the limit is 5" in failing(
        capsys, *train, write_layout(distilled, tmp_path / "set", "rded"), "--limit-bytes", 5
    )
    distilled.save(tmp_path / "own")
    assert "--factor is for official codes' folders" in failing(
        capsys, *train, tmp_path / "own", "--factor", 2
    )
    assert not (tmp_path / "run").exists()
    fewer = DistilledSet(distilled.images, distilled.labels // 2, 3, IMAGENET_NORMALIZATION)
    streamed = ["--limit-bytes", 5, "--on-overflow", "stream"]
    few = write_layout(fewer, tmp_path / "fewer", "d4m")
    capsys.readouterr()
    assert main([str(word) for word in (*train, few, *streamed)]) == 0
    assert "1 of 3 classes have no image" in capsys.readouterr().err


def test_torchrun_shares_a_training(tmp_path: Path, root: Path, distilled: DistilledSet) -> None:
    images = write_layout(distilled, tmp_path / "set", "rded")
    words = ["train", "--set", str(images), *SMALL, "--data", "folder", "--root", str(root)]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    done = run_python(*TORCHRUN, "-m", "pyddfast", *words, "--out", str(tmp_path / "two"))
    assert done.stdout.count("standard error of") == 1  # one process speaks
    one, two = (
        load_file(tmp_path / run / "students" / "seed0.safetensors") for run in ("one", "two")
    )
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)


def test_evaluate_says_what_it_lacks(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pyddfast.data.stored import write_tensors

    student = models.create("mlp", num_classes=10, in_channels=1, image_size=(28, 28))
    write_tensors(tmp_path / "w.safetensors", student.state_dict())
    file = tmp_path / "w.safetensors"
    assert main(["evaluate", str(file), "--model", "mlp"]) == 0
    assert "2,000 test images of fashion-mnist-mini" in capsys.readouterr().out
    assert "no run beside it that tells its network" in failing(capsys, "evaluate", file)
    folder = ["--data", "folder", "--root", root]
    assert "--image-size is needed" in failing(capsys, "evaluate", file, "--model", "mlp", *folder)
    assert "does not fit the network" in failing(capsys, "evaluate", file, "--model", "resnet18")
    assert "holds neither students nor a teacher" in failing(capsys, "evaluate", tmp_path)
    assert "neither a folder nor a file" in failing(capsys, "evaluate", tmp_path / "x")
    (tmp_path / "config.json").write_text('{"config": {"model": 3}}')
    assert "is not the configuration of a training" in failing(capsys, "evaluate", file)


# ImageNet's 224 of 256; a side that 7 does not divide; the small sets' largest side; as told.
def test_the_test_view() -> None:
    assert [shorter_side(side, None) for side in (224, 300, 64)] == [256, 336, 64]
    assert shorter_side(224, 232) == 232
