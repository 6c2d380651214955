"""The loss that matches a model's batch statistics to those its BatchNorm layers have stored."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyddfast import ops
from pyddfast.nn.stat_hooks import StatHooks, layer_input, refuse_replica, with_input
from pyddfast.ops.stats import MAX_LAYERS

Mode = Literal["tap", "fused"]


class BNStatLoss(StatHooks[tuple[Tensor, Tensor]]):
    r"""The BatchNorm loss of SRe2L and its successors, for a whole model.

    :math:`\sum_l w_l (a \lVert v^*_l - v_l \rVert_2 + \lVert m^*_l - m_l \rVert_2)` with m and v
    the batch mean and biased variance of the input of layer l, starred the running ones.  Replaces
    the hook on every layer (SRe2L, ``recover/utils.py:BNFeatureHook``) and the sum over them::

        with BNStatLoss(teacher) as bn_loss:
            logits = teacher(images)
            loss = F.cross_entropy(logits, target) + 0.01 * bn_loss()

    Statistics are of the last call of the model, of no other; call the loss once after it.  A copy
    of the model that is made before `close` keeps hooks that nothing removes.

    Args:
        model: Its BatchNorm layers are in eval mode.
        first_multiplier: Weight of the first layer; the others have 1.
        var_weight: a; ``r_var`` of DWA.
        layers: The BatchNorm modules to use, in this order.  Default: every ``nn.BatchNorm2d``, in
            the order of ``model.modules()``, as the official codes take them.
        mode: ``"tap"`` reads the layers' inputs and leaves the model as it is; ``"fused"`` replaces
            the forward of each layer by `ops.bn_eval_stats` until `close`, which saves that read;
            layers whose forward is not torch's own, and those that another loss has replaced, are
            tapped.

    Raises:
        TypeError: `model` or a layer of the wrong type.
        ValueError: No BatchNorm, one in training mode or without running statistics, or an unknown
            mode; later, from the model's forward, a layer that was put into training mode.
        RuntimeError: From the model's forward under ``nn.DataParallel`` with several devices, whose
            replicas would overwrite each other's statistics; from a call without a forward before.

    ``per_layer`` is (layers,), the distances at the last call, unweighted and without gradient.

    """

    per_layer: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        first_multiplier: float = 10.0,
        var_weight: float = 1.0,
        layers: Sequence[nn.Module] | None = None,
        mode: Mode = "tap",
    ) -> None:
        if mode not in ("tap", "fused"):
            raise ValueError(f"mode is {mode!r}; allowed are tap, fused")
        self._layers = _chosen(model, layers)
        names = _names(model, self._layers)
        for layer, name in zip(self._layers, names, strict=True):
            check_layer(layer, name)
        super().__init__(model, names)
        self._weights = [float(first_multiplier)] + [1.0] * (len(self._layers) - 1)
        self._var_weight = float(var_weight)
        self._replaced: list[tuple[nn.Module, Any]] = []
        self.per_layer = None
        for index, layer in enumerate(self._layers):
            fused = mode == "fused" and _is_plain(layer)
            self._watch(layer, partial(self._before, index, tap=not fused))
            if fused:
                layer.__dict__["forward"] = partial(self._fused, index)
                self._replaced.append((layer, layer.__dict__["forward"]))

    def __call__(self) -> Tensor:
        """The loss of the last forward, a scalar."""
        stats = self._take()
        target_mean, target_var = self._packed_targets(stats[0][0].dtype)
        loss, per_layer = layer_distances(
            stats, target_mean, target_var, self._weights, var_weight=self._var_weight
        )
        self.per_layer = per_layer.detach()
        return loss

    def close(self) -> None:
        """Removes the hooks and restores the layers; a second call does nothing."""
        super().close()
        for layer, forward in self._replaced:
            if layer.__dict__.get("forward") is forward:  # not what somebody has set since
                del layer.__dict__["forward"]
        self._replaced = []

    def _before(
        self,
        index: int,
        layer: _BatchNorm,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        tap: bool,
    ) -> Any:
        """The pre-hook of a layer: checks it and, in mode tap, replaces its input by the tap."""
        check_layer(layer, self.names[index])
        refuse_replica(self, layer)
        if not tap:
            return None
        view, mean, var = ops.channel_stats(layer_input(args, kwargs), layer.running_mean)
        self._seen[index] = (mean, var)
        return with_input(view, args, kwargs)

    def _fused(self, index: int, input: Tensor) -> Tensor:
        """Stands for a layer's forward in mode fused; the argument has the layer's name for it."""
        layer = self._layers[index]
        assert layer.running_mean is not None
        assert layer.running_var is not None
        y, mean, var = ops.bn_eval_stats(
            input,
            layer.running_mean,
            layer.running_var,
            layer.weight,
            layer.bias,
            eps=layer.eps,
        )
        self._seen[index] = (mean, var)
        return y

    def _packed_targets(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(1, channels) running statistics."""
        # At each call: a tensor's version does not tell of all changes (``.data``, F.batch_norm in
        # training), and to compare all versions takes as long as the two calls of cat.
        vectors = [
            (layer.running_mean, layer.running_var)
            for layer in self._layers
            if layer.running_mean is not None and layer.running_var is not None
        ]
        mean, var = (torch.cat(part).to(dtype)[None] for part in zip(*vectors, strict=True))
        return mean, var


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer's forward is torch's own, which `ops.bn_eval_stats` can stand for."""
    return type(layer).forward is _BatchNorm.forward and "forward" not in layer.__dict__


def layer_distances(
    stats: Sequence[tuple[Tensor, Tensor]],
    target_mean: Tensor,
    target_var: Tensor,
    weights: Sequence[float],
    *,
    var_weight: float = 1.0,
    target_weight: Sequence[float] | None = None,
    at: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """`ops.bn_distance` of any number of layers.

    Args:
        stats: (channels,) mean and variance a layer.
        target_mean: (T, S), the layers side by side.
        target_var: (T, S).
        weights: A number a layer.
        var_weight: As `ops.bn_distance`.
        target_weight: As `ops.bn_distance`.
        at: As `ops.bn_distance`, (S,) each.

    Returns:
        The weighted sum, and the distances (layers,); both differentiable.
    """
    sizes = [len(mean) for mean, _ in stats]
    losses, distances, start = [], [], 0
    for first in range(0, len(sizes), MAX_LAYERS):  # one group but for the deepest networks
        group = slice(first, first + MAX_LAYERS)
        mean, var = (_pack(vectors) for vectors in zip(*stats[group], strict=True))
        part = slice(start, start + len(mean))
        whole = len(mean) == target_mean.shape[1]
        loss, per_layer = ops.bn_distance(
            mean,
            var,
            target_mean if whole else target_mean[:, part],
            target_var if whole else target_var[:, part],
            sizes[group],
            layer_weight=weights[group],
            target_weight=target_weight,
            var_weight=var_weight,
            at=at if whole or at is None else (at[0][part], at[1][part]),
        )
        losses.append(loss)
        distances.append(per_layer)
        start = part.stop
    if len(losses) == 1:
        return losses[0], distances[0]
    return torch.stack(losses).sum(), torch.cat(distances)


class _Pack(torch.autograd.Function):
    """``torch.cat`` of vectors, whose backward is one call instead of one a vector."""

    @staticmethod
    def forward(ctx: Any, *vectors: Tensor) -> Tensor:
        ctx.sizes = [len(vector) for vector in vectors]
        return torch.cat(vectors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return torch.split_with_sizes(grad, ctx.sizes)


def _pack(vectors: Sequence[Tensor]) -> Tensor:
    packed: Tensor = _Pack.apply(*vectors)  # type: ignore[no-untyped-call]
    return packed


def _chosen(model: nn.Module, layers: Sequence[nn.Module] | None) -> list[_BatchNorm]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is an nn.Module, not {type(model).__name__}")
    if layers is None:
        found: list[_BatchNorm] = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        if not found:
            raise ValueError(
                f"model ({type(model).__name__}) has no nn.BatchNorm2d; BatchNorm layers of other "
                "kinds are given by layers="
            )
        return found
    chosen: list[_BatchNorm] = []
    inside = set(model.modules())
    for i, layer in enumerate(layers):
        if not isinstance(layer, _BatchNorm):
            raise TypeError(f"layers[{i}] is a BatchNorm module, not {type(layer).__name__}")
        if layer not in inside:
            raise ValueError(f"layers[{i}] is not a module of model")
        chosen.append(layer)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"layers has {len(chosen)} modules; 1 or more, each once, are needed")
    return chosen


def _names(model: nn.Module, layers: Sequence[nn.Module]) -> list[str]:
    names = {module: name for name, module in model.named_modules()}
    return [names[layer] for layer in layers]


def check_layer(layer: _BatchNorm, name: str) -> None:
    """The layer's running statistics are there and are not being changed.

    Raises:
        ValueError: They are not; the message names the layer.
    """
    if layer.training:
        raise ValueError(
            f"BatchNorm layer {name!r} is in training mode; its running statistics are the target: "
            "call model.eval()"
        )
    if layer.running_mean is None or layer.running_var is None:
        raise ValueError(f"BatchNorm layer {name!r} has no running statistics to match")
