"""The cases of the pairwise family: every provider computes the same."""

import pytest
import torch

from benchmarks.ops import CASES

CPU = torch.device("cpu")


@pytest.mark.parametrize("op", ["last_layer_gram", "knn_topk", "knn_divergence"])
def test_providers_agree(op: str) -> None:
    # torch.compile is left out for its compilation time; it compiles the eager expression.
    for case in CASES[op](CPU, True):
        inputs = case.make_inputs(3)
        names = [name for name in case.providers if name != "torch.compile"]
        assert {"ours", "eager"} < {*names, "torch.compile"}
        ours, *others = (case.providers[name](inputs)() for name in names)
        for other in others:
            if op == "knn_topk":
                assert torch.equal(other[1], ours[1])  # type: ignore[index]
                ours_, other = ours[0], other[0]  # type: ignore[index]
            else:
                ours_ = ours
            assert (other - ours_).abs().max() <= 2e-5 * ours_.abs().max()  # type: ignore
