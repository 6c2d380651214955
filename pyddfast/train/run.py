"""A run is a folder: configuration, metrics, checkpoints and outputs; it survives ``kill -9``."""

from __future__ import annotations

import json
import os
import platform
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyddfast._extras import require
from pyddfast._version import __version__
from pyddfast.data.atomic import write_bytes

__all__ = ["RunFolder", "environment"]

_CONFIG = "config.json"
_METRICS = "metrics.jsonl"


def environment() -> dict[str, Any]:
    """What a run's bytes depend on beside its configuration: versions, threads, machine."""
    return {
        "pyddfast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
    }


class RunFolder:
    """The folder of one run; opening it again resumes the run.

    Files appear whole or not at all (temporary file, fsync, rename); ``metrics.jsonl`` is appended
    to, and a line that a kill cut short is dropped on opening.

    Args:
        path: a new or empty folder, or that of an earlier run with the same configuration.
        config: JSON values; with the environment it becomes ``config.json``.
        resume: False refuses any non-empty folder.

    Attributes:
        path: the folder.
        config: the configuration as stored.

    Raises:
        FileExistsError: the folder holds something that is not this run, or ``resume`` is False.
        ValueError: the folder's run has another configuration (the fields are named), or its
            ``config.json`` is damaged.
    """

    def __init__(self, path: str | Path, config: Mapping[str, Any], *, resume: bool = True) -> None:
        self.path = Path(path)
        self.config: dict[str, Any] = json.loads(json.dumps(config, allow_nan=False))
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path} exists and is not a folder")
        leftovers = self._entries()
        if leftovers and not (self.path / _CONFIG).is_file():
            raise FileExistsError(
                f"the folder {self.path} is not empty and holds no run; give a new or an empty one"
            )
        if leftovers and not resume:
            raise FileExistsError(f"the folder {self.path} holds a run; resume it or give another")
        if leftovers:
            self._compare()
            self._drop_cut_line()
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            self.write_json(_CONFIG, {"config": self.config, "environment": environment()})

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
        if not file.is_file():
            return None
        try:
            return json.loads(file.read_bytes())
        except ValueError as error:
            raise ValueError(f"{file} is not valid JSON: {error}") from error

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor], state: Any = None) -> Path:
        """Write tensors and a JSON state as one safetensors file, whole or not at all.

        Equal content gives equal bytes.
        """
        safetensors = require("safetensors.torch", "methods")
        # One metadata entry: the order of several is not fixed by the format's writer.
        metadata = None if state is None else {"state": json.dumps(state, allow_nan=False)}
        # Clones: tied parameters share memory, which the format refuses.
        content: bytes = safetensors.save(
            {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, metadata
        )
        write_bytes(self._file(name), content)
        return self.path / name

    def read_tensors(self, name: str) -> tuple[dict[str, Tensor], Any] | None:
        """Tensors and state of a file that ``write_tensors`` wrote, or None where there is none.

        Raises:
            ValueError: the file is damaged; the message names it.
        """
        file = self.path / name
        if not file.is_file():
            return None
        safetensors = require("safetensors", "methods")
        try:
            with safetensors.safe_open(str(file), framework="pt") as opened:
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
                state = (opened.metadata() or {}).get("state")
            return tensors, None if state is None else json.loads(state)
        except Exception as error:
            # safetensors raises its own type; every cause here is a damaged file.
            raise ValueError(f"{file} is damaged: {error}") from error

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``."""
        with (self.path / _METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """Every line of ``metrics.jsonl``."""
        file = self.path / _METRICS
        if not file.is_file():
            return []
        rows = []
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{file}, line {number}, is not valid JSON: {error}") from error
        return rows

    def keep_metrics(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Rewrite ``metrics.jsonl`` with the wanted lines: what came after the checkpoint goes."""
        rows = self.metrics()
        kept = [row for row in rows if wanted(row)]
        if len(kept) < len(rows):
            text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept)
            write_bytes(self.path / _METRICS, text.encode())

    def _entries(self) -> list[str]:
        if not self.path.is_dir():
            return []
        # A kill can leave a temporary file of write_bytes; it is hidden and never read.
        return [entry.name for entry in self.path.iterdir() if not entry.name.startswith(".")]

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
        changed = _differences(stored.get("environment", {}), environment())
        if changed:
            warnings.warn(
                f"resuming {self.path} under another environment, equal bytes are not promised: "
                + "; ".join(changed),
                stacklevel=4,
            )

    def _drop_cut_line(self) -> None:
        file = self.path / _METRICS
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
