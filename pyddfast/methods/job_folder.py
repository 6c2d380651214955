"""The run folder of a job that several processes share, and the parts that they finish in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pyddfast.data.atomic import remove_leftovers
from pyddfast.train.distributed import Ranks
from pyddfast.train.run import RunFolder

__all__ = ["JobFolder"]


class JobFolder:
    """A run folder that every rank has open; the first one holds its lock.

    Args:
        out: The folder, as for :class:`RunFolder`.
        config: As for :class:`RunFolder`; parts of a job with another one are refused.
        ranks: The processes; all of them open the folder.
        resume: As for :class:`RunFolder`.
        parts: Name of the folder in it where the parts go.
        beside: Names of other folders in it that are written to.

    Attributes:
        run: The run folder.
        first: Whether this is the first process.
        key: SHA-256 of the configuration.
    """

    def __init__(
        self,
        out: str | Path,
        config: Mapping[str, Any],
        ranks: Ranks,
        *,
        resume: bool,
        parts: str,
        beside: tuple[str, ...] = (),
    ) -> None:
        self.first = ranks.rank == 0
        if self.first:
            self.run = RunFolder(out, config, resume=resume)
            for folder in (parts, *beside):
                remove_leftovers(self.run.path / folder)
        ranks.wait()
        if not self.first:
            self.run = RunFolder(out, config, shared=True)
        ranks.wait()
        text = json.dumps(self.run.config, sort_keys=True)
        self._parts = parts
        self.key = hashlib.sha256(text.encode()).hexdigest()

    def read(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and state of a file, None where there is none.

        Raises:
            ValueError: It is damaged, of another job or another part; the message names it.
        """
        found = self.run.read_tensors(name)
        if found is None:
            return None
        tensors, state = found
        if not isinstance(state, dict) or state.get("key") != self.key:
            raise ValueError(f"{self.run.path / name} belongs to a job with another configuration")
        if state.get("name") != name:  # moved: it would pass for another part of the same job
            raise ValueError(f"{self.run.path / name} was written as {state.get('name')}")
        return tensors, state

    def need(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As :meth:`read`, of a part that this process or another one has finished.

        Raises:
            ValueError: As there, or the file is gone.
        """
        found = self.read(name)
        if found is None:
            raise ValueError(f"{self.run.path / name} has disappeared")
        return found

    def write(self, name: str, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write a file, whole or not at all.

        Raises:
            OSError: It could not be written, e.g. because the disk is full.
        """
        try:
            self.run.write_tensors(name, tensors, {"key": self.key, "name": name, **state})
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}; finished {self._parts} are kept, the same call continues",
                str(self.run.path / name),
            ) from error
