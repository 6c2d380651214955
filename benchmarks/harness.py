"""What a case is, and how it is timed on a CPU and on a CUDA GPU.

CPU: the providers of a case take turns, a block of calls each, so that whatever else the machine
does falls on all of them alike; a sample is a block's mean, the result the median over the blocks
with their inter-quartile range.  Inputs stay where the caches leave them.

CUDA: the calls of a provider are captured into one CUDA graph that walks over enough input sets to
overflow the L2 cache several times, and replays are timed by events behind a replay that keeps the
stream busy: the time is the kernels' alone.  The host's time for the same calls, eager and without
waiting for the device, is measured apart.  An op that reads results as it goes cannot be captured:
its case is timed like a CPU's, with the end of every call awaited.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.schema import is_ours

Step = Callable[[], object]
"""One call of a provider, its inputs bound."""
Result = TypeVar("Result")

CPU_BLOCK_S = 0.01  # 10 ms a block: 10^5 times the clock's resolution, short enough to interleave
L2_OVERFLOW = 4  # the input sets of one graph hold this many times the L2 cache
HOST_CALLS = 16  # 16 calls of <= 40 launches stay below the driver's queue of 1024
COPY_BYTES = 1 << 28  # 256 MiB each way: beyond every last-level cache


@dataclass(frozen=True)
class Case:
    """One op at one shape, with every provider that can do it.

    Attributes:
        op: Public name, ``kd_loss``.
        part: ``forward``, ``forward+backward`` or ``forward+double backward``.
        shape: Of the student, (rows, classes).
        dtype: ``float32``; ``float32/float16`` where the teacher's differs from the student's.
        bytes_floor: What any implementation has to move: inputs read once, outputs written once.
        make_inputs: Takes a seed; the same seed gives the same tensors.
        providers: Name to a function that binds inputs and returns the step.
        own_draws: Providers that draw for themselves: their results are not those of the others.
        captures: Whether ours waits for no device.  Where it does, no graph can hold it, and every
            provider is timed on CUDA as it is called, its end awaited.
    """

    op: str
    part: str
    shape: tuple[int, ...]
    dtype: str
    bytes_floor: int
    make_inputs: Callable[[int], Mapping[str, Tensor]]
    providers: Mapping[str, Callable[[Mapping[str, Tensor]], Step]]
    own_draws: frozenset[str] = frozenset()
    captures: bool = True

    @property
    def name(self) -> str:
        """All but the providers, for people."""
        return f"{self.op} {self.part} {'x'.join(map(str, self.shape))} {self.dtype}"


def reason(error: Exception) -> str:
    """Why a peer is left out, in the one line that a result file has for it."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


@dataclass(frozen=True)
class Timing:
    """Times in microseconds; ``host_us`` only where the device runs apart from the host."""

    median_us: float
    iqr_us: float
    samples: int
    host_us: float | None = None


def summarize(samples_us: Sequence[float], host_us: float | None = None) -> Timing:
    """Median and inter-quartile range; a single sample has range 0."""
    if not samples_us:
        raise ValueError("samples_us is empty, at least one sample is needed")
    if len(samples_us) == 1:
        return Timing(samples_us[0], 0.0, 1, host_us)
    first, median, third = statistics.quantiles(samples_us, n=4, method="inclusive")
    return Timing(median, third - first, len(samples_us), host_us)


def turns(names: Sequence[str], rounds: int) -> list[str]:
    """The order of measurement: every name once a round, each round starting one name later."""
    return [names[(r + i) % len(names)] for r in range(rounds) for i in range(len(names))]


