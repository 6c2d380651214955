"""What objectives say of the sets, beside their students: DCS, OOD, TM's loss, a synthesis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyddfast.analysis.dcs import DCS, dcs, dcs_difference
from pyddfast.analysis.dynamics import loss_dynamics
from pyddfast.analysis.objectives.trajectory import start_epoch_curve
from pyddfast.analysis.ood import ood_dcs
from pyddfast.analysis.pool import largest_error
from pyddfast.report.analysis_figures import dcs_figure
from pyddfast.report.dynamics import dynamics_figure, start_epoch_figure
from pyddfast.report.tables import percent
from pyddfast.study.jobs import Plan
from pyddfast.study.results import Measured, column_of, line_of
from pyddfast.study.runner import Store
from pyddfast.study.section import Finding, Section, ends
from pyddfast.study.spec import Study
from pyddfast.study.steps import images

__all__ = ["dcs_section", "dynamics_section", "ood_section", "tm_curve_section"]

# A rank correlation below this is weak (Cohen's "medium" begins there): "near zero", "alike".
_WEAK = 0.3


def _objective_values(study: Study, plan: Plan, store: Store) -> dict[str, dict[str, Any]]:
    """What is done of the objectives: by name, of each set its value and parts."""
    found: dict[str, dict[str, Any]] = {}
    for asked in study.objectives:
        done = store.done(plan.objectives[asked.shown])
        if done is None:
            continue
        values = done["result"]["values"]
        if asked.average is not None:
            values = {set_: _averaged(one, *asked.average) for set_, one in values.items()}
        found[asked.shown] = values
    return found


def _averaged(one: dict[str, Any], first: int, last: int) -> dict[str, Any]:
    """The value as the mean of some starting epochs alone; None where one has none."""
    curve = start_epoch_curve(one["parts"])
    if any(epoch not in curve for epoch in range(first, last + 1)):
        return {**one, "value": None}
    return {**one, "value": sum(curve[e] for e in range(first, last + 1)) / (last + 1 - first)}


def dcs_section(study: Study, plan: Plan, store: Store, measured: Measured) -> Section | None:
    """Correlation of every objective with the students' error, adjusted for size."""
    rows: list[tuple[str, ...]] = []
    values: dict[str, Any] = {}
    scored: dict[tuple[str, str], list[_Point]] = {}
    claims: list[Finding] = []
    for name, of_sets in _objective_values(study, plan, store).items():
        for line in _lines(study, plan):
            pool = _points(study, plan, measured, of_sets, line)
            kept = _without_worst(pool)
            shown = f"{name}, {line}"
            try:
                score = _scored(kept, study.seed)
            except ValueError as error:
                rows.append((shown, f"none: {error}", "", "", "", str(len(kept))))
                continue
            scored[name, line] = kept
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
                "names": [p.name for p in kept], "objective": [p.objective for p in kept],
                "error": [p.error for p in kept], "size": [p.size for p in kept],
            }  # fmt: skip
            if name in ("sre2l", "dwa"):
                low, high = score.ci
                shows = False if low > 0 else True if high < _WEAK else None
                says = f"DCS of {name} is zero or negative once size is adjusted ({line})"
                claims.append(Finding(says, shows, _score(score)))
    if not rows:
        return None
    points = {
        f"{name}, {line}": (
            [p.objective for p in kept], [p.error for p in kept], [p.size for p in kept],
        )
        for (name, line), kept in scored.items()
    }  # fmt: skip
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
        (*claims, *_dm_above_tm(scored, study.seed)),
        dcs_figure(points, of_size="{:g} images a class") if points else None,
        "Test error of students against each objective, a point a set",
    )


def _dm_above_tm(scored: dict[tuple[str, str], list[_Point]], seed: int) -> list[Finding]:
    found = []
    for line in [line for name, line in scored if name == "dm" and ("tm", line) in scored]:
        dm, tm = scored["dm", line], scored["tm", line]
        # TM may have no value of a set, its student diverges: the others are compared.
        both = {p.name for p in dm} & {p.name for p in tm}
        try:
            first, second = (_scored([p for p in o if p.name in both], seed) for o in (dm, tm))
        except ValueError:
            continue
        gap, (low, high) = dcs_difference(first, second)
        shows = True if low > 0 else False if high < 0 else None
        numbers = f"{gap:+.2f} {ends((low, high))}"
        found.append(Finding(f"DCS of DM is above TM's ({line})", shows, numbers))
    return found


def _lines(study: Study, plan: Plan) -> list[str]:
    """Students that are alike but for their set: by regime, and by what else the study varies."""
    return list(dict.fromkeys(line_of(study, cell) for cell in plan.cells))


def _scored(points: list[_Point], seed: int) -> DCS:
    return dcs(
        [p.objective for p in points], [p.error for p in points], [p.size for p in points],
        groups=[p.group for p in points], seed=seed,
    )  # fmt: skip


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
    study: Study, plan: Plan, measured: Measured, of_sets: dict[str, Any], line: str
) -> list[_Point]:
    specs = dict(zip(measured.rows, study.sets, strict=True))
    found = []
    for cell in plan.cells:
        name = f"{cell.row}, IPC {cell.ipc}"
        value = of_sets.get(name, {}).get("value")
        result = measured.cells.get((cell.row, column_of(study, cell)))
        if line_of(study, cell) != line or value is None or result is None:
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
    own = [point for point in points if point.size == point.ipc]  # repetitions are not asked
    for point in own:
        errors = [p.error for p in own if p.ipc == point.ipc]
        if point.error > largest_error(errors, 1 - point.chance):
            poor.add(point.group)
    return [point for point in points if point.group not in poor]


