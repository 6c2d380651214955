"""How much memory a device could still give, for those who would otherwise run out of it."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def free_bytes(device: torch.device) -> int:
    """Bytes that can be had on `device` now; of other accelerators the machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    # What the kernel could give, caches included; all of the machine's where it does not say.
    for line in _meminfo():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _meminfo() -> list[str]:
    file = Path("/proc/meminfo")
    return file.read_text().splitlines() if file.is_file() else []


def check_fits(needed: int, device: torch.device, what: str, instead: str) -> None:
    """Raise where `what` needs more bytes than there are; `instead` says what the caller can do."""
    free = free_bytes(device)
    if needed > free:
        raise ValueError(
            f"{what} needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free on {device}; "
            f"{instead}"
        )