def time_cpu(
    steps: Mapping[str, Step],
    *,
    rounds: int,
    block_s: float = CPU_BLOCK_S,
    warm_ups: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times every step, in turns.

    Args:
        steps: Provider to step.
        rounds: Blocks a provider.
        block_s: Seconds that a block lasts at least (one call, where a call lasts longer).
        warm_ups: Calls before the first measured one: allocator, threads, caches, compilation.
        clock: Seconds; a test gives its own.
    """
    calls: dict[str, int] = {}
    for name, step in steps.items():
        for _ in range(warm_ups):
            step()
        start = clock()
        step()
        calls[name] = max(1, math.ceil(block_s / max(clock() - start, 1e-9)))
    samples: dict[str, list[float]] = {name: [] for name in steps}
    collecting = gc.isenabled()
    gc.disable()  # a collection would fall on whichever provider is running
    try:
        for name in turns(list(steps), rounds):
            step, count = steps[name], calls[name]
            start = clock()
            for _ in range(count):
                step()
            samples[name].append((clock() - start) / count * 1e6)
    finally:
        if collecting:
            gc.enable()
    return {name: summarize(values) for name, values in samples.items()}


def input_sets(bytes_floor: int, l2_bytes: int) -> int:
    """How many input sets overflow the L2 cache `L2_OVERFLOW` times: at least 2, at most 64.

    64 bounds the nodes of a graph; sets so small that 64 do not overflow the cache are
    latency-bound anyway.
    """
    return min(64, max(2, math.ceil(L2_OVERFLOW * l2_bytes / max(bytes_floor, 1))))


def captured(sets: Sequence[Step]) -> torch.cuda.CUDAGraph:
    """The calls, one a set, as one graph."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for step in (*sets, *sets[:2]):  # capture needs everything initialised and compiled
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for step in sets:
            step()
    return graph


def time_cuda(
    steps: Mapping[str, Sequence[Step]], *, rounds: int, failed: dict[str, str] | None = None
) -> dict[str, Timing]:
    """Device time by graph replay and host time apart, of every provider's steps (one a set).

    Args:
        steps: Provider to steps.
        rounds: Samples a provider.
        failed: Takes a peer that cannot be captured, and why; None: it raises.
    """
    graphs = {}
    for name, sets in steps.items():
        try:
            graphs[name] = captured(sets)
        except Exception as error:
            if failed is None or is_ours(name):
                raise
            failed[name] = reason(error)
    steps = {name: steps[name] for name in graphs}
    host: dict[str, list[float]] = {name: [] for name in steps}
    for name in turns(list(steps), rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for i in range(HOST_CALLS):
            steps[name][i % len(steps[name])]()
        host[name].append((time.perf_counter() - start) / HOST_CALLS * 1e6)
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for name in turns(list(steps), rounds):
        first, last = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        graphs[name].replay()  # the stream is busy when the first event is recorded
        first.record()
        graphs[name].replay()
        graphs[name].replay()
        last.record()
        torch.cuda.synchronize()
        samples[name].append(first.elapsed_time(last) * 1e3 / (2 * len(steps[name])))
    return {name: summarize(samples[name], statistics.median(host[name])) for name in steps}


def awaited(step: Callable[[], Result], device: torch.device) -> Callable[[], Result]:
    """The step up to its end on the device."""

    def run() -> Result:
        result = step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return result

    return run


def measure(
    case: Case, device: torch.device, *, rounds: int, failed: dict[str, str]
) -> dict[str, Timing]:
    """Times the case on the device; ``failed`` takes the peers that a graph cannot hold."""
    if device.type != "cuda" or not case.captures:
        inputs = case.make_inputs(0)
        return time_cpu(
            {name: awaited(bind(inputs), device) for name, bind in case.providers.items()},
            rounds=rounds,
        )
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    sets = [case.make_inputs(seed) for seed in range(input_sets(case.bytes_floor, l2_bytes))]
    reasons: dict[str, str] = {}
    timings = time_cuda(
        {name: [bind(inputs) for inputs in sets] for name, bind in case.providers.items()},
        rounds=rounds,
        failed=reasons,
    )
    failed |= {f"{case.name}: {name}": text for name, text in reasons.items()}
    return timings


def copy_gb_s(device: torch.device, *, rounds: int = 20) -> float:
    """Bandwidth of a large `copy_`, bytes read and bytes written both counted, in GB/s."""
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)

    if device.type == "cuda":
        timing = time_cuda({"copy": [copy]}, rounds=rounds)["copy"]
    else:
        timing = time_cpu({"copy": copy}, rounds=rounds)["copy"]
    return 2 * COPY_BYTES / timing.median_us / 1e3
