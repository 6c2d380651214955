"""Scores of recorded trainings: each method asks for the score and the training it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pyddfast.coresets import (
    TrainingDynamics,
    aum_scores,
    dual_scores,
    dyn_unc_scores,
    dynamics_scores,
    forgetting_scores,
    record_training,
)
from pyddfast.data import ImageDataset
from pyddfast.random import Purpose, generator
from pyddfast.train import teacher_recipe

MODEL = ("convnet-d1", {"width": 4, "norm": "batch"})
RUN: dict[str, Any] = {"device": "cpu", "progress": False}


def run(data: ImageDataset, repeat: int, epochs: int, mode: str, window: int) -> TrainingDynamics:
    dynamics = TrainingDynamics(len(data), window=window)
    seed = generator(7, Purpose.SCORING, repeat).initial_seed()
    record_training(data, MODEL, dynamics, epochs=epochs, mode=mode, seed=seed, **RUN)  # type: ignore[arg-type]
    return dynamics


@pytest.mark.parametrize(
    ("function", "name", "mode"),
    [
        (forgetting_scores, "forgetting", "train"),
        (aum_scores, "aum", "train"),
        (dyn_unc_scores, "dyn_unc", "eval"),
        (dual_scores, "dual", "train"),
    ],
)
def test_scores_are_means_over_recorded_trainings(
    function: Any, name: str, mode: str, blobs: ImageDataset
) -> None:
    window = {"window": 3} if name in ("dyn_unc", "dual") else {}
    got = function(blobs, MODEL, epochs=5, repeats=2, seed=7, **window, **RUN)
    each = [run(blobs, repeat, 5, mode, 3).values(name) for repeat in range(2)]
    assert (got.values - (each[0] + each[1]) / 2).abs().max() < 1e-12
    assert (each[0] - each[1]).abs().max() > 1e-6
    assert got.name == name
    assert [m["mode"] for m in got.meta["each"]] == [mode] * 2
    assert got.meta["each"][0]["ticks"] == 5


def test_one_run_gives_all_scores_and_is_read_back(blobs: ImageDataset, tmp_path: Path) -> None:
    def recorded() -> Any:
        dynamics = TrainingDynamics(48, window=2, record=("entropy", "nll"))
        return record_training(blobs, MODEL, dynamics, epochs=4, out=tmp_path / "run", **RUN)

    first, again = recorded(), recorded()
    for name in ("forgetting", "aum", "el2n", "dyn_unc", "dual", "nll", "entropy"):
        scores = first.scores(name)
        assert torch.equal(again.scores(name).values, scores.values)
        assert scores.meta["accuracy"] == first.teacher.record["accuracy"]


def test_refuses(blobs: ImageDataset) -> None:
    with pytest.raises(ValueError, match="dynamics is of 5 samples, the data set has 48"):
        record_training(blobs, MODEL, TrainingDynamics(5), epochs=1, **RUN)
    used = TrainingDynamics(48)
    used.end_tick()
    with pytest.raises(ValueError, match=r"has recorded before \(1 whole ticks\)"):
        record_training(blobs, MODEL, used, epochs=1, **RUN)
    used = TrainingDynamics(48)
    used.update(torch.eye(2), torch.arange(2), torch.arange(2))  # no tick has ended
    with pytest.raises(ValueError, match=r"has recorded before \(0 whole ticks\)"):
        record_training(blobs, MODEL, used, epochs=1, **RUN)
    with pytest.raises(ValueError, match="either epochs or recipe"):
        record_training(blobs, MODEL, TrainingDynamics(48), **RUN)
    with pytest.raises(ValueError, match="repeats"):
        dynamics_scores(blobs, MODEL, "aum", epochs=1, repeats=0)
    with pytest.raises(
        ValueError, match=r"dyn_unc with window = 10 .* needs 11 ticks, there are 10"
    ):
        dyn_unc_scores(blobs, MODEL, epochs=10)
    with pytest.raises(ValueError, match="unknown score"):
        dynamics_scores(blobs, MODEL, "fame", epochs=1, recipe=teacher_recipe(9), **RUN)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fame", {}, "unknown score 'fame'"),
        ("entropy", {}, "entropy was not recorded"),
        ("aum", {"never_learned": "foo"}, "never_learned must be one of"),
        ("first_learned", {"never_learned": "zero"}, "0 is the earliest"),
        ("cad", {"epochs": 12}, "needs the last 12 ticks, the ring holds 10"),
        ("dual", {"window": 5, "drop_last": True}, "needs 6 ticks, there are 5"),
        ("el2n_sl", {"record": ("el2n_sl",)}, "el2n_sl, which needs a teacher"),
        ("aum", {"epochs": 40_000}, "shows an image 40000 times in 40000 ticks"),
        (
            "dyn_unc",
            {"window": 3, "recipe": teacher_recipe(1, batch_size=7, drop_last=True)},
            "leaves 6 of 48 out",
        ),
    ],
)
def test_refuses_before_any_training(
    name: str, options: dict[str, Any], message: str, blobs: ImageDataset, tmp_path: Path
) -> None:
    given = {"epochs": 5, **options}
    with pytest.raises(ValueError, match=message):
        dynamics_scores(blobs, MODEL, name, out=tmp_path / "run", **given, **RUN)
    assert not (tmp_path / "run").exists()
