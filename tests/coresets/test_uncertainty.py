"""Scores of one pass by a trained network, against their formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyddfast.coresets import (
    Embedding,
    entropy_scores,
    least_confidence_scores,
    margin_scores,
    moderate_scores,
    select,
)

GEN = torch.Generator().manual_seed(5)
LOGITS = 4 * torch.randn(60, 5, generator=GEN)
FEATURES = torch.randn(60, 3, generator=GEN)
LABELS = torch.randint(0, 5, (60,), generator=GEN)
EMBEDDING = Embedding(LOGITS, FEATURES, LABELS, {"model": "toy"})
P = LOGITS.double().softmax(1)
# Lead of 40 logits: every float32 probability is 1 or 1e-18.
SURE = Embedding(torch.tensor([[40.0, 0, 0], [41, 0, 0]]), torch.zeros(2, 1), torch.zeros(2).long())


def test_formulas() -> None:
    top = P.topk(2).values
    for scores, want in (
        (entropy_scores(EMBEDDING), -(P * P.log()).sum(1)),
        (least_confidence_scores(EMBEDDING), 1 - top[:, 0]),
        (margin_scores(EMBEDDING), top[:, 1] - top[:, 0]),
    ):
        torch.testing.assert_close(scores.values.double(), want, atol=1e-6, rtol=1e-5)
        assert scores.high_means == "uncertain"
        assert scores.meta["model"] == "toy"


def test_sure_samples_stay_ordered() -> None:
    for scores in (entropy_scores(SURE), least_confidence_scores(SURE)):
        assert 0 < float(scores.values[1]) < float(scores.values[0])
    torch.testing.assert_close(
        least_confidence_scores(SURE).values, torch.tensor([2 * 4.24835e-18, 2 * 1.56288e-18])
    )


def test_the_official_ones_are_deepcores() -> None:
    got = least_confidence_scores(EMBEDDING, semantics="official").values
    assert got.tolist() == (-LOGITS.amax(1)).tolist()
    got = entropy_scores(EMBEDDING, semantics="official").values
    torch.testing.assert_close(got.double(), -(P * (P + 1e-6).log()).sum(1), atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="semantics must be one of"):
        entropy_scores(EMBEDDING, semantics="code")  # type: ignore[arg-type]


def test_moderate_is_nearest_to_the_median_distance() -> None:
    # One class on a line.
    x = torch.tensor([0.0, 1, 2, 3, 6])[:, None]
    one = Embedding(torch.zeros(5, 1), x, torch.zeros(5, dtype=torch.int64))
    # Mean 2.4: distances 2.4 1.4 0.4 0.6 3.6, median 1.4.
    want = [-1.0, 0.0, -1.0, -0.8, -2.2]
    assert moderate_scores(one).values.tolist() == pytest.approx(want)
    # Median 2: distances 2 1 0 1 4, ranks 3 1 0 2 4 about the middle 2.
    official = moderate_scores(one, semantics="official")
    assert official.values.tolist() == [-1, -1, -2, 0, -2]
    # Every class has its own centre.
    got = moderate_scores(EMBEDDING)
    for label in range(5):
        own = FEATURES[label == LABELS].double().numpy()
        distance = ((own - own.mean(0)) ** 2).sum(1) ** 0.5
        want_own = -abs(distance - np.median(distance))
        assert got.values[label == LABELS].tolist() == pytest.approx(want_own.tolist())
    picked = select(got, LABELS, ipc=2)
    assert picked.meta["scoring"] == {"model": "toy", "semantics": "paper"}
