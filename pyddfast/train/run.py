"""A run is a folder: configuration, metrics, checkpoints and outputs; it survives ``kill -9``."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from pyddfast._extras import require
from pyddfast._version import __version__
from pyddfast.data.atomic import naming, remove_leftovers, write_bytes
from pyddfast.data.lock import lock_folder
from pyddfast.data.stored import pack_tensors, parse_json, read_json, read_tensors

__all__ = ["RunFolder", "environment"]

_CONFIG = "config.json"
METRICS = "metrics.jsonl"


def environment() -> dict[str, Any]:
    """What a run's bytes depend on beside its configuration: versions, threads, machine."""
    return {
        "pyddfast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
    }


def _cpu() -> str:
    """Model of the CPU, whose instruction set decides the kernels that torch takes."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)  # x86; not on every machine
    return model[1] if model else platform.processor() or platform.machine()


class RunFolder:
    """The folder of one run; opening it again resumes the run.

    Files appear whole or not at all (temporary file, fsync, rename); ``metrics.jsonl`` is appended
    to, and a line that a kill cut short is dropped on opening, as are temporary files.

    Only one process has it open at a time, until it is closed, forgotten, or the process ends.  As
    a context manager it is closed at the end of the block; if an exception ends the block before
    the run has written anything, a folder that was made for it is removed, so that the corrected
    call can have it.

    Args:
        path: a new or empty folder, or that of an earlier run with the same configuration.
        config: JSON values; with the environment it becomes ``config.json``.
        resume: False refuses any non-empty folder.
        shared: this process is one of a job whose first process has the folder open: it takes no
            lock and cleans nothing up.
        execution: facts that change bytes but not meaning (processes, precision ...), stored with
            the environment: resuming under others is warned of.  JSON values.

    Attributes:
        path: the folder.
        config: the configuration as stored.

    Raises:
        FileExistsError: the folder holds something that is not this run, or ``resume`` is False.
        BlockingIOError: another process has the folder open.
        ValueError: the folder's run has another configuration (the fields are named), its
            ``config.json`` is damaged, or a number of ``config`` is not finite.
        ModuleNotFoundError: safetensors, of the ``methods`` extra, is not installed: said now and
            not when there is something to write.
    """

    def __init__(
        self,
        path: str | Path,
        config: Mapping[str, Any],
        *,
        resume: bool = True,
        shared: bool = False,
        execution: Mapping[str, Any] | None = None,
    ) -> None:
        require("safetensors.torch", "methods")
        self.path = Path(path)
        for name, value in config.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value}")
        self.config: dict[str, Any] = json.loads(json.dumps(config, allow_nan=False))
        self._environment = {**environment(), **(execution or {})}
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path} exists and is not a folder")
        self._refuse_other()
        above = [p for p in (self.path, *self.path.parents) if not p.exists()]
        self._new: list[Path] = []  # what a failed start takes back, innermost first
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = None if shared else lock_folder(self.path)
        try:
            self._refuse_other()  # another process may have been here before the lock
            if not shared:
                remove_leftovers(self.path)
            if not self._entries():
                self._new = [self.path / _CONFIG, *above]
                self.write_json(_CONFIG, {"config": self.config, "environment": self._environment})
            elif not resume:
                raise FileExistsError(
                    f"the folder {self.path} holds a run; resume it (--resume, resume=True) or "
                    "give another"
                )
            else:
                self._compare()
                if not shared:
                    self._drop_cut_line()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Not after a kill or Ctrl-C: the run may go on.
        failed = isinstance(error, Exception) and set(self._entries()) <= {_CONFIG}
        if failed and self._new:
            (self.path / _CONFIG).unlink(missing_ok=True)
        self.close()
        if failed:
            for folder in self._new[1:]:
                try:
                    folder.rmdir()
                except OSError:
                    break  # somebody else's by now

    def close(self) -> None:
        """Let other processes have the folder."""
        self._lock = None

    def write_json(self, name: str, value: Any) -> Path:
        """Write a JSON file, whole or not at all."""
        text = json.dumps(value, indent=1, allow_nan=False) + "\n"
        write_bytes(self._file(name), text.encode())
        return self.path / name

    def read_json(self, name: str) -> Any | None:
        """Content of a JSON file, or None where there is none.

        Raises:
            ValueError: it is not JSON; the message names it.
        """
        file = self.path / name
        return read_json(file) if file.is_file() else None

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor], state: Any = None) -> Path:
        """Write tensors and a JSON state as one safetensors file with a checksum.

        It appears whole or not at all.  Equal content gives equal bytes.
        """
        write_bytes(self._file(name), pack_tensors(tensors, state))
        return self.path / name

    def read_tensors(self, name: str) -> tuple[dict[str, Tensor], Any] | None:
        """Tensors and state of a file that ``write_tensors`` wrote, or None where there is none.

        Raises:
            ValueError: the file is damaged; the message names it.
        """
        file = self.path / name
        return read_tensors(file) if file.is_file() else None

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``."""
        line = json.dumps(row, allow_nan=False) + "\n"
        path = self.path / METRICS
        with naming(path), path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """Every line of ``metrics.jsonl``.

        Raises:
            ValueError: one is not a JSON object; the message names file and line.
        """
        file = self.path / METRICS
        if not file.is_file():
            return []
        rows = []
        for number, line in enumerate(file.read_bytes().splitlines(), 1):
            row = parse_json(line, f"{file}, line {number},")
            if not isinstance(row, dict):
                raise ValueError(f"{file}, line {number}, is no JSON object: {row!r:.80}")
            rows.append(row)
        return rows

    def keep_metrics(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Rewrite ``metrics.jsonl`` with the wanted lines: what came after the checkpoint goes."""
        rows = self.metrics()
        kept = [row for row in rows if wanted(row)]
        if len(kept) < len(rows):
            text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept)
            write_bytes(self.path / METRICS, text.encode())

    def _entries(self) -> list[str]:
        if not self.path.is_dir():
            return []
        # Hidden: the lock, and what a kill leaves of a temporary file.
        return [entry.name for entry in self.path.iterdir() if not entry.name.startswith(".")]

    def _refuse_other(self) -> None:
        if self._entries() and not (self.path / _CONFIG).is_file():
            raise FileExistsError(
                f"the folder {self.path} is not empty and holds no run; give a new or an empty one"
            )

    def _file(self, name: str) -> Path:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    def _compare(self) -> None:
        stored = self.read_json(_CONFIG)
        if not isinstance(stored, dict) or not isinstance(stored.get("config"), dict):
            raise ValueError(f"{self.path / _CONFIG} is not the configuration of a run")
        differences = _differences(stored["config"], self.config)
        if differences:
            raise ValueError(
                f"{self.path} holds a run with another configuration: "
                + "; ".join(differences[:5])
                + "; give another folder"
            )
        changed = _differences(stored.get("environment", {}), self._environment)
        if changed:
            warnings.warn(
                f"resuming {self.path} under another environment, equal bytes are not promised: "
                + "; ".join(changed),
                stacklevel=4,
            )

    def _drop_cut_line(self) -> None:
        file = self.path / METRICS
        if not file.is_file():
            return
        content = file.read_bytes()
        if content and not content.endswith(b"\n"):
            write_bytes(file, content[: content.rfind(b"\n") + 1])


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(old.keys() | new.keys()):
            path = f"{where}.{key}" if where else key
            found += _differences(old.get(key), new.get(key), path)
        return found
    return [] if old == new else [f"{where} was {old!r}, now {new!r}"]
