"""Parameter initialisation from a seed, without the global random state."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from pyddfast.random import Purpose, generator

__all__ = ["initialize"]


@runtime_checkable
class HasOwnRule(Protocol):
    """A network whose official code draws convolutions and linear layers in its own way."""

    def initialize_layer(self, layer: nn.Conv2d | nn.Linear, stream: torch.Generator) -> None:
        """Fill the layer's weight and bias with draws from ``stream``."""


@torch.no_grad()
def initialize(model: nn.Module, seed: int) -> None:
    """Fill every parameter and buffer of ``model`` by the official codes' distributions.

    Linear layers, and convolutions with a bias (ConvNet): torch's defaults, uniform in
    ±1/sqrt(fan_in).  Convolutions without a bias (ResNet): normal with variance 2/fan_out,
    torchvision's choice for ResNet.  A network with a rule for these layers (:class:`HasOwnRule`:
    MobileNetV2, EfficientNet-Lite0) goes by its own.  Norms: scale 1, shift 0, running mean 0,
    running variance 1.

    Args:
        model: Convolutions, linear layers, batch, group and layer norms, and layers without state.
        seed: Seed of the run, in [0, 2**64).  Layers draw from one stream in module order.

    Raises:
        TypeError: A layer has state and no rule.
    """
    stream = generator(seed, Purpose.MODEL_INIT)
    rule = model.initialize_layer if isinstance(model, HasOwnRule) else _initialize_layer
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            rule(module, stream)
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            # Their reset draws nothing at random.
            module.reset_parameters()
        elif any(True for _ in module.parameters(recurse=False)) or any(
            True for _ in module.buffers(recurse=False)
        ):
            raise TypeError(f"no initialisation rule for {name} of type {type(module).__name__}")


def _initialize_layer(layer: nn.Conv2d | nn.Linear, stream: torch.Generator) -> None:
    if isinstance(layer, nn.Conv2d) and layer.bias is None:
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=stream)
        return
    bound = 1 / math.sqrt(layer.weight[0].numel())  # the fan-in
    layer.weight.uniform_(-bound, bound, generator=stream)
    if layer.bias is not None:
        layer.bias.uniform_(-bound, bound, generator=stream)
