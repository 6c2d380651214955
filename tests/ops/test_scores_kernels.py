"""The CUDA kernels of the scores family on the emulator: every launch configuration."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from tests.ops.test_kd_kernels import CLUSTER, LOOPED, RESIDENT
from tests.ops.test_scores_contract import Inputs, check, inputs_for, run

# Targets of probabilities take the looped kernel above 24,576 classes.
CONFIGURATIONS = [
    *((90, classes) for classes in RESIDENT + CLUSTER + LOOPED),
    *((80, classes) for classes in (8192, 8193, 21841)),
]


def single(inputs: Inputs) -> Inputs:
    return {n: x.float() if x.dtype.is_floating_point else x for n, x in inputs.items()}


def flat(inputs: Inputs) -> list[Tensor]:
    return [x for x in run(inputs) if x is not None]


@pytest.mark.parametrize("kind", ["label", "soft"])  # the two kernels; the teacher's are kd's
@pytest.mark.parametrize(("capability", "classes"), CONFIGURATIONS)
def test_configuration(host: ModuleType, kind: str, capability: int, classes: int) -> None:
    """Every score against the float64 twin."""
    host.set_compute_capability(capability)
    rows = 1 if classes > 2048 else 3  # 3 rows leave part of the last warp or CTA without a row
    check(single(inputs_for(kind, rows, classes)))


@pytest.mark.parametrize("classes", [10, 1000, 3000])  # lanes of a warp; a warp; a CTA
@pytest.mark.parametrize("width", [1, 4, 37, 512, 2048])  # fewer and more chunks than threads
def test_feature_widths(host: ModuleType, classes: int, width: int) -> None:
    inputs = inputs_for("label", 2, classes)
    generator = torch.Generator().manual_seed(width)
    inputs["features"] = torch.randn(2, width, generator=generator, dtype=torch.float64)
    check(single(inputs))


@pytest.mark.parametrize(("capability", "classes"), [(90, 3000), (90, 12_001), (80, 12_001)])
def test_bits_do_not_depend_on_the_schedule(
    host: ModuleType, capability: int, classes: int
) -> None:
    host.set_compute_capability(capability)
    inputs = single(inputs_for("all", 2, classes))
    expected = flat(inputs)
    for seed in range(1, 6):
        host.set_seed(seed)
        assert all(torch.equal(x, y) for x, y in zip(flat(inputs), expected, strict=True))
