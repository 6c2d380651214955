"""What a report has beside the table of accuracies: a table, a figure and values of an analysis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyddfast.analysis.dcs import dcs
from pyddfast.report.comparison import REGIMES
from pyddfast.report.figures import COLORS, figure_of
from pyddfast.study.jobs import Plan
from pyddfast.study.results import Measured, column_of
from pyddfast.study.runner import Store
from pyddfast.study.spec import Study
from pyddfast.train import Regime

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Section", "sections"]


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        title: Of it.
        note: What its numbers are.
        columns: Of its table.
        rows: Of its table, texts.
        values: The same as JSON values.
        figure: Beside it, or None.
        alt: What the figure shows, for readers who cannot see it.
    """

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    values: dict[str, Any]
    figure: Figure | None = field(default=None, compare=False)
    alt: str = ""


def sections(study: Study, plan: Plan, store: Store, measured: Measured) -> list[Section]:
    """The parts that the study asks for; one whose jobs are not done is left out."""
    made = []
    for shown in study.show:
        if shown in _SECTIONS:
            section = _SECTIONS[shown](study, plan, store, measured)
            if section is not None:
                made.append(section)
    return made


# ---- objectives ------------------------------------------------------------------------------


def _objective_values(plan: Plan, store: Store) -> dict[str, dict[str, Any]]:
    """What is done of the objectives: by name, of each set its value and parts."""
    found = {name: store.done(job) for name, job in plan.objectives.items()}
    return {name: done["result"]["values"] for name, done in found.items() if done is not None}


def _dcs(study: Study, plan: Plan, store: Store, measured: Measured) -> Section | None:
    """Correlation of every objective with the students' error, adjusted for size."""
    rows: list[tuple[str, ...]] = []
    values: dict[str, Any] = {}
    points: dict[str, tuple[list[float], list[float], list[int]]] = {}
    for name, of_sets in _objective_values(plan, store).items():
        for regime in study.regimes:
            objective, error, size, groups = _points(study, plan, measured, of_sets, regime)
            if len(set(size)) < 2 or len(set(groups)) < 4:
                continue
            score = dcs(objective, error, size, groups=groups, seed=study.seed)
            shown = f"{name}, {REGIMES[regime]}"
            points[shown] = (objective, error, size)
            rows.append(
                (
                    shown,
                    f"{score.rho:+.2f}",
                    f"[{score.ci[0]:+.2f}, {score.ci[1]:+.2f}]",
                    f"{score.p:.3f}",
                    f"{score.raw_rho:+.2f}",
                    str(score.n),
                )
            )
            values[shown] = {
                "rho": score.rho, "ci": list(score.ci), "p": score.p, "raw_rho": score.raw_rho,
                "n": score.n, "objective": objective, "error": error, "size": size,
            }  # fmt: skip
    if not rows:
        return None
    return Section(
        "Distillation correlation score",
        "Partial Spearman correlation of the objective with the students' test error, adjusted for "
        "the number of images; 95 % interval by bootstrap over sets (a set and its repetition are "
        "one), p by permutation within sizes. 1: a lower objective always meant a lower error.",
        ("objective", "DCS", "95 % interval", "p", "unadjusted", "sets"),
        tuple(rows),
        values,
        _scatter(points),
        "Test error of students against each objective, a point a set",
    )


def _points(
    study: Study, plan: Plan, measured: Measured, of_sets: dict[str, Any], regime: Regime
) -> tuple[list[float], list[float], list[int], list[tuple[str, str, int]]]:
    objective, error, size, groups = [], [], [], []
    specs = dict(zip(measured.rows, study.sets, strict=True))
    for cell in plan.cells:
        value = of_sets.get(f"{cell.row}, IPC {cell.ipc}", {}).get("value")
        result = measured.cells.get((cell.row, column_of(study, cell)))
        if cell.regime != regime or value is None or result is None:
            continue
        spec = specs[cell.row]
        objective.append(float(value))
        error.append(1 - result.mean)
        size.append(cell.ipc * spec.repeat)
        groups.append((spec.method, repr(sorted(spec.options.items())), cell.ipc))
    return objective, error, size, groups


