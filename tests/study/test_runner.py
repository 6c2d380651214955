"""Jobs are done once, whoever does them and whatever is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pyddfast import coresets
from pyddfast.data import DistilledSet, load
from pyddfast.study import (
    Store,
    Workers,
    cost,
    plan,
    prepare,
    read_study,
    run_jobs,
    run_study,
    runner,
)
from pyddfast.study.steps import STEPS
from pyddfast.train import Epochs, evaluate, recipe, train_student


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_cell_is_what_train_student_gives(tiny, tmp_path):
    study = read_study(tiny(claims=[{"says": "same", "first": "Random", "second": "Random"}]))
    result = run_study(study, tmp_path / "out", show=False)
    made, store = prepare(study), Store(tmp_path / "out")
    (picked,) = made.sets.values()
    distilled = DistilledSet.load(store.folder(picked) / "set")
    test = load("fashion-mnist-mini", split="test")
    direct = train_student(
        distilled, "hl", ("mlp", {"width": 8}), test_set=test, budget=Epochs(2), seeds=(0, 1),
        evaluations=1, progress=False,
    )  # fmt: skip
    cell = result.measured.cells["Random", "HL IPC 2"]
    assert cell.accuracies == tuple(seed.last_accuracy for seed in direct.seeds)
    assert cell.test_count == len(test)
    assert cell.std == pytest.approx(direct.std, rel=1e-12)
    values = json.loads(result.results.read_text())
    assert values["cells"][0]["accuracies"] == list(cell.accuracies)
    assert values["complete"] is True
    page = result.report.read_text()
    assert f"{100 * cell.mean:.1f} ± {100 * cell.std:.1f}" in page
    assert "pyddfast study tiny.yaml --scale published" in page
    assert "The paper's study" not in page


def test_students_take_batches_of_the_size_that_a_budget_names(tiny, tmp_path):
    study = read_study(tiny(budgets=[{"epochs": 2, "batch_size": 5}]))
    result = run_study(study, tmp_path / "out", show=False)
    (picked,) = prepare(study).sets.values()
    distilled = DistilledSet.load(Store(tmp_path / "out").folder(picked) / "set")
    direct = train_student(
        distilled, "hl", ("mlp", {"width": 8}), recipe=recipe("hl", "small", batch_size=5),
        test_set=load("fashion-mnist-mini", split="test"), budget=Epochs(2), seeds=(0, 1),
        evaluations=1, progress=False,
    )  # fmt: skip
    cell = result.measured.cells["Random", "HL IPC 2"]
    assert cell.accuracies == tuple(seed.last_accuracy for seed in direct.seeds)
    usual = plan(read_study(tiny())).jobs.values()
    assert not any("batch_size" in job.settings for job in usual)


def test_done_jobs_are_not_done_again(tiny, tmp_path, monkeypatch):
    calls: list[int] = []
    student = STEPS["student"]
    monkeypatch.setitem(STEPS, "student", lambda step: calls.append(1) or student(step))
    first = read_study(tiny())
    run_study(first, tmp_path / "out", show=False)
    assert len(calls) == 2
    run_study(first, tmp_path / "out", show=False)
    assert len(calls) == 2
    # A study that shares jobs with it does the others alone.
    run_study(replace(first, name="other", seeds=3), tmp_path / "out", show=False)
    assert len(calls) == 3


def test_what_decides_a_result_is_in_its_key(tiny):
    def keys(**changes):
        return set(plan(read_study(tiny(**changes)), {"train": "a"}).jobs)

    base = keys()
    assert keys() == base
    assert not base & keys(seed=1)
    assert not base & keys(data={"name": "fashion-mnist-mini", "image_size": 14})
    assert not base & set(plan(read_study(tiny()), {"train": "b"}).jobs)
    # Where the data are and what things are called decides nothing.
    assert keys(data={"name": "fashion-mnist-mini", "root": "elsewhere"}) == base
    assert keys(sets=[{"method": "random", "label": "Chance"}], title="x") == base
    # More students: the same ones and more.
    assert base < keys(seeds=3)


def test_a_failure_is_recorded_and_the_rest_goes_on(tiny, tmp_path):
    study = read_study(tiny(sets=["random", {"method": "folder", "options": {"path": "gone"}}]))
    result = run_study(study, tmp_path / "out", show=False)
    assert result.measured.cells.keys() == {("Random", "HL IPC 2")}
    assert result.measured.missing == {
        ("Set of a folder", "HL IPC 2"): "left out: a job that it needs failed"
    }
    (failure,) = result.measured.failures
    assert "FileNotFoundError" in failure["error"]
    assert "Traceback" in failure["traceback"]
    assert "FileNotFoundError" in result.report.read_text()
    # The next runner tries again.
    again = run_study(study, tmp_path / "out", show=False)
    assert len(again.measured.failures) == 1
    store = Store(tmp_path / "out")
    (failed,) = [job for job in prepare(study).jobs.values() if store.failed(job)]
    assert failed.shown == "set Set of a folder, IPC 2"


@pytest.mark.parametrize("content", ["{", "[]", "null", '{"seconds": 1}'])
def test_a_damaged_note_of_a_job_does_it_again(tiny, tmp_path, content):
    study = read_study(tiny(seeds=1))
    first = run_study(study, tmp_path / "out", show=False)
    store = Store(tmp_path / "out")
    student = next(job for job in prepare(study).jobs.values() if job.kind == "student")
    folder = store.folder(student)
    (folder / "done.json").write_text(content)
    (folder / "failed.json").write_text(content)
    (folder / "job.json").write_text(content)
    with pytest.warns(UserWarning, match="done.json.*the job is done again"):
        again = run_study(study, tmp_path / "out", show=False)
    assert again.measured.cells == first.measured.cells
    assert not again.measured.missing
    assert store.done(student) is not None


def test_another_set_in_the_same_folder_is_another_job(tiny, tmp_path):
    study = read_study(
        tiny(sets=[{"method": "folder", "options": {"path": str(tmp_path / "own{ipc}")}}], seeds=1)
    )
    data, measured = load("fashion-mnist-mini"), []
    for seed in (0, 1):
        picked = coresets.select(
            coresets.random_scores(len(data), seed=seed), data.labels, ipc=2, method="random"
        ).to_distilled(data)
        shutil.rmtree(tmp_path / "own2", ignore_errors=True)
        picked.save(tmp_path / "own2")
        made, store = prepare(study), Store(tmp_path / "out")
        run_jobs(made, store, show=False)
        (job,) = made.sets.values()
        measured.append(DistilledSet.load(store.folder(job) / "set"))
        assert torch.equal(measured[-1].images, picked.images)
    assert not torch.equal(measured[0].images, measured[1].images)
    # A set of another size is not taken for one of this size.
    picked.save(tmp_path / "own1")
    result = run_study(replace(study, ipc=(1, 2)), tmp_path / "out", show=False)
    (failure,) = result.measured.failures
    assert failure["error"].endswith(
        "own{ipc} has 20 images of 10 classes; IPC 1 of these data is 10 of 10"
    )


def test_every_published_value_is_printed(tiny, tmp_path):
    study = read_study(tiny(sets=[{"method": "random", "label": "RDED"}], ipc=[50], seeds=1,
                            published="table-6"))  # fmt: skip
    page = run_study(study, tmp_path / "out", show=False).report.read_text()
    # Of this study's row, and of one that it does not have.
    assert "published 38.49" in page
    assert "D4M" in page
    assert "21.56" in page


SLOW = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from pyddfast.study import Store, prepare, read_study, run_jobs
from pyddfast.study.steps import STEPS
file, out, log, pause = sys.argv[1:]
student = STEPS["student"]
def slow(step):
    with open(log, "a") as opened:
        opened.write(step.folder.name + "\\n")
    time.sleep(float(pause))
    return student(step)
STEPS["student"] = slow
"""
RUN = SLOW + "run_jobs(prepare(read_study(file)), Store(out), show=False)"


