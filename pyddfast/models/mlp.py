"""The three-layer perceptron of the cross-architecture comparisons."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from pyddfast.models.norms import ImageSize, check_input, check_positive, image_shape

__all__ = ["MLP"]


class MLP(nn.Module):
    """Two hidden layers with ReLU.

    ``MLP`` of VICO-UoE/DatasetCondensation, ``networks.py`` (keys ``fc_1``, ``fc_2``, ``fc_3``),
    for any image size; 411,146 parameters on 32 x 32 colour images of 10 classes.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the images.
        image_size: Side of the square images, or (height, width).
        width: Units of both hidden layers; 128 in that code.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        image_size: ImageSize = 32,
        width: int = 128,
    ) -> None:
        super().__init__()
        check_positive(num_classes=num_classes, width=width)
        self.input_shape = image_shape(in_channels, image_size)
        self.fc_1 = nn.Linear(math.prod(self.input_shape), width)
        self.fc_2 = nn.Linear(width, width)
        self.fc_3 = nn.Linear(width, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to the features (N, width) before the last layer."""
        check_input(x, self.input_shape)
        return F.relu(self.fc_2(F.relu(self.fc_1(x.flatten(1)))))

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, C, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.fc_3(self.embed(x))
        return logits
