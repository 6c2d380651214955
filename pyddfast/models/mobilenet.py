"""MobileNetV2 (Sandler et al., CVPR 2018, table 2) under torchvision's names."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyddfast.models.norms import ImageSize, check_fraction, check_positive, image_shape

__all__ = ["MobileNetV2"]

# Expansion t, output channels c, blocks n and stride s of each stage: table 2.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_STEM, _HEAD = 32, 1280


class InvertedResidual(nn.Module):
    """Expand by a 1x1 convolution, filter each channel 3x3, project without an activation."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * in_channels
        expand = [] if expansion == 1 else [_unit(in_channels, hidden, 1)]
        self.conv = nn.Sequential(
            *expand,
            _unit(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.has_shortcut = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        out: Tensor = self.conv(x)
        return x + out if self.has_shortcut else out


class MobileNetV2(nn.Module):
    """MobileNetV2 of width 1, state dict as torchvision's ``mobilenet_v2``.

    Halves the image five times; global average pooling makes any size work.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the images.
        image_size: Side of the square images, or (height, width); recorded only.
        dropout: Probability of dropping a feature before the last layer; 0.2 in torchvision.

    Raises:
        ValueError: ``dropout`` lies outside [0, 1).
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        image_size: ImageSize = 224,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        check_positive(num_classes=num_classes)
        check_fraction(dropout=dropout)
        self.input_shape = image_shape(in_channels, image_size)
        layers: list[nn.Module] = [_unit(in_channels, _STEM, 3, 2)]
        width = _STEM
        for expansion, channels, count, stride in _STAGES:
            for index in range(count):
                layers.append(
                    InvertedResidual(width, channels, stride if index == 0 else 1, expansion)
                )
                width = channels
        layers.append(_unit(width, _HEAD, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(_HEAD, num_classes))

    def initialize_layer(self, layer: nn.Conv2d | nn.Linear, stream: torch.Generator) -> None:
        """Draw a layer's parameters as torchvision does."""
        if isinstance(layer, nn.Conv2d):
            # Normal with variance 2 / (kernel area x output channels), groups not counted.
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", generator=stream)
        else:
            nn.init.normal_(layer.weight, std=0.01, generator=stream)
            nn.init.zeros_(layer.bias)

    def embed(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to the pooled features (N, 1280), before dropout."""
        return F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, C, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.classifier(self.embed(x))
        return logits


def _unit(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(),
    )
