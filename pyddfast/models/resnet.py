"""ResNet-18 (He et al., CVPR 2016, table 1) under torchvision's names."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from pyddfast.models.norms import (
    ImageSize,
    check_choice,
    check_positive,
    image_shape,
    make_norm,
)

__all__ = ["ResNet18"]

# Channels of the four stages; each has two blocks, and all but the first halve the resolution.
_STAGES = (64, 128, 256, 512)

# Largest image that the stem "auto" treats as small.  SRe2L and its successors train Tiny-ImageNet
# (64 x 64) on the CIFAR stem; the ImageNet stem would leave 2 x 2 features of it.
_SMALL_IMAGE = 64


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut, projected by a 1x1 convolution where shapes change."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, norm: str, size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = _norm(norm, channels, size)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = _norm(norm, channels, size)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False),
                _norm(norm, channels, size),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + shortcut)


class ResNet18(nn.Module):
    """ResNet-18 whose state dict has the names and shapes of torchvision's ``resnet18``.

    Global average pooling makes the network work at other image sizes than ``image_size`` too,
    which is used to choose the stem and to check the norm.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the images.
        image_size: Side of the square images, or (height, width).
        stem: ``"imagenet"`` (7x7 convolution of stride 2, then 3x3 max-pooling of stride 2),
            ``"cifar"`` (3x3 convolution, no pooling; He et al. §4.2 and the usual choice up to
            64 x 64) or ``"auto"``: ``"cifar"`` up to 64 x 64, ``"imagenet"`` above.
        norm: ``"batch"``, or ``"instance"`` as in the small-scale literature's ResNets.

    Raises:
        ValueError: Unknown option, or ``norm="instance"`` on images so small that the last stage
            works on single pixels.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        image_size: ImageSize = 224,
        stem: Literal["auto", "imagenet", "cifar"] = "auto",
        norm: Literal["batch", "instance"] = "batch",
    ) -> None:
        super().__init__()
        check_positive(num_classes=num_classes)
        check_choice("stem", stem, ("auto", "imagenet", "cifar"))
        check_choice("norm", norm, ("batch", "instance"))
        self.input_shape = image_shape(in_channels, image_size)
        size = self.input_shape[1:]
        if stem == "auto":
            stem = "cifar" if max(size) <= _SMALL_IMAGE else "imagenet"
        width = _STAGES[0]
        self.maxpool: nn.Module
        if stem == "imagenet":
            size = _halve(size)
            self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
            self.bn1 = _norm(norm, width, size)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
            size = _halve(size)
        else:
            self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
            self.bn1 = _norm(norm, width, size)
            self.maxpool = nn.Identity()
        stages = []
        for index, channels in enumerate(_STAGES):
            stride = 1 if index == 0 else 2
            size = size if index == 0 else _halve(size)
            stages.append(
                nn.Sequential(
                    BasicBlock(width, channels, stride, norm, size),
                    BasicBlock(channels, channels, 1, norm, size),
                )
            )
            width = channels
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(width, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to the pooled features (N, 512) before the last layer."""
        out = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return F.adaptive_avg_pool2d(out, 1).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, C, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.fc(self.embed(x))
        return logits


def _norm(norm: str, channels: int, size: tuple[int, int]) -> nn.Module:
    layer = make_norm(norm, channels, *size)
    assert layer is not None  # "none" is not among ResNet's choices
    return layer


def _halve(size: tuple[int, int]) -> tuple[int, int]:
    # Every convolution and pooling of stride 2 here pads so that an odd side rounds up.
    return (size[0] + 1) // 2, (size[1] + 1) // 2
