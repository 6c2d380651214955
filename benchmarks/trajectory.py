"""What a step of trajectory matching costs: ``python -m benchmarks.trajectory``.

One outer step of TM (Cazenavette et al., CVPR 2022): N steps of SGD on the distilled images, their
distance from an expert's parameters, and its gradient to the images and the learning rate.  ConvNet
of depth 3, random images and experts.  `official` is the expression of the official code restated;
`fused` the same on ``nn.fuse_norm_relu_pool``; `exact unroll` that with ``train.unroll.sgd_step``,
which keeps no step; `compiled` the official network, one inner step with its ``torch.func.grad``
under ``torch.compile``.  The convolutions' share is the profiler's.  Beside them what the unroll
keeps for its backward, and how many operators an inner step and its part of the backward call.
Writes ``benchmarks/results/trajectory/cpu.json``.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import weakref
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import metadata
from benchmarks.harness import turns
from benchmarks.schema import RESULTS, write
from pyddfast.models import ConvNet
from pyddfast.nn import fuse_norm_relu_pool
from pyddfast.train.unroll import functional, sgd_step

Params = dict[str, Tensor]
InnerStep = Callable[[Params, Tensor, Tensor, Tensor], Params]
"""(parameters, images, labels, learning rate) to the parameters after a step."""

CLASSES = 10
# Published for CIFAR-10: syn_lr 0.01 at the start.
LEARNING_RATE = 0.01
CONVOLUTIONS = ("aten::convolution", "aten::convolution_backward")


def plain_step(model: nn.Module) -> InnerStep:
    """The official inner step: a gradient with a graph."""

    def step(params: Params, images: Tensor, labels: Tensor, lr: Tensor) -> Params:
        logits = torch.func.functional_call(model, params, (images,))
        loss = F.cross_entropy(logits, labels)
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        return {name: p - lr * g for (name, p), g in zip(params.items(), grads, strict=True)}

    return step


def exact_step(model: nn.Module) -> InnerStep:
    """The inner step that is computed again in the backward."""
    call = functional(model)

    def step(params: Params, images: Tensor, labels: Tensor, lr: Tensor) -> Params:
        return sgd_step(call, F.cross_entropy, params, lr, images, labels)

    return step


def compiled_step(model: nn.Module) -> InnerStep:
    """The whole inner step compiled, which torch can differentiate once more."""

    @torch.compile(fullgraph=True, dynamic=False)
    def step(params: Params, images: Tensor, labels: Tensor, lr: Tensor) -> Params:
        def loss(values: Params) -> Tensor:
            logits = torch.func.functional_call(model, values, (images,))
            return F.cross_entropy(logits, labels)

        grads = torch.func.grad(loss)(params)
        return {name: p - lr * grads[name] for name, p in params.items()}

    return step  # type: ignore[no-any-return]


CPU = torch.device("cpu")


def providers(width: int, device: torch.device = CPU) -> dict[str, InnerStep]:
    """Every way to make an inner step of one network."""
    torch.manual_seed(0)
    model = ConvNet(CLASSES, width=width).to(device)
    fused = fuse_norm_relu_pool(copy.deepcopy(model))
    return {
        "official": plain_step(model),
        "fused": plain_step(fused),
        "exact unroll": exact_step(fused),
        "compiled": compiled_step(model),
    }


class Problem:
    """Images, and the parameters that the student starts from and aims at."""

    def __init__(self, width: int, batch: int, device: torch.device = CPU) -> None:
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(batch, 3, 32, 32, generator=generator)
        self.images = images.to(device).requires_grad_()
        self.labels = torch.arange(batch, device=device) % CLASSES
        self.lr = torch.tensor(LEARNING_RATE, device=device, requires_grad=True)
        torch.manual_seed(2)
        named = ConvNet(CLASSES, width=width).named_parameters()
        self.start = {name: p.detach().to(device) for name, p in named}
        self.target = {
            name: p + 0.01 * torch.randn(p.shape, generator=generator).to(device)
            for name, p in self.start.items()
        }

    def unroll(self, step: InnerStep, steps: int) -> Tensor:
        """The matching loss after so many steps, with its graph."""
        params = {name: p.clone().requires_grad_() for name, p in self.start.items()}
        for _ in range(steps):
            params = step(params, self.images, self.labels, self.lr)
        left = sum((params[n] - t).square().sum() for n, t in self.target.items())
        whole = sum((self.start[n] - t).square().sum() for n, t in self.target.items())
        return torch.as_tensor(left / whole)

    def outer(self, step: InnerStep, steps: int) -> tuple[Tensor, ...]:
        """The gradients of the loss to images and learning rate."""
        return torch.autograd.grad(self.unroll(step, steps), (self.images, self.lr))


def convolution_ms(problem: Problem, step: InnerStep, steps: int) -> float:
    """Time inside convolutions of one outer step."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        problem.outer(step, steps)
    events = recorded.key_averages()
    return sum(e.cpu_time_total for e in events if e.key in CONVOLUTIONS) / 1e3


