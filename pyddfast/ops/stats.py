"""Statistics of activations and their distance from a teacher's: the SRe2L family's loss.

``channel_stats`` reads an activation once and puts its own gradient into the one that flows through
it anyway: per layer, a hook's sixteen passes over memory become four.  ``bn_eval_stats`` does so
inside the batch normalisation: one.  ``bn_distance`` compares all layers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pyddfast.ops import _checks, _native
from pyddfast.ops._autograd import functorch_active, needs_graph, savable, wants_graph
from pyddfast.ops._native import raw
from pyddfast.ops.reference import stats as reference
from pyddfast.ops.reference.kd import widen

Activation = Literal["none", "relu", "relu6"]

ACTIVATIONS: tuple[Activation, ...] = ("none", "relu", "relu6")  # positions: the native codes
# Of csrc/stats/bn_distance.h: what fits into a kernel's parameters.
MAX_LAYERS, MAX_TARGETS = 256, 4
MAX_CELL = 1 << 15  # a cell's pixels are counted in 32 bits


def channel_stats(x: Tensor, shift: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    r"""Mean and biased variance of every channel, over all other dimensions, as a tap.

    Use the returned view in place of `x`: the gradients of the statistics are then added to the
    gradient of the view in one pass,
    :math:`g_x + g_\mu / N + 2 g_v (x - \mu) / N`, instead of being a branch of their own.  Nothing
    but `x` itself is kept for the backward.

    Differentiable in all three outputs, twice as well.  Statistics are float32 (float64 for a
    float64 `x`), exact to about 1e-6 however far the mean lies from zero.  Contiguous and
    channels-last tensors are read as they are; other layouts may be copied.

    Args:
        x: (B, C, ...), float16, bfloat16, float32 or float64.
        shift: (C,), a guess of the mean such as ``running_mean``, without gradient; sums are taken
            around it.  Default: each channel's first element.

    Returns:
        ``(x_view, mean, var)``: `x` itself to go on with, and (C,) statistics.  NaN if a channel
        has no elements.

    Raises:
        TypeError: An argument of the wrong type or dtype, by name.
        ValueError: A wrong shape or device, by name.
    """
    _activation(x)
    _channel_vector(shift, x, "shift")
    if functorch_active() or not _native.usable(x):
        return reference.channel_stats(x)
    if needs_graph(x):
        outputs: tuple[Tensor, Tensor, Tensor] = _ChannelStats.apply(  # type: ignore[no-untyped-call]
            x, savable(shift)
        )
        return outputs
    mean, var, _ = raw.channel_stats(x, shift)
    return x.view_as(x), mean, var


class _ChannelStats(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor | None) -> Any:
        mean, var, kept = raw.channel_stats(x, shift)
        ctx.save_for_backward(x, kept)  # an output, saved, would cost two calls more
        ctx.set_materialize_grads(False)
        return x.view_as(x), mean, var

    @staticmethod
    def backward(
        ctx: Any, grad_x: Tensor | None, grad_mean: Tensor | None, grad_var: Tensor | None
    ) -> Any:
        x, mean = ctx.saved_tensors
        if grad_mean is None and grad_var is None:
            return grad_x, None
        if wants_graph():
            slope = _differentiable_slope(x, grad_mean, grad_var)
            return (slope if grad_x is None else grad_x + slope), None
        return raw.channel_stats_grad(x, mean, grad_x, grad_mean, grad_var), None


def _differentiable_slope(x: Tensor, grad_mean: Tensor | None, grad_var: Tensor | None) -> Tensor:
    """The gradient of the statistics to `x`, in the twin's precision, with a graph."""
    column = [1, -1, *[1] * (x.dim() - 2)]
    wide = widen(x)
    count = x.numel() // max(1, x.shape[1])
    slope = torch.zeros_like(wide)
    if grad_mean is not None:
        slope = slope + grad_mean.to(wide).view(column) / count
    if grad_var is not None:
        mean, _ = reference.moments(x)
        slope = slope + grad_var.to(wide).view(column) * 2 * (wide - mean.view(column)) / count
    return slope.to(x.dtype)


