"""One step of a student's training that the data can be differentiated through.

Trajectory matching (TM, DATM) unrolls N steps of SGD and differentiates the end point with respect
to the images, their labels and the learning rate.  An ordinary unroll keeps every activation of
every step, twice differentiable.  :func:`sgd_step` keeps the parameters that it started from and
its batch, and computes the step again when the gradient arrives: the same gradient, not an
approximation (TESLA's drops the dependence of later steps on earlier images), for N vectors of
parameters and the activations of one step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pyddfast.ops import _checks, _native
from pyddfast.ops._autograd import values_readable, wants_graph

__all__ = ["Criterion", "ModelFunction", "functional", "sgd_step"]

ModelFunction = Callable[[Any, Tensor], Tensor]
Criterion = Callable[[Tensor, Tensor], Tensor]
_Params = TypeVar("_Params", Tensor, list[Tensor], tuple[Tensor, ...], dict[str, Tensor])

# A computation that is repeated gives the same loss but for the order of sums on a GPU, far below
# this; another dropout mask or another augmentation moves it by more.
_SAME_LOSS = 1e-4


def functional(model: nn.Module) -> Callable[[Mapping[str, Tensor], Tensor], Tensor]:
    """A module as ``model_fn`` of :func:`sgd_step`: ``(params by name, images) -> logits``.

    Args:
        model: its buffers are used as they are; its own parameters are not.

    Returns:
        ``torch.func.functional_call`` of the module, for ``dict(model.named_parameters())``.

    Raises:
        ValueError: a forward of ``model`` is random or changes its buffers (dropout, or BatchNorm
            with running statistics, in training mode): a step that is computed twice would draw
            again, or count its batch twice.  The message names the module.
    """
    for name, module in model.named_modules():
        if not module.training:
            continue
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            raise ValueError(f"module {name!r} is dropout in training mode; call its .eval()")
        drops = isinstance(module, (nn.RNNBase, nn.MultiheadAttention)) and module.dropout > 0
        if drops or isinstance(module, nn.RReLU):
            raise ValueError(f"module {name!r} draws in training mode; call its .eval()")
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
            raise ValueError(
                f"module {name!r} updates running statistics in training mode; build it with "
                "track_running_stats=False or call its .eval()"
            )

    def call(params: Mapping[str, Tensor], images: Tensor) -> Tensor:
        logits: Tensor = torch.func.functional_call(model, dict(params), (images,))
        return logits

    return call


def sgd_step(
    model_fn: ModelFunction,
    criterion: Criterion,
    params: _Params,
    lr: Tensor | float,
    images: Tensor,
    labels: Tensor,
) -> _Params:
    r"""One step of plain SGD, :math:`\theta' = \theta - \eta \nabla_\theta L(f_\theta(x), y)`.

    The result is differentiable once, exactly, in ``params``, ``lr``, ``images`` and ``labels``.
    Between forward and backward only those four are kept; the backward computes the step again,
    twice differentiated, which costs about 1.4 times the arithmetic of an ordinary unroll.

    Args:
        model_fn: ``model_fn(params, images)`` gives the logits: :func:`functional` of a module, or
            ``lambda theta, x: net(x, flat_param=theta)`` of a network with a flat vector.  It is
            called again in the backward and has to give the same then: no dropout, no draw of an
            augmentation inside (a *drawn* one may be applied inside, which spares keeping its
            result), no variable of the loop around it.  Tensors that it closes over get no
            gradient.
        criterion: ``criterion(logits, labels)`` gives the scalar loss; the same holds.
        params: floating point: a flat vector, a list, a tuple, or a dict of tensors by name.
        lr: learning rate, a number or a scalar tensor on the device of ``params``.
        images: the batch.
        labels: class indices, or soft labels or logits that are learned.

    Returns:
        The parameters after the step, in the form of ``params``.

    Raises:
        TypeError: an argument of another type.
        ValueError: a learning rate that is negative or not finite (of a tensor on a GPU: with
            ``PYDDFAST_DEBUG=1``), a criterion that gives no scalar.
        RuntimeError: in the backward: ``model_fn`` or ``criterion`` gave another loss than in the
            forward (checked on the CPU, and on a GPU with ``PYDDFAST_DEBUG=1``), or the backward
            itself is to be differentiated.

    Source: Cazenavette et al., CVPR 2022, ``distill.py`` of GeorgeCazenavette/mtt-distillation.
    """
    names, values = _leaves(params)
    _checks.tensor(images, "images")
    _checks.tensor(labels, "labels")
    rate = _rate(lr, values[0])
    stepped = _Step.apply(  # type: ignore[no-untyped-call]
        model_fn, criterion, _rebuild, (type(params), names), rate, images, labels, *values
    )
    return _rebuild((type(params), names), stepped)  # type: ignore[no-any-return]


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        model_fn: ModelFunction,
        criterion: Criterion,
        rebuild: Callable[..., Any],
        form: tuple[type, list[str]],
        lr: Tensor,
        images: Tensor,
        labels: Tensor,
        *params: Tensor,
    ) -> Any:
        device = images.device.type
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        leaves = [p.detach().requires_grad_() for p in params]
        with torch.enable_grad(), _autocast(ctx.autocast):
            loss = _loss(
                model_fn, criterion, rebuild(form, leaves), images.detach(), labels.detach()
            )
            grads = torch.autograd.grad(loss, leaves, materialize_grads=True)
        ctx.calls = model_fn, criterion, rebuild, form
        ctx.loss = loss.detach()
        ctx.save_for_backward(lr, images, labels, *params)
        rate = lr.reshape(()).to(params[0].dtype)
        return tuple(torch._foreach_sub(params, torch._foreach_mul(grads, rate)))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        if not wants_graph():
            return _Step._gradients(ctx, *upstream)
        with torch.no_grad():
            found = _Step._gradients(ctx, *upstream)
        # Functions of the inputs too, which torch's once_differentiable does not see.
        given = [grad for grad in found if grad is not None]
        marked = iter(_Once.apply(len(given), *given, *ctx.saved_tensors, *upstream))  # type: ignore[no-untyped-call]
        return tuple(None if grad is None else next(marked) for grad in found)

    @staticmethod
    def _gradients(ctx: Any, *upstream: Tensor) -> Any:
        model_fn, criterion, rebuild, form = ctx.calls
        wants_lr, wants_images, wants_labels, *wants_params = ctx.needs_input_grad[4:]
        lr, images, labels, *params = ctx.saved_tensors
        leaves = [p.detach().requires_grad_() for p in params]
        images = images.detach().requires_grad_(wants_images)
        labels = labels.detach().requires_grad_(wants_labels)
        inputs = [p for p, wanted in zip(leaves, wants_params, strict=True) if wanted]
        inputs += [x for x, wanted in ((images, wants_images), (labels, wants_labels)) if wanted]
        with torch.enable_grad(), _autocast(ctx.autocast):
            loss = _loss(model_fn, criterion, rebuild(form, leaves), images, labels)
            _same(loss, ctx.loss)
            grads = torch.autograd.grad(
                loss, leaves, create_graph=bool(inputs), materialize_grads=True
            )
        grad_lr = None
        if wants_lr:
            with torch.no_grad():
                products = [(v * g).sum() for v, g in zip(upstream, grads, strict=True)]
                grad_lr = -torch.stack([p.to(lr.dtype) for p in products]).sum().reshape(lr.shape)
        # d<g, v>/d(theta, x, y), times -lr; parameters also pass v on as it is.
        pairs = [(g, v) for g, v in zip(grads, upstream, strict=True) if g.requires_grad]
        if inputs and pairs:
            found = torch.autograd.grad(
                [g for g, _ in pairs], inputs, [v for _, v in pairs], materialize_grads=True
            )
        else:  # a loss that is linear in the parameters alone
            found = tuple(torch.zeros_like(x) for x in inputs)
        if inputs:
            found = torch._foreach_mul(found, -lr.reshape(()).to(params[0].dtype))
        curved = iter(found)
        grad_params = [
            v + next(curved) if wanted else None
            for v, wanted in zip(upstream, wants_params, strict=True)
        ]
        grad_images = next(curved) if wants_images else None
        grad_labels = next(curved) if wants_labels else None
        return None, None, None, None, grad_lr, grad_images, grad_labels, *grad_params


class _Once(torch.autograd.Function):
    """Gradients as they are, of which there is no further derivative."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> Any:
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        raise RuntimeError("sgd_step is differentiated once: its backward has no derivative")


