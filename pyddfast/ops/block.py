"""The block of the small-scale literature's networks: instance norm, ReLU, average pooling.

Matching gradients or trajectories (DC, TM, DATM) differentiates the network twice, and there it is
this block that the time and the memory go to: a second derivative runs torch's group norm as a
chain of a hundred operators.  Here forward, backward and double backward are one operator each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyddfast.ops import _checks, _native
from pyddfast.ops._autograd import functorch_active, needs_graph, savable, wants_graph
from pyddfast.ops._native import raw
from pyddfast.ops.reference import block as reference

__all__ = ["norm_relu_pool"]


def norm_relu_pool(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    relu: bool = True,
    pool: bool = True,
) -> Tensor:
    r"""Instance norm with scale and shift, ReLU, and average pooling over 2 x 2, as one operator.

    Every plane is normalised by its own mean and biased variance,
    :math:`z = \gamma_c (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta_c`, which is
    ``GroupNorm(C, C)`` or ``InstanceNorm2d(affine=True)``; then ``relu(z)`` and ``AvgPool2d(2)``,
    which leaves out the last row or column of an odd plane.  This is the block of ConvNet
    (VICO-UoE/DatasetCondensation, ``networks.py``).

    Differentiable with respect to `x`, `weight` and `bias`, twice as well; a third derivative
    raises.  Nothing but `x` and three numbers a plane is kept for the backward, and for the double
    backward only the upstream gradient beside them.

    Args:
        x: (N, C, H, W), float16, bfloat16, float32 or float64.  Planes that are not contiguous, as
            under channels_last, are copied.
        weight: (C,), gamma, of any floating dtype.
        bias: (C,), beta.
        eps: Added to the variance, not negative.
        relu: False leaves the ReLU out.
        pool: False leaves the pooling out.

    Returns:
        (N, C, H // 2, W // 2), or (N, C, H, W) without pooling, contiguous, in the dtype of `x`;
        float32 under autocast on CUDA, as ``F.group_norm``.  The arithmetic is float32 (float64
        for a float64 `x`).

    Raises:
        TypeError: An argument of the wrong type or dtype, by name.
        ValueError: A wrong shape, device or value, by name; planes too small to pool.

    Example:
        >>> x = torch.tensor([[[[1.0, 3.0], [3.0, 1.0]]]])
        >>> norm_relu_pool(x, torch.ones(1), torch.zeros(1), eps=0.0).item()
        0.5
    """
    eps = _checks.number(eps, "eps")
    if eps < 0:
        raise ValueError(f"eps is {eps}; it must be 0 or above")
    _check_planes(x, pool=pool)
    _check_vector(weight, x, "weight")
    _check_vector(bias, x, "bias")
    if x.is_cuda and torch.is_autocast_enabled("cuda"):
        x = x.float()
    if functorch_active() or not _native.usable(x, weight, bias):
        return reference.norm_relu_pool(x, weight, bias, eps=eps, relu=relu, pool=pool)
    if needs_graph(x, weight, bias):
        y: Tensor = _NormReluPool.apply(  # type: ignore[no-untyped-call]
            savable(x), savable(weight), savable(bias), (eps, bool(relu), bool(pool))
        )
        return y
    y, _ = raw.norm_relu_pool(x, weight, bias, eps, bool(relu), bool(pool))
    return y


class _NormReluPool(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, options: tuple[float, bool, bool]
    ) -> Any:
        y, stats = raw.norm_relu_pool(x, weight, bias, *options)
        ctx.save_for_backward(x, weight, bias, stats)
        ctx.options = options[1:]
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, bias, stats = ctx.saved_tensors
        if wants_graph():
            return *_NormReluPoolGrad.apply(grad, x, weight, bias, stats, ctx.options), None  # type: ignore[no-untyped-call]
        return *raw.norm_relu_pool_grad(grad, x, weight, bias, stats, *ctx.options), None


class _NormReluPoolGrad(torch.autograd.Function):
    """The backward, as a function of `grad`, `x` and `weight`; `stats` is one of `x`."""

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        stats: Tensor,
        options: tuple[bool, bool],
    ) -> Any:
        ctx.save_for_backward(grad, x, weight, bias, stats)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return raw.norm_relu_pool_grad(grad, x, weight, bias, stats, *options)

    @staticmethod
    def backward(
        ctx: Any, of_x: Tensor | None, of_weight: Tensor | None, of_bias: Tensor | None
    ) -> Any:
        if wants_graph():
            raise NotImplementedError(
                "norm_relu_pool has no third derivative; the composition of F.group_norm, F.relu "
                "and F.avg_pool2d has"
            )
        grad, x, weight, bias, stats = ctx.saved_tensors
        grads = raw.norm_relu_pool_double_grad(
            of_x, of_weight, of_bias, grad, x, weight, bias, stats, *ctx.options
        )
        return *grads, None, None, None  # the bias only moves where the ReLU bends


def _check_planes(x: Any, *, pool: bool) -> None:
    _checks.float_tensor(x, "x")
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise ValueError(f"x must have shape (N, C, H, W), got {tuple(x.shape)}")
    if pool and min(x.shape[2:]) < 2:
        raise ValueError(
            f"x has planes of {x.shape[2]} x {x.shape[3]}; pooling needs 2 x 2 or more"
        )


def _check_vector(vector: Any, x: Tensor, name: str) -> None:
    _checks.float_tensor(vector, name)
    if vector.shape != x.shape[1:2]:
        raise ValueError(
            f"{name} has shape {tuple(vector.shape)}; one number a channel of x is {(x.shape[1],)}"
        )
    _checks.same_device(x, vector, name, first="x")
