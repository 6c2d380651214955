"""Options and steps that the commands of coresets share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyddfast.cli.options import DataOptions, ModelOptions, TeacherOptions, plain
from pyddfast.cli.sets import make_set
from pyddfast.coresets import Embedding, Scores, Selection, embed, select
from pyddfast.data import DistilledSet, ImageDataset, ImageFolder
from pyddfast.train.distributed import Ranks, join_ranks

__all__ = ["CoresetOptions", "embedded", "highest", "picked"]


@dataclass(frozen=True)
class CoresetOptions:
    """The set to make, and where.

    Attributes:
        out: Run folder; the set goes to OUT/set, the picks to OUT/selection.npz.
        ipc: Images a class.
        image_size: Side in pixels that images of a folder are resized and cut to.
        seed: Seed of the networks that score, and of random choices.
        resume: Go on with the stopped run in OUT.
        png: Write every image to OUT/png as well.
        device: cpu or cuda; default CUDA where there is one.
    """

    out: Path
    ipc: int = 10
    image_size: int | None = None
    seed: int = 0
    resume: bool = False
    png: bool = False
    device: str | None = None

    def facts(self) -> dict[str, Any]:
        """What a resumed run has to agree in."""
        return {"ipc": self.ipc, "image_size": self.image_size, "seed": self.seed}


def highest(
    name: str,
    to: CoresetOptions,
    data: DataOptions,
    model: ModelOptions,
    scores: Callable[[ImageDataset], Scores],
    options: dict[str, Any],
    *,
    lowest: bool = False,
    ranks: Ranks | None = None,
) -> None:
    """A coreset of the highest (or lowest) scores of each class, by networks that are trained."""
    source = data.resident("train", to.image_size)

    def pick() -> Selection:
        return select(
            scores(source),
            source.labels,
            strategy="bottomk" if lowest else "topk",
            ipc=to.ipc,
            num_classes=source.num_classes,
            method=name,
        )

    picked(name, to, data, source, pick, {**options, **plain(model)}, ranks=ranks)


def embedded(
    name: str,
    to: CoresetOptions,
    data: DataOptions,
    network: TeacherOptions,
    pick: Callable[[Embedding], Selection],
    options: dict[str, Any],
) -> None:
    """A coreset from one pass of a trained network over the data."""
    ranks = network.ranks()
    network.check()
    source = data.load("train", to.image_size)

    def make() -> Selection:
        known = network.get(data, to.image_size, to.out, to.seed, to.device)
        meta = {
            "network": known.record["config"]["model"],
            "epochs": known.record["epochs"],
            "accuracy": known.record["accuracy"],
        }
        return pick(
            embed(
                source,
                known.model,
                meta=meta,
                out=to.out / "embedding",
                ranks=ranks,
                progress=ranks.first,
            )
        )

    picked(name, to, data, source, make, {**options, **plain(network)}, ranks=ranks)


def picked(
    name: str,
    to: CoresetOptions,
    data: DataOptions,
    source: ImageDataset | ImageFolder,
    pick: Callable[[], Selection],
    options: dict[str, Any],
    *,
    ranks: Ranks | None = None,
) -> None:
    """The set of picks, and the picks themselves, in a run folder.

    ``pick`` runs in every process of ``torchrun``: they share the trainings.
    """
    if ranks is None:
        ranks = join_ranks()
    if not 0 <= to.seed < 2**64:
        raise ValueError(f"--seed must lie in [0, 2**64), got {to.seed}")
    facts = {"task": f"coreset {name}", **to.facts(), **options, **plain(data)}

    def make() -> DistilledSet:
        selection = pick()
        if ranks.first:
            selection.save(to.out / "selection.npz")
        return selection.to_distilled(source)

    make_set(to.out, facts, source, to.ipc, make, resume=to.resume, png=to.png, ranks=ranks)
