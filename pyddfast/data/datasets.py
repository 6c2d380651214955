"""What a data set is here: images, int64 labels, class names and a normalisation.

Images are uint8 pixels, or float32 where they have no bytes: distilled by gradients, or whitened.
Floating-point images are **what a network takes**, normalised already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

__all__ = [
    "EFFICIENTNET_LITE_NORMALIZATION",
    "IMAGENET_NORMALIZATION",
    "ImageDataset",
    "ImageSource",
    "Normalization",
    "check_images",
    "check_labels",
    "network_input",
    "normalize",
    "to_pixels",
]

# By which transformation images were whitened in place of normalised: none, ZCA as the
# trajectory-matching codes have it, or KIP's.
Whitened: TypeAlias = bool | Literal["kip"]


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation, in units of pixels scaled to [0, 1].

    Raises:
        ValueError: ``mean`` and ``std`` differ in length, are empty, not finite, or a ``std`` is
            not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        # Plain floats, so that the values compare and go to JSON wherever they came from.
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        if len(self.mean) == 0 or len(self.mean) != len(self.std):
            raise ValueError(
                "mean and std need one value a channel each, "
                f"got {len(self.mean)} and {len(self.std)} values"
            )
        if not all(math.isfinite(value) for value in self.mean):
            raise ValueError(f"mean must be finite, got {self.mean}")
        if not all(math.isfinite(value) and value > 0 for value in self.std):
            raise ValueError(f"std must be finite and positive, got {self.std}")

    @property
    def channels(self) -> int:
        """Number of image channels."""
        return len(self.mean)


# The values that torchvision's and nearly every ImageNet training script use.
IMAGENET_NORMALIZATION = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

# What the EfficientNet-Lite weights were trained with: pixels minus 127, over 128 (tensorflow/tpu,
# efficientnet/lite/efficientnet_lite_builder.py, MEAN_RGB and STDDEV_RGB).
EFFICIENTNET_LITE_NORMALIZATION = Normalization(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


@runtime_checkable
class ImageSource(Protocol):
    """What a consumer may ask of any data set: resident, ragged or distilled."""

    @property
    def labels(self) -> Tensor:
        """Class of each image, int64 (N,)."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class, in label order."""

    @property
    def normalization(self) -> Normalization:
        """The normalisation a network expects of these images."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor:
        """Return image ``index`` (C, H, W): uint8, or float32 as a network takes it."""
        ...


class Labelled:
    """What labels and class names tell, for every kind of data set."""

    labels: Tensor
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def class_counts(self) -> Tensor:
        """Images of each class, int64 (num_classes,)."""
        return torch.bincount(self.labels, minlength=self.num_classes)


@dataclass(frozen=True, eq=False)
class ImageDataset(Labelled):
    """A data set held in memory: one tensor, equal image sizes.

    Args:
        images: uint8 (N, C, H, W), or float32: what a network takes, normalised already.
        labels: int64 (N,), values in [0, num_classes).
        class_names: One name a class, in label order.
        normalization: Mean and std of the pixels, one value a channel.
        name: Name of the data set, for messages and records.
        split: ``"train"``, ``"test"`` or what the source calls it.
        whitened: The float32 images are ZCA-whitened in place of normalised; ``"kip"``: by KIP's
            whitening (:class:`pyddfast.data.KIPWhitening`).

    Raises:
        TypeError: ``images`` is neither uint8 nor float32, or ``labels`` is not int64.
        ValueError: Shapes, lengths or labels do not fit together.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    normalization: Normalization
    name: str = "images"
    split: str = "train"
    whitened: Whitened = False

    def __post_init__(self) -> None:
        check_images("images", self.images, self.normalization, whitened=self.whitened)
        check_labels("labels", self.labels, len(self.images), len(self.class_names))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> Tensor:
        """Return image ``index`` (C, H, W)."""
        return self.images[index]

    def subset(self, indices: Tensor | Sequence[int]) -> ImageDataset:
        """Return the images at ``indices``, in that order; the class list stays whole.

        Args:
            indices: Positions in [0, len(self)), int64 tensor (K,) or a sequence; repeats are kept.

        Raises:
            ValueError: An index lies outside the data set, or ``indices`` is not one-dimensional.
        """
        index = torch.as_tensor(indices, dtype=torch.int64, device=self.images.device)
        if index.ndim != 1:
            raise ValueError(f"indices must be one-dimensional, got shape {tuple(index.shape)}")
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise ValueError(
                f"indices must lie in [0, {len(self)}), "
                f"got values from {int(index.min())} to {int(index.max())}"
            )
        return ImageDataset(
            images=self.images[index],
            labels=self.labels[index.to(self.labels.device)],
            class_names=self.class_names,
            normalization=self.normalization,
            name=self.name,
            split=self.split,
            whitened=self.whitened,
        )


