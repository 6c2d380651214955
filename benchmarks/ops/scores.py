"""The scores family: every score of a batch in one call, and the recorder's update.

`eager` is what a careful script writes: one softmax, gathers, norms, the two largest entries.  It
does not give the accuracy of ours (1 - p_y as a difference), only the same quantities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Case, Step
from benchmarks.ops.kd import compiled, forward
from pyddfast import ops
from pyddfast.ops.dynamics import DynamicsState

# ImageNet-1k at the batch of a training step and of relabelling; CIFAR-100, where a call's fixed
# costs count; ImageNet-21k, rows longer than the L1 cache.
CPU_SHAPES = [(256, 1000), (1024, 1000), (256, 100), (128, 21841)]
QUICK_SHAPES = [(256, 100)]
CUDA_SHAPES = [(256, 100), (1024, 1000), (131072, 1000), (1024, 21841)]
COLUMNS = 12  # numbers a row, beside the flag `correct`


def eager_scores(logits: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    """The scores of `ops.sample_scores` for hard labels, in its order."""
    z, y = logits.float(), target[:, None]
    log_p = F.log_softmax(z, dim=1)
    p = log_p.exp()
    log_p_y = log_p.gather(1, y).squeeze(1)
    p_y = log_p_y.exp()
    nll = -log_p_y
    error = p.scatter_add(1, y, torch.full_like(p_y[:, None], -1.0))
    el2n = error.norm(dim=1)
    top, index = z.topk(2, dim=1) if z.shape[1] > 1 else (z.expand(-1, 2), y.expand(-1, 2))
    correct = index[:, 0] == target
    z_y = z.gather(1, y).squeeze(1)
    margin = z_y - torch.where(correct, top[:, 1], top[:, 0])
    top_p = (top - z_y[:, None] + log_p_y[:, None]).exp()
    margin_p = p_y - torch.where(correct, top_p[:, 1], top_p[:, 0])
    entropy = -(p * log_p).sum(1)
    gap = top_p[:, 0] - top_p[:, 1]
    return (
        *(p_y, 1 - p_y, nll, el2n, el2n, margin, margin_p, gap, entropy),
        *(top_p[:, 0], top[:, 0], correct, nll),
    )


def our_scores(logits: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    scores = ops.sample_scores(logits, target)
    return tuple(value for value in scores if value is not None)


def inputs_of(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> Callable[[int], Mapping[str, Tensor]]:
    """Logits of spread 3 (a trained network's) and hard labels, from the seed alone."""

    def make(seed: int) -> Mapping[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        logits = 3 * torch.randn(shape, generator=generator)
        target = torch.randint(shape[1], (shape[0],), generator=generator)
        return {"logits": logits.to(device, dtype), "target": target.to(device)}

    return make


def sample_scores_cases(device: torch.device, quick: bool) -> list[Case]:
    """Every score of every row, hard labels."""
    cuda = device.type == "cuda" and not quick
    shapes = CUDA_SHAPES if cuda else QUICK_SHAPES if quick else CPU_SHAPES
    dtypes = [torch.float32, torch.bfloat16] if cuda else [torch.float32]
    names = ("logits", "target")
    return [
        Case(
            op="sample_scores",
            part="forward",
            shape=shape,
            dtype=str(dtype).removeprefix("torch."),
            # logits and label in; 12 floats and a flag out
            bytes_floor=shape[0] * (shape[1] * dtype.itemsize + 8 + 4 * COLUMNS + 1),
            make_inputs=inputs_of(shape, dtype, device),
            providers={
                "ours": forward(our_scores, *names),
                "eager": forward(eager_scores, *names),
                "torch.compile": forward(compiled(eager_scores), *names),
            },
        )
        for dtype in dtypes
        for shape in shapes
    ]


# --- dynamics_update_ ------------------------------------------------------------------------

SAMPLES = 50_000  # CIFAR; a batch touches its own samples only, whatever their number
SLOTS = 10  # of the recorder's ring


def new_state(samples: int, device: torch.device) -> DynamicsState:
    def zeros(dtype: torch.dtype) -> Tensor:
        return torch.zeros(samples, dtype=dtype, device=device)

    return DynamicsState(
        ring=torch.zeros(samples, SLOTS, device=device),
        last_correct=zeros(torch.uint8),
        seen=zeros(torch.int16),
        forgetting=zeros(torch.int16),
        correct=zeros(torch.int16),
        first_learned=zeros(torch.int16) - 1,
        aum=zeros(torch.float32),
        el2n=zeros(torch.float32),
    )


def eager_update(
    state: DynamicsState, logits: Tensor, target: Tensor, indices: Tensor, tick: Tensor
) -> None:
    """The default state by torch's operators, without checks."""
    z, y = logits.float(), target[:, None]
    p = z.softmax(1)
    error = p.scatter_add(1, y, torch.full_like(y, -1.0, dtype=p.dtype))
    top, index = z.topk(2, dim=1)
    correct = index[:, 0] == target
    rival = torch.where(correct, top[:, 1], top[:, 0])
    state.ring[indices, (tick % SLOTS).expand_as(indices)] = -error.gather(1, y).squeeze(1)
    before, first = state.last_correct[indices] != 0, state.first_learned[indices]
    state.first_learned[indices] = torch.where((first < 0) & correct, state.seen[indices], first)
    state.seen[indices] += 1
    state.forgetting[indices] += (before & ~correct).short()
    state.correct[indices] += correct.short()
    state.last_correct[indices] = correct.to(torch.uint8)
    state.aum[indices] += z.gather(1, y).squeeze(1) - rival
    state.el2n[indices] += error.norm(dim=1)


def update(
    function: Callable[..., None], device: torch.device
) -> Callable[[Mapping[str, Tensor]], Step]:
    """Each provider has a state of its own."""

    def bind(inputs: Mapping[str, Tensor]) -> Step:
        state = new_state(SAMPLES, device)
        arguments = [inputs[name] for name in ("logits", "target", "indices", "tick")]

        def step() -> object:
            function(state, *arguments)
            return [x for x in state[:-5] if x is not None]

        return step

    return bind


def dynamics_cases(device: torch.device, quick: bool) -> list[Case]:
    """A training batch recorded with the default state."""
    shapes = [(256, 100)] if quick else [(256, 10), (256, 100), (256, 1000)]

    def make(shape: tuple[int, int]) -> Callable[[int], Mapping[str, Tensor]]:
        def inputs(seed: int) -> Mapping[str, Tensor]:
            generator = torch.Generator().manual_seed(seed)
            indices = torch.randperm(SAMPLES, generator=generator)[: shape[0]]
            return {
                **inputs_of(shape, torch.float32, device)(seed),
                "indices": indices.to(device),
                "tick": torch.tensor(3, device=device),
            }

        return inputs

    return [
        Case(
            op="dynamics_update_",
            part="forward",
            shape=shape,
            dtype="float32",
            # logits, label, index; of the state a slot (write) and 17 bytes (read and write)
            bytes_floor=shape[0] * (4 * shape[1] + 8 + 8 + 4 + 2 * 17),
            make_inputs=make(shape),
            providers={
                "ours": update(ops.dynamics_update_, device),
                "eager": update(eager_update, device),
                "torch.compile": update(compiled(eager_update), device),
            },
        )
        for shape in shapes
    ]
