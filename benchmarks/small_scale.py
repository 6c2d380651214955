"""What students learn from small-scale sets: ``python -m benchmarks.small_scale --scale smoke``.

DC, DSA, DM, TM and DATM distil Fashion-MNIST, and their students are compared with those of random
real images, of K-centers and of the images that the methods began with, in HL and SL as Table 3 of
"Hard Truths About Soft Labels" does.  The cost is printed first, the run folder resumes.  Writes
``results/small_scale/SCALE.json`` and its table.
"""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks import metadata
from benchmarks.schema import RESULTS, write
from pyddfast import methods, ops
from pyddfast.coresets import random_scores, select
from pyddfast.coresets.selection import check_ipc
from pyddfast.data import DistilledSet, ImageDataset, Trajectories, load, network_input
from pyddfast.methods.dc import LOOPS
from pyddfast.methods.small_scale import RealImages, as_set
from pyddfast.models import create
from pyddfast.nn import fuse_norm_relu_pool
from pyddfast.report import ComparisonConfig, compare_sets
from pyddfast.train import Teacher, train_experts, train_teacher
from pyddfast.train.distributed import default_device

SEED = 0
# Methods' own first images: DC's are noise, DSA's and DM's the same.
STARTS = {"start of DSA and DM": "DM", "start of TM": "TM", "start of DATM": "DATM"}
METHODS = ("DC", "DSA", "DM", "TM", "DATM")
SHOWN = (*STARTS, "random", "k-centers", *METHODS)


@dataclass(frozen=True)
class Scale:
    """How much is done; None is what the paper or the method publishes, epochs by IPC too."""

    data: str
    width: int
    ipcs: tuple[int, ...]
    student_epochs: dict[int, int]
    student_batch: int | None
    teacher_epochs: int
    experts: int
    expert_epochs: int
    settings: Callable[[str, int], dict[str, Any]]


def smoke(name: str, ipc: int) -> dict[str, Any]:
    """Minutes on two cores: fewer iterations with larger rates, smaller real batches."""
    if name == "DM":
        return {"iterations": 150, "real_batch": 64, "lr_img": 10.0}
    if name in ("DC", "DSA"):
        if ipc == 1:
            return {"iterations": 120, "real_batch": 64}
        return {"iterations": 5, "real_batch": 64, "inner_epochs": 10}
    # The experts end at epoch 15.
    shared = {"iterations": 60, "syn_steps": 10, "expert_epochs": 2, "max_start_epoch": 10}
    if name == "DATM":
        shared |= {"first_max_start_epoch": 5, "min_start_epoch": 0, "expansion_end": 30}
    return {**shared, "batch_syn": min(50, 10 * ipc)}