def _start(tmp_path, file, pause):
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(file), str(tmp_path / "out"), str(tmp_path / "log"), pause]
    )


def test_two_runners_never_do_the_same_job_twice(tiny, tmp_path):
    file = tiny(seeds=4)
    runners = [_start(tmp_path, file, "0.2") for _ in range(2)]
    assert [runner.wait(120) for runner in runners] == [0, 0]
    begun = (tmp_path / "log").read_text().split()
    assert len(begun) == len(set(begun)) == 4
    made, store = prepare(read_study(file)), Store(tmp_path / "out")
    assert all(store.done(job) for job in made.jobs.values())


def test_a_killed_runner_loses_nothing_and_counts_nothing_twice(tiny, tmp_path):
    file = tiny()
    killed = _start(tmp_path, file, "60")
    _wait(tmp_path / "log")
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    made, store = prepare(read_study(file)), Store(tmp_path / "out")
    assert [job.kind for job in made.jobs.values() if store.done(job)] == ["set"]
    result = run_study(read_study(file), tmp_path / "out", show=False)
    whole = run_study(read_study(file), tmp_path / "whole", show=False)
    assert result.measured.cells == whole.measured.cells


def test_workers_of_a_killed_runner_begin_nothing_more(tiny, tmp_path):
    code = SLOW + (
        "from pyddfast.study.runner import _work\n"
        "jobs = list(prepare(read_study(file)).jobs.values())\n"
        "_work(jobs, Store(out), 'run', {}, 1, None, False, 1)\n"
        "open(log + '.ended', 'w')\n"
    )
    words = [sys.executable, "-c", code, str(tiny(seeds=4)), str(tmp_path / "out")]
    # The shell stands for the runner.
    runner = subprocess.Popen(["sh", "-c", '"$@"; :', "sh", *words, str(tmp_path / "log"), "2"])
    _wait(tmp_path / "log")
    os.kill(runner.pid, signal.SIGKILL)
    runner.wait()
    _wait(tmp_path / "log.ended")
    assert len((tmp_path / "log").read_text().split()) == 1


