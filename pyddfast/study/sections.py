"""What a report has beside the table of accuracies: a table, a figure and values of an analysis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

from pyddfast.analysis.convergence import Convergence, convergence, convergence_ratio
from pyddfast.analysis.dcs import DCS, dcs, dcs_difference
from pyddfast.analysis.ood import ood_dcs
from pyddfast.analysis.scaling_law import ScalingLaw, fit_scaling_law, scaling_law_difference
from pyddfast.report.comparison import REGIMES
from pyddfast.report.figures import COLORS, figure_of
from pyddfast.report.tables import percent
from pyddfast.study.jobs import Plan
from pyddfast.study.results import Measured, column_of
from pyddfast.study.runner import Store
from pyddfast.study.spec import Study
from pyddfast.study.steps import images
from pyddfast.train import Regime

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Finding", "Section", "sections"]


# Of the best set's accuracy above chance at its size; less is "extremely poor" and left out of DCS.
_LEAST = 0.5


# A rank correlation below this is weak (Cohen's "medium" begins there): "near zero", "alike".
_WEAK = 0.3


@dataclass(frozen=True)
class Finding:
    """Whether a claim of the paper shows.

    Attributes:
        says: The claim.
        shows: None where the interval leaves it open.
        numbers: What it was judged by.
    """

    says: str
    shows: bool | None
    numbers: str


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        title: Of it.
        note: What its numbers are.
        columns: Of its table.
        rows: Of its table, texts.
        values: The same as JSON values.
        claims: What it says of the paper's claims.
        figure: Beside it, or None.
        alt: What the figure shows, for readers who cannot see it.
    """

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    values: dict[str, Any]
    claims: tuple[Finding, ...] = ()
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
    scores: dict[tuple[str, Regime], DCS] = {}
    for name, of_sets in _objective_values(plan, store).items():
        for regime in study.regimes:
            pool = _points(study, plan, measured, of_sets, regime)
            kept = _without_worst(pool)
            objective = [point.objective for point in kept]
            error = [point.error for point in kept]
            size, groups = [point.size for point in kept], [point.group for point in kept]
            if len(set(size)) < 2 or len(set(groups)) < 4:
                continue
            score = dcs(objective, error, size, groups=groups, seed=study.seed)
            scores[name, regime] = score
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
                "n": score.n, "dropped": [p.name for p in pool if p not in kept],
                "names": [p.name for p in kept], "objective": objective, "error": error,
                "size": size,
            }  # fmt: skip
    if not rows:
        return None
    return Section(
        "Distillation correlation score",
        "Partial Spearman correlation of the objective with the students' test error, adjusted for "
        "the number of images. Sets whose students keep less than half of the best one's accuracy "
        "above chance at their size are left out. 95 % interval by bootstrap over sets (a set and "
        "its repetition are one), p by permutation within sizes. 1: a lower objective always meant "
        "a lower error.",
        ("objective", "DCS", "95 % interval", "p", "unadjusted", "sets"),
        tuple(rows),
        values,
        _dcs_claims(scores),
        _scatter(points),
        "Test error of students against each objective, a point a set",
    )


def _dcs_claims(scores: dict[tuple[str, Regime], DCS]) -> tuple[Finding, ...]:
    found = []
    for (name, regime), score in scores.items():
        low, high = score.ci
        if name in ("sre2l", "dwa"):
            shows = False if low > 0 else True if high < _WEAK else None
            says = f"DCS of {name} is zero or negative once size is adjusted ({REGIMES[regime]})"
            found.append(Finding(says, shows, _score(score)))
        if name == "dm" and ("tm", regime) in scores:
            gap, (low, high) = dcs_difference(score, scores["tm", regime])
            shows = True if low > 0 else False if high < 0 else None
            says = f"DCS of DM is above TM's ({REGIMES[regime]})"
            found.append(Finding(says, shows, f"{gap:+.2f} {_ends((low, high))}"))
    return tuple(found)


