"""The official formulas, written down once more in plain torch, as forward hooks in float64.

Statistics are taken by hand from flattened rows, so that nothing is shared with the library.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyddfast.models import ResNet


def network(seed: int = 0) -> nn.Module:
    """A ResNet-18 for few pixels whose running statistics are not the initial ones."""
    generator = torch.Generator().manual_seed(seed)
    model = ResNet(7, image_size=32, stem="imagenet").double()
    for parameter in model.parameters():
        scale = 0.1 if parameter.dim() > 1 else 0.5
        parameter.data = scale * torch.randn(parameter.shape, generator=generator).double()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.copy_(torch.randn(layer.num_features, generator=generator))
            layer.running_var.copy_(0.5 + torch.rand(layer.num_features, generator=generator))
    return model.eval().requires_grad_(False)


def planes() -> nn.Sequential:
    """Convolutions that see planes of 32, 20 and 7: whole cells, a resize, and one to a cell."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(20),
        nn.Conv2d(6, 5, 1, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(7),
        nn.Conv2d(5, 4, 3),
    )
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 1.5)
    return model.double().eval().requires_grad_(False)


def images(seed: int, batch: int = 3, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, size, size, generator=generator, dtype=torch.float64)


def moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each row."""
    mean = rows.sum(1) / rows.shape[1]
    return mean, ((rows - mean[:, None]) ** 2).sum(1) / rows.shape[1]


def channels(x: Tensor) -> tuple[Tensor, Tensor]:
    return moments(x.transpose(0, 1).flatten(1))


def cells(x: Tensor, cell: int = 16) -> tuple[Tensor, Tensor]:
    """Statistics of the cells of the resized plane, over samples, channels and pixels."""
    height, width = (size + (-size) % cell for size in x.shape[2:])
    x = F.interpolate(x, (height, width), mode="bilinear")
    rows = [
        x[:, :, i : i + cell, j : j + cell].flatten()
        for i in range(0, height, cell)
        for j in range(0, width, cell)
    ]
    return moments(torch.stack(rows))


def all_stats(x: Tensor) -> tuple[Tensor, ...]:
    return (*channels(x), *cells(x))


def norm(x: Tensor) -> Tensor:
    return (x**2).sum().sqrt()


class Recorder:
    """Calls `measure` with the input of a module after each of its forwards."""

    def __init__(self, module: nn.Module, measure: Callable[[Tensor], Tensor | None]) -> None:
        self.handle = module.register_forward_hook(self.after)
        self.measure = measure
        self.r_feature = torch.zeros(())

    def after(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        value = self.measure(inputs[0])
        if value is not None:
            self.r_feature = value

    def close(self) -> None:
        self.handle.remove()


class Averages:
    """Moving averages from 0; `straight` has their value and the gradient of the newest."""

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.values: list[Tensor] = []

    def straight(self, stats: tuple[Tensor, ...]) -> list[Tensor]:
        old = self.values or [torch.zeros_like(s) for s in stats]
        self.values = [
            (self.momentum * a + (1 - self.momentum) * s).detach()
            for a, s in zip(old, stats, strict=True)
        ]
        return [a + s - s.detach() for a, s in zip(self.values, stats, strict=True)]


def distance(stats: list[Tensor], target: list[Tensor]) -> Tensor:
    return torch.stack([norm(t - s) for s, t in zip(stats, target, strict=True)]).sum()
