"""The crops of candidate images, batch by batch: decoded by threads, or by a DALI pipeline."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from pyddfast._warnings import warn_caller
from pyddfast.data import ImageDataset, ImageFolder, ImageSource, Request
from pyddfast.data.ahead import AHEAD_BYTES, ahead
from pyddfast.data.pipelines import open_pipeline
from pyddfast.data.sizes import read_size
from pyddfast.ops.augment import draw_crop_boxes
from pyddfast.ops.patches import multi_crop
from pyddfast.random import Purpose

__all__ = ["CandidateBackend", "Cropping", "Crops", "check_backend", "cut_candidates"]

CandidateBackend: TypeAlias = Literal["pil", "dali"]


@dataclass(frozen=True)
class Cropping:
    """How crops are made; the fields are those of the methods' configs.

    Attributes:
        patch_size: Side of a patch.
        image_size: Side of the teacher's image, with the patch in its middle.
        num_crops: Crops of each image.
        scale: Smallest and largest share of the image that a crop covers.
        ratio: Smallest and largest width / height of a crop.
        seed: Of the crops.
        on_error: What an image that cannot be decoded does.
    """

    patch_size: int
    image_size: int
    num_crops: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    seed: int
    on_error: Literal["raise", "skip"]


@dataclass(frozen=True)
class Crops:
    """The crops of a batch of images, those left out that could not be decoded.

    Attributes:
        rows: Positions in the batch.
        boxes: int64 (K, m, 4): top, left, height, width in pixels of the image.
        images: float32 (m, K, C, S, S), normalised, zeros around the patches.
        skipped: (position in the batch, message) of what was left out.
    """

    rows: list[int]
    boxes: Tensor
    images: Tensor
    skipped: list[tuple[int, str]]


def check_backend(dataset: ImageSource, backend: CandidateBackend) -> None:
    """Refuse a data set that a backend cannot read.

    Raises:
        ValueError: It cannot, or there is no such backend.
        ModuleNotFoundError: DALI is asked for and not installed.
    """
    if backend not in ("pil", "dali"):
        raise ValueError(f"backend must be 'pil' or 'dali', got {backend!r}")
    if backend == "pil":
        return
    if not isinstance(dataset, ImageFolder) or dataset.image_size is not None:
        raise ValueError(
            "backend='dali' reads image files in their own sizes (an ImageFolder without "
            f"image_size), got {type(dataset).__name__}; give backend='pil'"
        )
    open_pipeline(dataset, size=1, backend="dali")


def cut_candidates(
    dataset: ImageSource,
    batches: Sequence[Sequence[int]],
    cropping: Cropping,
    *,
    backend: CandidateBackend,
    device: torch.device,
    workers: int,
) -> Iterator[Crops]:
    """The crops of each batch, in order; later ones are prepared meanwhile.

    Boxes are keyed by the image's position in the data set and the crop, so both backends cut the
    same, and on the CPU give the same bytes.

    Args:
        dataset: Real images; see :func:`check_backend`.
        batches: Positions in it.
        cropping: How.
        backend: ``"pil"``: as the data set decodes, in threads, with decoded images of at most
            twice ``AHEAD_BYTES`` and a few more in memory; ``"dali"``: DALI, with the decoded
            images of two batches.
        device: Where crops are made.
        workers: Decoding threads; no effect on the result.

    Raises:
        ValueError: An image cannot be decoded and ``cropping.on_error`` is ``"raise"``.
        FileNotFoundError: A file has gone.
    """
    make = _by_threads if backend == "pil" else _by_dali
    return make(dataset, batches, cropping, device, workers)


def _by_threads(
    dataset: ImageSource,
    batches: Sequence[Sequence[int]],
    cropping: Cropping,
    device: torch.device,
    workers: int,
) -> Iterator[Crops]:
    decoded = ahead(
        _decoder(dataset, cropping.on_error),
        [index for batch in batches for index in batch],
        workers=0 if isinstance(dataset, ImageDataset) else workers,
        most=max(map(len, batches), default=0) + 2 * workers,
    )
    for batch in batches:
        parts: list[tuple[Tensor, Tensor]] = []  # boxes and crops
        rows: list[int] = []
        skipped: list[tuple[int, str]] = []
        waiting: list[Tensor] = []
        for row in range(len(batch)):
            _, image = next(decoded)
            if isinstance(image, Exception):
                warn_caller(f"left out: {image}")
                skipped.append((row, str(image)))
            else:
                rows.append(row)
                waiting.append(image)
            if waiting and (row + 1 == len(batch) or _bytes(waiting) >= AHEAD_BYTES):
                positions = [batch[row] for row in rows[-len(waiting) :]]
                parts.append(_cut(dataset, positions, waiting, cropping, device))
                waiting = []
        yield _joined(dataset, parts, rows, skipped, cropping, device)


def _bytes(images: Sequence[Tensor]) -> int:
    return sum(image.nbytes for image in images)


def _cut(
    dataset: ImageSource,
    positions: Sequence[int],
    images: Sequence[Tensor],
    cropping: Cropping,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Boxes and crops of decoded images."""
    boxes = _boxes(positions, torch.tensor([list(x.shape[-2:]) for x in images]), cropping)
    crops = multi_crop(
        [image.to(device) for image in images],
        boxes,
        size=cropping.patch_size,
        pad_to=cropping.image_size,
        mean=dataset.normalization.mean,
        std=dataset.normalization.std,
    )
    return boxes, crops


