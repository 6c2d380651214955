"""``pyddfast experts``, ``distill tm`` and ``datm``, whitened and not, and their students."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyddfast import data, methods, models, train
from pyddfast.cli import main
from pyddfast.data import DistilledSet, Trajectories

pytestmark = pytest.mark.usefixtures("one_thread")

NET = ["--model", "convnet-d1", "--model-option", "width=4"]
SHORT = ["--ipc", "2", "--iterations", "3", "--syn-steps", "2", "--max-start-epoch", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two classes of 8 x 8 pictures, bright above or below."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for label, name in enumerate(("above", "below")):
            place = root / split / name
            place.mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(0, 150, (8, 8, 3), dtype=np.uint8)
                pixels[4 * label : 4 * label + 4] += 100
                Image.fromarray(pixels).save(place / f"{k}.png")
    return ["--data", "folder", "--root", str(root), "--image-size", "8"]


@pytest.fixture(scope="module")
def experts(folder: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("experts") / "run"
    given = ["--count", "2", "--epochs", "4", "--batch-size", "8", "--out", str(out)]
    assert main(["experts", *folder, *NET, *given]) == 0
    return out


def test_experts_then_tm(
    folder: list[str], experts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Trajectories(experts)
    assert (len(found), found.epochs) == (2, 4)
    out = tmp_path / "tm"
    command = ["distill", "tm", *folder, *NET, *SHORT, "--experts", str(experts), "--png"]
    assert main([*command, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    made = DistilledSet.load(out / "set")
    assert f"learning rate of students: {made.lr:.4g}" in shown
    assert made.images.dtype == torch.float32
    assert len(list((out / "png").rglob("*.png"))) == 4
    rows = (out / "matching" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["iteration"] for row in rows[:-1]] == [0, 1, 2]
    before = (out / "set" / "set.safetensors").read_bytes()
    assert main([*command, "--out", str(out), "--resume"]) == 0
    assert (out / "set" / "set.safetensors").read_bytes() == before


def test_whitened_datm_and_its_students(
    folder: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    white, run, out = [*folder, "--zca"], tmp_path / "experts", tmp_path / "datm"
    given = ["--count", "2", "--epochs", "4", "--batch-size", "8", "--gsam"]
    assert main(["experts", *white, *NET, *given, "--out", str(run)]) == 0
    assert len(list((tmp_path / "cache" / "pyddfast").glob("zca-*.safetensors"))) == 1
    assert json.loads((run / "config.json").read_text())["config"]["sharpness"]["rho"] == 0.01
    command = ["distill", "datm", *NET, *SHORT, "--init", "real", "--lr-img", "1e-9"]
    command += ["--experts", str(run)]
    assert main([*command, *white, "--out", str(out)]) == 0
    made = DistilledSet.load(out / "set")
    assert made.whitened
    assert made.soft_labels is not None
    images = data.load("folder", root=white[3], split="train", image_size=8).resident()
    whitening = data.ZCAWhitening().fit(images.images)
    # The first images are whitened real ones, hardly moved.
    real = data.whiten(images, whitening).images
    assert (real[:, None] - made.images[None]).flatten(2).norm(dim=2).min(0).values.max() < 1e-3
    students = ["train", "--set", str(out), "--regime", "hl", "--epochs", "1", "--seeds", "1", *NET]
    assert main([*students, *folder[:4], "--zca", "--out", str(tmp_path / "s")]) == 0
    capsys.readouterr()
    assert main([*students, *folder[:4], "--out", str(tmp_path / "t")]) == 2
    assert "ZCA-whitened" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--max-start-epoch", "9"], "need experts of 10 epochs"),
        (["--model-option", "width=5"], "another architecture"),
        (["--zca", "--png"], "whitened images have no pixels"),
        (["--ipc", "13"], "larger than a class"),
    ],
)
def test_refused(
    folder: list[str], experts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    extra: list[str], message: str,
) -> None:  # fmt: skip
    command = ["distill", "tm", *folder, *NET, *SHORT, "--experts", str(experts), *extra]
    assert main([*command, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err


def test_no_experts(folder: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["distill", "datm", *folder, *NET, "--experts", str(tmp_path / "none")]
    assert main([*command, "--out", str(tmp_path / "run")]) == 2
    assert "holds no expert trajectories" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_experts_of_other_or_unfinished_runs(
    folder: list[str], experts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = ["distill", "tm", *folder, *NET, *SHORT]
    white = [*command, "--zca", "--experts", str(experts), "--out", str(tmp_path / "white")]
    assert main(white) == 2
    assert "are not whitened, those of the data set ZCA-whitened" in capsys.readouterr().err
    stopped = tmp_path / "stopped"
    shutil.copytree(experts, stopped)
    file = stopped / "config.json"
    file.write_text(file.read_text().replace('"count": 2', '"count": 12', 1))
    assert main([*command, "--experts", str(stopped), "--out", str(tmp_path / "tm")]) == 2
    assert "holds 2 of 12 experts" in capsys.readouterr().err


def test_a_whitened_task_from_teacher_to_comparison(
    folder: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    given, made, run = folder[:4], tmp_path / "dm", tmp_path / "students"
    command = ["distill", "dm", *folder, "--zca", *NET, "--ipc", "2", "--iterations", "1"]
    assert main([*command, "--out", str(made)]) == 0
    train = ["train", "--set", str(made), *given, *NET, "--seeds", "1", "--epochs", "1"]
    new = ["--teacher-model", "convnet-d1", "--teacher-option", "width=4", "--teacher-epochs", "1"]
    assert main([*train, "--zca", "--regime", "sl", *new, "--out", str(run)]) == 0
    record = json.loads((run / "teacher" / "teacher.json").read_text())
    assert record["config"]["recipe"]["augmentation"] == "dsa"
    told = json.loads((run / "students" / "result.json").read_text())
    capsys.readouterr()

    assert main(["evaluate", str(run), *given]) == 2
    assert "give --zca" in capsys.readouterr().err
    assert main(["evaluate", str(run), *given, "--zca"]) == 0
    accuracy = 100 * told["mean"]
    assert f"{accuracy:.2f}" in capsys.readouterr().out

    assert main(["check-set", str(made), "--teacher", str(run)]) == 0
    plain = tmp_path / "plain"
    command = ["distill", "dm", *folder, *NET, "--ipc", "2", "--iterations", "1"]
    assert main([*command, "--out", str(plain)]) == 0
    capsys.readouterr()
    assert main(["check-set", str(plain), "--teacher", str(run)]) == 2
    assert "learned are ZCA-whitened, these are not whitened" in capsys.readouterr().err

    relabel = ["relabel", "--set", str(made), "--teacher", str(run), "--epochs", "1"]
    assert main([*relabel, "--out", str(tmp_path / "labels")]) == 2
    assert "random crops, which take uint8 images" in capsys.readouterr().err
    assert not (tmp_path / "labels").exists()

    shutil.copytree(made, tmp_path / "again")
    both = [
        "compare",
        "--sets",
        str(made),
        str(tmp_path / "again"),
        "--zca",
        *given,
        *NET,
        "--regimes",
        "hl",
    ]
    assert main([*both, "--seeds", "2", "--epochs", "1", "--out", str(tmp_path / "all")]) == 0


def test_whitened_images_in_the_wrong_place(tmp_path: Path) -> None:
    plain = data.load("fashion-mnist-mini").subset(range(40))
    white = data.whiten(plain, data.ZCAWhitening().fit(plain))
    net = ("convnet-d1", {"width": 4})
    with pytest.raises(ValueError, match="both be whitened"):
        train.train_teacher(white, net, test_set=plain, epochs=1, progress=False)
    with pytest.raises(ValueError, match="both be whitened"):
        train.train_experts(plain, net, test_set=white, out=tmp_path / "run", count=1, epochs=1)
    assert not (tmp_path / "run").exists()
    teacher = models.create("convnet-d1", num_classes=10, in_channels=1, image_size=28, width=4)
    with pytest.raises(ValueError, match=r"uint8 images, not torch\.float32"):
        methods.rded(white, teacher, methods.RDEDConfig(ipc=1))
