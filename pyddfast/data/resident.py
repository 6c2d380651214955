"""A training set as bytes on the training device, or streamed there where it does not fit."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from pyddfast.data.datasets import ImageDataset, Labelled, Normalization
from pyddfast.data.device import usable_device
from pyddfast.data.distilled import KINDS, DistilledSet
from pyddfast.data.folder import ImageFolder, Listing
from pyddfast.data.layouts import Layout, layout_facts, open_layout
from pyddfast.data.pipelines import Backend, Batch, Request, open_pipeline
from pyddfast.data.sizes import image_sizes
from pyddfast.ops._memory import free_bytes

__all__ = ["OnOverflow", "ResidentDataset"]

OnOverflow: TypeAlias = Literal["error", "stream"]

# Of the free memory: a quarter is left to the training.  ImageNet's IPC 100 (15 GB) then fits a
# card of 24 GB, and a ResNet-18 with batches of 128 in the 6 GB beside it.
_SHARE = 0.75


class ResidentDataset(Labelled):
    """A set decoded once to uint8 on a device; what does not fit is an error or streamed.

    Streamed batches have the bytes that resident ones have, except by DALI: its decoder on a GPU
    may round otherwise, and so does the resize of a folder with an ``image_size``.  They come from
    memory if the source has its images there, else from the files by
    :func:`pyddfast.data.open_pipeline`; the next one is prepared while one is used.

    Args:
        source: Images in memory, or a folder of images that all have one size or are given one.
        device: Where the images go; None: the CPU.
        limit_bytes: Most that they may take there; None: three quarters of the device's free
            memory.  Images that are there already are not counted.
        on_overflow: What more than that is: ``"error"`` or ``"stream"``.
        backend: Of streams from files: ``"dali"``, ``"pil"``, or ``"auto"``: to a GPU DALI where it
            is installed, else Pillow.
        kind: As in :class:`DistilledSet`; of a folder, since a distilled set knows its own.
        factor: As in :class:`DistilledSet`, likewise.

    Attributes:
        images: (N, C, H, W) on the device, in the type of the source, or None where they are
            streamed.
        image_shape: Channels, height and width.
        nbytes: Of all images.
        labels: int64 (N,), on the CPU.
        num_classes: Classes of the task.
        class_names: One name a class in label order, or empty when unknown.
        normalization: Mean and std of the pixels.
        soft_labels: Of a distilled set that has them.
        lr: Likewise.
        whitened: Of the source.

    Raises:
        ValueError: The images do not fit (the message states the bytes), have different sizes, or
            cannot be decoded; streamed files are not square; an option or the device is unknown.
    """

    def __init__(
        self,
        source: DistilledSet | ImageDataset | ImageFolder,
        *,
        device: torch.device | str | None = None,
        limit_bytes: int | None = None,
        on_overflow: OnOverflow = "error",
        backend: Backend = "auto",
        kind: str = "real",
        factor: int = 1,
    ) -> None:
        if on_overflow not in ("error", "stream"):
            raise ValueError(f"on_overflow must be 'error' or 'stream', got {on_overflow!r}")
        if limit_bytes is not None and limit_bytes < 0:
            raise ValueError(f"limit_bytes must not be negative, got {limit_bytes}")
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
        if len(source) == 0:
            raise ValueError("source has no images")
        self.source, self.device = source, usable_device(device or "cpu")
        distilled = source if isinstance(source, DistilledSet) else None
        self.kind = kind if distilled is None else distilled.kind
        self.factor = factor if distilled is None else distilled.factor
        self.soft_labels = None if distilled is None else distilled.soft_labels
        self.lr = None if distilled is None else distilled.lr
        self.whitened = getattr(source, "whitened", False)
        self.labels, self.normalization = source.labels.cpu(), source.normalization
        self.class_names = tuple(source.class_names)
        self._num_classes = source.num_classes
        self.image_shape: tuple[int, int, int] = tuple(source[0].shape)  # type: ignore[assignment]
        self.images: Tensor | None = None
        self._stream: _FileStream | None = None
        channels, height, width = self.image_shape
        if not 1 <= self.factor <= min(height, width):
            raise ValueError(f"factor must lie in [1, {min(height, width)}], got {factor}")
        there = not isinstance(source, ImageFolder) and source.images.device == self.device
        limit = limit_bytes if limit_bytes is not None else int(_SHARE * free_bytes(self.device))
        if there or self.nbytes <= limit:
            held = source.resident(self.device) if isinstance(source, ImageFolder) else source
            self.images = held.images.to(self.device)
            return
        if on_overflow == "error":
            raise ValueError(
                f"{len(source):,} images of {channels} x {height} x {width} take "
                f"{self.nbytes:,} bytes on {self.device}, the limit is {limit:,}: give a larger "
                "limit_bytes, or on_overflow='stream'"
            )
        if isinstance(source, ImageFolder):
            if height != width:
                raise ValueError(
                    f"images of {height} x {width} cannot be streamed, only square ones: give the "
                    "folder an image_size"
                )
            _check_sizes(source)
            if backend == "auto" and self.device.type == "cpu":
                backend = "pil"  # whole small images: DALI's graph costs more than it saves
            self._stream = _FileStream(source, height, self.device, backend)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        layout: Layout | Literal["auto"] = "auto",
        *,
        num_classes: int | None = None,
        class_names: Sequence[str] = (),
        normalization: Normalization | None = None,
        kind: str | None = None,
        factor: int = 1,
        device: torch.device | str | None = None,
        limit_bytes: int | None = None,
        on_overflow: OnOverflow = "error",
        backend: Backend = "auto",
    ) -> ResidentDataset:
        """A distilled set from its folder, in any of the layouts of :func:`read_layout`.

        Args:
            folder: As there.
            layout: As there.
            num_classes: As there.
            class_names: As there.
            normalization: As there.
            kind: As there.
            factor: As there.
            device: As in the constructor, and so on.
            limit_bytes: As there.
            on_overflow: As there.
            backend: As there.

        Raises:
            FileNotFoundError: As :func:`read_layout`.
            ValueError: As :func:`read_layout` and the constructor.
        """
        path = Path(folder)
        source: DistilledSet | ImageFolder
        if (path / "set.json").is_file():
            source, count, names, known_kind = DistilledSet.load(path), None, None, "synthetic"
        else:
            source, count = open_layout(
                path,
                layout,
                num_classes=num_classes,
                class_names=class_names,
                normalization=normalization,
            )
            names, known_kind = layout_facts(source, count, class_names, factor)
        made = cls(
            source,
            device=device,
            limit_bytes=limit_bytes,
            on_overflow=on_overflow,
            backend=backend,
            kind=known_kind if kind is None else kind,
            factor=factor,
        )
        if count is not None and names is not None:
            made._num_classes, made.class_names = count, names
        return made

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self._num_classes

    @property
    def ipc(self) -> int:
        """Images per class, as in :class:`DistilledSet`."""
        return max(1, round(len(self) / self.num_classes))

    @property
    def nbytes(self) -> int:
        """Bytes of all images."""
        channels, height, width = self.image_shape
        folder = isinstance(self.source, ImageFolder)
        value = 1 if folder else self.source.images.element_size()  # type: ignore[union-attr]
        return len(self.labels) * channels * height * width * value

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int, /) -> Tensor:
        """Return image ``index`` (C, H, W)."""
        return self.source[index] if self.images is None else self.images[index]

    def batch(self, ids: Tensor) -> Tensor:
        """Images by position.

        Args:
            ids: int64 (B,), on the CPU; any order, repeats allowed.

        Returns:
            (B, C, H, W) on the device.

        Raises:
            ValueError: There is no such position, or a file cannot be decoded; the message names
                it.
        """
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < len(self):
            raise ValueError(
                f"ids must lie in [0, {len(self)}), got values from {int(ids.min())} to "
                f"{int(ids.max())}"
            )
        if self.images is not None:
            return self.images[ids.to(self.device)]
        if self._stream is not None:
            return self._stream.take(ids)
        assert not isinstance(self.source, ImageFolder)
        return self.source.images[ids].to(self.device)

    def prefetch(self, ids: Tensor) -> None:
        """Begin to prepare the batch that is asked for next, where it comes from files."""
        if self._stream is not None:
            self._stream.ask(ids)


class _FileStream:
    """Whole images from a pipeline, one batch ahead."""

    def __init__(
        self, folder: ImageFolder, size: int, device: torch.device, backend: Backend
    ) -> None:
        channels = folder.normalization.channels
        # Views are then the pixels themselves, up to float rounding.
        pixels = Normalization((0.0,) * channels, (1 / 255,) * channels)
        plain = ImageFolder(
            folder.root,
            normalization=pixels,
            listing=Listing(folder.class_names, folder.paths, folder.labels),
        )
        self._pipeline = open_pipeline(
            plain,
            size=size,
            resize=folder.resize or size,
            backend=backend,
            device=device,
            prefetch=0,
        )
        self._start()

    def ask(self, ids: Tensor) -> None:
        self._requests.put(Request(ids))
        self._coming.append((ids, self._thread.submit(next, self._batches)))

    def take(self, ids: Tensor) -> Tensor:
        if self._coming and not torch.equal(self._coming[0][0], ids):
            # Another order than was announced: what comes is dropped, an error in it too.
            wait([future for _, future in self._coming])
            self._start()
        if not self._coming:
            self.ask(ids)
        try:
            return self._coming.popleft()[1].result().images.round().to(torch.uint8)
        except BaseException:
            self._start()  # the pipeline's iterator has ended
            raise

    def _start(self) -> None:
        self._requests: SimpleQueue[Request] = SimpleQueue()
        self._batches = self._pipeline(iter(self._requests.get, None))
        self._coming: deque[tuple[Tensor, Future[Batch]]] = deque()
        self._thread = ThreadPoolExecutor(1)


def _check_sizes(folder: ImageFolder) -> None:
    """Refuse images of several sizes, which a pipeline would silently make equal."""
    if folder.image_size is not None:
        return
    sizes = image_sizes(folder)
    for index in (sizes != sizes[0]).any(dim=1).nonzero()[:1, 0].tolist():
        raise ValueError(
            f"{folder.paths[index]} has the size {tuple(sizes[index].tolist())}, "
            f"{folder.paths[0]} has {tuple(sizes[0].tolist())}; give the folder an image_size"
        )
