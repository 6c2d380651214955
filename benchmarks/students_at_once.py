"""Students one after the other, or at once: ``python -m benchmarks.students_at_once``.

A step of three students of a small-scale set, either a step of each in turn or one ``torch.func``
step over their stacked parameters (``vmap``), in processor time.  Writes
``results/students/at_once.json``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F

from benchmarks import metadata
from benchmarks.schema import RESULTS, write
from pyddfast.models import create

STUDENTS = 3
# Width of ConvNet-D3, images a step, channels, side, steps a round: the smoke run's and CIFAR-10's.
CASES = ((16, 10, 1, 28, 40), (16, 100, 1, 28, 12), (128, 10, 3, 32, 5))
ROUNDS = 3  # of each, in turn


def measure(width: int, batch: int, channels: int, side: int, steps: int) -> dict[str, Any]:
    """Milliseconds of processor time a step of all students: median over rounds."""
    networks = [
        create("convnet-d3", 10, channels, side, width=width, seed=k) for k in range(STUDENTS)
    ]
    images = torch.randn(STUDENTS, batch, channels, side, side)
    labels = torch.randint(0, 10, (STUDENTS, batch))

    def in_turn() -> None:
        for network, mine, wanted in zip(networks, images, labels, strict=True):
            network.zero_grad()
            F.cross_entropy(network(mine), wanted).backward()  # type: ignore[no-untyped-call]

    stacked = {k: v.detach() for k, v in stack_module_state(networks)[0].items()}  # type: ignore[arg-type]

    def loss(parameters: dict[str, Tensor], mine: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(networks[0], parameters, (mine,)), wanted)

    step = vmap(grad(loss))

    def at_once() -> None:
        step(stacked, images, labels)

    taken: dict[str, list[float]] = {"in turn": [], "at once": []}
    ways: dict[str, Callable[[], None]] = {"in turn": in_turn, "at once": at_once}
    for way in ways.values():
        way()
    for _ in range(ROUNDS):
        for name, way in ways.items():
            began = time.process_time()
            for _ in range(steps):
                way()
            taken[name].append(1000 * (time.process_time() - began) / steps)
    return {
        "width": width,
        "batch": batch,
        "side": side,
        "milliseconds": {name: statistics.median(times) for name, times in taken.items()},
        "rounds": taken,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.students_at_once", description=__doc__
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "students" / "at_once.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows = [measure(*case) for case in CASES]
    write(
        {
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "metadata": metadata.collect(torch.device("cpu")),
            "command": "python -m benchmarks.students_at_once",
            "clock": "processor time",
            "rows": rows,
        },
        options.out,
    )
    for row in rows:
        print(row["width"], row["batch"], row["milliseconds"])


if __name__ == "__main__":
    main()
