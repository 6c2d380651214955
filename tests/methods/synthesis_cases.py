"""A task and teachers small enough to synthesise from in a test."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyddfast import models
from pyddfast.data import ImageDataset, Normalization, normalize

NORMALIZATION = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
SIZE, CLASSES = 8, 5


def dataset(size: int = SIZE, per_class: int = 4) -> ImageDataset:
    """Noise around a colour for each class."""
    gen = torch.Generator().manual_seed(3)
    count = per_class * CLASSES
    labels = torch.arange(count) % CLASSES
    noise = torch.randint(0, 100, (count, 3, size, size), generator=gen)
    images = noise + 30 * labels[:, None, None, None]
    return ImageDataset(
        images=images.to(torch.uint8),
        labels=labels,
        class_names=tuple("abcde"),
        normalization=NORMALIZATION,
    )


def teacher(seed: int = 0, classes: int = CLASSES) -> nn.Module:
    """A ConvNet whose BatchNorm layers have seen the data; no training, so nothing to diverge."""
    model = models.create("convnet-d2", classes, image_size=SIZE, seed=seed, norm="batch", width=6)
    images = normalize(dataset(per_class=20).images, NORMALIZATION)
    with torch.no_grad():
        for _ in range(20):
            model(images)
    return model.eval()


def pixels(images: Tensor) -> Tensor:
    """Normalised images to the scale of bytes, unrounded, in float64."""
    mean = torch.tensor(NORMALIZATION.mean, dtype=torch.float64)[:, None, None]
    std = torch.tensor(NORMALIZATION.std, dtype=torch.float64)[:, None, None]
    return ((images.double() * std + mean) * 255).clamp(0, 255)
