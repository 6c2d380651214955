"""Official soft-label files as the official scripts write them, made without pyddfast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

SIDE = 32  # pixels of the images that the boxes belong to


def official_list(
    rng: np.random.Generator,
    count: int,
    *,
    num_classes: int = 7,
    elements: int = 6,
    mix: str = "cutmix",
    dtype: torch.dtype = torch.float16,
    index: Any = None,
) -> list[Any]:
    """One batch's list, with NumPy numbers where the official code leaves them."""
    extent = rng.integers(1, SIDE + 1, (count, 2))
    corner = rng.integers(0, SIDE + 1 - extent)
    coords = torch.tensor(np.concatenate([corner, extent], 1) / SIDE, dtype=torch.float32)
    flip = torch.tensor(rng.random(count) < 0.5)
    partner = torch.tensor(rng.permutation(count))
    lam = float(rng.beta(1.0, 1.0))
    box = [np.int64(v) for v in (3, 5, 20, 31)]
    mixed: list[Any] = {
        "cutmix": [partner, lam, box],
        "mixup": [partner, lam, None],
        "none": [None, None, None],
    }[mix]
    logits = torch.tensor(rng.normal(0, 4, (count, num_classes))).to(dtype)
    value = [coords, flip, *mixed, logits]
    if elements > 6:
        value.append(torch.arange(count) if index is None else index)
    if elements > 7:
        value.append(torch.tensor(np.stack([[rng.permutation(2)] * 2] * count)))
    return value


def official_folder(
    folder: Path,
    *,
    epochs: int = 2,
    batch_sizes: tuple[int, ...] = (4, 4, 3),
    elements: int = 6,
    seed: int = 0,
    **options: Any,
) -> Path:
    """``epoch_<e>/batch_<b>.tar`` of a whole relabelling."""
    rng = np.random.default_rng(seed)
    for epoch in range(epochs):
        (folder / f"epoch_{epoch}").mkdir(parents=True)
        order = torch.tensor(rng.permutation(sum(batch_sizes)))
        for number, ids in enumerate(order.split(batch_sizes)):
            value = official_list(rng, len(ids), elements=elements, index=ids, **options)
            torch.save(value, folder / f"epoch_{epoch}" / f"batch_{number}.tar")
    return folder
