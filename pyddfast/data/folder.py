"""Images in one folder a class, decoded when they are read."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyddfast._extras import require
from pyddfast.data.datasets import (
    IMAGENET_NORMALIZATION,
    ImageDataset,
    Labelled,
    Normalization,
)

__all__ = [
    "BILINEAR",
    "EXTENSIONS",
    "ImageFolder",
    "Listing",
    "check_resize",
    "cut_geometry",
    "hidden",
    "read_image",
    "resize_and_cut",
    "scan",
]

# The formats that torchvision's ImageFolder accepts, so that sample numbers agree with it.
EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

BILINEAR = 2  # PIL.Image.Resampling.BILINEAR; Pillow's filters antialias when shrinking
_MODES = {1: "L", 3: "RGB"}
# What Pillow refuses to decode (twice its limit of 89 million), refused as a resize's result too:
# 1 x 65,000 pixels would become 256 x 17 million.
_MOST_PIXELS = 2 * 89_478_485
_SHOWN = 10  # bad files listed by verify; more would bury the message


@dataclass(frozen=True)
class Listing:
    """Image files and what they show.

    Args:
        class_names: Name of each class, in label order.
        paths: Image files.
        labels: Class of each file, int64 (N,).
    """

    class_names: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: Tensor


class ImageFolder(Labelled):
    """A lazy data set over ``root/<class>/**/<image>``; sizes may differ between images.

    Classes are the sub-folders in sorted order, files are sorted within a class (the order of
    torchvision's ``ImageFolder``); hidden folders and files are left out.  Images are decoded by
    Pillow to RGB, or to grey when the normalisation has one channel; an alpha channel is dropped
    and EXIF rotation is not applied, as in torchvision.  Of 16-bit pixels the high byte is kept.

    Args:
        root: Folder whose sub-folders are the classes.
        image_size: If given, the shorter side is resized to ``resize`` (bilinear with
            antialiasing) and the central square of this size is cut; else images keep their sizes.
        resize: Length of the shorter side before the cut; ``image_size`` when None.
        normalization: Mean and std; ImageNet's when None.
        name: Name of the data set.
        split: Name of the split.
        listing: Files and labels of a folder of another layout; None scans ``root``.

    Raises:
        FileNotFoundError: ``root`` is no folder, has no class folders, or a class has no images.
        ValueError: Sizes are not positive, or ``resize`` is smaller than ``image_size``.
        ModuleNotFoundError: Pillow, of the ``methods`` extra, is not installed.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        image_size: int | None = None,
        resize: int | None = None,
        normalization: Normalization | None = None,
        name: str = "folder",
        split: str = "train",
        listing: Listing | None = None,
    ) -> None:
        require("PIL.Image", "methods")  # now, not at the first image
        if image_size is not None and image_size < 1:
            raise ValueError(f"image_size must be positive, got {image_size}")
        if resize is not None and (image_size is None or resize < image_size):
            raise ValueError(
                f"resize needs an image_size of at most its value, got {resize} and {image_size}"
            )
        self.root = Path(root)
        self.image_size = image_size
        self.resize = resize if resize is not None else image_size
        self.normalization = IMAGENET_NORMALIZATION if normalization is None else normalization
        if self.normalization.channels not in _MODES:
            raise ValueError(
                f"normalization must have 1 (grey) or 3 (RGB) channels, "
                f"got {self.normalization.channels}"
            )
        self.name = name
        self.split = split
        if listing is None:
            listing = scan(self.root)
        self.class_names, self.paths = listing.class_names, listing.paths
        self.labels = listing.labels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> Tensor:
        """Decode image ``index``.

        Returns:
            uint8 (C, H, W), a view of the decoder's (H, W, C).

        Raises:
            ValueError: The file is truncated, not an image, or so narrow that its resize would
                not fit memory; the message names it.
        """
        image = read_image(self.paths[index], self.normalization.channels)
        if self.image_size is not None and self.resize is not None:
            check_resize(self.paths[index], image.height, image.width, self.resize)
            image = resize_and_cut(image, self.resize, self.image_size)
        pixels = np.array(image)
        return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)

    def verify(self, *, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Decode every image once, so that a long job cannot fail on a bad file half-way.

        Args:
            on_progress: Called with (images done, images in all) after each image.

        Raises:
            ValueError: Some files cannot be decoded; the message names the first ten.
        """
        bad: list[str] = []
        # Pillow releases the GIL while it decodes, so threads use the cores.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for done, message in enumerate(pool.map(self._complaint, range(len(self))), start=1):
                if message is not None:
                    bad.append(message)
                if on_progress is not None:
                    on_progress(done, len(self))
        if bad:
            shown = "\n".join(bad[:_SHOWN])
            more = f"\n... and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
            raise ValueError(f"{len(bad)} of {len(self)} images are unusable:\n{shown}{more}")

    def resident(self, device: torch.device | str | None = None) -> ImageDataset:
        """Decode everything into memory, by as many threads as there are processors.

        Args:
            device: Where the images go; None: the CPU.

        Returns:
            A data set with the same order, labels and names.

        Raises:
            ValueError: Images differ in size (give ``image_size``), or one cannot be decoded.
        """
        images: Tensor | None = None
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for position, image in enumerate(pool.map(self.__getitem__, range(len(self)))):
                if images is None:  # one block: a list to stack would need twice the memory
                    shape = (len(self), *image.shape)
                    images = torch.empty(shape, dtype=torch.uint8, device=device)
                elif image.shape != images.shape[1:]:
                    raise ValueError(
                        f"{self.paths[position]} has the size {tuple(image.shape[1:])}, "
                        f"{self.paths[0]} has {tuple(images.shape[2:])}; give image_size "
                        "(--image-size) to make them equal"
                    )
                images[position] = image
        if images is None:
            raise ValueError(f"{self.root} has no images")
        return ImageDataset(
            images=images,
            labels=self.labels,
            class_names=self.class_names,
            normalization=self.normalization,
            name=self.name,
            split=self.split,
        )

    def _complaint(self, index: int) -> str | None:
        try:
            self[index]
        except (OSError, ValueError) as error:
            return str(error)
        return None


def scan(root: Path) -> Listing:
    """List ``root/<class>/**/<image>``: classes sorted, files sorted within a class.

    What is hidden is left out; torchvision's ``ImageFolder`` would take it.

    Raises:
        FileNotFoundError: ``root`` is no folder, has no class folders, or a class has no images.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder")
    class_names = tuple(
        sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not hidden(entry.name))
    )
    if not class_names:
        raise FileNotFoundError(f"{root} has no class folders; images go in {root}/<class>/")
    paths: list[Path] = []
    labels: list[int] = []
    for label, class_name in enumerate(class_names):
        before = len(paths)
        for folder, _, files in sorted(os.walk(root / class_name, followlinks=True)):
            if any(hidden(part) for part in Path(folder).relative_to(root / class_name).parts):
                continue
            paths += [
                Path(folder, file)
                for file in sorted(files)
                if file.lower().endswith(EXTENSIONS) and not hidden(file)
            ]
        if len(paths) == before:
            raise FileNotFoundError(
                f"the class folder {root / class_name} has no image; "
                f"accepted endings: {', '.join(EXTENSIONS)}"
            )
        labels += [label] * (len(paths) - before)
    return Listing(class_names, tuple(paths), torch.tensor(labels, dtype=torch.int64))


