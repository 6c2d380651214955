"""Batches of normalised views from image files of any size, made ahead of their use.

A pipeline turns a sequence of requests (which images, which boxes, which flips) into batches, in
order.  It draws nothing and remembers nothing: the same request gives the same views whatever the
batch, worker or rank, and a run that is resumed at step k asks from step k on.  This file has the
pipeline that decodes with Pillow, :mod:`pyddfast.data.dali` the one of DALI.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyddfast._warnings import warn_caller
from pyddfast.data.device import usable_device
from pyddfast.data.folder import BILINEAR, ImageFolder, check_resize, read_image, resize_and_cut
from pyddfast.data.sizes import OnError, check_on_error
from pyddfast.data.softlabels_batch import LabelBatch, replay_boxes
from pyddfast.ops.augment import AugmentParams, augment, draw_crop_boxes
from pyddfast.ops.patches import multi_crop
from pyddfast.random import Purpose, uniform

__all__ = [
    "Backend",
    "Batch",
    "ImagePipeline",
    "Request",
    "draw_request",
    "open_pipeline",
    "replay_request",
]

Backend: TypeAlias = Literal["auto", "dali", "pil"]
# None, one box, or the m boxes of one image, as lists.
Box: TypeAlias = Sequence[Any] | None


@dataclass(frozen=True)
class Request:
    """Which views make one batch.

    Args:
        ids: int64 (B,), positions in the folder; any order, repeats allowed.
        boxes: top, left, height, width in pixels of the file.  int64 (B, 4): one crop an image
            (training, replay of stored crops).  int64 (B, m, 4): m crops an image (candidates of
            RDED).  None: the evaluation view, shorter side resized and the centre cut.
        flips: bool (B,), mirror left to right; None for no flips, and with m crops.

    Raises:
        TypeError: One is no tensor, or of another dtype.
        ValueError: Shapes do not fit together.
    """

    ids: Tensor
    boxes: Tensor | None = None
    flips: Tensor | None = None

    def __post_init__(self) -> None:
        for name, value, dtype in (
            ("ids", self.ids, torch.int64),
            ("boxes", self.boxes, torch.int64),
            ("flips", self.flips, torch.bool),
        ):
            if value is None and name != "ids":
                continue
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
            if value.dtype != dtype:
                raise TypeError(f"{name} must be {dtype}, got {value.dtype}")
        if self.ids.ndim != 1:
            raise ValueError(f"ids must have shape (B,), got {tuple(self.ids.shape)}")
        count, boxes, flips = len(self.ids), self.boxes, self.flips
        if boxes is not None and (
            boxes.ndim not in (2, 3)
            or boxes.shape[0] != count
            or boxes.shape[-1] != 4
            or boxes.shape[1] == 0
        ):
            raise ValueError(
                f"boxes must have shape ({count}, 4) or ({count}, m, 4), got {tuple(boxes.shape)}"
            )
        if flips is not None and flips.shape != (count,):
            raise ValueError(f"flips must have shape ({count},), got {tuple(flips.shape)}")
        if flips is not None and boxes is not None and boxes.ndim == 3:
            raise ValueError("flips must be None where boxes has m crops an image")


@dataclass(frozen=True)
class Batch:
    """The views of one request.

    Attributes:
        images: float32 (K, C, size, size), normalised; of m crops (m, K, C, pad_to, pad_to).
        ids: int64 (K,), positions in the folder.
        labels: int64 (K,).
        rows: int64 (K,), positions in the request: what is missing was skipped.
    """

    images: Tensor
    ids: Tensor
    labels: Tensor
    rows: Tensor


def draw_request(
    seed: int,
    ids: Tensor,
    visits: Tensor,
    sizes: Tensor,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
) -> Request:
    """A training request: one random crop and flip for each image, keyed by (seed, id, visit).

    The draws are those of :func:`pyddfast.ops.draw_augmentation`.

    Args:
        seed: The run's seed.
        ids: int64 (B,), positions in the folder.
        visits: int64 (B,), how often each image was drawn before.
        sizes: int64 (N, 2), height and width of every image of the folder (:func:`image_sizes`).
        scale: Smallest and largest share of the area.
        ratio: Smallest and largest width / height.
        flip: Probability of a horizontal flip.

    Raises:
        ValueError: A value is out of range.
    """
    if not 0 <= flip <= 1:
        raise ValueError(f"flip must be a probability, got {flip}")
    # An unreadable file has the size 0; it gets some box, and the pipeline skips it.
    extents = sizes[ids].clamp(min=1)
    boxes = draw_crop_boxes(seed, ids, visits, extents, scale=scale, ratio=ratio)
    return Request(ids, boxes, uniform(seed, Purpose.FLIP, ids, visits) < flip)


def replay_request(labels: LabelBatch, sizes: Tensor, ids: Tensor | None = None) -> Request:
    """The views that a batch of stored labels belongs to, before they are mixed.

    Args:
        labels: Of a :class:`SoftLabels` store or an official FKD file.
        sizes: int64 (N, 2), height and width of every image of the folder (:func:`image_sizes`).
        ids: int64 (B,), positions in the folder; ``labels.index`` when None.

    Raises:
        ValueError: The labels do not name their images and ``ids`` is None, or a box leaves its
            image: the labels belong to other images.
    """
    ids = labels.index if ids is None else ids
    if ids is None:
        raise ValueError("the labels do not say which images they belong to: give ids")
    return Request(ids, replay_boxes(labels.coords, sizes[ids]), labels.flip)


def open_pipeline(
    folder: ImageFolder,
    *,
    size: int,
    resize: int | None = None,
    pad_to: int | None = None,
    backend: Backend = "auto",
    device: torch.device | str = "cpu",
    workers: int | None = None,
    prefetch: int = 2,
    on_error: OnError = "raise",
) -> ImagePipeline:
    """A pipeline over the files of a folder.

    Args:
        folder: The images; its normalisation is applied, its ``image_size`` does not matter.
        size: Height and width of a view, or of a crop before it is padded.
        resize: Length of the shorter side before the centre is cut, in requests without boxes;
            ``size`` when None.
        pad_to: Height and width that the crops of (B, m, 4) boxes are padded to with zeros;
            ``size`` when None.
        backend: ``"dali"``, ``"pil"``, or ``"auto"``: DALI where it is installed.
        device: Where views are made.  With DALI on a CUDA device the decoder runs there too.
        workers: Threads that read and decode; one for each processor when None.
        prefetch: Batches that are prepared beyond the one in use.
        on_error: What a file that cannot be decoded does: ``"raise"`` a ``ValueError``, or
            ``"skip"``: a warning, an entry in ``skipped``, and a smaller batch.

    Raises:
        ValueError: An option is out of range.
        ModuleNotFoundError: Pillow, or DALI where it is asked for, is not installed.
    """
    if backend not in ("auto", "dali", "pil"):
        raise ValueError(f"backend must be 'auto', 'dali' or 'pil', got {backend!r}")
    if backend == "auto":
        backend = "dali" if find_spec("nvidia") and find_spec("nvidia.dali") else "pil"
    if backend == "dali":
        from pyddfast.data.dali import DALIPipeline as Chosen  # which builds on this module
    else:
        Chosen = PILPipeline  # type: ignore[assignment,misc]
    return Chosen(folder, size, resize, pad_to, usable_device(device), workers, prefetch, on_error)


class ImagePipeline(ABC):
    """What both backends share; see :func:`open_pipeline`.

    Attributes:
        skipped: Why each skipped image was skipped, by its position in the folder.
    """

    def __init__(
        self,
        folder: ImageFolder,
        size: int,
        resize: int | None,
        pad_to: int | None,
        device: torch.device,
        workers: int | None,
        prefetch: int,
        on_error: OnError,
    ) -> None:
        resize = size if resize is None else resize
        pad_to = size if pad_to is None else pad_to
        if not 1 <= size <= min(resize, pad_to):
            raise ValueError(
                f"need 1 <= size <= resize and pad_to, got size={size}, resize={resize}, "
                f"pad_to={pad_to}"
            )
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be positive, got {workers}")
        if prefetch < 0:
            raise ValueError(f"prefetch must not be negative, got {prefetch}")
        check_on_error(on_error)
        self.folder, self.size, self.resize, self.pad_to = folder, size, resize, pad_to
        self.device = device
        self.workers = workers or len(os.sched_getaffinity(0))
        self.prefetch, self.on_error = prefetch, on_error
        self.skipped: dict[int, str] = {}
        self._unsaid: deque[str] = deque()  # warnings of worker threads

    def __call__(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Yield the batch of each request, in order; later ones are prepared meanwhile.

        Raises:
            ValueError: An id lies outside the folder, a box outside its image, or a file cannot be
                decoded and ``on_error`` is ``"raise"``; the message names the file.
            FileNotFoundError: A file has gone.
            TypeError: Something else than a request was asked for.
        """
        pending: deque[Future[Batch]] = deque()
        # One thread makes batches, in order, from what the readers have decoded.
        with ThreadPoolExecutor(self.workers) as readers, ThreadPoolExecutor(1) as maker:
            try:
                for request in requests:
                    self._check(request)
                    samples = [
                        readers.submit(self._read, index, box)
                        for index, box in zip(request.ids.tolist(), box_lists(request), strict=True)
                    ]
                    pending.append(maker.submit(self._collect, request, samples))
                    if len(pending) > self.prefetch:
                        yield self._take(pending)
                while pending:
                    yield self._take(pending)
            finally:  # also where the caller stops early
                readers.shutdown(wait=False, cancel_futures=True)
                maker.shutdown(wait=False, cancel_futures=True)

    def _take(self, pending: deque[Future[Batch]]) -> Batch:
        """The next batch, after the warnings so far, which a worker thread cannot address."""
        batch = pending.popleft().result()
        while self._unsaid:
            warn_caller(self._unsaid.popleft())
        return batch

    @abstractmethod
    def _open(self, index: int) -> Any:
        """Read image ``index``, in a worker thread; a ValueError where it is unreadable."""

    @abstractmethod
    def _size(self, opened: Any) -> tuple[int, int]:
        """Height and width of an opened image."""

    @abstractmethod
    def _cut(self, opened: Any, box: Box) -> Any:
        """What is left to do for one image in the worker thread."""

    @abstractmethod
    def _views(self, samples: Sequence[Any], flips: Tensor) -> Tensor:
        """Views of at least one image that ``_cut`` has prepared."""

    @abstractmethod
    def _images(self, samples: Sequence[Any]) -> list[Tensor]:
        """Whole images, uint8 (C, H, W), of at least one that is to be cropped m times."""

    def _check(self, request: Request) -> None:
        if not isinstance(request, Request):
            raise TypeError(f"requests must be of type Request, got {type(request).__name__}")
        ids, count = request.ids, len(self.folder)
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < count:
            raise ValueError(
                f"ids must lie in [0, {count}), "
                f"got values from {int(ids.min())} to {int(ids.max())}"
            )

    def _read(self, index: int, box: Box, opener: Callable[[int], Any] | None = None) -> Any:
        """One sample, or None where it was skipped."""
        try:
            opened = (opener or self._open)(index)
            if box is None:
                check_resize(self.folder.paths[index], *self._size(opened), self.resize)
        except ValueError as error:
            if self.on_error == "raise":
                raise
            if index not in self.skipped:
                self.skipped[index] = str(error)
                self._unsaid.append(f"skipped: {error}")
            return None
        height, width = self._size(opened)
        for top, left, h, w in [] if box is None else box if isinstance(box[0], list) else [box]:
            if not (h > 0 and w > 0 and 0 <= top <= height - h and 0 <= left <= width - w):
                raise ValueError(
                    f"the box {[top, left, h, w]} (top, left, height, width) must not be empty and "
                    f"must lie inside {self.folder.paths[index]} of {height} x {width} pixels"
                )
        return self._cut(opened, box)

    def _collect(self, request: Request, futures: list[Future[Any]]) -> Batch:
        return self._batch(request, [future.result() for future in futures])

    def _batch(self, request: Request, samples: list[Any]) -> Batch:
        rows = torch.tensor([i for i, x in enumerate(samples) if x is not None], dtype=torch.int64)
        samples = [x for x in samples if x is not None]
        boxes, normalization = request.boxes, self.folder.normalization
        if boxes is not None and boxes.ndim == 3:
            images = multi_crop(
                self._images(samples) if samples else [],
                boxes[rows],
                size=self.size,
                pad_to=self.pad_to,
                mean=normalization.mean,
                std=normalization.std,
            ).to(self.device)
        elif samples:
            flips = request.flips
            kept = torch.zeros(len(rows), dtype=torch.bool) if flips is None else flips[rows]
            images = self._views(samples, kept)
        else:
            shape = (0, normalization.channels, self.size, self.size)
            images = torch.empty(shape, device=self.device)
        ids = request.ids[rows]
        return Batch(images, ids, self.folder.labels[ids], rows)


