"""One run of the suite: every case of the chosen ops and whole steps, one JSON."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks import metadata
from benchmarks.accuracy import exact_result, relative_error
from benchmarks.harness import Case, Timing, copy_gb_s, measure, time_cpu
from benchmarks.ops import ACCURACY, CASES
from benchmarks.schema import SCHEMA_VERSION
from benchmarks.steps import STEPS, Run, StepCase

ROUNDS, QUICK_ROUNDS = 40, 5
STEP_ROUNDS, QUICK_STEP_ROUNDS = 7, 2  # a step takes seconds on a CPU: minutes for all


def available(
    case: Case, device: torch.device, providers: Sequence[str] | None, left_out: dict[str, str]
) -> tuple[Case, dict[str, float | None]]:
    """The case with the providers that were asked for and that run here; the others are noted.

    With the error of each.
    """
    kept, errors = {}, {}
    exact = exact_result(case)
    for name, bind in case.providers.items():
        if providers is not None and name not in providers:
            continue
        try:
            result = bind(case.make_inputs(0))()
            errors[name] = relative_error(result, None if name in case.own_draws else exact)
        except Exception as error:  # a peer's trouble (no compiler for Inductor, say) is a result
            if name == "ours":
                raise
            left_out[f"{case.name}: {name}"] = reason(error)
        else:
            kept[name] = bind
    return dataclasses.replace(case, providers=kept), errors


def reason(error: Exception) -> str:
    """One line, as a result file has it."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def row(
    case: Case, provider: str, timing: Timing, copy: float, error: float | None
) -> dict[str, Any]:
    """One line of the result."""
    gb_s = case.bytes_floor / timing.median_us / 1e3
    return {
        "op": case.op,
        "part": case.part,
        "shape": list(case.shape),
        "dtype": case.dtype,
        "provider": provider,
        "median_us": round(timing.median_us, 3),
        "iqr_us": round(timing.iqr_us, 3),
        "samples": timing.samples,
        "bytes_floor": case.bytes_floor,
        "gb_s": round(gb_s, 4),
        "copy_fraction": round(gb_s / copy, 5),
        "host_us": None if timing.host_us is None else round(timing.host_us, 3),
        "error": error,
    }


def share_of_ops(step: Run, device: torch.device) -> float:
    """The part of a step that its time inside ``pyddfast`` operators is, of one profiled step.

    The step awaits its end.
    """
    on_device = device.type == "cuda"
    activities = [ProfilerActivity.CPU]
    if on_device:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as recorded:
        began = time.perf_counter()
        step()
        wall_us = (time.perf_counter() - began) * 1e6
    events = [e for e in recorded.key_averages() if e.key.startswith("pyddfast::")]
    spent = sum(e.device_time_total if on_device else e.cpu_time_total for e in events)
    return min(1.0, spent / wall_us)


def measure_step(
    case: StepCase, device: torch.device, rounds: int, left_out: dict[str, str]
) -> list[dict[str, Any]]:
    """Wall time of a step, its end awaited, by providers that take turns."""

    def awaited(step: Run) -> Run:
        def run() -> Tensor | None:
            result = step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            return result

        return run

    steps = {name: awaited(step) for name, step in case.providers.items()}
    first = {}
    for name in list(steps):
        try:
            result = steps[name]()
        except Exception as error:
            if name != "torch.compile":
                raise
            left_out[f"{case.step}: {name}"] = reason(error)
            del steps[name]
        else:
            first[name] = None if result is None else result.clone()
    timings = time_cpu(steps, rounds=rounds, warm_ups=1)
    rows = []
    for name, timing in timings.items():
        found, expected = first[name], first["official"]
        share = share_of_ops(steps[name], device) if name == "ours" else None
        difference = None
        if name != "official" and found is not None and expected is not None:
            difference = relative_error(found.double(), [expected.double().cpu()])
        rows.append(
            {
                "step": case.step,
                "setting": case.setting,
                "provider": name,
                "median_ms": round(timing.median_us / 1e3, 3),
                "iqr_ms": round(timing.iqr_us / 1e3, 3),
                "samples": timing.samples,
                "op_share": None if share is None else round(share, 6),
                "difference": difference,
            }
        )
    return rows


def run(
    device: torch.device,
    *,
    op_names: Sequence[str] = (),
    step_names: Sequence[str] = (),
    providers: Sequence[str] | None = None,
    quick: bool = False,
    rounds: int | None = None,
    limit_s: float | None = None,
) -> dict[str, Any]:
    """Measures and returns the content of a result file.

    Args:
        device: ``cpu`` or ``cuda``.
        op_names: Keys of ``benchmarks.ops.CASES``; the rows keep the order of that table.
        step_names: Keys of ``benchmarks.steps.STEPS``, likewise.
        providers: Only these (None: all); of the ops.
        quick: Small shapes, few rounds: for a look or a smoke test, not for publication.
        rounds: Samples a provider and case.
        limit_s: Seconds after which no further case is begun; those are noted as left out.
    """
    for kind, names, known in (("ops", op_names, CASES), ("steps", step_names, STEPS)):
        if unknown := sorted(set(names) - set(known)):
            raise ValueError(f"{kind} {unknown} are not known, allowed are {sorted(known)}")
    began = time.perf_counter()
    op_rounds = rounds or (QUICK_ROUNDS if quick else ROUNDS)
    meta = metadata.collect(device)  # first: the load before this run adds its own
    copy = copy_gb_s(device, rounds=QUICK_ROUNDS if quick else 20)
    left_out: dict[str, str] = {}
    results: list[dict[str, Any]] = []
    accuracy: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []

    def too_late(name: str) -> bool:
        if limit_s is None or time.perf_counter() - began <= limit_s:
            return False
        left_out[name] = f"not begun within {limit_s:g} s"
        return True

    for op in (name for name in CASES if name in op_names):
        cases = CASES[op](device, quick)
        for i, case in enumerate(cases, 1):
            if too_late(case.name):
                continue
            started = time.perf_counter()
            torch._dynamo.reset()  # a case's graphs are its own: no recompilation limit is reached
            case, errors = available(case, device, providers, left_out)
            timings = measure(case, device, rounds=op_rounds)
            results += [
                row(case, name, timings[name], copy, errors[name]) for name in case.providers
            ]
            seconds = time.perf_counter() - started
            print(f"{op} {i}/{len(cases)}: {case.name} ({seconds:.0f} s)", file=sys.stderr)
        if op in ACCURACY and not too_late(f"{op} accuracy"):
            accuracy += ACCURACY[op](device, quick)
    for name in (name for name in STEPS if name in step_names):
        if too_late(name):
            continue
        started = time.perf_counter()
        torch._dynamo.reset()
        with STEPS[name](device, quick) as step:
            step_rounds = rounds or (QUICK_STEP_ROUNDS if quick else STEP_ROUNDS)
            steps += measure_step(step, device, step_rounds, left_out)
        print(f"{step.step} ({time.perf_counter() - started:.0f} s)", file=sys.stderr)
    meta |= {"copy_gb_s": round(copy, 3), "rounds": op_rounds, "quick": quick}
    return {
        "schema_version": SCHEMA_VERSION,
        "metadata": {**meta, "left_out": left_out},
        "results": results,
        "accuracy": accuracy,
        "steps": steps,
    }
