"""GraNd of the last layer and of the whole network, against gradients of single samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyddfast.coresets import el2n_of_models, el2n_sl_of_models, grand_of_models, grand_scores
from pyddfast.coresets.el2n import scoring_networks
from pyddfast.data import ImageDataset, normalize
from pyddfast.train.distributed import Ranks
from tests.coresets.test_el2n_sl import NORM, Orthogonal
from tests.processes import run_python

QUIET: dict[str, Any] = {"progress": False}


def network(seed: int) -> nn.Module:
    """Batch norm and dropout, whose evaluation mode counts, and a layer that is used twice."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, 3, 3, stride=2, padding=1)
            self.norm = nn.BatchNorm2d(3)
            self.again = nn.Conv2d(3, 3, 3, padding=1)
            self.last = nn.Linear(48, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.norm(self.first(x)))
            x = F.relu(self.again(F.relu(self.again(x))))
            logits: Tensor = self.last(F.dropout(x.flatten(1), 0.5, self.training))
            return logits

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Net()
        net.norm.running_mean.copy_(torch.randn(3))  # type: ignore[operator, union-attr]
        net.norm.running_var.copy_(torch.rand(3) + 0.5)  # type: ignore[operator, union-attr]
        nn.init.normal_(net.last.weight)
    return net


def by_autograd(
    data: ImageDataset, net: nn.Module, teacher: nn.Module | None, T: float, names: str
) -> Tensor:
    """The norm of each sample's own gradient in float64, by the parameters of these names."""
    weights = [weight for name, weight in net.named_parameters() if name.startswith(names)]
    values = []
    for image, label in zip(normalize(data.images, data.normalization), data.labels, strict=True):
        x = image[None].double()
        log_p = (net(x) / T).log_softmax(1)
        if teacher is None:
            loss = F.nll_loss(log_p, label[None])
        else:
            loss = F.kl_div(log_p, (teacher(x) / T).softmax(1).detach(), reduction="sum")
        gradients = torch.autograd.grad(loss, weights)
        values.append(torch.cat([g.flatten() for g in gradients]).norm())
    return torch.stack(values)


@pytest.mark.parametrize(("layer", "names"), [("last", "last."), ("all", "")])
@pytest.mark.parametrize(("soft", "T"), [(False, 1.0), (False, 3.0), (True, 1.0), (True, 20.0)])
def test_is_the_norm_of_each_samples_gradient(
    layer: Any, names: str, soft: bool, T: float, blobs: ImageDataset
) -> None:
    nets, teacher = [network(0), network(1)], network(2).eval() if soft else None
    nets[0].train()  # as a training leaves it
    # One weight more than five samples' gradients fit in: chunks of 5, the last of 3.
    memory = 4 * sum(p.numel() for p in nets[0].parameters()) * 5 + 4
    got = grand_of_models(
        blobs, nets, layer=layer, teacher=teacher, temperature=T, memory=memory, **QUIET
    )
    assert nets[0].training
    assert all(weight.grad is None for net in nets for weight in net.parameters())
    nets = [net.double().eval() for net in nets]
    teacher = None if teacher is None else teacher.double()
    want = sum(by_autograd(blobs, net, teacher, T, names) for net in nets) / 2
    # The networks run in float32; p - q of 20 loses a digit to the softmax's rounding of logits.
    torch.testing.assert_close(got.values, want, rtol=2e-5, atol=1e-7)
    assert got.meta["layer"] == layer
    assert got.meta["loss_to"] == ("teacher" if soft else "label")


@pytest.mark.parametrize("soft", [False, True])
def test_with_orthogonal_logit_gradients_it_is_c_times_el2n(
    soft: bool, blobs: ImageDataset
) -> None:
    net, teacher = Orthogonal(2, 0), Orthogonal(2, 1)
    if soft:
        score = el2n_sl_of_models(blobs, [net], teacher, temperature=20.0)
        got = grand_of_models(blobs, [net], layer="all", teacher=teacher, temperature=20.0, **QUIET)
    else:
        score = el2n_of_models(blobs, [net])
        got = grand_of_models(blobs, [net], layer="all", **QUIET)
    # Unit vectors in float32.
    torch.testing.assert_close(got.values, NORM * score.values, rtol=2e-6, atol=0)


@pytest.mark.parametrize("layer", ["last", "all"])
def test_samples_that_are_learnt_keep_their_order(layer: Any, blobs: ImageDataset) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        net[1].weight.zero_()
        # Leads of 20 to 90, where 1 - p_y in float32 is 0 and its square below every float32.
        net[1].weight[0] = 0.3
        net[1].bias.copy_(torch.tensor([60.0, 0.0]))
    dark = blobs.subset((blobs.labels == 0).nonzero().squeeze(1))
    got = grand_of_models(dark, [net], layer=layer, **QUIET).values
    x = normalize(dark.images, dark.normalization).flatten(1).double()
    lead = 0.3 * x.sum(1) + 60
    assert 17 < float(lead.min()) < float(lead.max()) < 100
    want = 2**0.5 / (1 + lead.exp()) * (1 + x.square().sum(1)).sqrt()
    torch.testing.assert_close(got, want, rtol=1e-4, atol=0)


