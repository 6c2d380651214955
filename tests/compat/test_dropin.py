"""The drop-in runs: how lines are changed, and the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.dropin.__main__ import apply, table
from benchmarks.dropin.codebases import CODEBASES, Change

ROOT = Path(__file__).resolve().parents[2]


def test_lines_are_counted_before_any_change(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("".join(f"{i}\n" for i in range(1, 8)))
    changes = (
        Change("a.py", after=2, added=("import",)),
        Change("a.py", after=5, added=("one",), removed=(4, 5)),
        Change("a.py", after=7, removed=(7, 7)),
    )
    apply(changes, tmp_path)
    assert (tmp_path / "a.py").read_text().split() == ["1", "2", "import", "3", "one", "6"]
    assert [change.count for change in changes] == [1, 2, 1]
    with pytest.raises(ValueError, match=r"has 6 lines; a change is behind line 7"):
        apply((Change("a.py", after=7, added=("x",)),), tmp_path)


@pytest.mark.parametrize("name", sorted(CODEBASES))
def test_the_committed_results(name: str) -> None:
    codebase = CODEBASES[name]
    result = json.loads((ROOT / "benchmarks" / "dropin" / f"{name}.json").read_text())
    assert (result["url"], result["revision"]) == (codebase.url, codebase.revision)
    assert set(result["variants"]) == set(codebase.variants)
    official = np.array(result["official"]["losses"])
    assert len(official) >= result["iterations_compared"] >= 20
    for variant, changes in codebase.variants.items():
        recorded = result["variants"][variant]
        assert recorded["lines_changed"] == sum(change.count for change in changes) <= 5
        added = [line for change in recorded["changes"] for line in change["added"]]
        assert added == [line for change in changes for line in change.added]
        losses = np.array(recorded["losses"])
        assert np.abs(losses / official - 1).max() <= 1e-8
    page = {"cda": "sre2l"}.get(name, name)
    assert table(result) in (ROOT / "docs" / "drop-in" / f"{page}.md").read_text()
