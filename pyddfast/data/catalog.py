"""One name for every data set that the library can read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal, overload

import torch
from torch.nn import functional as F

from pyddfast.data.datasets import ImageDataset, Normalization
from pyddfast.data.fashion_mnist import DEBIAN_ROOT, MINI_ROOT, read_fashion_mnist
from pyddfast.data.folder import ImageFolder

__all__ = ["load", "names"]

_NAMES = ("fashion-mnist", "fashion-mnist-mini", "folder")
_SPLITS = ("train", "test")
# Folder names accepted for a split; ImageNet's labelled held-out images are called val.
_SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val")}


def names() -> tuple[str, ...]:
    """Names that ``load`` accepts."""
    return _NAMES


@overload
def load(
    name: Literal["fashion-mnist", "fashion-mnist-mini"],
    *,
    root: str | Path | None = None,
    split: str = "train",
    image_size: int | None = None,
    normalization: Normalization | None = None,
) -> ImageDataset: ...


@overload
def load(
    name: str,
    *,
    root: str | Path | None = None,
    split: str = "train",
    image_size: int | None = None,
    normalization: Normalization | None = None,
) -> ImageDataset | ImageFolder: ...


def load(
    name: str,
    *,
    root: str | Path | None = None,
    split: str = "train",
    image_size: int | None = None,
    normalization: Normalization | None = None,
) -> ImageDataset | ImageFolder:
    """Load a data set by name.

    ==================== =========================================================================
    name                 data
    ==================== =========================================================================
    fashion-mnist-mini   embedded: 600 training and 200 test images of each of 10 classes,
                         28 x 28 grey; ``root`` must stay None
    fashion-mnist        the official IDX files (.gz or unpacked) in ``root``; without a root the
                         place where Debian's package ``dataset-fashion-mnist`` puts them
    folder               ``root/train/<class>/*`` and ``root/test/<class>/*`` (or ``val``); a root
                         without these folders is itself the training split
    ==================== =========================================================================

    Args:
        name: One of :func:`names`.
        root: Folder of the data.
        split: ``"train"`` or ``"test"``.
        image_size: Side of the square images in pixels.  Fashion-MNIST is resized from 28
            (bilinear, antialiased); a folder's images get their shorter side resized and the
            centre cut, and without it keep their sizes.
        normalization: Replaces the data set's own (ImageNet's for a folder).

    Returns:
        An :class:`ImageDataset`; for ``"folder"`` a lazy :class:`ImageFolder`.

    Raises:
        ValueError: Unknown name or split, a root that is missing or not wanted, damaged files.
        FileNotFoundError: The data are not in ``root``.
        ModuleNotFoundError: ``"folder"`` without Pillow; the message names the extra.
    """
    if name not in _NAMES:
        raise ValueError(f"name must be one of {', '.join(_NAMES)}, got {name!r}")
    if split not in _SPLITS:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be positive, got {image_size}")
    if name == "folder":
        if root is None:
            raise ValueError("root is needed for 'folder': the folder of the images")
        return ImageFolder(
            _split_folder(Path(root), split),
            image_size=image_size,
            normalization=normalization,
            split=split,
        )
    dataset = read_fashion_mnist(_fashion_root(name, root), split, name=name)
    if normalization is not None:
        dataset = dataclasses.replace(dataset, normalization=normalization)
    if image_size is not None and image_size != dataset.images.shape[-1]:
        images = F.interpolate(
            dataset.images, size=(image_size, image_size), mode="bilinear", antialias=True
        )
        dataset = dataclasses.replace(dataset, images=images.to(torch.uint8))
    return dataset


def _fashion_root(name: str, root: str | Path | None) -> Path:
    if name == "fashion-mnist-mini":
        if root is not None:
            raise ValueError(
                f"root must be None for 'fashion-mnist-mini', which is embedded; got {str(root)!r}"
            )
        return MINI_ROOT
    if root is None and not DEBIAN_ROOT.is_dir():
        raise ValueError(
            "root is needed for 'fashion-mnist': a folder with the four official IDX files "
            f"({DEBIAN_ROOT}, of Debian's package dataset-fashion-mnist, does not exist)"
        )
    return DEBIAN_ROOT if root is None else Path(root)


def _split_folder(root: Path, split: str) -> Path:
    for folder in _SPLIT_FOLDERS[split]:
        if (root / folder).is_dir():
            return root / folder
    known = sorted({folder for folders in _SPLIT_FOLDERS.values() for folder in folders})
    present = [folder for folder in known if (root / folder).is_dir()]
    if split == "train" and not present:
        return root
    # Never the training images under another name: a test set is a folder of its own.
    raise FileNotFoundError(
        f"{root} has no folder {' or '.join(_SPLIT_FOLDERS[split])} for the split {split!r}"
    )
