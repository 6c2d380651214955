"""One pass over the data: its rows, its cache, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pyddfast.coresets import Embedding, embed
from pyddfast.coresets import embedding as module
from pyddfast.data import ImageDataset, Normalization
from pyddfast.models import ConvNet
from pyddfast.train.distributed import Ranks


def network() -> ConvNet:
    torch.manual_seed(1)
    made = ConvNet(2, in_channels=1, image_size=8, depth=1, width=3, norm="batch")
    with torch.no_grad():  # statistics that are not the images' own
        made.features[1].running_mean.fill_(0.3)  # type: ignore[union-attr]
    return made


def test_rows_are_the_networks_own(blobs: ImageDataset) -> None:
    net = network()
    found = embed(blobs, net, meta={"model": "toy"}, progress=False)
    assert net.training  # put back
    net.eval()
    x = ((blobs.images.double() / 255 - 0.4) / 0.3).float()
    with torch.no_grad():
        features = net.embed(x)
        logits = net.classifier(features)
    torch.testing.assert_close(found.features, features, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.logits, logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.labels, blobs.labels)
    assert (found.meta["model"], found.meta["mode"], found.num_classes) == ("toy", "eval", 2)
    other = embed(blobs, net, normalization=Normalization((0.0,), (1.0,)), progress=False)
    with torch.no_grad():
        torch.testing.assert_close(other.features, net.embed(blobs.images / 255))


def test_a_stopped_pass_goes_on(
    blobs: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART", 10)  # five parts
    net = network()
    want = embed(blobs, net, progress=False)
    runs: list[int] = []
    plain = module.run

    def run(dataset: ImageDataset, model: nn.Module, start: int, *rest: object) -> object:
        if len(runs) == 3:
            raise KeyboardInterrupt
        runs.append(start)
        return plain(dataset, model, start, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "run", run)
    with pytest.raises(KeyboardInterrupt):
        embed(blobs, net, out=tmp_path / "e", progress=False)
    assert net.training
    runs.clear()
    found = embed(blobs, net, out=tmp_path / "e", progress=False)
    assert runs == [30, 40]
    assert torch.equal(found.logits, want.logits)
    assert torch.equal(found.features, want.features)
    # A finished one is read.
    runs.clear()
    assert torch.equal(embed(blobs, net, out=tmp_path / "e", progress=False).logits, want.logits)
    assert runs == []
    # Other weights are another run.
    with torch.no_grad():
        net.classifier.bias += 1
    with pytest.raises(ValueError, match="weights was"):
        embed(blobs, net, out=tmp_path / "e", progress=False)


def test_a_process_does_its_share(
    blobs: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART", 10)
    monkeypatch.setattr(Ranks, "wait", lambda self: None)
    net, out = network(), tmp_path / "e"
    with pytest.raises(ValueError, match="several processes need out="):
        embed(blobs, net, ranks=Ranks(0, 2), progress=False)
    with pytest.raises(AssertionError):  # the other one's parts, which no barrier waited for
        embed(blobs, net, out=out, ranks=Ranks(0, 2), progress=False)
    assert sorted(file.name for file in out.glob("part*")) == [
        f"part-{number:05d}.safetensors" for number in (0, 2, 4)
    ]
    found = embed(blobs, net, out=out, ranks=Ranks(1, 2), progress=False)
    assert torch.equal(found.logits, embed(blobs, net, progress=False).logits)


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = 2 * self.layer(x.flatten(1))
        return out


def test_refuses(blobs: ImageDataset) -> None:
    with pytest.raises(ValueError, match="the data set holds no image"):
        embed(blobs.subset(torch.arange(0)), torch.nn.Flatten())
    with pytest.raises(ValueError, match=r"not the output of a torch\.nn\.Linear"):
        embed(blobs, Doubled(), progress=False)
    five = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with pytest.raises(ValueError, match="gives 5 logits, the data set has 2 classes"):
        embed(blobs, five, progress=False)
    x, y = torch.zeros(3, 2), torch.tensor([0, 1, 1])
    with pytest.raises(ValueError, match="features must be finite; sample 1 is not"):
        Embedding(x, torch.tensor([[0.0], [torch.nan], [0.0]]), y)
    with pytest.raises(
        ValueError, match=r"features must lie within 1\.8e\+13, .* sample 2 has 2\.0e"
    ):
        Embedding(x, torch.tensor([[0.0], [1e13], [2e13]]), y)
    Embedding(x, torch.tensor([[0.0], [1e13], [2e13]]).double(), y)
    with pytest.raises(ValueError, match=r"logits must have shape \(3, width\)"):
        Embedding(x[:2], x, y)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\), got values from 0 to 2"):
        Embedding(x, x, torch.tensor([0, 1, 2]))
    with pytest.raises(TypeError, match="features must be floating point"):
        Embedding(x, x.long(), y)
    with pytest.raises(TypeError, match="labels must be int64"):
        Embedding(x, x, y.int())
