"""Sets as they were along a synthesis: what its accuracy over time is measured on."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from pyddfast.data import DistilledSet
from pyddfast.data.stored import read_tensors
from pyddfast.train.run import RunFolder

__all__ = ["check_snapshots", "keep_snapshot", "snapshots"]

_FOLDER = "snapshots"
_FILE = re.compile(r"(\d{8})\.safetensors")


def check_snapshots(every: int | None) -> None:
    """Raise unless it is None or a positive int."""
    if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        raise ValueError(f"snapshot_every must be a positive int, got {every!r}")


def keep_snapshot(
    run: RunFolder, done: int, every: int | None, state: Callable[[], Mapping[str, Tensor]]
) -> None:
    """Write ``images`` (and ``labels``, ``lr`` where they are learned) if it is time to."""
    if every is None or done % every:
        return
    tensors = state()
    kept = {name: tensors[name].detach() for name in ("images", "labels", "lr") if name in tensors}
    run.write_tensors(f"{_FOLDER}/{done:08d}.safetensors", kept)


def snapshots(run: str | Path, made: DistilledSet) -> dict[int, DistilledSet]:
    """The set after so many iterations, for a run with ``snapshot_every``.

    Args:
        run: Its folder (of a command's: OUT/matching).
        made: The finished set, for classes and normalisation.

    Returns:
        By iterations (of DC and DSA: updates of the images), ascending.

    Raises:
        FileNotFoundError: The run kept none.
        ValueError: A file is damaged, or of other images than ``made``.
    """
    folder = Path(run) / _FOLDER
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    found = {}
    for file in files:
        match = _FILE.fullmatch(file.name)
        if match is None:
            continue
        tensors, _ = read_tensors(file)
        images = tensors.get("images")
        if images is None or images.shape != made.images.shape:
            raise ValueError(f"{file} is no snapshot of this set, {tuple(made.images.shape)}")
        labels, lr = tensors.get("labels"), tensors.get("lr")
        soft = labels if labels is not None and labels.is_floating_point() else None
        found[int(match[1])] = replace(
            made,
            images=images.to(made.images.dtype),
            soft_labels=made.soft_labels if soft is None else soft,
            lr=made.lr if lr is None else float(lr),
        )
    if not found:
        raise FileNotFoundError(f"{folder} holds no snapshots: run with snapshot_every")
    return found
