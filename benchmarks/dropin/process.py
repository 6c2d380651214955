"""A run in a process of its own: it leaves a record, and often the images that it made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.metadata import ROOT

__all__ = ["run_child"]


def run_child(
    command: tuple[str, ...], job: Mapping[str, Any], work: Path, *, folder: Path = ROOT
) -> dict[str, Any]:
    """Run a module on a job and read what it left.

    Args:
        command: The module and its arguments before the job's file.
        job: JSON values; `threads` and `out`, the record's file, are added.
        work: Where the files go.
        folder: Where the process runs.

    Returns:
        The record; under `images` what ``out`` + ``.npy`` holds, if the run wrote it.

    Raises:
        SystemExit: The process failed; with what it printed last.
    """
    out = work / "record.json"
    images = Path(f"{out}.npy")
    images.unlink(missing_ok=True)
    full = {**job, "threads": torch.get_num_threads(), "out": str(out)}
    (work / "job.json").write_text(json.dumps(full))
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    result = subprocess.run(
        [sys.executable, "-m", *command, str(work / "job.json")],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        shown = f"{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
        raise SystemExit(f"{' '.join(command)} in {folder}, {job}:\n{shown}")
    record: dict[str, Any] = json.loads(out.read_text())
    if images.exists():
        record["images"] = np.load(images)
    return record
