"""The embedded subset, its drawing rule, and the official files' reader."""

import gzip
import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from pyddfast import data
from pyddfast.data.fashion_mnist import MINI_ROOT
from pyddfast.data.idx import read_idx, write_idx

# SHA-256 of the decoded pixels and of the labels as int64, from the first drawing out of Debian's
# dataset-fashion-mnist 0.0~git20200523.55506a9-1.
DIGESTS = {
    "train": (
        "c875cc20d17cc64d354eb76415d009e2af2d2a57c29da6fe2ee7d7aff0dfff26",
        "bdf84e9cba0dd0f5543c2e67aad2f768f3cf7b7d243ef27a3dc211c29f50a0b9",
    ),
    "test": (
        "dd486cb973de1b8775196b03833d7815ccea5652e15d49b0e6d15cc9302d6be8",
        "18e1db89dc83d21a01bb1c6376d943690fdfed6036b5e94926202d5e7e17a24c",
    ),
}


def tool():
    path = Path(__file__).parents[2] / "tools" / "make_fashion_mnist_mini.py"
    spec = importlib.util.spec_from_file_location("make_fashion_mnist_mini", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("split", "prefix", "count", "full"),
    [("train", "train", 6000, 60000), ("test", "t10k", 2000, 10000)],
)
def test_the_embedded_set_is_the_one_that_was_drawn(split, prefix, count, full):
    mini = data.load("fashion-mnist-mini", split=split)
    assert mini.images.shape == (count, 1, 28, 28)
    assert mini.class_counts.tolist() == [count // 10] * 10
    assert mini.class_names[5] == "Sandal"
    assert mini.split == split
    digests = tuple(
        hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        for tensor in (mini.images, mini.labels)
    )
    assert digests == DIGESTS[split]
    source = read_idx(MINI_ROOT / f"{prefix}-source-indices-idx1-int.gz")
    assert len(source) == count
    assert (np.diff(source) > 0).all()
    assert source[0] >= 0
    assert source[-1] < full


def test_the_normalisation_fits_the_embedded_pixels():
    pixels = data.load("fashion-mnist-mini").images.double() / 255
    norm = data.FASHION_MNIST_NORMALIZATION
    # A sample of 6,000 images: the mean of images' means has a standard error of about 0.0015.
    assert float(pixels.mean()) == pytest.approx(norm.mean[0], abs=0.005)
    assert float(pixels.std()) == pytest.approx(norm.std[0], abs=0.005)


def test_the_package_stays_small_and_carries_the_licence():
    files = list(MINI_ROOT.iterdir())
    assert sum(file.stat().st_size for file in files) <= 4_000_000
    licence = (MINI_ROOT / "LICENSE-fashion-mnist").read_text()
    assert "Copyright (c) 2017 Zalando SE" in licence
    assert "Permission is hereby granted, free of charge" in licence


def philox_by_hand(key: int, counter: list[int]) -> list[int]:
    """Philox4x32-10 in Python integers, from table 2 and figure 4 of Salmon et al., SC 2011."""
    k0, k1 = key % 2**32, key >> 32
    a, b, c, d = counter
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (q >> 32) ^ b ^ k0, q % 2**32, (p >> 32) ^ d ^ k1, p % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [a, b, c, d]


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_draw_follows_the_stated_rule(split):
    labels = np.arange(200) * 7 % 10
    expected = []
    for label in range(10):
        members = [i for i in range(200) if labels[i] == label]
        words = {i: philox_by_hand(170807747, [i, int(split == "test"), 0, 0]) for i in members}
        members.sort(key=lambda i: (words[i][0] << 32) + words[i][1])
        expected += members[:3]
    assert tool().draw(labels, split, 3).tolist() == sorted(expected)
    with pytest.raises(ValueError, match="'T-shirt/top' has 20 images, 21"):
        tool().draw(labels, split, 21)


def full_set(root: Path, count: int = 50, *, suffix: str = ".gz") -> None:
    values = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    for prefix in ("train", "t10k"):
        images = values.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(root / f"{prefix}-images-idx3-ubyte{suffix}", images)
        labels = (np.arange(count) % 10).astype(np.uint8)
        write_idx(root / f"{prefix}-labels-idx1-ubyte{suffix}", labels)


def test_the_tool_copies_the_drawn_images_and_says_which(tmp_path):
    full_set(tmp_path / "full")
    tool().make(tmp_path / "full", tmp_path / "mini", {"train": 3, "test": 2})
    for split, prefix, count in (("train", "train", 30), ("test", "t10k", 20)):
        full = data.load("fashion-mnist", root=tmp_path / "full", split=split)
        mini = data.load("fashion-mnist", root=tmp_path / "mini", split=split)
        kept = read_idx(tmp_path / "mini" / f"{prefix}-source-indices-idx1-int.gz")
        assert len(mini) == count
        assert torch.equal(mini.images, full.images[kept])
        assert torch.equal(mini.labels, full.labels[kept])


@pytest.mark.parametrize("below", [".", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_official_files_are_found_packed_or_not(tmp_path, below, suffix):
    full_set(tmp_path / below, 20, suffix=suffix)
    loaded = data.load("fashion-mnist", root=tmp_path, split="test")
    raw = read_idx(tmp_path / below / f"t10k-images-idx3-ubyte{suffix}")
    assert np.array_equal(loaded.images.numpy()[:, 0], raw)
    assert loaded.labels.tolist() == [i % 10 for i in range(20)]


def test_a_missing_file_lists_where_it_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte") as caught:
        data.load("fashion-mnist", root=tmp_path)
    assert str(tmp_path / "FashionMNIST" / "raw") in str(caught.value)


@pytest.mark.parametrize(
    ("file", "array", "message"),
    [
        ("labels-idx1-ubyte", np.zeros(19, np.uint8), "20 images.*19"),
        ("labels-idx1-ubyte", np.arange(20, dtype=np.uint8) % 11, "label 10 at position 10"),
        ("labels-idx1-ubyte", np.zeros((20, 1), np.uint8), r"\(N,\), got uint8 \(20, 1\)"),
        ("labels-idx1-ubyte", np.zeros(20, np.int32), "uint8 labels"),
        ("images-idx3-ubyte", np.zeros((20, 32, 32), np.uint8), r"\(N, 28, 28\), got.*32"),
        ("images-idx3-ubyte", np.zeros((20, 28, 28), np.float32), "uint8 images.*float32"),
    ],
)
def test_files_that_contradict_each_other(tmp_path, file, array, message):
    full_set(tmp_path, 20)
    write_idx(tmp_path / f"train-{file}.gz", array)
    with pytest.raises(ValueError, match=message) as caught:
        data.load("fashion-mnist", root=tmp_path)
    assert str(tmp_path / f"train-{file}.gz") in str(caught.value)


def test_a_damaged_file_stops_the_load_and_is_named(tmp_path):
    full_set(tmp_path, 20)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is not a complete gzip"):
        data.load("fashion-mnist", root=tmp_path)
    path.write_bytes(gzip.compress(b"\0\0\x08\3" + bytes(20)))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz has bytes after"):
        data.load("fashion-mnist", root=tmp_path)


def resize_by_hand(image: np.ndarray, size: int) -> np.ndarray:
    """Bilinear enlargement in float64 with pixel centres at half-integers, edges repeated."""
    position = (np.arange(size) + 0.5) * len(image) / size - 0.5
    low = np.floor(position).astype(int)
    weight = position - low
    first, second = low.clip(0, len(image) - 1), (low + 1).clip(0, len(image) - 1)
    rows = image[first] * (1 - weight)[:, None] + image[second] * weight[:, None]
    return rows[:, first] * (1 - weight) + rows[:, second] * weight


def test_image_size_resizes():
    native = data.load("fashion-mnist-mini", split="test")
    resized = data.load("fashion-mnist-mini", split="test", image_size=32)
    assert resized.images.shape == (2000, 1, 32, 32)
    for i in (0, 7, 1999):
        expected = resize_by_hand(native.images[i, 0].double().numpy(), 32)
        # Two passes over bytes: each rounds to the nearest level, half a level each.
        assert np.abs(resized.images[i, 0].numpy() - expected).max() <= 1.01
    assert torch.equal(
        data.load("fashion-mnist-mini", split="test", image_size=28).images, native.images
    )


def test_a_given_normalisation_replaces_the_own():
    norm = data.Normalization(mean=(0.5,), std=(0.5,))
    assert data.load("fashion-mnist-mini", normalization=norm).normalization == norm
    with pytest.raises(ValueError, match=r"1 channels.*3"):
        data.load("fashion-mnist-mini", normalization=data.IMAGENET_NORMALIZATION)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cifar"}, "fashion-mnist-mini, fashion-mnist, cifar10, .*folder, got 'cifar'"),
        ({"name": "fashion-mnist-mini", "split": "val"}, "'train' or 'test', got 'val'"),
        ({"name": "fashion-mnist-mini", "root": "/x"}, "root must be None.*'/x'"),
        ({"name": "fashion-mnist-mini", "image_size": 0}, "image_size must be positive, got 0"),
        ({"name": "folder"}, "root is needed for 'folder'"),
    ],
)
def test_load_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.load(**arguments)


def test_without_debians_package_a_root_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("pyddfast.data.catalog.DEBIAN_ROOT", tmp_path / "absent")
    with pytest.raises(ValueError, match=r"root is needed for 'fashion-mnist'.*four official"):
        data.load("fashion-mnist")


def test_with_debians_package_no_root_is_needed(tmp_path, monkeypatch):
    full_set(tmp_path, 10)
    monkeypatch.setattr("pyddfast.data.catalog.DEBIAN_ROOT", tmp_path)
    assert data.load("fashion-mnist").labels.tolist() == list(range(10))
