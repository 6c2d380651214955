"""Cross-architecture transfer: one set, students of several architectures, and their mean.

Tables 4 and 5 of "Rethinking Dataset Distillation: Hard Truths About Soft Labels" report the mean
over the students of DC-BENCH (justincui03/dc_benchmark): MLP, ResNet-18 and ResNet-152.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pyddfast.data import DistilledSet, ImageSource, ResidentDataset, SoftLabels
from pyddfast.train.distributed import join_ranks, resolve_device
from pyddfast.train.execution import Execution
from pyddfast.train.models import ModelSpec, describe_model
from pyddfast.train.plan import Budget
from pyddfast.train.recipes import Protocol, Recipe, Regime, Scale
from pyddfast.train.run import METRICS, RunFolder
from pyddfast.train.student import StudentResult, check_student, train_student

__all__ = ["TransferResult", "dcbench_students", "train_transfer"]

_RESULT = "result.json"


@dataclass(frozen=True)
class TransferResult:
    """Students of several architectures on one set.

    Attributes:
        students: Result by name, each over the same seeds.
    """

    students: Mapping[str, StudentResult]

    @property
    def seed_means(self) -> tuple[float, ...]:
        """For each seed the mean over architectures of the last accuracy, in [0, 1]."""
        columns = zip(*(student.seeds for student in self.students.values()), strict=True)
        return tuple(statistics.fmean(s.last_accuracy for s in column) for column in columns)

    @property
    def mean(self) -> float:
        """Mean over architectures and seeds of the last accuracy: the cell of Tables 4 and 5."""
        return statistics.fmean(student.mean for student in self.students.values())

    @property
    def std(self) -> float:
        """Sample standard deviation over seeds of :attr:`seed_means`; NaN for one seed."""
        return statistics.stdev(self.seed_means) if len(self.seed_means) > 1 else math.nan

    @property
    def diverged(self) -> tuple[int, ...]:
        """Seeds of which a student's training loss was not finite; they count in the means."""
        return tuple(sorted({seed for one in self.students.values() for seed in one.diverged}))

    def to_dict(self) -> dict[str, Any]:
        """The mean and every student's result, JSON values (None for the spread of one seed)."""
        return {
            "mean": self.mean,
            "std": None if math.isnan(self.std) else self.std,
            "students": {name: student.to_dict() for name, student in self.students.items()},
        }


def dcbench_students(image_size: int) -> dict[str, ModelSpec]:
    """The students of DC-BENCH by name.

    Its ResNets have instance norm; from 64 pixels on they begin with ImageNet's stem
    (``ResNet18ImageNet``, ``ResNet152Imagenet``), below with a convolution of 3 x 3.

    Args:
        image_size: Side of the images.
    """
    stem = "imagenet" if image_size >= 64 else "cifar"
    options = {"norm": "instance", "stem": stem}
    return {
        "MLP": "mlp",
        "ResNet-18": ("resnet18", options),
        "ResNet-152": ("resnet152", options),
    }


def train_transfer(
    distilled_set: DistilledSet | ResidentDataset,
    regime: Regime,
    students: Mapping[str, ModelSpec] | None = None,
    *,
    test_set: ImageSource,
    teacher: nn.Module | None = None,
    teacher_info: Mapping[str, Any] | None = None,
    labels: Literal["auto", "stored"] | SoftLabels = "auto",
    recipe: Recipe | None = None,
    protocol: Protocol = "paper",
    scale: Scale | None = None,
    budget: Budget | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    evaluations: int = 10,
    device: torch.device | str | None = None,
    deterministic: bool = False,
    execution: Execution | None = None,
    out: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
) -> TransferResult:
    """Train students of several architectures on one set, each as :func:`train_student` does.

    Args:
        distilled_set: As there.
        regime: As there.
        students: Models by name; None: :func:`dcbench_students` of the set's image size.
        test_set: As there.
        teacher: As there; one teacher labels for all students.
        teacher_info: As there.
        labels: As there.
        recipe: As there; one recipe for all students, as in DC-BENCH.
        protocol: As there.
        scale: As there.
        budget: As there.
        seeds: As there.
        evaluations: As there.
        device: As there.
        deterministic: As there.
        execution: As there.
        out: Run folder: ``config.json``, a run folder of each student under its name, and
            ``result.json``.
        resume: Continue what ``out`` holds; False refuses a non-empty folder.
        progress: Show it on stderr.

    Returns:
        Each student's result, and their mean.

    Raises:
        ValueError: As :func:`train_student`, for any of the students and before the first is
            trained; no students, or a name that cannot be a folder's.
        TypeError: An argument has the wrong type.
        BlockingIOError: Another process works in ``out``.
        FileExistsError: ``out`` holds something else.
    """
    if students is None:
        students = dcbench_students(max(distilled_set[0].shape[1:]))
    if not isinstance(students, Mapping):
        raise TypeError(f"students must be models by name, got {type(students).__name__}")
    if not students:
        raise ValueError("students must name at least one model")
    for name, model in students.items():
        if not isinstance(name, str) or Path(name).name != name or name.startswith("."):
            raise ValueError(f"a student's name becomes a folder's, which {name!r} cannot be")
        if name in (_RESULT, "config.json", METRICS):
            raise ValueError(f"{name!r} is a file of the run: give the student another name")
        used, *_ = check_student(
            distilled_set,
            regime,
            model,
            test_set=test_set,
            has_teacher=teacher is not None,
            labels=labels,
            recipe=recipe,
            protocol=protocol,
            scale=scale,
            budget=budget,
            seeds=seeds,
            evaluations=evaluations,
            device=device,
            execution=execution,
        )
        # The others follow it, so that what is left out is said once.
        recipe, protocol, scale = used, "paper", None
    ranks = join_ranks(resolve_device(device))
    with ExitStack() as stack:
        folder = None
        if out is not None and ranks.first:
            facts = {
                "task": "train_transfer",
                "regime": regime,
                "recipe": used.to_dict(),
                "models": {name: describe_model(model) for name, model in students.items()},
                "seeds": list(seeds),
            }
            folder = stack.enter_context(RunFolder(out, facts, resume=resume))
        ranks.wait()
        result = TransferResult(
            {
                name: train_student(
                    distilled_set,
                    regime,
                    model,
                    test_set=test_set,
                    teacher=teacher,
                    teacher_info=teacher_info,
                    labels=labels,
                    recipe=used,
                    budget=budget,
                    seeds=seeds,
                    evaluations=evaluations,
                    device=device,
                    deterministic=deterministic,
                    execution=execution,
                    out=None if out is None else Path(out) / name,
                    progress=progress,
                )
                for name, model in students.items()
            }
        )
        if folder is not None:
            folder.write_json(_RESULT, result.to_dict())
    return result
