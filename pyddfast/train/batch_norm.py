"""Batch norm over the images of all processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["has_batch_norm", "synchronise"]


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a training step of the model uses statistics of the batch."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def synchronise(model: nn.Module, group: dist.ProcessGroup | None) -> nn.Module:
    """Let every batch norm of a model take its training statistics over all processes.

    On CUDA by ``torch.nn.SyncBatchNorm``; that has no CPU form, for which :class:`HostBatchNorm`
    stands in.  Names of parameters and buffers stay.

    Args:
        model: Changed in place, but for a model that is itself a batch norm.
        group: Of processes that run the same model.

    Returns:
        The model.
    """
    if next(model.parameters()).device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(  # type: ignore[no-untyped-call]
            model, group
        )
        return converted
    return _on_host(model, group)


def _on_host(module: nn.Module, group: dist.ProcessGroup | None) -> nn.Module:
    if isinstance(module, _BatchNorm):
        return HostBatchNorm(module, group)
    for name, child in module.named_children():
        setattr(module, name, _on_host(child, group))
    return module


class _Sum(torch.autograd.Function):
    """The sum over processes.  Every process's loss depends on it, so gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        total = value.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def _sum_over(value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    total: Tensor = _Sum.apply(value, group)  # type: ignore[no-untyped-call]
    return total


class HostBatchNorm(_BatchNorm):
    """Batch norm over several processes in plain torch, for any device that the group serves.

    Two reductions forward (sums, then squares around the mean: one pass would cancel) and their
    two backward.

    Args:
        norm: Whose parameters, buffers and options it takes over.
        group: The processes.
    """

    def __init__(self, norm: _BatchNorm, group: dist.ProcessGroup | None) -> None:
        super().__init__(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        )
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers(recurse=False):
            setattr(self, name, buffer)
        self.train(norm.training)
        self.group = group

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, ...) in float32; the result has the input's dtype."""
        if not self.training:
            return super().forward(input)
        x = input.float()
        dims = [0, *range(2, x.ndim)]
        shape = (1, -1, *[1] * (x.ndim - 2))
        count = torch.tensor(float(x.numel() // x.shape[1]), device=x.device)
        dist.all_reduce(count, group=self.group)
        mean = _sum_over(x.sum(dims), self.group) / count
        centred = x - mean.reshape(shape)
        squares = _sum_over(centred.square().sum(dims), self.group)
        var = squares / count
        with torch.no_grad():
            self._track(mean, squares / (count - 1))
        y: Tensor = centred * torch.rsqrt(var + self.eps).reshape(shape)
        if self.affine:
            y = y * self.weight.reshape(shape) + self.bias.reshape(shape)
        return y.to(input.dtype)

    def _track(self, mean: Tensor, unbiased: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        # None: the plain average of all batches.
        share = self.momentum if self.momentum is not None else 1 / int(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(unbiased, share)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any (B, C, ...)."""