@dataclass(frozen=True)
class _Point:
    name: str
    row: str
    column: str
    objective: float
    error: float
    size: int
    ipc: int
    group: tuple[str, str, int]  # a set and its repetition
    chance: float


def _points(
    study: Study, plan: Plan, measured: Measured, of_sets: dict[str, Any], regime: Regime
) -> list[_Point]:
    specs = dict(zip(measured.rows, study.sets, strict=True))
    found = []
    for cell in plan.cells:
        name = f"{cell.row}, IPC {cell.ipc}"
        value = of_sets.get(name, {}).get("value")
        result = measured.cells.get((cell.row, column_of(study, cell)))
        if cell.regime != regime or value is None or result is None:
            continue
        spec = specs[cell.row]
        group = (spec.method, repr(sorted(spec.options.items())), cell.ipc)
        size = cell.ipc * spec.repeat
        classes = images(**study.data.facts(), split="test").num_classes
        found.append(
            _Point(
                name,
                cell.row,
                column_of(study, cell),
                float(value),
                1 - result.mean,
                size,
                cell.ipc,
                group,
                1 / classes,
            )
        )
    return found


def _without_worst(points: list[_Point]) -> list[_Point]:
    """Without the extremely poor, each with its repetition, by the rule of ``dcs_subsets``."""
    poor = set()
    for point in points:
        best = max(1 - p.error - p.chance for p in points if p.ipc == point.ipc)
        if 1 - point.error - point.chance < _LEAST * best:
            poor.add(point.group)
    return [point for point in points if point.group not in poor]


def _ood(study: Study, plan: Plan, store: Store, measured: Measured) -> Section | None:
    """Errors on corrupted images beside those on the test split, and their DCS."""
    errors: dict[tuple[str, str], float] = {}
    claims: list[Finding] = []
    for cell in plan.cells:
        done = [store.done(plan.ood[job.key]) for jobs in cell.students for job in jobs]
        if done and all(done):
            found = [one["result"]["accuracy"] for one in done if one is not None]
            errors[cell.row, column_of(study, cell)] = 1 - sum(found) / len(found)
    rows: list[tuple[str, ...]] = []
    values: dict[str, Any] = {}
    for (row, column), error in errors.items():
        if (row, column) in measured.cells:
            known = measured.cells[row, column].mean
            rows.append((f"{row}, {column}", percent(known), percent(1 - error)))
            values[f"{row}, {column}"] = {"accuracy": known, "ood_accuracy": 1 - error}
    for name, of_sets in _objective_values(plan, store).items():
        for regime in study.regimes:
            pool = _without_worst(_points(study, plan, measured, of_sets, regime))
            kept = [point for point in pool if (point.row, point.column) in errors]
            size, groups = [p.size for p in kept], [p.group for p in kept]
            if len(set(size)) < 2 or len(set(groups)) < 4:
                continue
            score = ood_dcs(
                [p.objective for p in kept], [p.error for p in kept],
                [errors[p.row, p.column] for p in kept], size, groups=groups, seed=study.seed,
            )  # fmt: skip
            shown = f"DCS of {name}, {REGIMES[regime]}"
            rows.append((shown, _score(score.id), _score(score.ood)))
            low, high = score.ci
            alike = False if low > 0 or high < 0 else True if max(-low, high) < _WEAK else None
            says = f"DCS of {name} is alike in and out of distribution ({REGIMES[regime]})"
            claims.append(Finding(says, alike, f"{score.difference:+.2f} {_ends(score.ci)}"))
            rows.append((f"{shown}: difference", "", f"{score.difference:+.2f} {_ends(score.ci)}"))
            values[shown] = {
                "id": score.id.rho, "id_ci": list(score.id.ci), "ood": score.ood.rho,
                "ood_ci": list(score.ood.ci), "difference": score.difference, "ci": [low, high],
            }  # fmt: skip
    if not rows:
        return None
    assert study.ood is not None
    names = ", ".join(study.ood.names) or "all fifteen"
    return Section(
        "Out of distribution",
        f"Accuracy in % on the test split and, mean over corruptions ({names}; severities "
        f"{', '.join(map(str, study.ood.severities))}), on corrupted images of it, of the same "
        "students; where objectives are there, the DCS on both errors with 95 % intervals.",
        ("", "test split", "corrupted"),
        tuple(rows),
        values,
        tuple(claims),
    )


