"""``gradient_distance``: the gradients of a ConvNet, as DC and DSA match them.

`eager` is the official expression (VICO-UoE/DatasetCondensation, ``match_loss``), restated;
`torch.compile` compiles it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Case, Step
from pyddfast import ops

# Parameters of the ConvNets of CIFAR-10 (depth 3) and Tiny-ImageNet (depth 4), width 128: three
# vectors of 128 beside each convolution.
CONV, VECTORS = (128, 128, 3, 3), [(128,)] * 3
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "D3": [(128, 3, 3, 3), *VECTORS, *[CONV, *VECTORS] * 2, (10, 2048), (10,)],
    "D4": [(128, 3, 3, 3), *VECTORS, *[CONV, *VECTORS] * 3, (200, 2048), (200,)],
}
# Metrics that take all values as one: the network makes no difference.
OTHERS = [("D3", "mse"), ("D3", "cos")]

Inputs = Mapping[str, Tensor]
Distance = Callable[[list[Tensor], list[Tensor], Any], Tensor]


def official(syn: list[Tensor], real: list[Tensor], metric: str) -> Tensor:
    if metric != "ours":
        s, r = (torch.cat([x.reshape(-1) for x in xs]) for xs in (syn, real))
        if metric == "mse":
            return torch.sum((s - r) ** 2)
        cosine = torch.sum(r * s) / (torch.norm(r) * torch.norm(s) + 0.000001)
        return torch.rsub(cosine, 1)
    total = torch.zeros((), device=syn[0].device)
    for s, r in zip(syn, real, strict=True):
        if s.ndim == 1:
            continue
        s, r = s.reshape(len(s), -1), r.reshape(len(r), -1)
        product = torch.norm(r, dim=-1) * torch.norm(s, dim=-1)
        total = total + torch.sum(1 - torch.sum(r * s, dim=-1) / (product + 0.000001))
    return total


def gradient_distance_cases(device: torch.device, quick: bool) -> list[Case]:
    """The distance, and its gradient to the synthetic side."""
    functions: dict[str, Distance] = {
        "ours": ops.gradient_distance,
        "eager": official,
        "torch.compile": torch.compile(official, dynamic=False),
    }
    chosen = [("D3", "ours")] if quick else [*((n, "ours") for n in SHAPES), *OTHERS]
    return [
        Case(
            op="gradient_distance",
            part=f"{name if metric == 'ours' else f'{name} {metric}'} {part}",
            shape=(sum(torch.Size(s).numel() for s in SHAPES[name]),),
            dtype="float32",
            # Both sides are read; backwards once more, and the gradient is written.
            bytes_floor=matched(name, metric) * 4 * (2 if part == "forward" else 5),
            make_inputs=make_inputs(name, device),
            providers={key: step_of(f, metric, part) for key, f in functions.items()},
        )
        for name, metric in chosen
        for part in ("forward", "forward+backward")
    ]


def matched(name: str, metric: str) -> int:
    shapes = [s for s in SHAPES[name] if metric != "ours" or len(s) > 1]
    return sum(torch.Size(shape).numel() for shape in shapes)


def make_inputs(name: str, device: torch.device) -> Callable[[int], Inputs]:
    def make(seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        return {
            f"{side} {index}": torch.randn(shape, generator=generator).to(device)
            for side in ("syn", "real")
            for index, shape in enumerate(SHAPES[name])
        }

    return make


def step_of(distance: Distance, metric: str, part: str) -> Callable[[Inputs], Step]:
    def bind(inputs: Inputs) -> Step:
        syn = [tensor for key, tensor in inputs.items() if key.startswith("syn")]
        real = [tensor for key, tensor in inputs.items() if key.startswith("real")]
        if part == "forward":
            return lambda: distance(syn, real, metric)
        counted = [s.requires_grad_() for s in syn if metric != "ours" or s.ndim > 1]
        return lambda: torch.autograd.grad(distance(syn, real, metric), counted)

    return bind
