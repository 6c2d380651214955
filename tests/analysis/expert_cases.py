"""Trajectories of the network of the methods' tests."""

from __future__ import annotations

import torch

from pyddfast.data.trajectories import write_replay_buffer
from pyddfast.models import create


def experts(folder, count=1, epochs=3):
    """Parameters that drift from an initialisation."""
    made = []
    for number in range(count):
        start = [p.detach() for p in tm_network(number).parameters()]
        gen = torch.Generator().manual_seed(number)
        noise = [torch.randn(p.shape, generator=gen) for p in start]
        made.append(
            [
                [p + 0.02 * t * n for p, n in zip(start, noise, strict=True)]
                for t in range(epochs + 1)
            ]
        )
    write_replay_buffer(folder / "replay_buffer_0.pt", made)
    return folder


def tm_network(seed):
    return create("convnet-d2", 3, in_channels=1, image_size=8, seed=seed, width=6)
