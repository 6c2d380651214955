"""Tables on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from pyddfast.report import Result, differences, percent, summary

__all__ = ["new_table", "note", "print_table", "show_results"]


def show_results(results: Sequence[Result]) -> None:
    """The table of accuracies by set and regime, and which differences are more than chance."""
    cells = {(r.method, r.regime): r for r in results}
    regimes = list(dict.fromkeys(r.regime for r in results))
    table = new_table("Test accuracy (%), mean ± std over seeds", "set", *regimes)
    for method in dict.fromkeys(r.method for r in results):
        row = (cells[method, regime] for regime in regimes)
        table.add_row(method, *(f"{percent(r.mean)} ± {percent(r.std or 0.0)}" for r in row))
    print_table(table)
    worst = max(r.sampling_error for r in results)
    print(f"Test images leave a standard error of up to {percent(worst)} points on each.\n")
    for sentence in summary(differences(results), brief=True):
        print(f"- {sentence}")


def new_table(title: str, *columns: str) -> Table:
    """An empty table; its first column is text, the others numbers."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def print_table(table: Table) -> None:
    """Write a table to stdout; a terminal that is too narrow breaks its lines, none is cut."""
    whole = Console(width=10_000).measure(table).maximum
    Console(width=max(Console().width, whole)).print(table)


def note(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)
