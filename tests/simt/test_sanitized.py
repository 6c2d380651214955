"""Every launch configuration of the CUDA kernels under AddressSanitizer and UBSan.

The sanitizers have to be in the process from its start, so the tests of the kernels run once more
in another one, whose emulated library is built with them.
"""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.simt import build
from tools import kernel_report

KERNEL_TESTS = sorted((build.REPO / "tests" / "ops").glob("test_*_kernels.py"))


@functools.cache
def run_configurations(file: Path) -> tuple[int, str, frozenset[str]]:
    """Exit code, output, and the kernels that the file's `test_configuration…` launch."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    with tempfile.TemporaryDirectory() as folder:
        launched = Path(folder) / "launched"
        launched.touch()
        done = subprocess.run(
            [*command, str(file), "-k", "test_configuration"],
            cwd=build.REPO,
            env={**build.sanitizer_environment(), "PYDDFAST_SIMT_LAUNCHED": str(launched)},
            capture_output=True,
            text=True,
        )
        names = launched.read_text().split()
    return done.returncode, done.stdout + done.stderr, frozenset(kernel_report.demangle(names))


@pytest.mark.parametrize("file", KERNEL_TESTS, ids=lambda file: file.stem)
def test_configurations(file: Path) -> None:
    code, output, launched = run_configurations(file)
    assert code == 0, output[-8000:]
    assert re.search(r"\d+ passed", output), output
    assert "skipped" not in output
    assert launched


def test_every_kernel_that_ships_is_launched() -> None:
    """csrc/kernel_report.json holds every instantiation that nvcc compiles."""
    ships = {name for kernels in kernel_report.load()["kernels"].values() for name in kernels}
    launched = frozenset().union(*(run_configurations(file)[2] for file in KERNEL_TESTS))
    assert sorted(ships - launched) == []


def test_a_launched_kernel_is_a_launched_configuration() -> None:
    """Cluster and dependent launch are constants of an instantiation: no launch has others."""
    files = [p for p in build.CSRC.rglob("*") if p.suffix in (".cu", ".h") and p.name != "simt.h"]
    field = re.compile(r"\.(cluster|programmatic|shared_bytes)\s*=\s*([^;,}]+)")
    assert {pair for file in files for pair in field.findall(file.read_text())} == {
        ("cluster", "Team::kCluster"),
        ("programmatic", "true"),
    }