def hidden(name: str) -> bool:
    """Whether a name is none of the user's: ``.ipynb_checkpoints``, macOS's ``._0.png``."""
    return name.startswith(".")


def read_image(path: Path, channels: int) -> Any:
    """Decode one file by the rules of :class:`ImageFolder`.

    Args:
        path: Image file.
        channels: 1 for grey, 3 for RGB.

    Returns:
        A loaded ``PIL.Image.Image`` of mode L or RGB.

    Raises:
        ValueError: The file is truncated, not an image, too large for Pillow's limit, or has
            floating-point pixels; the message names it.
    """
    try:
        # Not an attribute: a module would keep the data set from being pickled for workers.
        with require("PIL.Image", "methods").open(path) as opened:
            opened.load()  # the pixels outlive the file
            image = _as_bytes(opened)
            mode = _MODES[channels]
            return image if image.mode == mode else image.convert(mode)  # which would copy
    except FileNotFoundError:
        raise
    except Exception as error:
        # Decoders fail in many types (OSError, SyntaxError, struct.error, ValueError ...);
        # what the user needs is always the file's name.
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def _as_bytes(image: Any) -> Any:
    """An image of bytes: Pillow's own conversion would clip 16-bit grey at 255, nearly all white.

    (16-bit colour is cut to its high bytes by Pillow when it is opened.)
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    if not image.mode.startswith("I"):  # I;16 and its kin, and I in older versions
        return image
    high = np.asarray(image).clip(0, 65535) >> 8
    return require("PIL.Image", "methods").fromarray(high.astype(np.uint8))


def resize_and_cut(image: Any, resize: int, size: int) -> Any:
    """Resize the shorter side of a PIL image, cut its centre."""
    (height, width), (top, left) = cut_geometry(image.height, image.width, resize, size)
    return image.resize((width, height), BILINEAR).crop((left, top, left + size, top + size))


def check_resize(path: Path, height: int, width: int, resize: int) -> None:
    """Refuse an image whose shorter side, made ``resize``, would make the longer one absurd.

    Raises:
        ValueError: It would; the message names the file.
    """
    short, long = sorted((height, width))
    if long * resize // short * resize > _MOST_PIXELS:
        raise ValueError(
            f"{path} of {height} x {width} pixels cannot be resized: {resize} x "
            f"{long * resize // short:,} are more than {_MOST_PIXELS:,} pixels"
        )


def cut_geometry(
    height: int, width: int, resize: int, size: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Size after the resize, and top and left of the cut; rounded as torchvision rounds them."""
    if width <= height:
        width, height = resize, int(resize * height / width)
    else:
        width, height = int(resize * width / height), resize
    return (height, width), (round((height - size) / 2), round((width - size) / 2))
