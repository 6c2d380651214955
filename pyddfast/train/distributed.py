"""Jobs split over the processes of ``torchrun``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from pyddfast.data.device import usable_device

__all__ = ["Ranks", "default_device", "divide", "join_ranks", "resolve_device"]

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
        gradients: the group that gradients are summed over; None: ``group``.
    """

    rank: int = 0
    world: int = 1
    group: dist.ProcessGroup | None = None
    gradients: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this process writes for all."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when every process of the job has come here."""
        if self.world > 1:
            dist.barrier(self.group)

    def gather(self, value: Tensor) -> Tensor:
        """The values of all processes, in their order: (world, *value.shape), on the CPU."""
        own = value.detach().cpu()
        if self.world == 1:
            return own[None]
        parts = [torch.empty_like(own) for _ in range(self.world)]
        dist.all_gather(parts, own, self.group)
        return torch.stack(parts)

    def agree(self, decision: bool) -> bool:
        """What the first process has decided."""
        if self.world == 1:
            return decision
        told = torch.tensor(decision)
        dist.broadcast(told, 0, self.group)
        return bool(told)

    def add(self, tensor: Tensor) -> None:
        """Give every process the sum of all processes' values, in place."""
        if self.world > 1:
            dist.all_reduce(tensor, group=self.gradients or self.group)

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the first one's values, in place."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0, self.gradients or self.group)


def join_ranks(device: torch.device | None = None) -> Ranks:
    """This process's place in the job: one of many under ``torchrun``, else the only one.

    Starts ``torch.distributed`` unless the caller has.  Barriers go through gloo, gradients too
    unless ``device`` is a GPU.

    Args:
        device: of gradients; None: there are none.
    """
    if not dist.is_available():
        return Ranks()
    group = None
    if dist.is_initialized():
        group = dist.new_group(backend="gloo", timeout=_TIMEOUT)
    elif int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Ranks()
    else:
        dist.init_process_group("gloo", timeout=_TIMEOUT)
    on_gpu = device is not None and device.type == "cuda" and dist.get_world_size() > 1
    gradients = dist.new_group(backend="nccl", timeout=_TIMEOUT) if on_gpu else None
    return Ranks(dist.get_rank(), dist.get_world_size(), group, gradients)


def divide(count: int, parts: int) -> list[slice]:
    """Consecutive parts of ``count`` items, in order; their sizes differ by at most one."""
    ends = [count * k // parts for k in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends)]


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
    return usable_device(device)
