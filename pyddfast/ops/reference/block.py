"""Twin of the ``block`` family: torch's own operators, differentiable to any order."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pyddfast.ops.reference.kd import widen


def norm_relu_pool(
    x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, relu: bool, pool: bool
) -> Tensor:
    """Result of ``ops.norm_relu_pool``."""
    # F.group_norm would refuse a plane of one pixel, whose result is the bias.
    y = torch.group_norm(widen(x).contiguous(), x.shape[1], widen(weight), widen(bias), eps)
    y = F.relu(y) if relu else y
    y = F.avg_pool2d(y, 2) if pool else y
    return y.to(x.dtype)