def _autocast(state: tuple[str, torch.dtype, bool]) -> torch.autocast:
    """The forward's autocast; without its cache, which would keep each step's cast weights."""
    device, dtype, enabled = state
    return torch.autocast(device, dtype, enabled, cache_enabled=False)


def _loss(
    model_fn: ModelFunction, criterion: Criterion, params: Any, images: Tensor, labels: Tensor
) -> Tensor:
    loss = criterion(model_fn(params, images), labels)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"criterion must give a scalar tensor, got {given}")
    return loss.reshape(())


def _same(loss: Tensor, first: Tensor) -> None:
    """The loss of the recomputation is that of the forward."""
    if not loss.is_cpu and not _native.debug():
        return
    again, before = float(loss.detach()), float(first)
    if math.isfinite(before) and abs(again - before) > _SAME_LOSS * abs(before):
        raise RuntimeError(
            f"the step's loss was {before} in the forward and is {again} in the backward: model_fn "
            "and criterion must give the same both times (no dropout, no new draw, no variable of "
            "a loop around them)"
        )


def _leaves(params: object) -> tuple[list[str], list[Tensor]]:
    """Names (of a dict) and tensors of ``params``, checked."""
    names: list[str] = []
    if isinstance(params, Tensor):
        values = [params]
    elif isinstance(params, Mapping):
        names, values = list(params), list(params.values())
    elif isinstance(params, Sequence):
        values = list(params)
    else:
        raise TypeError(
            f"params is a tensor, a list, a tuple or a dict of tensors, not {type(params).__name__}"
        )
    if not values:
        raise ValueError("params holds no tensor")
    for index, value in enumerate(values):
        _checks.float_tensor(value, f"params[{names[index] if names else index!r}]")
    return names, values


def _rebuild(form: tuple[type, list[str]], values: Sequence[Tensor]) -> Any:
    """Tensors in the form that :func:`_leaves` took apart."""
    kind, names = form
    if issubclass(kind, Tensor):
        return values[0]
    if names:
        return dict(zip(names, values, strict=True))
    return list(values) if issubclass(kind, list) else tuple(values)


def _rate(lr: Tensor | float, like: Tensor) -> Tensor:
    """The learning rate as a scalar tensor, checked where that costs no wait."""
    if isinstance(lr, Tensor):
        _checks.float_tensor(lr, "lr")
        if lr.numel() != 1:
            raise ValueError(f"lr has shape {tuple(lr.shape)}; it is a scalar")
        _checks.same_device(like, lr, "lr", first="params")
        if (lr.is_cpu or _native.debug()) and values_readable(lr):
            value = float(lr.detach())
            if not 0 <= value < math.inf:
                raise ValueError(f"lr is {value}; it must be finite and not negative")
        return lr
    if _checks.number(lr, "lr") < 0:
        raise ValueError(f"lr is {lr}; it must not be negative")
    return torch.tensor(lr, dtype=torch.float64)
