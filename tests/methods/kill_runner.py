"""Jobs for test_engine.py, run as a script in a process of their own.

``python kill_runner.py job METHOD FOLDER`` makes a set in FOLDER, as any rank of torchrun.
``python kill_runner.py kill METHOD FOLDER KILLS`` makes a set in FOLDER/whole, and the same set in
other folders with a SIGKILL at so many moments, and prints what it saw as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from pyddfast.methods import EDCConfig, Job, SRe2LConfig, edc, sre2l
from tests.methods.synthesis_cases import dataset, teacher
from tests.processes import child

SHARED: dict[str, Any] = {
    "ipc": 2, "iterations": 24, "batch_size": 3, "jitter": (0, 2), "seed": 11,
}  # fmt: skip
METHODS: dict[str, tuple[Any, Any]] = {
    "sre2l": (sre2l, SRe2LConfig(**SHARED, crop=True)),
    "edc": (edc, EDCConfig(**SHARED, drop_rate=0.3, flatness_weight=1.0)),
}


def job(folder: Path) -> None:
    """Five classes, two images each, in four chunks; a file each step."""
    method, config = METHODS[METHOD]
    made = method(dataset(), NETWORKS, config, job=Job(out=folder, checkpoint_seconds=0.0))
    if int(os.environ.get("RANK", "0")) == 0:
        made.save(folder / "set")


def finished(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of each finished chunk."""
    files = [f for f in (folder / "chunks").glob("[0-9]*.safetensors") if ".part" not in f.name]
    return {f.name: (f.stat().st_ino, f.stat().st_mtime_ns) for f in files}


def kill_while_writing(folder: Path) -> int:
    """Kill when a checkpoint is in its temporary file and not yet renamed; count such files."""
    read, write = os.pipe()

    def stalled() -> None:
        count, real = 0, os.fsync

        def fsync(descriptor: int) -> None:
            nonlocal count
            # A temporary file is hidden; folders and metrics.jsonl are synced too.
            count += Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.startswith(".0")
            if count == 5:
                os.write(write, b"x")
                time.sleep(60)
            real(descriptor)

        os.fsync = fsync
        job(folder)

    pid = child(stalled)
    assert os.read(read, 1) == b"x"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return len(list(folder.rglob(".0*")))


def kill(root: Path) -> None:
    began = time.perf_counter()
    os.waitpid(child(lambda: job(root / "whole")), 0)
    seconds = time.perf_counter() - began
    torn = kill_while_writing(root / "torn")
    rng = random.Random(5)  # seeded moments
    folders, seen, kills, rewritten = [root / "torn", root / "0"], {}, 1, []
    while kills < int(sys.argv[4]):
        folder = folders[-1]
        pid = child(lambda folder=folder: job(folder))  # type: ignore[misc]
        time.sleep(rng.uniform(0.0, seconds / 4))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):  # it was faster: the next kills go to a new folder
            folders.append(root / str(len(folders) - 1))
            continue
        kills += 1
        now = finished(folder)
        key = str(folder)
        rewritten += [f for f, stat in seen.get(key, {}).items() if now.get(f) != stat]
        seen[key] = now
    statuses = [
        os.waitpid(child(lambda f=f: job(f)), 0)[1] for f in folders if not (f / "set").exists()
    ]  # type: ignore[misc]
    for folder in folders:
        now = finished(folder)
        rewritten += [f for f, stat in seen.get(str(folder), {}).items() if now.get(f) != stat]
    print(
        json.dumps(
            {
                "kills": kills,
                "torn": torn,
                "folders": [str(folder) for folder in folders],
                "statuses": statuses,
                "rewritten": rewritten,
                "chunks_kept": max((len(stats) for stats in seen.values()), default=0),
            }
        )
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    METHOD = sys.argv[2]
    NETWORKS = [teacher()] if METHOD == "sre2l" else [teacher(0), teacher(1)]
    pixel = torch.zeros(1, requires_grad=True)
    pixel.grad = torch.zeros(1)
    torch.optim.Adam([pixel]).step()  # imports torch._dynamo, before the children are forked
    {"job": job, "kill": kill}[sys.argv[1]](Path(sys.argv[3]))
