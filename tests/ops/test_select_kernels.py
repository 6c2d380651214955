"""The CUDA kernels of the ``select`` family on the emulator: configurations and schedules."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from pyddfast import ops
from pyddfast.ops.reference import select as twin

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Rows of the segments and features: what csrc/select/*.cu decides by.
CONFIGURATIONS = {
    "a row a warp, less than a warp of features": ([3, 8], 5),
    "two CTAs a segment, an empty one, a step of unrolled loads and one more": ([130, 0, 9], 129),
    "more CTAs than warps": ([600], 33),
    "more features than a CTA has threads": ([9], 300),
}


def rows(sizes: list[int], dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = (torch.randn(sum(sizes), dim, generator=generator) + 0.5).to(dtype)
    return x, torch.tensor([0, *sizes]).cumsum(0)


def spans(bounds: Tensor) -> list[tuple[int, int]]:
    return [(a, b) for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True) if a < b]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configuration(host: ModuleType, name: str, dtype: torch.dtype) -> None:
    sizes, dim = CONFIGURATIONS[name]
    x, bounds = rows(sizes, dim, dtype)
    k = 5
    weight = 0.5 + torch.rand(len(x), generator=torch.Generator().manual_seed(1))
    for metric in ("euclidean", "cosine", "jeffreys"):
        given = x.float().log_softmax(1).to(dtype) if metric == "jeffreys" else x
        found = ops.k_center(given, k, metric=metric, segments=bounds)
        want = [
            twin.k_center(given[a:b], min(k, b - a), metric, 0, [], None)[0] + a
            for a, b in spans(bounds)
        ]
        assert torch.equal(found.picks, torch.cat(want))
    for farthest in (False, True):
        picks = ops.herding(x, k, farthest=farthest, segments=bounds).picks
        want = [
            twin.herding(x[a:b], min(k, b - a), farthest=farthest) + a for a, b in spans(bounds)
        ]
        assert torch.equal(picks, torch.cat(want))
    matrices = [
        twin.similarity(x[a:b].double(), x[a:b].double(), "rbf", 1 / dim, 0.0)
        for a, b in spans(bounds)
    ]
    served = ops.facility_location(x, k, metric="rbf", sample_weight=weight, segments=bounds)
    want = [
        twin.facility_location(s, min(k, b - a), weight[a:b])[0] + a
        for s, (a, b) in zip(matrices, spans(bounds), strict=True)
    ]
    assert torch.equal(served.picks, torch.cat(want))
    for metric in ("cosine01", "cosine", "dot", "euclidean", "rbf"):
        cut = ops.graph_cut(x, k, metric=metric, segments=bounds)
        want = []
        for a, b in spans(bounds):
            part = x[a:b].double()
            largest = float(torch.cdist(part, part).max())
            s = twin.similarity(part, part, metric, 1 / dim, largest)
            want.append(twin.graph_cut(s, s.sum(0), min(k, b - a), diagonal=False)[0] + a)
        assert torch.equal(cut.picks, torch.cat(want))
    given = ops.graph_cut(None, k, similarity=[s.to(dtype) for s in matrices])
    want = [
        twin.graph_cut(s.to(dtype), s.to(dtype).double().sum(0), min(k, len(s)), diagonal=False)[0]
        + a
        for s, (a, _) in zip(matrices, spans(bounds), strict=True)
    ]
    assert torch.equal(given.picks, torch.cat(want))


def test_configuration_of_more_rows_than_warps(host: ModuleType) -> None:
    """Of facility location: 256 CTAs of 8 warps, of which some take a second row."""
    s = torch.rand(2100, 2100, generator=torch.Generator().manual_seed(3))
    s[:, -1] = 0.95
    picks = ops.facility_location(None, 2, similarity=s).picks
    assert int(picks[0]) == len(s) - 1
    assert torch.equal(picks, twin.facility_location(s.double(), 2, torch.ones(len(s)))[0])


def test_picks_do_not_depend_on_the_schedule(host: ModuleType) -> None:
    x, bounds = rows([130, 9], 20, torch.float32)

    def run() -> list[Tensor]:
        found = [ops.k_center(x, 4, segments=bounds), ops.herding(x, 4, segments=bounds)]
        found += [ops.facility_location(x, 4, segments=bounds)]
        return [value for result in found for value in result]

    expected = run()
    for seed in range(1, 5):
        host.set_seed(seed)
        assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))
