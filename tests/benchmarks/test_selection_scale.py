"""Selection at ImageNet's size: a small run, and the committed one."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.schema import RESULTS
from benchmarks.selection_scale import CENTERS, CLASSES, UNBALANCED, measure

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ops" / "select.md"


def test_a_small_run() -> None:
    result = measure(1, 3000, 4)
    assert result["facility_location"]["classes"] == 1
    assert (result["k_center"]["rows"], result["k_center"]["picks"]) == (3000, 4)
    assert result["k_center"]["seconds"] > 0


def test_the_committed_result() -> None:
    result = json.loads((RESULTS / "selection" / "scale.json").read_text())
    location, center = result["facility_location"], result["k_center"]
    assert location["classes"] == CLASSES
    assert (center["rows"], center["picks"]) == (UNBALANCED, CENTERS)
    # A distance a row beyond the features, and little more.
    assert center["bytes"] < 16 * UNBALANCED
    shown = " ".join(PAGE.read_text().split())
    assert f"1300 rows, 130 picks each, take {location['seconds']:.0f} s" in shown
    reads = center["picks"] * center["read_seconds"]
    assert (
        f"take {center['seconds']:.0f} s, where reading them 256 times takes {reads:.0f} s" in shown
    )
