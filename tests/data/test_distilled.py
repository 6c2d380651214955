"""Distilled sets: checks, the folder layout, damage, and the PNG export."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from pyddfast.data import DistilledSet, ImageFolder, ImageSource, Normalization, export_png

COLOUR = Normalization(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))


def example(**changes) -> DistilledSet:
    stream = torch.Generator().manual_seed(0)
    fields = {
        "images": torch.randint(0, 256, (6, 3, 4, 5), dtype=torch.uint8, generator=stream),
        "labels": torch.tensor([2, 0, 1, 1, 0, 2]),
        "num_classes": 3,
        "normalization": COLOUR,
        "class_names": ("Äpfel", "b/c", "d"),
        "factor": 2,
        "soft_labels": torch.randn(6, 3, generator=stream).half(),
        "kind": "patches",
        "meta": {"method": "rded", "seed": 7, "source_indices": [5, 1, 2], "nested": {"a": None}},
    }
    return DistilledSet(**(fields | changes))


@pytest.mark.parametrize("soft", [True, False])  # a set may come without stored logits
def test_what_was_saved_is_loaded_bit_for_bit(tmp_path, soft):
    original = example() if soft else example(soft_labels=None)
    assert original.save(tmp_path / "new" / "set") == tmp_path / "new" / "set"
    loaded = DistilledSet.load(tmp_path / "new" / "set")
    for field in dataclasses.fields(DistilledSet):
        before, after = getattr(original, field.name), getattr(loaded, field.name)
        if isinstance(before, torch.Tensor):
            assert before.dtype == after.dtype
            assert torch.equal(before, after)
        else:
            assert before == after, field.name


def test_two_saves_write_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        example().save(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["set.json", "set.safetensors"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_views_are_saved_by_value(tmp_path):
    wide = torch.arange(2 * 6 * 3 * 4 * 5).to(torch.uint8).reshape(2, 6, 3, 4, 5)
    permuted = wide[1].flip(0).transpose(2, 3)
    example(images=permuted).save(tmp_path / "set")
    assert torch.equal(DistilledSet.load(tmp_path / "set").images, permuted)


def test_counts_and_ipc():
    assert isinstance(example(), ImageSource)
    assert example().ipc == 2
    assert example().class_counts.tolist() == [2, 2, 2]
    unbalanced = example(labels=torch.zeros(6, dtype=torch.int64))
    assert unbalanced.class_counts.tolist() == [6, 0, 0]
    assert unbalanced.ipc == 2  # the budget: 6 images for 3 classes
    assert torch.equal(example()[3], example().images[3])


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "keep.txt").write_text("mine")
    for action in (example().save, lambda folder: export_png(example(), folder)):
        with pytest.raises(FileExistsError, match="is not empty") as caught:
            action(tmp_path)
        assert str(tmp_path) in str(caught.value)
        with pytest.raises(FileExistsError, match=r"keep\.txt exists and is not a folder"):
            action(tmp_path / "keep.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]
    assert (tmp_path / "keep.txt").read_text() == "mine"


def test_an_empty_folder_is_accepted(tmp_path):
    (tmp_path / "set").mkdir()
    example().save(tmp_path / "set")
    assert len(DistilledSet.load(tmp_path / "set")) == 6


@pytest.mark.parametrize("missing", ["set.json", "set.safetensors"])
def test_a_missing_file_is_named(tmp_path, missing):
    example().save(tmp_path / "set")
    (tmp_path / "set" / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        DistilledSet.load(tmp_path / "set")


def test_any_changed_byte_of_the_tensors_is_noticed(tmp_path):
    example().save(tmp_path / "set")
    path = tmp_path / "set" / "set.safetensors"
    good = path.read_bytes()
    # header length, header, first and last value, and a cut
    contents = []
    for position in (0, 20, len(good) - 1):
        changed = bytearray(good)
        changed[position] ^= 1
        contents.append(bytes(changed))
    for content in [*contents, good[:-1], b""]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"set\.safetensors is damaged"):
            DistilledSet.load(tmp_path / "set")


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff{}", b"[]", b""])
def test_a_record_that_is_no_json_object_is_named(tmp_path, content):
    example().save(tmp_path / "set")
    (tmp_path / "set" / "set.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"set\.json is not"):
        DistilledSet.load(tmp_path / "set")


def test_files_of_two_sets_do_not_pass_for_one(tmp_path):
    example().save(tmp_path / "a")
    example(labels=torch.tensor([0, 0, 1, 1, 2, 2])).save(tmp_path / "b")
    (tmp_path / "a" / "set.json").write_bytes((tmp_path / "b" / "set.json").read_bytes())
    with pytest.raises(ValueError, match="belongs to another set"):
        DistilledSet.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 2}, "does not hold a valid distilled set.*labels must lie"),
        ({"factor": 0}, "factor must be at least 1"),
        ({"factor": "2"}, "does not hold a valid distilled set"),
        ({"kind": "other"}, "kind must be one of"),
        ({"normalization": {"mean": [0.5]}}, "does not hold a valid distilled set.*std"),
        ({"count": 7}, "holds 6 images.*says 7"),
        ({"format": 2}, "format 2; this version reads 1"),
    ],
)
def test_a_changed_record_is_refused_by_name(tmp_path, change, message):
    example().save(tmp_path / "set")
    path = tmp_path / "set" / "set.json"
    record = json.loads(path.read_text()) | change
    del record["record_sha256"]
    content = json.dumps(record, sort_keys=True).encode()  # the form that the checksum is over
    record["record_sha256"] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message) as caught:
        DistilledSet.load(tmp_path / "set")
    assert str(tmp_path / "set") in str(caught.value)


def test_a_changed_digit_in_the_record_is_noticed(tmp_path):
    example().save(tmp_path / "set")
    path = tmp_path / "set" / "set.json"
    text = path.read_text()
    assert text.count("0.6") == 1
    path.write_text(text.replace("0.6", "0.7"))  # a std of the normalisation
    with pytest.raises(ValueError, match=r"set\.json is damaged or was edited"):
        DistilledSet.load(tmp_path / "set")


def test_tuples_and_integer_keys_in_meta_become_what_json_has(tmp_path):
    example(meta={"picked": {10: (1, 2), 9: ()}}).save(tmp_path / "set")
    loaded = DistilledSet.load(tmp_path / "set")
    assert loaded.meta == {"picked": {"10": [1, 2], "9": []}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "not the record"),
        (b'{"format": 1}', r"lacks the fields \['class_names', 'count', 'factor'"),
    ],
)
def test_a_broken_record_is_refused_by_name(tmp_path, content, message):
    example().save(tmp_path / "set")
    (tmp_path / "set" / "set.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        DistilledSet.load(tmp_path / "set")
    assert "set.json" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": torch.zeros(6, 3, 4, 5).half()}, TypeError, "must be uint8 or"),
        ({"labels": torch.tensor([0, 1, 2, 3, 0, 1])}, ValueError, r"labels must lie in \[0, 3\)"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, ValueError, r"labels must have shape"),
        ({"num_classes": 0}, ValueError, "num_classes must be at least 1"),
        ({"class_names": ("a",)}, ValueError, "1 names for 3 classes"),
        ({"num_classes": np.int64(3)}, TypeError, "num_classes must be an int"),
        ({"factor": 2.0}, TypeError, r"factor must be an int, got 2\.0"),
        ({"factor": 5}, ValueError, r"factor 5 is more than the image size \(4, 5\)"),
        ({"kind": "fake"}, ValueError, "'real', 'patches', 'synthetic'.*got 'fake'"),
        ({"soft_labels": torch.zeros(6, 4)}, ValueError, r"\(6, 3\), got \(6, 4\)"),
        ({"soft_labels": torch.zeros(6, 3, dtype=torch.int64)}, TypeError, "floating point"),
        ({"soft_labels": torch.full((6, 3), torch.inf)}, ValueError, "soft_labels must be finite"),
        ({"meta": {"tensor": torch.zeros(1)}}, TypeError, "JSON values only"),
        ({"meta": {"loss": float("nan")}}, TypeError, "JSON values only"),
    ],
)
def test_fields_that_do_not_fit(changes, error, message):
    with pytest.raises(error, match=message):
        example(**changes)


@pytest.mark.parametrize("channels", [1, 3])  # the two that a PNG has without alpha
def test_exported_images_hold_the_pixels_and_keep_the_label_order(tmp_path, channels):
    norm = Normalization((0.5,) * channels, (0.5,) * channels)
    original = example(images=example().images[:, :channels], normalization=norm)
    export_png(original, tmp_path / "png")
    folder = ImageFolder(tmp_path / "png", normalization=norm)
    order = [1, 4, 2, 3, 0, 5]  # by label, then by position
    assert folder.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for i, position in enumerate(order):
        assert folder.paths[i].name == f"{position:05d}.png"
        assert torch.equal(folder[i], original.images[position])
    with Image.open(tmp_path / "png" / "00002" / "00000.png") as image:
        assert image.mode == {1: "L", 3: "RGB"}[channels]
        assert np.asarray(image).shape[:2] == (4, 5)


def test_a_png_of_two_channels_is_refused_before_a_folder_exists(tmp_path):
    norm = Normalization((0.5, 0.5), (0.5, 0.5))
    two = example(images=example().images[:, :2], normalization=norm)
    with pytest.raises(ValueError, match="1 or 3 channels, the images have 2"):
        export_png(two, tmp_path / "png")
    assert not (tmp_path / "png").exists()


def floats(**changes) -> DistilledSet:
    # Beyond the range of bytes on both sides, as optimised images are.
    images = torch.linspace(-3, 4, 6 * 3 * 4 * 5).reshape(6, 3, 4, 5)
    return example(**({"images": images, "lr": 0.0123, "kind": "synthetic"} | changes))


def test_float_images_and_the_learned_rate_come_back_bit_for_bit(tmp_path):
    for name, original in (("a", floats()), ("b", floats(whitened=True, lr=None))):
        original.save(tmp_path / name)
        loaded = DistilledSet.load(tmp_path / name)
        assert loaded.images.dtype == torch.float32
        assert torch.equal(loaded.images, original.images)
        assert (loaded.lr, loaded.whitened) == (original.lr, original.whitened)


def test_float_images_are_shown_as_the_nearest_bytes(tmp_path):
    made = floats()
    mean, std = torch.tensor(COLOUR.mean).double(), torch.tensor(COLOUR.std).double()
    exact = (made.images.double() * std[:, None, None] + mean[:, None, None]) * 255
    pixels = made.pixels()
    assert pixels.dtype == torch.uint8
    assert (pixels.double() - exact.clamp(0, 255)).abs().max() <= 0.5 + 1e-4
    export_png(made, tmp_path / "png")
    first = np.asarray(Image.open(tmp_path / "png" / "00002" / "00000.png"))
    assert np.array_equal(first, pixels[0].permute(1, 2, 0).numpy())
    assert torch.equal(example().pixels(), example().images)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": torch.zeros(6, 3, 4, 5).double()}, TypeError, "uint8 or float32"),
        ({"images": torch.full((6, 3, 4, 5), torch.nan)}, ValueError, "must be finite"),
        ({"images": example().images, "whitened": True}, TypeError, "where they are whitened"),
        ({"lr": 0.0}, ValueError, "lr must be a positive float"),
        ({"lr": float("nan")}, ValueError, "lr must be a positive float"),
        ({"lr": -0.1}, ValueError, "lr must be a positive float"),  # a TM run that went astray
    ],
)
def test_unfit_float_sets_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        floats(**changes)


def test_whitened_images_have_no_pixels():
    with pytest.raises(ValueError, match="invert the whitening"):
        floats(whitened=True).pixels()
