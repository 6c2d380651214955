"""The data's statistics at a teacher's layers, taken in a pass that can be stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional as F

from pyddfast.data import ImageSource, Normalization
from pyddfast.data.ahead import ahead, default_workers
from pyddfast.methods.chunks import ChunkStore
from pyddfast.methods.objective import Site
from pyddfast.methods.synthesis import Task
from pyddfast.nn import FeatureStats, FeatureStatsAccumulator
from pyddfast.ops.augment import draw_crop_boxes
from pyddfast.ops.patches import multi_crop
from pyddfast.random import Purpose, permutation, uniform
from pyddfast.train import progress

__all__ = ["DataPass", "check_data", "training_views"]

# Lane of the flip; a crop box takes 0 to 39.
_FLIP_LANE = 40


def check_data(task: Task, data: ImageSource | None, classes: Sequence[int] = ()) -> ImageSource:
    """The data whose statistics are taken.

    Args:
        task: Where ``data`` is None, the data itself.
        data: Real images, or None.
        classes: Labels that need images.

    Raises:
        ValueError: There are none, of another number of channels, with labels outside the task, or
            a class has no image.
    """
    found = task if data is None else data
    if not isinstance(found, ImageSource):
        raise ValueError(
            f"the statistics are taken from real images: give data=, or a data set in place of "
            f"{type(task).__name__}"
        )
    if found.normalization.channels != task.normalization.channels:
        raise ValueError(
            f"data has {found.normalization.channels} channels, "
            f"the task {task.normalization.channels}"
        )
    labels = found.labels.cpu()
    if not len(labels) or int(labels.max()) >= task.num_classes:
        highest = int(labels.max()) if len(labels) else "none"
        raise ValueError(f"labels of data must lie in [0, {task.num_classes}), got {highest}")
    counts = labels.bincount(minlength=task.num_classes)
    if empty := [label for label in classes if counts[label] == 0]:
        raise ValueError(f"data has no image of class {empty[0]} to take statistics from")
    return found


def training_views(
    images: Sequence[Tensor],
    ids: Tensor,
    normalization: Normalization,
    *,
    size: int,
    pad: int | None,
    seed: int,
) -> Tensor:
    """Each image once as in training, keyed by its id: a random crop, mirrored by chance.

    Args:
        images: uint8 (C, H_i, W_i).
        ids: int64 (B,).
        normalization: Of the teachers.
        size: Of the views.
        pad: Crops of the image's own size out of it with so many black pixels (of ``size``) around;
            None: torchvision's ``RandomResizedCrop``.
        seed: Of the draws.

    Returns:
        float32 (B, C, size, size), normalised.
    """
    if pad is not None:
        rims = [pad * image.shape[-1] // size for image in images]
        widths = torch.tensor([2 * rim + 1 for rim in rims])
        draws = uniform(seed, Purpose.STATISTICS, ids[:, None], 1, [0, 1])
        corners = (draws * widths[:, None]).long()
        boxes = torch.cat([corners, torch.tensor([image.shape[-2:] for image in images])], 1)
        images = [F.pad(image, (rim,) * 4) for image, rim in zip(images, rims, strict=True)]
    else:
        boxes = draw_crop_boxes(
            seed,
            ids,
            torch.ones_like(ids),
            torch.tensor([image.shape[-2:] for image in images]),
            purpose=Purpose.STATISTICS,
        )
    views = multi_crop(
        images,
        boxes[:, None],
        size=size,
        mean=normalization.mean,
        std=normalization.std,
    )[0]
    mirrored = uniform(seed, Purpose.STATISTICS, ids, 1, _FLIP_LANE) < 0.5
    return torch.where(mirrored[:, None, None, None], views.flip(-1), views)


@dataclass(frozen=True)
class DataPass:
    """How the data's statistics are taken; once a teacher, in one pass in a keyed random order.

    Attributes:
        data: Real images.
        normalization: Of the teachers.
        size: Of the views.
        pad: See :func:`training_views`.
        batch_size: Images of a batch; matters for ``batch_variances`` alone.
        batch_variances: The mean over the batches of their variances, which lacks the spread of
            the batches' means (what the official codes store), instead of the whole variance.
        classes: Number of classes; None: no statistics a class.
        within_images: See :class:`FeatureStatsAccumulator`.
        swapped: Exchange a class's means and variances of cells.
        cell: Pixels a side of a cell.
        seed: Of order and views.
    """

    data: ImageSource
    normalization: Normalization
    size: int
    pad: int | None
    batch_size: int
    batch_variances: bool
    classes: int | None
    within_images: bool
    swapped: bool
    cell: int
    seed: int

    def take(self, site: Site) -> list[FeatureStats]:
        """The statistics of every teacher, float32 on the CPU.

        With a run folder they are kept in ``statistics/``, a stopped pass goes on, and processes
        divide the teachers.
        """
        store, ranks = site.store, site.ranks
        made = {
            turn: self._take(site, turn)
            for turn in range(len(site.teachers))
            if turn % ranks.world == ranks.rank
        }
        ranks.wait()
        found = []
        for turn in range(len(site.teachers)):
            stats = made.get(turn)
            if stats is None:
                assert store is not None  # the engine asks for a folder where there are ranks
                stats = _read(store, _name(turn))
                if stats is None:
                    raise ValueError(f"{store.run.path / _name(turn)} has disappeared")
            found.append(stats)
        return found

    def _images(self, indices: list[int]) -> Iterator[Tensor]:
        """The data's images; files are decoded ahead."""
        if isinstance(getattr(self.data, "images", None), Tensor):
            yield from (self.data[index].cpu() for index in indices)
            return
        decoded = ahead(
            lambda index: self.data[index],
            indices,
            workers=default_workers(),
            most=self.batch_size,
        )
        for _, image in decoded:
            assert isinstance(image, Tensor)  # what cannot be read has raised
            yield image

    def _take(self, site: Site, turn: int) -> FeatureStats:
        store, name, part = site.store, _name(turn), f"statistics/{turn:02d}.part.safetensors"
        finished = None if store is None else _read(store, name)
        if finished is not None:
            assert store is not None
            store.run.remove(part)  # it may have been killed before it could
            return finished
        accumulator = FeatureStatsAccumulator(site.teachers[turn], self.cell, self.classes)
        done = 0
        checkpoint = None if store is None else store.read(part)
        if checkpoint is not None:
            accumulator.load_state_dict(checkpoint[0])
            done = checkpoint[1]["done"]
        order = permutation(self.seed, Purpose.STATISTICS, len(self.data))
        batches = torch.split(order, self.batch_size)
        labels = self.data.labels.cpu()
        images = self._images([int(i) for batch in batches[done:] for i in batch])
        saved = time.perf_counter()
        with progress(f"statistics of teacher {turn}", len(batches)) as advance:
            advance(done)
            for number in range(done, len(batches)):
                ids = batches[number]
                views = training_views(
                    list(islice(images, len(ids))),
                    ids,
                    self.normalization,
                    size=self.size,
                    pad=self.pad,
                    seed=self.seed,
                )
                accumulator.update(views.to(site.device), labels[ids].to(site.device))
                advance(1)
                late = time.perf_counter() - saved >= site.checkpoint_seconds
                if store is not None and late and number + 1 < len(batches):
                    store.write(part, accumulator.state_dict(), {"done": number + 1})
                    saved = time.perf_counter()
        stats = accumulator.result(
            "batch_mean" if self.batch_variances else "whole", within_images=self.within_images
        )
        stats = stats.to(torch.device("cpu"), torch.float32)
        if self.swapped:
            stats = _swap_cells(stats, accumulator)
        if store is not None:
            tensors = {
                field.name: getattr(stats, field.name)
                for field in fields(stats)
                if isinstance(getattr(stats, field.name), Tensor)
            }
            store.write(name, tensors, {"sizes": list(stats.sizes)})
            store.run.remove(part)
        return stats


def _name(turn: int) -> str:
    return f"statistics/{turn:02d}.safetensors"


def _read(store: ChunkStore, name: str) -> FeatureStats | None:
    found = store.read(name)
    if found is None:
        return None
    tensors, state = found
    return FeatureStats(tuple(state["sizes"]), **tensors)


def _swap_cells(stats: FeatureStats, accumulator: FeatureStatsAccumulator) -> FeatureStats:
    """The classes' means and variances of cells under each other's name."""
    assert stats.class_mean is not None
    assert stats.class_var is not None
    swap = torch.tensor(accumulator.cell_segments).repeat_interleave(torch.tensor(stats.sizes))
    return FeatureStats(
        stats.sizes,
        stats.mean,
        stats.var,
        torch.where(swap, stats.class_var, stats.class_mean),
        torch.where(swap, stats.class_mean, stats.class_var),
    )
