"""The synthesis engine: kills, ranks, damaged and foreign files, precision, progress."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pyddfast import models
from pyddfast.data import atomic, normalize
from pyddfast.data.stored import read_tensors
from pyddfast.methods import EDCConfig, Job, SRe2LConfig, edc, sre2l
from pyddfast.methods.chunks import Chunk, plan_chunks
from tests.methods.synthesis_cases import CLASSES, SIZE, dataset, teacher
from tests.processes import TORCHRUN, run_python

RUNNER = Path(__file__).with_name("kill_runner.py")
CONFIG = SRe2LConfig(ipc=2, iterations=8, batch_size=3, jitter=(0, 2), crop=True, seed=2)


pytestmark = pytest.mark.usefixtures("one_thread")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run by name, but config.json and what a kill left of an unfinished set."""
    names = [str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()]
    wanted = [n for n in names if n != "config.json" and not n.startswith(".set.")]
    return {name: (folder / name).read_bytes() for name in wanted}


@pytest.mark.parametrize(
    ("method", "kills"),
    # Twenty moments for the engine; fewer for what this adds: statistics of the data, averages.
    [("sre2l", 20), ("edc", 6)],
)
def test_kills_change_no_byte_and_no_finished_chunk(
    method: str, kills: int, tmp_path: Path
) -> None:
    seen = json.loads(run_python(str(RUNNER), "kill", method, str(tmp_path), str(kills)).stdout)
    assert seen["kills"] == kills
    assert seen["torn"] == 1  # one of them left a half-written temporary file
    assert seen["rewritten"] == []
    assert seen["chunks_kept"] > 0
    assert set(seen["statuses"]) == {0}
    whole = contents(tmp_path / "whole")
    statistics = [] if method == "sre2l" else [f"statistics/0{t}.safetensors" for t in (0, 1)]
    assert sorted(whole) == [
        *(f"chunks/{index:06d}.safetensors" for index in range(4)),
        "metrics.jsonl",
        "set/set.json",
        "set/set.safetensors",
        *statistics,
    ]
    for folder in seen["folders"]:
        assert contents(Path(folder)) == whole


def test_ranks_make_the_bytes_of_one_process(tmp_path: Path) -> None:
    # EDC: the processes divide the teachers' passes over the data, too.
    run_python(str(RUNNER), "job", "edc", str(tmp_path / "one"))
    run_python(*TORCHRUN, str(RUNNER), "job", "edc", str(tmp_path / "two"))
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_chunks_take_all_classes_before_the_next_image_of_each() -> None:
    assert plan_chunks((7, 3, 5), 2, 2) == [
        Chunk(0, (7, 3), (0, 0)),
        Chunk(1, (5,), (0,)),
        Chunk(2, (7, 3), (1, 1)),
        Chunk(3, (5,), (1,)),
    ]
    assert plan_chunks((7, 3, 5), 2, 4, "class") == [
        Chunk(0, (7, 7, 3, 3), (0, 1, 0, 1)),
        Chunk(1, (5, 5), (0, 1)),
    ]


