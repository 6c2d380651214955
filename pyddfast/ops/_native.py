"""The native library: loading it, choosing between it and the reference, its build.

``raw`` holds the private operators (``torch.ops.pyddfast``).  ``usable(*tensors)`` says whether
they serve these tensors; where they do not, the public functions call their twin in
``pyddfast.ops.reference`` on the tensors' own device, with one warning a reason.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

LIBRARY = Path(__file__).resolve().parent.parent / "_C.so"


OPERATORS = (
    "kd_loss",
    "kd_loss_score",
    "kd_value_and_grad",
    "kd_grad_student",
    "kd_grad_teacher",
    "soft_ce",
    "soft_ce_value_and_grad",
    "soft_ce_grad_student",
    "soft_ce_grad_target",
    "mse_ce",
    "mse_ce_value_and_grad",
    "mse_ce_grad_student",
    "mse_ce_grad_teacher",
    "channel_stats",
    "channel_stats_grad",
    "bn_eval_stats",
    "bn_eval_stats_grad",
    "patch_stats",
    "patch_stats_grad",
    "bn_distance",
    "bn_distance_grad",
    "sample_scores",
    "augment",
    "multi_crop",
    "mosaic",
    "crop_flip_roll",
    "norm_relu_pool",
    "norm_relu_pool_grad",
    "norm_relu_pool_double_grad",
    "dsa_color",
    "dsa_shift",
    "dsa_warp",
    "dynamics_update_",
    "gradient_distance",
    "gradient_distance_grad",
    "greedy_rows",
    "facility_location",
    "knn_divergence",
    "knn_propose_",
    "knn_decide",
)


class Raw:
    """The operators of one namespace, each resolved once (an overload costs less a call)."""

    def __init__(self, namespace: str, *, emulated: bool = False) -> None:
        self.emulated = emulated
        for name in OPERATORS:
            setattr(self, name, getattr(getattr(torch.ops, namespace), name).default)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class NoRaw:
    """Stands for the operators where there is no library."""

    emulated = False

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


def _load() -> str | None:
    """Loads the library; returns why it could not be, or None."""
    if not LIBRARY.exists():
        return f"the native library {LIBRARY} was not built (no C++ compiler at install time?)"
    try:
        torch.ops.load_library(str(LIBRARY))  # type: ignore[no-untyped-call]
    except OSError as error:
        return (
            f"the native library {LIBRARY} does not load under torch {torch.__version__}: {error}. "
            "It needs torch 2.11 or newer; reinstall pyddfast to build it again"
        )
    return None


load_error = _load()
raw: Raw | NoRaw = Raw("pyddfast") if load_error is None else NoRaw()
_warned: set[str] = set()


def build_info() -> dict[str, str]:
    """What the library was built with: compiler, CPU dispatch level, CUDA architectures."""
    if load_error is not None:
        return {}
    function = ctypes.CDLL(str(LIBRARY)).pyddfast_build_info
    function.restype = ctypes.c_char_p
    lines = function().decode().splitlines()
    return dict(line.split("=", 1) for line in lines)


_has_cuda_kernels = bool(build_info().get("cuda_architectures"))


def strict() -> bool:
    """Whether falling back to a reference is an error (``PYDDFAST_STRICT=1``)."""
    return os.environ.get("PYDDFAST_STRICT", "0") == "1"


def debug() -> bool:
    """Whether checks that need a device synchronisation are made (``PYDDFAST_DEBUG=1``)."""
    return os.environ.get("PYDDFAST_DEBUG", "0") == "1"


def usable(first: torch.Tensor, *others: torch.Tensor | None) -> bool:
    """Whether the kernels serve these tensors; else warns once (or raises under strict)."""
    if load_error is None and first.is_cpu:  # first: a few tenths of a µs count for small batches
        return True
    if load_error is not None:
        return _fall_back(load_error)
    device = first.device.type
    if device == "cuda" and _has_cuda_kernels and torch.version.cuda is not None:
        if all(t is None or t.dtype is not torch.float64 for t in (first, *others)):
            return True
        return _fall_back("float64 on CUDA")
    return _fall_back(f"there are no kernels for {device} tensors in this build")


def _fall_back(reason: str) -> bool:
    if strict():
        raise RuntimeError(f"PYDDFAST_STRICT=1 and no kernel to run: {reason}")
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(
            f"pyddfast runs its reference implementation, which is slower: {reason}",
            RuntimeWarning,
            stacklevel=4,
        )
    return False


def recomputes(tensor: torch.Tensor) -> bool:
    """Whether the backward computes gradients from the inputs (the CUDA kernels do)."""
    return raw.emulated or not tensor.is_cpu


@contextlib.contextmanager
def emulated(namespace: str) -> Iterator[None]:
    """Runs the operators of `namespace`: the tests' CUDA kernels, emulated on CPU tensors."""
    saved = dict(raw.__dict__)
    raw.__dict__.clear()
    raw.__dict__.update(Raw(namespace, emulated=True).__dict__)
    try:
        yield
    finally:
        raw.__dict__.clear()
        raw.__dict__.update(saved)
