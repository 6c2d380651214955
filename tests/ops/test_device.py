"""What only a device that runs apart from the host can break: streams, graphs, sizes.

On the backend ``simt`` the same calls run one after the other; on ``cuda`` they are captured,
replayed, and queued on another stream.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyddfast.ops import _native
from tests.host_copies import HostCopies
from tests.ops.conftest import Backend
from tests.ops.device_cases import CASES, DeviceCase, Inputs, Outputs
from tests.tolerances import FLOAT32, ROUNDING, assert_close

IMAGES = 5  # rows or images of a call: no multiple of what a CTA takes
pytestmark = pytest.mark.usefixtures("one_thread")
cases = pytest.mark.parametrize("case", CASES, ids=str)
devices = pytest.mark.parametrize(
    "backend", ["simt", pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True
)


def put(backend: Backend, inputs: Inputs) -> Inputs:
    return {name: x.to(backend.device) for name, x in inputs.items()}


def same(got: Outputs, want: Outputs) -> bool:
    """The same bits, NaN where NaN is."""
    pairs = zip(got, want, strict=True)
    return all(torch.equal(a.isnan(), b.isnan()) and equal(a, b) for a, b in pairs)


def equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(), b.nan_to_num()) if a.is_floating_point() else a.equal(b)


def test_every_operator_is_among_the_cases(
    emulated_library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator of the library that no case calls has no test on a device."""
    called = set()

    def counted(name: str) -> Callable[..., object]:
        operator = getattr(_native.raw, name)

        def call(*arguments: object) -> object:
            called.add(name)
            return operator(*arguments)

        return call

    with _native.emulated(emulated_library):
        for name in _native.OPERATORS:
            monkeypatch.setitem(_native.raw.__dict__, name, counted(name))
        for case in CASES:
            case.call(case.make(IMAGES, 0))
        monkeypatch.undo()
    # Value and gradient in one pass are the CPU's way: a device computes the gradient again.  So is
    # the choice of neighbours from a product.
    of_cpu = {"soft_ce_value_and_grad", "mse_ce_value_and_grad", "knn_propose_", "knn_decide"}
    assert set(_native.OPERATORS) - called == of_cpu


@devices
@cases
def test_values_are_those_of_the_cpu(backend: Backend, case: DeviceCase) -> None:
    """Of the CPU's kernels, which other tests hold against float64; picks are equal."""
    inputs = case.make(IMAGES, 0)
    got = case.call(put(backend, inputs))
    with _native.emulated("pyddfast"):
        want = case.call(inputs)
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        assert a.dtype is b.dtype
        if not a.is_floating_point():
            assert torch.equal(a.cpu(), b)
            continue
        assert torch.equal(a.isnan().cpu(), b.isnan())
        a, b = a.nan_to_num(), b.nan_to_num()
        # Half a step of fp16's finest grid an element.
        grid = 6e-8 * b.numel() ** 0.5 if b.dtype is torch.float16 else 2e-6
        assert_close(a, b, 4 * FLOAT32 + 2 * ROUNDING[a.dtype], f"output {k}", absolute=grid)


@pytest.mark.parametrize("case", [case for case in CASES if case.captures], ids=str)
def test_a_call_waits_for_nothing(monkeypatch: pytest.MonkeyPatch, case: DeviceCase) -> None:
    """Without values, reading one is an error; a copy from the host would wait for the device."""
    monkeypatch.setattr(_native, "usable", lambda *_: True)
    inputs = {name: x.to("meta") for name, x in case.make(IMAGES, 0).items()}
    with HostCopies() as copies:
        case.call(inputs)
    assert copies.found == []


def recorded(call: Callable[[], Outputs], device: torch.device) -> Callable[[], Outputs]:
    """The call as a graph that is replayed; without a device of its own, the call again."""
    if device.type != "cuda":
        return call
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):  # whatever is made once has to be there before the capture
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()

    def replay() -> Outputs:
        graph.replay()
        return outputs

    return replay


@devices
@pytest.mark.parametrize("case", [case for case in CASES if case.captures], ids=str)
def test_a_replay_sees_changed_inputs(backend: Backend, case: DeviceCase) -> None:
    """No launch parameter, no pointer and no value of the first inputs is kept."""
    inputs = put(backend, case.make(IMAGES, 0))
    again = recorded(lambda: case.call(inputs), backend.device)
    results = []
    for seed in (1, 2, 1):
        for name, x in case.make(IMAGES, seed).items():
            inputs[name].copy_(x)
        results.append([x.clone() for x in again()])
        assert same(results[-1], case.call(put(backend, case.make(IMAGES, seed))))
    assert not same(results[0], results[1])
    assert same(results[0], results[2])


@pytest.mark.cuda
@cases
def test_a_side_stream(case: DeviceCase) -> None:
    """A kernel on any other stream would find the inputs of before the copy."""
    device = torch.device("cuda")
    late, inputs = ({n: x.to(device) for n, x in case.make(IMAGES, s).items()} for s in (1, 0))
    want = case.call(late)
    case.call(inputs)  # loads the kernels: that waits for everything
    torch.cuda.synchronize()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)  # clock cycles: tens of milliseconds
        for name, x in late.items():
            inputs[name].copy_(x)
        got = case.call(inputs)
    side.synchronize()
    assert same(got, want)