def bn_eval_stats(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    activation: Activation = "none",
) -> tuple[Tensor, Tensor, Tensor]:
    """Eval-mode batch normalisation, with the statistics of its input from the same pass.

    The forward reads nothing more than the normalisation does, the backward `x` once more than it.
    Differentiable in all three outputs with respect to `x`, twice as well, and, on a slower path,
    with respect to `weight` and `bias`.

    Args:
        x: (B, C, ...), float16, bfloat16, float32 or float64.
        running_mean: (C,), without gradient.
        running_var: (C,), without gradient.
        weight: (C,) or None.
        bias: (C,) or None.
        eps: Added to `running_var`.
        activation: Applied to the result as well: ``"none"``, ``"relu"`` or ``"relu6"``.

    Returns:
        ``(y, mean, var)``: y like `x`; (C,) mean and biased variance of `x`, as `channel_stats`.

    Raises:
        TypeError: An argument of the wrong type or dtype, by name.
        ValueError: A wrong shape, device or value, by name.
    """
    _activation(x)
    eps = _checks.number(eps, "eps")
    if eps < 0:
        raise ValueError(f"eps is {eps}; it must be 0 or above")
    code = _checks.one_of(activation, ACTIVATIONS, "activation")
    for vector, name in ((running_mean, "running_mean"), (running_var, "running_var")):
        _checks.tensor(vector, name)
        _channel_vector(vector, x, name)
    for parameter, name in ((weight, "weight"), (bias, "bias")):
        _channel_vector(parameter, x, name, constant=False)
    trained = torch.is_grad_enabled() and any(
        p is not None and p.requires_grad for p in (weight, bias)
    )
    if functorch_active() or not _native.usable(x):
        return reference.bn_eval_stats(
            x, running_mean, running_var, weight, bias, eps=eps, activation=activation
        )
    if trained:
        view, mean, var = channel_stats(x, running_mean)
        y = F.batch_norm(view, running_mean, running_var, weight, bias, False, 0.0, eps)
        return _ACTIVATE[code](y), mean, var
    if needs_graph(x):
        norm = tuple(savable(v) for v in (running_mean, running_var, weight, bias))
        outputs: tuple[Tensor, Tensor, Tensor] = _BnEvalStats.apply(  # type: ignore[no-untyped-call]
            x, norm, (eps, code)
        )
        return outputs
    y, mean, var, _ = raw.bn_eval_stats(x, running_mean, running_var, weight, bias, eps, code)
    return y, mean, var


_ACTIVATE = (lambda y: y, F.relu, F.relu6)


class _BnEvalStats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: tuple[Tensor | None, ...], options: tuple[float, int]
    ) -> Any:
        y, mean, var, kept = raw.bn_eval_stats(x, *norm, *options)
        ctx.save_for_backward(x, kept, *norm)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return y, mean, var

    @staticmethod
    def backward(
        ctx: Any, grad_y: Tensor | None, grad_mean: Tensor | None, grad_var: Tensor | None
    ) -> Any:
        x, mean, *norm = ctx.saved_tensors
        eps, code = ctx.options
        if wants_graph():
            running_mean, running_var, weight, bias = norm
            with torch.enable_grad():
                outputs = reference.bn_eval_stats(
                    x,
                    running_mean,
                    running_var,
                    weight,
                    bias,
                    eps=eps,
                    activation=ACTIVATIONS[code],
                )
                pairs = [
                    (output, grad)
                    for output, grad in zip(outputs, (grad_y, grad_mean, grad_var), strict=True)
                    if grad is not None
                ]
                values, grads = zip(*pairs, strict=True)
                (grad_x,) = torch.autograd.grad(values, x, grads, create_graph=True)
            return grad_x, None, None
        grad_x = raw.bn_eval_stats_grad(x, mean, *norm, grad_y, grad_mean, grad_var, eps, code)
        return grad_x, None, None