class Kept:
    """A tensor that waits for the backward."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept_mb(problem: Problem, step: InnerStep, steps: int) -> float:
    """Megabytes that wait for the backward at the end of the unroll, each memory once."""
    alive: weakref.WeakSet[Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> Kept:
        kept = Kept(tensor.detach())  # itself, it would keep the graph that keeps it, for ever
        alive.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        loss = problem.unroll(step, steps)
    storages = {kept.tensor.untyped_storage() for kept in alive}
    bytes_of = {storage.data_ptr(): storage.nbytes() for storage in storages}
    del loss
    return sum(bytes_of.values()) / 1e6


def apart(images: Tensor, others: Tensor) -> float:
    """Relative difference of two image gradients, median over the images.

    Where an activation lies within a rounding of 0, one implementation opens its ReLU and another
    does not, and both are right: that changes some image's gradient as a whole.
    """
    difference = (images - others).flatten(1).norm(dim=1)
    return float((difference / others.flatten(1).norm(dim=1)).median())


def measure(width: int, batch: int, steps: int, rounds: int, names: list[str]) -> list[Any]:
    """A row a provider: time of an outer step and of its convolutions, error of the gradient."""
    problem = Problem(width, batch)
    chosen = {name: step for name, step in providers(width).items() if name in names}
    # Rounding alone moves long unrolls apart: gradients are compared over two steps.
    gradients = {name: problem.outer(step, 2)[0] for name, step in chosen.items()}
    first = gradients.get("official", next(iter(gradients.values())))
    samples: dict[str, list[float]] = {name: [] for name in chosen}
    for name in turns(list(chosen), rounds):
        began = time.perf_counter()
        problem.outer(chosen[name], steps)
        samples[name].append((time.perf_counter() - began) * 1e3)
    rows = []
    for name, step in chosen.items():
        total = statistics.median(samples[name])
        inside = convolution_ms(problem, step, steps)
        rows.append(
            {
                "provider": name,
                "outer_ms": round(total, 1),
                "outer_ms_all": [round(ms, 1) for ms in samples[name]],
                "convolution_ms": round(inside, 1),
                "other_ms": round(total - inside, 1),
                "image_gradient_error": apart(gradients[name], first),
            }
        )
    return rows


def measure_memory(width: int, batch: int, lengths: list[int]) -> list[Any]:
    """A row a provider and number of steps; torch.compile keeps what it likes."""
    problem = Problem(width, batch)
    return [
        {"provider": name, "steps": n, "kept_mb": round(kept_mb(problem, step, n), 2)}
        for name, step in providers(width).items()
        if name != "compiled"
        for n in lengths
    ]


class Calls(TorchDispatchMode):
    """Counts the operators that do some work: views do none."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (func.is_view or func.name().startswith(("aten::detach", "profiler::")))
        return func(*args, **(kwargs or {}))


def count_calls(problem: Problem, model: nn.Module) -> tuple[int, int]:
    """Operators of an inner step's loss and gradient, and of the gradient of that gradient.

    Without the update, whose number of operators is the caller's choice: two for a flat vector.
    """
    params = {name: p.clone().requires_grad_() for name, p in problem.start.items()}
    leaves = list(params.values())
    with Calls() as inner:
        logits = torch.func.functional_call(model, params, (problem.images,))
        loss = F.cross_entropy(logits, problem.labels)
        grads = torch.autograd.grad(loss, leaves, create_graph=True)
    cotangents = [torch.ones_like(g) for g in grads]
    with Calls() as outer:
        torch.autograd.grad(grads, [*leaves, problem.images], cotangents)
    return inner.count, outer.count


def measure_calls(width: int, batch: int) -> list[Any]:
    """A row for the official network and the fused one."""
    problem = Problem(width, batch)
    model = ConvNet(CLASSES, width=width)
    found = {"official": model, "fused": fuse_norm_relu_pool(copy.deepcopy(model))}
    counts = {name: count_calls(problem, network) for name, network in found.items()}
    return [
        {"provider": name, "inner_step": inner, "final_backward": outer}
        for name, (inner, outer) in counts.items()
    ]


def report(result: dict[str, Any]) -> None:
    """Prints the rows, each beside the first one of its kind."""
    rows, memory = result["results"], result["memory"]
    for row in rows:
        faster, less = (rows[0][key] / row[key] for key in ("outer_ms", "other_ms"))
        print(
            f"{row['provider']}: {row['outer_ms']:.0f} ms an outer step ({faster:.2f}x faster), "
            f"{row['convolution_ms']:.0f} ms of it convolutions, {row['other_ms']:.0f} not "
            f"({less:.2f}x faster); image gradient {row['image_gradient_error']:.1e} from the first"
        )
    for row in memory:
        first = next(other for other in memory if other["steps"] == row["steps"])
        print(
            f"{row['provider']}: {row['kept_mb']:.1f} MB kept by {row['steps']} steps, "
            f"{1 - row['kept_mb'] / first['kept_mb']:.0%} less"
        )
    for row in result["calls"]:
        print(
            f"{row['provider']}: {row['inner_step']} operators an inner step, "
            f"{row['final_backward']} in the final backward"
        )


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.trajectory",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    every = ["official", "fused", "exact unroll", "compiled"]
    parser.add_argument("--width", type=int, default=128, help="channels")
    parser.add_argument("--batch", type=int, default=50, help="images of an inner step")
    parser.add_argument("--steps", type=int, default=10, help="inner steps")
    parser.add_argument("--rounds", type=int, default=5, help="outer steps a provider")
    parser.add_argument(
        "--memory-steps", type=int, nargs="+", default=[10, 40, 80],
        help="inner steps whose bytes are counted (80 official ones keep about 12 GB)",
    )  # fmt: skip
    parser.add_argument("--providers", nargs="+", default=every, choices=every)
    parser.add_argument("--threads", type=int, help="CPU threads, default: torch's")
    parser.add_argument("--out", type=Path, default=RESULTS / "trajectory" / "cpu.json")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = measure(options.width, options.batch, options.steps, options.rounds, options.providers)
    memory = measure_memory(options.width, options.batch, options.memory_steps)
    calls = measure_calls(options.width, options.batch)
    result = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "metadata": metadata.collect(torch.device("cpu")),
        "model": ["convnet-d3", {"width": options.width}],
        "batch_size": options.batch,
        "steps": options.steps,
        "results": rows,
        "memory": memory,
        "calls": calls,
    }
    write(result, options.out)
    report(result)
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
