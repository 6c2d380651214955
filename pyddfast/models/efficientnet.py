"""EfficientNet-Lite0 under timm's names (``tf_efficientnet_lite0``).

The mobile variant of EfficientNet-B0 (Tan and Le, ICML 2019, table 1) in tensorflow/tpu,
``models/official/efficientnet/lite``: no squeeze-and-excitation, ReLU6 for swish, stem and head of
fixed width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyddfast.models.norms import ImageSize, check_fraction, check_positive, image_shape

__all__ = ["EfficientNetLite0"]

# Kernel side, stride, expansion, output channels and blocks of each stage: table 1.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_STEM, _HEAD = 32, 1280
_EPSILON = 1e-3  # TensorFlow's, which the published weights were trained with; torch's is 1e-5


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "SAME" padding, for strides above 1.

    The output has ceil(side / stride) values a side, and the odd pixel of padding goes to the right
    and to the bottom; torch's symmetric padding would shift the maps of even images by one pixel.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        (top, bottom), (left, right) = (
            _same_padding(input.shape[axis + 2], self.kernel_size[axis], self.stride[axis])
            for axis in (0, 1)
        )
        return super().forward(F.pad(input, (left, right, top, bottom)))


class SeparableBlock(nn.Module):
    """Filter each channel, then mix by a 1x1 convolution: the first stage, without expansion."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = _depthwise(in_channels, kernel, stride)
        self.bn1 = _norm(in_channels)
        self.conv_pw = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn2 = _norm(channels)
        self.has_shortcut = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        out: Tensor = F.relu6(self.bn1(self.conv_dw(x)))
        out = self.bn2(self.conv_pw(out))
        return x + out if self.has_shortcut else out


class ExpandedBlock(nn.Module):
    """MobileNetV2's inverted residual: expand, filter each channel, project."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        hidden = expansion * in_channels
        self.conv_pw = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.bn1 = _norm(hidden)
        self.conv_dw = _depthwise(hidden, kernel, stride)
        self.bn2 = _norm(hidden)
        self.conv_pwl = nn.Conv2d(hidden, channels, 1, bias=False)
        self.bn3 = _norm(channels)
        self.has_shortcut = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        out: Tensor = F.relu6(self.bn1(self.conv_pw(x)))
        out = F.relu6(self.bn2(self.conv_dw(out)))
        out = self.bn3(self.conv_pwl(out))
        return x + out if self.has_shortcut else out


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0, state dict as timm's ``tf_efficientnet_lite0``; padding as TensorFlow's.

    Halves the image five times; global average pooling makes any size work.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the images.
        image_size: Side of the square images, or (height, width); recorded only.
        dropout: Probability of dropping a feature before the last layer; 0.2 in tensorflow/tpu.
            That code also drops whole branches while it trains, which is not done here.

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
        self.conv_stem = SameConv2d(in_channels, _STEM, 3, stride=2, bias=False)
        self.bn1 = _norm(_STEM)
        stages = []
        width = _STEM
        for kernel, stride, expansion, channels, count in _STAGES:
            blocks: list[nn.Module] = []
            for index in range(count):
                step = stride if index == 0 else 1
                blocks.append(
                    SeparableBlock(width, channels, kernel, step)
                    if expansion == 1
                    else ExpandedBlock(width, channels, kernel, step, expansion)
                )
                width = channels
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = nn.Conv2d(width, _HEAD, 1, bias=False)
        self.bn2 = _norm(_HEAD)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(_HEAD, num_classes)

    def initialize_layer(self, layer: nn.Conv2d | nn.Linear, stream: torch.Generator) -> None:
        """Draw a layer's parameters as tensorflow/tpu and timm do."""
        if isinstance(layer, nn.Conv2d):
            # Unlike torch's kaiming_normal_, a group counts its own output channels only.
            fan_out = layer.weight[0, 0].numel() * layer.out_channels // layer.groups
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out), generator=stream)
        else:
            bound = 1 / math.sqrt(layer.out_features)
            nn.init.uniform_(layer.weight, -bound, bound, generator=stream)
            nn.init.zeros_(layer.bias)

    def embed(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to the pooled features (N, 1280), before dropout."""
        out = self.blocks(F.relu6(self.bn1(self.conv_stem(x))))
        out = F.relu6(self.bn2(self.conv_head(out)))
        return F.adaptive_avg_pool2d(out, 1).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, C, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.classifier(self.dropout(self.embed(x)))
        return logits


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPSILON)


def _depthwise(channels: int, kernel: int, stride: int) -> nn.Conv2d:
    if stride == 1:  # "SAME" is symmetric then, and needs no padded copy
        return nn.Conv2d(
            channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False
        )
    return SameConv2d(channels, channels, kernel, stride, groups=channels, bias=False)


def _same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2
