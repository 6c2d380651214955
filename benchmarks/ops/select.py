"""The select family: picks of one class, and of many.

`eager` and `torch.compile` are the same greedy selection as a step in torch, called once a pick:
running minimum, gains of all candidates.  `submodlib` and `apricot` are given the similarities;
ours makes them from the features.  They are there where they are installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Case, Step
from pyddfast import ops

# Rows, features, picks.  A class of ImageNet-1k at 10 % with ResNet-18's features; one of CIFAR-10
# at 50 pictures a class; for k-center also a set beyond the cache of most CPUs (64 MiB).
CLASSES = [(1300, 512, 130), (5000, 512, 50)]
LARGE = (32_768, 512, 32)
QUICK = [(60, 16, 5)]

Inputs = Mapping[str, Tensor]
Provider = Callable[[Inputs], Step]
Picker = Callable[[Tensor, int], Tensor]


def make_inputs(
    rows: int, dim: int, dtype: torch.dtype, device: torch.device
) -> Callable[[int], Inputs]:
    def make(seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        means = torch.randn(20, dim, generator=generator)  # clusters, as features have
        cluster = torch.randint(0, 20, (rows,), generator=generator)
        x = means[cluster] + 0.5 * torch.randn(rows, dim, generator=generator)
        return {"x": x.to(device, dtype)}

    return make


def bind(picker: Picker, k: int) -> Provider:
    return lambda inputs: lambda: picker(inputs["x"], k)


# --- k-center, herding ---------------------------------------------------------------------------


def center_step(x: Tensor, state: Tensor, pick: Tensor) -> tuple[Tensor, Tensor]:
    center = x.index_select(0, pick).float()
    state = torch.minimum(state, (x.float() - center).square().sum(1))
    return state, state.argmax(0, keepdim=True)


def herding_step(
    x: Tensor, mean: Tensor, target: Tensor, taken: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    distance = (x.float() - target).square().sum(1) + taken
    pick = distance.argmin(0, keepdim=True)
    target = target + mean - x.index_select(0, pick)[0].float()
    return pick, target, taken.index_fill(0, pick, torch.inf)


def center_loop(step: Callable[..., tuple[Tensor, Tensor]]) -> Picker:
    def run(x: Tensor, k: int) -> Tensor:
        pick = torch.zeros(1, dtype=torch.int64, device=x.device)
        state = torch.full((len(x),), torch.inf, device=x.device)
        picks = []
        for _ in range(k):
            picks.append(pick)
            state, pick = step(x, state, pick)
        return torch.cat(picks)

    return run


def herding_loop(step: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> Picker:
    def run(x: Tensor, k: int) -> Tensor:
        mean = x.float().mean(0)
        target, taken = mean, torch.zeros(len(x), device=x.device)
        picks = []
        for _ in range(k):
            pick, target, taken = step(x, mean, target, taken)
            picks.append(pick)
        return torch.cat(picks)

    return run


# --- facility location, graph cut ----------------------------------------------------------------


def similarities(x: Tensor) -> Tensor:
    unit = F.normalize(x.float(), dim=1)
    return (unit @ unit.T).mul_(0.5).add_(0.5)


def location_step(s: Tensor, served: Tensor, taken: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    gain = (s - served).clamp(min=0.0).sum(1) + taken
    pick = gain.argmax(0, keepdim=True)
    served = torch.maximum(served, s.index_select(0, pick)[0])
    return pick, served, taken.index_fill(0, pick, -torch.inf)


def cut_step(s: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    pick = gain.argmax(0, keepdim=True)
    return pick, (gain - 2.0 * s.index_select(0, pick)[0]).index_fill(0, pick, -torch.inf)


def location_loop(step: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> Picker:
    def run(x: Tensor, k: int) -> Tensor:
        s = similarities(x)
        served, taken = torch.zeros(len(x), device=x.device), torch.zeros(len(x), device=x.device)
        picks = []
        for _ in range(k):
            pick, served, taken = step(s, served, taken)
            picks.append(pick)
        return torch.cat(picks)

    return run


def cut_loop(step: Callable[..., tuple[Tensor, Tensor]]) -> Picker:
    def run(x: Tensor, k: int) -> Tensor:
        s = similarities(x)
        gain = s.sum(0)
        picks = []
        for _ in range(k):
            pick, gain = step(s, gain)
            picks.append(pick)
        return torch.cat(picks)

    return run


def submodlib_location(k: int) -> Provider:
    import submodlib

    def provider(inputs: Inputs) -> Step:
        s = similarities(inputs["x"]).numpy()
        function = submodlib.FacilityLocationFunction(
            n=len(s), mode="dense", sijs=s, separate_rep=False
        )
        return lambda: function.maximize(budget=k, optimizer="LazyGreedy", show_progress=False)

    return provider


def apricot(name: str, k: int) -> Provider:
    import apricot

    def provider(inputs: Inputs) -> Step:
        s = similarities(inputs["x"]).double().numpy()
        return lambda: getattr(apricot, name)(k, metric="precomputed", optimizer="lazy").fit(s)

    return provider


def peers(op: str, k: int, device: torch.device) -> dict[str, Provider]:
    found: dict[str, Provider] = {}
    if device.type != "cpu":
        return found
    if op == "facility_location" and importlib.util.find_spec("submodlib"):
        found["submodlib"] = submodlib_location(k)
    names = {"facility_location": "FacilityLocationSelection", "graph_cut": "GraphCutSelection"}
    if op in names and importlib.util.find_spec("apricot"):
        found["apricot"] = apricot(names[op], k)
    return found


# --- cases ---------------------------------------------------------------------------------------

OURS: dict[str, Picker] = {
    "k_center": lambda x, k: ops.k_center(x, k).picks,
    "herding": lambda x, k: ops.herding(x, k).picks,
    "facility_location": lambda x, k: ops.facility_location(x, k).picks,
    "graph_cut": lambda x, k: ops.graph_cut(x, k).picks,
}
STEPS = {
    "k_center": (center_loop, center_step),
    "herding": (herding_loop, herding_step),
    "facility_location": (location_loop, location_step),
    "graph_cut": (cut_loop, cut_step),
}


def cases(op: str, device: torch.device, quick: bool) -> list[Case]:
    shapes = [*CLASSES, LARGE] if op == "k_center" else CLASSES[: 1 if op != "herding" else 2]
    loop, step = STEPS[op]
    found = []
    for rows, dim, k in QUICK if quick else shapes:
        dtypes = [torch.float32]
        if op == "k_center" and rows == LARGE[0]:
            dtypes += [torch.float16, torch.bfloat16]
        for dtype in dtypes:
            compiled = torch.compile(step, fullgraph=True, dynamic=False)
            providers = {
                "ours": bind(OURS[op], k),
                "eager": bind(loop(step), k),
                "torch.compile": bind(loop(compiled), k),
                **peers(op, k, device),
            }
            passes = k if op in ("k_center", "herding") else 1
            found.append(
                Case(
                    op=op,
                    part="forward",
                    shape=(rows, dim, k),
                    dtype=str(dtype).removeprefix("torch."),
                    # A pick depends on a pass over the features; similarities are made from one.
                    bytes_floor=passes * rows * dim * dtype.itemsize,
                    make_inputs=make_inputs(rows, dim, dtype, device),
                    providers=providers,
                    captures=False,
                )
            )
    return found


def k_center_cases(device: torch.device, quick: bool) -> list[Case]:
    """One class, and a set beyond every cache."""
    return cases("k_center", device, quick)


def herding_cases(device: torch.device, quick: bool) -> list[Case]:
    """One class."""
    return cases("herding", device, quick)


def facility_location_cases(device: torch.device, quick: bool) -> list[Case]:
    """One class, from features to picks."""
    return cases("facility_location", device, quick)


def graph_cut_cases(device: torch.device, quick: bool) -> list[Case]:
    """One class, from features to picks."""
    return cases("graph_cut", device, quick)
