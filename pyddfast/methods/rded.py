"""RDED: the most confident crops of real images, tiled to images.

"On the Diversity and Realism of Distilled Dataset: An Efficient Dataset Distillation Paradigm"
(Sun et al., CVPR 2024); official code LINs-lab/RDED, ``synthesize/``.  For every class: a pool of
images, several random crops of each, the teacher's confidence in each crop; the best crop of every
image, the most confident images, and factor × factor of those patches to an image.

Where the official code leaves the result to chance (directory order, an unseeded shuffle, an
unstable sort) this one is defined: classes in label order, keyed draws, ties to the lowest rank.
The picks do not depend on batch size or device beyond the rounding of the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from pyddfast.data import DistilledSet, ImageDataset, ImageSource
from pyddfast.methods.synthesis import common_size
from pyddfast.ops.augment import draw_crop_boxes
from pyddfast.ops.patches import mosaic, multi_crop, select_patches
from pyddfast.random import Purpose, permutation

__all__ = ["Candidates", "RDEDConfig", "check_rded", "default_factor", "rded"]

Candidates: TypeAlias = Sequence[Sequence[int]] | Mapping[int, Sequence[int]]
Images: TypeAlias = Tensor | list[Tensor]


@dataclass(frozen=True)
class RDEDConfig:
    """Settings of RDED; the defaults are the published ones.

    Attributes:
        ipc: Images a class of the distilled set.
        factor: Each image is factor × factor patches.  None: 1 below 128 px, 2 from there on.  The
            papers use 1 up to 64 px and 2 from 128 px; between, 2 would make patches of less than
            64 px, so 1 is kept.
        image_size: Side of an image in pixels.  None: that of the data set, or 224 for images of
            several sizes.
        num_crops: Random crops of each image.
        pool: Images of each class that compete, drawn at random.
        scale: Smallest and largest share of the image that a crop covers.
        ratio: Smallest and largest width / height of a crop.
        semantics: "paper" rounds pixels to bytes and takes whole classes smaller than the pool;
            "official" cuts pixels off as the official code (a darkening of half a level on
            average) and refuses such classes, where that code fails.
        seed: Seed of the pool and of the crops.
        batch_size: Crops in one forward pass of the teacher; no effect on the result but rounding.
    """

    ipc: int = 10
    factor: int | None = None
    image_size: int | None = None
    num_crops: int = 5
    pool: int = 300
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (1.0, 1.0)
    semantics: Literal["paper", "official"] = "paper"
    seed: int = 0
    batch_size: int = 500

    def __post_init__(self) -> None:
        for name in ("ipc", "num_crops", "pool", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("factor", "image_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.semantics not in ("paper", "official"):
            raise ValueError(f"semantics must be 'paper' or 'official', got {self.semantics!r}")


def default_factor(image_size: int) -> int:
    """1 below 128 px, 2 from there on."""
    return 1 if image_size < 128 else 2


def rded(
    dataset: ImageSource,
    teacher: nn.Module,
    config: RDEDConfig | None = None,
    *,
    candidates: Candidates | None = None,
    device: torch.device | str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> DistilledSet:
    """Distill a data set by RDED.

    Args:
        dataset: Real images; equal sizes are scored in one piece, others one by one.
        teacher: The observer: normalised float32 images (B, C, S, S) to logits (B, num_classes).
            Run in evaluation mode; its mode is restored.
        config: Settings; default :class:`RDEDConfig`.
        candidates: The pool of each class in order, as positions in ``dataset``: a list in label
            order or a mapping by label.  All of them compete, whatever ``config.pool`` is; ties go
            to the earlier one.  CA2D passes the head of its ranking here.
        device: Where the teacher runs; default where its parameters are.
        on_progress: Called with (classes done, classes in all) after each class.

    Returns:
        A set of kind ``"patches"``, ``ipc`` images of every class in label order, the most
        confident patches in its first images' first tiles.  For every image and tile (row by row)
        ``meta`` holds ``source_indices``, ``boxes`` (top, left, height, width in source pixels),
        ``crops`` (number of the crop) and ``scores`` (−log p_y), (N, factor²) each.

    Raises:
        ValueError: ``ipc · factor²`` is more than a class or its pool has, a candidate is out of
            range, repeated or of another class, the factor does not fit the image, or the teacher
            gives another number of logits.  All but the last before any work.
    """
    config = RDEDConfig() if config is None else config
    size, factor, pools = check_rded(dataset, config, candidates=candidates)
    count = config.ipc * factor**2
    if device is None:
        parameter = next(teacher.parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device

    patch_size = size // factor
    mean, std = dataset.normalization.mean, dataset.normalization.std
    images: list[Tensor] = []
    picks: list[Tensor] = []  # per class (count, 7): source index, crop, box, score
    was_training = teacher.training
    teacher.eval()
    try:
        for label, pool in enumerate(pools):
            boxes = _draw_boxes(dataset, pool, config)
            logits = _score(dataset, teacher, pool, boxes, patch_size, size, config, device)
            if logits.shape[-1] != dataset.num_classes:
                raise ValueError(
                    f"teacher gives {logits.shape[-1]} logits, "
                    f"the data set has {dataset.num_classes} classes"
                )
            selection = select_patches(logits, torch.full((len(pool),), label), count)
            image, crop, score = (part[0] for part in selection[1:])
            chosen = boxes[image, crop]
            patches = multi_crop(
                _gather(dataset, [pool[i] for i in image.tolist()]),
                chosen[:, None],
                size=patch_size,
                mean=mean,
                std=std,
            )[0]
            images.append(
                mosaic(
                    patches,
                    size=size,
                    factor=factor,
                    mean=mean,
                    std=std,
                    quantize="round" if config.semantics == "paper" else "truncate",
                )
            )
            source = torch.tensor(pool)[image]
            where = torch.cat((source[:, None], crop[:, None], chosen), dim=1)
            picks.append(torch.cat((where.double(), score[:, None].double()), dim=1))
            if on_progress is not None:
                on_progress(label + 1, len(pools))
    finally:
        teacher.train(was_training)

    # Image t of a class holds the ranks t, ipc + t, 2 ipc + t, ...
    record = torch.stack(picks).view(len(pools), factor**2, config.ipc, 7)
    record = record.transpose(1, 2).flatten(0, 1)
    meta = {
        "method": "rded",
        **asdict(config),
        "factor": factor,
        "image_size": size,
        "candidates": "given" if candidates is not None else "random",
        "pool_sizes": [len(pool) for pool in pools],
        "source_indices": record[..., 0].long().tolist(),
        "crops": record[..., 1].long().tolist(),
        "boxes": record[..., 2:6].long().tolist(),
        "scores": record[..., 6].tolist(),
    }
    return DistilledSet(
        images=torch.cat(images),
        labels=torch.arange(len(pools)).repeat_interleave(config.ipc),
        num_classes=dataset.num_classes,
        normalization=dataset.normalization,
        class_names=tuple(dataset.class_names),
        factor=factor,
        kind="patches",
        meta=meta,
    )


def check_rded(
    dataset: ImageSource, config: RDEDConfig, *, candidates: Candidates | None = None
) -> tuple[int, int, list[list[int]]]:
    """Whether :func:`rded` can do it, without any work: for callers that train a teacher first.

    Args:
        dataset: As for :func:`rded`.
        config: As for :func:`rded`.
        candidates: As for :func:`rded`.

    Returns:
        Image size, factor, and the ordered pool of each class.

    Raises:
        ValueError: As :func:`rded`, but for the teacher.
    """
    size = config.image_size or common_size(dataset) or 224
    factor = default_factor(size) if config.factor is None else config.factor
    if factor > size:
        raise ValueError(f"factor must be at most the image size {size}, got {factor}")
    pools = _pools(dataset, config, candidates)
    _check_pools(
        pools, config.ipc * factor**2, factor, config, dataset, given=candidates is not None
    )
    return size, factor, pools


def _pools(
    dataset: ImageSource, config: RDEDConfig, candidates: Candidates | None
) -> list[list[int]]:
    """The ordered pool of each class."""
    labels = dataset.labels.cpu()
    classes = dataset.num_classes
    if candidates is None:
        pools = []
        for label in range(classes):
            members = (labels == label).nonzero().squeeze(1)
            order = permutation(config.seed, Purpose.CANDIDATES, len(members), label)
            pools.append(members[order[: config.pool]].tolist())
        return pools
    if len(candidates) != classes:
        raise ValueError(
            f"candidates must hold one list for each of {classes} classes, got {len(candidates)}"
        )
    if isinstance(candidates, Mapping) and set(candidates) != set(range(classes)):
        raise ValueError(f"candidates must have the keys 0 to {classes - 1}")
    pools = [[int(index) for index in candidates[label]] for label in range(classes)]
    for label, pool in enumerate(pools):
        if len(set(pool)) != len(pool):
            raise ValueError(f"candidates of class {label} hold an index more than once")
        for index in pool:
            if not 0 <= index < len(dataset):
                raise ValueError(
                    f"candidates must lie in [0, {len(dataset)}), got {index} for class {label}"
                )
            if int(labels[index]) != label:
                raise ValueError(
                    f"candidate {index} of class {label} has the label {int(labels[index])}"
                )
    return pools


def _check_pools(
    pools: list[list[int]],
    count: int,
    factor: int,
    config: RDEDConfig,
    dataset: ImageSource,
    *,
    given: bool,
) -> None:
    needed, why = count, f"ipc = {config.ipc} with factor = {factor} needs {count} images a class"
    if config.semantics == "official" and not given and config.pool > count:
        needed, why = config.pool, f"semantics='official' needs pool = {config.pool} images a class"
    short = {label: len(pool) for label, pool in enumerate(pools) if len(pool) < needed}
    if short:
        label, size = next(iter(short.items()))
        name = dataset.class_names[label] if dataset.class_names else ""
        source = "candidates" if given else f"images within the pool of {config.pool}"
        more = f" ({len(short)} such classes)" if len(short) > 1 else ""
        raise ValueError(f"{why}; class {label} {name!r} has {size} {source}{more}")


def _gather(dataset: ImageSource, indices: Sequence[int]) -> Images:
    """Images as one tensor where they are one, else decoded one by one."""
    if isinstance(dataset, ImageDataset):
        return dataset.images[torch.tensor(indices, dtype=torch.int64)]
    images = [dataset[index] for index in indices]
    if len({image.shape for image in images}) == 1:
        return torch.stack(images)
    return images


def _draw_boxes(dataset: ImageSource, pool: Sequence[int], config: RDEDConfig) -> Tensor:
    """int64 (pool, num_crops, 4), keyed by the image's position in the data set and the crop."""
    crops = config.num_crops

    def draw(indices: Sequence[int], size: tuple[int, int]) -> Tensor:
        return draw_crop_boxes(
            config.seed,
            torch.tensor(indices).repeat_interleave(crops),
            torch.arange(crops).repeat(len(indices)),
            size,
            scale=config.scale,
            ratio=config.ratio,
            purpose=Purpose.MULTI_CROP,
        ).view(len(indices), crops, 4)

    if isinstance(dataset, ImageDataset):
        height, width = dataset.images.shape[-2:]
        return draw(pool, (height, width))
    return torch.cat([draw([index], _extent(dataset[index])) for index in pool])


def _extent(image: Tensor) -> tuple[int, int]:
    return int(image.shape[-2]), int(image.shape[-1])


@torch.no_grad()
def _score(
    dataset: ImageSource,
    teacher: nn.Module,
    pool: Sequence[int],
    boxes: Tensor,
    patch_size: int,
    size: int,
    config: RDEDConfig,
    device: torch.device | str,
) -> Tensor:
    """The teacher's logits of every crop, (num_crops, pool, classes)."""
    step = max(1, config.batch_size // config.num_crops)
    logits = []
    for start in range(0, len(pool), step):
        crops = multi_crop(
            _gather(dataset, pool[start : start + step]),
            boxes[start : start + step],
            size=patch_size,
            pad_to=size,
            mean=dataset.normalization.mean,
            std=dataset.normalization.std,
        )
        outputs: Tensor = teacher(crops.flatten(0, 1).to(device))
        logits.append(outputs.float().cpu().view(*crops.shape[:2], -1))
    return torch.cat(logits, dim=1)
