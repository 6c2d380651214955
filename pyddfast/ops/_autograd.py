"""What the autograd functions of the losses share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyddfast.ops import _native


def functorch_active() -> bool:
    """Whether a ``torch.func`` transform (grad, vmap, ...) is being traced."""
    query = getattr(torch._C, "_are_functorch_transforms_active", None)
    return bool(query()) if query is not None else False


def keeps_gradient(student: Tensor, wanted: bool) -> bool:
    """Whether the forward should leave the student's gradient behind (see `take_gradient`).

    On the CPU it costs one more write of data that is in the cache; on CUDA it would cost as much
    memory traffic as computing it in the backward.
    """
    return wanted and not _native.recomputes(student)


def take_gradient(ctx: Any, grad_loss: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The gradient that the forward left in ``ctx.kept``, scaled, or None if there is none.

    It is given away uncopied, so that a second backward over the same graph finds None and
    computes the gradient again.
    """
    kept: Tensor | None = ctx.kept
    ctx.kept = None
    if kept is None:
        return None
    if torch.compiler.is_compiling():  # no reading of values; the compiler fuses the product
        return (kept * grad_loss.unsqueeze(-1)).to(dtype)
    if grad_loss.dim() > 0:
        kept.mul_(grad_loss.unsqueeze(-1))
    elif grad_loss.item() != 1.0:
        kept.mul_(grad_loss)
    return kept if kept.dtype is dtype else kept.to(dtype)


def differentiable_grads(
    loss: Callable[..., Tensor], inputs: tuple[Tensor, ...], wanted: tuple[bool, ...], grad: Tensor
) -> list[Tensor | None]:
    """Gradients of the reference ``loss(*inputs)`` that can be differentiated again."""
    with torch.enable_grad():
        value = loss(*inputs)
        chosen = [tensor for tensor, want in zip(inputs, wanted, strict=True) if want]
        grads = iter(torch.autograd.grad(value, chosen, grad, create_graph=True))
    return [next(grads) if want else None for want in wanted]


def wants_graph() -> bool:
    """Inside a backward: whether it was called with ``create_graph=True``."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()
