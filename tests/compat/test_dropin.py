"""The drop-in runs: how lines are changed, and the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.dropin import fkd, trajectories, vico
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


def test_the_committed_run_of_fkd() -> None:
    result = json.loads((ROOT / "benchmarks" / "dropin" / "fkd.json").read_text())
    changes = [change for script in fkd.CHANGES.values() for change in script]
    assert result["lines_changed"] == {
        script: sum(change.count for change in made) for script, made in fkd.CHANGES.items()
    }
    assert sum(result["lines_changed"].values()) <= 5
    assert [change["added"] for change in result["changes"]] == [list(c.added) for c in changes]
    assert result["label_files"] == fkd.EPOCHS * 6
    assert result["label_files_that_differ"] == 0
    official = result["losses"]["official"]
    assert len(official) == fkd.EPOCHS * 6
    assert min(official) > 0
    for name in ("files", "store"):
        assert result["losses"][name] == official
        assert result["same_losses"][name]
    assert fkd.table(result) in (ROOT / "docs" / "drop-in" / "fkd.md").read_text()


def test_the_committed_run_of_vico() -> None:
    result = json.loads((ROOT / "benchmarks" / "dropin" / "vico.json").read_text())
    assert set(result["runs"]) == set(vico.RUNS)
    for name, code in vico.RUNS.items():
        one = result["runs"][name]
        assert (one["url"], one["revision"]) == (code.url, code.revision)
        assert one["arguments"] == list(code.arguments)
        official = np.array(one["official"]["losses"])
        assert len(official) == vico.COMPARED
        for variant, changes in code.variants.items():
            recorded = one["variants"][variant]
            assert recorded["lines_changed"] == sum(change.count for change in changes) <= 5
            added = [line for change in recorded["changes"] for line in change["added"]]
            assert added == [line for change in changes for line in change.added]
            assert np.abs(np.array(recorded["losses"]) / official - 1).max() <= 1e-8
            assert recorded["max_image_difference"] <= 1e-8
            # DSA's network trains 250 steps between the six updates, which enlarge rounding.
            bound = 2e-2 if name == "dsa" else 1e-5
            assert recorded["max_relative_difference_float32"] <= bound
    assert vico.table(result) in (ROOT / "docs" / "drop-in" / "vico.md").read_text()


@pytest.mark.parametrize("name", sorted(trajectories.CODEBASES))
def test_the_committed_runs_of_trajectory_matching(name: str) -> None:
    codebase = trajectories.CODEBASES[name]
    result = json.loads((ROOT / "benchmarks" / "dropin" / f"{name}.json").read_text())
    assert (result["url"], result["revision"]) == (codebase.url, codebase.revision)
    official = np.array(result["official"]["losses"])
    assert len(official) >= 5
    assert set(result["variants"]) == set(codebase.variants)
    for variant, changes in codebase.variants.items():
        recorded = result["variants"][variant]
        assert recorded["lines_changed"] == sum(change.count for change in changes) <= 5
        assert np.abs(np.array(recorded["losses"]) / official - 1).max() <= 1e-8
    page = (ROOT / "docs" / "drop-in" / f"{name}.md").read_text()
    assert trajectories.table(result) in page
