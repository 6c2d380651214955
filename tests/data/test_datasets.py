"""The resident data set, its checks and the normalisation."""

import numpy as np
import pytest
import torch

from pyddfast.data import ImageDataset, ImageSource, Normalization, normalize

COLOUR = Normalization(mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4))


def test_normalization_holds_plain_floats():
    norm = Normalization(mean=np.array([0.25, 0.5], np.float32), std=[1, 2])
    assert norm == Normalization(mean=(0.25, 0.5), std=(1.0, 2.0))
    assert [type(value) for value in norm.mean + norm.std] == [float] * 4


def dataset(**changes) -> ImageDataset:
    fields = {
        "images": torch.arange(4 * 3 * 2 * 2, dtype=torch.uint8).reshape(4, 3, 2, 2),
        "labels": torch.tensor([0, 2, 1, 2]),
        "class_names": ("a", "b", "c", "d"),
        "normalization": COLOUR,
    }
    return ImageDataset(**(fields | changes))


def test_normalize_against_float64():
    images = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(3, 16, 16)
    pixels = images.numpy().astype(np.float64) / 255
    expected = (pixels - np.reshape(COLOUR.mean, (3, 1, 1))) / np.reshape(COLOUR.std, (3, 1, 1))
    for batch in (images, images[None], images[None, None]):
        result = normalize(batch, COLOUR)
        assert result.dtype == torch.float32
        # Three roundings of values up to 4.5 after division by std, of half an ulp (6e-8) each.
        np.testing.assert_allclose(result.numpy().reshape(3, 16, 16), expected, atol=8e-7, rtol=0)
    double = normalize(images, COLOUR, dtype=torch.float64)
    np.testing.assert_allclose(double.numpy(), expected, atol=1e-15, rtol=1e-15)


def test_normalize_refuses_what_it_cannot_mean():
    with pytest.raises(TypeError, match=r"uint8, got torch\.float32"):
        normalize(torch.zeros(3, 2, 2), COLOUR)
    with pytest.raises(ValueError, match=r"C = 3 .* got shape \(1, 2, 2\)"):
        normalize(torch.zeros(1, 2, 2, dtype=torch.uint8), COLOUR)
    with pytest.raises(TypeError, match=r"dtype .* got torch\.int64"):
        normalize(torch.zeros(3, 2, 2, dtype=torch.uint8), COLOUR, dtype=torch.int64)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((), (), "one value a channel"),
        ((0.5, 0.5), (0.5,), "got 2 and 1"),
        ((float("nan"),), (0.5,), "mean must be finite"),
        ((0.5,), (0.0,), "std must be finite and positive"),
        ((0.5,), (float("inf"),), "std must be finite and positive"),
    ],
)
def test_bad_normalization(mean, std, message):
    with pytest.raises(ValueError, match=message):
        Normalization(mean=mean, std=std)


def test_a_data_set_answers_what_an_image_source_must():
    data = dataset()
    assert isinstance(data, ImageSource)
    assert (len(data), data.num_classes) == (4, 4)
    assert data.class_counts.tolist() == [1, 1, 2, 0]
    assert data[1].flatten().tolist() == list(range(12, 24))


def test_subset_keeps_order_repeats_and_the_class_list():
    part = dataset().subset([3, 0, 3])
    assert part.labels.tolist() == [2, 0, 2]
    assert part.images[:, 0, 0, 0].tolist() == [36, 0, 36]
    assert part.class_names == ("a", "b", "c", "d")
    assert len(dataset().subset(torch.tensor([], dtype=torch.int64))) == 0


@pytest.mark.parametrize("indices", [[4], [-1], [0, 1, 2, 3, 4]])
def test_subset_refuses_positions_outside(indices):
    with pytest.raises(ValueError, match=r"\[0, 4\)"):
        dataset().subset(indices)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": torch.zeros(4, 3, 2, 2).long()}, TypeError, "must be uint8 or"),
        ({"images": torch.zeros(4, 3, 2, dtype=torch.uint8)}, ValueError, r"\(N, C, H, W\)"),
        ({"images": torch.zeros(4, 1, 2, 2, dtype=torch.uint8)}, ValueError, "1 channels"),
        ({"images": torch.zeros(4, 3, 0, 2, dtype=torch.uint8)}, ValueError, r"\(N, C, H, W\)"),
        ({"labels": torch.zeros(4, dtype=torch.int32)}, TypeError, "labels must be int64"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, r"shape \(4,\)"),
        ({"labels": torch.tensor([0, 1, 2, 4])}, ValueError, r"\[0, 4\).*from 0 to 4"),
        ({"labels": torch.tensor([0, 1, 2, -1])}, ValueError, r"\[0, 4\).*from -1 to 2"),
    ],
)
def test_fields_that_do_not_fit(changes, error, message):
    with pytest.raises(error, match=message):
        dataset(**changes)
