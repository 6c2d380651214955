"""The commands that analyse measured values."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pyddfast.analysis import (
    DCS,
    Adjust,
    LawMethod,
    ScalingLaw,
    convergence,
    convergence_ratio,
    dcs,
    dcs_difference,
    fit_scaling_law,
    scaling_law_difference,
)
from pyddfast.cli.measured import Measured, interval_text, read_measured, write_analysis
from pyddfast.cli.tables import new_table, note, print_table
from pyddfast.data.atomic import refuse_non_empty
from pyddfast.report import svg
from pyddfast.report.analysis_figures import (
    convergence_figure,
    dcs_figure,
    scaling_law_figure,
)

__all__ = [
    "analyze_convergence",
    "analyze_dcs",
    "analyze_scaling_law",
]

Table = Annotated[Path, tyro.conf.Positional]


def analyze_dcs(
    table: Table,
    *,
    out: Path,
    objective: tuple[str, ...] = ("objective",),
    error: tuple[str, ...] = ("error",),
    size: str = "size",
    groups: str | None = None,
    adjust: Adjust = "partial",
    n_boot: int = 2000,
    seed: int = 0,
) -> None:
    """Distillation correlation score: does an objective order subsets as students' errors do?

    Prints the scores, and writes OUT/results.json and OUT/figure.svg.  Of several objectives or
    errors every pair is scored, and the differences between the scores with one error, or of one
    objective, are given.

    Args:
        table: A row a subset, .csv or .json.
        out: New folder.
        objective: Columns of objectives.
        error: Columns of test errors, in or out of distribution.
        size: Column of the subsets' sizes; unused with --adjust none.
        groups: Column whose equal values mark rows that depend on each other, such as a subset and
            its repetition.
        adjust: How the effect of the size is removed: partial: on ranks; stratified: within each
            size; none.
        n_boot: Resamples of the intervals, and permutations of p.
        seed: Seed of both.
    """
    refuse_non_empty(out)
    if not objective or not error:
        raise ValueError("--objective and --error must name a column each")
    given = read_measured(table)
    sizes = None if adjust == "none" else given.numbers(size)
    dependent = None if groups is None else given.names(groups)
    scores: dict[tuple[str, str], DCS] = {}
    points = {}
    for x in objective:
        for y in error:
            values = given.numbers(x), given.numbers(y)
            scores[x, y] = dcs(
                *values, sizes, adjust=adjust, groups=dependent, n_boot=n_boot, seed=seed
            )
            drawn = sizes if sizes is not None else [1.0] * len(values[0])
            points[f"{x} (DCS {scores[x, y].rho:.2f} with {y})"] = (*values, drawn)
    rows = new_table(
        f"DCS, adjusted for size: {adjust}", "score", "DCS", "95 %", "by formula", "p", "raw", "n"
    )
    for (x, y), score in scores.items():
        rows.add_row(
            f"{x} with {y}",
            f"{score.rho:+.2f}",
            interval_text(score.ci, "+.2f"),
            interval_text(score.ci_formula, "+.2f"),
            f"{score.p:.3f}",
            f"{score.raw_rho:+.2f}",
            str(score.n),
        )
    print_table(rows)
    differences = []
    for first, second in combinations(scores, 2):
        if first[0] == second[0] or first[1] == second[1]:
            try:
                value, interval = dcs_difference(scores[first], scores[second])
            except ValueError as why:  # other rows are without a value
                note(f"{first[0]} and {second[0]} are not compared: {why}")
                continue
            names = [" with ".join(pair) for pair in (first, second)]
            print(f"{names[0]} - {names[1]}: {value:+.2f} ({interval_text(interval, '+.2f')})")
            differences.append(
                {"first": first, "second": second, "difference": value, "ci": interval}
            )
    write_analysis(
        out,
        "dcs",
        table,
        {"size": size, "groups": groups, "adjust": adjust, "n_boot": n_boot, "seed": seed},
        {
            "scores": [
                {
                    "objective": x,
                    "error": y,
                    "rho": score.rho,
                    "ci": score.ci,
                    "ci_formula": score.ci_formula,
                    "p": score.p,
                    "n": score.n,
                    "raw_rho": score.raw_rho,
                    "n_groups": score.n_groups,
                    "dropped": score.dropped,
                }
                for (x, y), score in scores.items()
            ],
            "differences": differences,
        },
        svg(dcs_figure(points), alt="Test error against objective, a point a subset"),
    )


def analyze_scaling_law(
    table: Table,
    *,
    out: Path,
    epochs: str = "epochs",
    error: str = "error",
    curve: str = "curve",
    samples: str = "samples_per_epoch",
    a: float | Literal["shared"] | None = None,
    d: float | Literal["shared"] | None = None,
    method: LawMethod = "varpro",
    predict: tuple[int, ...] = (),
    n_boot: int = 500,
    seed: int = 0,
) -> None:
    """Fit the data-filtering scaling law (eqs. 7 and 8) to error against epochs.

    Prints the laws and the differences in b and half-life between them, and writes
    OUT/results.json and OUT/figure.svg.  Errors of one curve and number of epochs (seeds) are
    averaged.

    Args:
        table: A row a measured error, .csv or .json.
        out: New folder.
        epochs: Column of epochs.
        error: Column of test errors, as fractions.
        curve: Column of the curves' names, where there are several.
        samples: Column of the samples that an epoch shows, or their number.
        a: Factor of the law: a number, shared (one for all curves), or None: fitted to each.
        d: Error that remains, likewise.
        method: varpro: least squares; grid: the search as published.
        predict: Epochs whose error is predicted.
        n_boot: Refits of the bootstrap.
        seed: Its seed.
    """
    refuse_non_empty(out)
    parts = read_measured(table).parts(curve)
    when, errors, shown = {}, {}, {}
    for name, part in parts.items():
        when[name], errors[name] = _averaged(part.numbers(epochs), part.numbers(error))
        shown[name] = _samples(part, samples, name)
    laws = fit_scaling_law(when, errors, shown, a=a, d=d, method=method, n_boot=n_boot, seed=seed)
    rows = new_table("Scaling law", "curve", "", "value", "95 % by profile", "95 % by bootstrap")
    for name, law in laws.items():
        for key, sign in (
            ("b", "b"),
            ("tau", "half-life τ"),
            ("delta", "δ"),
            ("a", "a"),
            ("d", "d"),
        ):
            near = [
                interval_text(found[key], ".3g") if key in found else "fixed"
                for found in (law.ci_profile, law.ci)
            ]
            rows.add_row(name, sign, f"{getattr(law, key):.4g}", *near)
    print_table(rows)
    differences = []
    for first, second in combinations(laws, 2):
        found = scaling_law_difference(laws[first], laws[second])
        said = (
            f"{sign} {value:+.3g} ({interval_text(interval, '+.3g')})"
            for sign, (value, interval) in zip(("b", "τ"), found.values(), strict=True)
        )
        print(f"{first} - {second}: {', '.join(said)}")
        differences.append({"first": first, "second": second, **found})
    for name, law in laws.items():
        for k in predict:
            low, high = law.predict_interval([k])
            print(
                f"{name} after {k} epochs: {100 * float(law.predict(k)):.2f} % "
                f"({100 * low[0]:.2f} to {100 * high[0]:.2f})"
            )
    write_analysis(
        out,
        "scaling-law",
        table,
        {"samples": samples, "a": a, "d": d, "method": method, "n_boot": n_boot, "seed": seed},
        {
            "laws": [_law(name, law, predict) for name, law in laws.items()],
            "differences": differences,
        },
        svg(scaling_law_figure(laws), alt="Test error over epochs with the fitted scaling laws"),
    )


def analyze_convergence(
    table: Table,
    *,
    out: Path,
    epochs: str = "epochs",
    error: str = "error",
    curve: str = "curve",
    seeds: str = "seed",
    within: float = 0.01,
) -> None:
    """Epochs until the error is within a point of its plateau, and their ratios between sets.

    Prints them, and writes OUT/results.json and OUT/figure.svg.

    Args:
        table: A row a measured error, .csv or .json.
        out: New folder.
        epochs: Column of epochs; the same for every seed of a curve.
        error: Column of test errors, as fractions.
        curve: Column of the curves' names, where there are several.
        seeds: Column of the seeds, where there are several.
        within: How near to the plateau; 0.01 is a point.
    """
    refuse_non_empty(out)
    curves, found = {}, {}
    for name, part in read_measured(table).parts(curve).items():
        of_seeds = [
            sorted(zip(one.numbers(epochs), one.numbers(error), strict=True))
            for one in part.parts(seeds).values()
        ]
        when = [epoch for epoch, _ in of_seeds[0]]
        for rows in of_seeds:
            if [epoch for epoch, _ in rows] != when:
                raise ValueError(f"{table}: the seeds of {name} have different epochs")
        curves[name] = (when, [[value for _, value in rows] for rows in of_seeds])
        found[name] = convergence(*curves[name], within=within)
    shown = new_table(
        f"Epochs to within {100 * within:g} points of the plateau",
        "curve",
        "epochs",
        "95 % interval",
        "plateau (%)",
        "settled",
    )
    for name, one in found.items():
        settled = "yes" if one.settled else "no"
        shown.add_row(
            name,
            f"{one.epochs:.1f}",
            interval_text(one.ci, ".1f"),
            f"{100 * one.plateau:.2f}",
            settled,
        )
    print_table(shown)
    ratios = []
    for first, second in combinations(found, 2):
        value, interval = convergence_ratio(found[first], found[second])
        print(f"{first} / {second}: {value:.2f} ({interval_text(interval, '.2f')})")
        ratios.append({"first": first, "second": second, "ratio": value, "ci": interval})
    write_analysis(
        out,
        "convergence",
        table,
        {"within": within},
        {
            "curves": [{"curve": name, **vars(one)} for name, one in found.items()],
            "ratios": ratios,
        },
        svg(convergence_figure(curves, found), alt="Test error over epochs, a line a set"),
    )


def _averaged(epochs: Sequence[float], errors: Sequence[float]) -> tuple[list[float], list[float]]:
    """Rising epochs and the mean error at each."""
    at: dict[float, list[float]] = {}
    for epoch, error in sorted(zip(epochs, errors, strict=True)):
        at.setdefault(epoch, []).append(error)
    return list(at), [sum(values) / len(values) for values in at.values()]


def _samples(part: Measured, samples: str, name: str) -> float:
    """A number, or the one value of a column."""
    try:
        return float(samples)
    except ValueError:
        found = set(part.numbers(samples))
    if len(found) != 1:
        raise ValueError(f"{part.file}: {samples} of {name} must be one number, got {found}")
    return found.pop()


def _law(name: str, law: ScalingLaw, predict: Sequence[int]) -> dict[str, Any]:
    fields = (
        "a", "b", "tau", "delta", "d", "ci", "ci_profile", "undetermined", "residual",
        "samples_per_epoch",
    )  # fmt: skip
    return {
        "curve": name,
        **{field: getattr(law, field) for field in fields},
        "epochs": law.epochs.tolist(),
        "error": law.error.tolist(),
        "predicted": {str(k): float(law.predict(k)) for k in predict},
    }
