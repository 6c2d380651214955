"""How fast stored soft labels are read: ``python -m benchmarks.softlabels``.

One epoch of labels, batch after batch, as an official reader takes them (``torch.load`` of a file a
batch, unsafe as it was before torch 2.6), the same files by ``read_fkd``, and from a store.  Warm:
the files are in the page cache; cold: they are dropped from it before each epoch.  Providers run in
turn.  Writes ``benchmarks/results/softlabels/reading.json``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks import metadata
from benchmarks.schema import RESULTS, write
from pyddfast.data import LabelBatch, SoftLabels, SoftLabelWriter, StoreInfo, export_fkd, read_fkd

CLASSES = 1000
# Batch size and images of an epoch: 16 is the smallest of the published recipes (LPLD, FADRM), 1024
# SRe2L's.  Images of whole batches, about those of IPC 10, 10 and 50; all fit the page cache.
CASES = ((16, 10_000), (128, 10_240), (1024, 51_200))


def make_store(folder: Path, batch: int, images: int) -> SoftLabels:
    """Labels of one epoch, of noise."""
    generator = torch.Generator().manual_seed(0)
    info = StoreInfo(1, (batch,) * (images // batch), CLASSES)
    with SoftLabelWriter(folder, info) as writer:
        for index in torch.randperm(images, generator=generator).split(batch):
            writer.write(
                LabelBatch(
                    coords=torch.rand(batch, 4, generator=generator) / 2,
                    flip=torch.rand(batch, generator=generator) < 0.5,
                    mix_index=torch.randperm(batch, generator=generator),
                    mix_lam=0.5,
                    mix_bbox=(10, 20, 150, 200),
                    logits=torch.randn(batch, CLASSES, generator=generator).half(),
                    index=index,
                )
            )
    return SoftLabels(folder)


def drop(folder: Path) -> None:
    """Take a folder's files out of the page cache."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def measure(batch: int, images: int, *, rounds: int) -> dict[str, Any]:
    """Seconds of an epoch by every provider, warm and cold."""
    with tempfile.TemporaryDirectory() as temporary:
        store_path, files_path = Path(temporary, "store"), Path(temporary, "files")
        export_fkd(make_store(store_path, batch, images), files_path)
        steps = images // batch
        files = [files_path / "epoch_0" / f"batch_{step}.tar" for step in range(steps)]

        def official() -> float:
            return sum(float(torch.load(f, weights_only=False)[5][0, 0]) for f in files)

        def safe() -> float:
            return sum(float(read_fkd(file).logits[0, 0]) for file in files)

        def store() -> float:
            labels = SoftLabels(store_path)  # opened anew, as a worker does
            return sum(float(labels.batch(0, step).logits[0, 0]) for step in range(steps))

        providers: dict[str, tuple[Callable[[], float], Path]] = {
            "official": (official, files_path),
            "read_fkd": (safe, files_path),
            "store": (store, store_path),
        }
        times: dict[str, list[float]] = {
            f"{n} {c}": [] for n in providers for c in ("warm", "cold")
        }
        checks = {name: run() for name, (run, _) in providers.items()}
        if len(set(checks.values())) != 1:
            raise RuntimeError(f"the readers disagree: {checks}")
        for _ in range(rounds):
            for cache in ("warm", "cold"):
                for name, (run, folder) in providers.items():
                    if cache == "cold":
                        drop(folder)
                    began = time.perf_counter()
                    run()
                    times[f"{name} {cache}"].append(time.perf_counter() - began)
                    run()  # warm again
        opened = {"official": steps, "read_fkd": steps, "store": len(list(store_path.iterdir()))}
        sizes = {
            name: sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
            for name, (_, folder) in providers.items()
        }
    return {
        "batch_size": batch,
        "images": images,
        "classes": CLASSES,
        "files": opened,
        "bytes": sizes,
        "seconds": {
            name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for name, values in times.items()
        },
    }


def main() -> None:
    """Runs the cases."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.softlabels", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="epochs of each provider")
    parser.add_argument("--out", type=Path, default=RESULTS / "softlabels" / "reading.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    meta = metadata.collect(torch.device("cpu"))
    rows = [measure(*case, rounds=options.rounds) for case in CASES]
    result = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "metadata": meta,
        "results": rows,
    }
    write(result, options.out)
    print(table(result))


def table(result: dict[str, Any]) -> str:
    """The result as it stands in the documents, in Markdown."""
    lines = [
        "| batch | files | official reader | `read_fkd` | store | cold: official | cold: store |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["results"]:
        files, seconds = row["files"], row["seconds"]

        def batch(name: str, row: dict[str, Any] = row, seconds: Any = seconds) -> str:
            steps = row["images"] / row["batch_size"]
            return f"{1e6 * seconds[name]['median'] / steps:,.0f} µs"

        def faster(cache: str, seconds: Any = seconds) -> str:
            ratio = seconds[f"official {cache}"]["median"] / seconds[f"store {cache}"]["median"]
            return f" ({ratio:.1f}×)"

        lines.append(
            f"| {row['batch_size']} | {files['official']} → {files['store']} "
            f"| {batch('official warm')} | {batch('read_fkd warm')} "
            f"| {batch('store warm')}{faster('warm')} "
            f"| {batch('official cold')} | {batch('store cold')}{faster('cold')} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
