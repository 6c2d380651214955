"""CAL: both meanings against loops over all pairs in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyddfast.coresets import Embedding, cal_scores, select

GEN = torch.Generator().manual_seed(11)
LOGITS = 3 * torch.randn(40, 4, generator=GEN)
FEATURES = torch.randn(40, 5, generator=GEN)
LABELS = torch.arange(40) % 4
EMBEDDING = Embedding(LOGITS, FEATURES, LABELS)
LOGP = LOGITS.double().log_softmax(1)


def kl(a: Tensor, b: Tensor) -> float:
    return float((a.exp() * (a - b)).sum())


def nearest(i: int, among: list[int], k: int, normalised: bool) -> list[int]:
    x = FEATURES.double()
    if normalised:
        x = x / x.norm(dim=1, keepdim=True)
    return sorted((j for j in among if j != i), key=lambda j: float((x[i] - x[j]).norm()))[:k]


def test_the_paper_compares_with_neighbours_of_any_class() -> None:
    got = cal_scores(EMBEDDING, neighbours=3)
    want = [
        sum(kl(LOGP[j], LOGP[i]) for j in nearest(i, list(range(40)), 3, True)) / 3
        for i in range(40)
    ]
    assert got.values.tolist() == pytest.approx(want, rel=1e-4)
    assert (got.high_means, got.meta["neighbours"]) == ("contrastive", 3)


def test_deepcore_keeps_the_least_contrastive_within_a_class() -> None:
    got = cal_scores(EMBEDDING, neighbours=3, semantics="official")
    want = []
    for i in range(40):
        own = [j for j in range(40) if LABELS[j] == LABELS[i]]
        pairs = [(LOGP[i], LOGP[j]) for j in nearest(i, own, 3, False)]
        want.append(-sum((kl(p, q) + kl(q, p)) / 2 for p, q in pairs) / 3)
    assert got.values.tolist() == pytest.approx(want, rel=1e-4)
    picked = select(got, LABELS, ipc=1)
    for label in range(4):
        own = [i for i in range(40) if LABELS[i] == label]
        assert int(picked.indices[label]) == max(own, key=lambda i: want[i])


def test_another_network_says_who_is_near() -> None:
    # On a line: the neighbour of each is its pair.
    x = torch.arange(40).div(2, rounding_mode="floor") * 10.0 + torch.arange(40) % 2
    near = Embedding(LOGITS, torch.stack((x, torch.ones(40)), 1), torch.zeros(40).long())
    one = Embedding(LOGITS, FEATURES, torch.zeros(40).long())
    got = cal_scores(one, neighbours=1, by=near, semantics="official")
    want = [-(kl(LOGP[i], LOGP[i ^ 1]) + kl(LOGP[i ^ 1], LOGP[i])) / 2 for i in range(40)]
    assert got.values.tolist() == pytest.approx(want, rel=1e-4)


def test_refuses() -> None:
    with pytest.raises(ValueError, match="neighbours must be at least 1, got 0"):
        cal_scores(EMBEDDING, neighbours=0)
    with pytest.raises(ValueError, match="their labels differ"):
        cal_scores(EMBEDDING, by=Embedding(LOGITS, FEATURES, LABELS.flip(0)))
    # More than there are: all of them, and the record says how many.
    assert torch.equal(
        cal_scores(EMBEDDING, neighbours=39).values, cal_scores(EMBEDDING, neighbours=100).values
    )
    assert cal_scores(EMBEDDING, neighbours=100).meta["neighbours"] == 39
    lone = LABELS.clone()
    lone[0] = LOGITS.shape[1] - 1
    lone[1:] %= LOGITS.shape[1] - 1
    with pytest.raises(ValueError, match="a class has a single sample, which has no neighbour"):
        cal_scores(Embedding(LOGITS, FEATURES, lone), semantics="official")
    with pytest.raises(ValueError, match="holds no sample"):
        cal_scores(Embedding(LOGITS[:0], FEATURES[:0], LABELS[:0]))
