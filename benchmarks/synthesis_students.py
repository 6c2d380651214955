"""What students learn from optimised images: ``python -m benchmarks.synthesis_students``.

Every method that optimises images makes a set of the embedded Fashion-MNIST subset from ConvNet-D3
teachers with batch norm; their students are compared with those of random real images and of noise
in all label regimes.  The run folder resumes.  Writes ``results/students/synthesis.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks import metadata
from benchmarks.schema import RESULTS, write
from pyddfast import methods
from pyddfast.coresets import random_scores, select
from pyddfast.data import DistilledSet, ImageDataset, load
from pyddfast.methods.synthesis import initial_noise
from pyddfast.report import ComparisonConfig, compare_sets
from pyddfast.train import Teacher, progress, train_teacher

SEED = 0
TEACHER_EPOCHS = 20
# Students and first teacher; a quarter of the papers' width, for two CPU cores.
MODEL = ("convnet-d3", {"norm": "batch", "width": 32})
# The second of the methods that are made for several teachers.
SECOND = ("convnet-d4", {"norm": "batch", "width": 32})
METHODS: dict[str, tuple[Callable[..., DistilledSet], Callable[..., Any], int]] = {
    "SRe2L": (methods.sre2l, methods.SRe2LConfig, 1),
    "CDA": (methods.cda, methods.CDAConfig, 1),
    "DWA": (methods.dwa, methods.DWAConfig, 1),
    "FADRM": (methods.fadrm, methods.FADRMConfig, 1),
    "G-VBSM": (methods.gvbsm, methods.GVBSMConfig, 2),
    "EDC": (methods.edc, methods.EDCConfig, 2),
}


def random_images(train: ImageDataset, ipc: int) -> DistilledSet:
    """Real images, the same number of each class."""
    scores = random_scores(len(train), seed=SEED)
    return select(scores, train.labels, ipc=ipc, method="random").to_distilled(train)


def noise_images(train: ImageDataset, ipc: int) -> DistilledSet:
    """The standard normal images that the methods start from, as bytes."""
    normalization = train.normalization
    mean = torch.tensor(normalization.mean).view(-1, 1, 1)
    std = torch.tensor(normalization.std).view(-1, 1, 1)
    shape = (train.images.shape[1], train.images.shape[2], train.images.shape[3])
    noise = torch.stack(
        [
            initial_noise(SEED, k, slot, shape)
            for k in range(train.num_classes)
            for slot in range(ipc)
        ]
    )
    return DistilledSet(
        images=((noise * std + mean).clamp(0, 1) * 255).round().to(torch.uint8),
        labels=torch.arange(train.num_classes).repeat_interleave(ipc),
        num_classes=train.num_classes,
        normalization=normalization,
        class_names=train.class_names,
        kind="synthetic",
        meta={"method": "noise"},
    )


def make(
    name: str, train: ImageDataset, teachers: list[Teacher], ipc: int, folder: Path
) -> DistilledSet:
    """The set of a method, kept in ``folder``."""
    stored = folder / "sets" / name
    if stored.exists():
        return DistilledSet.load(stored)
    if name == "random":
        made = random_images(train, ipc)
    elif name == "noise":
        made = noise_images(train, ipc)
    else:
        method, config, count = METHODS[name]
        asked = [teacher.model for teacher in teachers[:count]]
        with progress(name, 1) as advance:
            job = methods.Job(out=folder / "synthesis" / name)
            made = method(train, asked, config(ipc=ipc, seed=SEED), job=job)
            advance(1)
    made.save(stored)
    return made


def main() -> None:
    """Makes the sets and compares them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.synthesis_students",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--ipc", type=int, default=10, help="images a class")
    parser.add_argument("--epochs", type=int, default=100, help="epochs of a student")
    parser.add_argument("--seeds", type=int, default=5, help="students a set and regime")
    parser.add_argument("--run", type=Path, default=Path("runs/synthesis-students"))
    parser.add_argument("--out", type=Path, default=RESULTS / "students" / "synthesis.json")
    options = parser.parse_args()
    train, test = load("fashion-mnist-mini"), load("fashion-mnist-mini", split="test")
    teachers = [
        train_teacher(
            train,
            model,
            test_set=test,
            epochs=TEACHER_EPOCHS,
            seed=SEED,
            out=options.run / "teachers" / str(number),
        )
        for number, model in enumerate((MODEL, SECOND))
    ]
    sets = {
        name: make(name, train, teachers, options.ipc, options.run)
        for name in ("random", "noise", *METHODS)
    }
    accuracy = teachers[0].record["accuracy"]
    compared = compare_sets(
        sets,
        MODEL,
        ComparisonConfig(seeds=options.seeds, epochs=options.epochs),
        test_set=test,
        teacher=teachers[0].model,
        teacher_info={"accuracy": accuracy},
        out=options.run / "compared",
    )
    write(
        {
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "metadata": metadata.collect(torch.device("cpu")),
            "scale": "fashion-mnist-mini, smoke: width 32, shortened training",
            "ipc": options.ipc,
            "epochs": options.epochs,
            "seeds": options.seeds,
            "student": MODEL,
            "teachers": [
                {"model": model, "accuracy": teacher.record["accuracy"]}
                for model, teacher in zip((MODEL, SECOND), teachers, strict=True)
            ],
            "sets": {
                name: {"teacher_accuracy": one.meta.get("teacher_accuracy")}
                for name, one in sets.items()
            },
            **compared.to_dict(),
        },
        options.out,
    )
    print(*compared.sentences, f"written: {options.out}", sep="\n")


if __name__ == "__main__":
    main()
