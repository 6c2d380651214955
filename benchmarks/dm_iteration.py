"""An iteration of DM at CIFAR-10's size against the official expression, in turn.

``python -m benchmarks.dm_iteration`` restates the loop of ``main_DM.py`` (a network, ten classes, a
forward of 256 real and of the synthetic images each, DSA with draws from the global generators) and
runs it and ``methods.dm`` on the same images, alternating; `torch.compile` is the loop with its
network compiled, whose parameters are arguments, as every iteration has a new one.  Prints medians
and how many times as fast as the official one ours is.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.ops.dsa import ENTRIES
from benchmarks.ops.dsa import official as official_dsa
from pyddfast.data import CIFAR10_NORMALIZATION, ImageDataset, normalize
from pyddfast.methods.dm import DMConfig, DMWork
from pyddfast.methods.small_scale import Networks, RealImages
from pyddfast.models import create
from pyddfast.train.distributed import Ranks

CLASSES, EACH = 10, 500
# Of the process: other work on the machine counts less.
clock = time.process_time


def images() -> ImageDataset:
    """Noise of CIFAR-10's shape: the work does not depend on what it shows."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (CLASSES * EACH, 3, 32, 32), generator=generator)
    labels = torch.arange(CLASSES).repeat_interleave(EACH)
    names = tuple(str(label) for label in range(CLASSES))
    return ImageDataset(pixels.to(torch.uint8), labels, names, CIFAR10_NORMALIZATION)


def official_view(images: Tensor, seed: int) -> Tensor:
    """DSA with its published strategy: an entry and its parameters by the seed, for all images."""
    torch.manual_seed(seed)
    return official_dsa(images, ENTRIES[int(torch.randint(0, len(ENTRIES), (1,)))], seed)


class Embedding(nn.Module):
    """A network up to its last layer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Features, (N, F)."""
        features: Tensor = self.network.embed(images)  # type: ignore[operator]
        return features


def official(
    data: ImageDataset, ipc: int, batch: int, device: torch.device, *, compiled: bool = False
) -> Callable[[int], None]:
    """The iteration as the script has it, on normalised images on the device."""
    everything = normalize(data.images, data.normalization).to(device)
    synthetic = torch.randn(CLASSES * ipc, 3, 32, 32, device=device, requires_grad=True)
    optimizer = torch.optim.SGD([synthetic], lr=1.0, momentum=0.5)

    def embedding(iteration: int) -> Embedding:
        network = create("convnet-d3", CLASSES, 3, 32, seed=iteration)
        return Embedding(network).to(device).requires_grad_(False)

    first = embedding(0)

    def call(parameters: dict[str, Tensor], images: Tensor) -> Tensor:
        features: Tensor = torch.func.functional_call(first, parameters, (images,))
        return features

    one_graph: Any = torch.compile(call, fullgraph=True, dynamic=False)

    def step(iteration: int) -> None:
        network: Any = embedding(iteration)
        if compiled:
            network = functools.partial(one_graph, dict(network.named_parameters()))
        loss: Tensor = torch.zeros((), device=device)
        for label in range(CLASSES):
            real = everything[label * EACH + torch.randperm(EACH)[:batch]]
            ours = synthetic[label * ipc : (label + 1) * ipc]
            seed = 1000 * iteration + label
            wanted = network(official_view(real, seed)).detach()
            found = network(official_view(ours, seed))
            loss = loss + ((wanted.mean(0) - found.mean(0)) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def providers(ipc: int, batch: int, device: torch.device) -> dict[str, Callable[[int], object]]:
    """An iteration by its number: ``methods.dm``, and as published, the network compiled or not."""
    data = images()
    real = RealImages(data, device, 0)
    config = DMConfig(ipc=ipc, real_batch=batch, lr_img=1.0, init="real")
    work = DMWork(real, Networks("convnet-d3", real, 0, fused=True), config, Ranks())
    return {
        "ours": work.run_step,
        "official": official(data, ipc, batch, device),
        "torch.compile": official(data, ipc, batch, device, compiled=True),
    }


def main() -> None:
    """Alternates the two and prints their times."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dm_iteration", description=__doc__)
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--real-batch", type=int, default=256)
    options = parser.parse_args()
    runs = providers(options.ipc, options.real_batch, torch.device("cpu"))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for iteration in range(options.rounds + 1):
        for name, step in runs.items():
            began = clock()
            step(iteration)
            if iteration:  # the first warms up
                seconds[name].append(clock() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        print(f"{name}: {1000 * median:,.0f} ms, all {[round(1000 * s) for s in seconds[name]]}")
    print(f"ratio {medians['official'] / medians['ours']:.2f}")


if __name__ == "__main__":
    main()
