"""One pass over the candidates of many classes: decode, crop, ask the teacher, keep the best.

The candidates of all classes form one sequence, which is cut into batches of a fixed size across
the borders of classes.  A batch is always scored whole, also where only some of its classes are
wanted, so that a score does not depend on which classes a rank has or a stopped job had finished.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from pyddfast.data import ImageSource
from pyddfast.methods.patch_crops import CandidateBackend, Cropping, Crops, cut_candidates
from pyddfast.ops.scores import sample_scores
from pyddfast.train.checkpoint import CHECKPOINT_SECONDS

__all__ = ["ClassPatches", "Scoring", "score_classes"]

# Tensors and JSON values, as a file keeps them.
State: TypeAlias = tuple[dict[str, Tensor], dict[str, Any]]


@dataclass(frozen=True)
class Scoring(Cropping):
    """How crops are made and scored; the fields are those of the methods' configs.

    Attributes:
        count: Patches to keep of each class.
        batch_size: Crops that are made together.
        forward_size: Crops in one forward pass.
        precision: Arithmetic of the teacher.
        channels_last: Memory format of the teacher's batch.
    """

    count: int
    batch_size: int
    forward_size: int
    precision: Literal["fp32", "bf16", "fp16"]
    channels_last: bool


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
    backend: CandidateBackend = "pil",
    stored: Callable[[int], State | None] = lambda label: None,
    store: Callable[[int, State], None] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Iterator[ClassPatches]:
    """Score the candidates of the wanted classes, each image decoded once.

    Memory: a batch of crops, the decoded images of :func:`cut_candidates`, and of each class in
    work its ``count`` best patches.

    Args:
        dataset: Real images.
        teacher: In evaluation mode, on ``device``.
        pools: Candidates of every class, in order; ties go to the earlier one.
        wanted: Labels, ascending.
        scoring: How.
        device: Where crops are made and scored.
        workers: Decoding threads; no effect on the result.
        backend: Of the decoder.
        stored: What ``store`` was given for a class, to go on from; None: nothing.
        store: Called between two batches with each class in work, label and state.
        checkpoint_seconds: At most this long, and a batch, between two such calls.

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
    open_classes = {}
    for label in wanted:
        work = _OpenClass(label, len(pools[label]))
        if (state := stored(label)) is not None:
            work.restore(state, device)
        work.begin = (starts[label] + work.seen) // step
        open_classes[label] = work
    numbers = sorted(
        {
            number
            for label, work in open_classes.items()
            for number in range(work.begin, -(-starts[label + 1] // step))
        }
    )
    batches = [sequence[number * step : (number + 1) * step] for number in numbers]
    crops = cut_candidates(
        dataset,
        [[index for _, index in batch] for batch in batches],
        scoring,
        backend=backend,
        device=device,
        workers=workers,
    )
    saved = time.monotonic()
    for number, batch, cut in zip(numbers, batches, crops, strict=True):
        labels = [label for label, _ in batch]
        # What a class was stored with is scored again where a neighbour needs its batch.
        wanting = [
            label
            for label in dict.fromkeys(labels)
            if label in open_classes and open_classes[label].begin <= number
        ]
        for row, message in cut.skipped:
            if labels[row] in wanting:
                open_classes[labels[row]].skipped.append((batch[row][1], message))
        if cut.rows:
            scored = _ask(dataset, teacher, [batch[row] for row in cut.rows], cut, scoring, device)
            of_row = torch.tensor([labels[row] for row in cut.rows])
            for label in wanting:
                rows = (of_row == label).nonzero()[:, 0]
                open_classes[label].add(rows, scored, scoring.count)
        for label in wanting:
            if open_classes[label].finished():
                yield open_classes.pop(label).close(dataset, scoring.count)
        if store is not None and time.monotonic() - saved >= checkpoint_seconds:
            for label, work in open_classes.items():
                if work.patches is not None:
                    store(label, work.state())
            saved = time.monotonic()


class _OpenClass:
    """The scores of a class so far, and its best patches."""

    def __init__(self, label: int, expected: int) -> None:
        self.label, self.expected = label, expected
        self.begin = 0  # number of the first batch that it takes
        self.pool: list[int] = []
        self.boxes: list[Tensor] = []
        self.scores: list[Tensor] = []
        self.skipped: list[tuple[int, str]] = []
        self.best = torch.empty(0)
        self.picked = torch.empty(0, dtype=torch.int64)
        self.patches: Tensor | None = None

    @property
    def seen(self) -> int:
        """Candidates that are done."""
        return len(self.pool) + len(self.skipped)

    def state(self) -> State:
        """All of it but ``begin``, as a file keeps it."""
        assert self.patches is not None
        return {
            "pool": torch.tensor(self.pool),
            "boxes": torch.cat(self.boxes),
            "scores": torch.cat(self.scores),
            "best": self.best,
            "picked": self.picked,
            "patches": self.patches.cpu(),
        }, {"skipped": [list(entry) for entry in self.skipped]}

    def restore(self, state: State, device: torch.device) -> None:
        """Go on from what :meth:`state` gave."""
        tensors, values = state
        self.pool = tensors["pool"].tolist()
        self.boxes, self.scores = [tensors["boxes"]], [tensors["scores"]]
        self.best, self.picked = tensors["best"], tensors["picked"]
        self.patches = tensors["patches"].to(device)
        self.skipped = [(index, message) for index, message in values["skipped"]]

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
        return self.seen == self.expected

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
def _ask(
    dataset: ImageSource,
    teacher: nn.Module,
    candidates: Sequence[tuple[int, int]],
    cut: Crops,
    scoring: Scoring,
    device: torch.device,
) -> _Scored:
    """The teacher's answers; candidates are (label, position in the data set)."""
    labels, indices = map(list, zip(*candidates, strict=True))
    batch = cut.images
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
    return _Scored(indices, cut.boxes, scores, batch[..., inner, inner])
