"""One name for every data set that the library can read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal, overload

import torch
from torch.nn import functional as F

from pyddfast.data.cifar import read_cifar
from pyddfast.data.datasets import ImageDataset, Normalization
from pyddfast.data.fashion_mnist import DEBIAN_ROOT, MINI_ROOT, read_fashion_mnist
from pyddfast.data.folder import ImageFolder
from pyddfast.data.imagenet import open_imagenet
from pyddfast.data.tiny_imagenet import read_tiny_imagenet

__all__ = ["load", "names"]

# What ``root`` has to be, for each name.
_ROOTS = {
    "fashion-mnist-mini": "nothing",
    "fashion-mnist": "a folder with the four official IDX files "
    f"({DEBIAN_ROOT}, of Debian's package dataset-fashion-mnist, does not exist)",
    "cifar10": "an official archive of CIFAR-10, its extracted folder, or the folder of either",
    "cifar100": "an official archive of CIFAR-100, its extracted folder, or the folder of either",
    "tiny-imagenet": "the folder tiny-imagenet-200",
    "imagenet": "the folder of train/ and val/",
    "folder": "the folder of the images",
}
_SPLITS = ("train", "test")
# Folder names accepted for a split; ImageNet's labelled held-out images are called val.
_SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val")}


def names() -> tuple[str, ...]:
    """Names that ``load`` accepts."""
    return tuple(_ROOTS)


@overload
def load(
    name: Literal["fashion-mnist-mini", "fashion-mnist", "cifar10", "cifar100", "tiny-imagenet"],
    *,
    root: str | Path | None = None,
    split: str = "train",
    image_size: int | None = None,
    resize: int | None = None,
    normalization: Normalization | None = None,
) -> ImageDataset: ...


@overload
def load(
    name: Literal["imagenet", "folder"],
    *,
    root: str | Path | None = None,
    split: str = "train",
    image_size: int | None = None,
    resize: int | None = None,
    normalization: Normalization | None = None,
) -> ImageFolder: ...


@overload
def load(
    name: str,
    *,
    root: str | Path | None = None,
    split: str = "train",
    image_size: int | None = None,
    resize: int | None = None,
    normalization: Normalization | None = None,
) -> ImageDataset | ImageFolder: ...


def load(
    name: str,
    *,
    root: str | Path | None = None,
    split: str = "train",
    image_size: int | None = None,
    resize: int | None = None,
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
    cifar10, cifar100    an official archive (``.tar.gz``, python or binary version) or its
                         extracted folder; nothing is unpickled that could run
    tiny-imagenet        the official folder ``tiny-imagenet-200``; ``"test"`` is its ``val``
    imagenet             ``root/train/<wnid>/*`` and ``root/val/<wnid>/*``, or a flat ``val`` with
                         the devkit or Kaggle's table beside it; ``"test"`` is ``val``
    folder               ``root/train/<class>/*`` and ``root/test/<class>/*`` (or ``val``); a root
                         without these folders is itself the training split
    ==================== =========================================================================

    Args:
        name: One of :func:`names`.
        root: Folder of the data.
        split: ``"train"`` or ``"test"``.
        image_size: Side of the square images in pixels.  Images in memory are resized (bilinear,
            antialiased); those of ``"imagenet"`` and ``"folder"`` get their shorter side resized
            and the centre cut, and without it keep their sizes.
        resize: Of ``"imagenet"`` and ``"folder"``: length of the shorter side before the cut;
            ``image_size`` when None.  224 of 256 is the usual view of a test image.
        normalization: Replaces the data set's own (ImageNet's for a folder).

    Returns:
        An :class:`ImageDataset`, in memory; for ``"imagenet"`` and ``"folder"`` an
        :class:`ImageFolder`, which decodes when it is asked.

    Raises:
        ValueError: Unknown name or split, a root that is missing or not wanted, damaged files.
        FileNotFoundError: The data are not in ``root``.
        ModuleNotFoundError: Image files without Pillow; the message names the extra.
    """
    if name not in _ROOTS:
        raise ValueError(f"name must be one of {', '.join(_ROOTS)}, got {name!r}")
    if split not in _SPLITS:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be positive, got {image_size}")
    if resize is not None and name not in ("imagenet", "folder"):
        raise ValueError(f"resize is for 'imagenet' and 'folder', got {name!r}")
    place = _place(name, root)
    if name == "imagenet":
        return open_imagenet(
            place, split, image_size=image_size, resize=resize, normalization=normalization
        )
    if name == "folder":
        return ImageFolder(
            _split_folder(place, split),
            image_size=image_size,
            resize=resize,
            normalization=normalization,
            split=split,
        )
    if name == "tiny-imagenet":
        dataset = read_tiny_imagenet(place, split)
    elif name in ("cifar10", "cifar100"):
        dataset = read_cifar(place, split, name=name)
    else:
        dataset = read_fashion_mnist(place, split, name=name)
    if normalization is not None:
        dataset = dataclasses.replace(dataset, normalization=normalization)
    if image_size is not None and image_size != dataset.images.shape[-1]:
        images = F.interpolate(
            dataset.images, size=(image_size, image_size), mode="bilinear", antialias=True
        )
        dataset = dataclasses.replace(dataset, images=images.to(torch.uint8))
    return dataset


def _place(name: str, root: str | Path | None) -> Path:
    """Where the data are: ``root``, or the place of a set that needs none."""
    if name == "fashion-mnist-mini":
        if root is not None:
            raise ValueError(f"root must be None for {name!r}, which is embedded; got '{root}'")
        return MINI_ROOT
    if root is None and name == "fashion-mnist" and DEBIAN_ROOT.is_dir():
        return DEBIAN_ROOT
    if root is None:
        raise ValueError(f"root is needed for {name!r}: {_ROOTS[name]}")
    return Path(root)


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
