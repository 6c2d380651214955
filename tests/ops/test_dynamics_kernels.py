"""dynamics_update_ on every backend, against its twin: counters are equal, sums close."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from pyddfast.ops import _native, reference
from pyddfast.ops.dynamics import DynamicsState, dynamics_update_
from tests.ops.conftest import Backend
from tests.ops.test_dynamics import EXTRAS, equal, new_state
from tests.ops.test_kd_kernels import CLUSTER, LOOPED, RESIDENT
from tests.ops.test_scores_contract import layouts
from tests.tolerances import FLOAT32, ROUNDING, assert_close

COUNTERS = ("last_correct", "seen", "forgetting", "correct", "first_learned")


def on(state: DynamicsState, device: torch.device) -> DynamicsState:
    return DynamicsState(*(None if x is None else x.clone().to(device) for x in state))


def batch(rows: int, classes: int, seed: int, count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits, teacher = 3 * torch.randn(2, rows, classes, generator=generator)
    return {
        "logits": logits,
        # Half of the samples are classified correctly.
        "target": torch.where(
            torch.rand(rows, generator=generator) < 0.5,
            logits.argmax(-1),
            torch.randint(classes, (rows,), generator=generator),
        ),
        "indices": torch.randperm(count, generator=generator)[:rows],
        "teacher": teacher,
        "features": torch.randn(rows, 37, generator=generator),
    }


def by_the_twin(state: DynamicsState, inputs: dict[str, Tensor], tick: int, **options: Any) -> None:
    reference.dynamics.dynamics_update_(
        state,
        *(inputs[name].cpu() for name in ("logits", "target", "indices")),
        torch.tensor(tick),
        options.get("temperature", 1.0),
        inputs["teacher"].cpu() if state.el2n_sl is not None else None,
        inputs["features"].cpu() if state.grand is not None else None,
        options.get("signal", "1-p"),
        options.get("soft_temperature"),
    )


def assert_agree(got: DynamicsState, want: DynamicsState) -> None:
    for name, x, y in zip(DynamicsState._fields, got, want, strict=True):
        if x is None or y is None:
            assert x is y
        elif name in COUNTERS:
            assert torch.equal(x.cpu(), y), name
        else:
            seen = y.isfinite()  # NaN: not seen in that tick; infinite: the margin of one class
            assert torch.equal(x.cpu()[~seen].nan_to_num(), y[~seen].nan_to_num())
            bound = FLOAT32 + ROUNDING[y.dtype]
            grid = 3e-8 * y.numel() ** 0.5 if y.dtype is torch.float16 else 0.0  # half of 2^-24
            assert_close(x.cpu()[seen].double(), y[seen].double(), bound, name, absolute=grid)


@pytest.mark.parametrize("signal", ["1-p", "nlp", "el2n"])
@pytest.mark.parametrize("ring", [torch.float32, torch.float16])
@pytest.mark.parametrize("extras", [(), EXTRAS], ids=["default", "everything"])
def test_a_training(
    backend: Backend, signal: str, ring: torch.dtype, extras: tuple[str, ...]
) -> None:
    """Five ticks of partial batches; the ring is shorter."""
    count, options = 40, {"signal": signal, "temperature": 1.5}
    want = new_state(count, dtype=ring, extras=extras)
    got = on(want, backend.device)
    for tick in range(5):
        inputs = batch(23, 12, tick, count)
        by_the_twin(want, inputs, tick, **options)
        inputs = {name: x.to(backend.device) for name, x in inputs.items()}
        given = inputs if extras else {n: inputs[n] for n in ("logits", "target", "indices")}
        dynamics_update_(got, tick=torch.tensor(tick, device=backend.device), **given, **options)  # type: ignore[arg-type]
    assert_agree(got, want)


def test_a_temperature_of_the_soft_labels_alone(backend: Backend) -> None:
    options = {"temperature": 1.5, "soft_temperature": 20.0}
    want = new_state(40, extras=EXTRAS)
    got = on(want, backend.device)
    for tick in range(2):
        inputs = batch(23, 12, tick, 40)
        by_the_twin(want, inputs, tick, **options)
        given = {name: x.to(backend.device) for name, x in inputs.items()}
        dynamics_update_(got, tick=torch.tensor(tick, device=backend.device), **given, **options)  # type: ignore[arg-type]
    assert_agree(got, want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_of_the_logits(backend: Backend, dtype: torch.dtype) -> None:
    if dtype not in backend.dtypes:
        return  # float64 on CUDA runs the twin
    inputs = batch(7, 100, 1, 9)
    inputs["logits"] = inputs["logits"].to(dtype)
    want = new_state(9)
    by_the_twin(want, inputs, 2)
    got = on(new_state(9), backend.device)
    arguments = [inputs[n].to(backend.device) for n in ("logits", "target", "indices")]
    dynamics_update_(got, *arguments, torch.tensor(2, device=backend.device))
    assert_agree(got, want)


def test_layouts_give_the_same_bits(backend: Backend) -> None:
    inputs = {n: x.to(backend.device) for n, x in batch(5, 127, 3, 6).items()}
    tick = torch.tensor(1, device=backend.device)
    expected = on(new_state(6), backend.device)
    names = ("logits", "target", "indices")
    dynamics_update_(expected, *(inputs[n] for n in names), tick)
    spread = {n: inputs[n].repeat_interleave(2)[::2] for n in names[1:]}
    for logits in layouts(inputs["logits"]).values():
        got = on(new_state(6), backend.device)
        dynamics_update_(got, logits, spread["target"], spread["indices"], tick)
        assert equal(got, expected)


def test_a_batch_split_in_two_gives_the_same_bits(backend: Backend) -> None:
    inputs = {n: x.to(backend.device) for n, x in batch(9, 50, 4, 9).items()}
    tick = torch.tensor(0, device=backend.device)
    states = [on(new_state(9), backend.device) for _ in range(2)]
    values = [inputs[n] for n in ("logits", "target", "indices")]
    dynamics_update_(states[0], *values, tick)
    for part in (slice(0, 4), slice(4, 9)):
        dynamics_update_(states[1], *(x[part] for x in values), tick)
    assert equal(*states)


@pytest.mark.parametrize(
    "backend", ["simt", pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True
)
def test_infinite_inputs_change_nothing_on_cuda(backend: Backend) -> None:
    def state() -> DynamicsState:
        return on(new_state(6, extras=("el2n_sl", "grand")), backend.device)

    def update(given: DynamicsState, rows: list[int]) -> None:
        part = {n: inputs[n][rows].to(backend.device) for n in inputs}
        tick = torch.tensor(0, device=backend.device)
        values = [part[n] for n in ("logits", "target", "indices")]
        dynamics_update_(given, *values, tick, teacher=part["teacher"], features=part["features"])

    inputs = batch(6, 20, 5, 6)
    inputs["indices"] = torch.arange(len(inputs["indices"]))
    inputs["logits"][1, 3] = torch.inf
    inputs["teacher"][2, 3] = torch.inf
    inputs["features"][3, 0] = torch.nan
    got, want = state(), state()
    update(got, [0, 1, 2, 3, 4])
    update(want, [0, 4])
    assert equal(got, want)
    assert got.seen.tolist()[:5] == [1, 0, 0, 0, 1]


@pytest.mark.parametrize(
    "backend", ["simt", pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True
)
def test_rows_that_may_not_be_change_nothing_on_cuda(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = batch(6, 20, 5, 6)
    inputs["logits"][1, 19] = torch.nan
    inputs["target"][2] = 20
    inputs["indices"][3:5] = torch.tensor([6, -1])
    good = [0, 5]
    want = new_state(6)
    by_the_twin(want, {n: x[good] for n, x in inputs.items()}, 0)
    names = ("logits", "target", "indices")
    arguments = [inputs[n].to(backend.device) for n in names]
    tick = torch.tensor(0, device=backend.device)
    got = on(new_state(6), backend.device)
    dynamics_update_(got, *arguments, tick)
    assert_agree(got, want)
    dynamics_update_(got, *arguments, tick - 1)  # a tick before the first one
    assert_agree(got, want)
    monkeypatch.setenv("PYDDFAST_DEBUG", "1")
    with pytest.raises(ValueError, match="target has values"):
        dynamics_update_(got, *arguments, tick)


@pytest.mark.parametrize("rows", [2, 3, 64, 257])
def test_equal_indices_are_found_wherever_they_are(rows: int) -> None:
    """The CPU kernel's table: runs, strides and far apart numbers."""
    count = 5000
    for indices in (torch.arange(rows), torch.arange(rows) * 17, count - 1 - torch.arange(rows)):
        logits, target = torch.zeros(rows, 3), torch.zeros(rows, dtype=torch.int64)
        state = new_state(count)
        dynamics_update_(state, logits, target, indices, torch.tensor(0))
        assert int(state.seen.sum()) == rows
        for first, second in ((0, rows - 1), (rows // 2, rows // 2 - 1)):
            twice = indices.clone()
            twice[second] = twice[first]
            before = on(state, torch.device("cpu"))
            with pytest.raises(ValueError, match=f"{int(twice[first])} more than once"):
                dynamics_update_(state, logits, target, twice, torch.tensor(0))
            assert equal(state, before)


@pytest.mark.parametrize(
    ("capability", "classes"),
    [
        *((90, classes) for classes in RESIDENT + CLUSTER + LOOPED),
        *((80, classes) for classes in (8192, 8193, 21841)),
    ],
)
def test_configuration(host: ModuleType, capability: int, classes: int) -> None:
    """Every launch configuration of the kernel."""
    host.set_compute_capability(capability)
    rows = 1 if classes > 2048 else 3  # 3 rows leave part of the last warp or CTA without a row
    inputs = batch(rows, classes, classes, 5)
    want, got = new_state(5), new_state(5)
    by_the_twin(want, inputs, 1)
    values = [inputs[n] for n in ("logits", "target", "indices")]
    dynamics_update_(got, *values, torch.tensor(1))
    assert_agree(got, want)


def test_opcheck() -> None:
    inputs = batch(4, 10, 6, 8)
    state = new_state(8, extras=("el2n_sl", "entropy", "nll", "grand"))
    arguments = [inputs[n] for n in ("logits", "target", "indices")]
    torch.library.opcheck(
        _native.raw.dynamics_update_,
        (*state[:-1], *arguments, torch.tensor(0), inputs["teacher"], inputs["features"], 1.5, 0),
        # Schema and fake kernel; autograd does not go through an op that returns nothing.
        test_utils=("test_schema", "test_faketensor"),
    )


def test_compile() -> None:
    torch._dynamo.reset()

    @torch.compile(fullgraph=True)
    def step(state: DynamicsState, logits: Tensor, rest: list[Tensor]) -> None:
        dynamics_update_(state, logits * 2, *rest)

    inputs = batch(4, 10, 7, 8)
    rest = [inputs["target"], inputs["indices"], torch.tensor(0)]
    got, want = new_state(8), new_state(8)
    step(got, inputs["logits"], rest)
    dynamics_update_(want, inputs["logits"] * 2, *rest)
    assert equal(got, want)
