"""A set whose images occur several times each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pyddfast.cli.coresets.options import CoresetOptions, picked
from pyddfast.cli.options import DataOptions, Flat
from pyddfast.cli.score import at
from pyddfast.coresets import Selection, repeated
from pyddfast.data import ImageDataset, ImageFolder
from pyddfast.data.digest import data_digest
from pyddfast.data.stored import read_json

__all__ = ["coreset_repeated"]


def coreset_repeated(
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    *,
    coreset: Path,
    out: Path,
    times: int = 2,
    keep_size: bool = False,
    resume: bool = False,
    png: bool = False,
) -> None:
    """Repeat the images of a finished "pyddfast coreset", to see what an objective makes of it.

    Args:
        data: The data that was picked from.
        coreset: Run folder of that command.
        out: Run folder; the set goes to OUT/set, the picks to OUT/selection.npz.
        times: How often each image occurs.
        keep_size: Keep the number of images, with the first 1/TIMES of each class's picks.
        resume: Go on with the stopped run in OUT.
        png: Write every image to OUT/png as well.
    """
    file, facts = coreset / "selection.npz", coreset / "config.json"
    for needed in (file, facts):
        if not needed.is_file():
            raise FileNotFoundError(
                f"{needed} is missing; --coreset takes a finished run of pyddfast coreset"
            )
    config = at(read_json(facts), "config")
    ipc, side, seed = (at(config, name) for name in ("ipc", "image_size", "seed"))
    if not isinstance(ipc, int) or not isinstance(seed, int):
        raise ValueError(f"{facts} is not of a run of pyddfast coreset")
    source = _source(data, side, at(config, "dataset", "sha256"), coreset)
    base = Selection.load(file)
    chosen = repeated(base, source.labels, times=times, keep_size=keep_size)
    to = CoresetOptions(out, ipc, side, seed, resume, png)
    options = {
        "of": at(config, "task"),
        "picks": base.indices.tolist(),
        "times": times,
        "keep_size": keep_size,
    }
    picked("repeated", to, data, source, lambda: chosen, options)


def _source(
    data: DataOptions, side: int | None, digest: object, coreset: Path
) -> ImageDataset | ImageFolder:
    """The data, if they are those of the run: as files, or as the pixels that a training held."""
    source = data.load("train", side)
    if data_digest(source) != digest and isinstance(source, ImageFolder):
        source = source.resident()
    if data_digest(source) != digest:
        raise ValueError(f"{coreset} picked from other images or labels than the data set given")
    return source
