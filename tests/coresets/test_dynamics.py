"""TrainingDynamics: streaming scores against numpy in float64 on the stored logits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from pyddfast.coresets import DYNAMICS_SCORES, TrainingDynamics, select
from pyddfast.data.stored import write_tensors

Array = npt.NDArray[np.float64]
N, C, K = 60, 6, 14
GEN = torch.Generator().manual_seed(5)
LABELS = torch.randint(0, C, (N,), generator=GEN)
# Samples from easy (1 - p near 1e-6) to hard, drifting and noisy over the ticks.
LOGITS = torch.randn(K, N, C, generator=GEN)
LOGITS[:, torch.arange(N), LABELS] += torch.linspace(-1, 12, N) * torch.linspace(0.3, 1, K)[:, None]
TEACHER = 3 * torch.randn(K, N, C, generator=GEN)
FEATURES = torch.randn(K, N, 4, generator=GEN)
EXTRAS = ("el2n_sl", "entropy", "nll", "grand", "sharp", "mean_p")
# Sums of 14 float32 numbers of at most 20; windows of float32 1 - p_y.
BOUND = 14 * 20 * 6e-8


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def offline(window: int, ticks: int = K, T: float = 1.0) -> dict[str, Array]:
    """Every score by its definition, from all logits."""
    z, t, h = (x[:ticks].double().numpy() for x in (LOGITS, TEACHER, FEATURES))
    y = np.eye(C)[LABELS.numpy()]
    p, q = softmax(z / T), softmax(t / T)
    p_y = (p * y).sum(-1)
    right = z.argmax(-1) == LABELS.numpy()
    never = ~right.any(0)
    events = np.zeros(N)
    for before, after in itertools.pairwise(right):
        events += before & ~after
    windows = np.stack([p_y[k : k + window] for k in range(ticks - window + 1)])
    std, mean = windows.std(1, ddof=1), windows.mean(1)
    el2n_sl = np.linalg.norm(p - q, axis=-1) / T
    cosine = ((p - y) * (p - q)).sum(-1) / (
        np.linalg.norm(p - y, axis=-1) * np.linalg.norm(p - q, axis=-1)
    )
    return {
        "forgetting": np.where(never, events + ticks, events),
        "correctness": right.mean(0),
        "first_learned": np.where(never, ticks, right.argmax(0)),
        "el2n": np.linalg.norm(p - y, axis=-1).mean(0),
        "aum": ((z * y).sum(-1) - np.where(y > 0, -np.inf, z).max(-1)).mean(0),
        "dyn_unc": std[:-1].mean(0),
        "dual": (std * (1 - mean)).mean(0),
        "cad": std[-3:-1].mean(0),
        "el2n_sl": el2n_sl.mean(0),
        "entropy": -(p * np.log(p)).sum(-1).mean(0),
        "nll": -np.log(p_y).mean(0),
        "grand": (el2n_sl * np.sqrt(1 + (h**2).sum(-1))).mean(0),
        "sharp": cosine.mean(0),
        "mean_p": mean.mean(0),
    }


def feed(recorder: TrainingDynamics, tick: int, ids: Tensor) -> None:
    extra: dict[str, Tensor] = {}
    if recorder.record:
        extra = {"teacher": TEACHER[tick, ids], "features": FEATURES[tick, ids]}
    recorder.update(LOGITS[tick, ids], LABELS[ids], ids, **extra)


def record(
    ticks: int = K, batches: Callable[[int], list[Tensor]] | None = None, **options: Any
) -> TrainingDynamics:
    recorder = TrainingDynamics(N, **options)
    for tick in range(ticks):
        for ids in [torch.arange(N)] if batches is None else batches(tick):
            feed(recorder, tick, ids)
        recorder.end_tick()
    return recorder


def shuffled(tick: int) -> list[Tensor]:
    order = torch.randperm(N, generator=torch.Generator().manual_seed(tick))
    return list(order.split(7 + tick))


def same_state(a: TrainingDynamics, b: TrainingDynamics) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.pop("meta") == two.pop("meta") and all(
        torch.equal(one[k].nan_to_num(-9), two[k].nan_to_num(-9)) for k in one.keys() | two.keys()
    )


@pytest.mark.parametrize("window", [10, 4])
@pytest.mark.parametrize("batches", [None, shuffled], ids=["whole", "shuffled"])
@pytest.mark.parametrize("signal", ["1-p", "nlp"])
def test_every_score_is_that_of_the_stored_logits(
    window: int, batches: Callable[[int], list[Tensor]] | None, signal: str
) -> None:
    recorder = record(
        batches=batches, window=window, cad_window=window, record=EXTRAS, signal=signal,
        temperature=2.0,
    )  # fmt: skip
    want = offline(window, T=2.0)
    assert want.keys() == DYNAMICS_SCORES.keys()
    for name, values in want.items():
        got = recorder.scores(name)
        assert np.abs(got.values.numpy() - values).max() < BOUND, name
        assert got.high_means == DYNAMICS_SCORES[name]
    picked = select(recorder.scores("cad"), LABELS, ipc=3)
    best = [
        max((i for i in range(N) if LABELS[i] == c), key=lambda i: want["cad"][i]) for c in range(C)
    ]
    assert picked.indices[::3].tolist() == best


def test_easy_samples_keep_their_windows_digits() -> None:
    recorder = record(window=4, cad_window=4)
    # The most certain samples: p_y is 1 in float32 up to noise of 6e-8.
    easy = torch.arange(N - 5, N)
    std = offline(4)["cad"][easy]
    assert std.max() < 1e-2
    assert np.abs(recorder.values("cad")[easy].numpy() / std - 1).max() < 1e-5


def test_the_state_is_67_bytes_a_sample() -> None:
    recorder = TrainingDynamics(1000)
    assert recorder.nbytes == 67 * 1000
    assert 1_281_167 * recorder.nbytes / 1000 < 90e6
    assert TrainingDynamics(1000, ring_dtype=torch.float16).nbytes == 47 * 1000
    assert TrainingDynamics(1000, record=EXTRAS).nbytes == (67 + 4 * 6) * 1000


# p_y of one sample at ticks 0..6 in sevenths: std over any window is easy to write down.
TOY = [0, 1, 3, 6, 2, 5, 4]


def toy(ticks: int, **options: Any) -> TrainingDynamics:
    recorder = TrainingDynamics(1, **options)
    for value in TOY[:ticks]:
        p = (value + 1) / 8
        recorder.update(
            torch.tensor([[math.log(p), math.log(1 - p)]], dtype=torch.float64),
            torch.tensor([0]),
            torch.tensor([0]),
        )
        recorder.end_tick()
    return recorder


def deviation(*ticks: int) -> float:
    return float(np.std([TOY[t] / 8 for t in ticks], ddof=1))


@pytest.mark.parametrize(
    ("ticks", "J", "W", "drop_last", "windows"),
    [
        # k = K - J - W .. K - J - 1 with K = 7, J = 3, W = 2: 2, 3.
        (7, 3, 2, True, [(2, 3, 4), (3, 4, 5)]),
        (7, 3, 2, False, [(3, 4, 5), (4, 5, 6)]),
        (5, 3, 2, True, [(0, 1, 2), (1, 2, 3)]),
        (7, 2, 1, True, [(4, 5)]),
        (7, 2, 1, False, [(5, 6)]),
        # None: J = K - W = 5.
        (7, None, 2, True, [(0, 1, 2, 3, 4), (1, 2, 3, 4, 5)]),
        (7, None, 2, False, [(1, 2, 3, 4, 5), (2, 3, 4, 5, 6)]),
        (4, None, 2, True, [(0, 1), (1, 2)]),
    ],
)
@pytest.mark.parametrize("ring", [7, 9])  # slots that wrap, and that never do
def test_cad_averages_the_windows_of_its_formula(
    ticks: int,
    J: int | None,
    W: int,
    drop_last: bool,
    windows: list[tuple[int, ...]],
    ring: int,
) -> None:
    recorder = toy(ticks, window=2, cad_window=J, cad_average=W, ring=ring)
    want = sum(deviation(*window) for window in windows) / W
    got = recorder.scores("cad", drop_last=drop_last)
    assert float(got.values) == pytest.approx(want, rel=1e-6)
    assert got.meta["cad_window"] == len(windows[0])


def test_a_wrapped_ring_gives_the_same_cad() -> None:
    long, short = (toy(7, window=2, cad_window=3, ring=ring) for ring in (7, 5))
    assert float(long.values("cad")) == float(short.values("cad"))


def test_window_means_with_and_without_the_last_window() -> None:
    recorder = toy(5, window=3)
    each = [deviation(0, 1, 2), deviation(1, 2, 3), deviation(2, 3, 4)]
    assert float(recorder.values("dyn_unc")) == pytest.approx(sum(each[:2]) / 2, rel=1e-6)
    natural = recorder.values("dyn_unc", drop_last=False)
    assert float(natural) == pytest.approx(sum(each) / 3, rel=1e-6)
    rest = [1 - (sum(TOY[k : k + 3]) / 3 + 1) / 8 for k in range(3)]
    want = sum(a * b for a, b in zip(each, rest, strict=True)) / 3
    assert float(recorder.values("dual")) == pytest.approx(want, rel=1e-6)


def test_cad_of_el2n() -> None:
    recorder = toy(5, window=3, cad_window=3, signal="el2n")
    # Two classes: EL2N is √2 (1 - p).
    want = math.sqrt(2) * (deviation(0, 1, 2) + deviation(1, 2, 3)) / 2
    assert float(recorder.values("cad")) == pytest.approx(want, rel=1e-6)
    with pytest.raises(ValueError, match="needs a ring of probabilities"):
        recorder.values("dyn_unc")


def test_never_learned_and_initial_policies() -> None:
    wrong, right = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    zero = torch.tensor([0])
    for first, forgotten in ((False, 0.0), (True, 1.0)):
        recorder = TrainingDynamics(2, initially_correct=first)
        for logits in (wrong, right, wrong, right):
            recorder.update(logits, zero, zero)
            recorder.update(wrong, zero, zero + 1)
            recorder.end_tick()
        # Sample 0 learns at once and forgets once more, sample 1 never learns.
        for policy, value in (("max", 4 + forgotten), ("inf", math.inf), ("zero", forgotten)):
            got = recorder.scores("forgetting", never_learned=policy)  # type: ignore[arg-type]
            assert got.values.tolist() == [1 + forgotten, value]
        assert recorder.scores("first_learned").values.tolist() == [1, 4]
        assert recorder.scores("correctness").values.tolist() == [0.5, 0]
    with pytest.raises(ValueError, match="0 is the earliest"):
        recorder.scores("first_learned", never_learned="zero")


def test_missing_ticks() -> None:
    values: dict[str, list[float]] = {}
    for missing in ("skip", "nan", "carry"):
        recorder = TrainingDynamics(2, window=2, cad_window=2, cad_average=2, missing=missing)
        for tick, value in enumerate(TOY[:5]):
            p = (value + 1) / 8
            # Sample 1 is not seen in tick 1.
            ids = torch.tensor([0] if tick == 1 else [0, 1])
            logits = torch.tensor([[math.log(p), math.log(1 - p)]]).expand(len(ids), 2)
            recorder.update(logits, torch.zeros_like(ids), ids)
            recorder.end_tick()
        values[missing] = recorder.values("dyn_unc").tolist()
        assert recorder.values("correctness").tolist() == [0.4, 0.5]
    every = [deviation(0, 1), deviation(1, 2), deviation(2, 3)]
    for got in values.values():
        assert got[0] == pytest.approx(sum(every) / 3, rel=1e-6)
    assert values["skip"][1] == pytest.approx(every[2], rel=1e-6)
    assert math.isnan(values["nan"][1])
    # Tick 1 repeats tick 0.
    carried = (deviation(0, 0) + deviation(0, 2) + deviation(2, 3)) / 3
    assert values["carry"][1] == pytest.approx(carried, rel=1e-6)


def test_a_sample_without_a_score_is_named() -> None:
    recorder = TrainingDynamics(4, window=2)
    for _ in range(3):
        recorder.update(torch.eye(2), torch.tensor([0, 1]), torch.tensor([0, 3]))
        recorder.end_tick()
    with pytest.raises(ValueError, match=r"el2n: 2 of 4 .* never been presented, sample 1"):
        recorder.scores("el2n")
    with pytest.raises(ValueError, match=r"dyn_unc: 2 of 4 .* no complete window of ticks"):
        recorder.scores("dyn_unc")
    assert recorder.values("aum").isnan().tolist() == [False, True, True, False]


def split_run(owner: Callable[[int], Tensor], every_tick: bool) -> TrainingDynamics:
    """Two recorders; ``owner(tick)`` says whose a sample is."""
    ranks = [TrainingDynamics(N, window=4, cad_window=4, record=EXTRAS) for _ in range(2)]
    for tick in range(K):
        for rank, recorder in enumerate(ranks):
            feed(recorder, tick, (owner(tick) == rank).nonzero().squeeze(1))
        if every_tick:
            before = ranks[0].state_dict()
            kept = {k: v.clone() if isinstance(v, Tensor) else v for k, v in before.items()}
            ranks[0].merge(ranks[1])
            old = TrainingDynamics(N, window=4, cad_window=4, record=EXTRAS)
            old.load_state_dict(kept)
            ranks[1].merge(old)
        for recorder in ranks:
            recorder.end_tick()
    ranks[0].merge(ranks[1])
    return ranks[0]


def test_halves_of_the_data_merge_to_the_whole() -> None:
    whole = record(window=4, cad_window=4, record=EXTRAS)
    assert same_state(split_run(lambda tick: torch.arange(N) % 2, every_tick=False), whole)


def test_samples_that_change_ranks_merge_every_tick() -> None:
    def owner(tick: int) -> Tensor:
        return torch.randint(0, 2, (N,), generator=torch.Generator().manual_seed(tick))

    whole = record(window=4, cad_window=4, record=EXTRAS)
    assert same_state(split_run(owner, every_tick=True), whole)
    with pytest.raises(ValueError, match="was seen by several recorders in different ticks"):
        split_run(owner, every_tick=False)


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    recorder = TrainingDynamics(N, window=4, cad_window=4, record=EXTRAS)
    for tick in range(K):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(tick))
        # Rank 1 repeats a sample of rank 0, as a DistributedSampler fills its last batch.
        mine = order[::2] if rank == 0 else torch.cat((order[1::2], order[:1]))
        for ids in mine.split(11):
            feed(recorder, tick, ids)
        recorder.all_reduce()
        recorder.end_tick()
    recorder.save(f"{folder}/{rank}.safetensors")
    for tick in range(2):
        if tick == rank:
            feed(recorder, tick, torch.arange(3))
        if tick == 0:
            recorder.end_tick()
    with pytest.raises(ValueError, match="in different ticks"):
        recorder.all_reduce()
    torch.distributed.destroy_process_group()


def test_two_processes_end_with_the_state_of_one(tmp_path: Path) -> None:
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    whole = record(window=4, cad_window=4, record=EXTRAS)
    for rank in range(2):
        assert same_state(TrainingDynamics.load(tmp_path / f"{rank}.safetensors"), whole)


def test_a_resumed_recorder_has_the_bytes_of_an_uninterrupted_one(tmp_path: Path) -> None:
    options: dict[str, Any] = {"window": 4, "cad_window": 4, "ring_dtype": torch.float16}
    record(batches=shuffled, **options).save(tmp_path / "whole")
    recorder = TrainingDynamics(N, **options)
    for tick in range(K):
        for ids in shuffled(tick):
            feed(recorder, tick, ids)
            # Stopped after every batch, also inside a tick.
            recorder.save(tmp_path / "stopped")
            recorder = TrainingDynamics.load(tmp_path / "stopped")
        recorder.end_tick()
    recorder.save(tmp_path / "resumed")
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_autocast_compile_and_gradients_change_nothing() -> None:
    torch.manual_seed(1)
    net, x = Net(), torch.randn(N, 3)
    plain, cast, broken = (TrainingDynamics(N) for _ in range(3))
    ids = torch.arange(N)
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(x)
        cast.update(logits, LABELS, ids)
    plain.update(logits, LABELS, ids)
    assert same_state(plain, cast)
    assert logits.requires_grad

    @torch.compile(backend="eager")
    def step(x: Tensor) -> Tensor:
        out: Tensor = net(x)
        broken.update(out, LABELS, ids)
        return out.square().sum()

    plain = TrainingDynamics(N)
    plain.update(net(x), LABELS, ids)
    step(x).backward()
    assert same_state(plain, broken)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must be an int of at least 1, got 0"),
        ({"window": 1}, "window must be an int of at least 2"),
        ({"cad_window": 1}, "cad_window"),
        ({"cad_average": 0}, "cad_average"),
        ({"ring": 9}, "ring must hold at least 10 ticks for window = 10"),
        ({"window": 4, "cad_window": 6, "ring": 7}, "ring must hold at least 8 ticks"),
        ({"missing": "zero"}, "missing must be one of"),
        ({"signal": "p"}, "signal must be one of"),
        ({"ring_dtype": torch.bfloat16}, "ring_dtype must be one of"),
        ({"record": ("loss",)}, "record must be one of"),
        ({"signal": "el2n", "record": ("mean_p",)}, "mean_p needs a ring of probabilities"),
    ],
)
def test_refuses_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingDynamics(**{"count": 5, **options})


def test_refuses_what_was_not_recorded() -> None:
    recorder = record(ticks=6, window=4, cad_window=5, ring=7)
    with pytest.raises(ValueError, match="J = 5 and W = 2 make 7 at least, 6 were recorded"):
        recorder.values("cad")
    with pytest.raises(ValueError, match="needs the last 14 ticks, the ring holds 10"):
        record(window=4, ring=10).values("cad")
    with pytest.raises(ValueError, match="window = 4 and drop_last = True needs 5 ticks, 4 were"):
        record(ticks=4, window=4).values("dyn_unc")
    with pytest.raises(ValueError, match="entropy was not recorded"):
        recorder.values("entropy")
    with pytest.raises(ValueError, match="unknown score 'el3n'"):
        recorder.values("el3n")
    feed(recorder, 0, torch.arange(4))
    with pytest.raises(ValueError, match=r"end tick 6 by end_tick\(\) first"):
        recorder.values("dual")
    before = {k: v.clone() for k, v in recorder.state_dict().items() if k != "meta"}
    with pytest.raises(ValueError, match="NaN in row 1"):
        recorder.update(torch.tensor([[0, 1.0], [0, math.nan]]), LABELS[:2] * 0, torch.arange(2))
    with pytest.raises(ValueError, match="indices has values from 0 to 60"):
        recorder.update(torch.eye(2), LABELS[:2] * 0, torch.tensor([0, 60]))
    after = recorder.state_dict()
    assert all(torch.equal(v.nan_to_num(-9), after[k].nan_to_num(-9)) for k, v in before.items())


def test_refuses_states_of_others(tmp_path: Path) -> None:
    recorder = TrainingDynamics(5)
    recorder.update(torch.eye(2), torch.tensor([0, 1]), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="count is 6 here, 5 there"):
        TrainingDynamics(6).load_state_dict(recorder.state_dict())
    cut = recorder.state_dict()
    cut["seen"] = cut["seen"][:4]
    with pytest.raises(ValueError, match=r"seen is torch.int16 \(4,\)"):
        TrainingDynamics(5).load_state_dict(cut)
    del cut["seen"]
    with pytest.raises(ValueError, match="no tensor 'seen'"):
        TrainingDynamics(5).load_state_dict(cut)
    with pytest.raises(ValueError, match="no 'meta'"):
        TrainingDynamics(5).load_state_dict({})
    with pytest.raises(ValueError, match="open is False here, True there"):
        TrainingDynamics(5).merge(recorder)
    recorder.save(tmp_path / "state")
    (tmp_path / "cut").write_bytes((tmp_path / "state").read_bytes()[:-9])
    with pytest.raises(ValueError, match="cut is damaged"):
        TrainingDynamics.load(tmp_path / "cut")
    write_tensors(tmp_path / "other", {"seen": torch.zeros(5)}, {"count": 5})
    with pytest.raises(ValueError, match="other holds no training dynamics"):
        TrainingDynamics.load(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="absent"):
        TrainingDynamics.load(tmp_path / "absent")
