"""What recording costs in a real training loop: ``python -m benchmarks.recorder``.

A training step (forward, cross-entropy, backward, SGD with momentum) on random images, with
`TrainingDynamics.update` in it.  Update and step are timed in place, so the update finds the caches
as a training leaves them.  Writes ``benchmarks/results/recorder/cpu.json``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks import metadata
from benchmarks.schema import RESULTS, write
from pyddfast.coresets import TrainingDynamics
from pyddfast.models import create

SAMPLES = 50_000  # CIFAR
WARM_UP = 2
# The full batch of CIFAR-100 training; a quarter of it for ResNet-18, whose step is 13 times the
# work: a smaller batch only makes the share of the update's fixed costs larger.
CASES = [("convnet-d3", {}, 256), ("resnet18", {"stem": "cifar"}, 64)]


def measure(name: str, options: dict[str, Any], batch: int, *, steps: int) -> dict[str, Any]:
    """Median times of a step and of the update in it, in milliseconds, and the largest share."""
    generator = torch.Generator().manual_seed(0)
    model = create(name, num_classes=100, in_channels=3, image_size=32, **options).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    recorder = TrainingDynamics(SAMPLES)
    order = torch.randperm(SAMPLES, generator=generator)
    whole, update = [], []
    for step in range(WARM_UP + steps):
        images = torch.randn(batch, 3, 32, 32, generator=generator)
        labels = torch.randint(100, (batch,), generator=generator)
        indices = order[step * batch : (step + 1) * batch]
        began = time.perf_counter()
        logits = model(images)
        recording = time.perf_counter()
        recorder.update(logits, labels, indices)
        recorded = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
        whole.append((time.perf_counter() - began) * 1e3)
        update.append((recorded - recording) * 1e3)
    whole, update = whole[WARM_UP:], update[WARM_UP:]
    return {
        "model": name,
        "batch_size": batch,
        "classes": 100,
        "steps": steps,
        "step_ms": round(statistics.median(whole), 3),
        "update_ms": round(statistics.median(update), 4),
        "share": round(statistics.median(update) / statistics.median(whole), 6),
        "largest_share": round(max(u / w for u, w in zip(update, whole, strict=True)), 6),
    }


def main() -> None:
    """Runs the cases."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recorder", description=__doc__)
    parser.add_argument("--steps", type=int, default=20, help="timed steps a model")
    parser.add_argument("--threads", type=int, help="CPU threads, default: torch's")
    parser.add_argument("--out", type=Path, default=RESULTS / "recorder" / "cpu.json")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    meta = metadata.collect(torch.device("cpu"))
    rows = [measure(*case, steps=options.steps) for case in CASES]
    state = TrainingDynamics(1_281_167)  # ImageNet-1k
    result = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "metadata": meta,
        "results": rows,
        "state_bytes_imagenet_1k": state.nbytes,
    }
    write(result, options.out)
    for row in rows:
        print(
            f"{row['model']}: update {row['update_ms']:.3f} ms of a step of {row['step_ms']:.0f} ms"
            f" = {row['share']:.3%} (at most {row['largest_share']:.3%})"
        )
    print(f"state for ImageNet-1k: {state.nbytes / 1e6:.1f} MB\nwritten: {options.out}")


if __name__ == "__main__":
    main()
