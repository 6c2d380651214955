"""Distilled sets as the official codes lay them out: one folder a class, one image file each.

========== ================================== ==================================================
layout     files                              written by
========== ================================== ==================================================
``sre2l``  ``new007/class007_id003.jpg``      SRe2L, CDA, DWA (JPEG); FADRM (PNG)
``rded``   ``00007/class00007_id00003.jpg``   RDED (JPEG)
``d4m``    ``7/7-image30.png``                D4M: prototype 3, repetition 0
``synset`` ``n01518878/3.png``                Minimax Diffusion
========== ================================== ==================================================

Readers that sort folder names as text put D4M's ``10`` before ``2`` and give every class above 1 a
wrong label; here numbers are read as numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch

from pyddfast._extras import require
from pyddfast.data.atomic import new_folder, refuse_non_empty
from pyddfast.data.datasets import IMAGENET_NORMALIZATION, Normalization
from pyddfast.data.distilled import DistilledSet
from pyddfast.data.folder import EXTENSIONS, ImageFolder, Listing, hidden

__all__ = ["Layout", "by_number", "layout_facts", "open_layout", "read_layout", "write_layout"]

Layout: TypeAlias = Literal["sre2l", "rded", "d4m", "synset"]

# Tried in this order: "00010" is a number too, so D4M's comes after RDED's.
_FOLDERS = {
    "sre2l": re.compile(r"new(\d{3,})"),
    "rded": re.compile(r"(\d{5,})"),
    "d4m": re.compile(r"(0|[1-9]\d*)"),
    "synset": re.compile(r"n\d{8}"),
}
# A folder called by a date or an id is no label: the largest task in use has 21,841 classes.
_MOST_CLASSES = 1_000_000
_SUFFIX = {"png": ".png", "jpeg": ".jpg"}


def write_layout(
    distilled: DistilledSet,
    folder: str | Path,
    layout: Layout,
    *,
    image_format: Literal["png", "jpeg"] = "png",
    quality: int = 75,
    synsets: Sequence[str] | None = None,
) -> Path:
    """Write a set as an official code would.

    Args:
        distilled: A set with 1 (grey) or 3 (RGB) channels.
        folder: A path that does not exist yet, or an empty folder; it appears whole.
        layout: One of the table above.
        image_format: PNG keeps the pixels; JPEG is what most official codes write, and loses some.
        quality: Of JPEG; Pillow's default, which the official codes use.
        synsets: Folder names of ``"synset"``, one a class; None: the class names.

    Returns:
        The folder.

    Raises:
        FileExistsError: ``folder`` is a file or is not empty.
        ValueError: An option is unknown, the images have neither 1 nor 3 channels, or there is no
            synset for each class.
        ModuleNotFoundError: Pillow, of the ``methods`` extra, is not installed.
    """
    _check_layout(layout)
    if image_format not in _SUFFIX:
        raise ValueError(f"image_format must be 'png' or 'jpeg', got {image_format!r}")
    if not 1 <= quality <= 95:
        # Pillow's documentation discourages more, and turns parts of JPEG off at 100.
        raise ValueError(f"quality must lie in [1, 95], got {quality}")
    channels = distilled.images.shape[1]
    if channels not in (1, 3):
        raise ValueError(f"an image file needs 1 or 3 channels, the images have {channels}")
    names = tuple(distilled.class_names if synsets is None else synsets)
    if layout == "synset":
        bad = [name for name in names if not _FOLDERS["synset"].fullmatch(name)]
        if bad or len(set(names)) != distilled.num_classes:
            raise ValueError(
                f"the layout 'synset' needs {distilled.num_classes} different synsets such as "
                f"n01518878, got {len(names)} names{f', one is {bad[0]!r}' if bad else ''}"
            )
    path = refuse_non_empty(folder)
    image_module = require("PIL.Image", "methods")
    options = {"quality": quality} if image_format == "jpeg" else {}
    pixels = distilled.pixels().cpu().permute(0, 2, 3, 1).contiguous().numpy()
    slots = [0] * distilled.num_classes
    with new_folder(path) as new:
        for position, label in enumerate(distilled.labels.tolist()):
            slot = slots[label]
            slots[label] += 1
            stem = {
                "sre2l": f"new{label:03d}/class{label:03d}_id{slot:03d}",
                "rded": f"{label:05d}/class{label:05d}_id{slot:05d}",
                "d4m": f"{label}/{label}-image{slot}0",
                "synset": f"{names[label] if names else ''}/{slot}",
            }[layout]
            target = new / f"{stem}{_SUFFIX[image_format]}"
            target.parent.mkdir(exist_ok=True)
            image = pixels[position, :, :, 0] if channels == 1 else pixels[position]
            image_module.fromarray(image).save(target, **options)
    return path


def read_layout(
    folder: str | Path,
    layout: Layout | Literal["auto"] = "auto",
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] = (),
    normalization: Normalization | None = None,
    kind: str | None = None,
    factor: int = 1,
) -> DistilledSet:
    """Read a set that an official code, :func:`write_layout` or ``DistilledSet.save`` wrote.

    Images come in label order, within a class by the numbers in their names.

    Args:
        folder: Holds one folder a class, or ``set.json`` (the other arguments are then unused).
        layout: ``"auto"`` tells it by the folders' names; ``"synset"`` reads them as names, the
            others as numbers.
        num_classes: Classes of the task; None: the length of ``class_names``, or as many as the
            highest label or the synsets tell.
        class_names: One name a class.  Where one folder has such a name, all go by name.
            ``"synset"`` without them takes labels from the synsets' sorted order, and has them as
            names.
        normalization: Of the source data; None: ImageNet's, for RGB only.
        kind: As in :class:`DistilledSet`; None: ``"patches"`` of RDED's layout or with a factor
            above 1, else ``"synthetic"``.
        factor: As in :class:`DistilledSet`; an RDED set's has to be told.

    Raises:
        FileNotFoundError: ``folder`` is no folder, holds no class folders, or one has no images.
        ValueError: Folder names fit no layout or not the one given, or mean one label as names and
            another as numbers; a label is outside the classes, a file is no image or of another
            size, or a grey set comes without ``normalization``.
        ModuleNotFoundError: Pillow, of the ``methods`` extra, is not installed.
    """
    path = Path(folder)
    if (path / "set.json").is_file():
        return DistilledSet.load(path)
    images, count = open_layout(
        path, layout, num_classes=num_classes, class_names=class_names, normalization=normalization
    )
    held = images.resident()
    names, known_kind = layout_facts(images, count, class_names, factor)
    return DistilledSet(
        images=held.images,
        labels=held.labels,
        num_classes=count,
        normalization=held.normalization,
        class_names=names,
        factor=factor,
        kind=known_kind if kind is None else kind,
        meta={"layout": images.name, "folder": str(path)},
    )


def open_layout(
    folder: str | Path,
    layout: Layout | Literal["auto"] = "auto",
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] = (),
    normalization: Normalization | None = None,
) -> tuple[ImageFolder, int]:
    """The files of a set that an official code wrote, without decoding them.

    Args:
        folder: As in :func:`read_layout`, and so on; not one with ``set.json``.
        layout: As there.
        num_classes: As there.
        class_names: As there.
        normalization: As there.

    Returns:
        The images, named by their layout, in label order and within a class by the numbers in
        their names; and the classes of the task.  Where names are unknown, the classes are named
        by their folders.

    Raises:
        FileNotFoundError: As there.
        ValueError: As there.
    """
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder")
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not hidden(p.name))
    if not folders:
        raise FileNotFoundError(f"{path} has no class folders")
    if layout == "auto":
        found = _detect([p.name for p in folders], path, tuple(class_names))
    else:
        _check_layout(layout)
        found = layout
    by_label = _labels(folders, found, tuple(class_names))
    if max(by_label) >= _MOST_CLASSES:
        raise ValueError(
            f"{by_label[max(by_label)]} would have the label {max(by_label):,}; labels must be "
            f"below {_MOST_CLASSES:,}"
        )
    known = len(class_names) or max(by_label) + 1
    count = known if num_classes is None else num_classes
    if max(by_label) >= count:
        raise ValueError(
            f"{by_label[max(by_label)]} has the label {max(by_label)}, there are {count} classes"
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label in sorted(by_label):
        files = [
            f
            for f in by_label[label].iterdir()
            if f.suffix.lower() in EXTENSIONS and not hidden(f.name) and f.is_file()
        ]
        if not files:
            raise FileNotFoundError(f"{by_label[label]} holds no images")
        paths += sorted(files, key=by_number)
        labels += [label] * len(files)
    if normalization is None:
        if _is_grey(paths[0]):
            raise ValueError(f"{path} holds grey images; give their normalization")
        normalization = IMAGENET_NORMALIZATION
    names = tuple(class_names) or tuple(
        by_label[k].name if k in by_label else f"no folder {k}" for k in range(count)
    )
    listing = Listing(names, tuple(paths), torch.tensor(labels))
    return ImageFolder(path, normalization=normalization, name=found, listing=listing), count


def layout_facts(
    images: ImageFolder, count: int, class_names: Sequence[str], factor: int
) -> tuple[tuple[str, ...], str]:
    """What the folders of a set say of it.

    Args:
        images: Of :func:`open_layout`, like ``count``.
        count: Classes of the task.
        class_names: As given there.
        factor: As in :class:`DistilledSet`.

    Returns:
        The classes' names: those given, else synsets, else none; and the kind of the images:
        ``"patches"`` of RDED's layout and of mosaics, else ``"synthetic"``.
    """
    names = tuple(class_names)
    if not names and images.name == "synset" and len(set(images.labels.tolist())) == count:
        names = tuple(images.class_names)
    return names, "patches" if images.name == "rded" or factor > 1 else "synthetic"


def _check_layout(layout: str) -> None:
    if layout not in get_args(Layout):
        raise ValueError(f"layout must be one of {', '.join(get_args(Layout))}, got {layout!r}")


def _detect(names: Sequence[str], path: Path, class_names: tuple[str, ...]) -> str:
    fitting = (k for k, p in _FOLDERS.items() if all(p.fullmatch(name) for name in names))
    numbered = next(fitting, None)
    named = [name for name in names if name in class_names]
    if numbered is not None and numbered != "synset":
        # Test classes may be called by numbers too, in the order of text: "0", "1", "10", "2".
        for name in named:
            match = _FOLDERS[numbered].fullmatch(name)
            assert match is not None
            if int(match[1]) != class_names.index(name):
                raise ValueError(
                    f"the folder {path / name} can be label {int(match[1])} by its number (layout "
                    f"{numbered!r}) or label {class_names.index(name)} by its name (layout "
                    "'synset'): give the layout (--layout)"
                )
        return numbered
    if named:
        return "synset"
    if numbered is None:
        raise ValueError(
            f"the folders of {path} fit none of the layouts {', '.join(_FOLDERS)}: {names[0]}, ..."
        )
    return numbered


def _labels(folders: Sequence[Path], layout: str, synsets: tuple[str, ...]) -> dict[int, Path]:
    by_label: dict[int, Path] = {}
    for position, folder in enumerate(folders):
        match = _FOLDERS[layout].fullmatch(folder.name)
        if layout == "synset" and folder.name in synsets:
            label = synsets.index(folder.name)
        elif layout == "synset" and synsets:
            raise ValueError(f"{folder} is none of the class_names given")
        elif match is None:
            raise ValueError(f"{folder} does not fit the layout {layout!r}")
        else:
            label = position if layout == "synset" else int(match[1])
        if label in by_label:
            raise ValueError(f"{folder} and {by_label[label]} have the same label {label}")
        by_label[label] = folder
    return by_label


def by_number(file: Path) -> tuple[list[int], str]:
    """Sorts the files of a class: by the numbers in their names."""
    return [int(number) for number in re.findall(r"\d+", file.stem)], file.name


def _is_grey(file: Path) -> bool:
    image_module: Any = require("PIL.Image", "methods")
    try:
        with image_module.open(file) as opened:
            return bool(opened.mode == "L")
    except Exception as error:
        # Decoders fail in many types; what the user needs is the file's name.
        raise ValueError(f"{file} cannot be read as an image: {error}") from error
