"""ResNet-18 to ResNet-152 (He et al., CVPR 2016, table 1) under torchvision's names."""

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

__all__ = ["ResNet"]

# Channels inside the blocks of the four stages; all stages but the first halve the resolution.
_STAGES = (64, 128, 256, 512)

# Largest image that the stem "auto" treats as small.  SRe2L and its successors train Tiny-ImageNet
# (64 x 64) on the CIFAR stem; the ImageNet stem would leave 2 x 2 features of it.
_SMALL_IMAGE = 64


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut, projected by a 1x1 convolution where shapes change."""

    expansion = 1  # output channels over ``channels``

    def __init__(
        self, in_channels: int, channels: int, stride: int, norm: str, size: tuple[int, int]
    ) -> None:
        super().__init__()
        after = size if stride == 1 else _halve(size)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = _norm(norm, channels, after)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = _norm(norm, channels, after)
        self.downsample = _projection(in_channels, channels, stride, norm, after)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + shortcut)


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 ones, with a shortcut.

    The stride is the 3x3 convolution's, as in torchvision ("ResNet v1.5"); the publication puts it
    on the first.
    """

    expansion = 4

    def __init__(
        self, in_channels: int, channels: int, stride: int, norm: str, size: tuple[int, int]
    ) -> None:
        super().__init__()
        after = size if stride == 1 else _halve(size)
        out_channels = self.expansion * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = _norm(norm, channels, size)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = _norm(norm, channels, after)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = _norm(norm, out_channels, after)
        self.downsample = _projection(in_channels, out_channels, stride, norm, after)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, 4 channels, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + shortcut)


# Depth -> block, and blocks of each stage: table 1 of the publication.
_LAYOUTS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(nn.Module):
    """ResNet whose state dict has the names and shapes of torchvision's of the same depth.

    Global average pooling makes the network work at other image sizes than ``image_size`` too,
    which is used to choose the stem and to check the norm.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the images.
        image_size: Side of the square images, or (height, width).
        depth: 18, 34 (basic blocks), 50, 101 or 152 (bottlenecks).
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
        depth: int = 18,
        stem: Literal["auto", "imagenet", "cifar"] = "auto",
        norm: Literal["batch", "instance"] = "batch",
    ) -> None:
        super().__init__()
        check_positive(num_classes=num_classes)
        if depth not in _LAYOUTS:
            raise ValueError(f"depth must be one of {', '.join(map(str, _LAYOUTS))}, got {depth!r}")
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
        block, counts = _LAYOUTS[depth]
        stages = []
        for index, (channels, count) in enumerate(zip(_STAGES, counts, strict=True)):
            stride = 1 if index == 0 else 2
            blocks = [block(width, channels, stride, norm, size)]
            width = block.expansion * channels
            size = size if stride == 1 else _halve(size)
            blocks += [block(width, channels, 1, norm, size) for _ in range(count - 1)]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(width, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to the pooled features before the last layer.

        Returns:
            (N, 512); (N, 2048) from depth 50 on.
        """
        out = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return F.adaptive_avg_pool2d(out, 1).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, C, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.fc(self.embed(x))
        return logits


def _projection(
    in_channels: int, out_channels: int, stride: int, norm: str, size: tuple[int, int]
) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
        _norm(norm, out_channels, size),
    )


def _norm(norm: str, channels: int, size: tuple[int, int]) -> nn.Module:
    layer = make_norm(norm, channels, *size)
    assert layer is not None  # "none" is not among ResNet's choices
    return layer


def _halve(size: tuple[int, int]) -> tuple[int, int]:
    # Every convolution and pooling of stride 2 here pads so that an odd side rounds up.
    return (size[0] + 1) // 2, (size[1] + 1) // 2
