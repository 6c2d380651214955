"""ConvNet-D, the network of the small-scale distillation literature."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from pyddfast.models.norms import (
    ImageSize,
    Norm,
    check_choice,
    check_input,
    check_positive,
    image_shape,
    make_norm,
)

__all__ = ["ConvNet"]

_NORMS = ("instance", "batch", "layer", "group", "none")
_ACTIVATIONS = ("relu", "leakyrelu", "sigmoid")
_POOLINGS = ("avg", "max", "none")


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution, norm, activation and 2x2 pooling, then one linear layer.

    The network of DC (Zhao et al., ICLR 2021) and of most work after it: names and shapes in the
    state dict are those of ``ConvNet`` in VICO-UoE/DatasetCondensation, ``networks.py``
    (``features.{4d}`` convolution, ``features.{4d+1}`` norm of block d, ``classifier``).

    Images of 28 x 28 get padding 3 in the first convolution and are from there on treated as
    32 x 32, as in that code.  That code pads by 3 for every *grey* image, also at other sizes;
    ``first_padding=3`` gives that.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the images.
        image_size: Side of the square images, or (height, width).
        depth: Number of blocks.
        width: Channels of every convolution; 128 in the literature.
        norm: ``"instance"`` (the literature's default: one group a channel, with scale and shift),
            ``"batch"``, ``"layer"`` (over channels, height and width), ``"group"`` (4 groups) or
            ``"none"``.
        activation: ``"relu"``, ``"leakyrelu"`` (slope 0.01) or ``"sigmoid"``.
        pooling: ``"avg"``, ``"max"`` or ``"none"``.
        first_padding: Padding of the first convolution; None means 3 at 28 x 28 and 1 elsewhere.

    Raises:
        ValueError: Unknown option, or so many pooled blocks that nothing of the image is left.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        image_size: ImageSize = 32,
        depth: int = 3,
        width: int = 128,
        norm: Norm = "instance",
        activation: Literal["relu", "leakyrelu", "sigmoid"] = "relu",
        pooling: Literal["avg", "max", "none"] = "avg",
        first_padding: int | None = None,
    ) -> None:
        super().__init__()
        check_positive(num_classes=num_classes, depth=depth, width=width)
        check_choice("norm", norm, _NORMS)
        check_choice("activation", activation, _ACTIVATIONS)
        check_choice("pooling", pooling, _POOLINGS)
        self.input_shape = image_shape(in_channels, image_size)
        channels, *size = self.input_shape
        if first_padding is None:
            first_padding = 3 if size == [28, 28] else 1
        if first_padding < 0:
            raise ValueError(f"first_padding must not be negative, got {first_padding}")

        layers: list[nn.Module] = []
        for block in range(depth):
            padding = first_padding if block == 0 else 1
            size = [side + 2 * padding - 2 for side in size]
            pooled = size if pooling == "none" else [side // 2 for side in size]
            if min(pooled) < 1:
                raise ValueError(
                    f"depth {depth} is too deep for image_size {image_size}: "
                    f"nothing is left after block {block + 1} with pooling={pooling!r}"
                )
            layers.append(nn.Conv2d(channels, width, kernel_size=3, padding=padding))
            norm_layer = make_norm(norm, width, size[0], size[1])
            if norm_layer is not None:
                layers.append(norm_layer)
            layers.append(_activation(activation))
            if pooling != "none":
                layers.append(nn.AvgPool2d(2) if pooling == "avg" else nn.MaxPool2d(2))
            channels, size = width, pooled
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * size[0] * size[1], num_classes)

    def embed(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to the flattened features (N, F) before the last layer."""
        check_input(x, self.input_shape)
        features: Tensor = self.features(x)
        return features.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, C, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.classifier(self.embed(x))
        return logits


def _activation(name: str) -> nn.Module:
    if name == "relu":
        return nn.ReLU(inplace=True)
    return nn.LeakyReLU(negative_slope=0.01) if name == "leakyrelu" else nn.Sigmoid()
