"""One pass over the candidates of many classes: decode, crop, ask the teacher, keep the best.

The candidates of all classes form one sequence, which is cut into batches of a fixed size across
the borders of classes.  A batch is always scored whole, also where only some of its classes are
wanted, so that a score does not depend on which classes a rank has or a stopped job had finished.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pyddfast.data import ImageDataset, ImageSource
from pyddfast.data.ahead import AHEAD_BYTES, ahead
from pyddfast.ops.augment import draw_crop_boxes
from pyddfast.ops.patches import multi_crop
from pyddfast.ops.scores import sample_scores
from pyddfast.random import Purpose

__all__ = ["ClassPatches", "Scoring", "score_classes"]


@dataclass(frozen=True)
class Scoring:
    """How crops are made and scored; the fields are those of the methods' configs.

    Attributes:
        count: Patches to keep of each class.
        patch_size: Side of a patch.
        image_size: Side of the teacher's image, with the patch in its middle.
        num_crops: Crops of each image.
        scale: Smallest and largest share of the image that a crop covers.
        ratio: Smallest and largest width / height of a crop.
        seed: Of the crops.
        batch_size: Crops that are made together.
        forward_size: Crops in one forward pass.
        precision: Arithmetic of the teacher.
        channels_last: Memory format of the teacher's batch.
        on_error: What an image that cannot be decoded does.
    """

    count: int
    patch_size: int
    image_size: int
    num_crops: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    seed: int
    batch_size: int
    forward_size: int
    precision: Literal["fp32", "bf16", "fp16"]
    channels_last: bool
    on_error: Literal["raise", "skip"]


@dataclass(frozen=True)
class ClassPatches:
    """What the pass says of a class.

    Attributes:
        label: The class.
        patches: float32 (count, C, p, p), normalised, best first, on the teacher's device.
        picked: int64 (count,), position of each patch's image in ``pool``.
        pool: int64 (P,), positions in the data set of the images that were scored.
        boxes: int64 (P, num_crops, 4): top, left, height, width of every crop.
        scores: float32 (P, num_crops), −log p_y of every crop.
        skipped: (position in the data set, message) of the images that could not be decoded.
    """

    label: int
    patches: Tensor
    picked: Tensor
    pool: Tensor
    boxes: Tensor
    scores: Tensor
    skipped: tuple[tuple[int, str], ...]


def score_classes(
    dataset: ImageSource,
    teacher: nn.Module,
    pools: Sequence[Sequence[int]],
    wanted: Sequence[int],
    scoring: Scoring,
    *,
    device: torch.device,
    workers: int,
) -> Iterator[ClassPatches]:
    """Score the candidates of the wanted classes, each image decoded once.

    Memory: a batch of crops, decoded images of at most twice ``AHEAD_BYTES`` and a few more, and
    of each class in work its ``count`` best patches.

    Args:
        dataset: Real images.
        teacher: In evaluation mode, on ``device``.
        pools: Candidates of every class, in order; ties go to the earlier one.
        wanted: Labels, ascending.
        scoring: How.
        device: Where crops are made and scored.
        workers: Decoding threads; no effect on the result.

    Yields:
        The wanted classes in order.

    Raises:
        ValueError: An image cannot be decoded, too few of a class can, the teacher gives another
            number of logits than there are classes, or NaN.
    """
    sequence = [(label, index) for label, pool in enumerate(pools) for index in pool]
    starts = [0]
    for pool in pools:
        starts.append(starts[-1] + len(pool))
    step = max(1, scoring.batch_size // scoring.num_crops)
    numbers = sorted(
        {
            batch
            for label in wanted
            for batch in range(starts[label] // step, -(-starts[label + 1] // step))
        }
    )
    batches = [sequence[number * step : (number + 1) * step] for number in numbers]
    open_classes = {label: _OpenClass(label, len(pools[label])) for label in wanted}
    decoded = ahead(
        _decoder(dataset, scoring.on_error),
        [index for batch in batches for _, index in batch],
        workers=0 if isinstance(dataset, ImageDataset) else workers,
        most=step + 2 * workers,
    )
    for batch in batches:
        yield from _score_batch(dataset, teacher, batch, decoded, open_classes, scoring, device)


class _OpenClass:
    """The scores of a class so far, and its best patches."""

    def __init__(self, label: int, expected: int) -> None:
        self.label, self.expected = label, expected
        self.pool: list[int] = []
        self.boxes: list[Tensor] = []
        self.scores: list[Tensor] = []
        self.skipped: list[tuple[int, str]] = []
        self.best = torch.empty(0)
        self.picked = torch.empty(0, dtype=torch.int64)
        self.patches: Tensor | None = None

    def add(self, rows: Tensor, batch: _Scored, count: int) -> None:
        """Take rows of a batch; what is no longer among the best is forgotten."""
        first = len(self.pool)
        self.pool += [batch.indices[row] for row in rows.tolist()]
        self.boxes.append(batch.boxes[rows])
        self.scores.append(batch.scores[rows])
        # argmin names the first of equal crops; a stable sort leaves earlier images first.
        crop = batch.scores[rows].argmin(dim=1)
        best = torch.cat((self.best, batch.scores[rows, crop]))
        picked = torch.cat((self.picked, first + torch.arange(len(rows))))
        order = best.sort(stable=True).indices[:count]
        self.best, self.picked = best[order], picked[order]
        known = len(best) - len(rows)
        new = order >= known
        taken = order[new] - known
        patches = batch.patches(rows[taken], crop[taken])
        if self.patches is not None:
            patches = torch.cat((self.patches, patches))
        place = torch.where(new, known + new.cumsum(0) - 1, order)
        self.patches = patches[place.to(patches.device)]

    def finished(self) -> bool:
        return len(self.pool) + len(self.skipped) == self.expected

    def close(self, dataset: ImageSource, count: int) -> ClassPatches:
        if len(self.pool) < count or self.patches is None:
            name = dataset.class_names[self.label] if dataset.class_names else ""
            raise ValueError(
                f"{count} images are needed of class {self.label} {name!r}, {len(self.pool)} could "
                f"be decoded; the first that could not: {self.skipped[0][1]}"
            )
        return ClassPatches(
            self.label,
            self.patches,
            self.picked,
            torch.tensor(self.pool),
            torch.cat(self.boxes),
            torch.cat(self.scores),
            tuple(self.skipped),
        )


@dataclass(frozen=True)
class _Scored:
    """A scored batch: what could be decoded of it."""

    indices: list[int]
    boxes: Tensor  # (B, m, 4)
    scores: Tensor  # (B, m), on the CPU
    inside: Tensor  # (m, B, C, p, p), a view without the zeros around the patches

    def patches(self, rows: Tensor, crop: Tensor) -> Tensor:
        device = self.inside.device
        return self.inside[crop.to(device), rows.to(device)]


@torch.no_grad()
def _score_batch(
    dataset: ImageSource,
    teacher: nn.Module,
    batch: Sequence[tuple[int, int]],
    decoded: Iterator[tuple[int, Tensor | Exception]],
    open_classes: dict[int, _OpenClass],
    scoring: Scoring,
    device: torch.device,
) -> list[ClassPatches]:
    """Score one batch; returns the classes that it completes."""
    labels: list[int] = []
    indices: list[int] = []
    crops: list[Tensor] = []
    boxes: list[Tensor] = []
    waiting: list[Tensor] = []
    size = 0

    def cut() -> None:
        nonlocal waiting, size
        if waiting:
            drawn = _boxes(indices[-len(waiting) :], waiting, scoring)
            boxes.append(drawn)
            crops.append(
                multi_crop(
                    [image.to(device) for image in waiting],
                    drawn,
                    size=scoring.patch_size,
                    pad_to=scoring.image_size,
                    mean=dataset.normalization.mean,
                    std=dataset.normalization.std,
                )
            )
            waiting, size = [], 0

    for label, index in batch:
        _, image = next(decoded)
        if isinstance(image, Exception):
            if label in open_classes:
                warnings.warn(f"left out: {image}", stacklevel=2)
                open_classes[label].skipped.append((index, str(image)))
            continue
        labels.append(label)
        indices.append(index)
        waiting.append(image)
        size += image.nbytes
        if size >= AHEAD_BYTES:
            cut()
    cut()
    if indices:
        scored = _ask(dataset, teacher, labels, indices, boxes, crops, scoring, device)
        of_row = torch.tensor(labels)
        for label in dict.fromkeys(labels):
            if label in open_classes:
                open_classes[label].add((of_row == label).nonzero()[:, 0], scored, scoring.count)
    return [
        open_classes.pop(label).close(dataset, scoring.count)
        for label in dict.fromkeys(label for label, _ in batch)
        if label in open_classes and open_classes[label].finished()
    ]


def _ask(
    dataset: ImageSource,
    teacher: nn.Module,
    labels: list[int],
    indices: list[int],
    boxes: list[Tensor],
    crops: list[Tensor],
    scoring: Scoring,
    device: torch.device,
) -> _Scored:
    batch = crops[0] if len(crops) == 1 else torch.cat(crops, dim=1)
    layout = torch.channels_last if scoring.channels_last else torch.contiguous_format
    half = torch.bfloat16 if scoring.precision == "bf16" else torch.float16
    parts = []
    with torch.autocast(device.type, dtype=half, enabled=scoring.precision != "fp32"):
        for part in torch.split(batch.flatten(0, 1), scoring.forward_size):
            output: Tensor = teacher(part.contiguous(memory_format=layout))
            if output.shape != (len(part), dataset.num_classes):
                raise ValueError(
                    f"teacher gives {output.shape[-1]} logits, the data set has "
                    f"{dataset.num_classes} classes"
                )
            parts.append(output.float())
    logits = torch.cat(parts)
    finite = logits.amax(dim=1).isfinite()  # NaN carries over; -inf has an order
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0]) % len(indices)
        raise ValueError(
            f"teacher gives logits for crops of image {indices[row]} that are NaN or infinite "
            f"(precision = {scoring.precision})"
        )
    truth = torch.tensor(labels, device=device).repeat(scoring.num_crops)
    scores = sample_scores(logits, truth).nll.view(scoring.num_crops, -1)
    scores = scores.T.contiguous().cpu()
    before = (scoring.image_size - scoring.patch_size) // 2
    inner = slice(before, before + scoring.patch_size)
    return _Scored(indices, torch.cat(boxes), scores, batch[..., inner, inner])


def _boxes(indices: Sequence[int], images: Sequence[Tensor], scoring: Scoring) -> Tensor:
    """int64 (B, num_crops, 4), keyed by the image's position in the data set and the crop."""
    crops = scoring.num_crops
    sizes = torch.tensor([list(image.shape[-2:]) for image in images])
    return draw_crop_boxes(
        scoring.seed,
        torch.tensor(indices).repeat_interleave(crops),
        torch.arange(crops).repeat(len(indices)),
        sizes.repeat_interleave(crops, dim=0),
        scale=scoring.scale,
        ratio=scoring.ratio,
        purpose=Purpose.MULTI_CROP,
    ).view(len(indices), crops, 4)


def _decoder(
    dataset: ImageSource, on_error: Literal["raise", "skip"]
) -> Callable[[int], Tensor | Exception]:
    def decode(index: int) -> Tensor | Exception:
        try:
            return dataset[index]
        except FileNotFoundError:
            raise  # a file that has gone is no bad image
        except (OSError, ValueError) as error:
            if on_error == "raise":
                raise
            return error

    return decode
