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
from pyddfast.ops.reference.dynamics import COUNT_LIMIT

Array = npt.NDArray[np.float64]
N, C, K = 60, 6, 14
GEN = torch.Generator().manual_seed(5)
LABELS = torch.randint(0, C, (N,), generator=GEN)
# Samples from easy (1 - p near 1e-6) to hard, drifting and noisy over the ticks.
LOGITS = torch.randn(K, N, C, generator=GEN)
LOGITS[:, torch.arange(N), LABELS] += torch.linspace(-1, 12, N) * torch.linspace(0.3, 1, K)[:, None]
TEACHER = 3 * torch.randn(K, N, C, generator=GEN)
FEATURES = torch.randn(K, N, 4, generator=GEN)
EXTRAS = ("el2n_sl", "entropy", "nll", "grand", "sharp", "one_minus_p")
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
        "one_minus_p": 1 - mean.mean(0),
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
    """Of the same training; who saw which part of it may differ."""
    one, two = ({k: v for k, v in r.state_dict().items() if k != "agreed"} for r in (a, b))
    for state in (one, two):
        state["meta"] = {k: v for k, v in state["meta"].items() if k not in ("since", "agreed")}
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


def two_classes(rest: Tensor) -> Tensor:
    """Logits (B, 2) whose first class has the probability 1 - rest, to float64's last digits."""
    return torch.stack((torch.log1p(-rest) - rest.log(), torch.zeros_like(rest)), dim=1)


# 1 - p_y of eight samples from 1e-3 down to 1e-30 at five ticks: float32's p_y is 1 from 6e-8 on.
RESTS = 10.0 ** -torch.linspace(3, 30, 8, dtype=torch.float64) * torch.tensor(
    [[2.0], [7.0], [1.0], [5.0], [3.0]], dtype=torch.float64
)


@pytest.mark.parametrize(("signal", "bound"), [("1-p", 3e-7), ("nlp", 3e-7)])
def test_windows_of_easy_samples_are_exact_relatively(signal: Any, bound: float) -> None:
    recorder = TrainingDynamics(
        8, window=3, cad_window=2, cad_average=2, record=("one_minus_p",), signal=signal
    )
    for rest in RESTS:
        recorder.update(two_classes(rest), torch.zeros(8, dtype=torch.int64), torch.arange(8))
        recorder.end_tick()
    std = torch.stack([RESTS[k : k + 3].std(0, correction=1) for k in range(3)])
    mean = torch.stack([RESTS[k : k + 3].mean(0) for k in range(3)])
    for name, want in (
        ("dyn_unc", std[:2].mean(0)),
        ("dual", (std * mean).mean(0)),  # 1e-60: below float32's smallest number
        ("one_minus_p", mean.mean(0)),
        ("cad", torch.stack([RESTS[k : k + 2].std(0, correction=1) for k in (1, 2)]).mean(0)),
    ):
        got = recorder.values(name)
        assert (got / want - 1).abs().max() < bound, name


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


