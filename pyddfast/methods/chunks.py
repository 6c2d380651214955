"""Batches of images that are optimised together, and their files in a run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import Tensor

from pyddfast.data import write_bytes
from pyddfast.methods.job_folder import JobFolder
from pyddfast.train.distributed import Ranks

__all__ = ["Chunk", "ChunkStore", "Order", "plan_chunks"]

Order: TypeAlias = Literal["slot", "class"]


@dataclass(frozen=True)
class Chunk:
    """A batch that is optimised together.

    Attributes:
        index: Its number; keys its draws.
        labels: The class of each image.
        slots: Which image of its class each one is, in [0, ipc).
    """

    index: int
    labels: tuple[int, ...]
    slots: tuple[int, ...]


def plan_chunks(
    classes: Sequence[int], ipc: int, batch_size: int, order: Order = "slot"
) -> list[Chunk]:
    """The chunks in the official order.

    Args:
        classes: Labels.
        ipc: Images a class.
        batch_size: Images of a chunk, at most.
        order: ``"slot"`` (SRe2L and most others): all classes' first images, then the second ones;
            no chunk holds images of two slots, and its number does not depend on ``ipc``, so that a
            larger set begins with the smaller one.  ``"class"`` (G-VBSM, EDC): all images of a
            class, then those of the next.
    """
    if order == "slot":
        runs = [[(label, slot) for label in classes] for slot in range(ipc)]
    else:
        runs = [[(label, slot) for label in classes for slot in range(ipc)]]
    parts = [run[i : i + batch_size] for run in runs for i in range(0, len(run), batch_size)]
    return [
        Chunk(index, tuple(label for label, _ in part), tuple(slot for _, slot in part))
        for index, part in enumerate(parts)
    ]


class ChunkStore(JobFolder):
    """Finished chunks, the chunk that is being made, and the metrics of a run folder.

    Each process writes the files of its own chunks; rank 0 alone writes ``metrics.jsonl``, at the
    end once more for all.
    """

    def __init__(
        self, out: str | Path, config: Mapping[str, Any], ranks: Ranks, *, resume: bool
    ) -> None:
        super().__init__(out, config, ranks, resume=resume, parts="chunks", beside=("statistics",))

    def file(self, chunk: Chunk) -> Path:
        """Where a finished chunk lies."""
        return self.run.path / self._name(chunk)

    def finished(self, chunk: Chunk) -> tuple[Tensor, list[dict[str, Any]]] | None:
        """Images and metrics of a chunk, if they are there."""
        found = self.read(self._name(chunk))
        if found is None:
            return None
        self.run.remove(self._part(chunk))  # it may have been killed before it could
        return found[0]["images"], found[1]["rows"]

    def finish(self, chunk: Chunk, images: Tensor, rows: list[dict[str, Any]]) -> None:
        """Keep a finished chunk; its checkpoint goes."""
        self.write(self._name(chunk), {"images": images}, {"rows": rows})
        self.run.remove(self._part(chunk))

    def checkpoint(self, chunk: Chunk) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and state of an unfinished chunk, if they are there."""
        return self.read(self._part(chunk))

    def save_checkpoint(
        self, chunk: Chunk, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
    ) -> None:
        """Keep an unfinished chunk."""
        self.write(self._part(chunk), tensors, state)

    def forget_after(self, chunk: Chunk, step: int) -> None:
        """Drop the chunk's metrics after a step: they will come again."""
        if self.first:
            self.run.keep_metrics(lambda row: row["chunk"] != chunk.index or row["step"] <= step)

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row to the metrics, in the first process."""
        if self.first:
            self.run.log(row)

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Write all metrics anew, in the first process."""
        if self.first:
            text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
            write_bytes(self.run.path / "metrics.jsonl", text.encode())

    def _name(self, chunk: Chunk) -> str:
        return f"chunks/{chunk.index:06d}.safetensors"

    def _part(self, chunk: Chunk) -> str:
        return f"chunks/{chunk.index:06d}.part.safetensors"