def _score(score: DCS) -> str:
    return f"{score.rho:+.2f} {_ends(score.ci)}"


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
        (),
        figure,
        "TM loss of every set against the starting epoch",
    )  # fmt: skip


def _numbered(parts: dict[str, float]) -> dict[int, float]:
    return {int(name.split()[-1]): value for name, value in parts.items() if value is not None}


# ---- curves ----------------------------------------------------------------------------------


def _error_curves(study: Study, plan: Plan, store: Store, measured: Measured) -> dict[str, _Curve]:
    """Error against epochs, by the name of the cell."""
    curves = {}
    for cell in plan.cells:
        column = column_of(study, cell)
        seeds = measured.histories.get((cell.row, column))
        made = store.done(plan.sets[cell.row, cell.ipc])
        if seeds and made is not None:
            epochs = [round(point["epoch"]) for point in seeds[0]]
            errors = [[1 - point["accuracy"] for point in seed] for seed in seeds]
            curves[f"{cell.row}, {column}"] = _Curve(
                cell.row, column, epochs, errors, int(made["result"]["images"])
            )
    return curves


@dataclass(frozen=True)
class _Curve:
    row: str
    column: str
    epochs: list[int]
    errors: list[list[float]]  # a list a seed
    samples: int  # an epoch

    @property
    def mean(self) -> list[float]:
        """Over seeds."""
        return [sum(at) / len(at) for at in zip(*self.errors, strict=True)]


