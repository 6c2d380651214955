"""Progress with remaining time: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["progress"]

# Elsewhere than on a terminal: often enough to see that it lives, seldom enough for a log.
_LINE_SECONDS = 30.0

# The display in use: rich allows one at a time, so a stage inside a stage becomes a row of it.
_display: Any = None


@contextmanager
def progress(
    description: str, total: int, *, enabled: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show a stage's progress on stderr.

    On a terminal: a bar with the remaining time (needs ``rich``).  Elsewhere: a line with the
    remaining time every half minute, and one when the stage ends.

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
        yield _Lines(description, total).advance if enabled else lambda n: None
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


class _Lines:
    """Lines of progress for logs."""

    def __init__(self, description: str, total: int) -> None:
        self.description, self.total, self.done = description, total, 0
        self.began = self.said = time.monotonic()

    def advance(self, n: int) -> None:
        self.done += n
        now = time.monotonic()
        if now - self.said < _LINE_SECONDS or not self.done:
            return
        self.said = now
        left = (now - self.began) / self.done * (self.total - self.done)
        print(
            f"{self.description}: {self.done:,} of {self.total:,}, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )


def _rich() -> Any:
    try:
        import rich.progress
    except ModuleNotFoundError:
        return None
    return rich.progress


def _stderr_console() -> Any:
    from rich.console import Console

    return Console(stderr=True)
