"""Table 1 of the paper, cell by cell, and the rules around it."""

from __future__ import annotations

import json

import pytest

from pyddfast.train import Recipe, official_recipe, recipe
from pyddfast.train.loop import learning_rate
from pyddfast.train.recipes import Recipe as SameRecipe


def cells(r: Recipe):
    return (
        r.epochs, r.loss, r.temperature if r.loss == "kl" else None, r.optimizer, r.lr,
        r.schedule, r.warmup_epochs, r.batch_size, r.augmentation, r.cutmix is not None,
    )  # fmt: skip


# The published table: epochs, loss, T, optimiser, lr, schedule, warm-up, batch, augmentation,
# CutMix.
TABLE_1 = {
    ("hl", "large", 10): (200, "ce", None, "sgd", 0.5, "cosine", 0, 50, "rrc", False),
    ("hl", "large", 50): (200, "ce", None, "sgd", 0.5, "cosine", 0, 128, "rrc", False),
    ("hl", "large", 100): (200, "ce", None, "sgd", 0.5, "cosine", 0, 200, "rrc", False),
    ("sl", "large", 10): (200, "kl", 20.0, "adamw", 1e-3, "cosine", 5, 128, "rrc", False),
    ("sl-kd", "large", 10): (200, "kl", 20.0, "adamw", 1e-3, "cosine", 5, 128, "rrc", True),
    ("hl", "small", 10): (300, "ce", None, "sgd", 1e-2, "step", 0, 256, "dsa", False),
    ("sl", "small", 10): (300, "kl", 20.0, "adamw", 1e-3, "cosine", 0, 256, "dsa", False),
}


@pytest.mark.parametrize(("column", "expected"), TABLE_1.items())
def test_table_1(column, expected):
    got = recipe(*column)
    assert cells(got) == expected
    assert got.in_paper
    assert got.notes == ()
    assert not got.t_squared
    assert (got.regime, got.scale) == column[:2]


def test_small_hl_steps_at_151_of_300():
    got = recipe("hl", "small")
    assert (got.milestone, got.epochs, got.gamma) == (151, 300, 0.1)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        # DeepCore: momentum, nesterov, weight decay on everything.
        (("hl", "large", 10), ("sgd", 0.9, True, 5e-4, True, (0.08, 1.0))),
        (("hl", "small", 10), ("sgd", 0.9, True, 5e-4, True, (0.08, 1.0))),
        # EDC: weight decay on matrices only, RRC from half the area.
        (("sl", "large", 10), ("adamw", 0.9, True, 0.01, False, (0.5, 1.0))),
        (("sl-kd", "large", 10), ("adamw", 0.9, True, 0.01, False, (0.5, 1.0))),
    ],
)
def test_open_values(column, expected):
    r = recipe(*column)
    assert (
        r.optimizer, r.momentum, r.nesterov, r.weight_decay, r.decay_vectors, r.rrc_scale
    ) == expected  # fmt: skip
    assert r.betas == (0.9, 0.999)


def test_small_sl_kd_is_small_sl_and_says_it_is_ours():
    kd, sl = recipe("sl-kd", "small"), recipe("sl", "small")
    assert cells(kd) == cells(sl)
    assert not kd.in_paper
    assert "not in the paper" in kd.notes[0]
    assert "not in the paper" in json.dumps(kd.to_dict())


# 1 and 9: below the table; 20 and 70: between; 101 and 500: above.
@pytest.mark.parametrize(
    ("ipc", "batch"), [(1, 50), (9, 50), (20, 50), (70, 128), (101, 200), (500, 200)]
)
def test_batch_sizes_beyond_the_table_are_recorded(ipc, batch):
    r = recipe("hl", "large", ipc)
    assert r.batch_size == batch
    assert f"IPC {ipc}" in r.notes[0]
    assert "our choice" in r.notes[0]


