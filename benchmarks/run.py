"""One run of the suite: every case of the chosen ops and whole steps, one JSON."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks import metadata
from benchmarks.accuracy import exact_result, relative_error
from benchmarks.harness import (
    Case,
    Timing,
    awaited,
    copy_gb_s,
    measure,
    reason,
    time_cpu,
)
from benchmarks.ops import ACCURACY, CASES
from benchmarks.progress import Progress
from benchmarks.schema import SCHEMA_VERSION, is_ours
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
            errors[name] = finite(relative_error(result, None if name in case.own_draws else exact))
        except Exception as error:  # a peer's trouble (no compiler for Inductor, say) is a result
            if is_ours(name):
                raise RuntimeError(f"{case.name}: {name} failed") from error
            left_out[f"{case.name}: {name}"] = reason(error)
        else:
            kept[name] = bind
    return dataclasses.replace(case, providers=kept), errors


def finite(error: float | None) -> float | None:
    """A relative error; one that is no number is a failure of its provider."""
    if error is not None and not math.isfinite(error):
        raise ArithmeticError(f"its relative error is {error}")
    return error


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
    steps = {name: awaited(step, device) for name, step in case.providers.items()}
    differences: dict[str, float | None] = {}
    expected = cloned(steps["official"]())
    for name in [name for name in steps if name != "official"]:
        try:
            found = cloned(steps[name]())
            both = None if found is None or expected is None else (found, expected)
            differences[name] = both and finite(relative_error(both[0], [both[1]]))
        except Exception as error:
            if name != "torch.compile":
                raise RuntimeError(f"{case.step}: {name} failed") from error
            left_out[f"{case.step}: {name}"] = reason(error)
            del steps[name]
    timings = time_cpu(steps, rounds=rounds, warm_ups=1)
    rows = []
    for name, timing in timings.items():
        share = share_of_ops(steps[name], device) if name == "ours" else None
        rows.append(
            {
                "step": case.step,
                "setting": case.setting,
                "provider": name,
                "median_ms": round(timing.median_us / 1e3, 3),
                "iqr_ms": round(timing.iqr_us / 1e3, 3),
                "samples": timing.samples,
                "op_share": None if share is None else round(share, 6),
                "difference": differences.get(name),
            }
        )
    return rows


def cloned(result: Tensor | None) -> Tensor | None:
    """What a step has computed, in float64 on the CPU: the next step may write over it."""
    return None if result is None else result.detach().double().cpu().clone()


# What makes two calls parts of one run, of the metadata.
SAME = ("git_revision", "git_dirty", "device", "platform", "versions", "rounds", "quick")


def run(
    device: torch.device,
    *,
    op_names: Sequence[str] = (),
    step_names: Sequence[str] = (),
    providers: Sequence[str] | None = None,
    quick: bool = False,
    rounds: int | None = None,
    limit_s: float | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measures and returns the content of a result file.

    Args:
        device: ``cpu`` or ``cuda``.
        op_names: Keys of ``benchmarks.ops.CASES``; the rows keep the order of that table.
        step_names: Keys of ``benchmarks.steps.STEPS``, likewise.
        providers: Only these (None: all); of the ops.
        quick: Small shapes, few rounds: for a look or a smoke test, not for publication.
        rounds: Samples a provider and case.
        limit_s: Seconds after which no further case is begun.
        progress: Takes every case when it is measured, and the names of those that were not begun;
            the cases that it has from an earlier call are not measured again.
    """
    for kind, names, known in (("ops", op_names, CASES), ("steps", step_names, STEPS)):
        if unknown := sorted(set(names) - set(known)):
            raise ValueError(f"{kind} {unknown} are not known, allowed are {sorted(known)}")
    cases = {op: CASES[op](device, quick) for op in CASES if op in op_names}
    able = {name for of_op in cases.values() for case in of_op for name in case.providers}
    if unknown := sorted(set(providers or ()) - able):
        raise ValueError(f"providers {unknown} do none of the cases; those that do: {sorted(able)}")
    began = time.perf_counter()
    progress = progress or Progress()
    meta = metadata.collect(device)  # first: the load before this run adds its own
    meta |= {"rounds": rounds or (QUICK_ROUNDS if quick else ROUNDS), "quick": quick}
    asked = {name: meta[name] for name in SAME}
    asked |= {"cpu": meta["cpu"]["name"], "threads": meta["cpu"]["threads"]}
    asked |= {"gpu": meta["gpu"] and meta["gpu"]["name"], "ops": list(cases)}
    asked["steps"] = [name for name in STEPS if name in step_names]
    asked["providers"] = None if providers is None else sorted(providers)
    if not progress.begin(asked):
        copy = copy_gb_s(device, rounds=QUICK_ROUNDS if quick else 20)
        meta |= {"copy_gb_s": round(copy, 3), "left_out": {}}
        progress.result = {"schema_version": SCHEMA_VERSION, "metadata": meta}
        progress.result |= {"results": [], "accuracy": [], "steps": []}
        progress.save()
    result = progress.result
    copy, left_out = result["metadata"]["copy_gb_s"], result["metadata"]["left_out"]

    def wanted(name: str) -> bool:
        if name in progress.done:
            return False
        if limit_s is None or time.perf_counter() - began <= limit_s:
            return True
        progress.left.append(name)
        return False

    for op, of_op in cases.items():
        for i, case in enumerate(of_op, 1):
            if not wanted(case.name):
                continue
            started = time.perf_counter()
            torch._dynamo.reset()  # a case's graphs are its own: no recompilation limit is reached
            case, errors = available(case, device, providers, left_out)
            timings = measure(case, device, rounds=meta["rounds"], failed=left_out)
            result["results"] += [
                row(case, name, timing, copy, errors[name]) for name, timing in timings.items()
            ]
            progress.save(case.name)
            spent = time.perf_counter() - started
            print(f"{op} {i}/{len(of_op)}: {case.name} ({spent:.0f} s)", file=sys.stderr)
        if op in ACCURACY and wanted(f"{op} accuracy"):
            result["accuracy"] += ACCURACY[op](device, quick)
            progress.save(f"{op} accuracy")
    for name in filter(wanted, asked["steps"]):
        started = time.perf_counter()
        torch._dynamo.reset()
        with STEPS[name](device, quick) as step:
            step_rounds = rounds or (QUICK_STEP_ROUNDS if quick else STEP_ROUNDS)
            result["steps"] += measure_step(step, device, step_rounds, left_out)
        progress.save(name)
        print(f"{step.step} ({time.perf_counter() - started:.0f} s)", file=sys.stderr)
    return result
