"""The subsets that DCS is measured over: coresets of several kinds and sizes, and their doubles.

Supplement §7.2 of "Rethinking Dataset Distillation": subsets of seven sizes by EL2N, EL2N along a
Pareto sweep, CAL and GraphCut; the extremely poor ones are left out at each size, and each one that
stays also comes with every element twice.  158 points remain.  With one subset of EL2N (easiest),
ten windows, CAL and GraphCut at each of seven sizes there are 91, of which twelve have to go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyddfast.coresets import Embedding, Scores, Selection, graph_cut, repeated, select, windows
from pyddfast.coresets.cal import cal_scores
from pyddfast.coresets.selection import check_ipc
from pyddfast.coresets.windows import OFFSETS
from pyddfast.data import ImageDataset, ImageFolder
from pyddfast.data.folder import Listing

__all__ = [
    "DCS_IPCS",
    "LEAST",
    "Subset",
    "SubsetPool",
    "dcs_subsets",
    "largest_error",
    "subset_images",
]

# Seven sizes from 10 to 700, as the paper says; those between are ours.
DCS_IPCS = (10, 20, 50, 100, 200, 400, 700)
# Of the best subset's accuracy above chance at its size; less is "extremely poor".
LEAST = 0.5


@dataclass(frozen=True, eq=False)
class Subset:
    """One point of DCS.

    Attributes:
        name: Family, size and, of a double, ``-x2``.
        family: ``el2n``, ``el2n-pareto``, ``cal`` or ``graph-cut``.
        ipc: Different images of each class; a double has twice as many rows.
        selection: Its picks.
        parent: Name of the subset that it repeats, or its own: they depend on each other, so this
            is its group for the bootstrap of DCS.
    """

    name: str
    family: str
    ipc: int
    selection: Selection
    parent: str


@dataclass(frozen=True, eq=False)
class SubsetPool:
    """All points.

    Attributes:
        subsets: In order of size, family and double.
        dropped: Of each subset that was left out, name, ipc, error, and the largest error that
            would have stayed; JSON values.
        rule: What was left out, in words.
    """

    subsets: tuple[Subset, ...]
    dropped: tuple[Mapping[str, Any], ...] = ()
    rule: str = "nothing was dropped"

    def __len__(self) -> int:
        return len(self.subsets)

    def __iter__(self) -> Iterator[Subset]:
        return iter(self.subsets)

    def without_worst(
        self, errors: Mapping[str, float], *, chance: float, least: float = LEAST
    ) -> SubsetPool:
        """Leave out the extremely poor subsets of each size, and their doubles.

        The paper does not say how it told them.  Here a subset goes if its student keeps less than
        ``least`` of the accuracy above chance that the best one has at its size; its double's error
        is not asked.

        Args:
            errors: Test error in [0, 1] of a student of each subset that is no double, by name.
            chance: Error of guessing, such as 0.9 of ten balanced classes.
            least: Share in [0, 1].

        Raises:
            ValueError: An error is missing or outside [0, 1], or ``least`` is out of range.
        """
        if not 0 <= least <= 1:
            raise ValueError(f"least must lie in [0, 1], got {least}")
        own = [one for one in self.subsets if one.name == one.parent]
        if missing := [one.name for one in own if one.name not in errors]:
            raise ValueError(f"errors lacks {len(missing)} subsets, first {missing[0]!r}")
        if bad := [one.name for one in own if not 0 <= errors[one.name] <= 1]:
            raise ValueError(f"errors must lie in [0, 1], got {errors[bad[0]]} of {bad[0]!r}")
        most = {}
        for ipc in {one.ipc for one in own}:
            of_size = [errors[one.name] for one in own if one.ipc == ipc]
            most[ipc] = largest_error(of_size, chance, least)
        gone = [one for one in own if errors[one.name] > most[one.ipc]]
        names = {one.name for one in gone}
        return SubsetPool(
            tuple(one for one in self.subsets if one.parent not in names),
            (
                *self.dropped,
                *(
                    {
                        "name": one.name,
                        "ipc": one.ipc,
                        "error": errors[one.name],
                        "largest_error": most[one.ipc],
                    }
                    for one in gone
                ),
            ),
            f"dropped: accuracy above chance below {least:g} of the best subset's of that IPC",
        )

    def record(self) -> dict[str, Any]:
        """Names, families, sizes, groups, and what was dropped; JSON values."""
        return {
            "rule": self.rule,
            "dropped": [dict(one) for one in self.dropped],
            "subsets": [
                {
                    "name": one.name,
                    "family": one.family,
                    "ipc": one.ipc,
                    "images": len(one.selection),
                    "parent": one.parent,
                }
                for one in self.subsets
            ],
        }


def largest_error(errors: Sequence[float], chance: float, least: float = LEAST) -> float:
    """The error above which a subset is extremely poor.

    Args:
        errors: Of the subsets of its size.
        chance: Error of guessing.
        least: Share of the best one's accuracy above chance that it has to keep.
    """
    return chance - least * (chance - min(errors))


def check_ipcs(ipcs: Sequence[int], labels: Tensor, num_classes: int) -> None:
    """Raise unless they are different sizes that every class has.

    Args:
        ipcs: Images a class.
        labels: Of all images, int64 (n,).
        num_classes: Number of classes.

    Raises:
        ValueError: They are not.
    """
    if not ipcs or len(set(ipcs)) < len(ipcs) or min(ipcs) < 1:
        raise ValueError(f"ipcs must be different sizes of at least 1, got {list(ipcs)}")
    for ipc in ipcs:
        check_ipc(ipc, torch.bincount(labels, minlength=num_classes).tolist())


def dcs_subsets(
    el2n: Scores,
    embedding: Embedding,
    *,
    ipcs: Sequence[int] = DCS_IPCS,
    offsets: Sequence[float] = OFFSETS,
    errors: Mapping[str, float] | None = None,
    least: float = LEAST,
) -> SubsetPool:
    """Build the pool; see the module.

    Which errors tell the extremely poor ones is known after students were trained on all: build the
    pool without ``errors``, train, and build it again or call :meth:`SubsetPool.without_worst`.

    Args:
        el2n: EL2N of every training image.
        embedding: Of a trained network, for CAL and GraphCut.
        ipcs: Sizes.
        offsets: Starts of the Pareto sweep's windows, from hard to easy; the easiest is ``el2n``.
        errors: Test error of a student by subset; None drops nothing.
        least: See :meth:`SubsetPool.without_worst`; guessing is taken to be uniform.

    Returns:
        4 families' subsets and doubles.

    Raises:
        ValueError: Scores and embedding are of different numbers of images, a size is out of range
            or repeated, or what ``without_worst`` refuses.
    """
    if len(el2n) != len(embedding):
        raise ValueError(f"el2n is of {len(el2n)} images, the embedding of {len(embedding)}")
    labels, classes = embedding.labels, embedding.num_classes
    check_ipcs(ipcs, labels, classes)
    cal = cal_scores(embedding)
    greedy = graph_cut(embedding, ipc=max(ipcs))
    subsets: list[Subset] = []
    for ipc in sorted(ipcs):
        budget: dict[str, Any] = {"ipc": ipc, "num_classes": classes}
        made = [("el2n", f"el2n-ipc{ipc}", select(el2n, labels, strategy="bottomk", **budget))]
        sweep = windows(el2n, labels, ipcs=(ipc,), offsets=offsets, num_classes=classes)
        for offset, window in zip(offsets, sweep, strict=True):
            made.append(("el2n-pareto", f"el2n-pareto{offset:g}-ipc{ipc}", window))
        made.append(("cal", f"cal-ipc{ipc}", select(cal, labels, **budget)))
        made.append(("graph-cut", f"graph-cut-ipc{ipc}", _head(greedy, ipc, max(ipcs))))
        for family, name, selection in made:
            double = repeated(selection, labels)
            subsets.append(Subset(name, family, ipc, selection, name))
            subsets.append(Subset(f"{name}-x2", family, ipc, double, name))
    pool = SubsetPool(tuple(subsets))
    if errors is None:
        return pool
    return pool.without_worst(errors, chance=1 - 1 / classes, least=least)


def subset_images(
    dataset: ImageDataset | ImageFolder, indices: Tensor
) -> ImageDataset | ImageFolder:
    """The picked images as a data set; of a folder nothing is decoded."""
    if isinstance(dataset, ImageDataset):
        return dataset.subset(indices)
    return ImageFolder(
        dataset.root,
        image_size=dataset.image_size,
        resize=dataset.resize,
        normalization=dataset.normalization,
        name=dataset.name,
        split=dataset.split,
        listing=Listing(
            dataset.class_names,
            tuple(dataset.paths[index] for index in indices.tolist()),
            dataset.labels[indices],
        ),
    )


def _head(selection: Selection, ipc: int, whole: int) -> Selection:
    """The first picks of each class, of ``whole`` each in greedy order."""
    rows = torch.arange(len(selection)).view(-1, whole)[:, :ipc].flatten()
    scores = selection.scores
    return replace(
        selection,
        indices=selection.indices[rows],
        scores=None if scores is None else scores[rows],
        meta={**selection.meta, "ipc": ipc},
    )