def test_every_field_can_be_overridden():
    r = recipe("sl-kd", "large", lr=0.1, cutmix=None, rrc_scale=(0.1, 0.9), batch_size=7)
    assert (r.lr, r.cutmix, r.rrc_scale, r.batch_size) == (0.1, None, (0.1, 0.9), 7)
    assert r.epochs == 200
    assert recipe("sl", rrc_scale=[0.5, 1]) == recipe("sl")  # as JSON has it
    # An explicit batch size needs no IPC.
    assert recipe("hl", "large", batch_size=32).batch_size == 32
    assert SameRecipe is Recipe


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: recipe("kd"), ValueError, "regime"),
        (lambda: recipe("hl", "medium"), ValueError, "scale"),
        (lambda: recipe("hl", "large"), ValueError, "ipc is required"),
        (lambda: recipe("hl", "large", 0), ValueError, "ipc must be positive"),
        (lambda: recipe("sl", cutmix=1.0), ValueError, "cutmix needs regime 'sl-kd'"),
        (lambda: recipe("sl-kd", "small", cutmix=1.0), ValueError, "cutmix belongs"),
        (lambda: recipe("sl", loss="ce"), ValueError, "loss"),
        (lambda: recipe("sl", lr=float("nan")), ValueError, "lr"),
        (lambda: recipe("sl", lr="abc"), ValueError, "lr must be a finite number, got 'abc'"),
        (lambda: recipe("sl", lr=True), ValueError, "lr must be a finite number, got True"),
        (lambda: recipe("sl", weight_decay=None), ValueError, "weight_decay must be a finite"),
        (lambda: recipe("sl", rrc_scale=(2, 3)), ValueError, r"rrc_scale must be .* got \(2, 3\)"),
        (lambda: recipe("sl", rrc_scale=0.5), ValueError, "rrc_scale must be two numbers"),
        (lambda: recipe("sl", rrc_ratio=(2, 1)), ValueError, "rrc_ratio must be"),
        (lambda: recipe("sl", betas=(0.9, 1.0)), ValueError, "betas must lie"),
        (lambda: recipe("sl", flip=1.5), ValueError, "flip must lie"),
        (lambda: recipe("sl", nesterov=1), ValueError, "nesterov must be True or False"),
        (lambda: recipe("sl", image_size=0), ValueError, "image_size must be a positive int"),
        (lambda: recipe("sl-kd", cutmix="on"), ValueError, "cutmix must be a finite number"),
        (lambda: recipe("hl", batch_size="x"), ValueError, "batch_size must be a positive int"),
        (lambda: recipe("sl", epochs=0), ValueError, "epochs"),
        (lambda: recipe("sl", batch_size=2.5), ValueError, "batch_size"),
        (lambda: recipe("sl", temperature=0.0), ValueError, "temperature"),
        (lambda: recipe("sl", schedule="exp"), ValueError, "schedule"),
        (lambda: recipe("sl", "small", image_size=32), ValueError, "image_size"),
        (lambda: recipe("sl", "small", dsa_strategy="blur"), ValueError, "blur"),
        (lambda: recipe("sl", learning_rate=1.0), TypeError, "learning_rate"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("method", "epochs", "rate", "batch", "augmentation", "corners"),
    [
        ("dc", 300, 0.01, 256, "none", False),
        ("dsa", 1000, 0.01, 256, "dsa", False),
        ("dm", 1000, 0.01, 256, "dsa", False),
        ("tm", 1000, 0.03, 256, "dsa", True),  # a learned rate
        ("datm", 1000, 0.03, 128, "dsa", True),
    ],
)
def test_official_evaluations(method, epochs, rate, batch, augmentation, corners):
    used = official_recipe(method, lr=None if rate == 0.01 else rate)
    assert (used.lr, used.batch_size, used.augmentation) == (rate, batch, augmentation)
    assert used.dsa_align_corners is corners
    assert (used.optimizer, used.momentum, used.nesterov) == ("sgd", 0.9, False)
    assert used.weight_decay == 5e-4
    assert not used.in_paper
    # The loop as the codebases write it, one step an epoch.
    expected, lr = [], rate
    for epoch in range(epochs + 1):
        expected.append(lr)
        if epoch in [epochs // 2 + 1]:
            lr *= 0.1
    got = [learning_rate(used, step, used.epochs) for step in range(used.epochs)]
    assert got == pytest.approx(expected, rel=1e-12)


def test_official_evaluations_are_refused_by_name():
    with pytest.raises(ValueError, match="method must be one of"):
        official_recipe("sre2l")
    with pytest.raises(ValueError, match="epochs must be a positive int"):
        official_recipe("dm", epochs=0)
    with pytest.raises(TypeError, match="no field batch"):
        official_recipe("dm", batch=3)
