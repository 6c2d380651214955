"""Passes of GraNd for test_grand.py, run as a script in a process of its own.

``python grand_runner.py FOLDER`` scores in one process, in one that is killed after every part it
writes, and in two of gloo, each into a folder of its own, and prints exit codes as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which the first vmap of a process imports
from torch import nn

from pyddfast.coresets import grand, grand_of_models
from pyddfast.data import ImageDataset, Normalization
from pyddfast.train.distributed import join_ranks
from tests.processes import start, wait

grand._PART = 8  # of 30 images: four parts, the last of 6
PARTS = 4


def work(layer: Any, out: Path) -> None:
    """GraNd of one network against a teacher."""
    torch.set_num_threads(1)
    made = torch.Generator().manual_seed(0)
    images = ImageDataset(
        images=torch.randint(0, 256, (30, 1, 8, 8), generator=made, dtype=torch.uint8),
        labels=torch.arange(30) % 2,
        class_names=("even", "odd"),
        normalization=Normalization((0.4,), (0.3,)),
    )
    torch.manual_seed(1)
    net, teacher = (
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2))
        for _ in range(2)
    )
    scores = grand_of_models(
        images, [net], layer=layer, teacher=teacher, temperature=20.0,
        memory=4 * 248 * 3,  # the gradients of three samples
        out=out, ranks=join_ranks(), progress=False,
    )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":
        scores.save(out / "scores.npz")


def killed(job: Callable[[Path], None], out: Path) -> list[int]:
    """Exit codes of processes that are killed when another part is there, until one ends."""
    codes, folder, seen = [], out / "gradients0", 0
    while not codes or codes[-1] < 0:
        (pid,) = start(job, out)
        while True:
            found = len(list(folder.glob("part*"))) if folder.is_dir() else 0
            if seen < found < PARTS:
                os.kill(pid, signal.SIGKILL)
                seen = found
                break
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.0005)
        codes += wait([pid])
    return codes


def main(root: Path) -> None:
    torch.set_num_threads(1)
    seen = {}
    for layer in ("last", "all"):
        job = partial(work, layer)
        seen[layer] = {
            "one": wait(start(job, root / f"{layer}-one")),
            "killed": killed(job, root / f"{layer}-killed"),
            "two": wait(start(job, root / f"{layer}-two", 2)),
        }
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
