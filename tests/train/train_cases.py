"""Small sets and networks of the training tests."""

from __future__ import annotations

import torch
from torch import nn

from pyddfast.data import DistilledSet, ImageDataset, Normalization

NORMALIZATION = Normalization((0.5,), (0.25,))


def blobs(per_class=6, classes=3, size=8, seed=0, split="train"):
    """Images with a bright square whose place tells the class, and noise."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(per_class)
    images = torch.randint(0, 120, (len(labels), 1, size, size), generator=g)
    for i, label in enumerate(labels.tolist()):
        images[i, 0, 2 * label : 2 * label + 3, 2 * label : 2 * label + 3] += 110
    names = tuple(f"class {c}" for c in range(classes))
    return ImageDataset(images.to(torch.uint8), labels, names, NORMALIZATION, "blobs", split)


def distilled(dataset, **options):
    return DistilledSet(
        dataset.images,
        dataset.labels,
        dataset.num_classes,
        dataset.normalization,
        dataset.class_names,
        **options,
    )


def tiny(seed):
    """Batch norm and dropout, so that buffers and layer randomness count."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(4 * 4 * 4, 3),
    )


def linear(seed):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
