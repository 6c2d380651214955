"""Jobs split over the processes of ``torchrun``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

__all__ = ["Ranks", "default_device", "join_ranks", "resolve_device"]

# Ranks reach a barrier hours apart; torchrun ends the others when one fails, so a limit of our own
# would only end healthy jobs.
_TIMEOUT = timedelta(days=365)


@dataclass(frozen=True)
class Ranks:
    """This process among those of the job.

    Attributes:
        rank: in [0, world).
        world: number of processes.
        group: the group that waits together; None: the default one.
    """

    rank: int = 0
    world: int = 1
    group: dist.ProcessGroup | None = None

    def wait(self) -> None:
        """Return when every process of the job has come here."""
        if self.world > 1:
            dist.barrier(self.group)


def join_ranks() -> Ranks:
    """This process's place in the job: one of many under ``torchrun``, else the only one.

    Starts ``torch.distributed`` (gloo: nothing but barriers goes through it) unless the caller has.
    """
    if not dist.is_available():
        return Ranks()
    if dist.is_initialized():
        group = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        return Ranks(dist.get_rank(), dist.get_world_size(), group)
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Ranks()
    dist.init_process_group("gloo", timeout=_TIMEOUT)
    return Ranks(dist.get_rank(), dist.get_world_size())


def default_device() -> torch.device:
    """CUDA where there is one, under ``torchrun`` each process its own; else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def resolve_device(device: torch.device | str | None) -> torch.device:
    """The device of a job; None: :func:`default_device`.

    Raises:
        ValueError: it does not exist here.
    """
    if device is None:
        return default_device()
    try:
        # torch says in three types what a device lacks.
        return torch.empty(1, device=device).device
    except (AssertionError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {str(device)!r} cannot be used here: {reason}") from error
