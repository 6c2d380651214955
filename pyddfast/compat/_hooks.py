"""The hook that every codebase puts on every layer, as a tap on the layer's input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from pyddfast import ops
from pyddfast.nn.stat_hooks import refuse_replica
from pyddfast.ops import _checks

# A statistic before its first batch is the number 0, as in the official hooks.
Statistic = Tensor | float


class FeatureHook:
    """Compares the input of one module with what is stored: the frame of all hooks.

    The official hooks look at the input after the module has run.  This one takes it before and
    hands the module a view of it, so that the gradient of the statistics is added to the one that
    flows back anyway, in one pass over memory (`ops.channel_stats`).

    ``r_feature`` is the distance of the last forward, ready as soon as the module has run.
    """

    r_feature: Tensor

    def __init__(self, module: nn.Module) -> None:
        self.hook: RemovableHandle = module.register_forward_pre_hook(self._before)

    def close(self) -> None:
        """Removes the hook; a second call does nothing."""
        self.hook.remove()

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        refuse_replica(self, module)
        view = self._measure(module, args[0])
        return None if view is None else (view, *args[1:])

    def _measure(self, module: nn.Module, x: Tensor) -> Tensor | None:
        """Sets `r_feature`; returns what the module gets in place of `x`, None for `x` itself."""
        raise NotImplementedError


def check_batch_norm(module: nn.Module) -> None:
    """`module` is a BatchNorm that has running statistics.

    Raises:
        TypeError: It is another module.
        ValueError: It keeps no running statistics.
    """
    if not isinstance(module, _BatchNorm):
        raise TypeError(f"module is a BatchNorm module, not {type(module).__name__}")
    if module.running_mean is None or module.running_var is None:
        raise ValueError("module is a BatchNorm without running statistics to match")


def running(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Running mean and variance of a BatchNorm in eval mode.

    Raises:
        ValueError: It is in training mode, whose forward changes what it is compared with.
    """
    assert isinstance(module, _BatchNorm)
    assert module.running_mean is not None
    assert module.running_var is not None
    if module.training:
        raise ValueError(
            "a BatchNorm with a BNFeatureHook is in training mode; its running statistics are the "
            "target: call model.eval()"
        )
    return module.running_mean, module.running_var


class RunningStatisticsHook(FeatureHook):
    """``var_weight · ‖running_var − var‖₂ + ‖running_mean − mean‖₂`` of a BatchNorm's input."""

    def __init__(self, module: nn.Module, var_weight: float = 1.0) -> None:
        check_batch_norm(module)
        super().__init__(module)
        self._var_weight = var_weight

    def _measure(self, module: nn.Module, x: Tensor) -> Tensor:
        target_mean, target_var = running(module)
        view, mean, var = ops.channel_stats(x, target_mean)
        self.r_feature, _ = ops.bn_distance(
            mean,
            var,
            target_mean.to(mean.dtype),
            target_var.to(var.dtype),
            var_weight=self._var_weight,
        )
        return view


class CollectingHook(FeatureHook):
    """A hook that can also take the statistics of the training data, in a pass of its own."""

    module: nn.Module
    _collecting = False

    def set_hook(self, pre: bool = True) -> None:
        """From now on, take the training data's statistics (`pre`) or compare with them."""
        self.close()
        self._collecting = pre
        self.hook = self.module.register_forward_pre_hook(self._before)


class MovingStatisticsHook(FeatureHook):
    """Compares moving averages of a batch's statistics: the frame of G-VBSM's and EDC's hooks.

    The averages are attributes called `names`: pairs of a mean and a variance, 0 at first, moved by
    average ← momentum · average + (1 − momentum) · statistic.
    """

    names: tuple[str, ...]

    def __init__(self, module: nn.Module, momentum: float) -> None:
        self.momentum = share(momentum, "training_momentum")
        for name in self.names:
            setattr(self, name, 0.0)
        super().__init__(module)

    def _compare(self, stats: Sequence[Tensor], targets: Sequence[Sequence[Statistic]]) -> None:
        """Moves the averages on; sets `r_feature` to the mean over `targets` of their distance.

        The gradient goes to `stats`, as if they were the averages.
        """
        with torch.no_grad():
            averages = [
                self.momentum * getattr(self, name) + (1 - self.momentum) * new
                for name, new in zip(self.names, stats, strict=True)
            ]
        for name, average in zip(self.names, averages, strict=True):
            setattr(self, name, average)
        packed = [_side_by_side(target, stats) for target in targets]
        target_mean, target_var = (torch.stack(side) for side in zip(*packed, strict=True))
        self.r_feature, _ = ops.bn_distance(
            *_side_by_side(stats, stats),
            target_mean,
            target_var,
            [len(mean) for mean in stats[::2]],
            at=_side_by_side(averages, stats),
        )


def _side_by_side(values: Sequence[Statistic], like: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Means and variances in one vector each, with the sizes, dtype and device of `like`."""
    tensors = [
        value.to(other)
        if isinstance(value, Tensor)
        else other.detach().new_full(other.shape, value)
        for value, other in zip(values, like, strict=True)
    ]
    return torch.cat(tensors[::2]), torch.cat(tensors[1::2])


def share(value: float, name: str) -> float:
    """`value` in [0, 1], as a float.

    Raises:
        TypeError: It is no number.
        ValueError: It is out of range.
    """
    if not 0 <= _checks.number(value, name) <= 1:
        raise ValueError(f"{name} is {value}; allowed are 0 to 1")
    return float(value)


def named_module(module: nn.Module | None, name: str | None) -> nn.Module:
    """`module`, given with a name.

    Raises:
        TypeError: `module` is something else.
        ValueError: One of them is None.
    """
    if module is None or name is None:
        missing = "module" if module is None else "name"
        raise ValueError(f"{missing} is None; a module and the name of its statistics are needed")
    if not isinstance(module, nn.Module):
        raise TypeError(f"module is an nn.Module, not {type(module).__name__}")
    return module


def device_of(module: nn.Module) -> torch.device:
    """Where a layer's parameters or buffers are."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")
