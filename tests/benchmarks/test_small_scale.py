"""The committed run of the small-scale methods, and its table in the docs."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from benchmarks import small_scale, student_steps

ROOT = Path(__file__).resolve().parents[2]


def test_the_committed_run() -> None:
    run = json.loads((ROOT / "benchmarks/results/small_scale/smoke.json").read_text())
    assert small_scale.table(run) in (ROOT / "docs" / "small-scale.md").read_text()
    for one in run["ipc"].values():
        means = {(c["method"], c["regime"]): c["mean"] for c in one["cells"]}
        assert {name for name, _ in means} == set(small_scale.SHOWN)
        assert all(len(c["accuracies"]) >= 3 for c in one["cells"])
    # What the docs say of IPC 1.
    means = {(c["method"], c["regime"]): c["mean"] for c in run["ipc"]["1"]["cells"]}
    for name in ("DC", "DSA", "DM", "TM", "DATM"):
        assert means[name, "HL"] > means["start", "HL"] + 0.1
        assert means[name, "HL"] > means["random", "HL"] + 0.1
        assert means[name, "SL"] < means[name, "HL"]
        assert means[name, "SL"] < means["random", "SL"]
    means = {(c["method"], c["regime"]): c["mean"] for c in run["ipc"]["10"]["cells"]}
    assert all(0.02 < means[name, "HL"] - means["start", "HL"] < 0.04 for name in ("DM", "TM"))
    assert all(abs(means[name, "HL"] - means["random", "HL"]) < 0.01 for name in ("DSA", "DATM"))
    assert all(means[name, "HL"] < means["random", "HL"] - 0.15 for name in ("DC", "k-centers"))


def test_the_committed_run_of_longer_students() -> None:
    run = json.loads((ROOT / "benchmarks/results/small_scale/steps.json").read_text())
    assert student_steps.table(run) in (ROOT / "docs" / "small-scale.md").read_text()
    means = {
        (r["ipc"], r["steps"], r["regime"]): statistics.fmean(r["accuracies"]) for r in run["rows"]
    }
    assert all(len(r["accuracies"]) == len(student_steps.SEEDS) for r in run["rows"])
    # What the docs say of them.
    for ipc, steps in ((1, 900), (10, 1200)):
        assert means[ipc, 100, "sl"] < means[ipc, 100, "hl"] - 0.02
        assert means[ipc, steps, "sl"] > means[ipc, steps, "hl"] - 0.01
        assert means[ipc, steps, "hl"] - means[ipc, 100, "hl"] < 0.05


def test_the_committed_times_of_students_at_once() -> None:
    run = json.loads((ROOT / "benchmarks/results/students/at_once.json").read_text())
    times = [row["milliseconds"] for row in run["rows"]]
    ratios = [round(row["at once"] / row["in turn"], 1) for row in times]
    page = (ROOT / "docs" / "small-scale.md").read_text()
    assert f"takes {min(ratios)} to {max(ratios)} times the processor time" in page


def test_the_settings_of_a_scale_are_fields_of_the_methods() -> None:
    from pyddfast import methods

    configs = {
        "DC": methods.DCConfig, "DSA": methods.DSAMatchingConfig, "DM": methods.DMConfig,
        "TM": methods.TMConfig, "DATM": methods.DATMConfig,
    }  # fmt: skip
    for scale in small_scale.SCALES.values():
        for name, config in configs.items():
            for ipc in scale.ipcs:
                given = scale.settings(name, ipc)
                made = config(ipc=ipc, **given)
                assert all(getattr(made, field) == value for field, value in given.items())
