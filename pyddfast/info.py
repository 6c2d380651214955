"""What this installation can do: versions, backends, CPU and CUDA kernels, missing extras."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from typing import Any

import torch

from pyddfast._version import __version__
from pyddfast.ops import _native


def missing_extras() -> dict[str, list[str]]:
    """For each extra of which something is not installed, the packages it lacks."""
    try:
        requirements = importlib.metadata.requires("pyddfast") or []
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        requirements = []
    missing: dict[str, list[str]] = {}
    for requirement in requirements:
        text, _, marker = requirement.partition(";")
        if "extra ==" not in marker:
            continue
        extra = marker.split("extra ==")[1].strip().strip("\"'")
        name = "".join(c if c.isalnum() or c in "-_." else " " for c in text).split()[0]
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.setdefault(extra, []).append(name)
    return missing


def info() -> dict[str, Any]:
    """Versions, backends and kernels of this installation, as plain values."""
    build = _native.build_info()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    architectures = build.get("cuda_architectures", "")
    backends = []
    if _native.load_error is None:
        backends.append("cpu")
        if architectures:
            backends.append("cuda")
    return {
        "pyddfast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "library": str(_native.LIBRARY) if _native.load_error is None else None,
        "load_error": _native.load_error,
        "compiler": build.get("compiler"),
        "backends": backends,
        "cpu_dispatch": build.get("cpu"),
        "cuda_architectures": architectures.split(";") if architectures else [],
        "gpus": gpus,
        "missing_extras": missing_extras(),
    }


def format_info() -> str:
    """`info` as lines for a person."""
    found = info()
    cuda = found["torch_cuda"] or "a build without CUDA"
    kernels = ", ".join(found["backends"]) or "none: the reference implementations run"
    extras = "; ".join(f"[{e}] lacks {', '.join(p)}" for e, p in found["missing_extras"].items())
    rows = [
        ("pyddfast", found["pyddfast"]),
        ("Python", found["python"]),
        ("torch", f"{found['torch']} (CUDA: {cuda}), {found['threads']} threads"),
        ("native library", found["library"] or found["load_error"]),
        ("compiled by", found["compiler"] or "-"),
        ("kernels for", kernels),
        ("CPU dispatch", found["cpu_dispatch"] or "-"),
        (
            "CUDA architectures",
            " ".join(found["cuda_architectures"]) or "none (built without nvcc)",
        ),
        ("GPUs", ", ".join(found["gpus"]) or "none visible"),
        ("missing extras", extras or "none"),
    ]
    return "\n".join(f"{name:<19} {value}" for name, value in rows)