def bn_distance(
    mean: Tensor,
    var: Tensor,
    target_mean: Tensor,
    target_var: Tensor,
    sizes: Sequence[int] | None = None,
    *,
    layer_weight: Sequence[float] | None = None,
    target_weight: Sequence[float] | None = None,
    var_weight: float = 1.0,
    squared: bool = False,
    at: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The distance of statistics from their targets, for all layers of a network at once.

    With layers side by side in the vectors, layer l's distance is
    :math:`r_l = \sum_t u_t (a \lVert v^*_t - v \rVert_2 + \lVert m^*_t - m \rVert_2)` over its
    channels, and the loss is :math:`\sum_l w_l r_l`: SRe2L's loss with one target and a = 1, DWA's
    with a = r_var, EDC's with two targets of weight 1/2 (all data, and `class_targets`).

    Differentiable with respect to the statistics and the targets, twice as well.  Where a norm is
    0 its gradient is 0.

    Args:
        mean: (S,), the layers' means one after the other; float32 or float64, as all tensors here.
        var: (S,), their biased variances.
        target_mean: (S,), or (T, S) with several targets.
        target_var: Like `target_mean`.
        sizes: Channels of each layer, at most 256 layers; default: one layer.
        layer_weight: w, a number a layer; default 1.  SRe2L: 10 for the first one.
        target_weight: u, a number a target; default 1 / T.
        var_weight: a.
        squared: Squares of the norms instead of the norms.
        at: The (mean, var) whose distance is taken, while the gradients go to `mean` and `var`: the
            running averages of G-VBSM and EDC ("straight through").

    Returns:
        ``(loss, per_layer)``: the scalar and (L,) distances :math:`r_l`, both differentiable.

    Raises:
        TypeError: An argument of the wrong type or dtype, by name.
        ValueError: A wrong shape, device or value, by name.
    """
    targets = _packed(mean, var, target_mean, target_var, at)
    sizes = [mean.numel()] if sizes is None else list(sizes)
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in sizes):
        raise ValueError(f"sizes are numbers of channels, not {sizes}")
    if sum(sizes) != mean.numel() or not 1 <= len(sizes) <= MAX_LAYERS:
        raise ValueError(
            f"sizes: {len(sizes)} layers with {sum(sizes)} channels; 1 to {MAX_LAYERS} layers with "
            f"{mean.numel()} channels (of mean) are needed"
        )
    weights = _weights(layer_weight, len(sizes), 1.0, "layer_weight")
    shares = _weights(target_weight, targets, 1.0 / targets, "target_weight")
    options = (sizes, weights, shares, _checks.number(var_weight, "var_weight"), bool(squared))
    rows = (t if t.dim() == 2 else t[None] for t in (target_mean, target_var))
    tensors = (mean, var, *rows)
    if functorch_active() or not _native.usable(*tensors):
        return _distance_twin(tensors, at, options)
    if needs_graph(*tensors):
        outputs: tuple[Tensor, Tensor] = _BnDistance.apply(  # type: ignore[no-untyped-call]
            *(savable(t) for t in tensors), at, options
        )
        return outputs
    loss, per_layer, _ = raw.bn_distance(*(at or (mean, var)), *tensors[2:], *options)
    return loss, per_layer


_DistanceOptions = tuple[list[int], list[float], list[float], float, bool]


def _distance_twin(
    tensors: tuple[Tensor, ...], at: tuple[Tensor, Tensor] | None, options: _DistanceOptions
) -> tuple[Tensor, Tensor]:
    mean, var, *targets = tensors
    if at is not None:  # value of `at`, gradient of the statistics
        mean, var = (a + (x - x.detach()) for a, x in zip(at, (mean, var), strict=True))
    sizes, layer_weight, target_weight, var_weight, squared = options
    return reference.bn_distance(
        mean,
        var,
        targets[0],
        targets[1],
        sizes=sizes,
        layer_weight=layer_weight,
        target_weight=target_weight,
        var_weight=var_weight,
        squared=squared,
    )


class _BnDistance(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mean: Tensor,
        var: Tensor,
        target_mean: Tensor,
        target_var: Tensor,
        at: tuple[Tensor, Tensor] | None,
        options: _DistanceOptions,
    ) -> Any:
        values = at or (mean, var)
        loss, per_layer, norms = raw.bn_distance(*values, target_mean, target_var, *options)
        ctx.save_for_backward(mean, var, target_mean, target_var, norms, *(at or ()))
        ctx.options = options
        ctx.set_materialize_grads(False)
        return loss, per_layer

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, grad_per_layer: Tensor | None) -> Any:
        mean, var, target_mean, target_var, norms, *at = ctx.saved_tensors
        tensors = (mean, var, target_mean, target_var)
        wanted = ctx.needs_input_grad[:4]
        if wants_graph():
            with torch.enable_grad():
                outputs = _distance_twin(tensors, tuple(at) or None, ctx.options)
                pairs = [
                    (output, grad)
                    for output, grad in zip(outputs, (grad_loss, grad_per_layer), strict=True)
                    if grad is not None
                ]
                losses, upstream = zip(*pairs, strict=True)
                chosen = [t for t, want in zip(tensors, wanted, strict=True) if want]
                grads = iter(torch.autograd.grad(losses, chosen, upstream, create_graph=True))
            return *(next(grads) if want else None for want in wanted), None, None
        values = tuple(at) or (mean, var)
        wants_targets = wanted[2] or wanted[3]
        results = raw.bn_distance_grad(
            grad_loss,
            grad_per_layer,
            *values,
            target_mean,
            target_var,
            norms,
            *ctx.options,
            wants_targets,
        )
        return *(g if want else None for g, want in zip(results, wanted, strict=True)), None, None


def class_targets(table: Tensor, labels: Tensor) -> Tensor:
    """The mean of a batch's classes' statistics: EDC's second target.

    Args:
        table: (classes, S) statistics a class, float32 or float64.
        labels: (B,), int64, B >= 1.

    Returns:
        (S,), in the dtype of `table`.

    Raises:
        TypeError: An argument of the wrong type or dtype, by name.
        ValueError: A wrong shape, device or label, by name.
    """
    _checks.float_tensor(table, "table")
    if table.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"table has dtype {table.dtype}; allowed are float32, float64")
    _checks.tensor(labels, "labels")
    if labels.dtype is not torch.int64:
        raise TypeError(f"labels has dtype {labels.dtype}; class indices are int64")
    if table.dim() != 2 or labels.dim() != 1 or labels.numel() == 0:
        raise ValueError(
            f"table has shape {tuple(table.shape)}, labels {tuple(labels.shape)}; "
            "(classes, S) and (B >= 1,) are needed"
        )
    if labels.device != table.device:
        raise ValueError(f"labels is on {labels.device}, table on {table.device}")
    if labels.is_cpu and not torch.compiler.is_compiling():
        low, high = torch.aminmax(labels)
        if int(low) < 0 or int(high) >= len(table):
            raise ValueError(
                f"labels run from {int(low)} to {int(high)}; allowed are 0 to {len(table) - 1}"
            )
    # Summed in float64; the rows first, since a batch has few of a table's classes.
    return widen(table.index_select(0, labels)).mean(0).to(table.dtype)


def patch_stats(x: Tensor, cell: int = 16) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Statistics a channel and a cell of the plane: the convolution hooks of G-VBSM and EDC.

    The plane is resized bilinearly (``align_corners=False``) to the next multiple of `cell` a side
    and cut into cells of `cell` x `cell`; a cell's mean and biased variance run over samples,
    channels and its pixels.

    Args:
        x: (B, C, H, W), float16, bfloat16, float32 or float64.
        cell: Pixels a side of a cell, at most 2^15; 16 in both codebases.

    Returns:
        ``(x_view, mean, var, patch_mean, patch_var)``: the first three as `channel_stats`, the
        others (cells,), row by row; all differentiable, twice as well.

    Raises:
        TypeError: An argument of the wrong type or dtype, by name.
        ValueError: A wrong shape or cell, by name.
    """
    _activation(x)
    if x.dim() != 4 or x.numel() == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; (B, C, H, W) without a 0 is needed")
    if isinstance(cell, bool) or not isinstance(cell, int):
        raise TypeError(f"cell is an int, not {type(cell).__name__}")
    if not 1 <= cell <= MAX_CELL:
        raise ValueError(f"cell is {cell}; it must be 1 to {MAX_CELL}")
    if functorch_active() or not _native.usable(x):
        return reference.patch_stats(x, cell=cell)
    if needs_graph(x):
        outputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = _PatchStats.apply(x, cell)  # type: ignore[no-untyped-call]
        return outputs
    mean, var, patch_mean, patch_var, _ = raw.patch_stats(x, cell)
    return x.view_as(x), mean, var, patch_mean, patch_var


class _PatchStats(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cell: int) -> Any:
        *outputs, kept = raw.patch_stats(x, cell)
        ctx.save_for_backward(x, kept)
        ctx.cell = cell
        ctx.set_materialize_grads(False)
        return x.view_as(x), *outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        x, kept = ctx.saved_tensors
        if all(grad is None for grad in grads[1:]):
            return grads[0], None
        if wants_graph():
            with torch.enable_grad():
                outputs = reference.patch_stats(x, cell=ctx.cell)
                pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None]
                values, upstream = zip(*pairs, strict=True)
                (grad_x,) = torch.autograd.grad(values, x, upstream, create_graph=True)
            return grad_x, None
        return raw.patch_stats_grad(x, kept, ctx.cell, *grads), None


