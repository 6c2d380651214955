"""Result files: the schema, one real (quick) run, and the pages made from committed results."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import torch

from benchmarks import report, schema
from benchmarks.ops import CASES

ROOT = Path(__file__).resolve().parents[2]


def row(provider: str, median: float, **changes: object) -> dict[str, object]:
    return {
        "op": "kd_loss",
        "part": "forward+backward",
        "shape": [256, 10],
        "dtype": "float32",
        "provider": provider,
        "median_us": median,
        "iqr_us": 1.5,
        "samples": 40,
        "bytes_floor": 31744,
        "gb_s": 31744 / median / 1e3,
        "copy_fraction": 31744 / median / 1e3 / 10,
        "host_us": None,
        "error": None,
        **changes,
    }


def step(provider: str, median: float, **changes: object) -> dict[str, object]:
    return {
        "step": "DM",
        "setting": "10 classes",
        "provider": provider,
        "median_ms": median,
        "iqr_ms": 0.5,
        "samples": 7,
        "op_share": None,
        "difference": None,
        **changes,
    }


@pytest.fixture
def example() -> dict[str, object]:
    accuracy = {
        "op": "kd_loss",
        "shape": [256, 1000],
        "dtype": "float32",
        "temperature": 20.0,
        "kl": 1e-10,
        "provider": "ours",
        "loss_error": 1.2e-7,
        "gradient_error": 3.4e-7,
        "score_error": 2.5e-7,
        "negative_losses": 0.0,
    }
    return {
        "schema_version": 1,
        "metadata": {
            "created": "2026-01-02T03:04:05+00:00",
            "git_revision": "0123456789" * 4,
            "git_dirty": False,
            "device": "cpu",
            "cpu": {
                "name": "A CPU",
                "cores": 2,
                "threads": 2,
                "clock_mhz": 2600.0,
                "simd": "AVX512",
                "load_average_1min": 0.25,
            },
            "gpu": None,
            "platform": "Linux 6.1 x86_64",
            "versions": {"python": "3.10.0", "torch": "2.13.0", "pyddfast": "0.1.0"},
            "copy_gb_s": 10.0,
            "rounds": 40,
            "quick": False,
            "left_out": {"kd_loss forward 1x1 float32: liger": "ImportError: none"},
        },
        "results": [
            row("ours", 20.0),
            row("eager", 100.0),
            row("torch.compile", 50.0),
            row("ours", 30.0, part="forward"),
            row("eager", 24.0, part="forward"),
        ],
        "steps": [
            step("ours", 20.0, op_share=0.25, difference=3e-7),
            step("official", 30.0),
            step("ours", 12.0, step="TM"),
            step("official", 9.0, step="TM"),
        ],
        "accuracy": [
            accuracy,
            {**accuracy, "provider": "eager", "loss_error": 52.0, "negative_losses": 0.5},
        ],
    }


def test_a_result_survives_the_disk(example: dict[str, object], tmp_path: Path) -> None:
    schema.write(example, tmp_path / "new" / "cpu.json")
    assert schema.read(tmp_path / "new" / "cpu.json") == example
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["cpu.json"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("results", 0, "median_us"), 0),
        (("results", 0, "shape"), [3, "x"]),
        (("results", 0, "part"), "backward"),
        (("results", 0, "extra"), 1),
        (("results",), []),
        (("results", 0, "error"), -1e-9),
        (("steps", 0, "op_share"), 1.5),
        (("steps", 0, "median_ms"), 0),
        (("accuracy", 0, "loss_error"), -1e-9),
        (("metadata", "created"), "yesterday"),
        (("metadata", "git_revision"), "main"),
        (("metadata", "gpu"), {"name": "A GPU"}),
        (("schema_version",), 2),
    ],
)
def test_the_schema_refuses(example: dict[str, object], path: tuple, value: object) -> None:
    schema.validate(example)
    broken = copy.deepcopy(example)
    place = broken
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    if path == ("results",):  # nothing measured at all
        broken["steps"] = []
    with pytest.raises(jsonschema.ValidationError):
        schema.validate(broken)


@pytest.mark.parametrize("part", ["results", "steps", "accuracy"])
def test_the_schema_refuses_a_second_row_of_a_case(example: dict[str, object], part: str) -> None:
    example[part].append(copy.deepcopy(example[part][0]))
    with pytest.raises(ValueError, match=f"{part} has two rows of "):
        schema.validate(example)


def test_what_is_no_number_is_neither_written_nor_read(
    example: dict[str, object], tmp_path: Path
) -> None:
    example["results"][0]["error"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        schema.write(example, tmp_path / "x.json")
    (tmp_path / "x.json").write_text(json.dumps(example))
    with pytest.raises(ValueError, match=r"x\.json is not a benchmark result: NaN is no number"):
        schema.read(tmp_path / "x.json")


@pytest.mark.parametrize("content", ["{", "{}"])  # not JSON, not a result
def test_a_bad_file_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"bad\.json is not a benchmark result"):
        schema.read(path)


def test_every_committed_result_follows_the_schema_and_adds_up() -> None:
    runs = report.load()
    assert runs, "no committed result"
    for run in runs.values():
        assert not run["metadata"]["quick"]
        for r in run["results"]:
            # Written with four decimals, which is less than three digits of a slow row.
            expected = r["bytes_floor"] / r["median_us"] / 1e3
            assert r["gb_s"] == pytest.approx(expected, rel=1e-3, abs=5e-5)
            fraction = r["gb_s"] / run["metadata"]["copy_gb_s"]
            assert r["copy_fraction"] == pytest.approx(fraction, rel=1e-2, abs=1e-5)


def test_the_pages_are_those_of_the_committed_results() -> None:
    runs = report.load()
    assert report.PAGE.read_text() == report.page(runs)
    readme = report.README.read_text()
    assert report.between_markers(readme, report.readme_part(runs)) == readme
    for stem, run in runs.items():
        assert report.up_to_date(stem, run, report.IMAGES)


def test_a_shape_that_is_not_the_ops_names_what_it_is() -> None:
    assert report.shape_text("kd_loss", (2, 10)) == "2×10"
    text = "20 BN inputs of a ResNet-18 for 4×3×32×32"
    assert report.shape_text("channel_stats", (4, 3, 32, 32)) == text


def test_the_page_marks_what_is_slower(example: dict[str, object]) -> None:
    text = report.page({"cpu": example})
    assert "| eager | 100 | 1.5 | 0.317 | 3 % |  |  | 5.00× |" in text
    assert "| torch.compile | 50 | 1.5 | 0.635 | 6 % |  |  | 2.50× |" in text
    assert "| eager | 24 | 1.5 | 1.32 | 13 % |  |  | 0.80× **slower** |" in text
    assert "- `kd_loss` forward 256×10 float32: eager takes 0.80 of our time" in text
    assert "- kd_loss forward 1x1 float32: liger: ImportError: none" in text
    assert "| DM | 10 classes | ours | 20 | 0.5 | 25.0% | 3e-07 |  |" in text
    assert "| DM | 10 classes | official | 30 | 0.5 |  |  | 1.50× |" in text
    assert "| TM | 10 classes | official | 9 | 0.5 |  |  | 0.75× **slower** |" in text
    assert "- TM: official takes 0.75 of our time" in text
    assert "- DM:" not in text
    assert "| eager | 1e-10 | 5.2e+01 | 3.4e-07 | 2.5e-07 | 50 % |" in text


def test_the_page_counts_the_rows_that_spread(example: dict[str, object]) -> None:
    quiet = "0 of 5 rows have an inter-quartile range above 20% of their median."
    assert quiet in report.page({"cpu": example})
    example["results"][1]["iqr_us"] = 21.0  # of a median of 100
    text = report.page({"cpu": example})
    assert "1 of 5 rows have an inter-quartile range above 20% of their median: the" in text


def test_another_form_of_ours_is_no_peer(example: dict[str, object]) -> None:
    example["results"] = [row("ours", 20.0), row("ours (one pass)", 10.0), row("eager", 40.0)]
    example["steps"] = []
    assert report.slower_cases(example["results"]) == []
    assert report.SLOWER not in report.page({"cpu": example})


def test_a_row_apart_from_ours_is_marked(example: dict[str, object]) -> None:
    """As rows of several calls may be."""
    faster = row("liger", 19.999)
    example["results"].append(faster)
    assert "- `kd_loss` forward+backward 256×10 float32: liger takes 1.00 of our time" in (
        report.page({"cpu": example})
    )
    example["steps"].append(step("official", 19.0, setting="100 classes"))  # of which ours is not
    assert "| DM | 100 classes | official | 19 | 0.5 |  |  |  |" in report.page({"cpu": example})


def test_a_closed_form_is_held_against_our_one_pass() -> None:
    closed = "torch.compile (closed form)"
    group = [row("ours", 20.0), row("ours (one pass)", 10.0), row(closed, 15.0)]
    assert report.speedup(group, closed) == 1.5
    assert report.speedup([group[0], group[2]], closed) is None


def test_eager_that_draws_is_held_against_ours_that_draws() -> None:
    group = [row("ours", 10.0), row("ours with draws", 20.0), row("eager", 60.0), row("x", 60.0)]
    assert report.speedup(group, "eager") == 3.0
    assert report.speedup(group, "x") == 6.0


def test_a_quick_run_is_not_published(example: dict[str, object], tmp_path: Path) -> None:
    example["metadata"]["quick"] = True
    (tmp_path / "mine.json").write_text(json.dumps(example))
    with pytest.raises(ValueError, match=r"mine\.json is of a --quick run"):
        report.load(tmp_path)


def test_the_readme_leaves_a_double_backward_to_the_page(example: dict[str, object]) -> None:
    example["results"] += [
        row(name, us, part="forward+double backward")
        for name, us in (("ours", 1.0), ("eager", 9.0))
    ]
    assert "| `kd_loss` | 1 | 5.0× | 2.5× |  |" in report.readme_part({"cpu": example})


def test_the_readme_part(example: dict[str, object]) -> None:
    text = report.readme_part({"cpu": example})
    assert "| `kd_loss` | 1 | 5.0× | 2.5× |  |" in text
    assert "1e-10, fp32: 3.4e-07; of `F.kl_div`: 5.2e+01 (at KL 1e-10, 50 % of" in text
    assert report.between_markers("a <!-- results:begin -->old<!-- results:end --> b", text) == (
        f"a <!-- results:begin -->\n{text}\n<!-- results:end --> b"
    )
    with pytest.raises(ValueError, match="results:begin"):
        report.between_markers("no markers", text)


def test_the_readme_part_of_an_op_without_backward() -> None:
    run = json.loads((report.RESULTS / "cpu.json").read_text())
    first = {**run["results"][0], "op": "augment", "part": "forward", "shape": [4, 3, 8, 8]}
    run["results"] = [
        {**first, "provider": name, "median_us": us} for name, us in (("ours", 10.0), ("PIL", 70.0))
    ]
    assert "| `augment` | 1 |  |  | PIL 7.0× |" in report.readme_part({"cpu": run})
    run["results"] += [
        {**first, "provider": name, "median_us": us, "shape": [8, 3, 8, 8]}
        for name, us in (("ours", 10.0), ("PIL", 9.0))
    ]
    assert "| `augment` | 2 |  |  | PIL 0.9–7.0× **slower** |" in report.readme_part({"cpu": run})


def test_the_readme_shows_an_op_from_its_first_run(example: dict[str, object]) -> None:
    again = {**example, "results": [row("ours", 10.0), row("eager", 20.0)]}
    text = report.readme_part({"cpu-kept-memory": again, "cpu": example})
    assert text.count("`kd_loss` |") == 1
    assert "| `kd_loss` | 1 | 5.0× | 2.5× |  |" in text


def test_the_recorders_cost(tmp_path: Path) -> None:
    row = {"model": "resnet18", "batch_size": 64, "classes": 100, "steps": 20}
    row |= {"step_ms": 2000.0, "update_ms": 0.25, "share": 0.0002, "largest_share": 0.0004}
    run = {"created": "now", "metadata": {"cpu": {"name": "a CPU", "threads": 2}}}
    run |= {"results": [row], "state_bytes_imagenet_1k": 85_800_000}
    (tmp_path / "cpu.json").write_text(json.dumps(run))
    text = "\n".join(report.recorder_lines(tmp_path))
    assert "| 2,000 | 0.25 | 0.020% | 0.040% |" in text
    assert "85.8 MB" in text


def test_a_step_of_trajectory_matching(tmp_path: Path) -> None:
    run = json.loads((report.RESULTS / "trajectory" / "cpu.json").read_text())
    timed = {"outer_ms_all": [1.0, 3.0], "convolution_ms": 1.0}
    run["results"] = [
        {"provider": name, "outer_ms": ms, **timed} for name, ms in (("official", 2e3), ("x", 4e3))
    ]
    run["memory"] = [{"provider": "official", "steps": 10, "kept_mb": 1499.0}]
    (tmp_path / "cpu.json").write_text(json.dumps(run))
    text = "\n".join(report.trajectory_lines(tmp_path))
    assert "| official | 2,000 | 1 to 3 | 1 |  | 1,499 |" in text
    assert f"| x | 4,000 | 1 to 3 | 1 | 0.50× {report.SLOWER} |  |" in text


def test_figures_are_the_same_bytes_each_time(example: dict[str, object], tmp_path: Path) -> None:
    for folder in ("a", "b"):
        assert not report.up_to_date("cpu", example, tmp_path / folder)
        report.draw("cpu", example, tmp_path / folder)
        assert report.up_to_date("cpu", example, tmp_path / folder)
    for name in ("cpu-speed.svg", "cpu-accuracy.svg"):
        first, second = ((tmp_path / f / name).read_bytes() for f in ("a", "b"))
        assert first == second
        assert b"<svg" in first
    example["results"][0]["iqr_us"] = 9.0  # not shown
    assert report.up_to_date("cpu", example, tmp_path / "a")
    example["results"][0]["median_us"] = 19.0
    assert not report.up_to_date("cpu", example, tmp_path / "a")


def benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_quick_run(tmp_path: Path) -> None:
    out = tmp_path / "quick.json"
    done = benchmarks(
        *("run", "--quick", "--threads", "1", "--providers", "ours,eager", "--out", str(out))
    )
    assert done.returncode == 0, done.stderr
    run = json.loads(out.read_text())
    schema.validate(run)
    assert run["metadata"]["quick"]
    assert run["metadata"]["left_out"] == {}
    found = [(r["op"], r["part"], tuple(r["shape"]), r["provider"]) for r in run["results"]]
    # Every case of the table, in its order.
    cases = [case for made in CASES.values() for case in made(torch.device("cpu"), True)]
    assert found == [(c.op, c.part, c.shape, name) for c in cases for name in ("ours", "eager")]
    assert found[0] == ("kd_loss", "forward+backward", (256, 100), "ours")
    errors = {(r["op"], r["provider"]): r["error"] for r in run["results"]}
    assert all(value is None or value < 1e-2 for value in errors.values())
    for op in ("kd_loss", "soft_ce", "mse_ce", "channel_stats", "bn_eval_stats", "norm_relu_pool"):
        assert 0 < errors[op, "ours"] < 1e-5
    assert errors["k_center", "ours"] is None  # picks are no floats
    assert f"written: {out}" in done.stdout
    assert "kd_loss forward+backward" in done.stdout


def test_the_cases_of_pytest_benchmark() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["benchmarks/bench_kd.py", "--benchmark-disable"]
    command += ["-k", "cpu and soft_ce and 256x10 and not 256x100 and not compile"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "2 passed" in done.stdout, done.stdout


@pytest.mark.parametrize(("option", "kind"), [("--ops", "ops"), ("--end-to-end", "steps")])
def test_an_unknown_name_is_named(option: str, kind: str) -> None:
    done = benchmarks("run", option, "kd_los")
    assert done.returncode == 2
    assert f"{kind} ['kd_los'] are not known, allowed are" in done.stderr


def test_what_does_not_begin_in_time_is_left_to_the_next_call(tmp_path: Path) -> None:
    out = tmp_path / "late.json"
    done = benchmarks("run", "--quick", "--limit", "0", "--end-to-end", "dm", "--out", str(out))
    assert done.returncode == 75, done.stderr
    assert f"1 not begun: the same command with --out {out} goes on" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["late.json.partial"]


def test_the_page_of_coresets_has_the_committed_correlations():
    result = json.loads((schema.RESULTS / "grand" / "correlation.json").read_text())
    page = (ROOT / "docs" / "coresets.md").read_text()
    found = result["spearman_with_grand_of_all_weights"]
    for labels, name, row in (
        ("labels", "el2n", "of the data, T = 1"),
        ("teacher", "el2n_sl", "a teacher's, T = 20"),
    ):
        values = found[labels]
        assert f"| {row} | {values[name]:.3f} | {values['grand_last_layer']:.3f} |" in page


def test_the_page_of_deepcore_has_the_committed_runs():
    record = json.loads((ROOT / "benchmarks" / "dropin" / "deepcore.json").read_text())
    page = (ROOT / "docs" / "drop-in" / "deepcore.md").read_text()
    assert record["metadata"]["git_revision"]
    for name, row in record["methods"].items():
        picks, seconds = f"{row['shared_picks']} of {row['picks']}", row["seconds"]
        times = f"{seconds['official']:.2f} s | {seconds['changed']:.2f} s"
        assert f"| {name} | {row['lines']} | {picks} | {times} |" in page