def _joined(
    dataset: ImageSource,
    parts: Sequence[tuple[Tensor, Tensor]],
    rows: list[int],
    skipped: list[tuple[int, str]],
    cropping: Cropping,
    device: torch.device,
) -> Crops:
    if not parts:
        side, channels = cropping.image_size, dataset.normalization.channels
        nothing = torch.empty(cropping.num_crops, 0, channels, side, side, device=device)
        return Crops([], torch.empty(0, cropping.num_crops, 4, dtype=torch.int64), nothing, skipped)
    boxes, crops = zip(*parts, strict=True)
    # One part is the rule, and is not copied.
    images = crops[0] if len(crops) == 1 else torch.cat(crops, dim=1)
    return Crops(rows, torch.cat(boxes), images, skipped)


def _by_dali(
    dataset: ImageSource,
    batches: Sequence[Sequence[int]],
    cropping: Cropping,
    device: torch.device,
    workers: int,
) -> Iterator[Crops]:
    assert isinstance(dataset, ImageFolder)  # check_backend
    pipeline = open_pipeline(
        dataset,
        size=cropping.patch_size,
        pad_to=cropping.image_size,
        backend="dali",
        device=device,
        workers=max(1, workers),
        prefetch=1,
        on_error=cropping.on_error,
    )
    requests: deque[Request] = deque()

    def ask() -> Iterator[Request]:
        for batch in batches:
            sizes = torch.tensor([_size(dataset, index) for index in batch])
            requests.append(Request(torch.tensor(batch), _boxes(batch, sizes, cropping)))
            yield requests[-1]

    for made in pipeline(ask()):
        request = requests.popleft()
        rows = made.rows.tolist()
        skipped = [
            (row, pipeline.skipped[index])
            for row, index in enumerate(request.ids.tolist())
            if row not in rows
        ]
        assert request.boxes is not None
        yield Crops(rows, request.boxes[made.rows], made.images, skipped)


def _size(folder: ImageFolder, index: int) -> tuple[int, int]:
    """Height and width from the header; of an unreadable file some, which the pipeline meets."""
    try:
        return read_size(folder.paths[index])
    except ValueError:
        return 1, 1


def _boxes(positions: Sequence[int], sizes: Tensor, cropping: Cropping) -> Tensor:
    """int64 (B, num_crops, 4), keyed by the image's position in the data set and the crop."""
    crops = cropping.num_crops
    return draw_crop_boxes(
        cropping.seed,
        torch.tensor(positions).repeat_interleave(crops),
        torch.arange(crops).repeat(len(positions)),
        sizes.repeat_interleave(crops, dim=0),
        scale=cropping.scale,
        ratio=cropping.ratio,
        purpose=Purpose.MULTI_CROP,
    ).view(len(positions), crops, 4)


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
