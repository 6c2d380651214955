"""Passes of GraNd for test_grand.py, run as a script in a process of its own.

``python grand_runner.py FOLDER`` scores in one process, in one that is killed after every part it
writes, and in two of gloo, each into a folder of its own, and prints exit codes as JSON.  Each
process is a forked child of a parent that has imported everything and run no backward pass.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which the first vmap of a process imports
from torch import nn

from pyddfast.coresets import grand, grand_of_models
from pyddfast.data import ImageDataset, Normalization
from pyddfast.train.distributed import join_ranks

grand._PART = 8  # of 30 images: four parts, the last of 6
PARTS = 4


def work(out: Path, layer: Any) -> None:
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


def start(out: Path, layer: str, world: int = 1) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            os.environ |= {
                "WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
            try:
                work(out, layer)
                os._exit(0)
            except BaseException as error:
                print(rank, repr(error), file=sys.stderr, flush=True)
                os._exit(1)
        pids.append(pid)
    return pids


def wait(pids: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def killed(out: Path, layer: str) -> list[int]:
    """Exit codes of processes that are killed when another part is there, until one ends."""
    codes, folder, seen = [], out / "gradients0", 0
    while not codes or codes[-1] < 0:
        (pid,) = start(out, layer)
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
        seen[layer] = {
            "one": wait(start(root / f"{layer}-one", layer)),
            "killed": killed(root / f"{layer}-killed", layer),
            "two": wait(start(root / f"{layer}-two", layer, 2)),
        }
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
