"""The coreset study on a part of the embedded data: every method picks, and the run resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import coresets_study as study
from pyddfast import data
from pyddfast.coresets import Selection
from pyddfast.train import RunFolder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> study.Study:
    """Eight images of each class, networks of four channels."""

    def load(name: str, *, root: Path | None, split: str) -> data.ImageDataset:
        whole = data.load(name, split=split)
        rows = [(whole.labels == label).nonzero()[:8, 0] for label in range(10)]
        return whole.subset(torch.cat(rows))

    monkeypatch.setattr(study, "load", load)
    monkeypatch.setattr(study, "NETWORK", ("convnet-d1", {"norm": "batch", "width": 4}))
    monkeypatch.setattr(study, "STUDENT", ("convnet-d1", {"width": 4}))
    scale = study.Scale("fashion-mnist-mini", 1, 6, (2, 1), 3, 6, {2: 8})
    return study.Study(scale, RunFolder(tmp_path / "run", {}), None)


def test_every_method_picks_two_of_each_class(small: study.Study) -> None:
    rows = [study.select(small, name, 2) for name in study.METHODS]
    folder = small.run.path / "picks"
    for row in rows:
        picked = Selection.load(folder / f"{row['method']}-2.npz")
        different = 10 if row["method"] == "random, half of it twice" else 20
        assert len(picked.indices.unique()) == different
        assert torch.bincount(small.train.labels[picked.indices]).tolist() == [2] * 10
    by_name = {row["method"]: row for row in rows}
    # Eighty images, a network of one epoch; ten windows of twenty images for eight epochs.
    assert by_name["random"]["images_trained"] == 0
    assert by_name["GraphCut"]["images_trained"] == 80
    assert by_name["GraNd, all weights"]["images_trained"] == 2 * 80
    assert by_name["forgetting"]["images_trained"] == 6 * 80
    assert by_name["EL2N-Best"]["images_trained"] == 2 * 80 + 10 * 8 * 20
    assert by_name["CAD-Prune"]["images_trained"] == 8 * 20
    assert by_name["CAD-Prune"]["training_seconds"] > 0
    assert len(by_name["EL2N-Best"]["sweep"]["accuracies"]) == 10
    # Asked again it reads.
    assert study.select(small, "GraphCut", 2) == by_name["GraphCut"]


def test_the_table_has_a_line_a_method() -> None:
    row: dict[str, Any] = {"images_trained": 61400, "peak_bytes": 3 << 20}
    rows = [
        {"method": "b", "ipc": 10, "accuracies": [0.25, 0.25], "selection_seconds": None, **row},
        {"method": "a", "ipc": 10, "accuracies": [0.5, 0.6], "selection_seconds": 0.251, **row},
        {"method": "a", "ipc": 50, "accuracies": [0.7, 0.7], "selection_seconds": 2.5, **row},
    ]
    assert study.table(rows).splitlines() == [
        "| method | IPC 10 | IPC 50 | images trained | picking | memory |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| a | 55.0 ± 7.1 | 70.0 ± 0.0 | 61,400 | 2.50 s | 3 MiB |",
        "| b | 25.0 ± 0.0 |  | 61,400 |  | 3 MiB |",
    ]


def test_the_page_has_the_committed_table() -> None:
    rows = json.loads((study.RESULTS / "coresets" / "smoke.json").read_text())["rows"]
    page = (study.RESULTS.parents[1] / "docs" / "coresets.md").read_text()
    assert study.table(rows) in page
