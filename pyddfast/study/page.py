"""``report.html`` and ``results.json`` of a study."""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyddfast._extras import require
from pyddfast.data import DistilledSet
from pyddfast.data.atomic import write_bytes
from pyddfast.data.stored import finite
from pyddfast.report.figures import accuracy_figure, png, sets_figure, svg
from pyddfast.report.grids import method_grid
from pyddfast.report.html import write_report
from pyddfast.report.tables import percent
from pyddfast.study.files import shipped
from pyddfast.study.jobs import Plan
from pyddfast.study.results import Measured, Published, measure, points, published_table
from pyddfast.study.runner import Store
from pyddfast.study.section import Section
from pyddfast.study.sections import sections
from pyddfast.study.spec import Study
from pyddfast.train import environment

__all__ = ["StudyResult", "write_results"]

# Rows of a bar chart that can still be told apart, and columns of one that fit a page.
_BARS = 60


@dataclass(frozen=True)
class StudyResult:
    """What a study has measured.

    Attributes:
        folder: Of its two files.
        report: ``report.html``.
        results: ``results.json``.
        measured: The values.
        claims: Of the paper, a line each: whether it shows.
    """

    folder: Path
    report: Path
    results: Path
    measured: Measured
    claims: tuple[str, ...]


def write_results(study: Study, plan: Plan, store: Store) -> StudyResult:
    """Read all jobs that are done and write report and results, each whole or not at all.

    Args:
        study: Which.
        plan: Its jobs.
        store: Where they are; the files go to ``NAME-SCALE`` in it.
    """
    measured = measure(study, plan, store)
    published = published_table(study.published) if study.published else None
    folder = store.path / f"{study.name}-{study.scale}"
    folder.mkdir(parents=True, exist_ok=True)
    parts = sections(study, plan, store, measured)
    values = to_dict(study, plan, measured, published, parts)
    values["teachers"] = teachers = {
        job.shown.removeprefix("teacher "): done["result"]["accuracy"]
        for job in plan.jobs.values()
        if job.kind == "teacher" and (done := store.done(job)) is not None
    }
    text = json.dumps(values, indent=1, allow_nan=False) + "\n"
    write_bytes(folder / "results.json", text.encode())
    grid = _grid(study, plan, store)
    figures = {part.title: svg(part.figure, alt=part.alt) for part in parts if part.figure}
    for title, drawn in figures.items():
        name = re.sub(r"[^a-z]+", "-", title.lower().replace("'", ""))
        write_bytes(folder / f"{name}.svg", drawn.encode())
    if grid:
        write_bytes(folder / "images.png", grid)
    context = _context(study, measured, published, parts, figures, grid, teachers)
    report = write_report(folder / "report.html", "study.html", context)
    lines = tuple(said(claim) for claim in claims(measured, parts))
    return StudyResult(folder, report, folder / "results.json", measured, lines)


def to_dict(
    study: Study,
    plan: Plan,
    measured: Measured,
    published: Published | None,
    parts: Sequence[Section] = (),
) -> dict[str, Any]:
    """Everything that was measured, as JSON values."""
    return {
        "study": study.name,
        "title": study.title,
        "scale": study.scale,
        "data": study.data.name,
        "complete": not measured.missing,
        "cells": [
            {
                "row": row,
                "column": column,
                "accuracies": list(cell.accuracies),
                "mean": cell.mean,
                "std": cell.std,
                "standard_error": cell.standard_error,
                "test_count": cell.test_count,
                "published": published.text(row, column) if published else "",
            }
            for (row, column), cell in measured.cells.items()
        ],
        "missing": [
            {"row": row, "column": column, "reason": why}
            for (row, column), why in measured.missing.items()
        ],
        "differences": [
            {
                "column": d.first.regime,
                "first": d.first.method,
                "second": d.second.method,
                "value": d.value,
                "half_width": d.half_width,
                "distinguishable": d.distinguishable,
            }
            for d in measured.judged
        ],
        "claims": claims(measured, parts),
        "histories": [
            {"row": row, "column": column, "seeds": curves}
            for (row, column), curves in measured.histories.items()
            if study.evaluations > 1
        ],
        "analyses": {
            part.title: {
                "note": part.note,
                "columns": list(part.columns),
                "rows": [list(row) for row in part.rows],
                "values": finite(part.values),
            }
            for part in parts
        },
        "failures": [{k: f[k] for k in ("job", "error")} for f in measured.failures],
        "seconds": round(measured.seconds, 1),
        "jobs": len(plan.jobs),
        "settings": study.to_dict(),
        "environment": measured.machines[0] if measured.machines else environment(),
        "machines": list(measured.machines),
        "command": command(study),
    }


def claims(measured: Measured, parts: Sequence[Section]) -> list[dict[str, Any]]:
    """Every claim of the paper that the study decides: says, shows (or None), numbers."""
    of_table: list[dict[str, Any]] = [
        {"says": f"{v.claim.says} ({v.column})", "shows": v.shows, "numbers": points(v)}
        for v in measured.verdicts
    ]
    of_table += [
        {"says": says, "shows": None, "numbers": "not measured"} for says in measured.unjudged
    ]
    return of_table + [asdict(claim) for part in parts for claim in part.claims]


def said(claim: dict[str, Any]) -> str:
    """A claim as a line."""
    words = {True: "shows", False: "does not show", None: "cannot be told"}
    return f"{claim['says']}: {words[claim['shows']]}; {claim['numbers']}."


