"""Data sets, their readers, and the layout of a distilled set."""

from pyddfast.data.datasets import (
    IMAGENET_NORMALIZATION,
    ImageDataset,
    ImageSource,
    Normalization,
    normalize,
)
from pyddfast.data.distilled import DistilledSet, export_png

__all__ = [
    "IMAGENET_NORMALIZATION",
    "DistilledSet",
    "ImageDataset",
    "ImageSource",
    "Normalization",
    "export_png",
    "normalize",
]
