"""CA2D: RDED on the head of a ranking."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyddfast.data import ImageDataset, Normalization
from pyddfast.methods import RDEDConfig, ca2d, rded

GEN = torch.Generator().manual_seed(4)
DATA = ImageDataset(
    torch.randint(0, 256, (40, 1, 8, 8), generator=GEN, dtype=torch.uint8),
    torch.arange(40) % 2,
    ("a", "b"),
    Normalization((0.4,), (0.3,)),
)
CAD = torch.rand(40, generator=GEN)
CAD[::5] = 0.5  # ties


def teacher() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))


def test_is_rded_over_the_highest_of_each_class() -> None:
    config = RDEDConfig(ipc=3, pool=7, image_size=8)
    got = ca2d(DATA, teacher(), CAD, config)
    pools = [
        sorted(range(label, 40, 2), key=lambda i: (-float(CAD[i]), i))[:7] for label in range(2)
    ]
    want = rded(DATA, teacher(), config, candidates=pools)
    assert torch.equal(got.images, want.images)
    assert got.meta["source_indices"] == want.meta["source_indices"]
    for label, rows in ((0, got.meta["source_indices"][:3]), (1, got.meta["source_indices"][3:])):
        assert {i for row in rows for i in row} <= set(pools[label])
    assert got.meta["method"] == "ca2d"
    assert got.meta["candidates"] == "highest CAD"


def test_a_pool_of_just_enough_is_cad_pruning_with_crops() -> None:
    got = ca2d(DATA, teacher(), CAD, RDEDConfig(ipc=2, factor=2, pool=8, image_size=8))
    used = {i for row in got.meta["source_indices"] for i in row}
    best = {
        i
        for label in range(2)
        for i in sorted(range(label, 40, 2), key=lambda i: (-float(CAD[i]), i))[:8]
    }
    assert used == best


def test_refuses() -> None:
    with pytest.raises(ValueError, match=r"cad must have shape \(40,\), got \(39,\)"):
        ca2d(DATA, teacher(), CAD[:39])
    with pytest.raises(ValueError, match="NaN"):
        ca2d(DATA, teacher(), CAD.masked_fill(CAD > 0.9, torch.nan))
    with pytest.raises(ValueError, match=r"ipc = 8 .* 7 candidates"):
        ca2d(DATA, teacher(), CAD, RDEDConfig(ipc=8, pool=7))
