"""The comparison of sets: numbers are those of the weights it leaves; it resumes and refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pyddfast import data, models
from pyddfast.coresets import random_scores, select
from pyddfast.data import DistilledSet, ImageDataset
from pyddfast.report import ComparisonConfig, compare_sets, comparison
from pyddfast.train import predict

MODEL = ("convnet-d3", {"width": 4})
CONFIG = ComparisonConfig(seeds=2, seed=7, epochs=2)


@pytest.fixture(scope="module")
def test_set() -> ImageDataset:
    whole = data.load("fashion-mnist-mini", split="test")
    rows = [(whole.labels == label).nonzero()[:6, 0] for label in range(10)]
    return whole.subset(torch.cat(rows))


@pytest.fixture(scope="module")
def sets() -> dict[str, DistilledSet]:
    train = data.load("fashion-mnist-mini", split="train")
    picked = {}
    for name, seed in (("first", 0), ("second", 1)):
        scores = random_scores(len(train), seed=seed)
        picked[name] = select(scores, train.labels, ipc=2, method="random").to_distilled(train)
    return picked


@pytest.fixture(scope="module")
def teacher() -> torch.nn.Module:
    return models.create(MODEL[0], 10, 1, 28, seed=3, width=4)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
    sets: dict[str, DistilledSet],
    test_set: ImageDataset,
    teacher: torch.nn.Module,
) -> Path:
    out = tmp_path_factory.mktemp("comparison") / "whole"
    compare_sets(
        sets,
        MODEL,
        CONFIG,
        test_set=test_set,
        teacher=teacher,
        teacher_info={"accuracy": 0.1},
        out=out,
        show=False,
    )
    return out


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_cells_are_the_accuracies_of_the_weights(finished: Path, test_set: ImageDataset) -> None:
    cells = read(finished / "results.json")["cells"]
    shown = [(c["method"], c["regime"]) for c in cells]
    assert shown == [(m, r) for m in ("first", "second") for r in ("HL", "SL", "SL+KD")]
    for cell in cells:
        regime = cell["regime"].lower().replace("+", "-")
        for accuracy, seed in zip(cell["accuracies"], (7, 8), strict=True):
            network = models.create(MODEL[0], 10, 1, 28, width=4)
            folder = finished / "students" / f"{cell['method']}-{regime}"
            network.load_state_dict(load_file(folder / f"seed{seed}.safetensors"))
            right = predict(network, test_set).argmax(1) == test_set.labels
            assert accuracy == pytest.approx(float(right.double().mean()), abs=1e-12)


def test_every_pair_is_judged_once(finished: Path) -> None:
    found = read(finished / "results.json")["differences"]
    pairs = {frozenset((tuple(d["first"]), tuple(d["second"]))) for d in found}
    # A pair of sets in each of three regimes, three pairs of regimes in each of two sets.
    assert len(found) == len(pairs) == 3 + 6


def test_the_page_has_recipes_lengths_and_numbers(finished: Path) -> None:
    html = (finished / "report.html").read_text()
    for text in (
        "SL+KD students train for 2 epochs instead of 300",
        "small-scale SL+KD: not in the paper",
        "Teacher: ConvNet, test accuracy 10.0 %",
        "AdamW, learning rate",
        "first: 20 images of 28 × 28 pixels",
    ):
        assert text in html


def test_a_stopped_run_continues_to_the_same_numbers(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sets: dict[str, DistilledSet],
    test_set: ImageDataset,
    teacher: torch.nn.Module,
) -> None:
    train_student, calls = comparison.train_student, 0

    def stopping(*args: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return train_student(*args, **keywords)

    def run() -> None:
        compare_sets(
            sets, MODEL, CONFIG, test_set=test_set, teacher=teacher, out=tmp_path, show=False
        )

    monkeypatch.setattr(comparison, "train_student", stopping)
    with pytest.raises(KeyboardInterrupt):
        run()
    kept = tmp_path / "students" / "first-hl" / "seed7.safetensors"
    written = kept.stat().st_mtime_ns
    run()
    assert kept.stat().st_mtime_ns == written
    same = (tmp_path / "results.json").read_bytes() == (finished / "results.json").read_bytes()
    assert same


def test_hard_labels_alone_need_no_teacher(
    tmp_path: Path, sets: dict[str, DistilledSet], test_set: ImageDataset, finished: Path
) -> None:
    config = replace(CONFIG, regimes=("hl",))
    alone = compare_sets(sets, MODEL, config, test_set=test_set, out=tmp_path, show=False)
    cells = read(finished / "results.json")["cells"]
    assert [list(r.accuracies) for r in alone.results] == [
        c["accuracies"] for c in cells if c["regime"] == "HL"
    ]


def test_batches_are_of_the_size_that_is_asked_for(
    sets: dict[str, DistilledSet], test_set: ImageDataset, tmp_path: Path
) -> None:
    config = replace(CONFIG, regimes=("hl",), batch_size=5)
    compare_sets(sets, MODEL, config, test_set=test_set, out=tmp_path / "run", device="cpu")
    stored = json.loads((tmp_path / "run/students/first-hl/result.json").read_text())["config"]
    # 20 images: 4 steps in each of 2 epochs; all else is the paper's.
    assert (stored["recipe"]["batch_size"], stored["budget"]["total_steps"]) == (5, 8)
    assert (stored["recipe"]["lr"], stored["recipe"]["epochs"]) == (0.01, 300)
    assert "Students take 5 images a step" in (tmp_path / "run/report.html").read_text()


def test_refuses_before_any_work(
    tmp_path: Path, sets: dict[str, DistilledSet], test_set: ImageDataset
) -> None:
    out = tmp_path / "new"
    smaller = select(
        random_scores(6000, seed=2),
        data.load("fashion-mnist-mini", split="train").labels,
        ipc=1,
        method="random",
    ).to_distilled(data.load("fashion-mnist-mini", split="train"))
    for given, message in (
        ({"one": sets["first"]}, "at least two sets, got 1"),
        ({**sets, "small": smaller}, "'small' has 1 images a class, 'first' 2"),
        ({"a/b": sets["first"], "c": sets["second"]}, "name becomes a folder"),
        (sets, "regime 'sl' needs a teacher"),
    ):
        with pytest.raises(ValueError, match=message):
            compare_sets(given, MODEL, CONFIG, test_set=test_set, out=out, show=False)
    assert not out.exists()
    for settings in ({"seeds": 1}, {"regimes": ()}, {"regimes": ("hl", "kd")}, {"epochs": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            ComparisonConfig(**settings)  # type: ignore[arg-type]
