"""The baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pyddfast.cli.coresets.options import CoresetOptions, picked
from pyddfast.cli.options import DataOptions, Flat
from pyddfast.coresets import Selection, random_scores, select

__all__ = ["coreset_random"]


def coreset_random(
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    *,
    out: Path,
    ipc: int = 10,
    image_size: int | None = None,
    seed: int = 0,
    resume: bool = False,
    png: bool = False,
) -> None:
    """Pick images at random, the same number of every class.

    Args:
        data: Which data.
        out: Run folder; the set goes to OUT/set, the picks to OUT/selection.npz.
        ipc: Images a class.
        image_size: Side in pixels that images of a folder are resized and cut to.
        seed: Seed of the choice.
        resume: Go on with the stopped run in OUT.
        png: Write every image to OUT/png as well.
    """
    source = data.load("train", image_size)

    def pick() -> Selection:
        scores = random_scores(len(source), seed=seed)
        classes = source.num_classes
        return select(scores, source.labels, ipc=ipc, num_classes=classes, method="random")

    to = CoresetOptions(out, ipc, image_size, seed, resume, png)
    picked("random", to, data, source, pick, {})
