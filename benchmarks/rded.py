"""RDED from JPEG files to distilled images: ``python -m benchmarks.rded``.

`official` restates ``synthesize/main.py`` of LINs-lab/RDED with torch alone: a ``DataLoader`` over
PIL, ``ToTensor`` of the whole photograph, five antialiased crops, normalisation, a batch a class;
all crops padded at once, scored, and the best of them tiled.  `ours` is ``methods.rded``.  Both cut
the same boxes out of the same files, and make the same images.

Passes take turns.  Beside the time of a pass stands the processor time of its processes, which
other work on the machine disturbs less.  A teacher that looks at nothing leaves the path from the
files to the padded crops and on to the mosaics.  Writes ``benchmarks/results/rded/cpu.json``.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks import metadata
from benchmarks.harness import summarize, turns
from benchmarks.photos import HEIGHT, WIDTH, write_photos
from benchmarks.schema import RESULTS, write
from pyddfast.data import ImageFolder
from pyddfast.methods import RDEDConfig, rded
from pyddfast.models import create
from pyddfast.ops.augment import draw_crop_boxes
from pyddfast.random import Purpose

CLASSES, POOL = 4, 24
SIZE, FACTOR, CROPS, IPC = 224, 2, 5, 1
CONFIG = RDEDConfig(ipc=IPC, factor=FACTOR, image_size=SIZE, num_crops=CROPS, semantics="official")


class Blind(nn.Module):
    """A teacher that costs nothing; crop 0 of the first images wins."""

    def forward(self, images: Tensor) -> Tensor:
        """Zeros, (B, CLASSES)."""
        return images.new_zeros((len(images), CLASSES))


class Timed(nn.Module):
    """A teacher that counts its own time."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seconds = network, 0.0

    def forward(self, images: Tensor) -> Tensor:
        """The network's logits."""
        began = time.perf_counter()
        logits: Tensor = self.network(images)
        self.seconds += time.perf_counter() - began
        return logits


class OfficialCrops(Dataset[tuple[Tensor, int]]):
    """ToTensor, five RandomResizedCrops with antialiasing, Normalize; restated."""

    def __init__(self, folder: ImageFolder) -> None:
        self.folder = folder
        normalization = folder.normalization
        self.mean, self.std = (
            torch.tensor(x)[:, None, None] for x in (normalization.mean, normalization.std)
        )

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with self.folder.paths[index].open("rb") as file:
            photo = Image.open(file).convert("RGB")
        pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1).contiguous().float().div(255)
        ids, visits = torch.full((CROPS,), index), torch.arange(CROPS)
        size = (pixels.shape[1], pixels.shape[2])
        side = SIZE // FACTOR
        crops = []
        boxes = draw_crop_boxes(0, ids, visits, size, ratio=(1.0, 1.0), purpose=Purpose.MULTI_CROP)
        for top, left, h, w in boxes.tolist():
            cut = pixels[None, :, top : top + h, left : left + w]
            crops.append(F.interpolate(cut, (side, side), mode="bilinear", antialias=True)[0])
        normalized = torch.stack(crops).sub_(self.mean).div_(self.std)
        return normalized, int(self.folder.labels[index])


def pool_of(folder: ImageFolder) -> int:
    """Photos a class; all have as many."""
    return len(folder) // folder.num_classes


