"""ImageNet-C's corruptions of any data set: 15 kinds, 5 severities, keyed by the image.

"Benchmarking Neural Network Robustness to Common Corruptions and Perturbations" (Hendrycks,
Dietterich, ICLR 2019).  The pixels come from the package ``imagecorruptions`` (the maintained fork
``imagecorruptions-imaug``), which has the original constants, made for 224 pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyddfast._extras import require
from pyddfast.data import DistilledSet, ImageDataset, ImageFolder, ImageSource
from pyddfast.data.atomic import new_folder, remove_leftovers
from pyddfast.data.digest import describe_data
from pyddfast.random import Purpose, philox
from pyddfast.train import RunFolder, progress

__all__ = ["CORRUPTIONS", "SEVERITIES", "corrupt_image", "corrupted", "write_corruptions"]

# In ImageNet-C's order: noise, blur, weather, digital.
CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise",
    "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness",
    "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
SEVERITIES = (1, 2, 3, 4, 5)

# The package takes no smaller images; theirs are mirrored at the edges and cut again.
_SMALLEST = 32
# These draw from generators of their own, which their argument seeds; the others from numpy's.
_SEEDED = ("impulse_noise", "glass_blur")
_SYNSET = re.compile(r"n\d{8}")
# Images of a task for a worker process: some seconds of work at 224 pixels.
_CHUNK = 64


def corrupt_image(
    image: Tensor, corruption: str, severity: int, *, image_id: int, seed: int = 0
) -> Tensor:
    """One image corrupted.

    Its draws are keyed by seed, image and corruption: the five severities share them.  They are
    made under numpy's global generator, which is put back; threads must not share it meanwhile.

    Args:
        image: uint8 (C, H, W), grey or RGB.  Of a grey one the first of three equal channels is
            taken.
        corruption: One of :data:`CORRUPTIONS`.
        severity: 1 to 5.
        image_id: Its position in the data set.
        seed: Of the draws.

    Returns:
        uint8 (C, H, W).

    Raises:
        TypeError: The image is not uint8.
        ValueError: It has neither 1 nor 3 channels, or an option is unknown.
        ModuleNotFoundError: The ``ood`` extra is not installed.
    """
    _check([corruption], [severity])
    if image.dtype != torch.uint8:
        raise TypeError(f"corruptions are of pixels: uint8, got {image.dtype}")
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"an image is (1 or 3, H, W), got {tuple(image.shape)}")
    package = require("imagecorruptions", "ood")
    channels, height, width = image.shape
    pixels = image.permute(1, 2, 0).numpy(force=True)
    top, left = (max(0, _SMALLEST - side + 1) // 2 for side in (height, width))
    padded = np.pad(
        pixels,
        (
            (top, max(0, _SMALLEST - height - top)),
            (left, max(0, _SMALLEST - width - left)),
            (0, 0),
        ),
        mode="symmetric",
    )
    number = CORRUPTIONS.index(corruption)
    key = int(philox(seed, (Purpose.CORRUPTION, image_id, number, 0))[0])
    options = {"seed": key} if corruption in _SEEDED else {}
    before = np.random.get_state()  # noqa: NPY002 the package draws from it
    try:
        np.random.seed(key)  # noqa: NPY002
        made = package.corrupt(
            np.repeat(padded, 3 // channels, axis=2),
            severity=severity,
            corruption_name=corruption,
            **options,
        )
    finally:
        np.random.set_state(before)  # noqa: NPY002
    cut = made[top : top + height, left : left + width, :channels]
    return torch.from_numpy(np.ascontiguousarray(cut)).permute(2, 0, 1).contiguous()


def corrupted(
    dataset: ImageDataset | DistilledSet, corruption: str, severity: int, *, seed: int = 0
) -> ImageDataset:
    """A data set in memory with every image corrupted; arguments as :func:`corrupt_image`."""
    images = [
        corrupt_image(image, corruption, severity, image_id=position, seed=seed)
        for position, image in enumerate(dataset.images)
    ]
    names = dataset.class_names or tuple(str(label) for label in range(dataset.num_classes))
    return ImageDataset(
        torch.stack(images),
        dataset.labels,
        names,
        dataset.normalization,
        name=f"{corruption} {severity}",
        split="corrupted",
    )


def write_corruptions(
    dataset: ImageDataset | ImageFolder,
    out: str | Path,
    *,
    corruptions: Sequence[str] = CORRUPTIONS,
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
    workers: int = 1,
) -> Path:
    """Write a tree in ImageNet-C's layout: ``OUT/CORRUPTION/SEVERITY/CLASS/POSITION.png``.

    Class folders have the class's name where it is a synset, else its five-digit label.  Each
    severity's folder appears whole; a stopped call goes on.

    Args:
        dataset: Usually a test split, at the size that networks see: images of other sizes than
            224 pixels are corrupted with the same constants.
        out: A run folder.
        corruptions: Of :data:`CORRUPTIONS`.
        severities: Of 1 to 5.
        seed: Of the draws.
        workers: Processes; the images do not depend on their number.

    Returns:
        The folder.

    Raises:
        TypeError: The images are not uint8.
        ValueError: An option is unknown, or ``out`` holds another tree.
        ModuleNotFoundError: The ``ood`` extra is not installed.
    """
    _check(corruptions, severities)
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if dataset[0].dtype != torch.uint8:
        raise TypeError(f"corruptions are of pixels: uint8, got {dataset[0].dtype}")
    require("imagecorruptions", "ood")
    require("PIL.Image", "methods")
    facts = {"task": "corrupt", "dataset": describe_data(dataset), "seed": seed}
    wanted = [(name, level) for name in corruptions for level in severities]
    # Fork would copy the locks of torch's threads.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _keep, (dataset,))
    with (
        RunFolder(out, facts, resume=True) as run,
        pool,
        progress("corruptions", len(wanted) * len(dataset)) as advance,
    ):
        for name in corruptions:
            remove_leftovers(run.path / name)
        for name, level in wanted:
            folder = run.path / name / str(level)
            if folder.exists():
                advance(len(dataset))
                continue
            with new_folder(folder) as new:
                parts = [
                    (new, name, level, seed, start) for start in range(0, len(dataset), _CHUNK)
                ]
                # One worker is this process: spawning takes seconds.
                if workers == 1:
                    _keep(dataset)
                for count in map(_write, parts) if workers == 1 else pool.map(_write, parts):
                    advance(count)
    return Path(out)


# The data set of a worker process.
_kept: dict[str, ImageSource] = {}


def _keep(dataset: ImageSource) -> None:
    _kept["dataset"] = dataset


def _write(task: tuple[Path, str, int, int, int]) -> int:
    folder, name, level, seed, start = task
    image_module: Any = require("PIL.Image", "methods")
    dataset = _kept["dataset"]
    stop = min(start + _CHUNK, len(dataset))
    for position in range(start, stop):
        made = corrupt_image(dataset[position], name, level, image_id=position, seed=seed)
        label = int(dataset.labels[position])
        known = dataset.class_names[label] if dataset.class_names else ""
        target = folder / (known if _SYNSET.fullmatch(known) else f"{label:05d}")
        target.mkdir(exist_ok=True)
        pixels = made.permute(1, 2, 0).numpy()
        image_module.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(
            target / f"{position:08d}.png"
        )
    return stop - start


def _check(corruptions: Sequence[str], severities: Sequence[int]) -> None:
    for name in corruptions:
        if name not in CORRUPTIONS:
            raise ValueError(f"corruption must be one of {', '.join(CORRUPTIONS)}, got {name!r}")
    for level in severities:
        if level not in SEVERITIES:
            raise ValueError(f"severity must be one of {SEVERITIES}, got {level!r}")
