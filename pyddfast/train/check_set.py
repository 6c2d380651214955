"""What a distilled set holds, and whether a teacher agrees with the order of its labels.

Labels in another order than the network's are the most frequent reason for accuracies near chance
(folders sorted as text put ``10`` before ``2``), and nothing fails when it happens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyddfast._extras import require
from pyddfast.data import DistilledSet, Normalization
from pyddfast.train.evaluate import predict

__all__ = ["SetReport", "check_set"]

# A matching of classes to predictions fits noise where classes have few images: with five each,
# random predictions stay below a half.
_MATCHED_IPC, _MATCHED_SHARE = 5, 0.6


@dataclass(frozen=True)
class SetReport:
    """A distilled set in numbers.

    Attributes:
        count: images.
        num_classes: classes of the task.
        empty_classes: labels without an image.
        ipc: smallest and largest number of images of the classes that have some.
        channels: of the images.
        image_size: height and width.
        layout: of the folder, where one was read.
        accuracy: the teacher's on the set's labels, in [0, 1]; None without a teacher.
        chance: what guessing gives.
        suggestion: another order of the labels that the teacher agrees with, in words; None where
            the given one is as good.
        suggested_accuracy: the teacher's with it.
        suggested_labels: for each label of the set, the one that the teacher means.
        warnings: what is likely wrong.
    """

    count: int
    num_classes: int
    empty_classes: tuple[int, ...]
    ipc: tuple[int, int]
    channels: int
    image_size: tuple[int, int]
    layout: str | None
    accuracy: float | None
    chance: float
    suggestion: str | None
    suggested_accuracy: float | None
    suggested_labels: tuple[int, ...] | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON values."""
        values = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def check_set(
    distilled: DistilledSet,
    teacher: nn.Module | None = None,
    *,
    normalization: Normalization | None = None,
    size: int | None = None,
    device: torch.device | str | None = None,
) -> SetReport:
    """Count a set's images and ask a teacher what they show.

    The teacher is tried on the labels as they are and in other orders: names or numbers sorted as
    text, counting from 1, and, with five images a class and more, the order that fits its
    predictions best.

    Args:
        distilled: the set.
        teacher: network of its task, or None.
        normalization: of the teacher's input; None: the set's.
        size: side of the teacher's input; None: as stored.
        device: where to run; None: where the teacher is.

    Raises:
        ValueError: the teacher has another number of classes.
        ModuleNotFoundError: scipy, of the ``methods`` extra, is not installed.
    """
    counts = distilled.class_counts
    warnings = []
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        warnings.append(f"{len(empty)} of {distilled.num_classes} classes have no image")
    filled = counts[counts > 0]
    if int(filled.min()) != int(filled.max()):
        warnings.append(f"classes have from {int(filled.min())} to {int(filled.max())} images")
    chance = 1 / distilled.num_classes
    accuracy = suggestion = suggested = order = None
    if teacher is not None:
        logits = predict(teacher, distilled, normalization=normalization, size=size, device=device)
        if logits.shape[1] != distilled.num_classes:
            raise ValueError(
                f"the teacher has {logits.shape[1]} classes, the set {distilled.num_classes}"
            )
        guesses, labels = logits.argmax(dim=1).cpu(), distilled.labels.cpu()
        accuracy = _share(guesses, labels)
        for name, candidate in _orders(distilled, guesses):
            share = _share(guesses, candidate[labels])
            best = accuracy if suggested is None else suggested
            if (
                share > best
                and not _by_chance(share, chance, len(labels))
                and share >= 2 * accuracy
            ):
                suggestion, suggested, order = name, share, tuple(candidate.tolist())
        if _by_chance(accuracy, chance, len(labels)):
            warnings.append(
                f"the teacher is right about {accuracy:.2%} of the images, guessing is about "
                f"{chance:.2%}: wrong order of labels, wrong normalisation, or another task"
            )
        if suggestion is not None:
            warnings.append(f"it would be right about {suggested:.2%} with {suggestion}")
    height, width = distilled.images.shape[-2:]
    return SetReport(
        count=len(distilled),
        num_classes=distilled.num_classes,
        empty_classes=tuple(empty),
        ipc=(int(filled.min()), int(filled.max())),
        channels=int(distilled.images.shape[1]),
        image_size=(int(height), int(width)),
        layout=distilled.meta.get("layout"),
        accuracy=accuracy,
        chance=chance,
        suggestion=suggestion,
        suggested_accuracy=suggested,
        suggested_labels=order,
        warnings=tuple(warnings),
    )


def _share(guesses: Tensor, labels: Tensor) -> float:
    return int((guesses == labels).sum()) / len(labels)


def _by_chance(share: float, chance: float, count: int) -> bool:
    """Within three standard deviations of guessing, or below its double."""
    return share <= chance + max(chance, 3 * math.sqrt(chance * (1 - chance) / count))


def _orders(distilled: DistilledSet, guesses: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Other orders of the labels: what to call them, and the new label of each label."""
    classes = distilled.num_classes
    numbers = [str(label) for label in range(classes)]
    candidates = [("numbers", numbers)]
    if distilled.class_names:
        candidates.append(("class names", list(distilled.class_names)))
    for what, names in candidates:
        rank = torch.tensor(_ranks(names))
        yield f"the {what} sorted as text", rank
        yield f"the {what} in their own order instead of sorted as text", rank.argsort()
    labels = torch.arange(classes)
    yield "labels that begin at 1 (one subtracted)", (labels - 1) % classes
    yield "labels that begin at 0 (one added)", (labels + 1) % classes
    if len(distilled) >= _MATCHED_IPC * classes:
        optimize = require("scipy.optimize", "methods")
        table = torch.bincount(
            distilled.labels.cpu() * classes + guesses, minlength=classes * classes
        ).view(classes, classes)
        rows, columns = optimize.linear_sum_assignment(table.numpy(), maximize=True)
        if int(table[rows, columns].sum()) >= _MATCHED_SHARE * len(distilled):
            yield "the order in suggested_labels, which fits its predictions", torch.tensor(columns)


def _ranks(names: Sequence[str]) -> list[int]:
    place = {
        position: rank
        for rank, position in enumerate(sorted(range(len(names)), key=lambda i: names[i]))
    }
    return [place[position] for position in range(len(names))]
