"""EL2N-SL: its definition, and full-network GraNd on a network with orthogonal logit gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyddfast.coresets import el2n_sl_of_models, el2n_sl_scores
from pyddfast.data import ImageDataset, normalize

NORM = 3.0


class Orthogonal(nn.Module):
    """Every logit has parameters of its own and the same gradient norm: f_k = NORM · w_k · u(x).

    u(x) is a unit vector, so the gradients of two logits are orthogonal and of norm NORM.
    """

    def __init__(self, classes: int, seed: int) -> None:
        super().__init__()
        gen = torch.Generator().manual_seed(seed)
        self.blocks = nn.ParameterList(torch.randn(64, generator=gen) for _ in range(classes))

    def forward(self, x: Tensor) -> Tensor:
        unit = nn.functional.normalize(x.flatten(1), dim=1)
        return torch.stack([NORM * unit @ block for block in self.blocks], dim=1)


def test_full_network_grand_is_c_times_el2n_sl(blobs: ImageDataset) -> None:
    network, teacher, temperature = Orthogonal(2, 0), Orthogonal(2, 1), 20.0
    scores = el2n_sl_of_models(blobs, [network], teacher, temperature=temperature)
    x = normalize(blobs.images, blobs.normalization).double()
    network, teacher = network.double(), teacher.double()
    for row in range(len(blobs)):
        q = (teacher(x[row : row + 1])[0] / temperature).softmax(0).detach()
        log_p = (network(x[row : row + 1])[0] / temperature).log_softmax(0)
        kl = (q * (q.log() - log_p)).sum()
        gradient = torch.autograd.grad(kl, list(network.parameters()))
        grand = float(torch.cat([g.flatten() for g in gradient]).norm())
        # The scored networks run in float32.
        assert grand == pytest.approx(NORM * float(scores.values[row]), rel=2e-5, abs=1e-9)


def test_average_over_networks_in_float64(blobs: ImageDataset) -> None:
    networks = [Orthogonal(2, seed) for seed in (3, 4, 5)]
    teacher = Orthogonal(2, 6)
    got = el2n_sl_of_models(blobs, networks, teacher, temperature=4.0)
    x = normalize(blobs.images, blobs.normalization)
    q = (teacher(x).double() / 4).softmax(1)
    want = sum((((n(x).double() / 4).softmax(1) - q).norm(dim=1) / 4) for n in networks) / 3
    assert (got.values - want).abs().max() < 1e-6
    assert got.meta["models"] == 3
    assert got.high_means == "far from the teacher"


def test_trained_networks_approach_a_teacher_that_knows_the_labels(blobs: ImageDataset) -> None:
    class Sure(nn.Module):
        """Bright images are of class 1."""

        def forward(self, x: Tensor) -> Tensor:
            level = 20 * (x.mean((1, 2, 3)) + 0.17)
            return torch.stack((-level, level), dim=1)

    options: dict[str, Any] = {
        "temperature": 1.0, "repeats": 2, "device": "cpu", "progress": False,
    }  # fmt: skip
    model = ("convnet-d1", {"width": 4, "norm": "batch"})
    early, late = (
        el2n_sl_scores(blobs, Sure(), model, epochs=epochs, **options) for epochs in (1, 12)
    )
    assert late.values.mean() < 0.7 * early.values.mean()
    assert late.meta["temperature"] == 1.0


def test_refuses(blobs: ImageDataset) -> None:
    with pytest.raises(ValueError, match="at least one"):
        el2n_sl_of_models(blobs, [], Orthogonal(2, 0))
    with pytest.raises(ValueError, match="the teacher gives 5 logits"):
        el2n_sl_of_models(blobs, [Orthogonal(2, 0)], Orthogonal(5, 0))
    with pytest.raises(ValueError, match="model 1 gives 5 logits"):
        el2n_sl_of_models(blobs, [Orthogonal(2, 0), Orthogonal(5, 0)], Orthogonal(2, 0))
    with pytest.raises(ValueError, match="repeats"):
        el2n_sl_scores(blobs, Orthogonal(2, 0), repeats=0)
