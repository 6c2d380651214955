"""Images a second from JPEG files to normalised batches: ``python -m benchmarks.reading``.

Providers take turns, a whole pass over the images each, its start and end included: our pipelines
and what the official codes do, torch's ``DataLoader`` over PIL with worker processes (kept between
passes).  All cut the same boxes and turn the same images.  Beside the time of a pass stands the
processor time of its processes, which other work on the machine disturbs less.  Writes
``benchmarks/results/reading/cpu.json``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks import metadata
from benchmarks.harness import Step, summarize, turns
from benchmarks.schema import RESULTS, write
from pyddfast.data import ImageFolder, Request, draw_request, image_sizes, open_pipeline

HEIGHT, WIDTH, QUALITY = 375, 500, 90  # the most frequent size in ImageNet; about its bytes
SIZE, RESIZE, BATCH = 224, 256, 64
View = tuple[int, list[int] | None, bool]


def make_images(root: Path, count: int) -> ImageFolder:
    """Colour images with the 1/f amplitudes of photos, as JPEG files."""
    rows, columns = np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = 1.0
    (root / "class").mkdir()
    for i in range(count):
        noise = np.random.default_rng(i).standard_normal((3, HEIGHT, WIDTH))
        field = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=(HEIGHT, WIDTH))
        pixels = (128 + 50 * (field - field.mean()) / field.std()).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        image.save(root / "class" / f"{i:04}.jpg", quality=QUALITY)
    return ImageFolder(root)


class OfficialViews(Dataset[tuple[Tensor, int]]):
    """Resize, crop, flip, ToTensor and Normalize of torchvision on PIL images, restated."""

    def __init__(self, folder: ImageFolder) -> None:
        self.folder = folder
        self.mean, self.std = (
            torch.tensor(x)[:, None, None]
            for x in (folder.normalization.mean, folder.normalization.std)
        )

    def __getitem__(self, view: View) -> tuple[Tensor, int]:
        index, box, flip = view
        with self.folder.paths[index].open("rb") as file:
            image = Image.open(file).convert("RGB")
        if box is None:
            width, height = image.size
            scale = RESIZE / min(width, height)
            image = image.resize((int(width * scale), int(height * scale)), 2)
            left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
            image = image.crop((left, top, left + SIZE, top + SIZE))
        else:
            top, left, height, width = box
            image = image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), 2)
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        scaled = pixels.float().div(255)
        return scaled.sub_(self.mean).div_(self.std), int(self.folder.labels[index])


class Passes:
    """A batch sampler that names the views of each request."""

    def __init__(self, requests: list[Request]) -> None:
        self.requests = requests

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[list[View]]:
        for request in self.requests:
            ids = request.ids.tolist()
            boxes = [None] * len(ids) if request.boxes is None else request.boxes.tolist()
            flips = [False] * len(ids) if request.flips is None else request.flips.tolist()
            yield list(zip(ids, boxes, flips, strict=True))


def cpu_seconds() -> float:
    """Processor time of this process, all its threads, and of its worker processes."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def measure(folder: ImageFolder, requests: list[Request], *, workers: int, rounds: int) -> Any:
    """One row a provider."""
    loader = DataLoader(
        OfficialViews(folder),
        batch_sampler=Passes(requests),
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context="fork",
    )
    pipelines = {
        backend: open_pipeline(
            folder, size=SIZE, resize=RESIZE, backend=backend, workers=workers, prefetch=2
        )
        for backend in ("pil", "dali")
    }

    def official() -> None:
        for _ in loader:
            pass

    def ours(backend: str) -> Step:
        def step() -> None:
            for _ in pipelines[backend](requests):
                pass

        return step

    steps: dict[str, Step] = {
        "DataLoader + PIL": official,  # first: its processes are forked before other threads start
        "ours (pil)": ours("pil"),
        "ours (dali)": ours("dali"),
    }
    for step in steps.values():
        step()
    wall: dict[str, list[float]] = {name: [] for name in steps}
    cpu: dict[str, list[float]] = {name: [] for name in steps}
    for name in turns(list(steps), rounds):
        began, began_cpu = time.perf_counter(), cpu_seconds()
        steps[name]()
        wall[name].append((time.perf_counter() - began) * 1e6)
        cpu[name].append((cpu_seconds() - began_cpu) * 1e6)
    rows = []
    for name in steps:
        passed, spent = summarize(wall[name]), summarize(cpu[name])
        rows.append(
            {
                "provider": name,
                "images_per_s": round(len(folder) / passed.median_us * 1e6, 1),
                "pass_ms": round(passed.median_us / 1e3, 2),
                "pass_iqr_ms": round(passed.iqr_us / 1e3, 2),
                "cpu_ms_per_image": round(spent.median_us / 1e3 / len(folder), 4),
            }
        )
    return rows


def main() -> None:
    """Runs training and evaluation views."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reading", description=__doc__)
    parser.add_argument("--images", type=int, default=256, help="files to make")
    parser.add_argument("--rounds", type=int, default=10, help="passes a provider")
    parser.add_argument("--workers", type=int, default=2, help="threads or processes a provider")
    parser.add_argument("--out", type=Path, default=RESULTS / "reading" / "cpu.json")
    options = parser.parse_args()
    meta = metadata.collect(torch.device("cpu"))
    rows = []
    with tempfile.TemporaryDirectory() as root:
        folder = make_images(Path(root), options.images)
        mean_bytes = sum(path.stat().st_size for path in folder.paths) / len(folder)
        sizes = image_sizes(folder)
        ids = torch.arange(len(folder)).split(BATCH)
        requests = {
            "training": [draw_request(0, i, torch.zeros_like(i), sizes) for i in ids],
            "evaluation": [Request(i) for i in ids],
        }
        for view, asked in requests.items():
            found = measure(folder, asked, workers=options.workers, rounds=options.rounds)
            rows += [{"view": view, **row} for row in found]
    result = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "metadata": meta | {"dali": version("nvidia-dali-cuda130"), "pillow": version("pillow")},
        "images": options.images,
        "image_size": [HEIGHT, WIDTH],
        "mean_bytes": round(mean_bytes),
        "batch_size": BATCH,
        "workers": options.workers,
        "rounds": options.rounds,
        "results": rows,
    }
    write(result, options.out)
    for row in rows:
        print(
            f"{row['view']:10} {row['provider']:16} {row['images_per_s']:7.0f} images/s, "
            f"{row['cpu_ms_per_image']:.2f} ms of processor an image"
        )
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
