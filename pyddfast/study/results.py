"""What a study has measured: cells with their spread, and whether the paper's claims show."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from pyddfast.data.stored import read_json
from pyddfast.report.comparison import REGIMES
from pyddfast.report.tables import Difference, Result, compare
from pyddfast.study.jobs import Cell, Job, Plan
from pyddfast.study.runner import Store
from pyddfast.study.spec import Claim, Study
from pyddfast.study.steps import unpack_right

__all__ = [
    "NOT_DONE",
    "Measured",
    "Published",
    "Verdict",
    "column_of",
    "line_of",
    "measure",
    "points",
    "published_table",
]

NOT_DONE = "not done"


@dataclass(frozen=True)
class Verdict:
    """Whether a claim shows in one column.

    Attributes:
        claim: The claim.
        column: Of the table.
        difference: Of the two rows, the higher one first.
        shows: Whether it is as claimed, at the family's 5 %; None where neither it nor its opposite
            can be told: an expected lead that chance could have made, or one student a cell, whose
            spread over seeds nobody knows.
    """

    claim: Claim
    column: str
    difference: Difference
    shows: bool | None

    @property
    def value(self) -> float:
        """The claim's first row minus its second."""
        sign = 1 if self.difference.first.method == self.claim.first else -1
        return sign * self.difference.value


@dataclass(frozen=True)
class Measured:
    """What is there.

    Attributes:
        rows: Labels, in the study's order.
        columns: Names, in the study's order.
        cells: By (row, column).
        histories: Accuracy after each evaluation, a list a seed, by (row, column).
        judged: Every pair of rows within a column.
        verdicts: Of the claims.
        unjudged: Claims, with their column, that lack a cell.
        missing: Cells that have no result, with the reason.
        failures: Jobs that failed.
        seconds: Of all jobs together.
        machines: Versions and hardware of the jobs, each once, the longest at work first.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[tuple[str, str], Result]
    histories: dict[tuple[str, str], list[list[dict[str, float]]]]
    judged: tuple[Difference, ...]
    verdicts: tuple[Verdict, ...]
    unjudged: tuple[str, ...]
    missing: dict[tuple[str, str], str]
    failures: tuple[dict[str, Any], ...]
    seconds: float
    machines: tuple[dict[str, Any], ...]


def measure(study: Study, plan: Plan, store: Store) -> Measured:
    """Read what is done of a study; what is not done is missing, not an error."""
    cells: dict[tuple[str, str], Result] = {}
    histories: dict[tuple[str, str], list[list[dict[str, float]]]] = {}
    missing: dict[tuple[str, str], str] = {}
    names: dict[str, Cell] = {}
    for cell in plan.cells:
        name = column_of(study, cell)
        names.setdefault(name, cell)
        result = _result(cell, name, store)
        if isinstance(result, str):
            missing[cell.row, name] = result
            continue
        cells[cell.row, name] = result
        histories[cell.row, name] = [_history(jobs, store) for jobs in cell.students]
    columns = tuple(names)
    rows = tuple(dict.fromkeys(cell.row for cell in plan.cells))
    pairs = [
        (cells[a, column], cells[b, column])
        for column in columns
        for a, b in combinations(rows, 2)
        if (a, column) in cells and (b, column) in cells
    ]
    failures = [
        {"job": job.shown, "key": key, **{k: failed[k] for k in ("error", "traceback")}}
        for key, job in plan.jobs.items()
        if (failed := store.failed(job)) is not None
    ]
    finished = [found for job in plan.jobs.values() if (found := store.done(job)) is not None]
    asked = _asked(study, names)
    return Measured(
        rows,
        columns,
        cells,
        histories,
        tuple(compare(pairs)) if pairs else (),
        tuple(_verdicts(asked, cells)),
        tuple(_unjudged(study, asked, cells)),
        missing,
        tuple(failures),
        sum(float(found["seconds"]) for found in finished),
        _machines(finished),
    )


def _machines(finished: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    seconds: dict[str, float] = {}
    for found in finished:
        name = json.dumps(found["environment"])
        seconds[name] = seconds.get(name, 0.0) + float(found["seconds"])
    return tuple(json.loads(name) for name in sorted(seconds, key=lambda name: -seconds[name]))


def _history(jobs: tuple[Job, ...], store: Store) -> list[dict[str, float]]:
    """Accuracy after each evaluation of one seed, mean over the networks of the cell."""
    each = [found["result"]["history"] for job in jobs if (found := store.done(job)) is not None]
    return [
        {"epoch": at[0]["epoch"], "accuracy": sum(one["accuracy"] for one in at) / len(at)}
        for at in zip(*each, strict=True)
    ]


def column_of(study: Study, cell: Cell) -> str:
    """Name of the column of a cell: regime, size, and what else the study varies."""
    return _named(study, cell, f"{REGIMES[cell.regime]} IPC {cell.ipc}")


def line_of(study: Study, cell: Cell) -> str:
    """What the cells of all sizes have in common that are compared: regime and what else varies."""
    return _named(study, cell, REGIMES[cell.regime])


def _named(study: Study, cell: Cell, first: str) -> str:
    parts = [first]
    if len(study.learners) > 1 and cell.student != "mean":
        parts.append(cell.student)
    if len(study.teachers) > 1 and cell.teacher:
        parts.append(f"teacher {cell.teacher}")
    if len(study.budgets) > 1:
        parts.append(cell.budget)
    return ", ".join(parts)


def _result(cell: Cell, column: str, store: Store) -> Result | str:
    """Of all its students, or why there is none."""
    accuracies, right = [], []
    for jobs in cell.students:
        found = [store.done(job) for job in jobs]
        if any(one is None for one in found):
            if any(store.failed(job) for job in jobs):
                return "failed"
            left_out = any(_lacks(job, store) for job in jobs)
            return "left out: a job that it needs failed" if left_out else NOT_DONE
        results = [one["result"] for one in found if one is not None]
        if any(one["diverged"] for one in results):
            return f"diverged: the loss of {jobs[0].shown} was not finite"
        # Of the same predictions as the paired comparisons: the accuracy along the training comes
        # from fused operators, whose last bit can turn an image.
        bits = [unpack_right(one).double() for one in results]
        accuracies.append(float(torch.stack(bits).mean()))
        right += bits
    share = torch.stack(right).mean(0)
    return Result(cell.row, column, tuple(accuracies), len(share), tuple(share.tolist()))


def _lacks(job: Job, store: Store) -> bool:
    """Whether something that a job needs has failed."""
    needs = job.needs.values()
    return any(store.failed(need) is not None or _lacks(need, store) for need in needs)


def _asked(study: Study, columns: dict[str, Cell]) -> list[tuple[Claim, str]]:
    """Every claim with each of its columns."""
    return [
        (claim, name)
        for claim in study.claims
        for name, cell in columns.items()
        if cell.regime == claim.regime and (not claim.ipc or cell.ipc in claim.ipc)
    ]


def _judged(claim: Claim, column: str, cells: dict[tuple[str, str], Result]) -> bool:
    return (claim.first, column) in cells and (claim.second, column) in cells


def _verdicts(
    asked: list[tuple[Claim, str]], cells: dict[tuple[str, str], Result]
) -> list[Verdict]:
    """All claims judged together: Holm's correction is over all of their comparisons."""
    there = [(claim, name) for claim, name in asked if _judged(claim, name, cells)]
    if not there:
        return []
    judged = compare([(cells[c.first, name], cells[c.second, name]) for c, name in there])
    return [
        Verdict(claim, name, difference, _shows(claim, difference))
        for (claim, name), difference in zip(there, judged, strict=True)
    ]