def ood_section(study: Study, plan: Plan, store: Store, measured: Measured) -> Section | None:
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
    for name, of_sets in _objective_values(study, plan, store).items():
        for line in _lines(study, plan):
            pool = _without_worst(_points(study, plan, measured, of_sets, line))
            kept = [point for point in pool if (point.row, point.column) in errors]
            shown = f"DCS of {name}, {line}"
            try:
                score = ood_dcs(
                    [p.objective for p in kept], [p.error for p in kept],
                    [errors[p.row, p.column] for p in kept], [p.size for p in kept],
                    groups=[p.group for p in kept], seed=study.seed,
                )  # fmt: skip
            except ValueError as error:
                rows.append((shown, f"none: {error}", ""))
                continue
            rows.append((shown, _score(score.id), _score(score.ood)))
            low, high = score.ci
            alike = False if low > 0 or high < 0 else True if max(-low, high) < _WEAK else None
            says = f"DCS of {name} is alike in and out of distribution ({line})"
            claims.append(Finding(says, alike, f"{score.difference:+.2f} {ends(score.ci)}"))
            rows.append((f"{shown}: difference", "", f"{score.difference:+.2f} {ends(score.ci)}"))
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
    return f"{score.rho:+.2f} {ends(score.ci)}"


def tm_curve_section(study: Study, plan: Plan, store: Store, measured: Measured) -> Section | None:
    """TM's loss by starting epoch."""
    values = _objective_values(study, plan, store)
    asked = [one for one in study.objectives if one.name == "tm" and one.shown in values]
    of_sets = {
        name if one.network is None else f"{name}, {one.network.shown}": value
        for one in asked
        for name, value in values[one.shown].items()
    }
    found = {name: start_epoch_curve(one["parts"]) for name, one in of_sets.items()}
    curves = {name: curve for name, curve in found.items() if curve}
    if not curves:
        return None
    epochs = sorted({epoch for curve in curves.values() for epoch in curve})
    averages = dict.fromkeys(one.average for one in asked)
    over = ", ".join("them" if a is None else f"epochs {a[0]} to {a[1]}" for a in averages)

    def mean(name: str) -> str:
        value = of_sets[name]["value"]
        return "not finite" if value is None else f"{value:.4f}"

    return Section(
        "TM's loss by starting epoch",
        f"Starting epochs {epochs[0]} to {epochs[-1]}, averaged over experts; the last column is "
        f"the mean over {over}.",
        ("set", "lowest", "highest", "mean"),
        tuple(
            (name, f"{min(c.values()):.4f}", f"{max(c.values()):.4f}", mean(name))
            if c
            else (name, "", "", mean(name))
            for name, c in found.items()
        ),
        {name: {str(epoch): v for epoch, v in c.items()} for name, c in curves.items()},
        (),
        start_epoch_figure(curves),
        "TM loss of every set against the starting epoch",
    )  # fmt: skip


def dynamics_section(study: Study, plan: Plan, store: Store, measured: Measured) -> Section | None:
    """Matching loss and accuracy along a synthesis, whose prefixes are sets of their own."""
    along = {
        label: int(spec.options["iterations"])
        for label, spec in zip(measured.rows, study.sets, strict=True)
        if spec.method in ("tm", "datm") and "iterations" in spec.options
    }
    rows: list[tuple[str, ...]] = []
    values: dict[str, Any] = {}
    figure = None
    for ipc in study.ipc:
        accuracies = {
            along[cell.row]: measured.cells[cell.row, column_of(study, cell)].accuracies
            for cell in plan.cells
            if cell.row in along
            and (cell.ipc, line_of(study, cell)) == (ipc, _lines(study, plan)[0])
            and (cell.row, column_of(study, cell)) in measured.cells
        }
        longest = max(along, key=lambda label: along[label])
        job = plan.sets[longest, ipc]
        if store.done(job) is None:
            continue
        try:
            found = loss_dynamics(store.folder(job) / "work", accuracies=accuracies)
        except ValueError as error:
            rows.append((f"IPC {ipc}", f"none: {error}", "", ""))
            continue
        figure = figure or dynamics_figure(found)
        values[f"IPC {ipc}"] = found.to_dict()
        for name, trend, digits in (("loss", found.loss, 4), ("accuracy", found.accuracy, 3)):
            if trend is not None:
                low, high = trend.ci
                rows.append(
                    (
                        f"{name}, IPC {ipc}",
                        f"{trend.slope:+.{digits}f}",
                        f"[{low:+.{digits}f}, {high:+.{digits}f}]",
                        f"{trend.total:+.{digits}f}",
                    )
                )
    if not rows:
        return None
    return Section(
        "Loss and accuracy along the synthesis",
        "Straight lines through the matching loss of every iteration of the longest run and "
        "through the students' accuracies (fractions) of its prefixes; 95 % intervals.",
        ("", "change in 1000 iterations", "95 % interval", "over the run"),
        tuple(rows),
        values,
        (),
        figure,
        "Matching loss and test accuracy against iterations",
    )
