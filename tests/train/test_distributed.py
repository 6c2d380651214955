"""Two processes over gloo train what one trains; a killed job of two ends with the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from train_cases import blobs

from pyddfast.coresets import TrainingDynamics
from pyddfast.train import Epochs, Execution, Plan, Recording, recipe
from pyddfast.train.distributed import Ranks, divide
from pyddfast.train.labels import HardLabels
from pyddfast.train.loop import Trainer, check_batches
from pyddfast.train.record import Ticks
from tests.processes import run_python

RUNNER = Path(__file__).with_name("distributed_runner.py")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    root = tmp_path_factory.mktemp("jobs")
    done = run_python(str(RUNNER), str(root), timeout=400)
    *spoken, seen = done.stdout.splitlines()
    # Of the command in one process and in two: one process speaks.
    assert ["12 scores of 18 images" in line for line in spoken] == [True, False] * 2
    return root, json.loads(seen), done.stderr


def weights(folder):
    return {seed: load_file(folder / f"seed{seed}.safetensors") for seed in (0, 1)}


@pytest.mark.parametrize("job", ["plain_kd", "synchronised", "accumulated"])
def test_two_processes_train_what_one_trains(jobs, job):
    root, seen, errors = jobs
    assert (seen[f"{job}-1"], seen[f"{job}-2"]) == ([0], [0, 0]), errors
    one, two = (weights(root / f"{job}-{world}") for world in (1, 2))
    for seed in (0, 1):
        for name, value in one[seed].items():
            torch.testing.assert_close(two[seed][name], value, rtol=1e-3, atol=2e-5, msg=name)
    results = [json.loads((root / f"{job}-{w}" / "result.json").read_text()) for w in (1, 2)]
    for a, b in zip(results[0]["seeds"], results[1]["seeds"], strict=True):
        for x, y in zip(a["history"], b["history"], strict=True):
            assert y["train_loss"] == pytest.approx(x["train_loss"], rel=1e-4)
            assert (y["step"], y["samples"], y["lr"]) == (x["step"], x["samples"], x["lr"])
            # Of 60 test images; rounding may turn one that lies between two classes.
            assert abs(y["test_accuracy"] - x["test_accuracy"]) <= 1 / 60 + 1e-9
    assert [r["config"]["processes"] for r in results] == [1, 2]
    rows = (root / f"{job}-2" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2 * 2  # one process writes


def test_a_killed_job_of_two_processes_ends_with_the_same_bytes(jobs):
    root, seen, errors = jobs
    assert seen["by_rank-2"] == [0, 0], errors
    assert seen["kills"]["last"] == [0, 0], errors
    assert seen["kills"]["killed"] == [[-9, -9]] * 4
    for seed in (0, 1):
        name = f"seed{seed}.safetensors"
        assert (root / "kills" / name).read_bytes() == (root / "by_rank-2" / name).read_bytes()
    rows = [(root / run / "metrics.jsonl").read_text() for run in ("kills", "by_rank-2")]
    assert rows[0] == rows[1]
    # Statistics of each process on its own are another training than those of the batch.
    own, whole = (weights(root / f"by_rank-{world}")[0]["0.weight"] for world in (2, 1))
    assert (own - whole).abs().max() > 1e-4


def test_two_processes_store_the_bytes_of_one(jobs):
    root, seen, errors = jobs
    assert (seen["relabel-1"], seen["relabel-2"]) == ([0], [0, 0]), errors
    assert (seen["relabel-killed"], seen["relabel-resumed"]) == (-9, [0, 0]), errors
    one, two, killed = (root / f"relabel-{name}" / "labels" for name in ("1", "2", "kills"))
    files = sorted(file.name for file in one.iterdir())
    assert "logits.npy" in files
    for other in (two, killed):
        assert sorted(file.name for file in other.iterdir()) == files
        for file in files:
            assert (other / file).read_bytes() == (one / file).read_bytes(), file
    # Rows of every batch, the shorter ones and those of the second process too.
    logits = np.load(one / "logits.npy")
    assert logits.shape == (3, 18, 3)
    assert (np.abs(logits).max(axis=2) > 0).all()


@pytest.mark.parametrize("job", ["recorded_train", "recorded_eval"])
def test_two_processes_record_what_one_records(jobs, job):
    root, seen, errors = jobs
    assert (seen[f"{job}-1"], seen[f"{job}-2"]) == ([0], [0, 0]), errors
    one, two = (load_file(root / f"{job}-{world}" / "recorder.safetensors") for world in (1, 2))
    # What the recorders agreed on is all of it.
    assert torch.equal(two.pop("agreed"), one["seen"])
    assert one.keys() == two.keys()
    for name, value in one.items():
        if value.dtype.is_floating_point:
            torch.testing.assert_close(
                two[name], value, rtol=1e-3, atol=1e-4, equal_nan=True, msg=name
            )
        else:
            assert torch.equal(two[name], value), name
    ticks = 5 if job == "recorded_eval" else 4  # of training, two epochs each
    assert one["seen"].tolist() == [ticks] * 18
    assert 0 < int(one["correct"].sum()) < 18 * ticks
    recorders = [
        TrainingDynamics.load(root / f"{job}-{w}" / "recorder.safetensors") for w in (1, 2)
    ]
    assert [r.tick for r in recorders] == [5 if job == "recorded_eval" else 2] * 2
    for name in ("dual", "el2n_sl", "sharp", "grand"):
        a, b = (r.values(name) for r in recorders)
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4)
    records = [json.loads((root / f"{job}-{w}" / "teacher.json").read_text()) for w in (1, 2)]
    assert [r["accuracy"] for r in records] == pytest.approx([records[0]["accuracy"]] * 2)


def test_two_processes_score_what_one_scores(jobs):
    root, seen, errors = jobs
    assert (seen["scored-1"], seen["scored-2"]) == ([0], [0, 0]), errors
    one, two = (load_file(root / f"scored-{world}" / "scores.safetensors") for world in (1, 2))
    assert {"forgetting", "aum", "dyn_unc", "dual", "cad", "grand"} <= one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_a_killed_recording_of_two_processes_ends_with_the_same_bytes(jobs):
    root, seen, errors = jobs
    assert seen["recorded_kills"]["last"] == [0, 0], errors
    assert seen["recorded_kills"]["killed"] == [[-9, -9]] * 4
    for name in ("recorder.safetensors", "teacher.safetensors"):
        whole = (root / "recorded_train-2" / name).read_bytes()
        assert (root / "recorded_kills" / name).read_bytes() == whole


def test_a_recorder_that_several_processes_cannot_share_is_refused():
    class Alone:
        def update(self, logits, targets, indices): ...

        def end_tick(self): ...

    plan = Plan(18, 7, False, Epochs(2))
    given = (Recording(Alone()), plan, torch.zeros(18), list, lambda ids: {})
    Ticks(*given)
    with pytest.raises(ValueError, match=r"Alone has no all_reduce, .* where 2 processes train"):
        Ticks(*given, Ranks(1, 2))


def test_synchronised_batch_norm_of_several_passes_keeps_the_processes_in_step(jobs):
    root, seen, errors = jobs
    # The shares of 3 and 4 images of two passes each: 1 + 2 and 2 + 2; of 2 images: 1 + 1.
    assert seen["in_step-2"] == [0, 0], errors
    whole, parts = (weights(root / run)[0] for run in ("synchronised-2", "in_step-2"))
    # Half the images a pass: near the statistics of the batch, and not they.
    error = (whole["1.running_mean"] - parts["1.running_mean"]).norm()
    assert 0 < error < 0.5 * whole["1.running_mean"].norm()


# 7 images: 3 and 4; 3 processes of 2 images have none too few.
def test_parts_are_consecutive_and_nearly_equal():
    assert divide(7, 2) == [slice(0, 3), slice(3, 7)]
    assert divide(2, 3) == [slice(0, 0), slice(0, 1), slice(1, 2)]
    for count in range(12):
        for parts in range(1, 6):
            sizes = [part.stop - part.start for part in divide(count, parts)]
            assert sum(sizes) == count
            assert max(sizes) - min(sizes) <= 1


def test_a_batch_with_too_few_images_for_all_processes_is_refused():
    plain, normed = nn.Linear(1, 1), nn.BatchNorm1d(1)
    plan = Plan(18, 5, False, Epochs(1))  # the last batch has 3
    check_batches(plain, plan, 3)
    check_batches(normed, plan, 1)
    with pytest.raises(ValueError, match="3 images, and 4 processes need 1 each"):
        check_batches(plain, plan, 4)
    check_batches(normed, plan, 2)  # synchronised, over all three
    with pytest.raises(ValueError, match="3 images, and 2 processes need 2 each"):
        check_batches(normed, plan, 2, Execution(batch_norm="rank"))


def test_the_loss_of_another_number_of_processes_is_kept():
    data, r = blobs(), recipe("hl", "small", batch_size=9)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    trainer = Trainer(
        model, r, Plan(18, 9, False, Epochs(1)), lambda *given: torch.zeros(9, 1, 8, 8),
        HardLabels(data.labels), seed=0,
    )  # fmt: skip
    trainer.run_step()
    tensors, counters = trainer.state()
    trainer.restore({**tensors, "loss_sum": torch.tensor([0.25, 0.5])}, counters)
    assert trainer.read_loss() == 0.75
    assert Ranks().gather(torch.tensor(3)).tolist() == [3]
