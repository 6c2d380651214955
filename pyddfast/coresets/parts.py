"""A pass over a data set in parts: each is kept as it is done, and processes share them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyddfast.train import RunFolder
from pyddfast.train import progress as show_progress
from pyddfast.train.distributed import Ranks

__all__ = ["in_parts"]


def in_parts(
    name: str,
    work: Callable[[int, int], dict[str, Tensor]],
    count: int,
    part: int,
    *,
    config: Mapping[str, Any],
    out: str | Path | None,
    ranks: Ranks,
    progress: bool,
) -> dict[str, Tensor]:
    """Rows of all samples, part by part.

    Args:
        name: What progress is shown of.
        work: From samples [start, stop) to tensors of so many rows, on the CPU.
        count: Samples, at least one.
        part: Samples of a part: what a kill loses at most, a process.
        config: What the rows depend on, for the run folder.
        out: Run folder of the parts: a stopped pass goes on, a finished one is read; None: they
            are kept in memory only.
        ranks: The processes of the job, each of which does its share of the parts; needs ``out``.
        progress: Show it on stderr.

    Returns:
        The tensors of ``work``, of all samples in their order; the same bytes whatever was stopped
        and however many processes there are.

    Raises:
        ValueError: There are several processes and no ``out``, or ``out`` holds another run or a
            damaged file.
    """
    if ranks.world > 1 and out is None:
        raise ValueError("several processes need out=, the folder that they share")
    starts = range(0, count, part)
    parts: dict[int, dict[str, Tensor]] = {}
    with ExitStack() as stack:
        run = None
        if out is not None and ranks.first:
            run = stack.enter_context(RunFolder(out, config))
        ranks.wait()
        if out is not None and not ranks.first:
            run = RunFolder(out, config, shared=True)
        advance = stack.enter_context(show_progress(name, count, enabled=progress and ranks.first))
        for number, start in enumerate(starts):
            stop = min(start + part, count)
            if number % ranks.world == ranks.rank:
                rows = None if run is None else _read(run, number)
                if rows is None:
                    rows = work(start, stop)
                    if run is not None:
                        run.write_tensors(_name(number), rows)
                if ranks.world == 1:
                    parts[number] = rows
            advance(stop - start)
        ranks.wait()
        for number in range(len(starts)):
            if number not in parts:
                assert run is not None
                found = _read(run, number)
                assert found is not None
                parts[number] = found
    return {key: torch.cat([parts[k][key] for k in range(len(starts))]) for key in parts[0]}


def _name(number: int) -> str:
    return f"part-{number:05d}.safetensors"


def _read(run: RunFolder, number: int) -> dict[str, Tensor] | None:
    found = run.read_tensors(_name(number))
    return None if found is None else found[0]
