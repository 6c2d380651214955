"""Twins of the ``stats`` family: plain torch in float64, differentiable to any order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pyddfast.ops.reference.kd import accumulation_dtype, widen


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance a channel of (B, C, ...), in float64."""
    dims = [d for d in range(x.dim()) if d != 1]
    wide = widen(x)
    mean = wide.mean(dims)
    centred = wide - mean.view(-1, *[1] * (x.dim() - 2))
    return mean, centred.square().mean(dims)


def channel_stats(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of ``ops.channel_stats``; no shift is needed in float64."""
    mean, var = (value.to(accumulation_dtype(x)) for value in moments(x))
    return x.view_as(x), mean, var


def bn_eval_stats(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of ``ops.bn_eval_stats``."""

    def column(vector: Tensor) -> Tensor:
        return widen(vector).view(-1, *[1] * (x.dim() - 2))

    y = (widen(x) - column(running_mean)) / (column(running_var) + eps).sqrt()
    y = y if weight is None else y * column(weight)
    y = y if bias is None else y + column(bias)
    if activation != "none":
        y = F.relu(y) if activation == "relu" else F.relu6(y)
    mean, var = (value.to(accumulation_dtype(x)) for value in moments(x))
    return y.to(x.dtype), mean, var


def bn_distance(
    mean: Tensor,
    var: Tensor,
    target_mean: Tensor,
    target_var: Tensor,
    *,
    sizes: Sequence[int],
    layer_weight: Sequence[float],
    target_weight: Sequence[float],
    var_weight: float,
    squared: bool,
) -> tuple[Tensor, Tensor]:
    """Loss and distances a layer of ``ops.bn_distance``; the targets are (T, channels)."""

    def norms(difference: Tensor) -> Tensor:  # (T, channels) -> (T, layers)
        parts = torch.split(difference, list(sizes), dim=1)
        squares = torch.stack([part.square().sum(1) for part in parts], dim=1)
        if squared:
            return squares
        # Where the norm is 0 its gradient is taken to be 0.
        return torch.where(squares == 0, 0.0, torch.where(squares == 0, 1.0, squares).sqrt())

    m, v = widen(mean), widen(var)
    distances = norms(m - widen(target_mean)) + var_weight * norms(v - widen(target_var))
    per_layer = m.new_tensor(target_weight) @ distances
    loss = (per_layer * m.new_tensor(layer_weight)).sum()
    return loss.to(accumulation_dtype(mean)), per_layer.to(accumulation_dtype(mean))


def patch_moments(x: Tensor, cell: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each `cell` x `cell` part of the plane, over samples too.

    The planes are first resized, bilinearly, to the next multiple of `cell` a side.
    """
    height, width = (-(-size // cell) * cell for size in x.shape[2:])
    planes = widen(x)
    if (height, width) != tuple(x.shape[2:]):
        planes = F.interpolate(planes, (height, width), mode="bilinear", align_corners=False)
    cells = planes.reshape(*x.shape[:2], height // cell, cell, width // cell, cell)
    mean = cells.mean((0, 1, 3, 5), keepdim=True)
    var = (cells - mean).square().mean((0, 1, 3, 5))
    return mean[0, 0, :, 0, :, 0].flatten(), var.flatten()


def patch_stats(x: Tensor, *, cell: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs of ``ops.patch_stats``."""
    dtype = accumulation_dtype(x)
    patch_mean, patch_var = (value.to(dtype) for value in patch_moments(x, cell))
    return *channel_stats(x), patch_mean, patch_var
