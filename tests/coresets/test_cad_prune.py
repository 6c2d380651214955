"""CAD-Prune: the compute-matched run, and its scores against the formula on its own snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyddfast.coresets import cad_prune, cad_scores
from pyddfast.coresets.cad_prune import check_cad
from pyddfast.coresets.dynamics import TrainingDynamics
from pyddfast.data import ImageDataset, Normalization
from pyddfast.train import Samples, teacher_recipe
from pyddfast.train.plan import Plan
from pyddfast.train.record import tick_ends

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
        last = {int(i): z for ids, logits in seen for i, z in zip(ids, logits, strict=True)}
        ticks.append(torch.stack([last[i] for i in range(len(self))]))
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
        # 12 · 9 · 2 images are 4.5 epochs: four whole ones, and in snapshots a fifth tick.
        (
            {"ticks": "epoch", "cad_window": 2, "cad_average": 1, "mode": "train", "ipc": 9},
            [(1, 3)],
        ),
        ({"ticks": "epoch", "cad_window": 3, "ipc": 9}, [(0, 3), (1, 4)]),
        # Ticks of 1, 1, 1 and 2 epochs, of which the last presentation counts.
        ({"ticks": 4, "mode": "train", "cad_average": 1}, [(0, 3)]),
    ],
)
def test_cad_is_its_formula_on_the_runs_own_logits(
    options: dict[str, Any],
    windows: list[tuple[int, int]],
    blobs: ImageDataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = kept(monkeypatch)
    given = {"ipc": 10, **options}
    scores = cad_scores(blobs, MODEL, downstream_epochs=12, **given, **RUN)
    partial = given["ipc"] == 9 and given.get("mode") == "train"
    assert len(ticks) == (4 if partial else 5 if given["ticks"] == "epoch" else given["ticks"])
    values = signal(ticks, blobs.labels, options.get("signal", "p_y"))
    want = torch.stack([values[a:b].std(0, correction=1) for a, b in windows]).mean(0)
    assert (scores.values - want).abs().max() < 1e-6
    assert scores.values.std() > 1e-4
    assert scores.meta["samples"] == 24 * given["ipc"]
    assert scores.meta["epochs"] == given["ipc"] / 2


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
        ({"ticks": 7, "cad_window": 6}, "J = 6 and W = 2 make 8 at least, there are 7"),
        ({"ticks": 3}, "J = ticks - W and W = 2 make 4 at least, there are 3"),
        ({"ticks": "epoch", "cad_window": 6}, "at least, there are 5; the run has 5.00 epochs"),
        # In training mode an image is seen once an epoch.
        ({"ticks": 6, "mode": "train"}, "ticks = 6 in mode 'train' needs 6 whole epochs"),
        (
            {
                "ticks": "epoch",
                "mode": "train",
                "cad_window": 2,
                "recipe": teacher_recipe(5, batch_size=7, drop_last=True),
            },
            "leaves 6 of 48 out",
        ),
        ({"cad_average": 0}, "cad_average must be an int of at least 1"),
        ({"ticks": "foo"}, "ticks must be 'epoch' or an int"),
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


def test_refuses_budgets_that_are_no_ints(blobs: ImageDataset) -> None:
    with pytest.raises(TypeError, match=r"ipc must be an int, got 1\.5"):
        cad_prune(blobs, MODEL, ipc=1.5, **RUN)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"downstream_epochs must be an int, got 2\.5"):
        cad_scores(blobs, MODEL, ipc=1, downstream_epochs=2.5, **RUN)  # type: ignore[arg-type]


def test_the_papers_setting_for_50_images_a_class_of_imagenet() -> None:
    # N / C = 1281, 200 epochs: 200 · 50 / 1281 = 7.81 epochs, the paper's eight ticks.
    labels = torch.arange(2562) % 2
    images = torch.zeros(2562, 1, 1, 1, dtype=torch.uint8)
    data = ImageDataset(images, labels, ("a", "b"), Normalization((0.4,), (0.3,)))
    dynamics, recipe, samples = check_cad(
        data, ipc=50, downstream_epochs=200, ticks="epoch", cad_window=6
    )
    plan = Plan(2562, recipe.batch_size, recipe.drop_last, Samples(samples))
    assert len(tick_ends("epoch", "eval", plan)) == 8
    assert (dynamics.ring, recipe.epochs) == (8, 8)