def _wait(file):
    deadline = time.monotonic() + 60
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.mark.parametrize(
    "workers",
    [Workers(2), Workers(1, "slurm", {"timeout_min": 5}, executor="local")],
    ids=["joblib", "submitit"],
)
def test_workers_of_other_processes_give_the_same(tiny, tmp_path, workers):
    study = read_study(tiny())
    here = run_study(study, tmp_path / "here", show=False)
    there = run_study(study, tmp_path / "there", workers=workers, show=False)
    assert there.measured.cells == here.measured.cells


class Lost:
    """submitit's executor on a cluster whose jobs run out of time."""

    def __init__(self, folder, cluster):
        assert cluster == "slurm"

    def update_parameters(self, **given):
        assert given == {"timeout_min": 1}

    def batch(self):
        return nullcontext()

    def submit(self, *call):
        return SimpleNamespace(exception=lambda: RuntimeError("timed out"))


def test_what_lost_workers_leave_is_told_and_left_to_the_next_call(
    tiny, tmp_path, monkeypatch, capsys
):
    from pyddfast.cli import main

    file, out = str(tiny()), str(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(runner, "require", lambda *name: SimpleNamespace(AutoExecutor=Lost))
        words = ["study", file, "--out", out, "--jobs", "2", "--cluster"]
        assert main([*words, "--slurm", "timeout_min=1"]) == 2
    told = capsys.readouterr().err
    assert "2 of 2 workers were lost: timed out" in told
    assert "cells not done: 1; the same command goes on" in told
    assert "Random, HL IPC 2: not done" in (tmp_path / "out/tiny-published/report.html").read_text()
    assert main(["study", file, "--out", out]) == 0


def test_progress_tells_the_remaining_time(tiny, tmp_path, capsys):
    study = read_study(tiny())
    made, store = prepare(study), Store(tmp_path / "out")
    run_jobs(made, store, seconds=cost(study, made))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("[1/3] set Random, IPC 2: ")
    assert lines[-1].startswith("[3/3] student mlp of Random, IPC 2, hl, seed 1: ")
    assert lines[-1].endswith("about 0 s left")


def test_cost_counts_the_images(tiny):
    from pyddfast.study.cost import images_trained
    from pyddfast.study.steps import images

    study = read_study(
        tiny(
            sets=["random", "k-centers"],
            regimes=["hl", "sl-kd"],
            teachers=[{"network": {"model": "mlp"}, "epochs": 3}],
            scoring={"epochs": 2},
        )
    )
    train, test = (images("fashion-mnist-mini", None, None, s) for s in ("train", "test"))
    by_kind = {
        (job.kind, job.settings.get("regime") or job.settings.get("epochs")): images_trained(
            job, study, train, test
        )
        for job in plan(study).jobs.values()
    }
    assert by_kind["teacher", 3] == 3 * 6000
    assert by_kind["teacher", 2] == 2 * 6000
    assert by_kind["embedding", None] == 2000
    # 2 epochs of 20 images, and 2000 test images twice; a pass forward is a third.
    assert by_kind["student", "hl"] == pytest.approx(40 + 4000 / 3)
    assert by_kind["student", "sl-kd"] == pytest.approx(40 + 40 / 3 + 4000 / 3)


def test_a_students_images_are_kept_one_by_one(tiny, tmp_path):
    from pyddfast.data.stored import read_tensors
    from pyddfast.models import create
    from pyddfast.study.steps import unpack_right

    study = read_study(tiny(seeds=1))
    made, store = prepare(study), Store(tmp_path / "out")
    run_jobs(made, store, show=False)
    (job,) = [job for job in made.jobs.values() if job.kind == "student"]
    found = store.done(job)
    model = create("mlp", 10, 1, 28, width=8)
    model.load_state_dict(read_tensors(store.folder(job) / "work/seed0.safetensors")[0])
    test = load("fashion-mnist-mini", split="test")
    right = unpack_right(found["result"])
    assert right.shape == (2000,)
    assert float(right.double().mean()) == found["result"]["accuracy"] == evaluate(model, test)


def test_the_command_runs_lists_and_estimates(tiny, tmp_path, capsys):
    from pyddfast.cli import main

    file, out = str(tiny()), str(tmp_path / "out")
    assert main(["study", "list"]) == 0
    listed = capsys.readouterr().out
    # Whole names and titles, whatever the terminal's width.
    assert "scaling-law " in listed
    assert "Loss and accuracy along a DATM synthesis, ConvNet-D4, Tiny-ImageNet" in listed
    assert main(["study", file, "--out", out, "--dry-run"]) == 0
    assert "Cost of tiny, published" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert main(["study", file, "--out", out]) == 0
    assert f"report: {out}/tiny-published/report.html" in capsys.readouterr().out
    assert main(["study", "tabel-3"]) == 2
    assert "nearest are table-3" in capsys.readouterr().err
    assert main(["study", "table-3"]) == 2
    told = capsys.readouterr().err
    assert "root is needed for 'cifar100'" in told
    assert "give --root (--scale smoke needs no data)" in told
    assert main(["study", file, "--slurm", "timeout_min=5"]) == 2
    assert "it needs --cluster" in capsys.readouterr().err
    assert main(["study", file, "--out", file]) == 2
    assert "tiny.yaml is not a folder; give one for the jobs" in capsys.readouterr().err
    assert main(["study", file, "--jobs", "0"]) == 2
    assert "jobs must be at least 1, got 0" in capsys.readouterr().err


def test_time_in_the_unit_that_says_it_shortest():
    from pyddfast.study.runner import time_text

    shown = [time_text(s) for s in (89, 120, 5399, 7200, 86400, 5 * 86400)]
    assert shown == ["89 s", "2 min", "90 min", "2 h", "24 h", "5 days"]
