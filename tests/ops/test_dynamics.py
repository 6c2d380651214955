"""dynamics_update_: a training's worth of presentations against plain Python and float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyddfast.ops.dynamics import DynamicsState, check_dynamics_update, dynamics_update_

GEN = torch.Generator().manual_seed(11)
EXTRAS = ("el2n_sl", "entropy", "nll", "grand", "sharp")


def new_state(
    count: int, ring: int = 3, *, dtype: torch.dtype = torch.float32, extras: tuple[str, ...] = ()
) -> DynamicsState:
    def counter() -> Tensor:
        return torch.zeros(count, dtype=torch.int16)

    return DynamicsState(
        ring=torch.full((count, ring), torch.nan, dtype=dtype),
        last_correct=torch.zeros(count, dtype=torch.uint8),
        seen=counter(),
        forgetting=counter(),
        correct=counter(),
        first_learned=counter() - 1,
        aum=torch.zeros(count),
        el2n=torch.zeros(count),
        **{name: torch.zeros(count) for name in extras},
    )


def equal(a: DynamicsState, b: DynamicsState) -> bool:
    return all(
        x is y is None or torch.equal(torch.nan_to_num(x, -5.0), torch.nan_to_num(y, -5.0))
        for x, y in zip(a, b, strict=True)
    )


# Of its own, the soft labels' temperature leaves grand to the label's loss.
@pytest.mark.parametrize("soft", [None, 20.0])
def test_sums_and_ring_are_those_of_a_float64_recomputation(soft: float | None) -> None:
    count, classes, ticks, T = 20, 7, 5, 2.0
    state = new_state(count, ring=4, extras=EXTRAS)
    label = torch.randint(0, classes, (count,), generator=GEN)
    logits = 4 * torch.randn(ticks, count, classes, generator=GEN)
    teacher = 4 * torch.randn(ticks, count, classes, generator=GEN)
    features = torch.randn(ticks, count, 6, generator=GEN)
    for tick in range(ticks):
        # Each tick in batches of another size and another order.
        for ids in torch.randperm(count, generator=GEN).split(3 + tick):
            dynamics_update_(
                state, logits[tick, ids], label[ids], ids, torch.tensor(tick), temperature=T,
                teacher=teacher[tick, ids], features=features[tick, ids], soft_temperature=soft,
            )  # fmt: skip

    p, q = (logits.double() / T).softmax(-1), (teacher.double() / T).softmax(-1)
    y = torch.nn.functional.one_hot(label, classes)
    others = logits.double().masked_fill(y.bool(), -math.inf).amax(-1)
    p_y = (p * y).sum(-1)
    S = soft or T
    el2n_sl = ((logits.double() / S).softmax(-1) - (teacher.double() / S).softmax(-1)).norm(dim=-1)
    el2n_sl /= S
    of_loss = el2n_sl if soft is None else (p - y).norm(dim=-1) / T
    want = {
        "aum": (logits.double() * y).sum(-1) - others,
        "el2n": (p - y).norm(dim=-1),
        "el2n_sl": el2n_sl,
        "entropy": -(p * p.log()).sum(-1),
        "nll": -p_y.log(),
        "grand": of_loss * (1 + features.double().square().sum(-1)).sqrt(),
        "sharp": torch.cosine_similarity(p - y, p - q, dim=-1),
    }
    for name, values in want.items():
        got = getattr(state, name).double()
        # Five float32 additions of numbers of at most |aum| <= 30.
        assert (got - values.sum(0)).abs().max() < 5 * 30 * 6e-8, name
    # Slots 0 to 3 hold ticks 4, 1, 2, 3.
    assert ((1 - p_y)[[4, 1, 2, 3]].T - state.ring.double()).abs().max() < 1e-7


def counted(history: list[bool], initial: bool = False) -> tuple[int, int, int, int]:
    """Forgetting events, correct ones, first correct and last: the definitions, one by one."""
    events, last, first = 0, initial, -1
    for number, right in enumerate(history):
        events += last and not right
        first = number if right and first < 0 else first
        last = right
    return events, sum(history), first, int(last)


def test_counters_follow_their_definitions_over_every_history_of_six() -> None:
    histories = [[bool(code >> k & 1) for k in range(6)] for code in range(64)]
    state = new_state(64)
    ids = torch.arange(64)
    for tick in range(6):
        right = torch.tensor([history[tick] for history in histories])
        logits = torch.stack((right.float(), 1 - right.float()), dim=1)
        dynamics_update_(state, logits, torch.zeros(64, dtype=torch.int64), ids, torch.tensor(tick))
    got = zip(
        state.forgetting.tolist(),
        state.correct.tolist(),
        state.first_learned.tolist(),
        state.last_correct.tolist(),
        strict=True,
    )
    assert list(got) == [counted(history) for history in histories]
    assert state.seen.tolist() == [6] * 64


def test_a_tie_goes_to_the_first_class() -> None:
    state = new_state(2)
    logits = torch.zeros(2, 3)
    dynamics_update_(state, logits, torch.tensor([0, 1]), torch.arange(2), torch.tensor(0))
    assert state.correct.tolist() == [1, 0]


def test_only_the_given_samples_and_slot_change() -> None:
    state = new_state(5, ring=3)
    ids = torch.tensor([4, 1])
    dynamics_update_(state, torch.eye(2), torch.tensor([0, 0]), ids, torch.tensor(7))
    assert state.seen.tolist() == [0, 1, 0, 0, 1]
    # 7 % 3 = 1
    assert (~state.ring.isnan()).nonzero().tolist() == [[1, 1], [4, 1]]


def test_counters_stop_at_their_largest_value() -> None:
    state = new_state(1)
    for counter in (state.seen, state.forgetting, state.correct):
        counter.fill_(32766)
    state.last_correct.fill_(1)
    wrong, right = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    zero = torch.tensor([0])
    for logits in (wrong, right, wrong, right):
        dynamics_update_(state, logits, zero, zero, torch.tensor(0))
    assert [int(c) for c in (state.seen, state.forgetting, state.correct)] == [32767] * 3


@pytest.mark.parametrize("signal", ["1-p", "nlp", "el2n"])
def test_the_ring_tells_easy_samples_apart_in_half_precision(signal: str) -> None:
    # 1 - p from 1e-6 to 0.3: float16 p_y would be 1 for most of them.
    gaps = torch.linspace(1, 14, 30, dtype=torch.float64)
    logits = torch.stack((gaps, torch.zeros(30, dtype=torch.float64)), dim=1)
    state = new_state(30, dtype=torch.float16)
    ids = torch.arange(30)
    label = torch.zeros(30, dtype=torch.int64)
    dynamics_update_(state, logits, label, ids, torch.tensor(0), signal=signal)  # type: ignore[arg-type]
    rest = 1 / (1 + gaps.exp())
    want = {"1-p": rest, "nlp": -torch.log1p(-rest), "el2n": math.sqrt(2) * rest}[signal]
    got = state.ring[:, 0].double()
    # Half an ulp of float16, whose smallest step is 2**-24.
    assert ((got - want).abs() <= want * 2**-11 + 2**-25).all()
    assert (got.diff() < 0).all()


@pytest.mark.parametrize("rest", [1e-8, 1e-6, 1e-4, 1e-2, 1e-1])
def test_el2n_and_the_signal_are_exact_for_easy_samples(rest: float) -> None:
    gap = math.log(99 * (1 - rest) / rest)
    logits = torch.zeros(1, 100)
    logits[0, 3] = gap
    state = new_state(1)
    dynamics_update_(state, logits, torch.tensor([3]), torch.tensor([0]), torch.tensor(0))
    one = 1 / (99 + math.exp(float(logits[0, 3])))
    assert float(state.ring[0, 0]) == pytest.approx(99 * one, rel=1e-6)
    assert float(state.el2n) == pytest.approx(math.sqrt(99 * one**2 + (99 * one) ** 2), rel=1e-6)


def test_half_precision_logits_and_empty_batches() -> None:
    logits = torch.randn(4, 5, generator=GEN)
    label, ids = torch.tensor([0, 1, 2, 4]), torch.arange(4)
    for dtype in (torch.float16, torch.bfloat16):
        half, wide = new_state(4), new_state(4)
        dynamics_update_(half, logits.to(dtype), label, ids, torch.tensor(0))
        dynamics_update_(wide, logits.to(dtype).float(), label, ids, torch.tensor(0))
        assert equal(half, wide)
    state = new_state(4)
    none = torch.zeros(0, dtype=torch.int64)
    dynamics_update_(state, torch.zeros(0, 5), none, none, torch.tensor(0))
    assert equal(state, new_state(4))


def test_cosine_keeps_its_digits_where_the_teacher_agrees() -> None:
    logits = torch.randn(3, 30, generator=GEN)
    teacher = logits + 1e-4 * torch.randn(3, 30, generator=GEN)
    state = new_state(3, extras=("sharp",))
    label = torch.tensor([0, 7, 29])
    dynamics_update_(state, logits, label, torch.arange(3), torch.tensor(0), teacher=teacher)
    p, q = logits.double().softmax(-1), teacher.double().softmax(-1)
    y = torch.nn.functional.one_hot(label, 30)
    want = torch.cosine_similarity(p - y, p - q, dim=-1)
    assert state.sharp is not None
    assert (state.sharp.double() - want).abs().max() < 1e-6
    # A teacher that agrees exactly has no direction.
    same = new_state(3, extras=("sharp",))
    dynamics_update_(same, logits, label, torch.arange(3), torch.tensor(0), teacher=logits)
    assert same.sharp is not None
    assert same.sharp.tolist() == [0.0] * 3


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"indices": torch.tensor([0, 3])}, ValueError, "indices has values from 0 to 3"),
        ({"indices": torch.tensor([-1, 0])}, ValueError, "indices has values from -1"),
        ({"indices": torch.tensor([1, 1])}, ValueError, "indices has 1 more than once"),
        ({"indices": torch.tensor([0, 1], dtype=torch.int32)}, TypeError, "indices"),
        ({"indices": torch.tensor([0])}, ValueError, "indices has shape"),
        ({"target": torch.tensor([0, 4])}, ValueError, "target has values from 0 to 4"),
        ({"target": torch.tensor([0.0, 1.0])}, TypeError, "target"),
        ({"logits": torch.tensor([[0.0] * 4, [0, 1, torch.nan, 0]])}, ValueError, "row 1"),
        ({"logits": torch.tensor([[0, math.inf, 0, 0], [0.0] * 4])}, ValueError, "row 0"),
        ({"logits": torch.tensor([[0.0] * 4, [-math.inf] * 4])}, ValueError, "row 1"),
        ({"logits": torch.zeros(2, 4, dtype=torch.int64)}, TypeError, "logits"),
        ({"logits": torch.zeros(4)}, ValueError, "logits has shape"),
        ({"logits": torch.zeros(2, 0)}, ValueError, "at least one class"),
        ({"tick": torch.tensor(-1)}, ValueError, "tick is -1"),
        ({"tick": torch.tensor([1])}, ValueError, "tick has shape"),
        ({"tick": 1}, TypeError, "tick"),
        ({"temperature": 0.0}, ValueError, "temperature"),
        ({"signal": "p"}, ValueError, "signal is 'p'"),
        ({"soft_temperature": 20.0}, ValueError, "soft_temperature is given; the state does not"),
        (
            {"soft_temperature": 0.0, "state": new_state(3, extras=("el2n_sl",))},
            ValueError,
            "soft_temperature is 0.0",
        ),
        (
            {
                "state": new_state(3, extras=("el2n_sl",)),
                "teacher": torch.full((2, 4), math.nan),
                "soft_temperature": 20.0,
            },
            ValueError,
            "teacher has NaN",
        ),
        ({"teacher": torch.zeros(2, 4)}, ValueError, "neither el2n_sl nor sharp"),
        ({"features": torch.zeros(2, 4)}, ValueError, "features without grand"),
        ({"features": torch.zeros(2, 0)}, ValueError, "D >= 1 is needed"),
        ({"state": new_state(3, extras=("grand",))}, ValueError, "grand without features"),
        ({"state": new_state(3, extras=("sharp",))}, ValueError, "teacher is None"),
        ({"state": new_state(3, extras=("el2n_sl",))}, ValueError, "teacher is None"),
        *(
            (
                {"state": new_state(3, extras=(extra,)), "teacher": torch.full((2, 4), value)},
                ValueError,
                "teacher has NaN",
            )
            for extra in ("el2n_sl", "sharp")
            for value in (math.nan, math.inf, -math.inf)
        ),
        (
            {"state": new_state(3, extras=("grand",)), "features": torch.full((2, 1), math.inf)},
            ValueError,
            "features has NaN or inf in row 0",
        ),
        (
            {"state": new_state(3, extras=("sharp",)), "teacher": torch.zeros(2, 5)},
            ValueError,
            "teacher has shape",
        ),
        ({"state": new_state(3)._replace(aum=torch.zeros(2))}, ValueError, "state.aum"),
        ({"state": new_state(3)._replace(seen=torch.zeros(3))}, TypeError, "state.seen"),
        ({"state": new_state(3)._replace(ring=torch.zeros(3))}, ValueError, "state.ring"),
        ({"state": new_state(3)._replace(el2n=torch.zeros(6)[::2])}, ValueError, "contiguous"),
    ],
)
def test_refuses_before_anything_is_written(
    change: dict[str, object], error: type[Exception], message: str
) -> None:
    arguments: dict[str, object] = {
        "state": new_state(3),
        "logits": torch.zeros(2, 4),
        "target": torch.tensor([0, 1]),
        "indices": torch.tensor([2, 0]),
        "tick": torch.tensor(0),
    }
    arguments.update(change)
    state = arguments["state"]
    assert isinstance(state, DynamicsState)
    before = DynamicsState(*(None if t is None else t.clone() for t in state))
    for refuses in (dynamics_update_, check_dynamics_update):
        with pytest.raises(error, match=message):
            refuses(**arguments)  # type: ignore[arg-type]
    assert equal(state, before)


def test_a_check_writes_nothing() -> None:
    state = new_state(3)
    check_dynamics_update(
        state, torch.zeros(2, 4), torch.tensor([0, 1]), torch.tensor([2, 0]), torch.tensor(0)
    )
    assert equal(state, new_state(3))
