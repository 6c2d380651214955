"""The CUDA kernel of ``augment`` on the emulator: every launch configuration."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from pyddfast import ops
from pyddfast.ops import AugmentParams
from pyddfast.ops.reference import augment as reference
from tests.tolerances import FLOAT32, ROUNDING, assert_close

SIDES = (45, 39)  # no multiple of a tile or of the strips


def batch(size: tuple[int, int], channels: int = 3) -> tuple[Tensor, Tensor, AugmentParams]:
    """Images, index and every step's parameters; partners include the sample itself."""
    generator = torch.Generator().manual_seed(channels)
    images = torch.randint(0, 256, (3, channels, *SIDES), generator=generator, dtype=torch.uint8)
    index = torch.tensor([2, 0, 2, 1])
    params = ops.draw_augmentation(5, index, torch.arange(4), 3, SIDES, size=size, factor=3)
    height, width = size
    box = torch.tensor([height // 4, width // 3, height - height // 5, width - 1])
    params = AugmentParams(
        box=params.box,
        flip=torch.tensor([True, False, False, True]),
        row_order=params.row_order,
        col_order=params.col_order,
        partner=torch.tensor([3, 1, 0, 2]),
        mix_box=box,
    )
    return images, index, params


def twin(
    images: Tensor, index: Tensor, params: AugmentParams, size: tuple[int, int], **options: bool
) -> Tensor:
    moments = factors(images.shape[1])
    mean, std = (torch.tensor(moments[name], dtype=torch.float64) for name in ("mean", "std"))
    return reference.augment(
        images, index, *vars(params).values(), mean, std, size, **options
    )  # fmt: skip


def factors(channels: int) -> dict[str, list[float]]:
    steps = range(channels)
    return {"mean": [0.3 + 0.02 * c for c in steps], "std": [0.2 + 0.01 * c for c in steps]}


CONFIGURATIONS = {
    # one tile exactly; a pixel less and more on each axis; several tiles, enlarged
    "tile": {"size": (16, 32)},
    "tile-1": {"size": (15, 31)},
    "tile+1": {"size": (17, 33)},
    "enlarged": {"size": (50, 70)},
    "strips of the result": {"size": (50, 70), "shuffle_first": False},
    # 45 rows to 7: one tile needs more source rows than shared memory holds
    "shrunk": {"size": (7, 9)},
    "no antialiasing": {"size": (7, 9), "antialias": False},
    "float16": {"size": (17, 33), "dtype": torch.float16},
    "bfloat16": {"size": (17, 33), "dtype": torch.bfloat16},
    "channels_last": {"size": (17, 33), "channels_last": True},
    "channels_last bfloat16": {"size": (9, 11), "channels_last": True, "dtype": torch.bfloat16},
    "17 channels: two launches": {"size": (9, 11), "channels": 17},
}


@pytest.mark.parametrize("without", ["nothing", "cutmix", "all but the flip"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configuration(host: ModuleType, name: str, without: str) -> None:
    """Every step together, without the partner's CTAs, and unresized."""
    options = dict(CONFIGURATIONS[name])
    size, channels = options.pop("size"), options.pop("channels", 3)
    images, index, params = batch(size, channels)
    if without == "cutmix":
        params = AugmentParams(params.box, params.flip, params.row_order, params.col_order)
    elif without == "all but the flip":
        params, size = AugmentParams(flip=params.flip), SIDES
    got = ops.augment(images, index, params, **factors(channels), size=size, **options)
    expected = twin(
        images,
        index,
        params,
        size,
        shuffle_first=options.get("shuffle_first", True),
        antialias=options.get("antialias", True),
    )
    channels_last = options.get("channels_last", False)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert got.is_contiguous(memory_format=layout)
    assert_close(got, expected, FLOAT32 + ROUNDING[got.dtype], name)


def test_bits_do_not_depend_on_the_schedule(host: ModuleType) -> None:
    images, index, params = batch((7, 40))
    expected = ops.augment(images, index, params, **factors(3), size=(7, 40))
    for seed in range(1, 5):
        host.set_seed(seed)
        got = ops.augment(images, index, params, **factors(3), size=(7, 40))
        assert torch.equal(got, expected)
