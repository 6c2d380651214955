"""The GPU script goes on after a failing stage, records every one, and resumes."""

import fcntl
import json
import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_check.sh"

# Stands in for every program that the script starts on a GPU machine: pytest fails, the sanitizer
# refuses the device, the rest works.
STUB = """#!/bin/sh
echo "$*" >> "$STUB_LOG"
case "$0 $*" in
  *"benchmarks.ops"*) echo "ops: kd_loss soft_ce"; echo "steps: rded"; exit "${STUB_NAMES:-0}" ;;
  *"compute-sanitizer --version") ;;
  *compute-sanitizer*) echo "device not supported"; exit "${STUB_SANITIZER:-9}" ;;
  *setup.py*) sleep "${STUB_BUILD:-0}" ;;
  *"-m pytest"*) echo "1 failed"; exit 1 ;;
  *"--out"*) for last; do :; done; echo "{}" > "$last"; exit "${STUB_BENCH:-0}" ;;
esac
"""
TESTS = ["tests_device", "tests_ops", "tests_large", "tests_elsewhere"]
STAGES = ["build", "values", *TESTS, "memcheck", "racecheck", "names"]
BENCHES = ["bench_kd_loss", "bench_soft_ce", "step_rded"]
STAGES += BENCHES


def run(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    stubs = tmp_path / "stubs"
    stubs.mkdir(exist_ok=True)
    for name in ("python3", "nvidia-smi", "nvcc", "compute-sanitizer"):
        (stubs / name).write_text(STUB)
        (stubs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{stubs}:{os.environ['PATH']}", **variables}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env={**environment, "STUB_LOG": str(tmp_path / "calls")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("with_wheel", [False, True])
def test_every_stage_is_recorded(tmp_path: Path, with_wheel: bool) -> None:
    out, wheel = tmp_path / "out", tmp_path / "pyddfast-0-py3-none-any.whl"
    wheel.touch()
    done = run(tmp_path, str(out), *([str(wheel)] if with_wheel else []))
    assert done.returncode == 1, done.stderr
    stages = json.loads((out / "summary.json").read_text())
    names = ["facts", *(["wheel_install", "wheel_values"] if with_wheel else []), *STAGES]
    assert [s["stage"] for s in stages] == names
    failed = {**dict.fromkeys(TESTS, 1), "memcheck": 9, "racecheck": 9}
    assert {s["stage"]: s["exit"] for s in stages if s["exit"]} == failed
    assert "1 failed" in done.stdout
    assert (out / "memcheck.log").read_text() == "device not supported\n"
    results = {"summary.json", "kd_loss.json", "soft_ce.json", "step-rded.json"}
    assert {p.name for p in out.glob("*.json")} == results


def test_a_call_without_time_left_leaves_its_stages_to_the_next(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(tmp_path, str(out), GPU_CHECK_SECONDS="10")
    assert done.returncode == 75
    assert json.loads((out / "summary.json").read_text()) == []
    assert "left for the next call with the same OUT: facts build values" in done.stdout
    (out / "stages" / "build.json").write_text(
        '{"ended": 1.0, "stage": "build", "exit": 0, "seconds": 3}\n'
    )
    done = run(tmp_path, str(out))
    assert done.returncode == 1
    stages = {s["stage"]: s for s in json.loads((out / "summary.json").read_text())}
    assert set(stages) == {"facts", *STAGES}
    assert stages["build"]["seconds"] == 3
    assert "setup.py" not in (tmp_path / "calls").read_text()  # it was not built again


def test_a_stage_that_the_call_cuts_off_starts_again_in_the_next(tmp_path: Path) -> None:
    out = tmp_path / "out"
    # Of a call's own stages the first has failed where it is cut off: it will never have more time.
    done = run(tmp_path, str(out), STUB_BUILD="60", GPU_CHECK_SECONDS="22")
    assert done.returncode == 75, done.stdout
    assert "left for the next call with the same OUT: build" in done.stdout
    assert records(out) == {"facts": 0}
    assert run(tmp_path, str(out)).returncode == 1
    assert records(out)["build"] == 0


def records(out: Path) -> dict[str, int]:
    return {s["stage"]: s["exit"] for s in json.loads((out / "summary.json").read_text())}


def test_a_sanitizer_that_ends_without_its_summary_has_failed(tmp_path: Path) -> None:
    run(tmp_path, str(tmp_path / "out"), STUB_SANITIZER="0")
    assert records(tmp_path / "out")["memcheck"] == 1


def test_benchmarks_that_cannot_be_listed_are_a_failure(tmp_path: Path) -> None:
    out = tmp_path / "an out with spaces"
    assert run(tmp_path, str(out), STUB_NAMES="3").returncode == 1
    assert records(out)["names"] == 3


def test_a_benchmark_that_did_a_part_goes_on_in_the_next_call(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(tmp_path, str(out), STUB_BENCH="75")
    assert done.returncode == 75
    assert f"left for the next call with the same OUT: {' '.join(BENCHES)}" in done.stdout
    assert run(tmp_path, str(out)).returncode == 1
    assert [stage for stage in records(out) if stage in BENCHES] == BENCHES


def test_a_record_that_the_disk_does_not_take_ends_the_call(tmp_path: Path) -> None:
    stages = tmp_path / "out" / "stages"
    stages.mkdir(parents=True)
    (stages / "values.tmp").symlink_to("/dev/full")
    done = run(tmp_path, str(tmp_path / "out"))
    assert done.returncode == 1
    assert "values ended with 0, which" in done.stderr
    assert {path.name for path in stages.glob("*.json")} == {"facts.json", "build.json"}


def test_two_calls_do_not_share_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = run(tmp_path, str(tmp_path / "out"))
    assert done.returncode == 75
    assert "another call still works" in done.stdout
    assert not (tmp_path / "calls").exists()


def test_a_wheel_that_is_not_there(tmp_path: Path) -> None:
    done = run(tmp_path, str(tmp_path / "out"), str(tmp_path / "none" / "x.whl"))
    assert done.returncode == 1
    assert "no wheel" in done.stderr
    assert not (tmp_path / "out").exists()


def test_usage(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 2
    assert "OUT [WHEEL]" in done.stderr
    assert "not gpu" in run(tmp_path, str(tmp_path / "out"), GPU_CHECK_DEVICE="gpu").stderr
