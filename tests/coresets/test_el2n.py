"""EL2N: the average over networks against its definition, and that training orders samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pyddfast.coresets import Scores, el2n_best, el2n_of_models, el2n_scores, select
from pyddfast.data import ImageDataset, Normalization
from pyddfast.train import Epochs


class Fixed(nn.Module):
    """Logits from the mean pixel, so that the test can write them down."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))
        self.dropout = nn.Dropout(0.9)

    def forward(self, x: Tensor) -> Tensor:
        level = self.dropout(x.mean((1, 2, 3)))
        return torch.stack((level * self.slope, -level, torch.zeros_like(level)), dim=1)


def dataset(count: int = 30) -> ImageDataset:
    images = torch.arange(count, dtype=torch.uint8).mul(8)[:, None, None, None].expand(-1, 1, 4, 4)
    labels = torch.arange(count) % 3
    return ImageDataset(
        images.contiguous(), labels, ("a", "b", "c"), Normalization((0.5,), (0.25,))
    )


def test_average_over_networks_is_the_definition_in_float64() -> None:
    data = dataset()
    networks = [Fixed(slope) for slope in (0.5, 3.0, 40.0)]
    got = el2n_of_models(data, networks).values
    level = (data.images[:, 0, 0, 0].double() / 255 - 0.5) / 0.25
    onehot = torch.nn.functional.one_hot(data.labels, 3).double()
    want = torch.zeros(30, dtype=torch.float64)
    for slope in (0.5, 3.0, 40.0):
        z = torch.stack((level * slope, -level, torch.zeros_like(level)), dim=1)
        want += (z.softmax(1) - onehot).norm(dim=1) / 3
    # The networks run in float32.
    assert (got - want).abs().max() < 1e-5
    assert all(network.training for network in networks)


def test_easy_samples_stay_ordered_beyond_float32() -> None:
    # Class 0 at slope 40: gaps from 40 to 80 logits, where every float32 p_y is 1.
    bright = torch.tensor([255, 250, 230, 240, 220], dtype=torch.uint8)
    images = bright[:, None, None, None].expand(-1, 1, 4, 4).contiguous()
    data = ImageDataset(
        images, torch.zeros(5, dtype=torch.int64), ("a", "b", "c"), Normalization((0.5,), (0.25,))
    )
    scores = el2n_of_models(data, [Fixed(40.0)])
    picked = select(scores, data.labels, strategy="bottomk", ipc=5, num_classes=1)
    assert picked.indices.tolist() == [0, 1, 3, 2, 4]
    assert float(scores.values.min()) > 0


def test_trained_networks_find_the_mislabelled_samples(tmp_path: Path) -> None:
    gen = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 2
    images = torch.randint(0, 100, (120, 1, 8, 8), generator=gen, dtype=torch.uint8)
    images[labels == 1] += 120
    wrong = torch.tensor([6, 17, 40, 83])
    labels = labels.clone()
    labels[wrong] = 1 - labels[wrong]
    data = ImageDataset(images, labels, ("dark", "bright"), Normalization((0.4,), (0.3,)))
    arguments = {"repeats": 2, "epochs": 4, "seed": 5, "device": "cpu", "progress": False}
    model = ("convnet-d2", {"width": 8, "norm": "batch"})
    scores = el2n_scores(data, model, out=tmp_path / "nets", **arguments)  # type: ignore[arg-type]
    assert set(scores.values.topk(4).indices.tolist()) == set(wrong.tolist())
    assert scores.meta["models"] == 2
    assert len(set(scores.meta["accuracies"])) >= 1
    # Finished networks are read back, to the same scores.
    again = el2n_scores(data, model, out=tmp_path / "nets", **arguments)  # type: ignore[arg-type]
    assert torch.equal(again.values, scores.values)
    other = el2n_scores(data, model, **{**arguments, "seed": 6})  # type: ignore[arg-type]
    assert not torch.equal(other.values, scores.values)


def test_refuses() -> None:
    with pytest.raises(ValueError, match="at least one"):
        el2n_of_models(dataset(), [])
    with pytest.raises(ValueError, match="repeats"):
        el2n_scores(dataset(), repeats=0)
    with pytest.raises(ValueError, match="5 logits"):
        el2n_of_models(dataset(), [nn.Sequential(nn.Flatten(), nn.Linear(16, 5))])


def test_best_window_is_the_one_whose_students_do_best(blobs: ImageDataset, tmp_path: Path) -> None:
    # Scored by how wrong the label is: the highest window holds only mislabelled images.
    labels = blobs.labels.clone()
    labels[:20] = 1 - labels[:20]
    noisy = ImageDataset(blobs.images, labels, blobs.class_names, blobs.normalization)
    wrong = Scores((labels != blobs.labels).double(), "toy", "wrong")
    picked = el2n_best(
        noisy, wrong, ipc=5, test_set=blobs, model=("convnet-d1", {"width": 4}),
        offsets=(0.0, 1.0), budget=Epochs(20), seeds=(0, 1), device="cpu", out=tmp_path / "w",
        progress=False,
    )  # fmt: skip
    sweep = picked.meta["sweep"]
    assert sweep["accuracies"][0] < 0.5 < sweep["accuracies"][1]
    assert picked.meta["offset"] == 1.0
    assert (labels == blobs.labels)[picked.indices].all()
    for number, accuracy in enumerate(sweep["accuracies"]):
        result = json.loads((tmp_path / "w" / f"window{number}" / "result.json").read_text())
        assert result["mean"] == accuracy
    with pytest.raises(ValueError, match="offsets"):
        el2n_best(noisy, wrong, ipc=5, test_set=blobs, offsets=())
