"""Evaluation against one image at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from train_cases import blobs, distilled, linear, tiny

from pyddfast.train import evaluate, predict, sampling_error, soft_labels


# 18 images: whole batches, a partial last one, one batch.
@pytest.mark.parametrize("batch_size", [6, 7, 100])
def test_equals_one_by_one(batch_size):
    torch.manual_seed(0)
    model, data = tiny(0), blobs()
    model.train()
    got = predict(model, data, batch_size=batch_size)
    assert model.training
    reference = tiny(0)
    reference.load_state_dict(model.state_dict())
    reference.eval()
    with torch.no_grad():
        expected = torch.cat(
            [reference(((data.images[i : i + 1] / 255.0) - 0.5) / 0.25) for i in range(18)]
        )
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    hits = sum(int(expected[i].argmax()) == int(data.labels[i]) for i in range(18))
    assert evaluate(model, data, batch_size=batch_size) == hits / 18


def test_resizes_where_asked():
    data, model = blobs(), nn.Flatten()
    x = ((data.images / 255.0) - 0.5) / 0.25
    expected = F.interpolate(x, size=(4, 4), mode="bilinear", antialias=True).flatten(1)
    torch.testing.assert_close(predict(model, data, size=4), expected, rtol=0, atol=1e-6)


def test_soft_labels_are_the_eval_mode_logits_of_the_stored_images():
    torch.manual_seed(0)
    teacher, data = tiny(0), blobs()
    got = soft_labels(distilled(data), teacher)
    teacher.eval()
    x = ((data.images / 255.0) - 0.5) / 0.25
    torch.testing.assert_close(got, teacher(x).detach(), rtol=1e-5, atol=1e-6)
    assert not got.requires_grad
    with pytest.raises(ValueError, match="teacher gives logits"):
        soft_labels(distilled(data), nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))


def test_a_source_without_a_tensor_of_images():
    data = blobs()

    class Lazy:
        labels, class_names, normalization = data.labels, data.class_names, data.normalization
        num_classes = 3

        def __len__(self):
            return 18

        def __getitem__(self, i):
            return data.images[i] if i != 4 or not self.ragged else data.images[i, :, 1:]

    torch.manual_seed(0)
    model, lazy = linear(0), Lazy()
    lazy.ragged = False
    assert evaluate(model, lazy, batch_size=5) == evaluate(model, data)
    lazy.ragged = True
    with pytest.raises(ValueError, match="different shapes"):
        evaluate(model, lazy)


def test_sampling_error():
    assert sampling_error(0.8, 100) == pytest.approx(0.04)
    assert sampling_error(1.0, 5) == 0.0
    assert math.isclose(sampling_error(0.5, 2000), 0.0111803, rel_tol=1e-5)
    with pytest.raises(ValueError, match="accuracy in"):
        sampling_error(80.0, 100)


def test_an_empty_set_is_refused():
    data = blobs().subset([])
    with pytest.raises(ValueError, match="no images"):
        evaluate(linear(0), data)
