"""Every launch configuration of the CUDA kernels under AddressSanitizer and UBSan.

The sanitizers have to be in the process from its start, so the tests of the kernels run once more
in another one, whose emulated library is built with them.
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.simt import build

KERNEL_TESTS = sorted((build.REPO / "tests" / "ops").glob("test_*_kernels.py"))


@pytest.mark.parametrize("file", KERNEL_TESTS, ids=lambda file: file.stem)
def test_configurations(file) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, f"{file}::test_configuration"],
        cwd=build.REPO,
        env=build.sanitizer_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert re.search(r"\d+ passed", done.stdout), done.stdout
    assert "skipped" not in done.stdout
