"""Each barrier of the CUDA kernels is needed: without it a kernel gives something else, or fails.

The sites are those in the sources: a new one fails here until a call that reaches it is named.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from pyddfast import ops
from tests.ops import test_augment_kernels as augment
from tests.ops import test_kd_kernels as kd
from tests.ops import test_patch_stats_kernels as patch_stats
from tests.ops import test_select_kernels as select
from tests.ops import test_stats_kernels as stats
from tests.ops import test_synthesis_kernels as synthesis
from tests.simt import build

SEEDS = range(8)
Call = Callable[[], list[Tensor]]


def losses() -> list[Tensor]:
    """A CTA a row (3000 classes), and a cluster (12,001)."""
    return [*kd.kd(*kd.pair(2, 3000)), *kd.kd(*kd.pair(2, 12_001))]


def crops() -> list[Tensor]:
    images, index, params = augment.batch((7, 40))
    return [ops.augment(images, index, params, **augment.factors(3), size=(7, 40))]


def channels() -> list[Tensor]:
    """Planes, and rows of channels."""
    planes = stats.run(stats.activation((3, 2, 40, 40), False), norm=False)
    return planes + stats.run(stats.activation((3, 6, 20, 20), True), norm=False)


def picks() -> list[Tensor]:
    x, bounds = select.rows([130, 9], 20, torch.float32)
    found = [ops.k_center(x, 4, segments=bounds), ops.herding(x, 4)]
    return [*(each.picks for each in found), ops.facility_location(x, 4).picks]


CALLS: dict[str, Call] = {
    "csrc/common/reduce.h": losses,
    "csrc/common/resample_kernels.h": crops,
    "csrc/select/best_kernels.h": picks,
    "csrc/stats/bn_distance.cu": lambda: stats.distance(40),
    "csrc/stats/channel_stats.cu": channels,
    "csrc/stats/patch_stats.cu": lambda: patch_stats.run(
        (2, 2, 16, 16), 16, torch.float32, exact=False
    ),
    "csrc/synthesis/crop_flip_roll.cu": lambda: synthesis.run(
        "one pixel to a view: the adjoint in two strips"
    ),
}
SITES = sorted(
    build.written_barriers(p for p in build.CSRC.rglob("*") if p.suffix in (".h", ".cu"))
)


def test_sites() -> None:
    """Every file that is listed has one: otherwise the list is out of date."""
    assert {site.partition(":")[0] for site in SITES} == set(CALLS)


@pytest.mark.parametrize("site", SITES)
def test_every_barrier_is_needed(host: ModuleType, site: str) -> None:
    call = CALLS[site.partition(":")[0]]
    expected = call()
    assert site in host.barrier_sites()
    host.drop_barrier(site)
    assert any(differs(host, seed, call, expected) for seed in SEEDS)


def differs(host: ModuleType, seed: int, call: Call, expected: list[Tensor]) -> bool:
    host.set_seed(seed)
    try:
        return not all(torch.equal(a, b) for a, b in zip(call(), expected, strict=True))
    except RuntimeError:
        return True
