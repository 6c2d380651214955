"""Selection at ImageNet's size: ``python -m benchmarks.selection_scale``.

Facility location of 1000 classes of 1300 rows of 512 features, 130 picks each, from features to
picks; the first 256 picks of k-centers among 1.28 M rows, beside the time that reading those rows
once takes (the largest value of all).  Needs 3 GB.  Writes
``benchmarks/results/selection/scale.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import metadata
from benchmarks.memory import Peak
from benchmarks.schema import RESULTS, write
from pyddfast import ops

CLASSES, ROWS, FEATURES, PICKS = 1000, 1300, 512, 130
UNBALANCED, CENTERS = 1_280_000, 256
READS = 5


def timed(work: Callable[[], object]) -> tuple[float, int]:
    """Seconds and largest additional memory of a piece of work."""
    peak, began = Peak(), time.perf_counter()
    work()
    return time.perf_counter() - began, peak.bytes()


def features(rows: int) -> torch.Tensor:
    """Standard normal, float32 (rows, 512)."""
    return torch.empty(rows, FEATURES).normal_(generator=torch.Generator().manual_seed(0))


def measure(classes: int, rows: int, centers: int) -> dict[str, Any]:
    """Both selections."""
    x = features(classes * ROWS)
    segments = ROWS * torch.arange(classes + 1)
    seconds, peak = timed(lambda: ops.facility_location(x, PICKS, segments=segments))
    location = {"classes": classes, "rows": ROWS, "picks": PICKS, "seconds": seconds, "bytes": peak}
    x = features(rows)
    reads = [timed(lambda: torch.amax(x))[0] for _ in range(READS)]
    seconds, peak = timed(lambda: ops.k_center(x, centers))
    center = {
        "rows": rows,
        "picks": centers,
        "seconds": seconds,
        "read_seconds": statistics.median(reads),
        "bytes": peak,
    }
    return {
        "features": FEATURES,
        "facility_location": location,
        "k_center": center,
        "environment": metadata.collect(torch.device("cpu")),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.selection_scale", description=__doc__
    )
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--rows", type=int, default=UNBALANCED)
    parser.add_argument("--centers", type=int, default=CENTERS)
    parser.add_argument("--out", type=Path, default=RESULTS / "selection" / "scale.json")
    options = parser.parse_args()
    result = measure(options.classes, options.rows, options.centers)
    write(result, options.out)
    print(json.dumps({k: result[k] for k in ("facility_location", "k_center")}, indent=1))


if __name__ == "__main__":
    main()
