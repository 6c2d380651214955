"""What the autograd functions of the losses share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

from pyddfast.ops import _native

_T = TypeVar("_T", bound="Tensor | None")
_PLAIN = (Tensor, torch.nn.Parameter)


# Private names, so absent from some torch, perhaps; looked up once.
_functorch_query = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
_legacy_query = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda tensor: False)


def functorch_active() -> bool:
    """Whether a ``torch.func`` transform (grad, vmap, ...) is being traced."""
    return bool(_functorch_query())


def needs_graph(*inputs: Tensor) -> bool:
    """Whether an autograd function has to see the call: it records, or refuses forward mode."""
    if torch.is_grad_enabled():
        for x in inputs:  # half the time of any(...)
            if x.requires_grad:
                return True
    level = getattr(forward_ad, "_current_level", -1)  # of dual_level(), -1 outside
    if level < 0:
        return False
    duals = [forward_ad.unpack_dual(x) for x in inputs]  # type: ignore[no-untyped-call]
    return any(dual.tangent is not None for dual in duals)


def savable(tensor: _T) -> _T:
    """`tensor`, copied if it was made in inference mode, which autograd cannot save."""
    if tensor is None or torch.compiler.is_compiling() or not tensor.is_inference():
        return tensor
    return tensor.clone()  # type: ignore[return-value]


def values_readable(tensor: Tensor) -> bool:
    """Whether Python may look at values: not while they are traced or stand for something else."""
    if torch.compiler.is_compiling() or type(tensor) not in _PLAIN or functorch_active():
        return False
    return _get_current_dispatch_mode() is None  # FakeTensorMode, make_fx ...


def keeps_gradient(student: Tensor, wanted: bool) -> bool:
    """Whether the forward should leave the student's gradient behind (see `take_gradient`).

    On the CPU it costs one more write of data that is in the cache; on CUDA it would cost as much
    memory traffic as computing it in the backward.  Not under torch.compile: it notices a double
    backward, which it does not support, only where the backward reads the inputs again.
    """
    return wanted and not _native.recomputes(student) and not torch.compiler.is_compiling()


def take_gradient(ctx: Any, grad_loss: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The gradient that the forward left in ``ctx.kept``, scaled, or None if there is none.

    It is given away uncopied, so that a second backward over the same graph finds None and
    computes the gradient again.
    """
    kept: Tensor | None = ctx.kept
    ctx.kept = None
    if kept is None:
        return None
    if not values_readable(grad_loss) or grad_loss.dim() > 0:
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


def leaves_to_twin(grad: Tensor) -> bool:
    """Inside a backward: whether to leave it to the twin.

    That is with ``create_graph=True`` and with gradients in batches (``is_grads_batched``), which
    a gradient that the forward left behind does not fit.
    """
    if torch.compiler.is_compiling():
        return False
    return torch.is_grad_enabled() or functorch_active() or bool(_legacy_query(grad))