def _unjudged(
    study: Study, asked: list[tuple[Claim, str]], cells: dict[tuple[str, str], Result]
) -> list[str]:
    lacking = [f"{c.says} ({name})" for c, name in asked if not _judged(c, name, cells)]
    nowhere = [claim.says for claim in study.claims if claim not in [c for c, _ in asked]]
    return lacking + nowhere


def _shows(claim: Claim, difference: Difference) -> bool | None:
    if difference.first.std is None and difference.second.std is None:
        return None
    leads = difference.first.method == claim.first
    if claim.expected == "not above":
        return not (leads and difference.distinguishable)
    if not difference.distinguishable:
        return None
    return leads


@dataclass(frozen=True)
class Published:
    """A table of the paper.

    Attributes:
        of: Data, network and unit.
        columns: As ours are named.
        rows: (value, spread or None) of each column, by row.
        marks: What contradicts the paper's own text or another table, by (row, column).
    """

    of: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[tuple[float, float | None], ...]]
    marks: dict[tuple[str, str], str]

    def text(self, row: str, column: str) -> str:
        """The cell as printed, ``⚠`` where it is marked; empty where there is none."""
        if row not in self.rows or column not in self.columns:
            return ""
        value, spread = self.rows[row][self.columns.index(column)]
        mark = " ⚠" if (row, column) in self.marks else ""
        return f"{value:.2f}" + ("" if spread is None else f" ± {spread:.2f}") + mark


def published_table(name: str) -> Published:
    """A table of ``published.json``.

    Raises:
        ValueError: There is none of this name.
    """
    tables = read_json(Path(__file__).with_name("published.json"))
    if name not in tables:
        raise ValueError(f"published must be one of {', '.join(tables)}, got {name!r}")
    found = tables[name]
    return Published(
        found["of"],
        tuple(found["columns"]),
        {row: tuple((v, s) for v, s in values) for row, values in found["rows"].items()},
        {(row, c): why for row, marks in found["marks"].items() for c, why in marks.items()},
    )


def points(verdict: Verdict) -> str:
    """The difference that a claim was judged by, in points, with its simultaneous interval."""
    claim = verdict.claim
    return (
        f"{claim.first} − {claim.second} = {100 * verdict.value:+.1f} ± "
        f"{100 * verdict.difference.half_width:.1f} points"
    )
