"""The command that trains students."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pyddfast.cli.options import (
    Flat,
    ModelOptions,
    TeacherOptions,
    WhitenableData,
    assignments,
    plain,
)
from pyddfast.cli.sets import SetOptions, test_view
from pyddfast.cli.tables import new_table, print_table
from pyddfast.data import ResidentDataset, SoftLabels
from pyddfast.report import percent
from pyddfast.report.comparison import REGIMES
from pyddfast.train import (
    Budget,
    Epochs,
    Execution,
    Recipe,
    Regime,
    RunFolder,
    Samples,
    Scale,
    Steps,
    StudentResult,
    TransferResult,
    dcbench_students,
    train_student,
    train_transfer,
)
from pyddfast.train import recipe as published_recipe
from pyddfast.train.distributed import join_ranks, resolve_device
from pyddfast.train.stored import open_labels, stored_recipe
from pyddfast.train.student import check_student, official_recipe_of

__all__ = ["recipe_changes", "train"]


def train(
    data: Annotated[WhitenableData, Flat] = WhitenableData(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    teacher: Annotated[TeacherOptions, Flat] = TeacherOptions(),  # noqa: B008
    sets: Annotated[SetOptions, Flat] = SetOptions(),  # noqa: B008
    execution: Annotated[Execution, Flat] = Execution(),  # noqa: B008
    *,
    set: Path,
    regime: Literal["hl", "sl", "sl-kd"],
    out: Path,
    scale: Literal["small", "large"] | None = None,
    protocol: Literal["paper", "official"] = "paper",
    transfer: bool = False,
    epochs: int | None = None,
    steps: int | None = None,
    samples: int | None = None,
    recipe: tuple[str, ...] = (),
    seeds: int = 3,
    seed: int = 0,
    evaluations: int = 10,
    labels: Literal["auto", "stored"] | Path = "auto",
    deterministic: bool = False,
    resume: bool = False,
    device: str | None = None,
) -> None:
    """Train students from scratch on a set and measure them on the test split of the data.

    The recipes are Table 1 of "Rethinking Dataset Distillation: Hard Truths About Soft Labels", or
    the one that the set's method was published with.
    Under torchrun the processes share every batch.

    Args:
        data: Whose test split measures the students (and whose train split a new teacher learns).
        model: The student.
        teacher: The teacher of sl and sl-kd.
        sets: How the set is read.
        execution: How the passes are computed.
        set: Folder of a set: of the distill and coreset commands, or an official code's images.
        regime: hl: hard labels; sl: one soft label an image; sl-kd: a teacher on every view.
        out: Run folder.
        scale: Columns of Table 1; default small up to 64 pixels, else large.
        protocol: official: the evaluation of the codebase that the method of the set is from (dc,
            dsa, dm, tm, datm); paper: Table 1.
        transfer: Train DC-BENCH's students, MLP, ResNet-18 and ResNet-152, in place of MODEL, and
            give each and their mean: cross-architecture transfer.
        epochs: Train for so many epochs instead of the published number.
        steps: Train for so many optimiser steps instead.
        samples: Train for so many images seen instead.
        recipe: Changes of the recipe, each NAME=VALUE, e.g. lr=0.1 batch_size=64.
        seeds: Number of students.
        seed: Seed of the first; the others follow.
        evaluations: Test evaluations a student, evenly spread.
        labels: stored: the set's own soft labels instead of a teacher's; a folder: the labels of
            every view that relabel or labels import stored there, for sl-kd.
        deterministic: Deterministic algorithms on CUDA.
        resume: Go on with the stopped run in OUT.
        device: cpu or cuda; default CUDA where there is one.
    """
    target = resolve_device(device)
    ranks = join_ranks()
    task = data.load("test")
    distilled = sets.open(set, task, target, tell=ranks.first)
    used_labels = open_labels(labels) if isinstance(labels, Path) else labels
    if isinstance(used_labels, SoftLabels):
        used = _replayed_recipe(used_labels, scale, recipe)
    elif protocol == "official":
        if scale is not None:
            raise ValueError("--protocol official has its recipe: leave --scale out")
        used = replace(official_recipe_of(distilled, regime), **recipe_changes(recipe))
    else:
        used = _recipe(regime, scale, distilled.ipc, max(distilled.image_shape[1:]), recipe)
    if seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {seeds}")
    budget = _budget(epochs, steps, samples)
    if transfer and model != ModelOptions():
        raise ValueError("--transfer has its students: leave --model and --model-option out")
    # The stored size, or that of the views where the recipe resizes.
    side = used.image_size or max(distilled.image_shape[1:])
    sized = side if data.of_any_size else None
    cut = None if sized is None else test_view(sized, sets.test_resize)
    test_set = ResidentDataset(
        task if sized is None else data.load("test", sized, cut),
        device=target,
        limit_bytes=sets.limit_bytes,
        on_overflow="stream",
    )
    needs_teacher = regime != "hl" and labels == "auto"
    if ranks.world > 1 and needs_teacher and teacher.teacher is None:
        raise ValueError("under torchrun give a trained teacher: --teacher")
    students = dcbench_students(side) if transfer else {"": model.spec()}
    how: dict[str, Any] = {
        "test_set": test_set,
        "labels": used_labels,
        "recipe": used,
        "budget": budget,
        "seeds": tuple(range(seed, seed + seeds)),
        "evaluations": evaluations,
        "device": device,
        "execution": execution,
    }
    for spec in students.values():
        check_student(distilled, regime, spec, has_teacher=needs_teacher, **how)
    facts = {
        "task": "train",
        "set": str(set),
        "layout": sets.layout,
        "factor": distilled.factor,
        "test_resize": cut,
        "labels": str(labels),
        "regime": regime,
        "recipe": used.to_dict(),
        "budget": None if budget is None else repr(budget),
        "seeds": seeds,
        "seed": seed,
        # Named where it is asked for, so that runs of before go on.
        **({"transfer": True} if transfer else {}),
        **plain(data),
        **plain(model),
        **plain(teacher),
    }
    with RunFolder(out, facts, resume=resume) if ranks.first else nullcontext():
        ranks.wait()
        known = teacher.get(data, sized, out, seed, device) if needs_teacher else None
        how |= {
            "teacher": None if known is None else known.model,
            "teacher_info": None if known is None else {"accuracy": known.record["accuracy"]},
            "deterministic": deterministic,
            "out": out / "students",
        }
        result: TransferResult | StudentResult
        if transfer:
            result = train_transfer(distilled, regime, students, **how)
        else:
            result = train_student(distilled, regime, model.spec(), **how)
    if not ranks.first:
        return
    if isinstance(result, TransferResult):
        _show_transfer(result, regime)
    else:
        _show_seeds(result, regime)
    if not used.in_paper:
        print("this recipe is not in the paper")
    print(f"results: {out / 'students' / 'result.json'}")


def _show_seeds(result: StudentResult, regime: Regime) -> None:
    table = new_table(
        f"{REGIMES[regime]} students, test accuracy (%)", "seed", "last", "best", "at epoch"
    )
    for student in result.seeds:
        table.add_row(
            str(student.seed),
            f"{100 * student.last_accuracy:.2f}",
            f"{100 * student.best_accuracy:.2f}",
            f"{student.best_epoch:g}",
        )
    print_table(table)
    spread = f" ± {100 * result.std:.2f} over seeds" if len(result.seeds) > 1 else ""
    print(
        f"mean {100 * result.mean:.2f} %{spread}; {result.test_count:,} test images leave a "
        f"standard error of {100 * result.sampling_error:.2f}"
    )
    if result.diverged:
        print(f"diverged, so that these numbers mean nothing: seeds {list(result.diverged)}")


def _show_transfer(result: TransferResult, regime: Regime) -> None:
    table = new_table(
        f"{REGIMES[regime]} students of other architectures, test accuracy (%)",
        "student", "mean", "std over seeds", "diverged seeds",
    )  # fmt: skip
    rows: list[tuple[str, StudentResult | TransferResult]] = [*result.students.items()]
    for name, row in (*rows, ("mean", result)):
        seeds = ", ".join(map(str, row.diverged))
        spread = "" if math.isnan(row.std) else percent(row.std)
        table.add_row(name, percent(row.mean), spread, seeds)
    print_table(table)


def _recipe(
    regime: Regime, scale: Scale | None, ipc: int, side: int, changes: Sequence[str]
) -> Recipe:
    # 64 pixels are the largest of the paper's small-scale sets (Tiny-ImageNet).
    chosen: Scale = scale or ("small" if side <= 64 else "large")
    return published_recipe(regime, chosen, ipc, **recipe_changes(changes))


def recipe_changes(words: Sequence[str]) -> dict[str, Any]:
    """The fields of a recipe that ``NAME=VALUE`` words set."""
    given = assignments("recipe", words)
    known = {f.name for f in fields(Recipe)}
    if unknown := sorted(given.keys() - known):
        raise ValueError(f"--recipe has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    return given


def _replayed_recipe(store: SoftLabels, scale: Scale | None, changes: Sequence[str]) -> Recipe:
    """That of the stored views; of imported ones the published SL+KD at their batch size."""
    made = stored_recipe(store)
    if made is None:
        batch = f"batch_size={store.info.batch_size}"
        return _recipe("sl-kd", scale or "large", 1, 0, [batch, *changes])
    if scale not in (None, made.scale):
        raise ValueError(f"--scale {scale} is not that of {store.path}, {made.scale}")
    return replace(made, **recipe_changes(changes))


def _budget(epochs: int | None, steps: int | None, samples: int | None) -> Budget | None:
    given = [
        kind(count)
        for kind, count in ((Epochs, epochs), (Steps, steps), (Samples, samples))
        if count is not None
    ]
    if len(given) > 1:
        raise ValueError("give at most one of --epochs, --steps and --samples")
    return given[0] if given else None
