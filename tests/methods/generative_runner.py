"""Jobs for test_generative_jobs.py, run as a script in a process of their own.

``python generative_runner.py FOLDER`` makes sets by D4M and Minimax in one process, in two, and in
processes that are killed again and again, and prints exit codes as JSON.
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
from generative_cases import tiny_dit, tiny_sd
from small_scale_cases import squares
from small_scale_runner import job, save

from pyddfast.methods import D4MConfig, MinimaxConfig, d4m, minimax
from tests.processes import start, wait


def by_d4m(out: Path) -> None:
    config = D4MConfig(ipc=3, clusters=3, steps=5, batch_size=2, seed=3)
    save(d4m(squares(), out.parent / "sd", config, job=job(out)), out)


def by_minimax(out: Path) -> None:
    config = MinimaxConfig(
        ipc=2, epochs=2, batch_size=5, memory_size=4, phase_classes=2, steps=4, sample_batch=2
    )
    save(minimax(squares(), out.parent / "dit", config, job=job(out)), out)


def written(folder: Path) -> int:
    """When the last file of the run was written."""
    times = [0]
    for file in folder.rglob("*"):
        try:
            times.append(file.stat().st_mtime_ns)
        except FileNotFoundError:  # renamed meanwhile
            continue
    return max(times)


def killed(work: Callable[[Path], None], out: Path) -> dict[str, object]:
    """Kill a moment after a few more files have been written, until a run ends by itself."""
    rng, codes = random.Random(3), []
    while not (out / "set").exists() and len(codes) < 12:
        pids = start(work, out, 1)
        left, last = rng.randint(2, 6), written(out)
        deadline = time.monotonic() + 60
        while left and time.monotonic() < deadline and not (out / "set").exists():
            now = written(out)
            left -= now > last
            last = now
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        os.kill(pids[0], signal.SIGKILL)
        codes += wait(pids)
    return {"killed": codes, "last": [] if (out / "set").exists() else wait(start(work, out, 1))}


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    tiny_sd(root / "sd")
    tiny_dit(root / "dit")
    seen: dict[str, object] = {}
    for work in (by_d4m, by_minimax):
        for world in (1, 2):
            seen[f"{work.__name__}-{world}"] = wait(
                start(work, root / f"{work.__name__}-{world}", world)
            )
        seen[f"{work.__name__}-killed"] = killed(work, root / f"{work.__name__}-killed")
    print(json.dumps(seen), flush=True)
