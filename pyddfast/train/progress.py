"""Progress with remaining time on a terminal; one line a stage elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["progress"]

# The display in use: rich allows one at a time, so a stage inside a stage becomes a row of it.
_display: Any = None


@contextmanager
def progress(
    description: str, total: int, *, enabled: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show a stage's progress on stderr.

    On a terminal: a bar with the remaining time (needs ``rich``).  Elsewhere: one line when the
    stage ends.

    Args:
        description: of the stage.
        total: units of work.
        enabled: False shows nothing.

    Yields:
        ``advance(n)``, to be called when n more units are done.
    """
    global _display
    began = time.monotonic()
    rich = _rich() if enabled and sys.stderr.isatty() else None
    if rich is None:
        yield lambda n: None
        if enabled:
            seconds = time.monotonic() - began
            print(f"{description}: {seconds:.1f} s", file=sys.stderr, flush=True)
        return
    owner = _display is None
    if owner:
        _display = rich.Progress(
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TimeElapsedColumn(),
            rich.TimeRemainingColumn(),
            console=_stderr_console(),
        )
        _display.start()
    display = _display
    task = display.add_task(description, total=total)
    try:
        yield lambda n: display.advance(task, n)
    finally:
        if owner:
            display.stop()
            _display = None
        else:
            display.remove_task(task)


def _rich() -> Any:
    try:
        import rich.progress
    except ModuleNotFoundError:
        return None
    return rich.progress


def _stderr_console() -> Any:
    from rich.console import Console

    return Console(stderr=True)
