"""Made photographs as JPEG files: the most frequent size of ImageNet and about its bytes."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from benchmarks.ops.augment import pictures

HEIGHT, WIDTH = 375, 500
QUALITY = 95  # ImageNet's files of this size have 110 KB on average, these 100


def write_photos(root: Path, classes: int, per_class: int) -> None:
    """Folders ``00000``, ``00001`` ... of ``per_class`` different files each."""
    for label in range(classes):
        folder = root / f"{label:05d}"
        folder.mkdir(parents=True)
        for number, pixels in enumerate(pictures(label, per_class, HEIGHT, WIDTH)):
            image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
            image.save(folder / f"{number:05d}.jpg", quality=QUALITY)
