"""What methods that optimise images have in common: their settings and their first images.

The loop itself is in :mod:`pyddfast.methods.engine`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, TypeVar, get_args

import torch
from torch import Tensor, nn

from pyddfast.data import DistilledSet, ImageDataset, ImageSource, Normalization
from pyddfast.methods.chunks import Order
from pyddfast.ops.patches import multi_crop
from pyddfast.random import Purpose, generator, permutation, randint, uniform

__all__ = [
    "Preset",
    "SynthesisConfig",
    "Task",
    "TaskInfo",
    "Teachers",
    "check_counts",
    "check_pixels",
    "common_size",
    "initial_flip",
    "initial_noise",
    "initial_sources",
    "resized",
    "resolve",
]

Preset: TypeAlias = Literal[
    "auto", "imagenet-1k", "imagenet-10", "imagenet-21k", "tiny-imagenet", "cifar-10", "cifar-100"
]
Teachers: TypeAlias = nn.Module | Sequence[nn.Module]


class Task(Protocol):
    """The classes to make images of; every data set is one."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class in label order, or empty."""

    @property
    def normalization(self) -> Normalization:
        """The normalisation that the teachers expect."""


@dataclass(frozen=True)
class TaskInfo:
    """A :class:`Task` without data: a teacher is enough to synthesise from.

    Attributes:
        num_classes: Logits of the teachers.
        normalization: What the teachers expect.
        class_names: One name a class, or empty.
    """

    num_classes: int
    normalization: Normalization
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class SynthesisConfig:
    """Settings of methods that optimise images; None stands for the published value.

    Attributes:
        ipc: Images a class.
        preset: Data set whose published values fill what is None; auto goes by the image size:
            cifar-100 up to 32 px, tiny-imagenet up to 64 px, imagenet-1k above.
        image_size: Side of the images in pixels.  None: that of the data, or 224.
        iterations: Steps of each batch.
        batch_size: Images optimised together.
        lr: Learning rate of Adam at the start; a cosine leads to 0.
        bn_weight: Weight of the BatchNorm statistics in the loss.
        first_multiplier: Additional weight of the first BatchNorm layer.
        jitter: Smallest and largest roll in pixels, down and to the right.
        crop: Random resized crop and flip before the roll.
        classes: Labels to make images of, in this order; none: all.
        init: First images: noise; data: images of the data set; set: those of a distilled set.
        bn_mode: tap reads each BatchNorm layer's input on its way; fused also replaces the layer,
            which saves reads.
        precision: Arithmetic of the teacher: fp32, or bf16 or fp16 by autocast.
        channels_last: Memory format in which the teacher runs.
        cuda_graph: Capture the step once and replay it (CUDA).
        semantics: "paper" follows the formulas; "official" also repeats what the published code
            does beside them, listed at each method.
        seed: Seed of first images and augmentation.
    """

    # How images come into batches: see plan_chunks.  A method's, not a user's, choice.
    order: ClassVar[Order] = "slot"

    ipc: int = 10
    preset: Preset = "auto"
    image_size: int | None = None
    iterations: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    bn_weight: float | None = None
    first_multiplier: float = 10.0
    jitter: tuple[int, int] | None = None
    crop: bool | None = None
    classes: tuple[int, ...] = ()
    init: Literal["noise", "data", "set"] = "noise"
    bn_mode: Literal["tap", "fused"] = "tap"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    cuda_graph: bool = False
    semantics: Literal["paper", "official"] = "paper"
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, "ipc", "image_size", "iterations", "batch_size")
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise ValueError(f"lr must be positive, got {self.lr}")
        for name in ("bn_weight", "first_multiplier"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name} must not be negative, got {value}")
        if self.jitter is not None:
            if not all(type(pixels) is int for pixels in self.jitter):
                raise TypeError(f"jitter must be two ints, got {self.jitter}")
            if len(self.jitter) != 2 or self.jitter[0] > self.jitter[1]:
                raise ValueError(f"jitter must be (smallest, largest), got {self.jitter}")
        for name, allowed in (
            ("preset", get_args(Preset)),
            ("init", ("noise", "data", "set")),
            ("bn_mode", ("tap", "fused")),
            ("precision", ("fp32", "bf16", "fp16")),
            ("semantics", ("paper", "official")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        if len(set(self.classes)) != len(self.classes) or min(self.classes, default=0) < 0:
            raise ValueError(f"classes must be different labels, got {self.classes}")


def check_counts(config: object, *names: str) -> None:
    """Settings that count are None or ints of at least 1.

    Raises:
        TypeError: One is no int; the message names it.
        ValueError: One is below 1.
    """
    for name in names:
        value = getattr(config, name)
        if value is None:
            continue
        if type(value) is not int:
            raise TypeError(f"{name} must be an int, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


_Config = TypeVar("_Config", bound=SynthesisConfig)


def resolve(config: _Config, task: Task, published: Mapping[str, Mapping[str, Any]]) -> _Config:
    """Fill what is None with the preset's published values, and check it against the task.

    Raises:
        ValueError: A class is not one of the task's, the method has no such preset, or
            semantics="official" cannot do it.
    """
    size = config.image_size or common_size(task) or 224
    preset = config.preset
    if preset == "auto":
        preset = "cifar-100" if size <= 32 else "tiny-imagenet" if size <= 64 else "imagenet-1k"
    if preset not in published:
        raise ValueError(f"preset must be one of {', '.join(published)}, got {preset!r}")
    values: dict[str, Any] = {"preset": preset, "image_size": size}
    for name, value in published[preset].items():
        if getattr(config, name) is None:
            values[name] = value
    if bad := [label for label in config.classes if label >= task.num_classes]:
        raise ValueError(f"classes must lie in [0, {task.num_classes}), got {bad[0]}")
    filled = replace(config, **values)
    return replace(filled, classes=filled.classes or tuple(range(task.num_classes)))


def check_pixels(source: ImageSource, data: str) -> None:
    """Refuse images that are not bytes.

    Args:
        source: The data set.
        data: How the message begins: why bytes are needed, and what to call the data set.

    Raises:
        ValueError: They are normalised or whitened.
    """
    held = getattr(source, "images", None)
    if isinstance(held, Tensor) and held.dtype != torch.uint8:
        raise ValueError(
            f"{data} must hold uint8 images, not {held.dtype} ones (normalised or whitened)"
        )


def common_size(source: Task) -> int | None:
    """Side of the images if the data set holds them in one size."""
    if isinstance(source, ImageDataset | DistilledSet):
        return int(min(source.images.shape[-2:]))
    size = getattr(source, "image_size", None)
    return size if isinstance(size, int) else None


def initial_noise(seed: int, label: int, slot: int, shape: tuple[int, int, int]) -> Tensor:
    """Standard normal image in normalised units, keyed by class and number within the class."""
    return torch.randn(shape, generator=generator(seed, Purpose.INITIAL, label, slot))


def initial_flip(seed: int, label: int, slot: int) -> bool:
    """Whether a first image that is drawn with replacement is mirrored."""
    return bool(uniform(seed, Purpose.INITIAL, label, slot, 1) < 0.5)


def initial_sources(
    source: ImageSource,
    classes: Sequence[int],
    ipc: int,
    *,
    seed: int,
    shuffled: bool,
    with_replacement: bool = False,
) -> dict[int, list[int]]:
    """Positions in ``source`` of the first images of each class.

    Args:
        source: Real images or a distilled set.
        classes: Labels.
        ipc: Images a class.
        seed: Of the order.
        shuffled: In keyed random order; False: as they come.
        with_replacement: Each drawn from the whole class instead.

    Raises:
        ValueError: A class has fewer than ``ipc`` images, or with replacement none.
    """
    chosen = {}
    labels = source.labels.cpu()
    for label in classes:
        members = (labels == label).nonzero().squeeze(1)
        if with_replacement and len(members):
            slots = torch.arange(ipc)
            drawn = randint(seed, Purpose.INITIAL, 0, len(members), label, slots)
            chosen[label] = members[drawn].tolist()
            continue
        if len(members) < ipc:
            raise ValueError(
                f"ipc = {ipc} first images are needed of class {label}, "
                f"the source of first images has {len(members)}"
            )
        if shuffled:
            members = members[permutation(seed, Purpose.INITIAL, len(members), label)]
        chosen[label] = members[:ipc].tolist()
    return chosen


def resized(image: Tensor, size: int, normalization: Normalization) -> Tensor:
    """A uint8 image (C, H, W) as normalised float32 (C, size, size).

    Bilinear with antialiasing and without keeping the aspect, as torchvision's
    ``Resize((size, size))`` in DWA's code.
    """
    box = torch.tensor([[[0, 0, *image.shape[-2:]]]])
    whole = multi_crop(
        image[None].cpu(), box, size=size, mean=normalization.mean, std=normalization.std
    )
    return whole[0, 0]
