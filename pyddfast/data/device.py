"""Devices, looked at before any work."""

from __future__ import annotations

import torch

__all__ = ["usable_device"]


def usable_device(device: torch.device | str) -> torch.device:
    """The device, with its number.

    Raises:
        ValueError: it does not exist here.
    """
    try:
        # torch says in three types what a device lacks.
        return torch.empty(1, device=device).device
    except (AssertionError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {str(device)!r} cannot be used here: {reason}") from error
