"""What the generative methods share: processes, run folder, progress, and images batch by batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from pyddfast.data import ImageSource
from pyddfast.data.ahead import ahead, default_workers
from pyddfast.methods.chunks import Chunk
from pyddfast.methods.job_folder import JobFolder
from pyddfast.methods.recover import Job
from pyddfast.train.distributed import divide, join_ranks

__all__ = ["Generation", "views"]

# Decoded images that wait for the encoder, beside the limit in bytes.
_WAITING = 64


class Generation:
    """A job of this process and its fellows.  A context manager: the run folder is its own.

    Args:
        facts: JSON values that name the job.
        job: Where and how.
        beside: Folder in the run folder where the method's first stage writes.
        parts: How many parts (classes, phases) the first stage has.
        chunks: All batches of images of the second stage, in the set's order.

    Attributes:
        ranks: The processes.
        store: The run folder, None without one.
        parts: Numbers of this process's parts.
        chunks: This process's batches.
        images: How many images they have.

    Raises:
        ValueError: Several processes have no run folder, or it belongs to another job.
        FileExistsError: The run folder holds something else.
    """

    def __init__(
        self,
        facts: Mapping[str, Any],
        job: Job,
        *,
        beside: str,
        parts: int,
        chunks: Sequence[Chunk],
    ) -> None:
        self.ranks, self._job = join_ranks(), job
        rank, world = self.ranks.rank, self.ranks.world
        if world > 1 and job.out is None:
            raise ValueError(f"job.out must be given where {world} processes share the work")
        self._all = chunks
        self.parts = range(parts)[divide(parts, world)[rank]]
        self.chunks = chunks[divide(len(chunks), world)[rank]]
        self.images = sum(len(chunk.labels) for chunk in self.chunks)
        self._opened, self._done, self._total, self._saved = ExitStack(), 0, 0, time.perf_counter()
        self.store: JobFolder | None = None
        if job.out is not None:
            self.store = JobFolder(
                job.out, facts, self.ranks, resume=job.resume, parts="images", beside=(beside,)
            )

    def __enter__(self) -> Generation:
        if self.store is not None and self.store.first:
            self._opened.enter_context(self.store.run)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.__exit__(kind, error, trace)

    def expect(self, total: int) -> None:
        """How many steps this process has to do in all."""
        self._total = total

    def advance(self, steps: int) -> None:
        """So many steps are done."""
        self._done += steps
        if self._job.on_progress is not None:
            self._job.on_progress(self._done, self._total)

    def due(self) -> bool:
        """Whether a checkpoint has to be written now; counts from the last one that was."""
        now = time.perf_counter()
        if self.store is None or now - self._saved < self._job.checkpoint_seconds:
            return False
        self._saved = now
        return True

    def generate(self, make: Callable[[Chunk], Tensor], steps: int) -> Tensor:
        """Make the batches of this process that are not there yet, collect those of all.

        Args:
            make: From a batch to its images, uint8 (B, C, S, S).
            steps: Progress of an image.

        Returns:
            All images in the order of the chunks; every process gets them.
        """
        made: dict[int, Tensor] = {}
        for chunk in self.chunks:
            found = None if self.store is None else self.store.read(_name(chunk))
            if found is None:
                images = make(chunk)
                if self.store is None:
                    made[chunk.index] = images
                else:
                    self.store.write(_name(chunk), {"images": images}, {})
            self.advance(steps * len(chunk.labels))
        if self.store is not None:
            self.ranks.wait()
            for chunk in self._all:
                made[chunk.index] = self.store.need(_name(chunk))[0]["images"]
            self.ranks.wait()
        return torch.cat([made[chunk.index] for chunk in self._all])


def views(
    data: ImageSource, indices: Sequence[int], view: Callable[[Tensor, int], Tensor], size: int
) -> Iterator[Tensor]:
    """Images of a data set as ``view(image, size)``, decoded in threads a little ahead."""
    held = isinstance(getattr(data, "images", None), Tensor)
    workers = 0 if held else default_workers()
    made = ahead(lambda index: view(data[index], size), indices, workers=workers, most=_WAITING)
    for _, image in made:
        assert isinstance(image, Tensor)  # what cannot be read has raised
        yield image


def _name(chunk: Chunk) -> str:
    return f"images/{chunk.index:06d}.safetensors"
