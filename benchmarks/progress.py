"""What a run has measured so far, on the disk after every case: an interruption loses one case."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.schema import write

Record = dict[str, Any]


class Progress:
    """The state of a run.

    Attributes:
        path: Its file, beside the result's; None: kept in memory.
        result: What has been measured, as a result file has it.
        done: Names of the cases in it.
        left: Names of the cases that this call did not begin.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.result: Record = {}
        self.done: list[str] = []
        self.left: list[str] = []
        self._asked: Record = {}

    def begin(self, asked: Record) -> bool:
        """Whether an earlier call with the same settings has left its results, which stand now.

        Raises:
            ValueError: The file is of a run with other settings, or no such file.
        """
        self._asked = asked
        if self.path is None or not self.path.exists():
            return False
        try:
            state = json.loads(self.path.read_text())
            before, self.result, self.done = state["asked"], state["result"], state["done"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is not what a run has left: {error!r}") from error
        if differing := [name for name in asked if before.get(name) != asked[name]]:
            raise ValueError(
                f"{self.path} was left by a run with other {', '.join(differing)}: delete it, or "
                "name another --out"
            )
        return True

    def save(self, name: str | None = None) -> None:
        """Writes the result, to which the case of this name has been added."""
        self.done += [name] if name else []
        if self.path is not None:
            state = {"asked": self._asked, "done": self.done, "result": self.result}
            write(state, self.path)
