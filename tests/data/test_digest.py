"""Digests: what data a run was made from."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyddfast.data import ImageDataset, ImageFolder, Normalization
from pyddfast.data.digest import data_digest, describe_data

GREY = Normalization((0.5,), (0.25,))


def small(seed: int = 0) -> ImageDataset:
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (4, 1, 2, 3), generator=g).to(torch.uint8)
    return ImageDataset(images, torch.tensor([0, 1, 0, 1]), ("a", "b"), GREY, "small", "train")


def test_a_resident_set_is_its_bytes() -> None:
    dataset = small()
    labels, images = dataset.labels.numpy(), dataset.images.numpy()
    content = b"torch.int64 (4,)" + labels.tobytes()
    content += b"torch.uint8 (4, 1, 2, 3)" + images.tobytes()
    assert describe_data(dataset) == {
        "name": "small",
        "split": "train",
        "count": 4,
        "normalization": {"mean": [0.5], "std": [0.25]},
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    assert data_digest(small()) == data_digest(dataset) != data_digest(small(1))
    # As many bytes in another shape are another set.
    turned = dataclasses.replace(dataset, images=dataset.images.view(4, 1, 3, 2))
    assert data_digest(turned) != data_digest(dataset)


def test_the_digest_follows_a_change_in_place() -> None:
    dataset = small()
    before = data_digest(dataset)
    dataset.images[0, 0, 0, 0] ^= 1
    changed = data_digest(dataset)
    assert changed != before
    dataset.images[0, 0, 0, 0] ^= 1
    assert data_digest(dataset) == before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label in ("a", "b"):
        (tmp_path / "root" / label).mkdir(parents=True)
        for name in ("0.png", "1.png"):
            Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(
                tmp_path / "root" / label / name
            )
    return tmp_path / "root"


def test_a_folder_is_its_files_and_options(folder: Path) -> None:
    first = data_digest(ImageFolder(folder, image_size=2))
    assert data_digest(ImageFolder(folder, image_size=4)) != first
    moved = folder.rename(folder.with_name("elsewhere"))
    assert data_digest(ImageFolder(moved, image_size=2)) == first
    picture = moved / "b" / "1.png"
    picture.write_bytes(picture.read_bytes() + b"\0")
    assert data_digest(ImageFolder(moved, image_size=2)) != first
    picture.rename(moved / "b" / "2.png")
    assert data_digest(ImageFolder(moved, image_size=2)) != first


class Lazy:
    """A source of a user: only what the protocol asks."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset
        self.labels, self.normalization = dataset.labels, dataset.normalization

    class_names = ("a", "b")
    num_classes = 2

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.dataset[index]


def test_another_source_is_read() -> None:
    assert data_digest(Lazy(small())) == data_digest(Lazy(small())) != data_digest(Lazy(small(1)))
    assert describe_data(Lazy(small()))["name"] is None
