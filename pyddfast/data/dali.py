"""The pipeline of :mod:`pyddfast.data.pipelines` on NVIDIA DALI (github.com/NVIDIA/DALI).

The graph has no random operator: boxes and flips come with the request, so views do not depend on
the batch size, and there is no generator state to save.  It cuts first and resizes then, as
torchvision does; DALI's own random-resized-crop filters across the border of the box.

DALI decodes plain JPEG files (grey or YCbCr, complete), to the bytes that Pillow decodes.  Every
other file is decoded by Pillow and handed on as an uncompressed PNM, so that the rules of
:class:`pyddfast.data.ImageFolder` hold for it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from pyddfast._extras import require
from pyddfast.data.folder import cut_geometry, read_image
from pyddfast.data.pipelines import Batch, Box, ImagePipeline, Request, box_lists

__all__ = ["DALIPipeline"]

# The end-of-image marker; a file without it is truncated, or has something behind the image.
_END = b"\xff\xd9"
# What Pillow calls the JPEG files that DALI may decode, by channels asked for.  Grey of a colour
# file is Pillow's: DALI's comes from the file's luma and differs by up to 3.
_PLAIN = {1: ("L",), 3: ("L", "RGB")}


@dataclass(frozen=True)
class _Sample:
    """One encoded image and, unless all of it is wanted, the geometry of its view (rows, columns).

    ``start`` and ``shape`` are cut out, resized to ``target``, and from ``offset`` on a view cut.
    """

    content: bytes
    height: int
    width: int
    start: tuple[int, int] = (0, 0)
    shape: tuple[int, int] = (0, 0)
    target: tuple[int, int] = (0, 0)
    offset: tuple[int, int] = (0, 0)


class DALIPipeline(ImagePipeline):
    """Decodes, cuts, resizes, flips and normalises in one DALI graph; see :func:`open_pipeline`."""

    def __init__(self, *args: Any) -> None:
        self._dali = require("nvidia.dali", "dali")
        super().__init__(*args)
        self._graphs: dict[bool, Any] = {}  # by "whole images", made for the largest batch so far

    def _open(self, index: int) -> _Sample:
        content = self.folder.paths[index].read_bytes()
        try:
            with require("PIL.Image", "methods").open(io.BytesIO(content)) as header:
                plain = header.format == "JPEG" and header.mode in _PLAIN[self._channels]
                size = header.height, header.width
        except Exception:  # the second look names the file
            plain = False
        if plain and content.endswith(_END):
            return _Sample(content, *size)
        return self._transcode(index)

    def _transcode(self, index: int) -> _Sample:
        image = read_image(self.folder.paths[index], self._channels)
        magic = "P5" if self._channels == 1 else "P6"
        header = f"{magic} {image.width} {image.height} 255\n".encode()
        return _Sample(header + image.tobytes(), image.height, image.width)

    def _size(self, opened: _Sample) -> tuple[int, int]:
        return opened.height, opened.width

    def _cut(self, opened: _Sample, box: Box) -> _Sample:
        content, height, width = opened.content, opened.height, opened.width
        if box is None:
            target, offset = cut_geometry(height, width, self.resize, self.size)
            return _Sample(content, height, width, (0, 0), (height, width), target, offset)
        if isinstance(box[0], list):
            return opened
        top, left, h, w = box
        return _Sample(content, height, width, (top, left), (h, w), (self.size, self.size))

    def _batch(self, request: Request, samples: list[Any]) -> Batch:
        try:
            return super()._batch(request, samples)
        except RuntimeError:
            # DALI refused a file that looked sound, and its pipeline has ended.  It does not say
            # which: Pillow reads this batch anew, names what is bad, and decides what is good.
            self._graphs.clear()
            ids = request.ids.tolist()
            pairs = zip(ids, box_lists(request), strict=True)
            again = [self._read(index, box, self._transcode) for index, box in pairs]
            return super()._batch(request, again)

    def _views(self, samples: Sequence[Any], flips: Tensor) -> Tensor:
        graph = self._graph(len(samples), whole=False)
        for name in ("start", "shape", "target", "offset"):
            dtype = np.float32 if name == "target" else np.int32  # the operators' own types
            graph.feed_input(name, [np.array(getattr(x, name), dtype) for x in samples])
        graph.feed_input("flip", list(flips.numpy().astype(np.int32)))
        views: Tensor = from_dlpack(self._run(graph, samples).as_tensor())
        return views

    def _images(self, samples: Sequence[Any]) -> list[Tensor]:
        graph = self._graph(len(samples), whole=True)
        images = self._run(graph, samples)
        return [from_dlpack(images[i]).permute(2, 0, 1) for i in range(len(samples))]

    @property
    def _channels(self) -> int:
        return self.folder.normalization.channels

    def _run(self, graph: Any, samples: Sequence[_Sample]) -> Any:
        encoded: list[npt.NDArray[np.uint8]] = [np.frombuffer(x.content, np.uint8) for x in samples]
        graph.feed_input("encoded", encoded)
        return graph.run()[0]

    def _graph(self, batch: int, *, whole: bool) -> Any:
        """The graph for batches of up to ``batch`` images."""
        graph = self._graphs.get(whole)
        if graph is None or graph.max_batch_size < batch:
            on_gpu = self.device.type == "cuda"
            graph = self._dali.Pipeline(
                batch_size=batch,
                num_threads=self.workers,
                device_id=(self.device.index or 0) if on_gpu else None,
                # Batches follow each other in the maker's thread, which is ahead of the training.
                prefetch_queue_depth=1,
            )
            with graph:
                graph.set_outputs(self._define(whole, "mixed" if on_gpu else "cpu"))
            graph.build()
            self._graphs[whole] = graph
        return graph

    def _define(self, whole: bool, device: str) -> Any:
        fn, types = require("nvidia.dali.fn", "dali"), require("nvidia.dali.types", "dali")

        def given(name: str, dtype: Any, ndim: int = 1) -> Any:
            return fn.external_source(name=name, dtype=dtype, ndim=ndim)

        encoded = given("encoded", types.UINT8)
        output_type = types.GRAY if self._channels == 1 else types.RGB
        if whole:
            return fn.decoders.image(
                encoded, device=device, output_type=output_type, adjust_orientation=False
            )
        crop = fn.decoders.image_slice(
            encoded,
            start=given("start", types.INT32),
            shape=given("shape", types.INT32),
            axes=[0, 1],
            device=device,
            output_type=output_type,
            adjust_orientation=False,  # Pillow does not rotate either
        )
        resized = fn.resize(crop, size=given("target", types.FLOAT), antialias=True)
        view = fn.slice(
            resized, start=given("offset", types.INT32), shape=[self.size] * 2, axes=[0, 1]
        )
        return fn.crop_mirror_normalize(
            view,
            mirror=given("flip", types.INT32, ndim=0),
            dtype=types.FLOAT,
            output_layout="CHW",
            mean=[255 * value for value in self.folder.normalization.mean],
            std=[255 * value for value in self.folder.normalization.std],
        )
