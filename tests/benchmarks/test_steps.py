"""Whole steps: both sides compute the same, and a run of them follows the schema."""

from __future__ import annotations

import torch

from benchmarks import run, schema
from benchmarks.accuracy import exact_result, relative_error
from benchmarks.harness import Case
from benchmarks.steps import STEPS, StepCase

CPU = torch.device("cpu")
# Other draws a provider: nothing to compare.  The rest, relative to the official result: rounding,
# which twenty layers of BatchNorm over two images enlarge; RDED's bytes may be a level apart.
DIFFERENCES = {"DM, convnet-d3": None, "SRe2L recover, resnet18": 1e-4}
DIFFERENCES |= {"RDED synthesis": 0.02, "SL+KD student, resnet18": 1e-5}
DIFFERENCES |= {"TM, convnet-d3": 1e-5, "Coreset selection, facility location": 0.0}


def test_the_steps_compute_the_same(one_thread: None) -> None:
    names = [name for name in STEPS if name != "recover-resnet50"]  # as 18, and slower
    result = run.run(CPU, step_names=names, quick=True, rounds=1)
    schema.validate(result)
    assert result["metadata"]["left_out"] == {}
    rows = result["steps"]
    assert [row["provider"] for row in rows] == ["ours", "official"] * len(names)
    assert [row["step"] for row in rows[::2]] == list(dict.fromkeys(row["step"] for row in rows))
    for ours, official in zip(rows[::2], rows[1::2], strict=True):
        allowed = DIFFERENCES[ours["step"]]
        if allowed is None:
            assert ours["difference"] is None
        else:
            assert ours["difference"] <= allowed, ours["step"]
        assert 0 < ours["op_share"] < 1
        assert official["op_share"] is None


def test_a_step_that_does_not_compile_is_left_out() -> None:
    def fails() -> torch.Tensor:
        raise RuntimeError("no compiler")

    x = torch.ones(3)
    providers = {"ours": lambda: x * 1.5, "official": lambda: x, "torch.compile": fails}
    left_out: dict[str, str] = {}
    rows = run.measure_step(StepCase("a step", "small", providers), CPU, 1, left_out)
    assert [row["provider"] for row in rows] == ["ours", "official"]
    assert rows[0]["difference"] == 0.5
    assert left_out == {"a step: torch.compile": "RuntimeError: no compiler"}


def test_the_error_of_a_call() -> None:
    def provider(scale: float):
        return lambda inputs: lambda: (inputs["x"] * scale, [inputs["x"].sum(), 3])

    providers = {"ours": provider(2.0), "off": provider(2.5), "picks": lambda inputs: lambda: 7}
    x = torch.tensor([3.0, 4.0])
    case = Case("op", "forward", (2,), "float32", 8, lambda seed: {"x": x}, providers)
    exact = exact_result(case)
    assert exact is not None
    assert [t.tolist() for t in exact] == [[6.0, 8.0], 7.0]
    assert relative_error(providers["ours"]({"x": x})(), exact) == 0.0
    assert relative_error(providers["off"]({"x": x})(), exact) == 0.25
    assert relative_error(providers["picks"]({"x": x})(), exact) is None
    single = {"ours": lambda inputs: lambda: inputs["x"].float()}  # no float64 form
    assert exact_result(Case("op", "forward", (2,), "", 8, lambda seed: {"x": x}, single)) is None
