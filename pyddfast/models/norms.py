"""The normalisation layers that the models choose from, and the checks all models share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from torch import Tensor, nn

__all__ = [
    "ImageSize",
    "Norm",
    "check_choice",
    "check_fraction",
    "check_input",
    "check_positive",
    "image_shape",
    "make_norm",
]

Norm: TypeAlias = Literal["instance", "batch", "layer", "group", "none"]
ImageSize: TypeAlias = int | tuple[int, int]

# Groups of "group": the number in the DC code (VICO-UoE DatasetCondensation, networks.py).
_GROUPS = 4


def make_norm(norm: str, channels: int, height: int, width: int) -> nn.Module | None:
    """Build the normalisation of a (channels, height, width) feature map; None for ``"none"``.

    ``"instance"`` is ``GroupNorm(channels, channels)`` with scale and shift, as in the DC code, so
    it has no running statistics and behaves alike in training and evaluation.

    Raises:
        ValueError: The norm cannot work on these sizes.
    """
    if norm == "instance":
        if height * width == 1:
            # One value is its own mean: every feature would be 0, and nothing would be learned.
            raise ValueError(
                "norm='instance' needs feature maps larger than 1 x 1 before each norm; "
                "give a larger image_size or another norm"
            )
        return nn.GroupNorm(channels, channels)
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "layer":
        return nn.LayerNorm([channels, height, width])
    if norm == "group":
        if channels % _GROUPS:
            raise ValueError(f"norm='group' needs a width divisible by {_GROUPS}, got {channels}")
        return nn.GroupNorm(_GROUPS, channels)
    return None


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def check_positive(**values: object) -> None:
    """Raise unless every value is an integer of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def check_fraction(**values: float) -> None:
    """Raise ValueError unless every value lies in [0, 1)."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {value}")


def image_shape(in_channels: int, image_size: ImageSize) -> tuple[int, int, int]:
    """Check and return the input shape (channels, height, width)."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    check_positive(in_channels=in_channels, image_size=height)
    check_positive(image_size=width)
    return in_channels, height, width


def check_input(x: Tensor, shape: tuple[int, int, int]) -> None:
    """Raise ValueError unless ``x`` is a batch of images of ``shape``."""
    if x.ndim != 4 or x.shape[1:] != shape:
        raise ValueError(
            f"the model takes images of shape (N, {shape[0]}, {shape[1]}, {shape[2]}), "
            f"got {tuple(x.shape)}"
        )
