"""The main job in one call: a teacher, five small sets, students in three label regimes, a report.

Everything runs on the embedded subset of Fashion-MNIST.  The run is a folder; each stage leaves its
result there, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pyddfast._extras import require
from pyddfast.coresets import Scores, cad_scores, el2n_scores, random_scores, select
from pyddfast.coresets.selection import check_ipc
from pyddfast.data import DistilledSet, ImageDataset, load
from pyddfast.data.atomic import remove_leftovers
from pyddfast.data.digest import describe_data
from pyddfast.data.stored import read_tensors
from pyddfast.methods.ca2d import ca2d
from pyddfast.methods.rded import RDEDConfig, rded
from pyddfast.models import create
from pyddfast.report import (
    Result,
    accuracy_figure,
    differences,
    percent,
    png_uri,
    sets_figure,
    summary,
    svg,
    write_report,
)
from pyddfast.train import (
    Epochs,
    Recipe,
    Regime,
    RunFolder,
    StudentResult,
    Teacher,
    environment,
    predict,
    progress,
    recipe,
    teacher_recipe,
    train_student,
    train_teacher,
)
from pyddfast.train.distributed import resolve_device

__all__ = ["QuickstartConfig", "QuickstartResult", "quickstart"]

DATASET: Literal["fashion-mnist-mini"] = "fashion-mnist-mini"
METHODS = {
    "random": "Random",
    "el2n-easy": "EL2N-Easy",
    "cad-prune": "CAD-Prune",
    "rded": "RDED",
    "ca2d": "CA2D",
}
REGIMES: dict[Regime, str] = {"hl": "HL", "sl": "SL", "sl-kd": "SL+KD"}


@dataclass(frozen=True)
class QuickstartConfig:
    """Settings of the quickstart; the defaults fit five minutes on two CPU cores.

    Attributes:
        ipc: Images a class of each set.
        seeds: Students of each set and regime; at least 2, for their spread.
        epochs: Epochs of a student; the paper's Table 1 has 300.
        teacher_epochs: Epochs of the teacher on the full data.
        el2n_models: Networks that EL2N is averaged over; ten in its paper.
        el2n_epochs: Epochs before they score; twenty of a long training in its paper.
        cad_ticks: Snapshots of the compute-matched run that CAD-Prune and CA2D rank by; a pass over
            the training data each.
        width: Channels of every ConvNet-D3; 128 in the papers.
        seed: Seed of everything; the same seed gives the same numbers on the same machine.
    """

    ipc: int = 10
    seeds: int = 3
    epochs: int = 100
    teacher_epochs: int = 8
    el2n_models: int = 3
    el2n_epochs: int = 2
    cad_ticks: int = 10
    width: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("ipc", "epochs", "teacher_epochs", "el2n_models", "el2n_epochs", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.cad_ticks < 4:
            raise ValueError(
                f"cad_ticks must be at least 4, two windows of two and the last tick, "
                f"got {self.cad_ticks}"
            )
        if self.seeds < 2:
            raise ValueError(f"seeds must be at least 2, for their spread, got {self.seeds}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie in [0, 2**32), got {self.seed}")

    @property
    def student_seeds(self) -> tuple[int, ...]:
        """Seeds of the students; runs with different seeds share none (up to 1000 students)."""
        return tuple(1000 * self.seed + k for k in range(self.seeds))


@dataclass(frozen=True)
class QuickstartResult:
    """What the quickstart measured.

    Attributes:
        folder: The run.
        report: Its ``report.html``.
        results: A cell of the table each.
        sentences: What the differences say.
        teacher_accuracy: Test accuracy of the teacher.
        seconds: Time of all stages.
    """

    folder: Path
    report: Path
    results: tuple[Result, ...]
    sentences: tuple[str, ...]
    teacher_accuracy: float
    seconds: float


def quickstart(
    out: str | Path,
    config: QuickstartConfig | None = None,
    *,
    resume: bool = False,
    device: torch.device | str | None = None,
    show: bool = True,
) -> QuickstartResult:
    """Run it: teacher, sets, students, report.

    Args:
        out: A new or empty folder, or with ``resume`` that of a stopped run.
        config: Settings; default :class:`QuickstartConfig`.
        resume: Go on with the run in ``out``; finished stages are read, not repeated.
        device: Default CUDA where there is one, else the CPU.
        show: Progress on stderr.

    Returns:
        The measured accuracies; the folder holds ``report.html``, ``results.json``, the sets and
        all weights.

    Raises:
        FileExistsError: ``out`` is not empty and ``resume`` is False, or holds something else.
        ValueError: A setting is out of range, or ``out`` holds a run with other settings.
        BlockingIOError: Another process works in ``out``.
        ModuleNotFoundError: The ``methods`` extra is not installed.
    """
    config = QuickstartConfig() if config is None else config
    for module in ("jinja2", "matplotlib", "safetensors", "scipy"):
        require(module, "methods")
    train_set, test_set = load(DATASET, split="train"), load(DATASET, split="test")
    check_ipc(config.ipc, train_set.class_counts.tolist())
    target = resolve_device(device)
    facts = {
        "task": "quickstart",
        "dataset": describe_data(train_set),
        "test_set": describe_data(test_set),
        **asdict(config),
        "device": str(target),
    }
    with RunFolder(out, facts, resume=resume) as folder:
        remove_leftovers(folder.path / "sets")
        run = _Run(folder, config, target, train_set, test_set, show)
        with progress("quickstart", run.units, enabled=show and sys.stderr.isatty()) as advance:
            run.advance = advance
            teacher = run.teacher()
            sets = run.sets(teacher.model)
            students = run.students(sets, teacher)
        return run.report(teacher, sets, students)


class _Run:
    """The stages of one run, in order."""

    def __init__(
        self,
        folder: RunFolder,
        config: QuickstartConfig,
        device: torch.device,
        train_set: ImageDataset,
        test_set: ImageDataset,
        show: bool,
    ) -> None:
        self.folder, self.config, self.device = folder, config, device
        self.train_set, self.test_set = train_set, test_set
        self.show = show
        self.advance: Callable[[int], None] = lambda units: None
        self.model = ("convnet-d3", {"width": config.width})
        self.done = {row["stage"]: row for row in folder.metrics() if "stage" in row}
        # Work in images trained on, so that the remaining time is about right.
        count, students = len(train_set), config.seeds * config.epochs * config.ipc
        self.cost = {
            "teacher": config.teacher_epochs * count,
            "el2n": config.el2n_models * (config.el2n_epochs * count + count // 3),
            "cad-prune": config.epochs * config.ipc * train_set.num_classes
            + config.cad_ticks * count // 3,
            "rded": train_set.num_classes * min(300, count) * 5 // 3,
            "students": students * train_set.num_classes,
        }
        cells = len(METHODS) * len(REGIMES)
        self.units = (
            sum(self.cost.values()) + self.cost["rded"] + (cells - 1) * self.cost["students"]
        )

    def stage(self, name: str, units: int, work: Callable[[], str]) -> None:
        """Do a stage, and keep its time if it was not finished before."""
        began = time.perf_counter()
        said = work()
        seconds = time.perf_counter() - began
        if name in self.done:
            said += ", done before"
        else:
            self.done[name] = {"stage": name, "seconds": round(seconds, 3), "result": said}
            self.folder.log(self.done[name])
            said += f", {seconds:.1f} s"
        if self.show:
            print(f"{name}: {said}", file=sys.stderr, flush=True)
        self.advance(units)

    def teacher(self) -> Teacher:
        """The network on the full data that labels, and that RDED asks."""
        found: list[Teacher] = []

        def work() -> str:
            found.append(
                train_teacher(
                    self.train_set,
                    self.model,
                    test_set=self.test_set,
                    epochs=self.config.teacher_epochs,
                    seed=self.config.seed,
                    device=self.device,
                    out=self.folder.path / "teacher",
                    progress=self.bars,
                )
            )
            return f"test accuracy {percent(found[0].record['accuracy'])} %"

        self.stage("teacher", self.cost["teacher"], work)
        return found[0]

    def sets(self, teacher: nn.Module) -> dict[str, DistilledSet]:
        """The sets, made or read."""
        makers: dict[str, tuple[int, Callable[[], DistilledSet]]] = {
            "random": (0, self._random),
            "el2n-easy": (self.cost["el2n"], self._el2n_easy),
            "cad-prune": (self.cost["cad-prune"], self._cad_prune),
            "rded": (self.cost["rded"], lambda: self._rded(teacher)),
            "ca2d": (self.cost["rded"], lambda: self._ca2d(teacher)),
        }
        sets: dict[str, DistilledSet] = {}
        for name, (units, make) in makers.items():

            def work(name: str = name, make: Callable[[], DistilledSet] = make) -> str:
                folder = self.folder.path / "sets" / name
                # A set's folder appears whole, so one that is there is finished.
                if not folder.exists():
                    make().save(folder)
                sets[name] = DistilledSet.load(folder)
                return f"{len(sets[name])} images"

            self.stage(f"set {name}", units, work)
        return sets

    def _random(self) -> DistilledSet:
        scores = random_scores(len(self.train_set), seed=self.config.seed)
        picked = select(scores, self.train_set.labels, ipc=self.config.ipc, method="random")
        return picked.to_distilled(self.train_set)

    def _el2n_easy(self) -> DistilledSet:
        scores = el2n_scores(
            self.train_set,
            self.model,
            repeats=self.config.el2n_models,
            epochs=self.config.el2n_epochs,
            test_set=self.test_set,
            seed=self.config.seed,
            device=self.device,
            out=self.folder.path / "el2n",
            progress=self.bars,
        )
        picked = select(
            scores,
            self.train_set.labels,
            strategy="bottomk",
            ipc=self.config.ipc,
            method="el2n-easy",
        )
        return picked.to_distilled(self.train_set)

    def _cad(self) -> Scores:
        """CAD of all training images; the second call reads the run of the first."""
        return cad_scores(
            self.train_set,
            self.model,
            ipc=self.config.ipc,
            downstream_epochs=self.config.epochs,
            ticks=self.config.cad_ticks,
            test_set=self.test_set,
            seed=self.config.seed,
            device=self.device,
            out=self.folder.path / "cad",
            progress=self.bars,
        )

    def _cad_prune(self) -> DistilledSet:
        picked = select(self._cad(), self.train_set.labels, ipc=self.config.ipc, method="cad-prune")
        return picked.to_distilled(self.train_set)

    def _ca2d(self, teacher: nn.Module) -> DistilledSet:
        config = RDEDConfig(ipc=self.config.ipc, seed=self.config.seed)
        with progress("CA2D", self.train_set.num_classes, enabled=self.bars) as advance:
            return ca2d(
                self.train_set,
                teacher,
                self._cad().values,
                config,
                device=self.device,
                on_progress=lambda done, total: advance(1),
            )

    def _rded(self, teacher: nn.Module) -> DistilledSet:
        config = RDEDConfig(ipc=self.config.ipc, seed=self.config.seed)
        with progress("RDED", self.train_set.num_classes, enabled=self.bars) as advance:
            return rded(
                self.train_set,
                teacher,
                config,
                device=self.device,
                on_progress=lambda done, total: advance(1),
            )

    def students(
        self, sets: dict[str, DistilledSet], teacher: Teacher
    ) -> dict[tuple[str, Regime], StudentResult]:
        """Students of every set in every regime."""
        results: dict[tuple[str, Regime], StudentResult] = {}
        for name, distilled in sets.items():
            for regime in REGIMES:

                def work(
                    name: str = name, distilled: DistilledSet = distilled, regime: Regime = regime
                ) -> str:
                    result = train_student(
                        distilled,
                        regime,
                        self.model,
                        test_set=self.test_set,
                        teacher=None if regime == "hl" else teacher.model,
                        teacher_info={
                            key: teacher.record[key] for key in ("accuracy", "epochs", "sha256")
                        },
                        scale="small",
                        budget=Epochs(self.config.epochs),
                        seeds=self.config.student_seeds,
                        evaluations=1,
                        device=self.device,
                        out=self.folder.path / "students" / f"{name}-{regime}",
                        progress=self.bars,
                    )
                    results[name, regime] = result
                    return f"{percent(result.mean)} ± {percent(result.std)} %"

                self.stage(f"students {name} {regime}", self.cost["students"], work)
        return results

    def _per_image(self, student: StudentResult) -> tuple[float, ...]:
        """For each test image the share of the seeds that are right."""
        right = torch.zeros(len(self.test_set), dtype=torch.float64)
        for seed in student.seeds:
            name, options = self.model
            channels, height, width = self.test_set.images.shape[1:]
            network = create(name, self.test_set.num_classes, channels, (height, width), **options)
            assert seed.weights is not None  # the students have a folder
            network.load_state_dict(read_tensors(seed.weights)[0])
            logits = predict(network.to(self.device), self.test_set).cpu()
            right += logits.argmax(1) == self.test_set.labels
        return tuple((right / len(student.seeds)).tolist())

    @property
    def bars(self) -> bool:
        """Inner progress bars only on a terminal; elsewhere each stage has its own line."""
        return self.show and sys.stderr.isatty()

    def report(
        self,
        teacher: Teacher,
        sets: dict[str, DistilledSet],
        students: dict[tuple[str, Regime], StudentResult],
    ) -> QuickstartResult:
        """``results.json`` and ``report.html``."""
        results = tuple(
            Result(
                METHODS[name],
                REGIMES[regime],
                tuple(seed.last_accuracy for seed in student.seeds),
                student.test_count,
                self._per_image(student),
            )
            for (name, regime), student in students.items()
        )
        judged = differences(results)
        sentences = tuple(summary(judged))
        accuracy = float(teacher.record["accuracy"])
        self.folder.write_json(
            "results.json",
            {
                "teacher": {"accuracy": accuracy, "test_count": len(self.test_set)},
                "cells": [
                    {
                        "method": r.method,
                        "regime": r.regime,
                        "accuracies": r.accuracies,
                        "test_count": r.test_count,
                        "mean": r.mean,
                        "std": r.std,
                        "sampling_error": r.sampling_error,
                    }
                    for r in results
                ],
                "differences": [
                    {
                        "first": [d.first.method, d.first.regime],
                        "second": [d.second.method, d.second.regime],
                        "value": d.value,
                        "half_width": d.half_width,
                        "distinguishable": d.distinguishable,
                    }
                    for d in judged
                ],
                "summary": list(sentences),
            },
        )
        seconds = sum(row["seconds"] for row in self.done.values())
        context = _context(self, results, sentences, teacher, sets, seconds)
        report = write_report(self.folder.path / "report.html", "quickstart.html", context)
        return QuickstartResult(self.folder.path, report, results, sentences, accuracy, seconds)


def _context(
    run: _Run,
    results: tuple[Result, ...],
    sentences: tuple[str, ...],
    teacher: Teacher,
    sets: dict[str, DistilledSet],
    seconds: float,
) -> dict[str, Any]:
    """Everything the page shows."""
    config, test_count = run.config, len(run.test_set)
    markup = require("markupsafe", "methods").Markup
    figure = accuracy_figure(results, chance=1 / run.train_set.num_classes)
    cells = {(r.method, r.regime): r for r in results}
    recipes = [
        *(recipe(regime, scale="small", ipc=config.ipc) for regime in REGIMES),
        teacher_recipe(config.teacher_epochs),
    ]
    epochs = [*(config.epochs for _ in REGIMES), config.teacher_epochs]
    record = teacher.record
    cad_batch = sets["cad-prune"].meta["scoring"]["recipe"]["batch_size"]
    versions = dict(environment())
    return {
        "title": "pyddfast quickstart",
        "lead": (
            f"Students trained on {config.ipc} images per class of Fashion-MNIST, from five sets "
            "in three label regimes. Every number on this page was measured in this run."
        ),
        "regimes": list(REGIMES.values()),
        "rows": [
            {
                "method": method,
                "cells": [_cell(cells[method, regime]) for regime in REGIMES.values()],
            }
            for method in METHODS.values()
        ],
        "table_note": (
            f"Per cent of {test_count:,} test images after the last epoch: mean ± standard "
            f"deviation over {config.seeds} seeds, and below it the standard error that "
            f"{test_count:,} test images leave. The teacher, trained on all "
            f"{len(run.train_set):,} images, has {percent(record['accuracy'])} %."
        ),
        "accuracy_svg": markup(
            svg(figure, alt="Test accuracy by label regime and set; the table has the numbers")
        ),
        "figure_note": (
            "Bars: mean over seeds. Circles: seeds. Error bars: ± 1 standard error of the mean, "
            "from seeds and test images together."
        ),
        "summary": [sentence.replace("± ", "±\u00a0") for sentence in sentences],
        "summary_note": (
            "Differences of the unrounded accuracies in points, with the half-width of their "
            "interval. A difference is named "
            "only if it is larger than seed spread and test-sampling error together: a t-test at "
            "5 % for the whole list (Holm; the intervals are Bonferroni's, a little wider, so that "
            "a named difference may lie just inside its own), the seed spread of a "
            "cell taken as its own or as that of all cells, whichever is larger, the test images "
            "compared one by one. An order on one small data set with shortened training says "
            "nothing about another."
        ),
        "sets_image": png_uri(
            # 4 of each: 20 images fill a page's width.
            sets_figure({METHODS[name]: one for name, one in sets.items()}, columns=4)
        ),
        "sets_alt": "Images of the sets, a row a class",
        "sets_note": (
            "The first images of every class. Random: drawn at random. EL2N-Easy: the images that "
            "the scoring networks find easiest, the easiest first. CAD-Prune: the images whose "
            "probability still changes most at the end of a run with the students' compute, the "
            "most changing first. RDED: the crops that the teacher is surest of, the surest "
            "first. CA2D: the same among the head of CAD-Prune's ranking."
        ),
        "facts": [
            f"Data: the embedded subset of Fashion-MNIST (MIT licence), {len(run.train_set):,} "
            f"training and {test_count:,} test images of 28 × 28 pixels, 10 classes.",
            f"Networks: ConvNet-D3 of width {config.width} with instance norm, for the teacher, "
            "the scoring networks and the students.",
            f"Teacher: {_count(config.teacher_epochs, 'epoch')} on the full training data, by a "
            "recipe of ours (below; no paper names one); it labels the images in SL and every "
            "augmented view in SL+KD, and is the observer of RDED and CA2D.",
            f"EL2N-Easy: mean over {_count(config.el2n_models, 'network')} after "
            f"{_count(config.el2n_epochs, 'epoch')} by the teacher's recipe at a constant learning "
            f"rate, the lowest {config.ipc} of each class.",
            f"CAD-Prune: one run by the teacher's recipe in batches of {cad_batch} on "
            f"{config.epochs * config.ipc * run.train_set.num_classes:,} images seen, as many as a "
            f"student sees; {config.cad_ticks} equally spaced snapshots, "
            f"windows of {config.cad_ticks - 2}, the two before the last tick averaged; CA2D takes "
            f"each class's first {sets['ca2d'].meta['pool']} of that ranking as its pool.",
            f"RDED: factor {sets['rded'].factor} (images below 128 px), "
            f"{sets['rded'].meta['num_crops']} crops of each of up to "
            f"{sets['rded'].meta['pool']} images a class.",
            "Accuracy after the last epoch; no epoch was chosen on the test set.",
        ],
        "shortened": [
            f"Students train for {_count(config.epochs, 'epoch')} instead of 300; learning-rate "
            "steps keep their share of the training.",
            "28 pixels are small scale, so the students follow the small-scale columns of Table 1 "
            "of “Rethinking Dataset Distillation: Hard Truths About Soft Labels”.",
            "Small-scale SL+KD is not in the paper: it is small-scale SL with the teacher on "
            "every augmented view.",
            f"The networks have width {config.width} instead of 128, and EL2N averages "
            f"{_count(config.el2n_models, 'network')} instead of 10, after "
            f"{_count(config.el2n_epochs, 'epoch')} instead of 20.",
            f"CAD-Prune's run has {config.cad_ticks} snapshots instead of 30, our default; the "
            "paper leaves their number open.",
            "The paper has no results on Fashion-MNIST; nothing here is to be compared with its "
            "numbers.",
        ],
        "recipe_names": [*REGIMES.values(), "Teacher"],
        "recipes": [
            {"name": "epochs", "values": epochs},
            *(
                {"name": name, "values": [_setting(used, name) for used in recipes]}
                for name in (
                    "loss",
                    "optimizer",
                    "schedule",
                    "batch size",
                    "augmentation",
                    "labels",
                )
            ),
        ],
        "timings": [
            *({"name": name, "seconds": f"{row['seconds']:.1f}"} for name, row in run.done.items()),
            {"name": "all", "seconds": f"{seconds:.1f}"},
        ],
        "timing_note": (
            f"On {run.device} with {versions['threads']} threads. A stage that was stopped and "
            "continued counts from its continuation."
        ),
        "command": "pyddfast quickstart "
        + " ".join(f"--{k.replace('_', '-')} {v}" for k, v in asdict(config).items()),
        "environment": list(versions.items()),
    }


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _cell(result: Result) -> dict[str, str]:
    return {
        "text": f"{percent(result.mean)} ± {percent(result.std or 0.0)}",
        "sampling": percent(result.sampling_error),
    }


def _setting(used: Recipe, name: str) -> str:
    """A line of the recipe table."""
    if name == "loss":
        return "cross-entropy" if used.loss == "ce" else f"KL, T = {used.temperature:g}"
    if name == "optimizer":
        label = "AdamW"
        if used.optimizer == "sgd":
            nesterov = " (Nesterov)" if used.nesterov else ""
            label = f"SGD, momentum {used.momentum:g}{nesterov}"
        return f"{label}, learning rate {used.lr:g}, weight decay {used.weight_decay:g}"
    if name == "schedule":
        if used.schedule == "step":
            share = f"{used.milestone} of {used.epochs} epochs"
            return f"× {used.gamma:g} after {share} (as a share of the training)"
        return used.schedule
    if name == "batch size":
        return str(used.batch_size)
    if name == "augmentation":
        low, high = used.rrc_scale
        crop = f"random resized crop of {100 * low:g} to {100 * high:g} %, flip"
        return {"dsa": "DSA", "rrc": crop, "none": "none"}[used.augmentation]
    return {
        "hl": "the class",
        "sl": "the teacher's, once an image",
        "sl-kd": "the teacher's, of every view",
    }[used.regime]