def command(study: Study) -> str:
    """What makes the same study again."""
    which = study.name if study.name in shipped() else f"{study.name}.yaml"
    root = f" --root {shlex.quote(str(study.data.root))}" if study.data.root else ""
    return f"pyddfast study {which} --scale {study.scale}{root} --out OUT --seeds {study.seeds}"


def _context(
    study: Study,
    measured: Measured,
    published: Published | None,
    parts: Sequence[Section],
    figures: Mapping[str, str],
    grid: bytes,
    teachers: Mapping[str, float],
) -> dict[str, Any]:
    markup = require("markupsafe", "methods").Markup
    counts = {cell.test_count for cell in measured.cells.values()}
    spread = f"mean ± standard deviation over {study.seeds} seeds."
    results = list(measured.cells.values())
    small = len(results) <= _BARS
    figure = markup(
        svg(accuracy_figure(results), alt="Test accuracy of every cell")
        if results and small
        else ""
    )
    marks = [f"⚠ {row}, {col}: {why}" for (row, col), why in published.marks.items()] if published else []  # fmt: skip  # noqa: E501
    return {
        "title": f"{study.name}: {study.title}",
        "lead": _lead(study),
        "columns": measured.columns,
        "rows": [
            {
                "name": row,
                "cells": [_cell(measured, published, row, col) for col in measured.columns],
            }
            for row in measured.rows
        ],
        "table_note": (
            f"Per cent of {', '.join(f'{n:,}' for n in sorted(counts))} test images after the last "
            f"epoch: {'one seed.' if study.seeds == 1 else spread}"
            + (f" Below, as published: {published.of}." if published else "")
        ),
        "published_columns": published.columns if published else (),
        "published_rows": [
            {"name": row, "cells": [published.text(row, col) for col in published.columns]}
            for row in published.rows
        ]
        if published
        and not (
            set(published.columns) <= set(measured.columns)
            and published.rows.keys() <= set(measured.rows)
        )
        else [],
        "marks": marks,
        "accuracy_svg": figure,
        "claims_title": "What the paper claims" if study.name in shipped() else "Claims",
        "claims": [said(claim) for claim in claims(measured, parts)],
        "claims_note": (
            "Accuracies: t-tests on seeds and test images, Holm's correction over all of the "
            "table's, level 5 %, simultaneous intervals. A lead that chance could have made "
            "“cannot be told”; one said to be gone shows where no lead can be told from chance."
            + (" One student a cell has no spread, and tells nothing." if study.seeds == 1 else "")
        ),
        "sections": [
            {
                "title": part.title,
                "note": part.note,
                "columns": part.columns,
                "rows": part.rows,
                "svg": markup(figures.get(part.title, "")),
            }
            for part in parts
        ],
        "sets_note": (
            "The first images of every class, a row a class."
            if study.grid_class is None
            else f"The first five images of the class “{study.grid_class}”, a row a set."
        ),
        "sets_image": f"data:image/png;base64,{base64.b64encode(grid).decode()}" if grid else "",
        "failures": measured.failures,
        "missing": [f"{row}, {col}: {why}" for (row, col), why in measured.missing.items()],
        "notes": [
            *(f"Trained on all data: {n}, {percent(a)} %." for n, a in teachers.items()),
            *study.notes,
        ],
        "settings": json.dumps(study.to_dict(), indent=1),
        "seconds": f"{measured.seconds:,.0f}",
        "command": command(study),
        "environment": _environment(measured),
    }


def _environment(measured: Measured) -> list[tuple[str, str]]:
    """Versions and hardware of the jobs; several, where they were done in several places."""
    machines = measured.machines or (environment(),)
    names = dict.fromkeys(name for machine in machines for name in machine)
    found = {name: dict.fromkeys(str(m[name]) for m in machines if name in m) for name in names}
    return [(name, "; ".join(values)) for name, values in found.items()]


def _lead(study: Study) -> str:
    where = {
        "published": "with the paper's settings",
        "full": "scaled to full Fashion-MNIST",
        "smoke": "scaled to the embedded subset of Fashion-MNIST and to minutes: "
        "small networks, few epochs",
    }
    kind = "The paper's study" if study.name in shipped() else "A study of its own file"
    if kind.startswith("A study") and study.scale == "published":
        where["published"] = "with the settings below"
    return (
        f"{kind} {where[study.scale]}. Data here: {study.data.name}. Values below were "
        "measured in this run unless they are marked as published."
    )


def _cell(measured: Measured, published: Published | None, row: str, column: str) -> dict[str, str]:
    cell = measured.cells.get((row, column))
    if cell is None:
        text = measured.missing.get((row, column), "")
    else:
        text = percent(cell.mean) + ("" if cell.std is None else f" ± {percent(cell.std)}")
    known = published.text(row, column) if published else ""
    return {"text": text, "published": f"published {known}" if known else ""}


def _grid(study: Study, plan: Plan, store: Store) -> bytes:
    """The first images of each set of the smallest size, a PNG; empty where none are shown."""
    if "grid" not in study.show:
        return b""
    ipc = min(study.ipc)
    sets = {
        label: DistilledSet.load(store.folder(job) / "set")
        for (label, size), job in plan.sets.items()
        if size == ipc and store.done(job) is not None
    }
    if not sets:
        return b""
    if study.grid_class is not None:
        return png(method_grid(sets, study.grid_class))
    return png(sets_figure(sets, columns=5))
