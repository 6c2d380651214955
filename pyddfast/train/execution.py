"""How a training is executed: precision, operators, memory format, compilation, processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch

__all__ = ["BatchNorm", "Execution", "Precision"]

Precision = Literal["fp32", "bf16"]
BatchNorm = Literal["sync", "rank"]


@dataclass(frozen=True)
class Execution:
    """How the steps of a recipe are computed.

    None of it changes what is trained but by rounding (in bf16, by that of bf16), with one
    exception: batch norm in training mode takes its statistics over the images that are in one
    forward pass, so with ``accumulate`` or ``batch_norm="rank"`` over fewer than the batch.

    Attributes:
        precision: fp32; bf16: autocast of the student, its loss and an online teacher.  Weights,
            optimiser and evaluations stay in float32.
        fused: Compute the model's instance norms, with the ReLU and pooling that follow, as one
            operator each (:func:`pyddfast.nn.fuse_norm_relu_pool`).
        channels_last: Keep images and activations in that memory format.
        compile: Compile the student by torch.compile, once for each size of batch.
        cuda_graph: Replay the student's kernels as CUDA graphs.  CUDA only.
        accumulate: Forward and backward passes that a step's batch is divided into; their
            gradients are added, weighted by their images.
        batch_norm: Of several processes: sync: over the images of all (as in one process); rank:
            of each process on its own, whose running statistics are then the first process's.
    """

    precision: Precision = "fp32"
    fused: bool = True
    channels_last: bool = False
    compile: bool = False
    cuda_graph: bool = False
    accumulate: int = 1
    batch_norm: BatchNorm = "sync"

    def __post_init__(self) -> None:
        for name, allowed in (("precision", Precision), ("batch_norm", BatchNorm)):
            value = getattr(self, name)
            if value not in get_args(allowed):
                raise ValueError(f"{name} must be one of {get_args(allowed)}, got {value!r}")
        for name in ("fused", "channels_last", "compile", "cuda_graph"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if isinstance(self.accumulate, bool) or not isinstance(self.accumulate, int):
            raise TypeError(f"accumulate must be an int, got {self.accumulate!r}")
        if self.accumulate < 1:
            raise ValueError(f"accumulate must be at least 1, got {self.accumulate}")
        if self.cuda_graph and self.accumulate > 1:
            # The gradients of one replay lie where the next one writes.
            raise ValueError("cuda_graph and accumulate > 1 exclude each other")

    @property
    def dtype(self) -> torch.dtype:
        """Of the views."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def check(self, device: torch.device) -> None:
        """Refuse what the device cannot do.

        Raises:
            ValueError: ``cuda_graph`` without CUDA.
        """
        if self.cuda_graph and device.type != "cuda":
            raise ValueError(f"cuda_graph needs a CUDA device, got {device}")

    @contextmanager
    def autocast(self, device: torch.device) -> Iterator[None]:
        """The precision of the passes inside the block."""
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            yield

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON values."""
        return asdict(self)
