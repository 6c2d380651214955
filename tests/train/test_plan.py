"""Plans against a plain enumeration of epochs and batches."""

from __future__ import annotations

import pytest

from pyddfast.train import Epochs, Plan, Samples, Steps


def enumerated(count, batch, drop_last, images):
    """Batch bounds (epoch, start, stop) of at least ``images`` images, epoch by epoch."""
    out, seen, epoch = [], 0, 0
    while seen < images:
        end = count - count % batch if drop_last else count
        end = min(end, images - seen)
        bounds = [(s, min(s + batch, end)) for s in range(0, end, batch)]
        if len(bounds) > 1 and bounds[-1][1] - bounds[-1][0] == 1:
            bounds[-2:] = [(bounds[-2][0], bounds[-1][1])]
        out += [(epoch, *b) for b in bounds]
        seen += end
        epoch += 1
    return out


# Whole batches; a partial last one; a last one of one image; one batch larger than the set.
@pytest.mark.parametrize(("count", "batch"), [(12, 4), (11, 4), (13, 4), (5, 8), (1, 1)])
@pytest.mark.parametrize("epochs", [1, 3])
def test_epochs(count, batch, epochs):
    plan = Plan(count, batch, False, Epochs(epochs))
    expected = enumerated(count, batch, False, epochs * count)
    assert plan.total_steps == len(expected)
    assert [plan.locate(s) for s in range(plan.total_steps)] == expected
    assert plan.epochs == epochs
    assert plan.samples(plan.total_steps) == epochs * count
    assert plan.smallest_batch == min(stop - start for _, start, stop in expected)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("images", [1, 3, 4, 9, 10, 12, 13, 25, 40])
def test_samples_are_seen_exactly(images, drop_last):
    plan = Plan(13, 4, drop_last, Samples(images))
    expected = enumerated(13, 4, drop_last, images)
    assert [plan.locate(s) for s in range(plan.total_steps)] == expected
    assert sum(stop - start for _, start, stop in expected) == images
    assert plan.samples(plan.total_steps) == images
    assert plan.epochs == images / (12 if drop_last else 13)


def test_steps():
    plan = Plan(11, 4, False, Steps(7))
    assert plan.total_steps == 7
    assert [plan.locate(s) for s in range(7)] == enumerated(11, 4, False, 33)[:7]
    assert plan.samples(7) == 26
    assert plan.samples(0) == 0


def test_drop_last():
    plan = Plan(11, 4, True, Epochs(2))
    assert [plan.locate(s) for s in range(4)] == [(0, 0, 4), (0, 4, 8), (1, 0, 4), (1, 4, 8)]


def test_evaluations_are_at_ends_of_epochs_and_after_the_last_step():
    plan = Plan(10, 4, False, Epochs(20))
    assert plan.evaluation_steps(4) == [15, 30, 45, 60]
    assert plan.evaluation_steps(1) == [60]
    # More evaluations than epochs: one an epoch.
    assert Plan(10, 4, False, Epochs(2)).evaluation_steps(10) == [3, 6]
    # A budget that ends inside an epoch.
    assert Plan(10, 4, False, Steps(7)).evaluation_steps(2) == [6, 7]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Epochs(0), ValueError, "Epochs must be positive"),
        (lambda: Steps(1.5), TypeError, "Steps takes an int"),
        (lambda: Samples(True), TypeError, "Samples takes an int"),
        (lambda: Plan(0, 4, False, Epochs(1)), ValueError, "no images"),
        (lambda: Plan(3, 4, True, Epochs(1)), ValueError, "drop_last leaves nothing"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
