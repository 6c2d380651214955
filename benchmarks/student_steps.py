"""How many steps students of small sets need: ``python -m benchmarks.student_steps``.

The paper's small-scale recipes are 300 epochs in batches of 256.  Its smallest sets, 1000 images,
get 1200 steps of it; 10 classes at IPC 1 or 10 get 300.  Students of the same random real images
are trained for more or fewer, in HL and SL.  Writes ``results/small_scale/steps.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks import metadata
from benchmarks.schema import RESULTS, write
from pyddfast.coresets import random_scores, select
from pyddfast.data import ImageDataset, load
from pyddfast.train import Epochs, Regime, recipe, train_student, train_teacher

MODEL = ("convnet-d3", {"width": 16})  # of benchmarks.small_scale at smoke scale
SEEDS = (0, 1, 2)
# IPC, epochs, images a step; 256 is the published batch, more than these sets have.
CELLS = (
    (1, 100, 256),
    (1, 300, 256),
    (1, 900, 256),
    (10, 100, 256),
    (10, 300, 256),
    (10, 300, 25),
)


def measure(folder: Path, threads: int) -> dict[str, Any]:
    """Every cell in both regimes; students and teacher stay in the folder."""
    torch.set_num_threads(threads)
    train, test = (load("fashion-mnist-mini", split=split) for split in ("train", "test"))
    assert isinstance(train, ImageDataset)
    assert isinstance(test, ImageDataset)
    teacher = train_teacher(train, MODEL, test_set=test, epochs=10, out=folder / "teacher")
    rows = []
    for ipc, epochs, batch in CELLS:
        picked = select(random_scores(len(train), seed=1), train.labels, ipc=ipc, method="random")
        regimes: tuple[Regime, ...] = ("hl", "sl")
        for regime in regimes:
            result = train_student(
                picked.to_distilled(train),
                regime,
                MODEL,
                test_set=test,
                teacher=None if regime == "hl" else teacher.model,
                teacher_info={"accuracy": teacher.record["accuracy"]},
                recipe=recipe(regime, "small", ipc, batch_size=batch),
                budget=Epochs(epochs),
                seeds=SEEDS,
                evaluations=1,
                out=folder / f"{ipc}-{epochs}-{batch}-{regime}",
                progress=False,
            )
            rows.append(
                {
                    "ipc": ipc,
                    "epochs": epochs,
                    "batch": batch,
                    "steps": result.config["budget"]["total_steps"],
                    "regime": regime,
                    "accuracies": [seed.last_accuracy for seed in result.seeds],
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "metadata": metadata.collect(torch.device("cpu")),
        "command": "python -m benchmarks.student_steps",
        "data": "fashion-mnist-mini",
        "model": MODEL,
        "teacher_accuracy": teacher.record["accuracy"],
        "rows": rows,
    }


def table(run: dict[str, Any]) -> str:
    """Accuracies in Markdown, mean and standard deviation over students."""
    lines = ["| images | epochs, batch | steps | HL | SL |", "|---|---|---|---|---|"]
    for ipc, epochs, batch in CELLS:
        here = [
            r for r in run["rows"] if (r["ipc"], r["epochs"], r["batch"]) == (ipc, epochs, batch)
        ]
        shown = [
            f"{100 * statistics.fmean(r['accuracies']):.1f} ± "
            f"{100 * statistics.stdev(r['accuracies']):.1f}"
            for r in here
        ]
        lines.append(
            f"| {10 * ipc} | {epochs}, {batch} | {here[0]['steps']} | {' | '.join(shown)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.student_steps", description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/student-steps"))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    result = measure(options.run, options.threads)
    write(result, RESULTS / "small_scale" / "steps.json")
    print(table(result))


if __name__ == "__main__":
    main()
