"""Facility location, graph cut and Craig, against dense gradients and loops in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pyddfast.coresets import Embedding, craig, facility_location, graph_cut
from pyddfast.coresets import classes as module

GEN = torch.Generator().manual_seed(7)
LABELS = torch.arange(75) % 3
LOGITS = 2 * torch.randn(75, 3, generator=GEN)
FEATURES = torch.randn(75, 4, generator=GEN)
EMBEDDING = Embedding(LOGITS, FEATURES, LABELS, {"model": "toy"})


def dense() -> Tensor:
    """Last-layer gradients, a row of C (D + 1) numbers a sample."""
    p = LOGITS.double().softmax(1)
    p[torch.arange(75), LABELS] -= 1
    h = torch.cat((FEATURES.double(), torch.ones(75, 1, dtype=torch.float64)), 1)
    return (p[:, :, None] * h[:, None]).flatten(1)


def own(label: int) -> list[int]:
    return (label == LABELS).nonzero()[:, 0].tolist()


def half_cosine(x: Tensor) -> Tensor:
    unit = x / x.norm(dim=1, keepdim=True)
    return 0.5 + 0.5 * unit @ unit.T


def check_cover(s: Tensor, members: list[int], found: list[int], weight: Tensor) -> None:
    """Every pick has the largest gain.  Two samples that cover only each other tie exactly."""
    best = torch.zeros(len(members)).double()
    left = list(members)
    for pick in found:
        gains = (weight[members][:, None] * (s[members][:, left] - best[:, None]).clamp(min=0)).sum(
            0
        )
        assert float(gains[left.index(pick)]) >= float(gains.max()) * (1 - 1e-6)
        best = torch.maximum(best, s[members, pick])
        left.remove(pick)


@pytest.mark.parametrize("compared", ["gradients", "features"])
@pytest.mark.parametrize("weighted", [False, True])
def test_facility_location(compared: Any, weighted: bool) -> None:
    s = half_cosine(dense() if compared == "gradients" else FEATURES.double())
    weight = torch.rand(75, generator=GEN) if weighted else None
    picked = facility_location(EMBEDDING, ipc=6, compared=compared, sample_weight=weight)
    factor = torch.ones(75).double() if weight is None else weight.double()
    for label in range(3):
        members, found = own(label), picked.indices.view(3, 6)[label].tolist()
        check_cover(s, members, found, factor)
        nearest = s[members][:, found].argmax(1)
        assert picked.weights is not None
        sizes = torch.bincount(nearest, minlength=6).tolist()
        assert picked.weights.view(3, 6)[label].tolist() == sizes
        objective = float((factor[members] * s[members][:, found].amax(1)).sum())
        assert picked.scores is not None
        assert float(picked.scores.view(3, 6)[label].sum()) == pytest.approx(objective, rel=1e-5)
    assert picked.meta["compared"] == compared


@pytest.mark.parametrize("lam", [1.0, 0.2])  # DeepCore's; one with which gains turn negative
def test_graph_cut(lam: float) -> None:
    s = half_cosine(dense())
    picked = graph_cut(EMBEDDING, ipc=6, lam=lam)
    for label in range(3):
        members, picks, gains = own(label), [], []
        for _ in range(6):
            gain = {
                j: lam * float(s[members, j].sum()) - 2 * float(s[picks, j].sum())
                for j in members
                if j not in picks
            }
            picks.append(max(gain, key=gain.__getitem__))
            gains.append(gain[picks[-1]])
        assert picked.indices.view(3, 6)[label].tolist() == picks
        assert picked.scores is not None
        assert picked.scores.view(3, 6)[label].tolist() == pytest.approx(gains, rel=1e-4, abs=1e-4)
    assert picked.weights is None


def test_craig_stands_for_all_gradients() -> None:
    distance = torch.cdist(dense(), dense())
    picked = craig(EMBEDDING, ipc=5)
    official = craig(EMBEDDING, ipc=5, semantics="official")
    # One batch a class: only the offset and the weights differ.
    assert official.indices.tolist() == picked.indices.tolist()
    for label in range(3):
        members, found = own(label), picked.indices.view(3, 5)[label].tolist()
        farthest = distance[members][:, members].max()
        check_cover(farthest - distance, members, found, torch.ones(75).double())
        sizes = torch.bincount(distance[members][:, found].argmin(1), minlength=5)
        assert picked.weights is not None
        assert official.weights is not None
        assert picked.weights.view(3, 5)[label].tolist() == sizes.tolist()
        assert official.weights.view(3, 5)[label].tolist() == (sizes + 1).tolist()
    assert picked.weights is not None
    assert float(picked.weights.sum()) == 75


def test_deepcores_last_batch_is_too_large() -> None:
    count = 300  # of one class: a batch of 256 and one of 44
    logits, h = torch.randn(count, 2, generator=GEN), torch.randn(count, 3, generator=GEN)
    one = Embedding(logits, h, torch.zeros(count).long())
    g = logits.double().softmax(1)
    g[:, 0] -= 1
    g /= torch.tensor([256] * 256 + [44] * 44)[:, None]
    wide = torch.cat((h.double(), torch.ones(count, 1).double()), 1)
    rows = (g[:, :, None] * wide[:, None]).flatten(1)
    distance = torch.cdist(rows, rows)
    similarity = distance.max() - distance + 1e-3
    # The second class is empty: fraction, not ipc.
    picked = craig(one, fraction=0.02, semantics="official")
    check_cover(similarity, list(range(count)), picked.indices.tolist(), torch.ones(count).double())
    assert picked.indices.tolist() != craig(one, fraction=0.02).indices.tolist()


def test_few_classes_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    methods: list[Any] = [craig, facility_location, graph_cut]
    whole = [method(EMBEDDING, ipc=4) for method in methods]
    monkeypatch.setattr(module, "_MATRIX_BYTES", 4 * 2 * 25**2)  # two classes of 25, then one
    for method, want in zip(methods, whole, strict=True):
        got = method(EMBEDDING, ipc=4)
        assert got.indices.tolist() == want.indices.tolist()
        assert torch.equal(got.scores, want.scores)


def test_refuses() -> None:
    with pytest.raises(ValueError, match="compared must be 'gradients' or 'features'"):
        graph_cut(EMBEDDING, ipc=1, compared="pixels")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"sample_weight must have shape \(75,\), got \(3,\)"):
        facility_location(EMBEDDING, ipc=1, sample_weight=torch.ones(3))
    with pytest.raises(ValueError, match="semantics must be one of"):
        craig(EMBEDDING, ipc=1, semantics="code")  # type: ignore[arg-type]
    for method in (craig, facility_location, graph_cut):
        assert len(method(EMBEDDING, ipc=0)) == 0
        with pytest.raises(ValueError, match="ipc = 26 is larger than a class"):
            method(EMBEDDING, ipc=26)
