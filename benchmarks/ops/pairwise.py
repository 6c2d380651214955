"""The pairwise family.

Ours gives float64's neighbours and divergences without cancellation.  `eager` is the expression as
one writes it in float32, `torch.compile` that expression compiled; `gradients` makes the last-layer
gradients, as DeepCore does; `faiss` is there where it is installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Case, Step
from benchmarks.ops.kd import compiled, forward
from pyddfast import ops

NEIGHBOURS = 10  # CAL's
Make = Callable[[int], Mapping[str, Tensor]]


def gradients_of(shape: tuple[int, int, int], device: torch.device) -> Make:
    """Factors of last-layer gradients as a trained network has them, of one class."""
    rows, classes, width = shape

    def make(seed: int) -> Mapping[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(rows, classes, generator=generator)
        logits[:, 0] += 4
        label = torch.zeros(rows, dtype=torch.int64)
        h = torch.randn(rows, width, generator=generator).relu()
        return {"g": ops.logit_gradient(logits, label).to(device), "h": h.to(device)}

    return make


def dense_rows(g: Tensor, h: Tensor) -> Tensor:
    """The gradients themselves, (n, C (D + 1))."""
    rows = torch.cat((h, h.new_ones(len(h), 1)), 1)
    return (g[:, :, None] * rows[:, None]).flatten(1)


def dense_gram(g: Tensor, h: Tensor) -> Tensor:
    rows = dense_rows(g, h)
    return rows @ rows.T


def eager_gram(g: Tensor, h: Tensor) -> Tensor:
    return (g @ g.T) * (1 + h @ h.T)


def gram_cases(device: torch.device, quick: bool) -> list[Case]:
    """A class of CIFAR-100, whose gradients fit, and one of ImageNet-1k, whose take 2.67 GB."""
    shapes = [(30, 7, 9)] if quick else [(500, 100, 512), (1300, 1000, 512)]

    def providers(shape: tuple[int, int, int]) -> dict[str, Callable[[Mapping[str, Tensor]], Step]]:
        found: dict[str, Any] = {
            "ours": ops.last_layer_gram,
            "eager": eager_gram,
            "torch.compile": compiled(eager_gram),
        }
        if shape[1] * shape[2] < 1e5:
            found["gradients"] = dense_gram
        return {name: forward(call, "g", "h") for name, call in found.items()}

    return [
        Case(
            op="last_layer_gram",
            part="forward",
            shape=shape,
            dtype="float32",
            bytes_floor=4 * shape[0] * (shape[0] + shape[1] + shape[2]),
            make_inputs=gradients_of(shape, device),
            providers=providers(shape),
            captures=False,  # it reads whether values are finite
        )
        for shape in shapes
    ]


def eager_neighbours(x: Tensor) -> tuple[Tensor, Tensor]:
    distances = torch.cdist(x, x) + torch.eye(len(x), device=x.device) * 1e9
    values, indices = distances.topk(NEIGHBOURS, largest=False)
    return values, indices


def our_neighbours(x: Tensor) -> tuple[Tensor, Tensor]:
    return ops.knn_topk(x, NEIGHBOURS)


def faiss_neighbours(x: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances; the row itself is the first of its neighbours and left out."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(x.shape[1])
    index.add(x.numpy())
    square, indices = index.search(x.numpy(), NEIGHBOURS + 1)
    return torch.from_numpy(square[:, 1:]).sqrt(), torch.from_numpy(indices[:, 1:])


def neighbour_cases(device: torch.device, quick: bool) -> list[Case]:
    """The nearest of a class of ImageNet-1k and of CIFAR-10, by a ResNet-18's features."""
    found: dict[str, Any] = {
        "ours": our_neighbours,
        "eager": eager_neighbours,
        "torch.compile": compiled(eager_neighbours),
    }
    if device.type == "cpu" and importlib.util.find_spec("faiss"):
        found["faiss"] = faiss_neighbours
    return [
        Case(
            op="knn_topk",
            part="forward",
            shape=(rows, width),
            dtype="float32",
            bytes_floor=rows * (4 * width + 12 * NEIGHBOURS),
            make_inputs=lambda seed, rows=rows, width=width: {  # type: ignore[misc]
                "x": torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
                .relu()
                .to(device)
            },
            providers={name: forward(call, "x") for name, call in found.items()},
            captures=False,  # it reads whether values are finite and neighbours certain
        )
        for rows, width in ([(60, 16)] if quick else [(1300, 512), (5000, 512)])
    ]


def eager_divergence(logp: Tensor, knn: Tensor) -> Tensor:
    own, other = logp[:, None], logp[knn]
    return ((other.exp() - own.exp()) * (other - own)).sum(-1).mean(-1) / 2


def divergence_cases(device: torch.device, quick: bool) -> list[Case]:
    """CAL's score of a class of ImageNet-1k, CIFAR-100 and CIFAR-10, given the neighbours."""
    shapes = [(60, 10)] if quick else [(1300, 1000), (500, 100), (5000, 10)]

    def make(rows: int, classes: int) -> Make:
        def inputs(seed: int) -> Mapping[str, Tensor]:
            generator = torch.Generator().manual_seed(seed)
            logp = (3 * torch.randn(rows, classes, generator=generator)).log_softmax(1)
            knn = torch.randint(0, rows, (rows, NEIGHBOURS), generator=generator)
            return {"logp": logp.to(device), "knn": knn.to(device)}

        return inputs

    found: dict[str, Any] = {
        "ours": ops.knn_divergence,
        "eager": eager_divergence,
        "torch.compile": compiled(eager_divergence),
    }
    return [
        Case(
            op="knn_divergence",
            part="forward",
            shape=shape,
            dtype="float32",
            bytes_floor=shape[0] * (4 * shape[1] + 8 * NEIGHBOURS + 4),
            make_inputs=make(*shape),
            providers={name: forward(call, "logp", "knn") for name, call in found.items()},
            captures=False,  # it reads whether rows exist
        )
        for shape in shapes
    ]
