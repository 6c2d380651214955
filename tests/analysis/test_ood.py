"""Corruptions, their trees, and DCS on OOD errors beside ID."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pyddfast.analysis import dcs
from pyddfast.analysis.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    corrupt_image,
    corrupted,
    write_corruptions,
)
from pyddfast.analysis.ood import (
    CorruptionAccuracy,
    corruption_accuracy,
    corruption_sets,
    ood_dcs,
)
from pyddfast.data import ImageDataset, Normalization, load

GREY = Normalization((0.5,), (0.5,))
# Fog and snow vary from image to image by more than neighbouring severities differ.
FASHION = load("fashion-mnist-mini", split="test").subset(torch.arange(40))


def distance(corruption, made):
    """What the corruption takes away or adds; which one is said where it is used."""
    x = FASHION.images.double().flatten(1)
    y = made.double().flatten(1)
    if corruption == "frost":
        return float(
            1
            - torch.stack(
                [torch.corrcoef(torch.stack(p))[0, 1] for p in zip(x, y, strict=True)]
            ).mean()
        )
    if corruption == "glass_blur":
        detail = [part.view(-1, 28, 28).diff(dim=2).abs().mean() for part in (x, y)]
        return float(detail[0] - detail[1])
    return float((x - y).square().mean(1).sqrt().mean())


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_severities_grow(corruption):
    """In distance from the image, pixel by pixel.

    With the published constants two do not grow there: frost (the darkened image comes nearer to
    frost that is as bright) grows in decorrelation, glass blur (its shuffles are 2, 1, 3, 2, 2) in
    the detail that is lost.
    """
    found = [
        distance(corruption, corrupted(FASHION, corruption, level).images) for level in SEVERITIES
    ]
    assert all(a < b for a, b in pairwise(found)), found
    assert found[0] > 0


def test_the_pixels_are_the_packages():
    """A grey image of 28 pixels: three channels, mirrored to 32, and back; noise by its formula."""
    image, level = FASHION.images[3], 2
    made = corrupt_image(image, "contrast", level, image_id=3)
    x = np.pad(image[0].numpy(), 2, mode="symmetric") / 255
    expected = (x - x.mean()) * 0.3 + x.mean()
    assert np.abs(made[0].numpy() - 255 * expected[2:-2, 2:-2]).max() <= 1
    flat = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    noisy = corrupt_image(flat, "gaussian_noise", 1, image_id=0).double() / 255
    assert float(noisy.std()) == pytest.approx(0.08, rel=0.05)  # sigma of severity 1


@pytest.mark.parametrize("corruption", ["shot_noise", "impulse_noise", "frost"])
def test_draws_are_keyed_and_leave_numpy_alone(corruption):
    np.random.seed(7)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = corrupt_image(FASHION.images[0], corruption, 3, image_id=0)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    np.random.seed(8)  # noqa: NPY002
    assert torch.equal(corrupt_image(FASHION.images[0], corruption, 3, image_id=0), first)
    for other in ({"image_id": 1}, {"image_id": 0, "seed": 1}):
        assert not torch.equal(corrupt_image(FASHION.images[0], corruption, 3, **other), first)


def test_a_tree_is_what_memory_has_and_goes_on(tmp_path):
    small = FASHION.subset(torch.arange(6))
    wanted = {"corruptions": ("contrast", "shot_noise"), "severities": (1, 5)}
    out = write_corruptions(small, tmp_path / "c", **wanted)
    file = next((out / "contrast" / "5").rglob("*.png"))
    file.write_bytes(b"mine")  # finished folders are not made again
    (out / "shot_noise" / "5").rename(
        out / "shot_noise" / ".5.abcd1234.partial"
    )  # as a kill leaves it
    write_corruptions(small, tmp_path / "c", **wanted)
    assert file.read_bytes() == b"mine"
    assert [one.name for one in sorted((out / "shot_noise").iterdir())] == ["1", "5"]
    sets = corruption_sets(out, small.class_names, normalization=small.normalization)
    assert list(sets) == [
        ("shot_noise", 1), ("shot_noise", 5), ("contrast", 1), ("contrast", 5),
    ]  # fmt: skip
    for key in [("contrast", 1), ("shot_noise", 5)]:
        one, expected = sets[key], corrupted(small, *key)
        for position in range(6):
            index = [int(path.stem) for path in one.paths].index(position)
            assert torch.equal(one[index], expected.images[position])
            assert int(one.labels[index]) == int(small.labels[position])
    with pytest.raises(ValueError, match="seed"):
        write_corruptions(small, tmp_path / "c", seed=1, **wanted)


def test_workers_write_the_same_bytes(tmp_path):
    small = FASHION.subset(torch.arange(4))
    trees = [
        write_corruptions(
            small, tmp_path / str(workers), corruptions=("frost",), severities=(2,), workers=workers
        )
        for workers in (1, 2)
    ]
    found = [{p.relative_to(tree): p.read_bytes() for p in tree.rglob("*.png")} for tree in trees]
    assert len(found[0]) == 4
    assert found[0] == found[1]


class ByMean(nn.Module):
    """Class 7 for bright images, else 2: logits of nine classes."""

    def forward(self, x):
        logits = torch.zeros(len(x), 9)
        logits[torch.arange(len(x)), torch.where(x.mean((1, 2, 3)) > 0, 7, 2)] = 1.0
        return logits


def test_a_subset_of_classes_keeps_its_place_in_all_logits(tmp_path):
    synsets = tuple(f"n0000000{label}" for label in range(9))
    for label, value in ((2, 10), (7, 240), (5, 240)):
        folder = tmp_path / "fog" / "3" / synsets[label]
        folder.mkdir(parents=True)
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(folder / "a.png")
    (tmp_path / "readme").mkdir()
    sets = corruption_sets(tmp_path, synsets, normalization=GREY)
    assert sets["fog", 3].labels.tolist() == [2, 5, 7]
    assert sets["fog", 3].num_classes == 9
    found = corruption_accuracy({"net": ByMean()}, sets)["net"]
    assert found.accuracies == {("fog", 3): 2 / 3}
    with pytest.raises(ValueError, match="n00000007"):
        corruption_sets(tmp_path, synsets[:6], normalization=GREY)
    with pytest.raises(FileNotFoundError, match="CORRUPTION/SEVERITY"):
        corruption_sets(tmp_path / "fog", synsets, normalization=GREY)


def test_means_weigh_corruptions_alike():
    found = CorruptionAccuracy({("fog", 1): 0.8, ("fog", 3): 0.6, ("snow", 1): 0.1})
    assert found.by_corruption() == {"fog": pytest.approx(0.7), "snow": 0.1}
    assert found.by_severity() == {1: pytest.approx(0.45), 3: 0.6}
    assert found.mean == pytest.approx(0.4)


def test_dcs_beside_itself():
    gen = np.random.default_rng(0)
    size = np.repeat([10, 50, 100], 8)
    objective = -np.log(size) + gen.normal(0, 0.3, 24)
    error = 1 / size + 0.01 * objective
    other = gen.permutation(error)
    score = ood_dcs(objective, error, other, size, n_boot=200)
    assert score.id.rho == dcs(objective, error, size, n_boot=200).rho
    assert score.ood.rho == dcs(objective, other, size, n_boot=200).rho
    assert score.difference == score.ood.rho - score.id.rho
    assert score.ci[0] <= score.difference <= score.ci[1]
    assert ood_dcs(objective, error, error, size, n_boot=200).ci == (0.0, 0.0)


def test_bad_input():
    with pytest.raises(ValueError, match=r"corruption must be one of .*, got 'rain'"):
        corrupt_image(FASHION.images[0], "rain", 1, image_id=0)
    with pytest.raises(ValueError, match=r"severity must be one of .*, got 6"):
        corrupt_image(FASHION.images[0], "fog", 6, image_id=0)
    with pytest.raises(TypeError, match=r"uint8, got torch\.float32"):
        corrupt_image(FASHION.images[0].float(), "fog", 1, image_id=0)
    two = torch.zeros((2, 32, 32), dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"\(1 or 3, H, W\), got \(2, 32, 32\)"):
        corrupt_image(two, "fog", 1, image_id=0)
    whitened = ImageDataset(
        torch.zeros(1, 1, 32, 32), torch.zeros(1, dtype=torch.int64), ("a",), GREY
    )
    with pytest.raises(TypeError, match=r"uint8, got torch\.float32"):
        write_corruptions(whitened, "unused")
    with pytest.raises(ValueError, match="networks and sets are needed, got 0 and 0"):
        corruption_accuracy({}, {})