def test_a_stopped_run_continues_and_a_full_disk_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = teacher()
    whole = sre2l(dataset(), network, CONFIG)
    real, count = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal count
        count += 1
        # 1, 2: config.json and its folder; then a chunk's row, file and folder, three each.
        if count > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    job = Job(out=tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            sre2l(dataset(), network, CONFIG, job=job)
    kept = contents(tmp_path / "run")
    assert [name for name in kept if name.startswith("chunks/")] == ["chunks/000000.safetensors"]
    made = sre2l(dataset(), network, CONFIG, job=job)
    assert torch.equal(made.images, whole.images)
    assert contents(tmp_path / "run").items() >= {
        (name, content) for name, content in kept.items() if name.startswith("chunks/")
    }
    # A finished run is only read.
    calls: list[tuple[int, int]] = []
    silent = _Silent(network)
    again = sre2l(
        dataset(), silent, CONFIG, job=replace(job, on_progress=lambda *x: calls.append(x))
    )
    assert torch.equal(again.images, whole.images)
    assert calls == [(8, 32), (16, 32), (24, 32), (32, 32)]
    assert silent.batches == [1]  # the check of its classes


class _Silent(nn.Module):
    """Counts what goes through a network; its weights have the network's names."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.batches: list[int] = []
        for name, module in network.named_children():
            self.add_module(name, module)
        self.forwarded = network.forward

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        out: Tensor = self.forwarded(x)
        return out


def test_files_of_another_job_are_refused(tmp_path: Path) -> None:
    network = teacher()
    out = tmp_path / "run"
    sre2l(dataset(), network, CONFIG, job=Job(out=out))
    with pytest.raises(ValueError, match="seed was 2, now 3"):
        sre2l(dataset(), network, replace(CONFIG, seed=3), job=Job(out=out))
    with pytest.raises(ValueError, match="teachers was"):
        sre2l(dataset(), teacher(1), CONFIG, job=Job(out=out))
    with pytest.raises(FileExistsError, match="holds a run"):
        sre2l(dataset(), network, CONFIG, job=Job(out=out, resume=False))
    other = tmp_path / "other"
    sre2l(dataset(), network, replace(CONFIG, seed=3), job=Job(out=other))
    name = "chunks/000001.safetensors"
    kept = (out / name).read_bytes()
    (out / name).write_bytes((other / name).read_bytes())
    with pytest.raises(ValueError, match=r"000001.safetensors belongs to a job with another"):
        sre2l(dataset(), network, CONFIG, job=Job(out=out))
    # The classes of the first chunk, too, are 0, 1 and 2, but of their first images.
    (out / name).write_bytes(kept)
    second = out / "chunks/000002.safetensors"
    second.write_bytes((out / "chunks/000000.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"000002.safetensors was written as chunks/000000"):
        sre2l(dataset(), network, CONFIG, job=Job(out=out))
    (out / name).write_bytes((other / name).read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"000001.safetensors is damaged"):
        sre2l(dataset(), network, CONFIG, job=Job(out=out))


def test_exchanged_statistics_are_refused(tmp_path: Path) -> None:
    config = EDCConfig(ipc=1, iterations=1, jitter=(0, 1))
    networks, out = [teacher(0), teacher(1)], tmp_path / "run"
    edc(dataset(), networks, config, job=Job(out=out))
    first, second = (out / f"statistics/0{turn}.safetensors" for turn in (0, 1))
    second.write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match=r"01\.safetensors was written as statistics/00"):
        edc(dataset(), networks, config, job=Job(out=out))


def test_first_images_of_other_data_are_refused(tmp_path: Path) -> None:
    config, job = replace(CONFIG, init="data"), Job(out=tmp_path / "run")
    made = sre2l(dataset(), teacher(), config, job=job)
    assert torch.equal(sre2l(dataset(), teacher(), config, job=job).images, made.images)
    other = dataset()
    other.images[0, 0, 0, 0] ^= 1
    with pytest.raises(ValueError, match=r"source\.sha256 was"):
        sre2l(other, teacher(), config, job=job)


def test_metrics_tell_the_losses_and_what_the_teacher_sees(tmp_path: Path) -> None:
    network = teacher()
    config = replace(CONFIG, ipc=1, iterations=230, batch_size=5, crop=False, bn_weight=0.0)
    made = sre2l(dataset(), network, config, job=Job(out=tmp_path / "run"))
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [100, 200, 230]
    assert rows[-1]["cross_entropy"] < 1.0  # log 5 = 1.6 without a clue
    # The cosine at step 229 of 230.
    rate = 0.5 * 0.25 * (1 + torch.tensor(torch.pi * 229 / 230, dtype=torch.float64).cos())
    assert rows[-1]["lr"] == pytest.approx(float(rate), rel=1e-4)
    mean = torch.tensor(made.normalization.mean)[:, None, None]
    std = torch.tensor(made.normalization.std)[:, None, None]
    logits = network((made.images / 255 - mean) / std)
    accuracy = (logits.argmax(1) == made.labels).double().mean().item()
    assert rows[-1]["teacher_accuracy"] == made.meta["teacher_accuracy"] == accuracy
    assert accuracy > 0.5  # chance is 0.2


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near_and_resumes(precision: str, tmp_path: Path) -> None:
    network = teacher()
    config = replace(CONFIG, precision=precision, iterations=30)  # type: ignore[arg-type]
    made = sre2l(dataset(), network, config)
    exact = sre2l(dataset(), network, replace(config, precision="fp32"))
    assert not torch.equal(made.images, exact.images)
    # Rounding moves single pixels far under Adam's sign-like steps, but not the images.
    a, b = made.images.double().flatten(1), exact.images.double().flatten(1)
    assert float(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1]) > 0.9

    def stop(done: int, total: int) -> None:
        if done == 47:
            raise KeyboardInterrupt

    job = Job(out=tmp_path / "run", checkpoint_seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        sre2l(dataset(), network, config, job=replace(job, on_progress=stop))
    assert torch.equal(sre2l(dataset(), network, config, job=job).images, made.images)


def test_a_scale_that_has_fallen_is_resumed(tmp_path: Path) -> None:
    network = teacher()
    # So large a loss overflows at the scale that fp16 starts with; at step 8 it is down to 512.
    config = replace(CONFIG, ipc=1, batch_size=5, iterations=12, precision="fp16", bn_weight=1000.0)
    whole = sre2l(dataset(), network, config)

    def stop(done: int, total: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    job = Job(out=tmp_path / "run", checkpoint_seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        sre2l(dataset(), network, config, job=replace(job, on_progress=stop))
    _, state = read_tensors(tmp_path / "run/chunks/000000.part.safetensors")
    assert state["scaler"]["scale"] < 2.0**16
    assert torch.equal(sre2l(dataset(), network, config, job=job).images, whole.images)


def test_each_image_counts_once_in_the_teachers_accuracy(tmp_path: Path) -> None:
    network = teacher()
    config = replace(CONFIG, ipc=1, iterations=1)  # chunks of three and of two images
    made = sre2l(dataset(), network, config, job=Job(out=tmp_path / "run"))
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    first, second = (row["teacher_accuracy"] for row in rows)
    assert first != second
    assert made.meta["teacher_accuracy"] == pytest.approx((3 * first + 2 * second) / 5)
    logits = network(normalize(made.images, made.normalization))
    accuracy = (logits.argmax(1) == made.labels).double().mean().item()
    assert made.meta["teacher_accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize("change", [{"channels_last": True}, {"bn_mode": "fused"}])
def test_faster_ways_give_the_same_images_but_for_rounding(change: dict[str, object]) -> None:
    plain = sre2l(dataset(), teacher(), CONFIG)
    fast = sre2l(dataset(), teacher(), replace(CONFIG, **change))  # type: ignore[arg-type]
    assert (plain.images.int() - fast.images.int()).abs().max() <= 1


def test_the_same_teacher_twice_is_that_teacher() -> None:
    network, config = teacher(), replace(CONFIG, ipc=1)
    once = sre2l(dataset(), network, config)
    for mode in ("tap", "fused"):
        twice = sre2l(dataset(), [network, network], replace(config, bn_mode=mode))
        assert (twice.images.int() - once.images.int()).abs().max() <= 1  # rounding


def test_teachers_are_left_as_they_were() -> None:
    network = teacher().train()
    network.get_parameter("classifier.weight").requires_grad_(False)
    state = {k: v.clone() for k, v in network.state_dict().items()}
    sre2l(dataset(), network, CONFIG)
    assert all(module.training for module in network.modules())
    wanted = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert wanted == ["classifier.weight"]
    assert all(p.grad is None for p in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name])
    assert all(not module._forward_pre_hooks for module in network.modules())
    assert all(not module._forward_hooks for module in network.modules())


def _damaged(name: str, value: float) -> nn.Module:
    network = teacher()
    tensor = network.state_dict()[name]
    tensor.view(-1)[0] = value
    return network


class _Wrapped(nn.Module):
    """A network in a forward of its own, beside a layer that is not used in evaluation mode."""

    def __init__(self, made: Callable[[nn.Module, Tensor], object]) -> None:
        super().__init__()
        self.network, self.made = teacher(), made
        self.auxiliary = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> object:
        if isinstance(self.made(self.network, x), tuple):
            self.auxiliary(x)
        return self.made(self.network, x)


class _NeedsMore(nn.Sequential):
    def forward(self, x: Tensor, more: Tensor) -> Tensor:  # type: ignore[override]
        out: Tensor = super().forward(x)
        return out + more


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: [], "at least one teacher"),
        (lambda: teacher(classes=7), "teacher 0 gives 7 logits, there are 5 classes"),
        (
            lambda: [teacher(), _damaged("features.1.running_var", float("nan"))],
            "teacher 1 holds values in features.1.running_var that are not finite",
        ),
        (lambda: nn.DataParallel(teacher()), "nn.DataParallel"),
        (lambda: _Wrapped(lambda network, x: (network(x), x)), "teacher 0 gives a tuple; logits"),
        (lambda: _NeedsMore(teacher()), "teacher 0 does not take images of 3 x 8 x 8: .*more"),
        (
            lambda: [teacher(), _Wrapped(lambda network, x: network(x))],
            "teacher 1 does not reach its BatchNorm layer 'auxiliary'",
        ),
        (
            lambda: models.create("convnet-d2", CLASSES, image_size=SIZE, width=4),
            "BatchNorm",
        ),
    ],
)
def test_unfit_teachers_are_refused_before_any_work(network, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        sre2l(dataset(), network(), CONFIG, job=Job(out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()  # the corrected call can have it


def test_losses_that_are_not_finite_are_told_with_their_step() -> None:
    class Explodes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.calls = teacher(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += len(x) > 1  # not the check of its classes
            out: Tensor = self.network(x)
            return out / 0 if self.calls > 5 else out

    with pytest.raises(ValueError, match="chunk 0 are not finite from step 5 on"):
        sre2l(dataset(), Explodes(), CONFIG)
    with pytest.raises(ValueError, match="cuda_graph needs a CUDA device"):
        sre2l(dataset(), teacher(), replace(CONFIG, cuda_graph=True), job=Job(device="cpu"))


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_captured_step_is_the_step(precision: str) -> None:
    config = replace(CONFIG, iterations=20, precision=precision)  # type: ignore[arg-type]
    networks = [teacher(0), teacher(1)]
    eager = sre2l(dataset(), networks, config, job=Job(device="cuda"))
    captured = sre2l(dataset(), networks, replace(config, cuda_graph=True), job=Job(device="cuda"))
    assert (eager.images.int() - captured.images.int()).abs().max() <= 1
