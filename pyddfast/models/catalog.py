"""Models by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from pyddfast.models.convnet import ConvNet
from pyddfast.models.efficientnet import EfficientNetLite0
from pyddfast.models.init import initialize
from pyddfast.models.mlp import MLP
from pyddfast.models.mobilenet import MobileNetV2
from pyddfast.models.norms import ImageSize
from pyddfast.models.resnet import ResNet

__all__ = ["create", "names"]

_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    **{f"convnet-d{depth}": partial(ConvNet, depth=depth) for depth in range(1, 9)},
    "mlp": MLP,
    **{f"resnet{depth}": partial(ResNet, depth=depth) for depth in (18, 34, 50, 101, 152)},
    "mobilenet_v2": MobileNetV2,
    "efficientnet_lite0": EfficientNetLite0,
}
# Arguments of ``create`` itself, and what a name already fixes.
_NOT_OPTIONS = {"num_classes", "in_channels", "image_size", "depth"}


def names() -> tuple[str, ...]:
    """Names that ``create`` accepts."""
    return tuple(_BUILDERS)


def create(
    name: str,
    num_classes: int,
    in_channels: int = 3,
    image_size: ImageSize = 32,
    *,
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """Build a model by name, initialised from ``seed``.

    The same arguments give the same parameters whatever was drawn before: initialisation has its
    own keyed stream, and torch's global random state is neither read nor changed.

    Args:
        name: One of :func:`names`: ``convnet-d1`` to ``convnet-d8``, ``mlp``, ``resnet18``,
            ``resnet34``, ``resnet50``, ``resnet101``, ``resnet152``, ``mobilenet_v2``,
            ``efficientnet_lite0``.
        num_classes: Number of logits.
        in_channels: Channels of the images.
        image_size: Side of the square images in pixels, or (height, width).
        seed: Seed of the initialisation, in [0, 2**64).
        **options: Options of the architecture, as :class:`ConvNet`, :class:`MLP`,
            :class:`ResNet`, :class:`MobileNetV2` and :class:`EfficientNetLite0` list them, e.g.
            ``norm="batch"``, ``width=32``, ``stem="cifar"``.

    Returns:
        The model, on the CPU, in training mode and torch's default dtype.

    Raises:
        ValueError: Unknown name or option (the message lists what exists), an option's value that
            does not exist, or an image too small for the network.
        TypeError: A size is not an int.
    """
    builder = _BUILDERS.get(name)
    if builder is None:
        raise ValueError(f"name must be one of {', '.join(_BUILDERS)}, got {name!r}")
    allowed = [
        option for option in inspect.signature(builder).parameters if option not in _NOT_OPTIONS
    ]
    if unknown := sorted(options.keys() - set(allowed)):
        raise ValueError(f"{name} has the options {', '.join(allowed)}; got {', '.join(unknown)}")
    # On the meta device the constructors' own initialisation draws nothing.
    with torch.device("meta"):
        model = builder(num_classes, in_channels=in_channels, image_size=image_size, **options)
    model.to_empty(device="cpu")
    initialize(model, seed)
    return model
