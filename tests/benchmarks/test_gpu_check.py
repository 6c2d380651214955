"""The GPU script goes on after a failing stage, records every one, and fails in the end."""

import json
import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_check.sh"

# Stands in for every program that the script starts on a GPU machine: pytest fails, the rest works.
STUB = """#!/bin/sh
case "$*" in
  *"benchmarks.ops"*) echo "kd_loss soft_ce" ;;
  *"-m pytest"*) echo "1 failed"; exit 1 ;;
  *"--out"*) for last; do :; done; echo "{}" > "$last" ;;
esac
"""


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name in ("python3", "nvidia-smi", "nvcc", "compute-sanitizer"):
        (stubs / name).write_text(STUB)
        (stubs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{stubs}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env=environment,
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
    names = ["facts", *(["wheel_install", "wheel_values"] if with_wheel else [])]
    names += ["build", "values", "tests", "sanitizer", "racecheck", "bench_kd_loss"]
    assert [s["stage"] for s in stages] == [*names, "bench_soft_ce"]
    assert {s["stage"]: s["exit"] for s in stages if s["exit"]} == {"tests": 1}
    assert "1 failed" in done.stdout
    assert {p.name for p in out.glob("*.json")} == {"summary.json", "kd_loss.json", "soft_ce.json"}


def test_usage(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 2
    assert "OUT [WHEEL]" in done.stderr
