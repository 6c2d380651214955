"""k-centers, contextual diversity and herding of each class, against loops in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pyddfast.coresets import (
    Embedding,
    Selection,
    contextual_diversity,
    craig,
    facility_location,
    glister,
    grad_match,
    graph_cut,
    herding,
    k_centers,
    k_means_medoids,
)
from pyddfast.ops import _memory

GEN = torch.Generator().manual_seed(21)
LABELS = torch.arange(60) % 3
FEATURES = torch.randn(60, 5, generator=GEN) + 2
LOGITS = 2 * torch.randn(60, 3, generator=GEN)
EMBEDDING = Embedding(LOGITS, FEATURES, LABELS, {"model": "toy"})
X = FEATURES.double()


def own(label: int) -> list[int]:
    return (label == LABELS).nonzero()[:, 0].tolist()


def farthest_first(
    members: list[int], first: int, distance: Tensor, budget: int
) -> tuple[list[int], list[float]]:
    picks, radii = [first], []
    while True:
        near = {i: min(float(distance[i, j]) for j in picks) for i in members}
        radii.append(max(near.values()))
        if len(picks) == budget:
            return picks, radii
        picks.append(max((i for i in members if i not in picks), key=near.__getitem__))


@pytest.mark.parametrize("init", ["random", "mean", "medoid"])
def test_k_centers_take_the_farthest(init: str) -> None:
    picked = k_centers(EMBEDDING, ipc=6, init=init, seed=4)  # type: ignore[arg-type]
    distance = torch.cdist(X, X)
    for label in range(3):
        members, found = own(label), picked.indices.view(3, 6)[label].tolist()
        if init == "mean":
            middle = X[members].mean(0)
            assert found[0] == min(members, key=lambda i: float((X[i] - middle).norm()))
        if init == "medoid":
            assert found[0] == min(members, key=lambda i: float(distance[i, members].sum()))
        want, radii = farthest_first(members, found[0], distance, 6)
        assert found == want
        assert picked.scores is not None
        assert picked.scores.view(3, 6)[label].tolist() == pytest.approx(radii, rel=1e-5)
    assert (picked.order, picked.meta["init"]) == ("ranked", init)
    assert picked.meta["scoring"] == {"model": "toy"}


def test_random_first_picks_are_keyed_and_spread() -> None:
    firsts = [k_centers(EMBEDDING, ipc=1, seed=seed).indices.tolist() for seed in range(40)]
    assert firsts[7] == k_centers(EMBEDDING, ipc=1, seed=7).indices.tolist()
    assert len({first[0] for first in firsts}) > 12  # of 20
    # Classes begin at places of their own, in the official code all at the same.
    assert len({first // 3 for first in firsts[0]}) > 1
    official = k_centers(EMBEDDING, ipc=3, seed=5, semantics="official")
    place = np.random.RandomState(5).randint(0, 20)  # of np.random.seed(5)
    assert official.indices.view(3, 3)[:, 0].tolist() == [3 * place + label for label in range(3)]
    with pytest.raises(ValueError, match="init must be 'random' with semantics='official'"):
        k_centers(EMBEDDING, ipc=1, init="mean", semantics="official")


def test_lengths_are_normalised_on_request() -> None:
    unit = X / X.norm(dim=1, keepdim=True)
    picked = k_centers(EMBEDDING, ipc=4, init="mean", normalize=True)
    for label in range(3):
        found = picked.indices.view(3, 4)[label].tolist()
        want, _ = farthest_first(own(label), found[0], torch.cdist(unit, unit), 4)
        assert found == want
    assert picked.indices.tolist() != k_centers(EMBEDDING, ipc=4, init="mean").indices.tolist()


def test_medoids_of_separate_clusters_are_their_middles() -> None:
    # Three clusters a class, of 6, 3 and 2 samples on a line; their medoids are known.
    line = torch.tensor([0.0, 1, 2, 3, 4, 5.1, 100, 101, 103, 200, 201.5])
    x = torch.cat((line, line + 1000))[:, None].expand(-1, 2)
    labels = torch.tensor([0] * 11 + [1] * 11)
    one = Embedding(torch.zeros(22, 2), x, labels)
    picked = k_means_medoids(one, ipc=3, seed=1)
    # Means 2.52, 101.33 and 200.75 (a tie, to the first); the largest cluster first.
    assert picked.indices.tolist() == [3, 7, 9, 14, 18, 20]
    assert picked.order == "none"
    # More centers than values: every sample once.
    twins = Embedding(torch.zeros(4, 1), torch.ones(4, 2), torch.zeros(4).long())
    assert sorted(k_means_medoids(twins, ipc=4).indices.tolist()) == [0, 1, 2, 3]


def test_contextual_diversity_is_k_centers_of_predictions() -> None:
    logp = LOGITS.double().log_softmax(1)
    gap = logp[:, None] - logp[None]
    distance = ((logp.exp()[:, None] - logp.exp()[None]) * gap).sum(2)
    picked = contextual_diversity(EMBEDDING, ipc=5, seed=2)
    for label in range(3):
        found = picked.indices.view(3, 5)[label].tolist()
        want, radii = farthest_first(own(label), found[0], distance, 5)
        assert found == want
        assert picked.scores is not None
        assert picked.scores.view(3, 5)[label].tolist() == pytest.approx(radii, rel=1e-4)


@pytest.mark.parametrize("semantics", ["paper", "official"])
def test_herding_follows_the_mean(semantics: str) -> None:
    picked = herding(EMBEDDING, ipc=6, semantics=semantics)  # type: ignore[arg-type]
    choose = min if semantics == "paper" else max
    for label in range(3):
        members, picks = own(label), []
        middle = X[members].mean(0)
        for t in range(1, 7):
            wanted = t * middle - X[picks].sum(0)
            left = [i for i in members if i not in picks]
            picks.append(choose(left, key=lambda i: float((X[i] - wanted).norm())))
        assert picked.indices.view(3, 6)[label].tolist() == picks


def test_budgets() -> None:
    uneven = Embedding(LOGITS[:30], FEATURES[:30], torch.tensor([0] * 5 + [2] * 25))
    for method in (k_centers, contextual_diversity, herding):
        # 2.5 -> 2, 0, 12.5 -> 12
        picked = method(uneven, fraction=0.5)  # type: ignore[operator]
        assert torch.bincount(uneven.labels[picked.indices], minlength=3).tolist() == [2, 0, 12]
        assert len(picked.indices.unique()) == 14
        with pytest.raises(ValueError, match="ipc = 3 is larger than a class: class 1 has 0"):
            method(uneven, ipc=3)  # type: ignore[operator]
        with pytest.raises(ValueError, match="give either ipc or fraction"):
            method(uneven)  # type: ignore[operator]
        with pytest.raises(ValueError, match=r"fraction must lie in \[0, 1\], got 2"):
            method(uneven, fraction=2)  # type: ignore[operator]
        assert len(method(EMBEDDING, ipc=0)) == 0  # type: ignore[operator]
    medoids = k_means_medoids(uneven, fraction=0.5)
    assert torch.bincount(uneven.labels[medoids.indices], minlength=3).tolist() == [2, 0, 12]
    assert len(k_means_medoids(EMBEDDING, ipc=0)) == 0


@pytest.mark.parametrize("method", [k_centers, herding, glister])
def test_a_matrix_is_no_embedding(method: Callable[..., Selection]) -> None:
    with pytest.raises(TypeError, match="embedding must be an Embedding, got Tensor; embed"):
        method(FEATURES, ipc=1)


@pytest.mark.parametrize("power", [-120, -70, 40])
def test_normalised_features_may_be_of_any_length(power: int) -> None:
    generator = torch.Generator().manual_seed(4)
    h, y = torch.randn(60, 6, generator=generator), torch.arange(60) % 3
    plain = Embedding(torch.zeros(60, 3), h, y)
    other = Embedding(torch.zeros(60, 3), h * 2.0**power, y)
    for method in (k_centers, k_means_medoids, herding):
        picks = [method(e, ipc=5, normalize=True).indices.tolist() for e in (plain, other)]
        assert picks[0] == picks[1]


def test_features_without_a_column_are_refused() -> None:
    none = Embedding(torch.zeros(6, 2), torch.zeros(6, 0), torch.arange(6) % 2)
    for call in (k_means_medoids, lambda e, ipc: k_centers(e, ipc=ipc, normalize=True)):
        with pytest.raises(ValueError, match="features have no column"):
            call(none, ipc=1)


def test_equal_samples_are_picked_from_the_first_on() -> None:
    # As many as products of matrices round differently by where they are.
    for rows, width in ((3, 17), (5, 64), (13, 130)):
        generator = torch.Generator().manual_seed(rows)
        logits = torch.randn(rows, 4, generator=generator)
        features = torch.randn(rows, width, generator=generator).relu()
        twice = Embedding(logits.repeat(2, 1), features.repeat(2, 1), torch.zeros(2 * rows).long())
        for method in (
            facility_location, graph_cut, craig, grad_match, glister, herding, contextual_diversity
        ):  # fmt: skip
            picks = method(twice, fraction=0.5).indices.tolist()
            place = {pick: number for number, pick in enumerate(picks)}
            later = [pick for pick in picks if pick >= rows]
            assert all(place.get(pick - rows, rows) < place[pick] for pick in later), method


def test_medoids_whose_distances_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = int(torch.bincount(EMBEDDING.labels).max())
    monkeypatch.setattr(_memory, "free_bytes", lambda _: 8 * 2 * largest)
    assert len(k_means_medoids(EMBEDDING, ipc=2)) == 2 * EMBEDDING.num_classes
    monkeypatch.setattr(_memory, "free_bytes", lambda _: 8 * 2 * largest - 1)
    with pytest.raises(ValueError, match=r"the distances of a class's images .* pick fewer"):
        k_means_medoids(EMBEDDING, ipc=2)
