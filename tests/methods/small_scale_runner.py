"""Jobs for test_small_scale.py, run as a script in a process of their own.

``python small_scale_runner.py FOLDER`` makes sets by DM and DSA in one process, in two, and in
processes that are killed at seeded moments, and prints exit codes as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo
from small_scale_cases import MODEL, squares

from pyddfast.methods import DMConfig, DSAMatchingConfig, Job, dm, dsa
from tests.processes import start, wait


def by_dm(out: Path) -> None:
    made = dm(squares(), MODEL, DMConfig(ipc=2, iterations=25, real_batch=4), job=job(out))
    save(made, out)


def by_dsa(out: Path) -> None:
    config = DSAMatchingConfig(
        ipc=2, iterations=3, outer_loops=4, inner_epochs=2, real_batch=4, train_batch=4
    )
    save(dsa(squares(), MODEL, config, job=job(out)), out)


def job(out: Path) -> Job:
    return Job(device="cpu", out=out, checkpoint_seconds=0.0)


def save(made, out: Path) -> None:
    if os.environ.get("RANK", "0") == "0":
        made.save(out / "set")


def killed(work: Callable[[Path], None], out: Path) -> dict[str, object]:
    """Kill whenever the checkpoint has moved on, a moment later, until a run ends by itself."""
    rng, codes = random.Random(3), []
    checkpoint = out / "checkpoint.safetensors"
    for _ in range(5):
        pids = start(work, out, 1)
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (out / "set").exists():
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns > before:
                break
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        os.kill(pids[0], signal.SIGKILL)
        codes += wait(pids)
        if (out / "set").exists():
            break
    return {"killed": codes, "last": [] if (out / "set").exists() else wait(start(work, out, 1))}


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    seen: dict[str, object] = {}
    for work in (by_dm, by_dsa):
        for world in (1, 2):
            seen[f"{work.__name__}-{world}"] = wait(
                start(work, root / f"{work.__name__}-{world}", world)
            )
        seen[f"{work.__name__}-killed"] = killed(work, root / f"{work.__name__}-killed")
    print(json.dumps(seen))
