"""The table of image sizes and its cache."""

import pytest
import torch

from pyddfast.data import ImageFolder, image_sizes
from pyddfast.data.stored import write_tensors
from tests.data import pictures

SIZES = [[75, 100], [60, 60], [90, 31], [120, 90], [100, 75], [41, 97], [64, 80]]


def test_sizes_are_those_of_the_decoded_images(tmp_path, monkeypatch):
    monkeypatch.setattr("pyddfast.data.sizes._CHUNK", 3)  # the last task has one file
    folder = ImageFolder(pictures.jpeg_folder(tmp_path))
    seen = []
    sizes = image_sizes(folder, on_progress=lambda done, total: seen.append((done, total)))
    assert sizes.tolist() == SIZES
    assert sizes.tolist() == [list(folder[i].shape[1:]) for i in range(7)]
    assert sizes.dtype == torch.int64
    assert seen == [(3, 7), (6, 7), (7, 7)]


def test_the_cache_is_used_until_files_change(tmp_path):
    root = pictures.jpeg_folder(tmp_path / "photos")
    cache = tmp_path / "sizes.safetensors"
    assert image_sizes(ImageFolder(root), cache=cache).tolist() == SIZES
    content = cache.read_bytes()
    seen = []
    again = image_sizes(ImageFolder(root), cache=cache, on_progress=lambda *x: seen.append(x))
    assert again.tolist() == SIZES
    assert not seen  # no header was read
    assert cache.read_bytes() == content
    pictures.write(root, {"a/0.jpg": pictures.jpeg(pictures.photo(33, 44))})
    assert image_sizes(ImageFolder(root), cache=cache).tolist() == [[33, 44], *SIZES[1:]]
    assert cache.read_bytes() != content


def test_another_file_is_never_overwritten(tmp_path):
    folder = ImageFolder(pictures.jpeg_folder(tmp_path / "photos"))
    cache = tmp_path / "weights.safetensors"
    write_tensors(cache, {"weight": torch.zeros(3)}, {"epoch": 1})
    content = cache.read_bytes()
    with pytest.raises(ValueError, match=r"weights\.safetensors is not a table of image sizes"):
        image_sizes(folder, cache=cache)
    assert cache.read_bytes() == content
    cache.write_bytes(content[:40])
    with pytest.raises(ValueError, match=r"weights\.safetensors is damaged"):
        image_sizes(folder, cache=cache)


def test_unreadable_headers(tmp_path):
    bad = {f"a/{i:02}.jpg": b"no image" for i in range(12)}
    good = {"b/good.jpg": pictures.jpeg(pictures.photo(30, 40))}
    folder = ImageFolder(pictures.write(tmp_path / "photos", {**bad, **good}))
    cache = tmp_path / "sizes.safetensors"
    with pytest.raises(ValueError, match="12 images have no readable header") as caught:
        image_sizes(folder, cache=cache)
    assert "09.jpg cannot be read" in str(caught.value)
    assert "10.jpg" not in str(caught.value)
    assert str(caught.value).endswith("and 2 more")
    assert not cache.exists()
    skipped = image_sizes(folder, cache=cache, on_error="skip")
    assert skipped.tolist() == [[0, 0]] * 12 + [[30, 40]]
    with pytest.raises(ValueError, match="12 images have no readable header"):
        image_sizes(folder, cache=cache)  # the table knows them
    with pytest.raises(ValueError, match="on_error must be 'raise' or 'skip', got 'warn'"):
        image_sizes(folder, on_error="warn")
