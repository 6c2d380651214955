"""The commands of DD-Ranking's scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pyddfast.analysis import RobustScore, ars, lrs
from pyddfast.cli.measured import interval_text, read_measured, write_analysis
from pyddfast.cli.tables import new_table, print_table
from pyddfast.data.atomic import refuse_non_empty
from pyddfast.report import svg
from pyddfast.report.analysis_figures import scores_figure

__all__ = ["analyze_ars", "analyze_lrs"]

Table = Annotated[Path, tyro.conf.Positional]


def analyze_lrs(
    table: Table,
    *,
    out: Path,
    full_hard: str = "full_hard",
    synthetic_hard: str = "synthetic_hard",
    synthetic: str = "synthetic",
    random: str = "random",
    sets: str = "set",
    weight: float = 0.5,
) -> None:
    """DD-Ranking's label-robust score: near the full data with hard labels, above random images.

    Prints the scores, and writes OUT/results.json and OUT/figure.svg.

    Args:
        table: A row an evaluation, accuracies as fractions, .csv or .json.
        out: New folder.
        full_hard: Column of the accuracy of the full data with hard labels.
        synthetic_hard: Column of the distilled set's with hard labels.
        synthetic: Column of the distilled set's with its own labels.
        random: Column of the accuracy of random images.
        sets: Column of the sets' names, where there are several.
        weight: Of the improvement over random.
    """
    columns = (full_hard, synthetic_hard, synthetic, random)
    _score("LRS", lrs, columns, table, out, sets, weight)


def analyze_ars(
    table: Table,
    *,
    out: Path,
    synthetic_augmented: str = "synthetic_augmented",
    random_augmented: str = "random_augmented",
    synthetic_plain: str = "synthetic_plain",
    random_plain: str = "random_plain",
    sets: str = "set",
    weight: float = 0.5,
) -> None:
    """DD-Ranking's augmentation-robust score: above random images with augmentation and without.

    Prints the scores, and writes OUT/results.json and OUT/figure.svg.

    Args:
        table: A row an evaluation, accuracies as fractions, .csv or .json.
        out: New folder.
        synthetic_augmented: Column of the distilled set's accuracy with augmentation.
        random_augmented: Column of random images' with augmentation.
        synthetic_plain: Column of the distilled set's without augmentation.
        random_plain: Column of random images' without augmentation.
        sets: Column of the sets' names, where there are several.
        weight: Of the improvement with augmentation.
    """
    columns = (synthetic_augmented, random_augmented, synthetic_plain, random_plain)
    _score("ARS", ars, columns, table, out, sets, weight)


def _score(
    label: Literal["LRS", "ARS"],
    function: Callable[..., RobustScore],
    columns: tuple[str, ...],
    table: Path,
    out: Path,
    sets: str,
    weight: float,
) -> None:
    refuse_non_empty(out)
    scores = {
        name: function(*map(part.numbers, columns), weight=weight)
        for name, part in read_measured(table).parts(sets).items()
    }
    parts = list(next(iter(scores.values())).parts)
    rows = new_table(f"{label}, in [0, 1]", "set", label, "std", "95 % interval", *parts)
    for set_name, score in scores.items():
        means = (sum(values) / len(values) for values in score.parts.values())
        rows.add_row(
            set_name,
            f"{score.mean:.3f}",
            f"{score.std:.3f}",
            interval_text(score.ci, ".3f"),
            *(f"{mean:+.3f}" for mean in means),
        )
    print_table(rows)
    write_analysis(
        out,
        label.lower(),
        table,
        {"weight": weight},
        [{"set": set_name, **vars(score)} for set_name, score in scores.items()],
        svg(scores_figure(scores, label=label), alt=f"{label} of every set with its interval"),
    )
