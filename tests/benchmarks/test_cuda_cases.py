"""The cases of a GPU run on tensors without values: what no graph can hold is seen without a GPU.

A call that reads a value waits for the device, and so does a copy from or to the host's pageable
memory: a capture refuses both.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.harness import Case
from benchmarks.ops import CASES
from pyddfast.ops import _native
from tests.host_copies import HostCopies


class Device(str):
    """CUDA for the cases, and for torch, which may have none, the device of shapes alone."""

    type = "cuda"


DEVICE: Any = Device("meta")
# They read parameters before they are timed, which nothing without values can.
READERS = {("augment", "torch (image by image)"), ("multi_crop", "eager")}


def waits(case: Case, provider: str) -> str | None:
    """Why a capture of the call would fail."""
    step = case.providers[provider](case.make_inputs(0))
    with HostCopies() as copies:
        try:
            step()
        except (RuntimeError, NotImplementedError) as error:
            return str(error)
    return copies.found[0] if copies.found else None


@pytest.mark.parametrize("op", CASES)
def test_graphs_can_hold_what_they_are_to_hold(monkeypatch: pytest.MonkeyPatch, op: str) -> None:
    monkeypatch.setattr(_native, "usable", lambda *_: True)
    for case in CASES[op](DEVICE, True):
        for provider in case.providers:
            if provider.startswith("torch.compile") or (op, provider) in READERS:
                continue
            found = waits(case, provider)
            if case.captures:
                assert found is None, (case.name, provider)
            elif provider == "ours":
                assert found is not None, case.name


@pytest.mark.parametrize("op", CASES)
@pytest.mark.parametrize("device", [torch.device("cpu"), DEVICE], ids=["cpu", "cuda"])
def test_no_two_cases_have_one_name(device: Any, op: str) -> None:
    names = [case.name for case in CASES[op](device, False)]
    assert len(names) == len(set(names))
