"""Photographs of several sizes in a folder, and jobs on them, for test_rded_scale.py.

``python rded_cases.py job DATA OUT`` makes a set in OUT, as any rank of torchrun.
``python rded_cases.py kill DATA ROOT`` makes it in ROOT/whole and, with a SIGKILL at a dozen
moments, in other folders, and prints what it saw as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from pyddfast.data import ImageFolder
from pyddfast.methods import RDEDConfig, rded
from tests.processes import child

CLASSES, PER_CLASS, SIZE, KILLS = 5, 7, 16, 12
# 4 images a batch against 7 a class: most batches hold two classes.
CONFIG = RDEDConfig(
    ipc=1, factor=2, image_size=SIZE, pool=7, num_crops=3, batch_size=12, seed=4, on_error="skip"
)


def write_photos(root: Path) -> None:
    """Smooth colours with noise, between 9 and 60 pixels a side."""
    rng = np.random.default_rng(5)
    for label in range(CLASSES):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(PER_CLASS):
            height, width = rng.integers(9, 60, 2)
            slope = np.linspace(0, 40 * label, width)[None, :, None]
            pixels = slope + rng.integers(0, 90, (height, width, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
                folder / f"{number}.jpeg", quality=90
            )


def observer(classes: int = CLASSES) -> nn.Module:
    """A convolution and a linear layer, whose sums depend on how a batch is made up."""
    gen = torch.Generator().manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 7 * 7, classes)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=gen) / 8)
    return model


def job(data: Path, out: Path) -> None:
    # A checkpoint after every batch.
    made = rded(ImageFolder(data), observer(), CONFIG, out=out, workers=2, checkpoint_seconds=0.0)
    if int(os.environ.get("RANK", "0")) == 0:
        made.save(out / "set")


def kill(data: Path, root: Path) -> None:
    began = time.perf_counter()
    os.waitpid(child(lambda: job(data, root / "whole")), 0)
    seconds = time.perf_counter() - began
    rng = random.Random(6)  # seeded moments
    folders, kills, kept = [root / "0"], 0, 0
    while kills < KILLS:
        folder = folders[-1]
        pid = child(lambda folder=folder: job(data, folder))  # type: ignore[misc]
        time.sleep(rng.uniform(0.0, seconds))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):  # it was faster: the next kills go to a new folder
            folders.append(root / str(len(folders)))
            continue
        kills += 1
        kept = max(kept, len(list((folder / "classes").glob("[0-9]*.safetensors"))))
    statuses = [
        os.waitpid(child(lambda f=f: job(data, f)), 0)[1]  # type: ignore[misc]
        for f in folders
        if not (f / "set").exists()
    ]
    report = {"folders": [str(f) for f in folders], "statuses": statuses, "kept": kept}
    print(json.dumps(report))


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"job": job, "kill": kill}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
