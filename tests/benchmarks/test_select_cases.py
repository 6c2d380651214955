"""The cases of the selections: every provider of an op reaches what ours does."""

import pytest
import torch

from benchmarks.ops import CASES
from benchmarks.ops.select import similarities

CPU = torch.device("cpu")


@pytest.mark.parametrize("op", ["k_center", "herding", "facility_location", "graph_cut"])
def test_providers_agree(op: str) -> None:
    # torch.compile is left out for its compilation time; it compiles the eager expression.
    for case in CASES[op](CPU, True):
        inputs = case.make_inputs(3)
        rows, dim, k = case.shape
        assert case.bytes_floor == rows * dim * 4 * (k if op in ("k_center", "herding") else 1)
        ours = case.providers["ours"](inputs)()
        eager = case.providers["eager"](inputs)()
        assert torch.equal(ours, eager)  # type: ignore[arg-type]
        if op == "facility_location":
            s = similarities(inputs["x"])
            peer = case.providers["submodlib"](inputs)()
            picks = [pick for pick, _ in peer]  # type: ignore[attr-defined]
            value = s[:, picks].amax(1).sum()
            assert float(value) == pytest.approx(float(s[:, ours].amax(1).sum()), rel=1e-6)
            assert list(case.providers["apricot"](inputs)().ranking) == picks  # type: ignore
