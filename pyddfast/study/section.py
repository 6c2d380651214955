"""A part of a report: a table, a figure, values, and what it says of the paper's claims."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Finding", "Section", "ends"]


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


def ends(interval: tuple[float, float], digits: int = 2) -> str:
    """An interval as text; one seed has none."""
    if any(math.isnan(end) for end in interval):
        return "[no interval]"
    return f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"
