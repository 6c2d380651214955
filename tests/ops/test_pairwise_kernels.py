"""The CUDA kernel of ``knn_divergence`` on the emulator: configurations and schedules."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from pyddfast import ops
from tests.ops.test_pairwise import KINDS, neighbourhood, wide_divergence
from tests.tolerances import FLOAT32, assert_close

# Rows, classes and neighbours: what csrc/pairwise/knn_divergence.cu decides by.
CONFIGURATIONS = {
    "less than a warp of classes, less than a CTA of rows": (3, 5, 1),
    "more than a warp, more than a CTA, more neighbours than are unrolled": (6, 70, 9),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_configuration(host: ModuleType, shape: tuple[int, int, int], kind: Any) -> None:
    logp, knn = neighbourhood(*shape)
    got = ops.knn_divergence(logp.float(), knn, kind=kind)
    assert_close(got, wide_divergence(logp.float(), knn, kind), FLOAT32)


def test_bits_do_not_depend_on_the_schedule(host: ModuleType) -> None:
    logp, knn = neighbourhood(6, 70, 9)
    expected = ops.knn_divergence(logp.float(), knn)
    for seed in range(1, 4):
        host.set_seed(seed)
        assert torch.equal(ops.knn_divergence(logp.float(), knn), expected)
