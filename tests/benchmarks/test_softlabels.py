"""The committed results of stored soft labels, and the pages that show them."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import softlabel_forms, softlabels
from benchmarks.schema import RESULTS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "softlabels.md").read_text()


def test_reading_a_store_and_official_files() -> None:
    result = json.loads((RESULTS / "softlabels" / "reading.json").read_text())
    assert [(r["batch_size"], r["images"]) for r in result["results"]] == list(softlabels.CASES)
    assert softlabels.table(result) in PAGE
    smallest = result["results"][0]
    assert smallest["files"]["official"] >= 10 * smallest["files"]["store"]
    for cache in ("warm", "cold"):
        official, store = (smallest["seconds"][f"{n} {cache}"] for n in ("official", "store"))
        assert official["median"] >= 5 * store["median"]


def test_what_shorter_forms_cost() -> None:
    result = json.loads((RESULTS / "softlabels" / "forms.json").read_text())
    assert [r["form"] for r in result["labels"]][:-1] == list(softlabel_forms.FORMS)
    assert [r["form"] for r in result["students"]] == list(softlabel_forms.STUDENT_FORMS)
    assert softlabel_forms.table(result) in PAGE


def test_the_benchmark_itself_reads_the_same_labels() -> None:
    row = softlabels.measure(2, 8, rounds=1)
    assert row["files"] == {"official": 4, "read_fkd": 4, "store": 4}
    # 8 rows of 1,000 float16, and what surrounds them.
    assert 16_000 < row["bytes"]["store"] < 20_000 < row["bytes"]["official"] < 40_000
    assert all(times["min"] > 0 for times in row["seconds"].values())
