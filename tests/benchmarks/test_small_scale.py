"""The committed run of the small-scale methods, and its table in the docs."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks import coresets_study, small_scale, student_steps
from pyddfast import data
from pyddfast.data.digest import data_digest
from pyddfast.train import Teacher

ROOT = Path(__file__).resolve().parents[2]


def test_the_committed_run() -> None:
    run = json.loads((ROOT / "benchmarks/results/small_scale/smoke.json").read_text())
    assert small_scale.table(run) in (ROOT / "docs" / "small-scale.md").read_text()
    for one in run["ipc"].values():
        means = {(c["method"], c["regime"]): c["mean"] for c in one["cells"]}
        assert {name for name, _ in means} == set(small_scale.SHOWN)
        assert all(len(c["accuracies"]) >= 3 for c in one["cells"])
    # What the docs say of it.
    one, ten = (
        {(c["method"], c["regime"]): c["mean"] for c in run["ipc"][ipc]["cells"]}
        for ipc in ("1", "10")
    )
    for name in ("DC", "DSA", "DM", "TM", "DATM"):
        assert one[name, "HL"] > one["random", "HL"] + 0.13
        assert abs(one[name, "HL"] - one["k-centers", "HL"]) < 0.05
    begins = {"DSA": "start of DSA and DM"} | {
        own: name for name, own in small_scale.STARTS.items()
    }
    assert all(one[name, "HL"] > one[first, "HL"] + 0.13 for name, first in begins.items())
    assert all(ten["DM", "HL"] > ten[name, "HL"] for name in small_scale.SHOWN if name != "DM")

    def gain(name: str, over: str) -> int:
        return round(100 * (ten[name, "HL"] - ten[over, "HL"]))

    assert (gain("DM", "random"), gain("DM", begins["DM"])) == (4, 5)
    assert (gain("TM", "random"), gain("TM", begins["TM"])) == (2, 2)
    assert all(gain(name, begins[name]) == 1 for name in ("DATM", "DSA"))
    assert gain("k-centers", "random") == -10
    assert all(0.74 < ten[n, "SL"] < 0.77 for n in small_scale.SHOWN if n != "DC")
    assert ten["DC", "SL"] < ten["DC", "HL"] < 0.5
    for name in ("TM", "DATM"):
        assert one[name, "SL"] > one["random", "SL"] + 0.12
        assert 0.01 < one[name, "SL"] - one["k-centers", "SL"] < 0.035


def test_the_committed_run_on_all_images() -> None:
    run = json.loads((ROOT / "benchmarks/results/small_scale/medium.json").read_text())
    assert small_scale.table(run) in (ROOT / "docs" / "small-scale.md").read_text()
    means: dict[tuple[str, str, int], float] = {}
    for ipc, one in run["ipc"].items():
        assert {cell["method"] for cell in one["cells"]} == set(small_scale.SHOWN)
        for cell in one["cells"]:
            assert len(cell["accuracies"]) >= 3
            means[cell["method"], cell["regime"], int(ipc)] = 100 * cell["mean"]

    def over(name: str, other: str, regime: str = "HL") -> list[float]:
        return [means[name, regime, ipc] - means[other, regime, ipc] for ipc in (1, 10, 50)]

    # What the docs say of it.
    assert [round(gain) for gain in over("DM", "random")] == [22, 7, 2]
    assert [round(gain) for gain in over("DM", "start of DSA and DM")] == [21, 4, 2]
    assert [round(gain) for gain in over("DSA", "random")] == [20, 5, 1]
    others = set(small_scale.SHOWN) - {"DM"}
    assert all(min(over("DM", name)) > 0 for name in others)
    assert abs(over("DC", "DSA")[0]) < 0.5
    assert max(over("DC", "random")[1:]) < -6
    assert [round(over(name, f"start of {name}")[0]) for name in ("DATM", "TM")] == [20, 11]
    assert [round(over(name, "k-centers")[0]) for name in ("DATM", "TM")] == [5, -4]
    assert [round(over("TM", name)[1]) for name in ("start of TM", "random")] == [1, 1]
    assert round(over("DATM", "random")[1]) == 1
    assert round(over("DATM", "start of DATM")[1], 1) in (-0.4, -0.5, -0.6)
    assert [round(over(name, f"start of {name}")[2]) for name in ("TM", "DATM")] == [-3, -1]
    ten = {name: round(means[name, "SL", 10]) for name in small_scale.SHOWN}
    assert (ten["random"], ten["k-centers"], ten["DM"], ten["DSA"]) == (76, 76, 75, 77)
    assert max(ten.values()) == ten["DATM"] == 79
    fifty = {name: means[name, "SL", 50] for name in small_scale.SHOWN}
    alike = [fifty[name] for name in fifty if name not in ("DC", "TM", "DATM")]
    assert max(alike) - min(alike) < 1.2
    assert all(round(fifty["random"] - fifty[name]) == 6 for name in ("TM", "DATM"))
    assert all(round(means["DC", "SL", ipc]) in (15, 16) for ipc in (10, 50))


def test_the_committed_students_of_datm() -> None:
    run = json.loads((ROOT / "benchmarks/results/small_scale/datm-official.json").read_text())
    shown = f"{100 * run['mean']:.1f} ± {100 * run['std']:.1f} %"
    assert shown in (ROOT / "docs" / "small-scale.md").read_text()


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


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    images = data.load("fashion-mnist-mini").subset(range(200))

    def make(name: str, ipc: int, iterations: int) -> data.DistilledSet:
        def settings(name: str, ipc: int) -> dict[str, Any]:
            return {"iterations": iterations, "real_batch": 4}

        scale = small_scale.Scale("fashion-mnist-mini", 4, (1,), {}, None, 1, 1, 2, settings)
        bench = small_scale.Bench(scale, images, images, tmp_path)
        return bench.make(name, ipc, cast(Teacher, None))

    first = make("DM", 1, 2)
    assert data_digest(make("DM", 1, 2)) == data_digest(first)
    with pytest.raises(ValueError, match="iterations was 2, now 3"):
        make("DM", 1, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--scale medium --root nowhere", "images-idx3-ubyte.gz in any of nowhere"),
        ("--ipc 0", "--ipc must be at least 1, got 0"),
        ("--ipc 1 601", "ipc = 601 is larger than a class: class 0 has 600"),
        ("--seeds 1", "seeds must be at least 2"),
    ],
)
def test_bad_options_are_refused_before_any_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for script in (small_scale, coresets_study):
        if "--ipc" in arguments and script is coresets_study:
            continue
        monkeypatch.setattr("sys.argv", ["script", *arguments.split()])
        with pytest.raises(SystemExit):
            script.main()
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
