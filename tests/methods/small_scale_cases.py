"""Small data and networks of the tests of DC, DSA and DM."""

from __future__ import annotations

import torch

from pyddfast.data import ImageDataset, Normalization

NORMALIZATION = Normalization((0.4,), (0.3,))
MODEL = ("convnet-d2", {"width": 6})


def squares(per_class=9, classes=3, size=8, seed=0):
    """A bright square whose place tells the class, and noise."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(per_class)[
        torch.randperm(per_class * classes, generator=g)
    ]
    images = torch.randint(0, 140, (len(labels), 1, size, size), generator=g)
    for i, label in enumerate(labels.tolist()):
        images[i, 0, 2 * label : 2 * label + 3, 2 * label : 2 * label + 3] += 110
    names = tuple("abcdefgh"[:classes])
    return ImageDataset(images.to(torch.uint8), labels, names, NORMALIZATION, "squares")
