"""RDED on real photographs: ``python -m benchmarks.rded_photos``.

The teacher is EfficientNet-Lite0 with its published weights, the photographs are those that two
packages carry: the twenty of ImageNet in ``foolbox``, and of ``scikit-image`` four whose licence
lets anyone show them.  Every class has one photograph but one of ImageNet's, so an image is the
crop that the teacher is surest of.  Boxes and scores go to ``benchmarks/results/rded/photos.json``;
``--draw FOLDER`` draws the boxes into copies of the photographs, for your eyes only.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from benchmarks import metadata
from benchmarks.schema import RESULTS, write
from pyddfast.data import EFFICIENTNET_LITE_NORMALIZATION, ImageFolder
from pyddfast.data.folder import Listing
from pyddfast.data.stored import read_tensors
from pyddfast.methods import RDEDConfig, rded
from pyddfast.models import load_pretrained

CONFIG = RDEDConfig(ipc=1, factor=1, image_size=224, num_crops=5)
SHOWN = 160  # pixels of a row of the picture in the docs
BEST, OTHER = (255, 200, 0), (255, 255, 255)


@dataclass(frozen=True)
class Photos:
    """Photographs of a package.

    Attributes:
        package: that carries them.
        folder: of the files in it.
        classes: file name to ImageNet-1k class.
        licence: file name to what allows to show it; nothing where that is not clear.
    """

    package: str
    folder: str
    classes: dict[str, int]
    licence: dict[str, str]


# The number at the end of a name is the class.
FOOLBOX_CLASSES = (243, 559, 438, 990, 949, 853, 609, 609, 915, 455)
FOOLBOX_CLASSES += (541, 630, 741, 471, 129, 99, 251, 22, 317, 305)
IMAGENET = Photos(
    "foolbox",
    "data",
    {f"imagenet_{i:02d}_{c}.jpg": c for i, c in enumerate(FOOLBOX_CLASSES)},
    {},
)
SHOWABLE = Photos(
    "skimage",
    "data",
    {"chelsea.png": 281, "coffee.png": 967, "rocket.jpg": 657, "astronaut.png": 812},
    {
        "chelsea.png": "CC0, Stefan van der Walt",
        "coffee.png": "CC0, Rachel Michetti",
        "rocket.jpg": "public domain, SpaceX",
        "astronaut.png": "public domain, NASA",
    },
)


class Chosen(nn.Module):
    """A network with the logits of some classes only, as the official code prunes its teachers."""

    def __init__(self, network: nn.Module, classes: list[int]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("classes", torch.tensor(classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the classes, (B, len(classes))."""
        logits: Tensor = self.network(images)
        return logits[:, self.classes]


def read(photos: Photos) -> tuple[ImageFolder, list[int]]:
    """The photographs as a data set, and the ImageNet class of each of its classes."""
    found = importlib.util.find_spec(photos.package)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"{photos.package} is not installed; its photographs are needed")
    root = Path(found.submodule_search_locations[0]) / photos.folder
    classes = list(dict.fromkeys(photos.classes.values()))
    listing = Listing(
        tuple(map(str, classes)),
        tuple(root / name for name in photos.classes),
        torch.tensor([classes.index(c) for c in photos.classes.values()]),
    )
    data = ImageFolder(root, normalization=EFFICIENTNET_LITE_NORMALIZATION, listing=listing)
    return data, classes


def run(photos: Photos) -> tuple[list[dict[str, Any]], Tensor]:
    """Every photograph's boxes and scores, and the distilled images."""
    data, classes = read(photos)
    teacher = Chosen(load_pretrained("efficientnet_lite0"), classes)
    rows = {}
    with tempfile.TemporaryDirectory() as out:
        made = rded(data, teacher, CONFIG, out=out)
        for file in sorted(Path(out, "classes").iterdir()):
            found, _ = read_tensors(file)
            for index, boxes, scores in zip(
                found["pool"].tolist(), found["pool_boxes"], found["pool_scores"], strict=True
            ):
                path = data.paths[index]
                _, height, width = data[index].shape
                rows[index] = {
                    "file": path.name,
                    "class": photos.classes[path.name],
                    "height": height,
                    "width": width,
                    "boxes": boxes.tolist(),
                    "scores": [float(f"{score:.6g}") for score in scores.tolist()],
                    "best": int(scores.argmin()),
                    "picked": index in found["source_indices"].tolist(),
                }
    return [rows[index] for index in sorted(rows)], made.images


def drawn(path: Path, row: dict[str, Any]) -> Image.Image:
    """The photograph with its boxes, the best one in yellow."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    draw = ImageDraw.Draw(image)
    line = max(2, image.height // 150)
    order = [*(i for i in range(len(row["boxes"])) if i != row["best"]), row["best"]]
    for crop in order:
        top, left, height, width = row["boxes"][crop]
        colour = BEST if crop == row["best"] else OTHER
        box = (left, top, left + width - 1, top + height - 1)
        draw.rectangle(box, outline=colour, width=2 * line if crop == row["best"] else line)
    return image


def picture(rows: list[dict[str, Any]], images: Tensor) -> Image.Image:
    """The showable photographs with their boxes, each above its crop."""
    data, _ = read(SHOWABLE)
    tiles = []
    for path, row, crop in zip(data.paths, rows, images, strict=True):
        photo = drawn(path, row)
        photo = photo.resize((photo.width * SHOWN // photo.height, SHOWN), Image.Resampling.BOX)
        tiles.append((photo, Image.fromarray(crop.permute(1, 2, 0).numpy()).resize((SHOWN, SHOWN))))
    sheet = Image.new("RGB", (sum(photo.width for photo, _ in tiles), 2 * SHOWN), "white")
    left = 0
    for photo, crop in tiles:
        sheet.paste(photo, (left, 0))
        sheet.paste(crop, (left + (photo.width - SHOWN) // 2, SHOWN))
        left += photo.width
    return sheet


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rded_photos", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "rded" / "photos.json")
    parser.add_argument("--draw", type=Path, help="folder for copies with boxes")
    parser.add_argument("--picture", type=Path, help="file for the picture of the docs")
    parser.add_argument("--threads", type=int, default=1, help="scores are rounded by it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {}
    for photos in (IMAGENET, SHOWABLE):
        rows, images = run(photos)
        for row in rows:
            row |= {"licence": photos.licence[row["file"]]} if photos.licence else {}
        results[photos.package] = rows
        if options.draw is not None:
            options.draw.mkdir(parents=True, exist_ok=True)
            data, _ = read(photos)
            for path, row in zip(data.paths, rows, strict=True):
                drawn(path, row).save(options.draw / f"{path.stem}.png")
    if options.picture is not None:
        picture(rows, images).save(options.picture, quality=80)
    write(
        {
            "metadata": metadata.collect(torch.device("cpu")),
            "model": "efficientnet_lite0, the logits of each package's classes",
            "num_crops": CONFIG.num_crops,
            "image_size": CONFIG.image_size,
            "seed": CONFIG.seed,
            "photos": results,
        },
        options.out,
    )
    for package, rows in results.items():
        for row in rows:
            best = row["best"]
            print(f"{package} {row['file']}: {row['boxes'][best]}, {row['scores'][best]:.4f}")


if __name__ == "__main__":
    main()
