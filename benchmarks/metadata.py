"""Where and with what a run was made: facts as found, nothing set."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
PEERS = ("liger-kernel", "quack-kernels", "submodlib-py", "apricot-select", "faiss-cpu", "pillow")


def _output(*command: str) -> str | None:
    """The command's standard output, or None where it does not exist or fails."""
    if shutil.which(command[0]) is None:
        return None
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return result.stdout.strip() if result.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    clocks = [float(mhz) for mhz in re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", text, re.MULTILINE)]
    return {
        "name": model[1] if model else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "clock_mhz": max(clocks) if clocks else None,
        "simd": torch.backends.cpu.get_cpu_capability(),
        "load_average_1min": round(os.getloadavg()[0], 2),
    }


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    query = "clocks.sm,clocks.mem,driver_version"
    found = _output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits")
    sm, memory, driver = found.splitlines()[0].split(", ") if found else (None, None, None)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": round(properties.L2_cache_size / 2**20, 1),
        "clock_mhz": float(sm) if sm else None,
        "memory_clock_mhz": float(memory) if memory else None,
        "driver": driver,
        "cuda": torch.version.cuda,
    }


def collect(device: torch.device) -> dict[str, Any]:
    """Device, CPU, versions, git revision and time of this run."""
    revision = _output("git", "rev-parse", "HEAD")
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_revision": revision,
        "git_dirty": bool(_output("git", "status", "--porcelain", "--untracked-files=no"))
        if revision
        else None,
        "device": device.type,
        "cpu": _cpu(),
        "gpu": _gpu(device) if device.type == "cuda" else None,
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": {
            "python": sys.version.split()[0],
            **{name: _version(name) for name in ("pyddfast", "torch", "numpy", "triton")},
            **{name: _version(name) for name in PEERS},
        },
    }
