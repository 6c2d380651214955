"""LRS and ARS against hand-worked values; the protocol against trainings one by one."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

from pyddfast import data
from pyddfast.analysis import LEARNING_RATES, ars, lrs, searched_accuracies
from pyddfast.coresets import random_scores, select
from pyddfast.data import DistilledSet
from pyddfast.train import recipe, train_student


def test_lrs_of_hand_worked_accuracies() -> None:
    # HLR 0.2, IOR 0.1: α = -0.05, (0.951229 - 0.367879) / 2.350402.
    found = lrs(0.6, 0.4, 0.5, 0.4)
    assert found.mean == pytest.approx(0.248192, abs=1e-6)
    assert found.parts == {"hlr": pytest.approx((0.2,)), "ior": pytest.approx((0.1,))}
    assert math.isnan(found.std)
    assert all(map(math.isnan, found.ci))
    # The ends, and as good as random images: α = -1, 1, 0.
    assert lrs(1, 0, 0, 1).mean == pytest.approx(0)
    assert lrs(0, 1, 1, 0).mean == pytest.approx(1)
    assert lrs(0.5, 0.5, 0.3, 0.3).mean == pytest.approx(0.268941, abs=1e-6)
    # Weight 1 looks at the improvement alone: e^0.1 = 1.105171.
    assert lrs(0.6, 0.4, 0.5, 0.4, weight=1).mean == pytest.approx(0.313687, abs=1e-6)


def test_ars_of_hand_worked_accuracies() -> None:
    # β = 0.5 (0.5 - 0.3) + 0.5 (0.4 - 0.2) = 0.2: (1.221403 - 0.367879) / 2.350402.
    found = ars(0.5, 0.3, 0.4, 0.2)
    assert found.mean == pytest.approx(0.363139, abs=1e-6)
    assert found.parts == {"augmented": pytest.approx((0.2,)), "plain": pytest.approx((0.2,))}
    # β = 0.25 · 0.2 + 0.75 · (-0.2) = -0.1.
    assert ars(0.5, 0.3, 0.2, 0.4, weight=0.25).mean == pytest.approx(0.228454, abs=1e-6)


def test_several_evaluations_have_an_interval() -> None:
    found = lrs(0.6, [0.4, 0.42, 0.41], [0.5, 0.52, 0.55], [0.4, 0.41, 0.4])
    each = [
        lrs(0.6, *rest).mean for rest in ((0.4, 0.5, 0.4), (0.42, 0.52, 0.41), (0.41, 0.55, 0.4))
    ]
    assert found.values == pytest.approx(each)
    assert found.mean == pytest.approx(sum(each) / 3)
    assert found.ci == pytest.approx(stats.t.interval(0.95, 2, found.mean, stats.sem(each)))
    assert found.std == pytest.approx(stats.tstd(each))


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ((56.5, 0.4, 0.5, 0.4), {}, r"full_hard must be fractions.*got 56.5; divide percentages"),
        ((0.6, 0.4, [0.5, 50], 0.4), {}, "synthetic must be fractions.*got 50;"),
        ((0.6, 0.4, 0.5, -0.1), {}, "random must be fractions"),
        ((0.6, [0.4] * 2, [0.5] * 3, 0.4), {}, "synthetic_hard must have 1 or 3 values, got 2"),
        ((0.6, 0.4, 0.5, math.nan), {}, "random must be finite"),
        ((0.6, 0.4, 0.5, 0.4), {"weight": 5}, r"weight must be in \[0, 1\], got 5"),
    ],
)
def test_refuses(values: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lrs(*values, **options)


def test_protocol_takes_the_best_rate_of_each_evaluation(tmp_path: Path) -> None:
    assert LEARNING_RATES == (0.001, 0.005, 0.01, 0.05, 0.1)
    source, test = (data.load("fashion-mnist-mini", split=split) for split in ("train", "test"))
    test = test.subset(torch.arange(0, len(test), 8))

    def random_set(seed: int) -> DistilledSet:
        picked = select(
            random_scores(len(source), seed=seed), source.labels, ipc=1, method="random"
        )
        return picked.to_distilled(source)

    sets = [random_set(seed) for seed in (0, 1)]
    used = replace(recipe("hl", "small", 1), epochs=40, augmentation="none")
    thin = ("convnet-d1", {"width": 4})
    common: dict[str, Any] = {"test_set": test, "progress": False}
    found = searched_accuracies(
        sets, thin, recipe=used, learning_rates=(1e-4, 0.1), seeds=(3, 7), out=tmp_path, **common
    )
    for made, seed, accuracy in zip(sets, (3, 7), found, strict=True):
        alone = [
            train_student(
                made,
                "hl",
                thin,
                recipe=replace(used, lr=rate),
                seeds=(seed,),
                evaluations=2,
                **common,
            )
            for rate in (1e-4, 0.1)
        ]
        assert accuracy == max(row["test_accuracy"] for a in alone for row in a.seeds[0].history)
        assert alone[0].best_mean != alone[1].best_mean
    # Done students are read, not trained again.
    (tmp_path / "seed3-lr0.1" / "seed3.safetensors").stat()
    before = sorted(tmp_path.rglob("*.safetensors"))
    times = [file.stat().st_mtime_ns for file in before]
    again = searched_accuracies(
        sets, thin, recipe=used, learning_rates=(1e-4, 0.1), seeds=(3, 7), out=tmp_path, **common
    )
    assert again == found
    assert [file.stat().st_mtime_ns for file in before] == times
    with pytest.raises(ValueError, match="one a seed: got 2, 3 seeds"):
        searched_accuracies(sets, thin, recipe=used, seeds=(1, 2, 3), **common)
    with pytest.raises(ValueError, match=r"seeds must be different, got \[1, 1\]"):
        searched_accuracies(sets, thin, recipe=used, seeds=(1, 1), **common)
