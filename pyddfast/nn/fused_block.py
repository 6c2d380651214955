"""Instance norm, ReLU and pooling of a finished network as one operator."""

from __future__ import annotations

from typing import TypeGuard, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from pyddfast import ops

__all__ = ["NormReluPool", "fuse_norm_relu_pool"]

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


class NormReluPool(nn.Module):
    """``ops.norm_relu_pool`` with the parameters of the norm it stands for.

    Parameters are read at each call, so that whoever replaces them by plain tensors (the
    ``ReparamModule`` of trajectory matching, ``torch.func.functional_call``) is heard.

    Args:
        norm: ``GroupNorm(C, C)`` or ``InstanceNorm2d(C)`` with scale and shift; its parameters are
            taken over, not copied.
        relu: Whether a ReLU follows.
        pool: Whether ``AvgPool2d(2)`` follows.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self, norm: nn.GroupNorm | nn.InstanceNorm2d, *, relu: bool = True, pool: bool = True
    ) -> None:
        super().__init__()
        if not _is_instance_norm(norm):
            raise TypeError(
                "norm is GroupNorm with as many groups as channels or InstanceNorm2d without "
                f"running statistics, with scale and shift, not {norm}"
            )
        self.eps, self.relu, self.pool = norm.eps, relu, pool
        # An instance norm takes (C, H, W) as one image, a group norm as C samples.
        self.unbatched = isinstance(norm, nn.InstanceNorm2d)
        self.weight, self.bias = norm.weight, norm.bias
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W), or (C, H, W) as InstanceNorm2d, to the planes, pooled if so."""
        if x.dim() == 3 and self.unbatched:
            y: Tensor = self(x[None])
            return y[0]
        if x.dim() != 4 and not self.pool:  # as GroupNorm allows
            y = F.group_norm(x, x.shape[1], self.weight, self.bias, self.eps)
            return F.relu(y) if self.relu else y
        return ops.norm_relu_pool(
            x, self.weight, self.bias, eps=self.eps, relu=self.relu, pool=self.pool
        )

    def extra_repr(self) -> str:
        """What the block does beside the norm."""
        return f"{self.weight.numel()}, eps={self.eps}, relu={self.relu}, pool={self.pool}"


def fuse_norm_relu_pool(model: nn.Module) -> nn.Module:
    """Swap instance norms, with the ReLU and pooling that follow them, for one operator each.

    Runs of ``GroupNorm(C, C)`` or ``InstanceNorm2d(affine=True)``, ``ReLU`` and ``AvgPool2d(2)`` in
    an ``nn.Sequential`` become `NormReluPool` in the norm's place and ``nn.Identity`` in the
    others'; ReLU or pooling may be missing, and a norm elsewhere, as in a ResNet, is swapped alone.
    Names of children, keys of the state dict, the parameters themselves and their order stay, so
    that optimizers, checkpoints and experts' trajectories fit before and after.

    Everything else is left as it is: other norms and numbers of groups, modules with hooks, with a
    forward of their own or with parametrizations, and subclasses.

    Args:
        model: Changed in place, apart from a `model` that is itself a norm.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a torch.nn.Module, not {type(model).__name__}")
    if _is_instance_norm(model):
        return NormReluPool(model, relu=False, pool=False)
    for parent in list(model.modules()):
        children = list(parent._modules.items())  # a module that is used twice comes twice
        for position, (name, child) in enumerate(children):
            if not _is_instance_norm(child):
                continue
            follow = [one for _, one in children[position + 1 : position + 3]]
            runs = type(parent) is nn.Sequential
            relu = runs and bool(follow) and _is_plain(follow[0], nn.ReLU)
            behind = follow[1:] if relu else follow[:1]
            pool = runs and bool(behind) and _is_halving(behind[0])
            parent._modules[name] = NormReluPool(child, relu=relu, pool=pool)
            for other, _ in children[position + 1 : position + 1 + relu + pool]:
                parent._modules[other] = nn.Identity()
    return model


_M = TypeVar("_M", bound=nn.Module)


def _is_plain(module: nn.Module | None, kind: type[_M]) -> TypeGuard[_M]:
    """Whether `module` is a `kind` that does what torch's does and nobody listens to."""
    if type(module) is not kind or "forward" in vars(module):
        return False
    return not any(getattr(module, hooks, None) for hooks in _HOOKS)


def _is_instance_norm(
    module: nn.Module | None,
) -> TypeGuard[nn.GroupNorm | nn.InstanceNorm2d]:
    if _is_plain(module, nn.GroupNorm):
        return module.affine and module.num_groups == module.num_channels
    if _is_plain(module, nn.InstanceNorm2d):
        return module.affine and not module.track_running_stats
    return False


def _is_halving(module: nn.Module | None) -> bool:
    """Whether `module` is ``AvgPool2d(2)``."""
    if not _is_plain(module, nn.AvgPool2d):
        return False
    sides = [
        value if isinstance(value, tuple) else (value, value)
        for value in (module.kernel_size, module.stride, module.padding)
    ]
    whole = not module.ceil_mode and module.divisor_override is None
    return whole and sides == [(2, 2), (2, 2), (0, 0)]
