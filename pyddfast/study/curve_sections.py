"""What the students' curves of error against epochs say: convergence and the scaling law."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

from pyddfast.analysis.convergence import Convergence, convergence, convergence_ratio
from pyddfast.analysis.scaling_law import ScalingLaw, fit_scaling_law, scaling_law_difference
from pyddfast.report.analysis_figures import convergence_figure, scaling_law_figure
from pyddfast.study.jobs import Plan
from pyddfast.study.results import Measured, column_of
from pyddfast.study.runner import Store
from pyddfast.study.section import Finding, Section, ends
from pyddfast.study.spec import Study

__all__ = ["convergence_section", "law_section"]

# Laws differ if either b or τ does: together the two intervals hold at 95 %.
_EACH = 0.975


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


def convergence_section(
    study: Study, plan: Plan, store: Store, measured: Measured
) -> Section | None:
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
                ends(one.ci, 0),
                "" if one.settled else "not settled: a lower bound",
            )
        )
    for column in dict.fromkeys(curve.column for curve in curves.values()):
        # The last row is the coreset that the distilled sets are compared with.
        coreset = measured.rows[-1]
        names = {curve.row: n for n, curve in curves.items() if curve.column == column}
        last = found.get(names.get(coreset, ""))
        for name in names.values():
            if last is None or name not in found or curves[name].row == coreset:
                continue
            ratio, (low, high) = convergence_ratio(found[name], last)
            shown = f"{name}: times the epochs of {coreset}"
            values[shown] = {"ratio": ratio, "ci": [low, high]}
            # Epochs of what is not settled are a lower bound, and so is the ratio, or an upper one.
            above, below = low >= 2 and last.settled, high < 2 and found[name].settled
            shows = True if above else False if below else None
            says = f"{name} converges at least 2 times as slowly as {coreset}"
            claims.append(Finding(says, shows, f"{ratio:.1f} {ends((low, high))}"))
            rows.append((shown, "", f"{ratio:.1f}", ends((low, high), 1), ""))
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
        convergence_figure({n: (c.epochs, c.errors) for n, c in curves.items()}, found),
        "Test error against epochs, dashed where a curve is within a point of its lowest",
    )


def law_section(study: Study, plan: Plan, store: Store, measured: Measured) -> Section | None:
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
            "undetermined": list(law.undetermined),
        }  # fmt: skip
        rows.append(
            (
                name,
                f"{law.b:.3f} {ends(law.ci['b'])}",
                f"{law.tau:.2f} {ends(law.ci['tau'])}",
                f"{law.delta:.3f}",
                f"{law.d:.3f}",
                f"hardly determined: {', '.join(law.undetermined)}" if law.undetermined else "",
            )
        )
    for column in dict.fromkeys(curve.column for curve in curves.values()):
        names = [name for name in laws if curves[name].column == column]
        for first, second in combinations(names, 2):
            gaps = scaling_law_difference(laws[first], laws[second], level=_EACH)
            shown = f"{column}: {curves[first].row} − {curves[second].row}"
            values[shown] = {key: [gap, *ends] for key, (gap, ends) in gaps.items()}
            (b, of_b), (tau, of_tau) = gaps["b"], gaps["tau"]
            differ = any(low > 0 or high < 0 for low, high in (of_b, of_tau))
            numbers = f"Δb {b:+.3f} {ends(of_b)}, Δτ {tau:+.2f} {ends(of_tau)}"
            pair = f"{column}: {curves[first].row} and {curves[second].row}"
            if column.startswith("HL"):
                claims.append(Finding(f"{pair} differ in their law", differ or None, numbers))
            else:
                # Intervals that are as wide as what they are of hold 0 whatever the laws are.
                open_ = {"b", "tau"} & {*laws[first].undetermined, *laws[second].undetermined}
                same = False if differ else None if open_ else True
                claims.append(Finding(f"{pair} have the same law", same, numbers))
            rows.append((shown, f"{b:+.3f} {ends(of_b)}", f"{tau:+.2f} {ends(of_tau)}", "", "", ""))
    if not rows:
        return None
    return Section(
        "Scaling law",
        "Equation 7, fitted to the mean error over seeds: b is the first utility of the samples, "
        "τ its half-life in epochs, δ = 2^(−1/τ), d the error that stays; 95 % intervals by the "
        "bootstrap of residuals, of differences 97.5 %, so that both hold together. Along one "
        "training, whose learning rate falls to its end.",
        ("curve", "b", "τ", "δ", "d", ""),
        tuple(rows),
        values,
        tuple(claims),
        scaling_law_figure(laws) if laws else None,
        "Test error against epochs with the fitted law",
    )
