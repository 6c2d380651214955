"""The GPU script goes on after a failing stage, records every one, and resumes."""

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
  *"benchmarks.ops"*) echo "kd_loss soft_ce" ;;
  *"benchmarks.steps"*) echo "rded" ;;
  *compute-sanitizer*) echo "device not supported"; exit 9 ;;
  *"-m pytest"*) echo "1 failed"; exit 1 ;;
  *"--out"*) for last; do :; done; echo "{}" > "$last" ;;
esac
"""
TESTS = ["tests_device", "tests_ops", "tests_large", "tests_elsewhere"]
STAGES = ["build", "values", *TESTS, "memcheck", "racecheck", "bench_kd_loss", "bench_soft_ce"]
STAGES += ["step_rded"]


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
    (out / "stages" / "build.json").write_text('{"stage": "build", "exit": 0, "seconds": 3}\n')
    done = run(tmp_path, str(out))
    assert done.returncode == 1
    stages = {s["stage"]: s for s in json.loads((out / "summary.json").read_text())}
    assert set(stages) == {"facts", *STAGES}
    assert stages["build"]["seconds"] == 3
    assert "setup.py" not in (tmp_path / "calls").read_text()  # it was not built again


def test_usage(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 2
    assert "OUT [WHEEL]" in done.stderr
    assert "not gpu" in run(tmp_path, str(tmp_path / "out"), GPU_CHECK_DEVICE="gpu").stderr
