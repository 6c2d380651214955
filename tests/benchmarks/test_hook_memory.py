"""The memory of a step with BatchNorm statistics: what is counted, and the committed result."""

from __future__ import annotations

import json
import math
from pathlib import Path

from benchmarks.hook_memory import VARIANTS, step
from benchmarks.ops.stats import shapes
from benchmarks.schema import RESULTS

ROOT = Path(__file__).resolve().parents[2]


def test_the_inputs_of_all_layers_are_counted() -> None:
    expected = sum(4 * math.prod(shape) for shape in shapes(2, 32))
    found = {variant: step(variant, 2, 32) for variant in ("official", "tap")}
    assert [one["batch_norm_inputs"] for one in found.values()] == [expected, expected]
    assert all(one["bytes"] >= 0 for one in found.values())


def test_the_committed_result() -> None:
    result = json.loads((RESULTS / "memory" / "hooks.json").read_text())
    assert set(result["bytes"]) == set(VARIANTS)
    saved = result["bytes"]["official"] - result["bytes"]["fused"]
    assert saved >= result["batch_norm_inputs"]
    page = (ROOT / "docs" / "ops" / "stats.md").read_text()
    row = "| {} | {} | {} |".format(*(f"{result['bytes'][v] / 2**20:.0f} MiB" for v in VARIANTS))
    assert row in page
    assert f"are {result['batch_norm_inputs'] / 2**20:.0f} MiB" in page
