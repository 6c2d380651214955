"""The coreset study on a part of the embedded data: every method picks, and the run resumes."""

from __future__ import annotations

import json
import statistics
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


def test_the_page_has_the_committed_table_and_says_what_is_in_it() -> None:
    run = json.loads((study.RESULTS / "coresets" / "medium.json").read_text())
    page = (study.RESULTS.parents[1] / "docs" / "coresets.md").read_text()
    assert run["complete"]
    assert study.table(run["rows"]) in page
    rows = {(row["method"], row["ipc"]): row for row in run["rows"]}
    assert {name for name, _ in rows} == set(study.METHODS)
    means = {key: 100 * statistics.fmean(row["accuracies"]) for key, row in rows.items()}

    def over(name: str, other: str = "random") -> tuple[int, int]:
        return tuple(round(means[name, ipc] - means[other, ipc]) for ipc in (10, 50))  # type: ignore[return-value]

    assert f"({100 * run['network']['accuracy']:.1f} %)" in page
    assert over("k-centers") == (-16, -12)
    assert over("CAD-Prune") == (-6, -17)
    assert over("facility location") == over("k-means medoids") == (5, 2)
    assert over("herding") == (4, 1)
    assert over("EL2N-Best") == (4, 1)
    assert over("DUAL, Beta") == (0, 1)
    assert over("GraNd, all weights", "GraNd, last layer") == (12, 5)
    assert over("random, half of it twice") == (-2, -1)
    unsure = ("forgetting", "GraNd, all weights", "entropy", "margin", "CAL", "Glister", "DUAL")
    assert all(max(over(name)) <= -14 for name in unsure)
    sweeps = [rows["EL2N-Best", ipc]["sweep"]["accuracies"] for ipc in (10, 50)]
    assert [sweep.index(max(sweep)) for sweep in sweeps] == [8, 6]
    seconds = [rows[name, 50]["training_seconds"] for name in ("EL2N-Best", "CAD-Prune")]
    assert f"that was {seconds[0]:.0f} s and {seconds[1]:.0f} s" in page


def test_the_committed_smoke_run_is_complete() -> None:
    run = json.loads((study.RESULTS / "coresets" / "smoke.json").read_text())
    assert run["complete"]
    assert {row["method"] for row in run["rows"]} == set(study.METHODS)
