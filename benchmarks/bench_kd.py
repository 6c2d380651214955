"""pytest-benchmark cases of every op: `pytest benchmarks/bench_kd.py -k kd_loss`.

The same cases and providers as `python -m benchmarks run`, for comparing two working trees
(`--benchmark-save`, `--benchmark-compare`); what is published comes from that runner.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

os.environ.setdefault("PYDDFAST_STRICT", "1")  # never measure a fallback by mistake

from benchmarks.harness import Case
from benchmarks.ops import CASES

DEVICES = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()
PARAMETERS = [
    pytest.param(device, case, provider, id=f"{device.type} {case.name} {provider}")
    for device in DEVICES
    for op in CASES
    for case in CASES[op](device, False)
    for provider in case.providers
]


@pytest.mark.parametrize(("device", "case", "provider"), PARAMETERS)
def test_speed(benchmark: Any, device: torch.device, case: Case, provider: str) -> None:
    torch._dynamo.reset()
    step = case.providers[provider](case.make_inputs(0))

    def run() -> None:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{device.type} {case.name}"
    benchmark.pedantic(run, rounds=30, iterations=5, warmup_rounds=2)