def _scatter(points: dict[str, tuple[list[float], list[float], list[int]]]) -> Figure:
    figure, axes = figure_of(1, len(points), width=3.2 * len(points))
    for column, (name, (objective, error, size)) in zip(axes, points.items(), strict=True):
        for number, ipc in enumerate(sorted(set(size))):
            at = [i for i, other in enumerate(size) if other == ipc]
            column.plot(
                [objective[i] for i in at],
                [100 * error[i] for i in at],
                linestyle="none",
                marker="o",
                markersize=5,
                color=COLORS[number % len(COLORS)],
                label=f"{ipc} images a class",
            )
        column.set_xlabel(name)
    axes[0].set_ylabel("test error (%)")
    axes[-1].legend(frameon=False, fontsize=8)
    return figure


def _tm_curve(study: Study, plan: Plan, store: Store, measured: Measured) -> Section | None:
    """TM's loss by starting epoch."""
    of_sets = _objective_values(plan, store).get("tm")
    if of_sets is None:
        return None
    curves = {name: _numbered(one["parts"]) for name, one in of_sets.items()}
    epochs = sorted({epoch for curve in curves.values() for epoch in curve})
    figure, (axes,) = figure_of(1, 1)
    for number, (name, curve) in enumerate(curves.items()):
        axes.plot(list(curve), list(curve.values()), color=COLORS[number % len(COLORS)], label=name)
    axes.set_xlabel("starting epoch of the expert")
    axes.set_ylabel("TM loss")
    axes.legend(frameon=False, fontsize=8)
    return Section(
        "TM's loss by starting epoch",
        f"Starting epochs {epochs[0]} to {epochs[-1]}, averaged over experts; the last column is "
        "the mean over them. Beside it the students' accuracy.",
        ("set", "lowest", "highest", "mean"),
        tuple(
            (name, f"{min(c.values()):.4f}", f"{max(c.values()):.4f}",
             f"{sum(c.values()) / len(c):.4f}")
            for name, c in curves.items()
        ),
        {name: {str(epoch): v for epoch, v in c.items()} for name, c in curves.items()},
        figure,
        "TM loss of every set against the starting epoch",
    )  # fmt: skip


def _numbered(parts: dict[str, float]) -> dict[int, float]:
    return {int(name.split()[-1]): value for name, value in parts.items() if value is not None}


# ---- curves ----------------------------------------------------------------------------------


def error_curves(measured: Measured) -> dict[str, tuple[list[float], list[list[float]]]]:
    """Error against epochs: by cell its epochs and, a list a seed, the test errors."""
    curves = {}
    for (row, column), seeds in measured.histories.items():
        if seeds and len(seeds[0]) > 1:
            epochs = [point["epoch"] for point in seeds[0]]
            errors = [[1 - point["accuracy"] for point in seed] for seed in seeds]
            curves[f"{row}, {column}"] = (epochs, errors)
    return curves


def curves_figure(measured: Measured) -> Figure:
    """Mean test error over seeds against epochs, a line a cell."""
    figure, (axes,) = figure_of(1, 1)
    for number, (name, (epochs, errors)) in enumerate(error_curves(measured).items()):
        means = [100 * sum(at) / len(at) for at in zip(*errors, strict=True)]
        axes.plot(epochs, means, color=COLORS[number % len(COLORS)], label=name)
    axes.set_xlabel("epochs")
    axes.set_ylabel("test error (%)")
    axes.legend(frameon=False, fontsize=8)
    return figure


_SECTIONS: dict[str, Callable[[Study, Plan, Store, Measured], Section | None]] = {
    "dcs": _dcs,
    "tm-curve": _tm_curve,
}
