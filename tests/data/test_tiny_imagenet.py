"""Tiny-ImageNet's official folder, written here in small, and what can be wrong with it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyddfast import data

# In another order than sorted, as the official wnids.txt.
WNIDS = ["n02124075", "n01443537", "n12267677"]
WORDS = {"n01443537": "goldfish, Carassius auratus", "n12267677": "acorn", "n99999999": "unused"}
VAL = [(0, 0), (2, 2), (10, 1), (1, 0)]  # number and class, out of order by either


def grey_level(label: int, number: int) -> int:
    return 60 * label + 10 * number


def save(path: Path, level: int, side: int = 64) -> None:
    """One even colour: JPEG keeps it within a level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), level, np.uint8)).save(path, format="JPEG")


@pytest.fixture
def root(tmp_path) -> Path:
    root = tmp_path / "tiny-imagenet-200"
    for label, wnid in enumerate(WNIDS):
        for number in range(2):
            save(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG",
                 grey_level(label, number))  # fmt: skip
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
    lines = []
    for number, label in VAL:
        save(root / "val" / "images" / f"val_{number}.JPEG", grey_level(label, number))
        lines.append(f"val_{number}.JPEG\t{WNIDS[label]}\t0\t1\t62\t63\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(WNIDS))  # no newline at the end
    (root / "words.txt").write_text("".join(f"{key}\t{name}\n" for key, name in WORDS.items()))
    return root


def levels(loaded) -> np.ndarray:
    return loaded.images.double().mean((1, 2, 3)).numpy()


def test_both_splits(root):
    sorted_label = {0: 1, 1: 0, 2: 2}  # position in WNIDS -> in sorted order
    train = data.load("tiny-imagenet", root=root)
    assert train.images.shape == (6, 3, 64, 64)
    assert train.class_names == ("goldfish, Carassius auratus", "n02124075", "acorn")
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    expected = [grey_level(label, number) for label in (1, 0, 2) for number in (0, 1)]
    np.testing.assert_allclose(levels(train), expected, atol=1)
    assert (train.name, train.split) == ("tiny-imagenet", "train")
    assert train.normalization == data.TINY_IMAGENET_NORMALIZATION
    test = data.load("tiny-imagenet", root=root.parent, split="test")  # the folder above
    assert test.labels.tolist() == [sorted_label[label] for _, label in VAL]
    np.testing.assert_allclose(
        levels(test), [grey_level(label, number) for number, label in VAL], atol=1
    )
    assert test.class_names == train.class_names
    assert data.load("tiny-imagenet", root=root, image_size=32).images.shape == (6, 3, 32, 32)


def test_a_validation_split_rearranged_by_class(root):
    images = root / "val" / "images"
    for number, label in VAL:
        target = root / "val" / WNIDS[label] / "images" / f"val_{number}.JPEG"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(images / f"val_{number}.JPEG", target)
    images.rmdir()
    (root / "val" / "val_annotations.txt").unlink()
    test = data.load("tiny-imagenet", root=root, split="test")
    assert test.labels.tolist() == [0, 1, 1, 2]
    np.testing.assert_allclose(
        levels(test), [grey_level(1, 10), grey_level(0, 0), grey_level(0, 1), grey_level(2, 2)],
        atol=1,
    )  # fmt: skip


ANNOTATIONS = "val/val_annotations.txt"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (ANNOTATIONS, lambda t: t.splitlines()[0], r"has no line for val_1.JPEG, val_10.JPEG, val"),
        (ANNOTATIONS, lambda t: t.replace(WNIDS[2], "n00000000"), "line 2: .* no identifier"),
        (ANNOTATIONS, lambda t: t.replace("\t", " "), "line 1: .* no identifier"),
        (ANNOTATIONS, lambda t: t + t, "line 5: val_0.JPEG is listed twice"),
        ("wnids.txt", lambda t: t + "\nn00000001", "different classes: n00000001"),
        ("wnids.txt", lambda t: "", "different classes: n01443537, n02124075, n12267677"),
    ],
)
def test_files_that_contradict_each_other(root, file, change, message):
    path = root / file
    path.write_text(change(path.read_text()))
    split = "test" if file == ANNOTATIONS else "train"
    with pytest.raises(ValueError, match=message) as caught:
        data.load("tiny-imagenet", root=root, split=split)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("path", "split", "message"),
    [
        ("wnids.txt", "train", "wnids.txt is missing"),
        ("words.txt", "train", "words.txt is missing"),
        ("val/images/val_2.JPEG", "test", "line 2: .*val_2.JPEG is missing"),
        ("val/images", "test", "val/images is not a folder"),
        ("train", "train", "train is not a folder"),
        ("val", "test", "val is not a folder"),
        (f"train/{WNIDS[0]}/images", "train", f"{WNIDS[0]} has no image"),
    ],
)
def test_missing_files(root, path, split, message):
    (shutil.rmtree if (root / path).is_dir() else Path.unlink)(root / path)
    with pytest.raises(FileNotFoundError, match=message):
        data.load("tiny-imagenet", root=root, split=split)


def test_images_that_are_not_of_the_set(root):
    path = root / "val" / "images" / "val_1.JPEG"
    save(path, 0, side=65)
    with pytest.raises(ValueError, match=r"val_1.JPEG has the size \(65, 65\)"):
        data.load("tiny-imagenet", root=root, split="test")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"val_1.JPEG cannot be read as an image"):
        data.load("tiny-imagenet", root=root, split="test")
    for number, _ in VAL:
        save(root / "val" / "images" / f"val_{number}.JPEG", 0, side=32)
    with pytest.raises(ValueError, match=r"val_0.JPEG and all others .*\(32, 32\).* 64 x 64"):
        data.load("tiny-imagenet", root=root, split="test")


def test_no_images_at_all(root):
    shutil.rmtree(root / "val" / "images")
    (root / "val" / "images").mkdir()
    (root / ANNOTATIONS).write_text("")
    with pytest.raises(ValueError, match="tiny-imagenet-200 has no images"):
        data.load("tiny-imagenet", root=root, split="test")


def test_a_root_is_needed():
    with pytest.raises(ValueError, match="root is needed for 'tiny-imagenet'"):
        data.load("tiny-imagenet")
