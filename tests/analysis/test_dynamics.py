"""Trends of a synthesis, its snapshots, and their figures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import small_scale_cases
import torch
from expert_cases import experts
from scipy import stats

from pyddfast.analysis.dynamics import loss_dynamics, trend
from pyddfast.data import DistilledSet
from pyddfast.methods import DMConfig, Job, TMConfig, dm, snapshots, tm
from pyddfast.report.dynamics import dynamics_figure, start_epoch_figure
from pyddfast.report.grids import class_label, method_grid
from pyddfast.train.run import METRICS

SQUARES = small_scale_cases.squares()


def write(folder, rows):
    folder.mkdir(exist_ok=True)
    (folder / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_slope_of_a_line_with_and_without_noise():
    times = np.arange(1, 401.0)
    exact = trend(times, 3 - 0.002 * times)
    assert exact.slope == pytest.approx(-2.0)
    assert exact.ci == pytest.approx((-2.0, -2.0))
    assert exact.total == pytest.approx(-0.002 * 399)
    noise = np.random.default_rng(0).normal(0, 0.1, 400)
    noisy = trend(times, noise)
    assert noisy.slope == pytest.approx(1000 * stats.linregress(times, noise).slope)
    assert noisy.ci[0] < 0 < noisy.ci[1]


def test_interval_holds_where_neighbours_depend_on_each_other():
    """500 runs of an autocorrelated loss without trend, where the usual interval misses often."""
    gen = np.random.default_rng(1)
    times, level, losses = np.arange(600.0), np.zeros(500), np.empty((600, 500))
    for position in range(600):
        level = 0.8 * level + gen.normal(0, 1, 500)
        losses[position] = level
    covered = naive = 0
    for loss in losses.T:
        low, high = trend(times, loss).ci
        covered += low <= 0 <= high
        usual = stats.linregress(times, loss)
        naive += abs(usual.slope) <= 1.96 * usual.stderr
    assert naive < 0.7 * 500
    assert 0.92 * 500 <= covered <= 0.98 * 500  # the stated 95 %, by three standard errors


def test_points_that_are_independent_have_the_usual_interval():
    times = np.arange(12.0)
    values = np.random.default_rng(0).normal(0, 1, 12)
    usual = stats.linregress(times, values)
    half = 1000 * stats.t.ppf(0.975, 10) * usual.stderr
    found = trend(times, values, blocks=12)
    assert found.ci == pytest.approx((found.slope - half, found.slope + half))


def test_levels_of_starting_epochs_are_no_trend():
    """Later iterations start from later epochs, whose loss is higher whatever the images."""
    gen = np.random.default_rng(2)
    times = np.arange(300)
    starts = np.minimum(gen.integers(0, 2 + times // 30), 9)
    values = 0.1 * starts + gen.normal(0, 1e-3, 300)
    assert trend(times, values).ci[0] > 0
    within = trend(times, values, groups=starts)
    assert within.ci[0] < 0 < within.ci[1]
    dummies = np.eye(10)[starts]
    design = np.column_stack([times, dummies[:, dummies.any(0)]])
    assert within.slope == pytest.approx(1000 * np.linalg.lstsq(design, values)[0][0])


def test_a_runs_rows(tmp_path):
    rows = [{"iteration": i, "loss": 1.0 - 0.01 * i, "start_epoch": i % 2} for i in range(10)] + [
        {"iteration": 10, "loss": 50.0, "start_epoch": 0, "skipped": True},
        {"peak_memory_mib": 9.0},
    ]
    run = write(tmp_path, rows)
    found = loss_dynamics(run, accuracies={9: [0.5, 0.7], 0: [0.4, 0.6]})
    assert found.iterations.tolist() == list(range(10))
    assert found.losses[-1] == pytest.approx(0.91)
    assert found.skipped == 1
    assert found.loss.slope == pytest.approx(-10.0)
    assert list(found.accuracies) == [0, 9]
    assert found.accuracy.slope == pytest.approx(1000 * 0.1 / 9)
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.to_dict()["accuracies"] == {"0": [0.4, 0.6], "9": [0.5, 0.7]}
    chunks = [
        {"chunk": c, "step": s, "bn": c + s / 10, "cross_entropy": 1.0}
        for c in (0, 1)
        for s in (1, 2, 3)
    ]
    found = loss_dynamics(write(tmp_path / "sre2l", chunks))
    assert (found.column, found.losses.tolist()) == ("bn", pytest.approx([0.6, 0.7, 0.8]))
    assert found.accuracy is None


def test_snapshots_of_a_run(tmp_path):
    config = DMConfig(ipc=1, iterations=5, snapshot_every=2, lr_img=1.0, real_batch=3)
    made = dm(SQUARES, small_scale_cases.MODEL, config, job=Job(out=tmp_path, device="cpu"))
    found = snapshots(tmp_path, made)
    assert list(found) == [2, 4]
    for steps, one in found.items():
        shorter = DMConfig(ipc=1, iterations=steps, lr_img=1.0, real_batch=3)
        again = dm(SQUARES, small_scale_cases.MODEL, shorter, job=Job(device="cpu"))
        assert torch.equal(one.images, again.images)


def test_snapshots_of_trajectory_matching(tmp_path):
    config = TMConfig(
        ipc=1, iterations=2, snapshot_every=1, lr_init=0.03, lr_img=1.0, lr_lr=1e-3, syn_steps=2,
        expert_epochs=1, min_start_epoch=0, max_start_epoch=2,
    )  # fmt: skip
    made = tm(
        SQUARES, experts(tmp_path / "e"), config, model=small_scale_cases.MODEL,
        job=Job(out=tmp_path / "run", device="cpu"),
    )  # fmt: skip
    found = snapshots(tmp_path / "run", made)
    assert torch.equal(found[2].images, made.images)
    assert found[2].lr == pytest.approx(made.lr)
    assert found[1].soft_labels is None
    assert not torch.equal(found[1].images, made.images)


def test_figures():
    curves = {
        "random": {20: 0.9, 21: 0.95}, "dc": {20: 1.0, 21: 12.5}
    }  # fmt: skip
    figure = start_epoch_figure(curves)
    assert figure.spikes == [("dc", 21, 12.5)]
    axes = figure.axes[0]
    assert axes.get_ylim()[1] < 12.5
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert lines["dc"].get_ydata().tolist() == [1.0, 12.5]  # the plot is cut, the data are not
    assert [text.get_text() for text in axes.texts] == ["dc 12.5"]
    assert start_epoch_figure({"random": curves["random"]}).spikes == []
    assert start_epoch_figure(curves, limit=13).spikes == []


def test_dynamics_figure(tmp_path):
    rows = [{"step": 10 * i, "loss": 5.0 - i} for i in range(4)]
    found = loss_dynamics(write(tmp_path, rows), accuracies={0: [0.2, 0.4], 30: [0.5, 0.7]})
    figure = dynamics_figure(found)
    left, right = figure.axes
    assert left.get_lines()[0].get_ydata().tolist() == [5.0, 4.0, 3.0, 2.0]
    assert right.get_lines()[0].get_ydata().tolist() == pytest.approx([30.0, 60.0])
    assert "-100 in 1000 iterations" in left.get_title(loc="left")
    assert "accuracy: +1e+03 points" in left.get_title(loc="left")


def test_a_grid_has_a_row_a_method():
    large = DistilledSet(
        40 * torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 1, 8, 8),
        torch.tensor([0, 1, 1, 2, 1, 0]), 3, SQUARES.normalization, ("a", "b", "c"),
    )  # fmt: skip
    small = DistilledSet(
        large.images[:, :, :4, :4], large.labels, 3, SQUARES.normalization, ("a", "b", "c")
    )
    figure = method_grid({"random": large, "dm": small}, "b", columns=2)
    axes = figure.axes[0]
    pixels = np.asarray(axes.images[0].get_array())
    assert pixels.shape == (18, 18)  # two rows and columns of 8, and a gap of 2
    assert [int(pixels[r, c]) for r in (0, 17) for c in (0, 17)] == [40, 80, 40, 80]
    assert int(pixels[9, 9]) == 255
    assert [label.get_text() for label in axes.get_yticklabels()] == ["random", "dm"]
    assert axes.get_title() == "b"
    assert (class_label(large, 2), class_label(large, "2"), class_label(large, "c")) == (2, 2, 2)


def test_bad_input(tmp_path):
    with pytest.raises(FileNotFoundError, match=METRICS):
        loss_dynamics(tmp_path)
    run = write(tmp_path, [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.1}])
    with pytest.raises(ValueError, match=r"no acc by step; its columns: \['loss', 'step'\]"):
        loss_dynamics(run, column="acc")
    with pytest.raises(ValueError, match=r"accuracies must lie in \[0, 1\], got 80"):
        loss_dynamics(run, accuracies={1: [80]})
    one = write(tmp_path / "one", [{"step": 1, "loss": 0.1}])
    with pytest.raises(ValueError, match="1 rows with loss; a trend needs two"):
        loss_dynamics(one)
    with pytest.raises(ValueError, match="times must differ"):
        trend([1, 1], [0, 1])
    with pytest.raises(ValueError, match="snapshot_every must be a positive int, got 0"):
        DMConfig(snapshot_every=0)
    made = SQUARES.subset([0])
    with pytest.raises(FileNotFoundError, match="snapshot_every"):
        snapshots(tmp_path, made)
    with pytest.raises(ValueError, match="curves must hold at least one value"):
        start_epoch_figure({"dc": {}})
    two = DistilledSet(
        SQUARES.images[:2], SQUARES.labels[:2], 3, SQUARES.normalization, ("a", "b", "c")
    )
    with pytest.raises(ValueError, match="there is no class 'd'; classes are: a, b, c"):
        method_grid({"x": two}, "d")
    empty = next(c for c in range(3) if c not in two.labels.tolist())
    with pytest.raises(ValueError, match=f"x has no image of class {empty}"):
        method_grid({"x": two}, empty)
