"""The pipeline of :mod:`pyddfast.data.pipelines` on NVIDIA DALI (github.com/NVIDIA/DALI).

DALI decodes each image and cuts its box; resize, flip and normalisation are those of our ops.
DALI's own resize repeats the border pixel of a crop where torchvision's weighs what lies inside:
the outermost pixels of views of real photos were up to 17/255 apart.  There is no random operator:
boxes and flips come with the request, so views do not depend on the batch size, and there is no
generator state to save.

DALI decodes plain JPEG files (grey or YCbCr, complete), to the bytes that Pillow decodes.  Every
other file is decoded by Pillow and handed on as an uncompressed PNM, so that the rules of
:class:`pyddfast.data.ImageFolder` hold for it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from pyddfast._extras import require
from pyddfast.data.folder import cut_geometry, read_image
from pyddfast.data.pipelines import Batch, Box, ImagePipeline, Request, box_lists
from pyddfast.ops.augment import AugmentParams, augment
from pyddfast.ops.patches import multi_crop

__all__ = ["DALIPipeline"]

# The end-of-image marker; a file without it is truncated, or has something behind the image.
_END = b"\xff\xd9"
# What Pillow calls the JPEG files that DALI may decode, by channels asked for.  Grey of a colour
# file is Pillow's: DALI's comes from the file's luma and differs by up to 3.
_PLAIN = {1: ("L",), 3: ("L", "RGB")}


@dataclass(frozen=True)
class _Sample:
    """One encoded image of a height and width, and what to cut out of it (rows, columns).

    Of an evaluation view also the size to resize to, and where its centre begins.
    """

    content: bytes
    size: tuple[int, int]
    start: tuple[int, int] = (0, 0)
    shape: tuple[int, int] = (0, 0)
    resize: tuple[int, int] | None = None
    offset: tuple[int, int] = (0, 0)


class DALIPipeline(ImagePipeline):
    """Decodes and cuts with DALI; see :func:`open_pipeline`."""

    def __init__(self, *args: Any) -> None:
        self._dali = require("nvidia.dali", "dali")
        super().__init__(*args)
        self._graph: Any = None  # made for the largest batch so far
        self._lock = Lock()  # two streams of one pipeline take turns

    def _open(self, index: int) -> _Sample:
        content = self.folder.paths[index].read_bytes()
        try:
            with require("PIL.Image", "methods").open(io.BytesIO(content)) as header:
                plain = header.format == "JPEG" and header.mode in _PLAIN[self._channels]
                size = header.height, header.width
        except Exception:  # the second look names the file
            plain = False
        if plain and content.endswith(_END):
            return _Sample(content, size)
        return self._transcode(index)

    def _transcode(self, index: int) -> _Sample:
        image = read_image(self.folder.paths[index], self._channels)
        magic = "P5" if self._channels == 1 else "P6"
        header = f"{magic} {image.width} {image.height} 255\n".encode()
        return _Sample(header + image.tobytes(), (image.height, image.width))

    def _size(self, opened: _Sample) -> tuple[int, int]:
        return opened.size

    def _cut(self, opened: _Sample, box: Box) -> _Sample:
        if box is not None and not isinstance(box[0], list):
            top, left, height, width = box
            return replace(opened, start=(top, left), shape=(height, width))
        whole = replace(opened, shape=opened.size)
        if box is not None:
            return whole
        resize, offset = cut_geometry(*opened.size, self.resize, self.size)
        return replace(whole, resize=resize, offset=offset)

    def _batch(self, request: Request, samples: list[Any]) -> Batch:
        try:
            return super()._batch(request, samples)
        except RuntimeError:
            # DALI refused a file that looked sound, and its pipeline has ended.  It does not say
            # which: Pillow reads this batch anew, names what is bad, and decides what is good.
            self._graph = None
            ids = request.ids.tolist()
            pairs = zip(ids, box_lists(request), strict=True)
            again = [self._read(index, box, self._transcode) for index, box in pairs]
            return super()._batch(request, again)

    def _views(self, samples: Sequence[Any], flips: Tensor) -> Tensor:
        images = self._images(samples)
        statistics = vars(self.folder.normalization)
        flips = flips.to(self.device)
        if samples[0].resize is not None:
            views = [self._evaluated(*pair) for pair in zip(images, samples, strict=True)]
            order = torch.arange(len(views), device=self.device)
            return augment(torch.stack(views), order, AugmentParams(flip=flips), **statistics)
        boxes = torch.tensor([[[0, 0, *image.shape[1:]]] for image in images])
        crops = multi_crop(images, boxes, size=self.size, **statistics)[0]
        crops[flips] = crops[flips].flip(-1)
        return crops

    def _evaluated(self, image: Tensor, sample: _Sample) -> Tensor:
        """Resized and cut, as bytes: torch's resize of bytes rounds as Pillow's does."""
        on_gpu = image.is_cuda  # where torch resizes floats alone
        pixels = image[None].float() if on_gpu else image[None]
        resized = F.interpolate(pixels, size=sample.resize, mode="bilinear", antialias=True)[0]
        top, left = sample.offset
        view = resized[:, top : top + self.size, left : left + self.size]
        return view.round().to(torch.uint8) if on_gpu else view

    def _images(self, samples: Sequence[Any]) -> list[Tensor]:
        with self._lock:
            graph = self._graph_for(len(samples))
            graph.feed_input("encoded", [np.frombuffer(x.content, np.uint8) for x in samples])
            for name in ("start", "shape"):
                graph.feed_input(name, [np.array(getattr(x, name), np.int32) for x in samples])
            (images,) = graph.run()
        return [from_dlpack(images[i]).permute(2, 0, 1) for i in range(len(samples))]

    @property
    def _channels(self) -> int:
        return self.folder.normalization.channels

    def _graph_for(self, batch: int) -> Any:
        """The graph for batches of up to ``batch`` images."""
        if self._graph is not None and self._graph.max_batch_size >= batch:
            return self._graph
        fn, types = require("nvidia.dali.fn", "dali"), require("nvidia.dali.types", "dali")
        on_gpu = self.device.type == "cuda"
        graph = self._dali.Pipeline(
            batch_size=batch,
            num_threads=self.workers,
            device_id=(self.device.index or 0) if on_gpu else None,
            # Batches follow each other in the maker's thread, which is ahead of the training.
            prefetch_queue_depth=1,
        )
        with graph:
            corner = {
                name: fn.external_source(name=name, dtype=types.INT32, ndim=1)
                for name in ("start", "shape")
            }
            image = fn.decoders.image_slice(
                fn.external_source(name="encoded", dtype=types.UINT8, ndim=1),
                **corner,
                axes=[0, 1],
                device="mixed" if on_gpu else "cpu",
                output_type=types.GRAY if self._channels == 1 else types.RGB,
                adjust_orientation=False,  # Pillow does not rotate either
            )
            graph.set_outputs(image)
        graph.build()
        self._graph = graph
        return graph