def normalize(
    images: Tensor, normalization: Normalization, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Scale bytes to [0, 1], subtract the mean and divide by the standard deviation.

    Args:
        images: uint8 (..., C, H, W).
        normalization: One mean and std a channel.
        dtype: Floating-point type of the result; the arithmetic runs in it.

    Returns:
        Tensor of ``dtype`` and the shape of ``images``: ``(images / 255 - mean) / std``.

    Raises:
        TypeError: ``images`` is not uint8 or ``dtype`` is not a floating-point type.
        ValueError: The channel count differs from the normalisation's.
    """
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point type, got {dtype}")
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8, got {images.dtype}")
    if images.ndim < 3 or images.shape[-3] != normalization.channels:
        raise ValueError(
            f"images must be (..., C, H, W) with C = {normalization.channels} as the "
            f"normalisation has, got shape {tuple(images.shape)}"
        )
    mean, std = _columns(normalization, dtype, images.device)
    return (images.to(dtype) / 255 - mean) / std


def network_input(images: Tensor, normalization: Normalization) -> Tensor:
    """What a network takes of a data set's images: bytes normalised, float32 as it is."""
    return images if images.dtype == torch.float32 else normalize(images, normalization)


def to_pixels(images: Tensor, normalization: Normalization) -> Tensor:
    """Images to look at: the inverse of :func:`normalize`, rounded and cut off at 0 and 255.

    Args:
        images: uint8 (..., C, H, W), returned as they are, or normalised floating point.
        normalization: One mean and std a channel.

    Returns:
        uint8 of the same shape.
    """
    if images.dtype == torch.uint8:
        return images
    mean, std = _columns(normalization, images.dtype, images.device)
    return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def _columns(
    normalization: Normalization, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    mean = torch.tensor(normalization.mean, dtype=dtype, device=device)[:, None, None]
    std = torch.tensor(normalization.std, dtype=dtype, device=device)[:, None, None]
    return mean, std


def describe_whitening(whitened: Whitened) -> str:
    """In words, behind "the images are"."""
    return {False: "not whitened", True: "ZCA-whitened", "kip": "whitened as KIP does"}[whitened]


def check_images(
    name: str, images: Tensor, normalization: Normalization, *, whitened: Whitened = False
) -> None:
    """Raise unless ``images`` is uint8 or finite float32 (N, C, H, W) with its channels."""
    if images.dtype not in (torch.uint8, torch.float32):
        raise TypeError(f"{name} must be uint8 or float32, got {images.dtype}")
    if images.dtype == torch.float32 and not bool(images.isfinite().all()):
        raise ValueError(f"{name} must be finite; some values are NaN or infinite")
    if whitened not in (False, True, "kip"):
        raise ValueError(f"whitened must be False, True or 'kip', got {whitened!r}")
    if whitened and images.dtype != torch.float32:
        raise TypeError(f"{name} must be float32 where they are whitened, got {images.dtype}")
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"{name} must have shape (N, C, H, W), got {tuple(images.shape)}")
    if images.shape[1] != normalization.channels:
        raise ValueError(
            f"{name} have {images.shape[1]} channels, "
            f"the normalisation has {normalization.channels}"
        )


def check_labels(name: str, labels: Tensor, count: int, num_classes: int) -> None:
    """Raise unless ``labels`` is int64 (count,) with values in [0, num_classes)."""
    if labels.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {labels.dtype}")
    if labels.shape != (count,):
        raise ValueError(
            f"{name} must have shape ({count},), one for each image, got {tuple(labels.shape)}"
        )
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"{name} must lie in [0, {num_classes}), "
            f"got values from {int(labels.min())} to {int(labels.max())}"
        )