def _lines(curves: dict[str, _Curve], laws: dict[str, ScalingLaw] | None = None) -> Figure:
    figure, (axes,) = figure_of(1, 1)
    for number, (name, curve) in enumerate(curves.items()):
        color = COLORS[number % len(COLORS)]
        means = [100 * error for error in curve.mean]
        law = (laws or {}).get(name)
        style: dict[str, Any] = {}
        if law is not None:
            style = {"linestyle": "none", "marker": "o", "markersize": 3}
        axes.plot(curve.epochs, means, color=color, label=name, **style)
        if law is not None:
            axes.plot(curve.epochs, 100 * law.predict(curve.epochs), color=color, linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("epochs")
    axes.set_ylabel("test error (%)")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _convergence(study: Study, plan: Plan, store: Store, measured: Measured) -> Section | None:
    """Epochs until each curve is within a point of its plateau."""
    curves = _error_curves(study, plan, store, measured)
    rows: list[tuple[str, ...]] = []
    values: dict[str, Any] = {}
    found: dict[str, Convergence] = {}
    claims: list[Finding] = []
    for name, curve in curves.items():
        values[name] = {"epochs": curve.epochs, "errors": curve.errors}
        try:
            one = convergence(curve.epochs, curve.errors)
        except ValueError as error:
            rows.append((name, "", "", "", str(error)))
            continue
        found[name] = one
        values[name] |= {
            "within_a_point": one.epochs, "ci": list(one.ci), "plateau": one.plateau,
            "settled": one.settled,
        }  # fmt: skip
        rows.append(
            (
                name,
                f"{100 * one.plateau:.1f}",
                f"{one.epochs:.0f}",
                f"[{one.ci[0]:.0f}, {one.ci[1]:.0f}]",
                "" if one.settled else "not settled: a lower bound",
            )
        )
    for column in dict.fromkeys(curve.column for curve in curves.values()):
        names = [n for n, curve in curves.items() if curve.column == column and n in found]
        # The last row is the coreset that the distilled sets are compared with.
        for name in names[:-1]:
            ratio, (low, high) = convergence_ratio(found[name], found[names[-1]])
            shown = f"{name}: times the epochs of {curves[names[-1]].row}"
            values[shown] = {"ratio": ratio, "ci": [low, high]}
            shows = True if low >= 2 else False if high < 2 else None
            says = f"{name} converges at least 2 times as slowly as {curves[names[-1]].row}"
            claims.append(Finding(says, shows, f"{ratio:.1f} {_ends((low, high))}"))
            rows.append((shown, "", f"{ratio:.1f}", f"[{low:.1f}, {high:.1f}]", ""))
    if not rows:
        return None
    return Section(
        "Convergence",
        "Epochs until the test error is within one point of its lowest, and 95 % intervals over "
        "seeds. Along one training, whose learning rate falls to its end.",
        ("curve", "plateau, error in %", "epochs", "95 % interval", ""),
        tuple(rows),
        values,
        tuple(claims),
        _lines(curves),
        "Test error against epochs",
    )


def _scaling_law(study: Study, plan: Plan, store: Store, measured: Measured) -> Section | None:
    """The law of each curve, and the differences of rows within a regime."""
    curves = _error_curves(study, plan, store, measured)
    rows: list[tuple[str, ...]] = []
    values: dict[str, Any] = {}
    laws: dict[str, ScalingLaw] = {}
    claims: list[Finding] = []
    for name, curve in curves.items():
        values[name] = {"epochs": curve.epochs, "errors": curve.errors}
        try:
            law = fit_scaling_law(curve.epochs, curve.mean, curve.samples, seed=study.seed)
        except ValueError as error:
            rows.append((name, "", "", "", "", str(error)))
            continue
        laws[name] = law
        values[name] |= {
            "a": law.a, "b": law.b, "tau": law.tau, "delta": law.delta, "d": law.d,
            "ci": {key: list(ends) for key, ends in law.ci.items()},
        }  # fmt: skip
        rows.append(
            (
                name,
                f"{law.b:.3f} {_ends(law.ci['b'])}",
                f"{law.tau:.2f} {_ends(law.ci['tau'])}",
                f"{law.delta:.3f}",
                f"{law.d:.3f}",
                "",
            )
        )
    for column in dict.fromkeys(curve.column for curve in curves.values()):
        names = [name for name in laws if curves[name].column == column]
        for first, second in combinations(names, 2):
            gaps = scaling_law_difference(laws[first], laws[second])
            shown = f"{column}: {curves[first].row} − {curves[second].row}"
            values[shown] = {key: [gap, *ends] for key, (gap, ends) in gaps.items()}
            (b, of_b), (tau, of_tau) = gaps["b"], gaps["tau"]
            differ = any(low > 0 or high < 0 for low, high in (of_b, of_tau))
            numbers = f"Δb {b:+.3f} {_ends(of_b)}, Δτ {tau:+.2f} {_ends(of_tau)}"
            pair = f"{column}: {curves[first].row} and {curves[second].row}"
            if column.startswith("HL"):
                claims.append(Finding(f"{pair} differ in their law", differ or None, numbers))
            else:
                claims.append(Finding(f"{pair} have the same law", not differ, numbers))
            rows.append(
                (shown, f"{b:+.3f} {_ends(of_b)}", f"{tau:+.2f} {_ends(of_tau)}", "", "", "")
            )
    if not rows:
        return None
    return Section(
        "Scaling law",
        "Equation 7, fitted to the mean error over seeds: b is the first utility of the samples, "
        "τ its half-life in epochs, δ = 2^(−1/τ), d the error that stays; 95 % intervals by the "
        "bootstrap of residuals. Along one training, whose learning rate falls to its end.",
        ("curve", "b", "τ", "δ", "d", ""),
        tuple(rows),
        values,
        tuple(claims),
        _lines(curves, laws),
        "Test error against epochs with the fitted law",
    )


def _ends(interval: tuple[float, float]) -> str:
    return f"[{interval[0]:.2f}, {interval[1]:.2f}]"


_SECTIONS: dict[str, Callable[[Study, Plan, Store, Measured], Section | None]] = {
    "dcs": _dcs,
    "tm-curve": _tm_curve,
    "ood": _ood,
    "convergence": _convergence,
    "scaling-law": _scaling_law,
}
