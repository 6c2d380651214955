"""The main job in one call: a teacher, five small sets, students in three label regimes, a report.

Everything runs on the embedded subset of Fashion-MNIST.  The run is a folder; each stage leaves its
result there, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

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
from pyddfast.methods.ca2d import ca2d
from pyddfast.methods.rded import RDEDConfig, rded
from pyddfast.report import Result, percent, write_report
from pyddfast.report.comparison import (
    REGIMES,
    Comparison,
    Setting,
    judge,
    page,
    recipe_lines,
    table_note,
    times,
    train_cells,
)
from pyddfast.report.stages import Stages
from pyddfast.train import (
    RunFolder,
    Teacher,
    progress,
    recipe,
    teacher_recipe,
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
        with progress("quickstart", run.units, enabled=run.stages.bars) as advance:
            run.stages.advance = advance
            teacher = run.teacher()
            sets = run.sets(teacher.model)
            measured = run.students(sets, run.setting(teacher))
        return run.report(teacher, sets, measured)


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
        self.stages = Stages(folder, show=show)
        self.model = ("convnet-d3", {"width": config.width})
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
                    progress=self.stages.bars,
                )
            )
            return f"test accuracy {percent(found[0].record['accuracy'])} %"

        self.stages.run("teacher", work, units=self.cost["teacher"])
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

            self.stages.run(f"set {name}", work, units=units)
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
            progress=self.stages.bars,
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
            progress=self.stages.bars,
        )

    def _cad_prune(self) -> DistilledSet:
        picked = select(self._cad(), self.train_set.labels, ipc=self.config.ipc, method="cad-prune")
        return picked.to_distilled(self.train_set)

    def _ca2d(self, teacher: nn.Module) -> DistilledSet:
        config = RDEDConfig(ipc=self.config.ipc, seed=self.config.seed)
        with progress("CA2D", self.train_set.num_classes, enabled=self.stages.bars) as advance:
            return ca2d(
                self.train_set,
                teacher,
                self._cad(),
                config,
                device=self.device,
                on_progress=lambda done, total: advance(1),
            )

    def _rded(self, teacher: nn.Module) -> DistilledSet:
        config = RDEDConfig(ipc=self.config.ipc, seed=self.config.seed)
        with progress("RDED", self.train_set.num_classes, enabled=self.stages.bars) as advance:
            return rded(
                self.train_set,
                teacher,
                config,
                device=self.device,
                on_progress=lambda done, total: advance(1),
            )

    def setting(self, teacher: Teacher) -> Setting:
        """What the students of all sets share."""
        return Setting(
            model=self.model,
            test_set=self.test_set,
            teacher=teacher.model,
            teacher_info={key: teacher.record[key] for key in ("accuracy", "epochs", "sha256")},
            seeds=self.config.student_seeds,
            epochs=self.config.epochs,
            scale="small",
            device=self.device,
        )

    def students(self, sets: dict[str, DistilledSet], setting: Setting) -> Comparison:
        """Students of every set in every regime, judged."""
        students = train_cells(
            sets,
            tuple(REGIMES),
            setting,
            out=self.folder.path / "students",
            stages=self.stages,
            units=self.cost["students"],
        )
        return judge(students, METHODS, sets, setting)

    def report(
        self, teacher: Teacher, sets: dict[str, DistilledSet], measured: Comparison
    ) -> QuickstartResult:
        """``results.json`` and ``report.html``."""
        accuracy = float(teacher.record["accuracy"])
        known = {"teacher": {"accuracy": accuracy, "test_count": len(self.test_set)}}
        self.folder.write_json("results.json", {**known, **measured.to_dict()})
        context = _context(self, measured, teacher, sets)
        report = write_report(self.folder.path / "report.html", "comparison.html", context)
        return QuickstartResult(
            self.folder.path,
            report,
            measured.results,
            measured.sentences,
            accuracy,
            self.stages.seconds,
        )


def _context(
    run: _Run, measured: Comparison, teacher: Teacher, sets: dict[str, DistilledSet]
) -> dict[str, Any]:
    """Everything the page shows."""
    config, test_count = run.config, len(run.test_set)
    recipes = {
        shown: (recipe(regime, scale="small", ipc=config.ipc), float(config.epochs))
        for regime, shown in REGIMES.items()
    }
    recipes["Teacher"] = (teacher_recipe(config.teacher_epochs), float(config.teacher_epochs))
    cad_batch = sets["cad-prune"].meta["scoring"]["recipe"]["batch_size"]
    return {
        **page(
            measured,
            {METHODS[name]: one for name, one in sets.items()},
            table_note=(
                f"{table_note(test_count, config.seeds)} The teacher, trained on all "
                f"{len(run.train_set):,} images, has {percent(teacher.record['accuracy'])} %."
            ),
            chance=1 / run.train_set.num_classes,
        ),
        **recipe_lines(recipes),
        **times(run.stages, run.device),
        "title": "pyddfast quickstart",
        "lead": (
            f"Students trained on {config.ipc} images per class of Fashion-MNIST, from five sets "
            "in three label regimes. Every number on this page was measured in this run."
        ),
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
        "command": "pyddfast quickstart "
        + " ".join(f"--{k.replace('_', '-')} {v}" for k, v in asdict(config).items()),
    }


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
