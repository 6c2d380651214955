"""The backends that every operator is tested on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from pyddfast.ops import _native
from tests.simt import build

EMULATED = "pyddfast_simt"


@dataclass(frozen=True)
class Backend:
    """Where an operator runs: the twin, the CPU kernels, the emulated or the real CUDA kernels."""

    name: str

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.name == "cuda" else "cpu")

    @property
    def dtypes(self) -> list[torch.dtype]:
        floats = [torch.float32, torch.float16, torch.bfloat16]
        return floats if self.name in ("simt", "cuda") else [*floats, torch.float64]

    def put(self, tensor: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return tensor.to(self.device, dtype)

    def __str__(self) -> str:
        return self.name


@pytest.fixture(scope="session")
def emulated_library() -> Iterator[str]:
    """Loads the CUDA kernels, compiled against the emulator, as operators for CPU tensors.

    `PYDDFAST_SIMT_LAUNCHED` names a file for the kernels that the session has launched.
    """
    sources = sorted(str(p.relative_to(build.REPO)) for p in operators() + kernels())
    library = build.build_torch_library(
        EMULATED, sources, defines=[f"PYDDFAST_NAMESPACE={EMULATED}", "PYDDFAST_SIMT"]
    )
    torch.ops.load_library(str(library))
    yield EMULATED
    if path := os.environ.get("PYDDFAST_SIMT_LAUNCHED"):
        Path(path).write_text("\n".join(build.load_host().launched_kernels()))


def operators() -> list:
    return list((build.REPO / "csrc").rglob("ops.cpp"))


def kernels() -> list:
    return list((build.REPO / "csrc").rglob("*.cu"))


@pytest.fixture(params=["reference", "cpu", "simt", pytest.param("cuda", marks=pytest.mark.cuda)])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    chosen = Backend(request.param)
    if chosen.name == "reference":
        monkeypatch.setattr(_native, "usable", lambda *_: False)
        yield chosen
        return
    monkeypatch.setenv("PYDDFAST_STRICT", "1")  # a test of a kernel must not run its twin
    if chosen.name == "simt":
        with _native.emulated(request.getfixturevalue("emulated_library")):
            yield chosen
    else:
        yield chosen


@pytest.fixture
def host(emulated_library: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The emulator's controls, with the operators running on it."""
    monkeypatch.setenv("PYDDFAST_STRICT", "1")
    module = build.load_host()
    module.reset()
    with _native.emulated(emulated_library):
        yield module
    module.reset()
