"""Tiny-ImageNet (Le and Yang, CS231n 2015): 200 classes, 64 x 64, 100,000 + 10,000 images.

The 10,000 labelled images are the official validation split; the official test images have no
labels.
"""

from __future__ import annotations

from pathlib import Path

import torch

from pyddfast.data.datasets import IMAGENET_NORMALIZATION, ImageDataset
from pyddfast.data.folder import ImageFolder, Listing, scan

__all__ = ["TINY_IMAGENET_NORMALIZATION", "read_tiny_imagenet"]

# ImageNet's, as the DC and MTT codes have it (utils.py).
TINY_IMAGENET_NORMALIZATION = IMAGENET_NORMALIZATION

_SIDE = 64


def read_tiny_imagenet(root: str | Path, split: str) -> ImageDataset:
    """Decode one split of the official folder into memory (1.2 GB for the training images).

    Labels follow the sorted WordNet identifiers, the order of torchvision's ``ImageFolder`` over
    ``train/``; ``wnids.txt`` has another order.  Class names are those of ``words.txt``.

    Args:
        root: ``tiny-imagenet-200`` or the folder that holds it: ``wnids.txt``, ``words.txt``,
            ``train/<wnid>/images/*.JPEG``, ``val/images/*.JPEG`` with ``val/val_annotations.txt``.
            Without the annotations ``val/<wnid>/**/*.JPEG`` is read, as many scripts rearrange it.
        split: ``"train"`` or ``"test"``, which is the official ``val``.

    Returns:
        uint8 (N, 3, 64, 64) images, int64 labels; training images sorted by class and name,
        validation images in the order of the annotations.

    Raises:
        FileNotFoundError: A file or folder is missing.
        ValueError: A class folder or identifier is not of the set, annotations and images do not
            belong together, or an image is damaged or has another size.  The message names it.
        ModuleNotFoundError: Pillow, of the ``methods`` extra, is not installed.
    """
    root = Path(root)
    if not (root / "wnids.txt").is_file() and (root / "tiny-imagenet-200").is_dir():
        root = root / "tiny-imagenet-200"
    wnids = sorted(_lines(root / "wnids.txt"))
    annotations = root / "val" / "val_annotations.txt"
    if split == "test" and annotations.is_file():
        listing = _annotated(annotations, wnids)
    else:
        folder = root / ("train" if split == "train" else "val")
        listing = scan(folder)
        if list(listing.class_names) != wnids:
            differing = sorted(set(listing.class_names) ^ set(wnids))
            raise ValueError(
                f"{folder} and {root / 'wnids.txt'} list different classes: {_shown(differing)}"
            )
    words = dict(line.split("\t", 1) for line in _lines(root / "words.txt") if "\t" in line)
    images = ImageFolder(
        root,
        normalization=TINY_IMAGENET_NORMALIZATION,
        name="tiny-imagenet",
        split=split,
        listing=Listing(
            tuple(words.get(wnid, wnid) for wnid in wnids), listing.paths, listing.labels
        ),
    ).resident()
    if images.images.shape[2:] != (_SIDE, _SIDE):
        raise ValueError(
            f"{listing.paths[0]} and all others have the size {tuple(images.images.shape[2:])}; "
            f"Tiny-ImageNet has {_SIDE} x {_SIDE} pixels (data set 'folder' reads any size)"
        )
    return images


def _annotated(path: Path, wnids: list[str]) -> Listing:
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    folder = path.parent / "images"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    present = {entry.name for entry in folder.iterdir()}
    labels: dict[str, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        # File, identifier, and a bounding box of four numbers, separated by tabs.
        file, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in label_of:
            raise ValueError(
                f"{path}, line {number}: {line!r} has no identifier of wnids.txt in its second "
                "field"
            )
        if file not in present:
            raise FileNotFoundError(f"{path}, line {number}: {folder / file} is missing")
        if file in labels:
            raise ValueError(f"{path}, line {number}: {file} is listed twice")
        labels[file] = label_of[wnid]
    if missing := sorted(present - labels.keys()):
        raise ValueError(f"{path} has no line for {_shown(missing)} in {folder}")
    return Listing(
        tuple(wnids),
        tuple(folder / file for file in labels),
        torch.tensor(list(labels.values()), dtype=torch.int64),
    )


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; Tiny-ImageNet has it")
    return path.read_text().splitlines()


def _shown(entries: list[str]) -> str:
    more = f" and {len(entries) - 3} more" if len(entries) > 3 else ""
    return ", ".join(entries[:3]) + more
