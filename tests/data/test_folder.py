"""Image folders: order, pixels, resizing, and unreadable files."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from pyddfast import data
from pyddfast.data import ImageFolder, ImageSource, Normalization

GREY = Normalization(mean=(0.5,), std=(0.5,))


def pixels(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(path)


def test_ragged_images_in_sorted_order(tmp_path):
    arrays = {
        "ant/2.png": pixels(4, 6, seed=1),
        "ant/10.png": pixels(5, 3, seed=2),
        "ant/deep/0.PNG": pixels(2, 2, seed=3),
        "bee/1.png": pixels(7, 1, seed=4),
    }
    for name, array in arrays.items():
        write(tmp_path / name, array)
    (tmp_path / "bee" / "notes.txt").write_text("not an image")
    folder = ImageFolder(tmp_path)
    assert isinstance(folder, ImageSource)
    # Strings sort "10" before "2", and a sub-folder's files come after its parent's.
    order = ["ant/10.png", "ant/2.png", "ant/deep/0.PNG", "bee/1.png"]
    assert [str(path.relative_to(tmp_path)) for path in folder.paths] == order
    assert folder.class_names == ("ant", "bee")
    assert folder.labels.tolist() == [0, 0, 0, 1]
    assert folder.class_counts.tolist() == [3, 1]
    for i, name in enumerate(order):
        assert folder[i].dtype == torch.uint8
        assert np.array_equal(folder[i].numpy(), arrays[name].transpose(2, 0, 1))


def test_colour_modes(tmp_path):
    grey, colour = pixels(3, 4, 1), pixels(3, 4, 3)
    write(tmp_path / "a" / "0.png", grey)
    alpha = np.concatenate([colour, pixels(3, 4, 1, seed=9)], axis=2)
    write(tmp_path / "a" / "1.png", alpha)
    folder = ImageFolder(tmp_path)
    assert np.array_equal(folder[0].numpy(), np.repeat(grey, 3, 2).transpose(2, 0, 1))
    assert np.array_equal(folder[1].numpy(), colour.transpose(2, 0, 1))
    to_grey = ImageFolder(tmp_path, normalization=GREY)
    assert np.array_equal(to_grey[0].numpy(), grey.transpose(2, 0, 1))
    luma = colour.astype(np.float64) @ [0.299, 0.587, 0.114]  # ITU-R 601, what Pillow documents
    assert np.abs(to_grey[1].numpy()[0] - luma).max() <= 1


@pytest.mark.parametrize(
    ("height", "width", "top", "left"),
    [(8, 8, 0, 0), (8, 13, 0, 2), (15, 8, 4, 0)],  # no cut; 2.5 and 3.5 round to even
)
def test_the_centre_is_cut(tmp_path, height, width, top, left):
    array = pixels(height, width)
    write(tmp_path / "a" / "0.png", array)
    cut = ImageFolder(tmp_path, image_size=8)[0]
    expected = array[top : top + 8, left : left + 8].transpose(2, 0, 1)
    assert np.array_equal(cut.numpy(), expected)


@pytest.mark.parametrize(
    ("height", "width", "resize", "size"),
    # smaller (antialiased); larger, where 47.6 is cut to 47, upright and lying
    [(40, 60, 20, 16), (28, 10, 17, 17), (10, 28, 17, 17)],
)
def test_resizing_against_float64(tmp_path, height, width, resize, size):
    array = pixels(height, width)
    write(tmp_path / "a" / "0.png", array)
    image = ImageFolder(tmp_path, image_size=size, resize=resize)[0]
    shorter = min(height, width)
    target = (int(resize * height / shorter), int(resize * width / shorter))
    full = F.interpolate(
        torch.from_numpy(array).permute(2, 0, 1)[None].double(),
        size=target,
        mode="bilinear",
        antialias=True,
    )[0]
    top, left = round((target[0] - size) / 2), round((target[1] - size) / 2)
    expected = full[:, top : top + size, left : left + size]
    # Pillow rounds to a byte after each of its two passes.
    assert float((image.double() - expected).abs().max()) <= 1.1


def test_resident_holds_the_same_pixels(tmp_path):
    for i in range(5):
        write(tmp_path / "ab"[i % 2] / f"{i}.png", pixels(6, 5, seed=i))
    folder = ImageFolder(tmp_path, name="six", split="test")
    resident = folder.resident()
    assert resident.labels.tolist() == [0, 0, 0, 1, 1]
    assert (resident.name, resident.split) == ("six", "test")
    for i in range(5):
        assert torch.equal(resident[i], folder[i])


def test_resident_refuses_ragged_images(tmp_path):
    write(tmp_path / "a" / "0.png", pixels(4, 4))
    write(tmp_path / "a" / "1.png", pixels(4, 5))
    with pytest.raises(ValueError, match=r"1\.png has the size \(4, 5\).*\(4, 4\).*image_size"):
        ImageFolder(tmp_path).resident()
    assert len(ImageFolder(tmp_path, image_size=4).resident()) == 2


def test_a_folder_can_be_sent_to_worker_processes(tmp_path):
    write(tmp_path / "a" / "0.png", pixels(4, 4))
    folder = ImageFolder(tmp_path)
    assert torch.equal(pickle.loads(pickle.dumps(folder))[0], folder[0])


def spoiled_folder(tmp_path: Path) -> Path:
    """Two good images and three bad ones: a cut JPEG, a text under an image's name, no bytes."""
    root = tmp_path / "spoiled"
    write(root / "a" / "good.png", pixels(40, 40))
    write(root / "b" / "good.jpg", pixels(40, 40))
    content = (root / "b" / "good.jpg").read_bytes()
    (root / "a" / "cut.jpg").write_bytes(content[: len(content) // 2])
    (root / "b" / "text.png").write_text("no image")
    (root / "b" / "void.jpg").write_bytes(b"")
    return root


def test_an_unreadable_image_is_named_when_it_is_read(tmp_path):
    folder = ImageFolder(spoiled_folder(tmp_path))
    bad = [i for i, path in enumerate(folder.paths) if "good" not in path.name]
    assert len(bad) == 3
    for i in range(len(folder)):
        if i in bad:
            with pytest.raises(ValueError, match="cannot be read as an image") as caught:
                folder[i]
            assert str(folder.paths[i]) in str(caught.value)
        else:
            assert folder[i].shape == (3, 40, 40)


def test_verify_names_every_bad_file_at_once(tmp_path):
    root = spoiled_folder(tmp_path)
    seen = []
    with pytest.raises(ValueError, match="3 of 5 images") as caught:
        ImageFolder(root).verify(on_progress=lambda done, total: seen.append((done, total)))
    for name in ("cut.jpg", "text.png", "void.jpg"):
        assert name in str(caught.value)
    assert "good" not in str(caught.value)
    assert seen == [(i, 5) for i in range(1, 6)]
    for path in (root / "a" / "cut.jpg", root / "b" / "text.png", root / "b" / "void.jpg"):
        path.unlink()
    seen.clear()
    ImageFolder(root).verify(on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_verify_counts_what_it_does_not_list(tmp_path):
    for i in range(12):
        path = tmp_path / "a" / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"12 of 12 images") as caught:
        ImageFolder(tmp_path).verify()
    assert "09.png" in str(caught.value)
    assert "10.png" not in str(caught.value)
    assert str(caught.value).endswith("and 2 more")


def test_folders_without_images(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="has no class folders"):
        ImageFolder(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.txt").write_text("")
    with pytest.raises(FileNotFoundError, match="empty has no image"):
        ImageFolder(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "image_size must be positive"),
        ({"resize": 8}, "resize needs an image_size"),
        ({"image_size": 9, "resize": 8}, "got 8 and 9"),
        ({"normalization": Normalization((0.5, 0.5), (1.0, 1.0))}, "1 .grey. or 3 .RGB."),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    write(tmp_path / "a" / "0.png", pixels(4, 4))
    with pytest.raises(ValueError, match=message):
        ImageFolder(tmp_path, **arguments)


@pytest.mark.parametrize("held_out", ["test", "val"])  # both names are in use for labelled images
def test_load_folder_finds_the_splits(tmp_path, held_out):
    write(tmp_path / "train" / "a" / "0.png", pixels(4, 4, seed=1))
    write(tmp_path / held_out / "a" / "0.png", pixels(4, 4, seed=2))
    for split, seed in (("train", 1), ("test", 2)):
        folder = data.load("folder", root=tmp_path, split=split)
        assert np.array_equal(folder[0].numpy(), pixels(4, 4, seed=seed).transpose(2, 0, 1))
        assert folder.split == split
        assert folder.normalization == data.IMAGENET_NORMALIZATION


def test_load_folder_never_gives_training_images_as_the_test_split(tmp_path):
    write(tmp_path / "a" / "0.png", pixels(4, 4))
    assert data.load("folder", root=tmp_path, image_size=2)[0].shape == (3, 2, 2)
    with pytest.raises(FileNotFoundError, match="no folder test or val"):
        data.load("folder", root=tmp_path, split="test")
    write(tmp_path / "test" / "a" / "0.png", pixels(4, 4))
    with pytest.raises(FileNotFoundError, match="no folder train"):
        data.load("folder", root=tmp_path, split="train")
