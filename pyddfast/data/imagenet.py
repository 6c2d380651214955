"""ImageNet-1k (Russakovsky et al., IJCV 2015: ILSVRC2012), read from folders on disk."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import torch

from pyddfast._extras import require
from pyddfast.data.datasets import IMAGENET_NORMALIZATION, Normalization
from pyddfast.data.folder import EXTENSIONS, ImageFolder, Listing, hidden, scan

__all__ = ["open_imagenet"]

_WNID = re.compile(r"n\d{8}")
# Where the images lie below the root: as torchvision and most scripts have them, or as Kaggle's
# archive unpacks.
_BELOW = (".", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
# Where a devkit lies: the official one unpacked beside the images, or its files alone.
_DEVKITS = (
    "ILSVRC2012_devkit_t12/data",
    "ILSVRC/devkit/data",
    "devkit/data",
    "data",
    ".",
)
_TRUTHS = (
    "ILSVRC2012_validation_ground_truth.txt",
    "ILSVRC2015_clsloc_validation_ground_truth.txt",  # the same images and identifiers
)
_NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})")  # the file's line in the ground truth, from 1
_KAGGLE_TRUTH = "LOC_val_solution.csv"


def open_imagenet(
    root: str | Path,
    split: str,
    *,
    image_size: int | None = None,
    resize: int | None = None,
    normalization: Normalization | None = None,
) -> ImageFolder:
    """Open one split of ImageNet-1k, or of a subset of its classes, without decoding anything.

    Classes are WordNet identifiers in sorted order, so that labels are those that torchvision's,
    timm's and Lite0's weights were trained with.

    Args:
        root: Folder with ``train/<wnid>/*.JPEG`` and ``val/``, or Kaggle's with
            ``ILSVRC/Data/CLS-LOC``.  ``val`` has class folders too, or it is flat
            (``ILSVRC2012_val_00000001.JPEG`` ...) and ``root`` holds the labels: the devkit
            (``ILSVRC2012_validation_ground_truth.txt`` with ``map_clsloc.txt`` or ``meta.mat``, for
            which scipy is needed), or Kaggle's ``LOC_val_solution.csv``.
        split: ``"train"`` or ``"test"``, which is the official validation split.
        image_size: As for :class:`ImageFolder`.
        resize: As there.
        normalization: ImageNet's when None.

    Raises:
        FileNotFoundError: A folder or the labels of a flat ``val`` are missing.
        ValueError: A class folder is not named by an identifier, labels and images do not belong
            together, or the two splits have different classes.  The message names the file.
        ModuleNotFoundError: Pillow, or scipy for ``meta.mat``, is not installed.
    """
    root = Path(root)
    train, val = _below(root, "train"), _below(root, "val")
    folder = train if split == "train" else val
    if folder is None:
        wanted = "train" if split == "train" else "val"
        raise FileNotFoundError(
            f"{root} has no folder {wanted}, nor {_BELOW[1]}/{wanted} as Kaggle's archive has"
        )
    flat = folder == val and not any(
        entry.is_dir() and not hidden(entry.name) for entry in folder.iterdir()
    )
    listing = _flat(root, folder) if flat else scan(folder)
    if strange := [name for name in listing.class_names if not _WNID.fullmatch(name)]:
        raise ValueError(
            f"{folder / strange[0]} is not named by a WordNet identifier such as n01440764, which "
            "sets the labels' order (data set 'folder' reads any class folders)"
        )
    if folder == val and train is not None:
        classes = {
            entry.name for entry in train.iterdir() if entry.is_dir() and not hidden(entry.name)
        }
        if differing := sorted(classes ^ set(listing.class_names)):
            raise ValueError(
                f"{train} and {val} have different classes, so their labels would not agree: "
                f"{differing[0]} is in one only, as are {len(differing) - 1} more"
            )
    return ImageFolder(
        folder,
        image_size=image_size,
        resize=resize,
        normalization=IMAGENET_NORMALIZATION if normalization is None else normalization,
        name="imagenet",
        split=split,
        listing=listing,
    )


def _below(root: Path, name: str) -> Path | None:
    folders = (root / below / name for below in _BELOW)
    return next((folder for folder in folders if folder.is_dir()), None)


def _flat(root: Path, folder: Path) -> Listing:
    """Images without class folders, in sorted order, with the labels of the devkit or Kaggle."""
    paths = sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(EXTENSIONS) and not hidden(path.name)
    )
    if not paths:
        raise FileNotFoundError(f"{folder} has neither class folders nor images")
    source, wnids = _truth(root, [path.stem for path in paths])
    missing = [path for path, wnid in zip(paths, wnids, strict=True) if wnid is None]
    if missing:
        raise ValueError(f"{source} has no class for {missing[0]} and {len(missing) - 1} more")
    class_names = sorted({wnid for wnid in wnids if wnid is not None})
    label_of = {wnid: label for label, wnid in enumerate(class_names)}
    labels = [label_of[wnid] for wnid in wnids if wnid is not None]
    return Listing(tuple(class_names), tuple(paths), torch.tensor(labels, dtype=torch.int64))


def _truth(root: Path, stems: list[str]) -> tuple[Path, list[str | None]]:
    """The file with the labels, and each image's identifier, None where it has none."""
    if (root / _KAGGLE_TRUTH).is_file():
        path = root / _KAGGLE_TRUTH
        known = _kaggle(path)
        return path, [known.get(stem) for stem in stems]
    for devkit in (root / below for below in _DEVKITS):
        for path in (devkit / name for name in _TRUTHS):
            if path.is_file():
                return path, _by_number(path, _identifiers(devkit), stems)
    raise FileNotFoundError(
        f"the images in val have no class folders, and {root} has neither {_KAGGLE_TRUTH} nor "
        f"{_TRUTHS[0]} (of the devkit, in {_DEVKITS[0]})"
    )


def _by_number(path: Path, wnid_of: dict[int, str], stems: list[str]) -> list[str | None]:
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip().isdecimal() or int(line) not in wnid_of:
            raise ValueError(
                f"{path}, line {number}: {line!r} is not the number of a class in {path.parent}"
            )
    matches = [_NUMBERED.fullmatch(stem) for stem in stems]
    numbers = [int(match[1]) if match else 0 for match in matches]
    return [
        wnid_of[int(lines[number - 1])] if 0 < number <= len(lines) else None for number in numbers
    ]


def _identifiers(devkit: Path) -> dict[int, str]:
    """Class number of the devkit -> WordNet identifier; the numbers are not in sorted order."""
    text = devkit / "map_clsloc.txt"
    if text.is_file():
        found = {}
        for number, line in enumerate(text.read_text().splitlines(), start=1):
            fields = line.split()  # n02119789 1 kit_fox
            if len(fields) < 2 or not fields[1].isdecimal():
                raise ValueError(f"{text}, line {number}: {line!r} is not 'wnid number name'")
            found[int(fields[1])] = fields[0]
        return found
    mat = devkit / "meta.mat"
    if not mat.is_file():
        raise FileNotFoundError(f"{devkit} has neither map_clsloc.txt nor meta.mat")
    try:
        synsets = require("scipy.io", "methods").loadmat(mat, squeeze_me=True)["synsets"]
        # Numbers above 1000 are inner nodes of the hierarchy; no image has them.
        return {
            int(number): str(wnid)
            for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)
        }
    except ModuleNotFoundError:
        raise
    except Exception as error:  # scipy's reader has no exception type of its own
        raise ValueError(f"{mat} is not the devkit's table of classes: {error}") from error


def _kaggle(path: Path) -> dict[str, str]:
    """Image -> identifier: the first word of the second column, before a box of four numbers."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    if not rows or rows[0] != ["ImageId", "PredictionString"]:
        raise ValueError(f"{path} must start with the columns ImageId,PredictionString")
    found = {}
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != 2 or not row[1].split():
            raise ValueError(f"{path}, line {number}: {','.join(row)!r} has no prediction")
        found[row[0]] = row[1].split()[0]
    return found
