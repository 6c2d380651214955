"""The stages of a long run: each done once, timed, told."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from pyddfast.train import RunFolder

__all__ = ["Stages"]


class Stages:
    """What a run has done, in order.

    Args:
        folder: Run folder; its ``metrics.jsonl`` keeps a row a finished stage.
        show: A line a stage on stderr.
        advance: Told the units of each stage when it ends.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        show: bool = True,
        advance: Callable[[int], None] = lambda units: None,
    ) -> None:
        self.folder, self.show, self.advance = folder, show, advance
        self.done: dict[str, dict[str, Any]] = {
            row["stage"]: row for row in folder.metrics() if "stage" in row
        }

    def run(self, name: str, work: Callable[[], str], *, units: int = 0) -> None:
        """Do a stage, and keep its time if it was not finished before.

        Args:
            name: Of the stage.
            work: Does it, or reads what an earlier run left; returns what there is to say.
            units: For the progress of the whole.
        """
        began = time.perf_counter()
        said = work()
        seconds = time.perf_counter() - began
        if name in self.done:
            said += ", done before"
        else:
            self.done[name] = {"stage": name, "seconds": round(seconds, 3), "result": said}
            self.folder.log(self.done[name])
            said += f", {seconds:.1f} s"
        if self.show:
            print(f"{name}: {said}", file=sys.stderr, flush=True)
        self.advance(units)

    @property
    def bars(self) -> bool:
        """Whether stages show bars of their own: only on a terminal."""
        return self.show and sys.stderr.isatty()

    @property
    def seconds(self) -> float:
        """Time of all stages."""
        return float(sum(row["seconds"] for row in self.done.values()))

    def table(self) -> list[dict[str, str]]:
        """Rows of the page's table of times; the last is their sum."""
        rows = [(name, float(row["seconds"])) for name, row in self.done.items()]
        rows.append(("all", self.seconds))
        return [{"name": name, "seconds": f"{seconds:.1f}"} for name, seconds in rows]
