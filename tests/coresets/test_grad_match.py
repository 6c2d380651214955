"""GradMatch against a pursuit over dense gradients, and DeepCore's algorithm as it is written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor

from pyddfast.coresets import Embedding, grad_match

GEN = torch.Generator().manual_seed(9)


def embedding(count: int, classes: int = 3) -> Embedding:
    logits = 2 * torch.randn(count, classes, generator=GEN)
    return Embedding(
        logits, torch.randn(count, 4, generator=GEN), torch.arange(count) % classes, {"model": "m"}
    )


def dense(e: Embedding, label: int) -> tuple[Tensor, Tensor]:
    """Positions and gradients of a class, float64."""
    rows = (e.labels == label).nonzero()[:, 0]
    g = e.logits[rows].double().softmax(1)
    g[:, label] -= 1
    h = torch.cat((e.features[rows].double(), torch.ones(len(rows), 1).double()), 1)
    return rows, (g[:, :, None] * h[:, None]).flatten(1)


def deepcore(gradients: np.ndarray, budget: int, lam: float = 1.0) -> dict[int, float]:
    """Rows and weights of ``orthogonal_matching_pursuit_np``, written from its description."""
    b = gradients.mean(0)
    residual, picks = b, []
    for _ in range(budget):
        products = gradients @ residual
        products[picks] = -np.inf
        picks.append(int(products.argmax()))
        a = gradients[picks]
        if len(picks) == 1:
            x = a @ residual / (a @ a.T)[0]
        else:
            x = np.linalg.lstsq(a @ a.T + lam * np.eye(len(picks)), a @ b, rcond=None)[0]
        residual = b - a.T @ x
    if budget == 1:
        return {picks[0]: 1.0}
    weights = nnls(a @ a.T + lam * np.eye(len(picks)), a @ b)[0]
    return {pick: w for pick, w in zip(picks, weights, strict=True) if w > 0}


def test_the_weighted_sum_comes_close_to_the_mean() -> None:
    e = embedding(90)
    picked = grad_match(e, ipc=8, lam=1e-6)
    assert picked.weights is not None
    for label in range(3):
        rows, gradients = dense(e, label)
        mean = gradients.mean(0)
        found = picked.indices.view(3, 8)[label]
        weights = picked.weights.view(3, 8)[label].double()
        assert (weights >= 0).all()
        own = [rows.tolist().index(i) for i in found.tolist()]
        # The first is the one most aligned with the mean; weights are the least squares of all.
        assert own[0] == int((gradients @ mean).argmax())
        a = gradients[own].numpy()
        want = nnls(a.T, mean.numpy())[0]
        np.testing.assert_allclose(weights.numpy(), want, atol=1e-4)
        assert float((mean - weights @ gradients[own]).norm()) < 0.5 * float(mean.norm())
    assert picked.meta["scoring"] == {"model": "m"}


@pytest.mark.parametrize("budget", [1, 6])
def test_official_is_deepcores_pursuit(budget: int) -> None:
    e = embedding(600, 2)  # 300 of a class: the last batch has 44
    picked = grad_match(e, ipc=budget, semantics="official")
    assert picked.weights is not None
    scale = torch.tensor([256.0] * 256 + [44] * 44).double()
    want: dict[int, float] = {}
    for label in range(2):
        rows, gradients = dense(e, label)
        found = deepcore((gradients / scale[:, None]).numpy(), budget)
        want |= {int(rows[row]): weight for row, weight in found.items()}
    assert picked.indices.tolist() == list(want)
    assert picked.weights.tolist() == pytest.approx(list(want.values()), rel=1e-4, abs=1e-9)


def test_what_the_pursuit_leaves_is_filled() -> None:
    # Without a ridge ten picks at most are independent in ten dimensions.
    e = embedding(90)
    picked = grad_match(e, ipc=25, lam=0.0)
    assert torch.bincount(e.labels[picked.indices]).tolist() == [25, 25, 25]
    assert len(picked.indices.unique()) == 75
    assert picked.weights is not None
    for label in range(3):
        rows, gradients = dense(e, label)
        weights = picked.weights.view(3, 25)[label]
        weighted = int((weights > 0).sum())
        assert 2 <= weighted < 20  # rounding leaves a direction or two more
        assert (weights[weighted:] == 0).all()  # they come last, the most aligned first
        products = gradients @ gradients.mean(0)
        own = [rows.tolist().index(i) for i in picked.indices.view(3, 25)[label].tolist()]
        left = sorted(set(range(30)) - set(own[:weighted]), key=lambda i: -float(products[i]))
        assert own[weighted:] == left[: 25 - weighted]
    fewer = grad_match(e, ipc=25, lam=0.0, semantics="official")
    assert fewer.weights is not None
    assert len(fewer) < 75
    assert (fewer.weights > 0).all()
    assert len(grad_match(e, ipc=0)) == 0
    with pytest.raises(ValueError, match="ipc = 31 is larger than a class"):
        grad_match(e, ipc=31)
