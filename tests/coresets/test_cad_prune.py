"""CAD-Prune: the compute-matched run, and its scores against the formula on its own snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyddfast.coresets import cad_prune, cad_scores
from pyddfast.coresets.dynamics import TrainingDynamics
from pyddfast.data import ImageDataset
from pyddfast.train import Samples, teacher_recipe
from pyddfast.train.plan import Plan

MODEL = ("convnet-d1", {"width": 4, "norm": "batch"})
RUN: dict[str, Any] = {"device": "cpu", "progress": False, "seed": 3}


def kept(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The logits of every tick, taken on their way to the recorder."""
    seen: list[tuple[Tensor, Tensor]] = []
    ticks: list[Tensor] = []
    update, end = TrainingDynamics.update, TrainingDynamics.end_tick

    def spy(self: TrainingDynamics, logits: Tensor, targets: Tensor, indices: Tensor) -> None:
        seen.append((indices, logits.double()))
        update(self, logits, targets, indices)

    def close(self: TrainingDynamics) -> None:
        ids = torch.cat([i for i, _ in seen])
        ticks.append(torch.cat([z for _, z in seen])[ids.argsort()])
        seen.clear()
        end(self)

    monkeypatch.setattr(TrainingDynamics, "update", spy)
    monkeypatch.setattr(TrainingDynamics, "end_tick", close)
    return ticks


def signal(ticks: list[Tensor], labels: Tensor, name: str) -> Tensor:
    p = torch.stack(ticks).softmax(-1)
    onehot = torch.nn.functional.one_hot(labels, p.shape[-1])
    return (p * onehot).sum(-1) if name == "p_y" else (p - onehot).norm(dim=-1)


@pytest.mark.parametrize(
    ("options", "windows"),
    [
        # 6 ticks: J = 4, W = 2, windows at 0 and 1, the last tick left out.
        ({"ticks": 6}, [(0, 4), (1, 5)]),
        ({"ticks": 6, "drop_last": False}, [(1, 5), (2, 6)]),
        ({"ticks": 6, "cad_window": 3, "cad_average": 1}, [(2, 5)]),
        ({"ticks": 6, "signal": "el2n"}, [(0, 4), (1, 5)]),
        # 5 epochs of 48 images = 12 · 10 · 2.
        ({"ticks": "epoch", "cad_window": 3}, [(0, 3), (1, 4)]),
        ({"ticks": "epoch", "cad_window": 3, "mode": "train"}, [(0, 3), (1, 4)]),
    ],
)
def test_cad_is_its_formula_on_the_runs_own_logits(
    options: dict[str, Any],
    windows: list[tuple[int, int]],
    blobs: ImageDataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = kept(monkeypatch)
    scores = cad_scores(blobs, MODEL, ipc=10, downstream_epochs=12, **options, **RUN)
    assert len(ticks) == (5 if options["ticks"] == "epoch" else options["ticks"])
    values = signal(ticks, blobs.labels, options.get("signal", "p_y"))
    want = torch.stack([values[a:b].std(0, correction=1) for a, b in windows]).mean(0)
    assert (scores.values - want).abs().max() < 1e-6
    assert scores.values.std() > 1e-4
    assert scores.meta["samples"] == 240
    assert scores.meta["epochs"] == 5.0


def test_the_run_has_the_compute_of_the_downstream_training(blobs: ImageDataset) -> None:
    # 3 epochs on 2 · 2 images: 12 samples, a quarter of an epoch, in batches of 4.
    recipe = teacher_recipe(1, batch_size=4)
    scores = cad_scores(
        blobs, MODEL, ipc=2, downstream_epochs=3, ticks=3, cad_average=1, recipe=recipe,
        test_set=blobs, **RUN,
    )  # fmt: skip
    assert scores.meta["epochs"] == 0.25
    assert scores.meta["compute_matched_to"] == {"ipc": 2, "epochs": 3}
    assert Plan(48, 4, False, Samples(12)).total_steps == 3
    with pytest.raises(ValueError, match="ticks = 4 is more than the 3 steps"):
        cad_scores(blobs, MODEL, ipc=2, downstream_epochs=3, ticks=4, recipe=recipe, **RUN)


def test_prune_keeps_the_highest_of_each_class(blobs: ImageDataset, tmp_path: Path) -> None:
    options: dict[str, Any] = {"downstream_epochs": 12, "ticks": 5, "out": tmp_path / "run", **RUN}
    picked = cad_prune(blobs, MODEL, ipc=10, **options)
    scores = cad_scores(blobs, MODEL, ipc=10, **options)
    for label, picks in enumerate(picked.indices.split(10)):
        members = (blobs.labels == label).nonzero().squeeze(1)
        best = scores.values[members].sort(descending=True).values[:10]
        assert scores.values[picks].tolist() == best.tolist()
        assert (blobs.labels[picks] == label).all()
    assert picked.meta["method"] == "cad-prune"
    # The recorded run is read back, network and all.
    assert (tmp_path / "run" / "recorder.safetensors").is_file()
    assert scores.meta["accuracy"] > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ticks": 7, "cad_window": 6}, r"J \+ W = 8 ticks at least \(J = 6, W = 2\), but ticks"),
        ({"ticks": 3}, r"J \+ W = 4 ticks at least \(J = 2, the smallest, W = 2\), but ticks = 3"),
        ({"ticks": "epoch", "cad_window": 6}, "but 5.00 epochs are 5 ticks"),
        ({"signal": "p"}, "signal must be"),
        ({"downstream_epochs": 0}, "downstream_epochs"),
        ({"ipc": 25}, "ipc = 25 is larger than a class"),
    ],
)
def test_refuses_before_any_work(
    options: dict[str, Any], message: str, blobs: ImageDataset, tmp_path: Path
) -> None:
    given = {"ipc": 10, "downstream_epochs": 12, **options}
    with pytest.raises(ValueError, match=message):
        cad_prune(blobs, MODEL, out=tmp_path / "run", **given, **RUN)
    assert not (tmp_path / "run").exists()