def medium(name: str, ipc: int) -> dict[str, Any]:
    """An hour or two on two cores: all 60,000 real images, several times as many iterations."""
    given = smoke(name, ipc)
    if name == "DM":
        return {**given, "iterations": 1000}
    if name in ("DC", "DSA"):
        # 300 updates of the images from IPC 10 on.
        more = {1: {"iterations": 500}, 10: {"iterations": 30}}
        return {**given, **more.get(ipc, {"iterations": 6, "inner_epochs": 5})}
    # An epoch of an expert has ten times smoke's steps: students start early, as the published ones
    # of so few images do, and take longer steps, or none of them comes near the expert.
    start = 10 if ipc == 50 else 5
    given |= {"iterations": 300, "max_start_epoch": start, "lr_init": 0.05 if ipc == 1 else 0.02}
    if name == "DATM":
        given |= {"expansion_end": 150, "first_max_start_epoch": (start + 1) // 2}
    return given


SCALES = {
    # About 1000 steps a student: the paper's smallest sets, 1000 images in batches of 256, get 1200
    # of their 300 epochs; in batches of 256, 100 images would get 300, of which AdamW needs more.
    "smoke": Scale("fashion-mnist-mini", 16, (1, 10), {1: 900}, 25, 10, 10, 15, smoke),
    # Students as long as smoke's, of which IPC 50 has 20 steps an epoch.
    "medium": Scale("fashion-mnist", 16, (1, 10, 50), {1: 900, 50: 60}, 25, 10, 10, 15, medium),
    # Both are CIFAR-10's published settings: nobody published any for Fashion-MNIST.
    "full": Scale("fashion-mnist", 128, (1, 10, 50), {}, None, 50, 100, 50, lambda name, ipc: {}),
}


@dataclass(frozen=True)
class Bench:
    """Data, networks and folder of a run."""

    scale: Scale
    train: ImageDataset
    test: ImageDataset
    folder: Path

    @property
    def model(self) -> tuple[str, dict[str, Any]]:
        """Students, teacher and distilling networks."""
        return "convnet-d3", {"width": self.scale.width}

    def make(self, name: str, ipc: int, teacher: Teacher) -> DistilledSet:
        """A set by name, kept in the folder.

        A method's set comes from its run folder, which refuses other settings when it is finished,
        too; the others depend on data and teacher, whose folder refuses others.
        """
        stored = self.folder / "sets" / f"{name}-{ipc}"
        if stored.exists() and name not in METHODS:
            return DistilledSet.load(stored)
        if name in STARTS:
            made = self.start(STARTS[name], ipc)
        elif name == "random":
            scores = random_scores(len(self.train), seed=SEED + 1)
            made = select(scores, self.train.labels, ipc=ipc, method="random").to_distilled(
                self.train
            )
        elif name == "k-centers":
            made = self.k_centers(ipc, teacher)
        else:
            made = self.distil(name, ipc)
        if not stored.exists():
            made.save(stored)
        return made

    def start(self, name: str, ipc: int) -> DistilledSet:
        """The real images that a method begins with."""
        if name == "DM":
            real = RealImages(self.train, torch.device("cpu"), SEED)
            return as_set(real.initial(ipc, "real"), real, {"method": "start"})
        # A step that is too small to change a bit.
        made = self.distil(name, ipc, methods.Job(), iterations=1, lr_img=1e-30)
        return replace(made, lr=None, soft_labels=None, meta={"method": "start"})

    def distil(
        self, name: str, ipc: int, job: methods.Job | None = None, **changed: Any
    ) -> DistilledSet:
        """By one of the methods; seconds go to its run folder."""
        given = self.scale.settings(name, ipc) | changed
        job = job or methods.Job(
            out=self.folder / "distil" / f"{name}-{ipc}", on_progress=told(name, ipc)
        )
        if name in ("TM", "DATM"):
            method, config = {
                "TM": (methods.tm, methods.TMConfig), "DATM": (methods.datm, methods.DATMConfig),
            }[name]  # fmt: skip
            chosen = config(ipc=ipc, seed=SEED, **given)
            made: DistilledSet = method(
                self.train, self.experts(), chosen, model=self.model, job=job
            )
            return made
        matching = {
            "DC": (methods.dc, methods.DCConfig), "DSA": (methods.dsa, methods.DSAMatchingConfig),
            "DM": (methods.dm, methods.DMConfig),
        }[name]  # fmt: skip
        return matching[0](
            self.train, self.model, matching[1](ipc=ipc, seed=SEED, **given), job=job
        )  # type: ignore[operator,no-any-return]

    def experts(self) -> Trajectories:
        """Trained once, shared by TM and DATM."""
        return train_experts(
            self.train,
            self.model,
            test_set=self.test,
            out=self.folder / "experts",
            count=self.scale.experts,
            epochs=self.scale.expert_epochs,
            seed=SEED,
        )

    @torch.no_grad()
    def k_centers(self, ipc: int, teacher: Teacher) -> DistilledSet:
        """Greedy k-center of each class on the teacher's features, from the one at the mean."""
        device = next(teacher.model.parameters()).device
        images = network_input(self.train.images, self.train.normalization)
        embed: Any = teacher.model.embed
        features = torch.cat([embed(part.to(device)) for part in images.split(512)])  # type: ignore[no-untyped-call]
        order, segments = ops.class_segments(self.train.labels.to(device))
        found = ops.k_center(features[order].contiguous(), ipc, init="mean", segments=segments)
        picks = order[found.picks].cpu()
        return DistilledSet(
            self.train.images[picks],
            self.train.labels[picks],
            self.train.num_classes,
            self.train.normalization,
            self.train.class_names,
            meta={"method": "k-centers", "picks": picks.tolist()},
        )


def told(name: str, ipc: int) -> Callable[[int, int], None]:
    """Progress on a line, every tenth of the way."""

    def say(done: int, total: int) -> None:
        if done % max(1, total // 10) == 0:
            print(f"{name} at IPC {ipc}: {done} of {total}", flush=True)

    return say


def cost(bench: Bench, names: list[str], seeds: int) -> float:
    """Print what the run takes, in images forward and backward; the estimated minutes."""
    rate = images_per_second(bench)
    scale, train, rows = bench.scale, len(bench.train), {}
    rows["teacher"] = scale.teacher_epochs * train
    if {"TM", "DATM"} & set(names):
        rows["experts"] = scale.experts * scale.expert_epochs * train
    for ipc in scale.ipcs:
        images, epochs = 10 * ipc, scale.student_epochs.get(ipc, 300)
        for name in names:
            given = scale.settings(name, ipc)
            batch, steps = given.get("real_batch", 256), given.get("syn_steps", 50)
            outer, inner = LOOPS.get(ipc, (10, 50))
            inner = given.get("inner_epochs", inner)
            rows[f"{name} {ipc}"] = {
                "DM": given.get("iterations", 20_000) * (10 * batch / 3 + images),
                "DC": given.get("iterations", 1000)
                * outer
                * (10 * batch + 3 * images + inner * images),
                "TM": given.get("iterations", 5000) * steps * 5 * given.get("batch_syn", images),
            }.get({"DSA": "DC", "DATM": "TM"}.get(name, name), 0)
        # HL and SL, and an evaluation.
        each = epochs * images + len(bench.test) / 3
        rows[f"students {ipc}"] = 2 * seeds * len(names) * each
    for name, count in rows.items():
        print(f"{name:>14}: {count / rate / 60:8.1f} minutes")
    total = sum(rows.values()) / rate / 60
    print(f"{'all':>14}: {total:8.1f} minutes at {rate:,.0f} images/s", flush=True)
    return total


def images_per_second(bench: Bench) -> float:
    """Of a training step of the network on this machine."""
    device = default_device()
    name, options = bench.model
    model = fuse_norm_relu_pool(create(name, 10, 1, 28, **options)).to(device)
    images = network_input(bench.train.images[:256].to(device), bench.train.normalization)
    labels = bench.train.labels[:256].to(device)
    for step in range(4):
        if step == 1:  # the first one warms up
            began = time.perf_counter()
        F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
    return 3 * len(images) / (time.perf_counter() - began)


def table(run: dict[str, Any]) -> str:
    """Accuracies of a result file in Markdown, mean and standard deviation over students."""
    names = {"hl": "HL", "sl": "SL"}
    columns = [(ipc, regime) for ipc in run["ipc"] for regime in names]
    cells = {
        (ipc, cell["method"], cell["regime"].lower()): cell
        for ipc, one in run["ipc"].items()
        for cell in one["cells"]
    }
    head = " | ".join(f"{names[regime]}, IPC {ipc}" for ipc, regime in columns)
    lines = [f"| set | {head} |", "|---|" + "---|" * len(columns)]
    for name in SHOWN:
        if any((ipc, name, regime) in cells for ipc, regime in columns):
            found = [cells.get((ipc, name, regime)) for ipc, regime in columns]
            lines.append(
                f"| {name} | "
                + " | ".join(
                    "" if c is None else f"{100 * c['mean']:.1f} ± {100 * c['std']:.1f}"
                    for c in found
                )
                + " |"
            )
    return "\n".join(lines)


def main() -> None:
    """Makes the sets and compares them.

    Raises:
        SystemExit: An option is out of range, or the data are not where it says.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.small_scale",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--scale", choices=list(SCALES), default="smoke")
    parser.add_argument("--root", type=Path, help="folder of Fashion-MNIST, for medium and full")
    parser.add_argument("--sets", nargs="+", choices=SHOWN, default=list(SHOWN))
    parser.add_argument("--ipc", type=int, nargs="+", help="default those of the scale")
    parser.add_argument("--seeds", type=int, default=3, help="students a set and regime")
    parser.add_argument("--run", type=Path, help="default runs/small-scale-SCALE")
    parser.add_argument(
        "--out",
        type=Path,
        help="default results/small_scale/SCALE.json; of some --sets RUN/SCALE.json",
    )
    parser.add_argument("--only-cost", action="store_true", help="print it and end")
    options = parser.parse_args()
    scale = SCALES[options.scale]
    if options.ipc:
        scale = replace(scale, ipcs=tuple(options.ipc))
    try:
        train, test = (load(scale.data, root=options.root, split=s) for s in ("train", "test"))
        assert isinstance(train, ImageDataset)
        assert isinstance(test, ImageDataset)
        compared_as = {
            ipc: ComparisonConfig(
                regimes=("hl", "sl"),
                seeds=options.seeds,
                epochs=scale.student_epochs.get(ipc),
                batch_size=scale.student_batch,
            )
            for ipc in scale.ipcs
        }
        check_ipc(max(scale.ipcs), train.class_counts.tolist())
        if min(scale.ipcs) < 1:
            raise ValueError(f"--ipc must be at least 1, got {min(scale.ipcs)}")
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    folder = options.run or Path(f"runs/small-scale-{options.scale}")
    bench = Bench(scale, train, test, folder)
    estimate = cost(bench, options.sets, options.seeds)
    if options.only_cost:
        return
    teacher = train_teacher(
        train,
        bench.model,
        test_set=test,
        epochs=scale.teacher_epochs,
        seed=SEED,
        out=folder / "teacher",
    )
    compared = {}
    for ipc in scale.ipcs:
        sets = {name: bench.make(name, ipc, teacher) for name in options.sets}
        compared[ipc] = compare_sets(
            sets,
            bench.model,
            compared_as[ipc],
            test_set=test,
            teacher=teacher.model,
            teacher_info={"accuracy": teacher.record["accuracy"]},
            out=folder / f"compared-{ipc}",
        )
    some = set(options.sets) != set(SHOWN)
    out = options.out or (folder if some else RESULTS / "small_scale") / f"{options.scale}.json"
    write(
        {
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "metadata": metadata.collect(default_device()),
            "command": "python -m benchmarks.small_scale --scale "
            f"{options.scale} --ipc {' '.join(map(str, scale.ipcs))} --seeds {options.seeds}"
            + (f" --sets {shlex.join(options.sets)}" if some else ""),
            "data": scale.data,
            "model": bench.model,
            "student_epochs": {ipc: scale.student_epochs.get(ipc, 300) for ipc in scale.ipcs},
            "student_batch": scale.student_batch or 256,
            "seeds": options.seeds,
            "teacher_accuracy": teacher.record["accuracy"],
            "settings": {
                f"{name} {ipc}": scale.settings(name, ipc)
                for name in options.sets
                for ipc in scale.ipcs
                if name in METHODS
            },
            "estimated_minutes": round(estimate, 1),
            "ipc": {ipc: one.to_dict() for ipc, one in compared.items()},
        },
        out,
    )
    print(*(s for one in compared.values() for s in one.sentences), f"written: {out}", sep="\n")


if __name__ == "__main__":
    main()
