"""The largest memory of a stretch of code, as Linux counts it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["Peak"]


class Peak:
    """Watches the process's resident memory from when it is made."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        self._before = _status("VmRSS")

    def bytes(self) -> int:
        """By how much it was ever larger than at the beginning."""
        return max(_status("VmHWM") - self._before, 0)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)
