"""Glister against gradients of a real last layer, by autograd in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pyddfast.coresets import Embedding, glister

GEN = torch.Generator().manual_seed(3)
CLASSES, WIDTH = 3, 4
WEIGHT = torch.randn(CLASSES, WIDTH + 1, generator=GEN).double()  # the last column is the bias


def embedding(count: int) -> Embedding:
    features = torch.randn(count, WIDTH, generator=GEN)
    labels = torch.arange(count) % CLASSES
    return Embedding(layer(features.double(), WEIGHT).float(), features, labels)


def layer(features: Tensor, weight: Tensor) -> Tensor:
    return features @ weight[:, :-1].T + weight[:, -1]


def gradient(features: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Of the mean loss of rows by the layer's weight and bias."""
    w = weight.clone().requires_grad_()
    loss = F.cross_entropy(layer(features.double(), w), labels)
    return torch.autograd.grad(loss, w)[0].flatten()


TRAIN, OTHER = embedding(30), embedding(12)


def greedy(train: Embedding, other: Embedding, label: int, budget: int, eta: float) -> list[int]:
    own = (train.labels == label).nonzero()[:, 0].tolist()
    theirs = other.labels == label
    each = {i: gradient(train.features[[i]], train.labels[[i]], WEIGHT) for i in own}
    picks: list[int] = []
    for _ in range(budget):
        weight = WEIGHT
        if picks:
            step = torch.stack([each[i] for i in picks]).mean(0)
            weight = WEIGHT - eta * step.view_as(WEIGHT)
        wanted = gradient(other.features[theirs], other.labels[theirs], weight)
        picks.append(max((i for i in own if i not in picks), key=lambda i: float(each[i] @ wanted)))
    return picks


@pytest.mark.parametrize("eta", [0.1, 5.0])  # DeepCore's; one that changes the picks
@pytest.mark.parametrize("validated", [False, True])
def test_every_pick_follows_the_layers_step(eta: float, validated: bool) -> None:
    other = OTHER if validated else TRAIN
    picked = glister(TRAIN, validation=OTHER if validated else None, ipc=5, eta=eta)
    want = [greedy(TRAIN, other, label, 5, eta) for label in range(CLASSES)]
    assert picked.indices.view(CLASSES, 5).tolist() == want
    assert picked.order == "ranked"


def test_a_large_step_changes_the_picks() -> None:
    near, far = (glister(TRAIN, ipc=5, eta=eta).indices.tolist() for eta in (0.1, 5.0))
    assert near != far


def test_deepcore_never_updates_and_takes_means_over_batches() -> None:
    large = embedding(3 * 300)  # 300 of a class: a batch of 256 and one of 44
    picked = glister(large, ipc=40, semantics="official")
    for label in range(CLASSES):
        own = (large.labels == label).nonzero()[:, 0]
        sizes = torch.tensor([256] * 256 + [44] * 44)
        grads = torch.stack(
            [gradient(large.features[[i]], large.labels[[i]], WEIGHT) for i in own.tolist()]
        )
        grads = grads / sizes[:, None]
        gains = grads @ grads.mean(0)
        want = own[gains.argsort(descending=True)[:40]]
        assert picked.indices.view(CLASSES, 40)[label].tolist() == want.tolist()
        assert picked.scores is not None
        got = picked.scores.view(CLASSES, 40)[label].double()
        torch.testing.assert_close(got, gains.topk(40).values, rtol=1e-4, atol=1e-9)


def test_refuses() -> None:
    with pytest.raises(ValueError, match="eta must be positive and finite, got 0"):
        glister(TRAIN, ipc=1, eta=0)
    with pytest.raises(ValueError, match="eta must be positive and finite, got nan"):
        glister(TRAIN, ipc=1, eta=float("nan"))
    with pytest.raises(ValueError, match="give either ipc or fraction"):
        glister(TRAIN)
    with pytest.raises(ValueError, match="ipc = 11 is larger than a class"):
        glister(TRAIN, ipc=11)
    narrow = Embedding(torch.zeros(3, 3), torch.zeros(3, 2), torch.arange(3))
    with pytest.raises(ValueError, match="3 logits and 2 features, the embedding 3 and 4"):
        glister(TRAIN, validation=narrow, ipc=1)
    lacking = Embedding(torch.zeros(2, 3), torch.zeros(2, 4), torch.arange(2))
    with pytest.raises(ValueError, match="validation has no sample of class 2"):
        glister(TRAIN, validation=lacking, ipc=1)
    assert len(glister(TRAIN, ipc=0)) == 0
    assert torch.bincount(TRAIN.labels[glister(TRAIN, fraction=0.25).indices]).tolist() == [2, 2, 2]