class PILPipeline(ImagePipeline):
    """Decodes, cuts and resizes with Pillow: the pixels of torchvision's transforms of PIL images.

    Pillow releases the GIL while it works, so threads use the processors.
    """

    def _open(self, index: int) -> Any:
        return read_image(self.folder.paths[index], self.folder.normalization.channels)

    def _size(self, opened: Any) -> tuple[int, int]:
        return opened.height, opened.width

    def _cut(self, opened: Any, box: Box) -> npt.NDArray[np.uint8]:
        if box is None:
            opened = resize_and_cut(opened, self.resize, self.size)
        elif not isinstance(box[0], list):
            top, left, height, width = box
            # Cut, then resize: Pillow's resize(box=...) would read pixels beyond the box.
            crop = opened.crop((left, top, left + width, top + height))
            opened = crop.resize((self.size, self.size), BILINEAR)
        return np.asarray(opened).reshape(opened.height, opened.width, -1)

    def _views(self, samples: Sequence[Any], flips: Tensor) -> Tensor:
        return augment(
            torch.from_numpy(np.stack(samples)).to(self.device).permute(0, 3, 1, 2),
            torch.arange(len(samples), device=self.device),
            AugmentParams(flip=flips).to(self.device),
            mean=self.folder.normalization.mean,
            std=self.folder.normalization.std,
        )

    def _images(self, samples: Sequence[Any]) -> list[Tensor]:
        # Copied: Pillow's array is read-only.
        return [torch.from_numpy(x.copy()).to(self.device).permute(2, 0, 1) for x in samples]


def box_lists(request: Request) -> list[Box]:
    """The box or boxes of each image of the request."""
    if request.boxes is None:
        return [None] * len(request.ids)
    boxes: list[Box] = request.boxes.tolist()
    return boxes
