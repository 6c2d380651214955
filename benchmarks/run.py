"""One run of the suite: every case of the chosen ops, one JSON."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import metadata
from benchmarks.harness import Case, Timing, copy_gb_s, measure
from benchmarks.ops import ACCURACY, CASES
from benchmarks.schema import SCHEMA_VERSION

ROUNDS, QUICK_ROUNDS = 40, 5


def available(
    case: Case, device: torch.device, providers: Sequence[str] | None, left_out: dict[str, str]
) -> Case:
    """The case with the providers that were asked for and that run here; the others are noted."""
    kept = {}
    for name, bind in case.providers.items():
        if providers is not None and name not in providers:
            continue
        try:
            bind(case.make_inputs(0))()
        except Exception as error:  # a peer's trouble (no compiler for Inductor, say) is a result
            if name == "ours":
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            left_out[f"{case.name}: {name}"] = reason
        else:
            kept[name] = bind
    return dataclasses.replace(case, providers=kept)


def row(case: Case, provider: str, timing: Timing, copy: float) -> dict[str, Any]:
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
    }


def run(
    device: torch.device,
    *,
    op_names: Sequence[str],
    providers: Sequence[str] | None = None,
    quick: bool = False,
    rounds: int | None = None,
) -> dict[str, Any]:
    """Measures and returns the content of a result file.

    Args:
        device: ``cpu`` or ``cuda``.
        op_names: Keys of ``benchmarks.ops.CASES``; the rows keep the order of that table.
        providers: Only these (None: all).
        quick: Small shapes, few rounds: for a look or a smoke test, not for publication.
        rounds: Samples a provider and case.
    """
    unknown = sorted(set(op_names) - set(CASES))
    if unknown:
        raise ValueError(f"ops {unknown} are not known, allowed are {sorted(CASES)}")
    rounds = rounds or (QUICK_ROUNDS if quick else ROUNDS)
    meta = metadata.collect(device)  # first: the load before this run adds its own
    copy = copy_gb_s(device, rounds=QUICK_ROUNDS if quick else 20)
    left_out: dict[str, str] = {}
    results, accuracy = [], []
    for op in (name for name in CASES if name in op_names):
        cases = CASES[op](device, quick)
        for i, case in enumerate(cases, 1):
            started = time.perf_counter()
            torch._dynamo.reset()  # a case's graphs are its own: no recompilation limit is reached
            case = available(case, device, providers, left_out)
            timings = measure(case, device, rounds=rounds)
            results += [row(case, name, timings[name], copy) for name in case.providers]
            seconds = time.perf_counter() - started
            print(f"{op} {i}/{len(cases)}: {case.name} ({seconds:.0f} s)", file=sys.stderr)
        if op in ACCURACY:
            accuracy += ACCURACY[op](device, quick)
    meta |= {"copy_gb_s": round(copy, 3), "rounds": rounds, "quick": quick, "left_out": left_out}
    return {
        "schema_version": SCHEMA_VERSION,
        "metadata": meta,
        "results": results,
        "accuracy": accuracy,
    }