def test_cad_of_samples_that_miss_a_tick() -> None:
    values = {}
    for missing in ("skip", "nan"):
        recorder = TrainingDynamics(2, window=2, cad_window=2, missing=missing)  # type: ignore[arg-type]
        for tick, value in enumerate(TOY[:5]):
            p = (value + 1) / 8
            ids = torch.tensor([0] if tick == 1 else [0, 1])  # of the windows 1, 2 and 2, 3
            logits = torch.tensor([[math.log(p), math.log(1 - p)]]).expand(len(ids), 2)
            recorder.update(logits, torch.zeros_like(ids), ids)
            recorder.end_tick()
        values[missing] = recorder.values("cad").tolist()
    assert values["skip"][1] == pytest.approx(deviation(2, 3), rel=1e-6)
    assert math.isnan(values["nan"][1])
    assert values["nan"][0] == pytest.approx((deviation(1, 2) + deviation(2, 3)) / 2, rel=1e-6)


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
    # Certainty for the label, then against it: margins of +inf and -inf have no mean.
    recorder = TrainingDynamics(1)
    for logits in ([[0.0, -math.inf]], [[-math.inf, 0.0]]):
        recorder.update(torch.tensor(logits), torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(ValueError, match="infinite margins of both signs, sample 0"):
        recorder.scores("aum")
    assert recorder.scores("el2n").values.tolist() == [pytest.approx(2**-0.5)]


@pytest.mark.parametrize("name", ["logits", "teacher", "features"])
@pytest.mark.parametrize("value", [math.inf, math.nan, -math.inf])
@pytest.mark.parametrize("tick_is_open", [False, True])
def test_a_refused_batch_changes_nothing(name: str, value: float, tick_is_open: bool) -> None:
    recorder = record(ticks=4, window=4, record=("el2n_sl", "grand"))
    if tick_is_open:
        feed(recorder, 4, torch.arange(5, 9))
    before = {k: v.clone() for k, v in recorder.state_dict().items() if k != "meta"}
    meta = recorder.state_dict()["meta"]
    given = {"logits": LOGITS[5, :3], "teacher": TEACHER[5, :3], "features": FEATURES[5, :3]}
    given[name] = given[name].clone()
    given[name][1] = value  # the whole row: a single -inf is a class without probability
    with pytest.raises(ValueError, match=rf"{name} has NaN .*in row 1 \(sample 1\)"):
        recorder.update(targets=LABELS[:3], indices=torch.arange(3), **given)
    after = recorder.state_dict()
    assert after["meta"] == meta
    assert all(torch.equal(v.nan_to_num(-9), after[k].nan_to_num(-9)) for k, v in before.items())


def test_refuses_what_is_no_tensor() -> None:
    recorder = TrainingDynamics(2)
    ids = torch.arange(2)
    with pytest.raises(TypeError, match=r"logits is a torch.Tensor, not ndarray"):
        recorder.update(np.eye(2), ids, ids)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"indices is a torch.Tensor, not list"):
        recorder.update(torch.eye(2), ids, [0, 1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="other must be a TrainingDynamics, got dict"):
        recorder.merge({})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="state must be a mapping, got NoneType"):
        recorder.load_state_dict(None)  # type: ignore[arg-type]
    assert not recorder.started


@pytest.mark.parametrize("name", ["el2n_sl", "sharp"])
def test_scores_of_a_teacher_need_it(name: Any) -> None:
    recorder = TrainingDynamics(2, record=(name,))
    with pytest.raises(ValueError, match=f"teacher is None; the state records {name}"):
        recorder.update(torch.eye(2), torch.arange(2), torch.arange(2))


def test_counters_end() -> None:
    recorder = TrainingDynamics(1)
    state = recorder.state_dict()
    state["meta"]["tick"] = COUNT_LIMIT - 1
    recorder.load_state_dict(state)
    with pytest.raises(ValueError, match="this is tick 32766; counters end at 32767"):
        recorder.end_tick()
    recorder._state.seen.fill_(COUNT_LIMIT)
    with pytest.raises(ValueError, match="presented 32767 times or more"):
        recorder.values("el2n")
    recorder._state.seen.fill_(COUNT_LIMIT - 1)
    assert recorder.values("correctness").tolist() == [0]


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


def present(recorder: TrainingDynamics, *ids: int) -> None:
    """One tick in which these samples are seen."""
    if ids:
        index = torch.tensor(ids)
        recorder.update(torch.eye(3)[index % 3], index % 3, index)
    recorder.end_tick()


@pytest.mark.parametrize("missing", ["skip", "nan", "carry"])
@pytest.mark.parametrize("ticks_since", [0, 3])  # 3: both ticks have left the ring
def test_merging_never_loses_a_presentation(missing: Any, ticks_since: int) -> None:
    def pair() -> tuple[TrainingDynamics, TrainingDynamics]:
        return tuple(TrainingDynamics(3, window=2, missing=missing) for _ in range(2))  # type: ignore[return-value]

    one, two = pair()
    for ids in ((0,), (), *[()] * ticks_since):
        present(one, *ids)
    for ids in ((), (0,), *[()] * ticks_since):
        present(two, *ids)
    before = one.state_dict()["seen"].tolist()
    with pytest.raises(ValueError, match="sample 0 was seen by several recorders in different"):
        one.merge(two)
    assert one.state_dict()["seen"].tolist() == before
    # Merged one way only, and seen by the other one again: neither knows all.
    one, two = pair()
    present(one, 1)
    present(two, 0)
    one.merge(two)
    assert one.state_dict()["seen"].tolist() == [1, 1, 0]
    present(one, 1)
    present(two, 0)
    for _ in range(ticks_since):
        present(one)
        present(two)
    # Sample 0: once, and twice of which this one is the first; refused rather than guessed.
    with pytest.raises(ValueError, match="sample 0"):
        one.merge(two)
    # As many presentations as a third one has merged before, but others.
    one, two = pair()
    three = TrainingDynamics(3, window=2, missing=missing)
    present(one, 1)
    present(two)
    present(three, 0)
    one.merge(three)
    for ids in ((0,), *[()] * ticks_since):
        present(one)
        present(two, *ids)
    with pytest.raises(ValueError, match="sample 0"):
        one.merge(two)