def test_the_official_code_divides_by_the_size_of_the_batch(blobs: ImageDataset) -> None:
    many = blobs.subset(torch.arange(300) % 48)
    paper, official = (
        grand_of_models(many, [network(3)], semantics=kind, **QUIET).values  # type: ignore[arg-type]
        for kind in ("paper", "official")
    )
    sizes = torch.tensor([256.0] * 256 + [44.0] * 44, dtype=torch.float64)
    assert torch.equal(official, paper / sizes)


def test_trained_networks_are_those_of_el2n(blobs: ImageDataset) -> None:
    options: dict[str, Any] = {"repeats": 2, "epochs": 1, "seed": 5, **QUIET}
    model = ("convnet-d1", {"width": 4})
    got = grand_scores(blobs, model, layer="all", device="cpu", **options)
    networks, _ = scoring_networks(blobs, model, device="cpu", **options)
    want = grand_of_models(blobs, networks, layer="all", **QUIET)
    assert torch.equal(got.values, want.values)
    assert (got.name, got.meta["models"], len(got.meta["accuracies"])) == ("grand", 2, 2)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("grand")
    done = run_python(str(Path(__file__).with_name("grand_runner.py")), str(root), timeout=600)
    return root, json.loads(done.stdout)


@pytest.mark.parametrize(("layer", "parts"), [("last", 1), ("all", 4)])
def test_kills_and_processes_change_no_byte(
    layer: str, parts: int, jobs: tuple[Path, dict[str, Any]]
) -> None:
    root, seen = jobs
    assert (seen[layer]["one"], seen[layer]["two"]) == ([0], [0, 0])
    assert seen[layer]["killed"][-1] == 0
    assert seen[layer]["killed"].count(-9) == len(seen[layer]["killed"]) - 1
    if layer == "all":
        assert -9 in seen[layer]["killed"]  # between two parts
    names = [f"gradients0/part-{k:05d}.safetensors" for k in range(parts)] + ["scores.npz"]
    for kind in ("one", "killed", "two"):
        folder = root / f"{layer}-{kind}"
        assert sorted(f.name for f in (folder / "gradients0").glob("part*")) == [
            Path(name).name for name in names[:-1]
        ]
        for name in names:
            assert (folder / name).read_bytes() == (root / f"{layer}-one" / name).read_bytes()


def test_a_finished_pass_is_read(blobs: ImageDataset, tmp_path: Path) -> None:
    nets = [network(0), network(1)]
    options: dict[str, Any] = {"layer": "all", "out": tmp_path, **QUIET}
    first = grand_of_models(blobs, nets, **options)
    (tmp_path / "gradients1" / "part-00000.safetensors").unlink()  # of the second network
    assert torch.equal(grand_of_models(blobs, nets, **options).values, first.values)
    with pytest.raises(ValueError, match=r"temperature was 1\.0, now 2\.0"):
        grand_of_models(blobs, nets, **{**options, "temperature": 2.0})
    with pytest.raises(ValueError, match="weights was"):
        grand_of_models(blobs, nets[::-1], **options)
    (tmp_path / "gradients0" / "part-00000.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="gradients0/part-00000"):
        grand_of_models(blobs, nets, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "first"}, "layer must be one of"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"temperature": float("nan")}, "temperature must be positive"),
        ({"memory": 0}, "memory must be at least 1 byte"),
        ({"semantics": "deepcore"}, "semantics must be one of"),
        ({"semantics": "official", "layer": "all"}, "GraNd of the last layer, of labels"),
        ({"semantics": "official", "temperature": 2.0}, "temperature=2.0"),
        ({"semantics": "official", "teacher": network(0)}, "soft labels"),
    ],
)
def test_refuses_before_any_training(
    options: dict[str, Any], message: str, blobs: ImageDataset, tmp_path: Any
) -> None:
    for call in (
        lambda: grand_of_models(blobs, [], **options),
        lambda: grand_scores(blobs, "mlp", out=tmp_path / "run", **options),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert not (tmp_path / "run").exists()


def test_refuses_networks_that_do_not_fit(blobs: ImageDataset) -> None:
    three = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ValueError, match="at least one network"):
        grand_of_models(blobs, [])
    with pytest.raises(ValueError, match="holds no image"):
        grand_of_models(blobs.subset(torch.arange(0)), [three])
    with pytest.raises(ValueError, match="several processes need out="):
        grand_of_models(blobs, [three], ranks=Ranks(0, 2), **QUIET)
    with pytest.raises(ValueError, match="3 logits, the data set has 2"):
        grand_of_models(blobs, [three], **QUIET)
    with pytest.raises(ValueError, match=r"logits \(48, 3\) for 48 images and 2 classes"):
        grand_of_models(blobs, [three], layer="all", **QUIET)
    with pytest.raises(ValueError, match="the teacher gives 3 logits"):
        grand_of_models(blobs, [network(0)], teacher=three, **QUIET)
    with pytest.raises(ValueError, match=r"torch\.nn\.Linear"):
        grand_of_models(blobs, [Orthogonal(2, 0)], **QUIET)