# --- checks ------------------------------------------------------------------------------------


def _activation(x: Any) -> None:
    _checks.float_tensor(x, "x")
    if x.dim() < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; (B, C, ...) is needed")


def _channel_vector(vector: Any, x: Tensor, name: str, *, constant: bool = True) -> None:
    if vector is None:
        return
    _checks.float_tensor(vector, name)
    if vector.shape != x.shape[1:2]:
        raise ValueError(
            f"{name} has shape {tuple(vector.shape)}; one value a channel is ({x.shape[1]},)"
        )
    if vector.device != x.device:
        raise ValueError(f"{name} is on {vector.device}, x on {x.device}")
    if constant and vector.requires_grad:
        raise ValueError(f"{name} requires grad; it is a constant here: pass {name}.detach()")


def _packed(
    mean: Any, var: Any, target_mean: Any, target_var: Any, at: tuple[Any, Any] | None
) -> int:
    """Checks the tensors of `bn_distance`; returns the number of targets."""
    named = {"mean": mean, "var": var, "target_mean": target_mean, "target_var": target_var}
    if at is not None:
        named |= {"at[0]": at[0], "at[1]": at[1]}
    for name, value in named.items():
        _checks.tensor(value, name)
        if value.dtype not in (torch.float32, torch.float64) or value.dtype is not mean.dtype:
            raise TypeError(
                f"{name} has dtype {value.dtype}; all are float32 or all float64 (mean: "
                f"{mean.dtype})"
            )
        if value.device != mean.device:
            raise ValueError(f"{name} is on {value.device}, mean on {mean.device}")
        is_target = name.startswith("target")
        if value.shape != mean.shape and not (is_target and value.shape[1:] == mean.shape):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, mean {tuple(mean.shape)}; (S,) are "
                "needed, and targets may be (T, S)"
            )
    if mean.dim() != 1 or target_mean.shape != target_var.shape:
        raise ValueError(
            f"mean has shape {tuple(mean.shape)}, target_mean {tuple(target_mean.shape)}, "
            f"target_var {tuple(target_var.shape)}; (S,), and targets of one shape, are needed"
        )
    targets = 1 if target_mean.dim() == 1 else len(target_mean)
    if not 1 <= targets <= MAX_TARGETS:
        raise ValueError(f"target_mean holds {targets} targets; 1 to {MAX_TARGETS} are allowed")
    return targets


def _weights(values: Sequence[float] | None, count: int, default: float, name: str) -> list[float]:
    if values is None:
        return [default] * count
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} numbers; {count} are needed")
    return [_checks.number(value, name) for value in values]