def test_parts_of_the_data_merge_one_after_the_other() -> None:
    parts = [TrainingDynamics(3, window=2, cad_window=2, cad_average=1) for _ in range(3)]
    whole = TrainingDynamics(3, window=2, cad_window=2, cad_average=1)
    for _ in range(3):
        for rank, part in enumerate(parts):
            present(part, rank)
        present(whole, 0, 1, 2)
    parts[0].merge(parts[1])
    parts[0].merge(parts[2])
    assert same_state(parts[0], whole)
    # A merged state is saved and goes on.
    copy = TrainingDynamics(3, window=2, cad_window=2, cad_average=1)
    copy.load_state_dict(parts[0].state_dict())
    assert copy.state_dict()["meta"] == parts[0].state_dict()["meta"]
    copy.merge(parts[0])
    assert same_state(copy, whole)


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
    # Without the call in between: refused also once both ticks have left the ring.
    for tick in range(8):
        if tick == rank:
            feed(recorder, tick, torch.arange(3))
        recorder.end_tick()
    before = recorder.state_dict()["seen"].clone()
    with pytest.raises(ValueError, match=r"sample 0 was seen .* in different ticks"):
        recorder.all_reduce()
    assert torch.equal(recorder.state_dict()["seen"], before)
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
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"soft_temperature": 20.0}, r"soft_temperature is that of el2n_sl; record has none"),
        ({"soft_temperature": 0.0, "record": ("el2n_sl",)}, "soft_temperature is 0.0"),
        (
            {"signal": "el2n", "record": ("one_minus_p",)},
            "one_minus_p needs a ring of probabilities",
        ),
    ],
)
def test_refuses_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingDynamics(**{"count": 5, **options})


def test_refuses_what_was_not_recorded() -> None:
    recorder = record(ticks=6, window=4, cad_window=5, ring=7)
    with pytest.raises(ValueError, match="J = 5 and W = 2 make 7 at least, there are 6"):
        recorder.values("cad")
    with pytest.raises(ValueError, match="needs the last 14 ticks, the ring holds 10"):
        record(window=4, ring=10).values("cad")
    with pytest.raises(ValueError, match="window = 4 and drop_last = True needs 5 ticks"):
        record(ticks=4, window=4).values("dyn_unc")
    with pytest.raises(ValueError, match="entropy was not recorded"):
        recorder.values("entropy")
    with pytest.raises(ValueError, match="unknown score 'el3n'"):
        recorder.values("el3n")
    feed(recorder, 0, torch.arange(4))
    with pytest.raises(ValueError, match=r"end tick 6 by end_tick\(\) first"):
        recorder.values("dual")
    before = {k: v.clone() for k, v in recorder.state_dict().items() if k != "meta"}
    with pytest.raises(ValueError, match=r"logits has NaN .* in row 1"):
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
    for key, value in (
        ("tick", None), ("tick", -3), ("tick", 2.7), ("tick", 10**9), ("tick", True),
        ("open", 1), ("since", 5), ("agreed", None),
    ):  # fmt: skip
        other = recorder.state_dict()
        other["meta"] = {**other["meta"], key: value}
        fresh = TrainingDynamics(5)
        with pytest.raises(ValueError, match=key):
            fresh.load_state_dict(other)
        assert same_state(fresh, TrainingDynamics(5))  # nothing is changed
        write_tensors(tmp_path / "meta", recorder._tensors(), other["meta"])
        with pytest.raises(ValueError, match=f"meta holds no training dynamics.*{key}"):
            TrainingDynamics.load(tmp_path / "meta")
    for key in ("tick", "open"):
        other = recorder.state_dict()
        other["meta"] = {k: v for k, v in other["meta"].items() if k != key}
        with pytest.raises(ValueError, match=f"meta has no '{key}'"):
            TrainingDynamics(5).load_state_dict(other)
    for name, wrong in (("seen", -5), ("forgetting", 2), ("first_learned", -2), ("correct", 2)):
        other = {**recorder.state_dict(), name: torch.full((5,), wrong, dtype=torch.int16)}
        with pytest.raises(ValueError, match=f"the state's {name} has a value below"):
            TrainingDynamics(5).load_state_dict(other)
    meta = {**recorder.state_dict()["meta"], "count": 10**13}
    write_tensors(tmp_path / "huge", recorder._tensors(), meta)
    with pytest.raises(ValueError, match=r"its ring is \(5, 10\), its meta says"):
        TrainingDynamics.load(tmp_path / "huge")
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
