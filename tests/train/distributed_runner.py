"""Jobs for test_distributed.py, run as a script in a process of their own.

``python distributed_runner.py FOLDER`` trains students and stores labels in one process and in two,
kills some, and prints what it saw as JSON.
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
import torch._dynamo  # imported by the first optimiser otherwise, in every child
import torch.nn.parallel
from torch import nn
from train_cases import blobs, distilled, tiny

from pyddfast.cli import main as main_command
from pyddfast.cli import options
from pyddfast.coresets import TrainingDynamics
from pyddfast.data import LabelBatch, SoftLabelWriter
from pyddfast.train import (
    Epochs,
    Execution,
    Recording,
    recipe,
    relabel,
    teacher_recipe,
    train_student,
    train_teacher,
)
from tests.processes import start, wait


def plain(seed: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 3),
    )  # fmt: skip


def normed(seed: int) -> nn.Module:
    """As :func:`train_cases.tiny` without its dropout, whose masks are of a part of the batch."""
    return nn.Sequential(*(m for m in tiny(seed) if not isinstance(m, nn.Dropout)))


def teacher() -> nn.Module:
    torch.manual_seed(7)
    return plain(7).eval()


# Batches of 7 in two processes: 3 and 4 images; the last of an epoch, 18 - 14, 2 and 2.
def plain_kd(out: Path | None) -> None:
    """CutMix crosses the processes; AdamW; a moving average."""
    r = recipe("sl-kd", "large", batch_size=7, lr=1e-2, ema=0.9)
    train(plain, r, out, Execution())


def synchronised(out: Path | None) -> None:
    """Batch norm over both processes, whatever their shares; SGD with momentum."""
    r = recipe("hl", "small", batch_size=7, lr=0.05)
    train(normed, r, out, Execution(batch_norm="sync"))


def accumulated(out: Path | None) -> None:
    r = recipe("hl", "large", 10, batch_size=7, lr=0.05)
    train(plain, r, out, Execution(accumulate=2))


def in_step(out: Path | None) -> None:
    r = recipe("hl", "small", batch_size=7, lr=0.05)
    train(normed, r, out, Execution(batch_norm="sync", accumulate=2))


def by_rank(out: Path | None) -> None:
    """Dropout, and batch norm of each process on its own."""
    r = recipe("hl", "small", batch_size=7, lr=0.05, ema=0.9)
    train(tiny, r, out, Execution(batch_norm="rank"))


# 3 epochs of 3 batches: two processes have no even number of turns.
def relabelled(out: Path) -> None:
    r = recipe("sl-kd", "large", batch_size=7)
    relabel(
        distilled(blobs()), teacher(), out=out, recipe=r, epochs=3, form="float32", seed=3,
        device="cpu", progress=False,
    )  # fmt: skip


def relabelled_and_killed(out: Path) -> None:
    """The first process ends in the second epoch, and with it the other."""
    write = SoftLabelWriter.write

    def stop(self: SoftLabelWriter, batch: LabelBatch) -> None:
        write(self, batch)
        if self.done == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    SoftLabelWriter.write = stop
    relabelled(out)


def recorded(mode: str, ticks: int | str, out: Path) -> None:
    """Images that a tick's epochs give to different processes; a teacher on every view."""
    recorder = TrainingDynamics(
        18, window=2, record=("el2n_sl", "sharp", "grand", "entropy"), soft_temperature=20.0
    )
    r = teacher_recipe(4, batch_size=7)
    train_teacher(
        blobs(), normed, test_set=blobs(per_class=20, seed=1), recipe=r, out=out, device="cpu",
        recording=Recording(recorder, ticks, mode, teacher(), "view", features=True),
        evaluations=2, checkpoint_seconds=0.0, progress=False,
    )  # fmt: skip


def recorded_train(out: Path) -> None:
    recorded("train", 2, out)


def recorded_eval(out: Path) -> None:
    recorded("eval", 5, out)


def scored(out: Path) -> None:
    """``pyddfast score`` itself."""
    options.load = lambda name, *, split, **rest: blobs(seed=int(split == "test"))
    words = ["score", "--epochs", "6", "--window", "3", "--cad-window", "3", "--grand"]
    words += ["--model", "convnet-d1", "--model-option", "width=4", "--out", str(out)]
    assert main_command(words) == 0


def train(model: Callable[[int], nn.Module], r, out: Path | None, execution: Execution) -> None:
    train_student(
        distilled(blobs()), r.regime, model, test_set=blobs(per_class=20, seed=1), recipe=r,
        teacher=teacher() if r.regime == "sl-kd" else None, budget=Epochs(3), seeds=(0, 1),
        evaluations=2, checkpoint_seconds=0.0, out=out, device="cpu", progress=False,
        execution=execution,
    )  # fmt: skip


def killed(job: Callable[[Path], None], out: Path, last: str) -> dict[str, object]:
    """Kill the processes of a job at seeded moments until one run of it writes its last file."""
    rng, kills, at = random.Random(3), 0, []
    while kills < 4:
        pids = start(job, out, 2)
        # After the checkpoint has changed, so that the job advances from kill to kill.
        checkpoint = out / "checkpoint.safetensors"
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (out / last).exists():
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns > before:
                break
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        if (out / last).exists():
            wait(pids)
            break
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        at.append(wait(pids))
        kills += 1
    return {"killed": at, "last": wait(start(job, out, 2))}


def main(root: Path) -> None:
    seen: dict[str, object] = {}
    for job in (
        plain_kd,
        synchronised,
        accumulated,
        by_rank,
        recorded_train,
        recorded_eval,
        scored,
    ):
        for world in (1, 2):
            name = f"{job.__name__}-{world}"
            seen[name] = wait(start(job, root / name, world))
    seen["in_step-2"] = wait(start(in_step, root / "in_step-2", 2))
    for world in (1, 2):
        seen[f"relabel-{world}"] = wait(start(relabelled, root / f"relabel-{world}", world))
    seen["relabel-killed"] = wait(start(relabelled_and_killed, root / "relabel-kills", 2))[0]
    seen["relabel-resumed"] = wait(start(relabelled, root / "relabel-kills", 2))
    seen["kills"] = killed(by_rank, root / "kills", "result.json")
    seen["recorded_kills"] = killed(recorded_train, root / "recorded_kills", "teacher.json")
    print(json.dumps(seen))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
