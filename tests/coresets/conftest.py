"""Data and networks that the tests of training-based scores share."""

from __future__ import annotations

import pytest
import torch

from pyddfast.data import ImageDataset, Normalization


@pytest.fixture
def blobs() -> ImageDataset:
    """48 images of two classes, dark and bright, with noise that makes some of them hard."""
    gen = torch.Generator().manual_seed(2)
    labels = torch.arange(48) % 2
    images = torch.randint(0, 140, (48, 1, 8, 8), generator=gen)
    images += 60 * labels[:, None, None, None]
    return ImageDataset(
        images.to(torch.uint8), labels, ("dark", "bright"), Normalization((0.4,), (0.3,))
    )
