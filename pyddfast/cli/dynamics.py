"""``pyddfast analyze dynamics``, ``start-epochs``, ``grid``: a synthesis over time, its images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import tyro

from pyddfast.analysis.dynamics import loss_dynamics
from pyddfast.analysis.objectives.trajectory import start_epoch_curve
from pyddfast.cli.measured import write_with_figure
from pyddfast.cli.options import Flat, ModelOptions, WhitenableData
from pyddfast.cli.sets import load_set
from pyddfast.data import DistilledSet
from pyddfast.data.atomic import new_folder, refuse_non_empty, write_bytes
from pyddfast.data.stored import read_json
from pyddfast.methods import snapshots
from pyddfast.report import svg
from pyddfast.report.dynamics import dynamics_figure, start_epoch_figure
from pyddfast.report.grids import class_label, method_grid
from pyddfast.train import Epochs, train_student

__all__ = ["analyze_dynamics", "analyze_grid", "analyze_start_epochs"]


def analyze_dynamics(
    run: Annotated[Path, tyro.conf.Positional],
    data: Annotated[WhitenableData, Flat] = WhitenableData(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    *,
    out: Path,
    students: int = 0,
    student_epochs: int | None = None,
    column: str | None = None,
    device: str | None = None,
) -> None:
    """Fit the trend of a synthesis's loss, and of its students' accuracy, with intervals.

    Writes OUT/results.json and OUT/figure.svg.

    Args:
        run: Folder of a pyddfast distill.
        data: Whose test split measures the students.
        model: The students.
        out: New folder.
        students: Hard-label students of each snapshot of the run (distill --snapshot-every), each
            with a seed of its own; 0: the loss alone.  They stay in RUN/students.
        student_epochs: Epochs of a student; default the paper's.
        column: Which loss of the run; default loss, or bn of SRe2L's kin.
        device: cpu or cuda; default CUDA where there is one.
    """
    refuse_non_empty(out)
    if students < 0:
        raise ValueError(f"--students must not be negative, got {students}")
    inner = run / "matching"
    folder = inner if inner.is_dir() else run
    accuracies: dict[int, list[float]] = {}
    if students:
        test = data.load("test", None)
        for done, one in snapshots(folder, load_set(run)).items():
            result = train_student(
                one,
                "hl",
                model.spec(),
                test_set=test,
                budget=None if student_epochs is None else Epochs(student_epochs),
                seeds=tuple(range(students)),
                evaluations=1,
                device=device,
                out=run / "students" / f"{done:08d}",
            )
            accuracies[done] = [seed.last_accuracy for seed in result.seeds]
    found = loss_dynamics(folder, accuracies=accuracies, column=column)
    write_with_figure(
        out,
        json.dumps(found.to_dict(), indent=1, allow_nan=False),
        svg(dynamics_figure(found), alt="Loss and accuracy of a synthesis"),
    )
    low, high = found.loss.ci
    print(
        f"{found.column}: {found.loss.slope:+.4g} in 1000 iterations [{low:.4g}, {high:.4g}], "
        f"{found.loss.total:+.4g} over the run"
    )
    if found.accuracy is not None:
        low, high = found.accuracy.ci
        print(
            f"accuracy: {100 * found.accuracy.slope:+.4g} points in 1000 iterations "
            f"[{100 * low:.4g}, {100 * high:.4g}]"
        )
    print(f"results: {out}")


def analyze_start_epochs(
    values: Annotated[Path, tyro.conf.Positional], *, out: Path, limit: float | None = None
) -> None:
    """Draw TM's loss by starting epoch, a line a set; spikes are cut from the plot, and named.

    Writes OUT/results.json and OUT/figure.svg.

    Args:
        values: Run of pyddfast analyze objective with tm.
        out: New folder.
        limit: Top of the plot; default three times the median.
    """
    refuse_non_empty(out)
    file = values / "objectives.json" if values.is_dir() else values
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; a run of pyddfast analyze objective has it")
    try:
        found = read_json(file)["objectives"]["tm"]["values"]
        curves = {name: start_epoch_curve(one["parts"]) for name, one in found.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} holds no values of tm: {error!r}") from error
    figure = start_epoch_figure(curves, limit=limit)
    spikes = getattr(figure, "spikes", [])
    write_with_figure(
        out,
        json.dumps({"curves": curves, "spikes": spikes}, indent=1, allow_nan=False),
        svg(figure, alt="TM's loss by start epoch"),
    )
    for name, epoch, value in spikes:
        print(f"above the plot: {name}, epoch {epoch}, {value:.4g}")
    print(f"results: {out}")


def analyze_grid(
    sets: Annotated[tuple[Path, ...], tyro.conf.Positional],
    *,
    out: Path,
    classes: tuple[str, ...],
    names: tuple[str, ...] = (),
    columns: int = 5,
) -> None:
    """Draw images of a class, a row a set, a figure a class: OUT/LABEL.svg.

    Args:
        sets: Folders of sets, or of their runs, in the order of the rows.
        out: New folder.
        classes: Classes by number or name.
        names: Names of the rows; default those of the folders.
        columns: Images of a row.
    """
    refuse_non_empty(out)
    if not classes:
        raise ValueError("--classes must name at least one")
    if names and len(names) != len(sets):
        raise ValueError(f"--names has {len(names)} names for {len(sets)} sets")
    shown = names or tuple(
        folder.parent.name if folder.name == "set" else folder.name for folder in sets
    )
    if len(set(shown)) < len(shown):
        raise ValueError(f"the sets' folders have the same name: give --names, got {shown}")
    made: dict[str, DistilledSet] = {
        name: load_set(folder) for name, folder in zip(shown, sets, strict=True)
    }
    if not made:
        raise ValueError("give at least one set")
    first = next(iter(made.values()))
    figures = {
        f"{class_label(first, label):05d}": svg(
            method_grid(made, label, columns=columns), alt=f"Images of {label}, a row a set"
        )
        for label in classes
    }
    with new_folder(out) as folder:
        for name, figure in figures.items():
            write_bytes(folder / f"{name}.svg", figure.encode())
    print(f"{len(figures)} figures: {out}")