@torch.no_grad()
def official(folder: ImageFolder, teacher: nn.Module, workers: int) -> Tensor:
    """The official synthesis, a batch a class; returns bytes."""
    pool = pool_of(folder)
    loader = DataLoader(OfficialCrops(folder), batch_size=pool, num_workers=workers)
    made = []
    side, count = SIZE // FACTOR, IPC * FACTOR**2
    border = ((SIZE - side) // 2,) * 4
    device = next((p.device for p in teacher.parameters()), torch.device("cpu"))
    moments = vars(folder.normalization).values()
    mean, std = (torch.tensor(x, device=device)[:, None, None] for x in moments)
    for crops, labels in ((c.to(device), y.to(device)) for c, y in loader):
        flat = crops.permute(1, 0, 2, 3, 4).reshape(-1, 3, side, side)
        padded = F.pad(flat, border)
        logits = torch.cat([teacher(part) for part in padded.split(pool)])
        scores = -logits.softmax(1).gather(1, labels.repeat(CROPS)[:, None]).log()
        scores = scores.view(CROPS, pool)
        best = scores.argmin(0)
        rows = torch.arange(pool, device=device)
        order = scores[best, rows].argsort(stable=True)[:count]
        patches = flat.view(CROPS, pool, 3, side, side)[best, rows][order]
        images = torch.zeros(IPC, 3, SIZE, SIZE, device=device)
        for tile in range(FACTOR**2):
            y, x = tile // FACTOR * side, tile % FACTOR * side
            part = patches[tile * IPC : (tile + 1) * IPC]
            images[:, :, y : y + side, x : x + side] = F.interpolate(part, (side, side))
        made.append(((images * std + mean) * 255).to(torch.uint8))
    return torch.cat(made).cpu()


def ours(folder: ImageFolder, teacher: nn.Module, workers: int) -> Tensor:
    """The same by ``methods.rded``."""
    config = replace(CONFIG, pool=pool_of(folder))
    return rded(folder, teacher, config, workers=workers).images


PROVIDERS: dict[str, Callable[[ImageFolder, nn.Module, int], Tensor]] = {
    "ours": ours,
    "official": official,
}


def cpu_seconds() -> float:
    """Processor time of this process and of its worker processes that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def measure(
    folder: ImageFolder, network: nn.Module, *, threads: int, workers: int, rounds: int
) -> dict[str, Any]:
    """Milliseconds an image of every provider, and the teacher's share of its time."""
    torch.set_num_threads(threads)
    walls: dict[str, list[float]] = {name: [] for name in PROVIDERS}
    cpus: dict[str, list[float]] = {name: [] for name in PROVIDERS}
    shares: dict[str, list[float]] = {name: [] for name in PROVIDERS}
    for provider in PROVIDERS.values():
        provider(folder, Blind(), workers)  # libraries and the files' pages
    for name in turns(list(PROVIDERS), rounds):
        teacher = Timed(network)
        wall, cpu = time.perf_counter(), cpu_seconds()
        PROVIDERS[name](folder, teacher, workers)
        wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
        walls[name].append(wall / len(folder) * 1e6)
        cpus[name].append(cpu / len(folder) * 1e6)
        shares[name].append(teacher.seconds / wall)
    result: dict[str, Any] = {"threads": threads, "workers": workers}
    for name in PROVIDERS:
        timing, cpu_timing = summarize(walls[name]), summarize(cpus[name])
        result[name] = {
            "ms_an_image": round(timing.median_us / 1e3, 3),
            "iqr_ms": round(timing.iqr_us / 1e3, 3),
            "cpu_ms_an_image": round(cpu_timing.median_us / 1e3, 3),
            "teacher_share": round(sorted(shares[name])[len(shares[name]) // 2], 3),
            "passes": timing.samples,
        }
    result["speedup"] = round(result["official"]["ms_an_image"] / result["ours"]["ms_an_image"], 2)
    result["cpu_speedup"] = round(
        result["official"]["cpu_ms_an_image"] / result["ours"]["cpu_ms_an_image"], 2
    )
    return result


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rded", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=9, help="passes a provider")
    parser.add_argument("--out", type=Path, default=RESULTS / "rded" / "cpu.json")
    options = parser.parse_args()
    meta = metadata.collect(torch.device("cpu"))
    network = create("resnet18", num_classes=CLASSES, image_size=SIZE).eval()
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        write_photos(Path(temporary), CLASSES, POOL)
        folder = ImageFolder(temporary)
        size = sum(path.stat().st_size for path in folder.paths) / len(folder)
        for name, teacher, threads, workers, rounds in (
            ("files to mosaics, one core", Blind(), 1, 0, options.rounds),
            ("files to mosaics, two workers", Blind(), 2, 2, options.rounds),
            ("with ResNet-18", network, 2, 2, max(3, options.rounds // 2)),
        ):
            row = measure(folder, teacher, threads=threads, workers=workers, rounds=rounds)
            results[name] = row
            print(f"{name}: {row['speedup']} x, processor time {row['cpu_speedup']} x")
    write(
        {
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "metadata": meta,
            "photos": f"{CLASSES * POOL} made JPEGs of {WIDTH} x {HEIGHT}, {size:.0f} bytes each",
            "num_crops": CROPS,
            "results": results,
        },
        options.out,
    )
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
