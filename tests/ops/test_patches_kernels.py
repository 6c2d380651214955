"""The CUDA kernels of ``multi_crop`` and ``mosaic`` on the emulator: every launch configuration."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from pyddfast import ops
from pyddfast.ops.reference import patches as reference
from tests.tolerances import FLOAT32, ROUNDING, assert_close

RESULTS = (torch.float32, torch.float16, torch.bfloat16)


def factors(channels: int) -> dict[str, list[float]]:
    steps = range(channels)
    return {"mean": [0.3 + 0.02 * c for c in steps], "std": [0.2 + 0.01 * c for c in steps]}


def check_crops(
    sizes: list[tuple[int, int]], channels: int, kind: torch.dtype, size: int, pad_to: int,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    images, boxes = [], []
    for height, width in sizes:
        image = torch.randint(0, 256, (channels, height, width), generator=generator)
        images.append(image.to(kind) if kind is torch.uint8 else (image / 255).to(kind))
        # the whole image; a corner of it, so that crops are enlarged as well as shrunk
        boxes.append([[0, 0, height, width], [height // 2, width // 3, height // 3 + 1, 1]])
    boxed = torch.tensor(boxes)
    got = ops.multi_crop(images, boxed, size=size, pad_to=pad_to, dtype=dtype, **factors(channels))
    mean, std = (torch.tensor(factors(channels)[name]).double() for name in ("mean", "std"))
    expected = torch.cat(
        [
            reference.multi_crop(
                (image if kind is torch.uint8 else image.double())[None],
                box[None],
                size,
                pad_to,
                mean,
                std,
                torch.float64,
            )
            for image, box in zip(images, boxed, strict=True)
        ],
        dim=1,
    )
    assert_close(got, expected, FLOAT32 + ROUNDING[dtype], "multi_crop")
    margin = (pad_to - size) // 2
    assert not got[..., :margin, :].any()


def crops(*arguments: object) -> Callable[[], None]:
    return lambda: check_crops(*arguments)  # type: ignore[arg-type]


def mosaics(
    dtype: torch.dtype, mode: str, quantize: str | None, channels: int = 2
) -> Callable[[], None]:
    def check() -> None:
        generator = torch.Generator().manual_seed(2)
        patches = torch.randn(2 * 9, channels, 10, 13, generator=generator).to(dtype)
        options = {"size": 37, "factor": 3, "mode": mode, **factors(channels)}
        got = ops.mosaic(patches, quantize=quantize, **options)  # type: ignore[arg-type]
        expected = reference.mosaic(patches.double(), 37, 3, mode)
        mean, std = (torch.tensor(options[name])[:, None, None] for name in ("mean", "std"))
        if quantize is None:
            exact = expected * std.double() + mean.double()
            assert_close(got, exact, FLOAT32 + ROUNDING[dtype], "mosaic")
        elif mode == "nearest":  # the same fp32 operations one by one: the same bytes
            scaled = ((expected.float() * std + mean) * 255).clamp(0, 255)
            wanted = scaled.round() if quantize == "round" else scaled.trunc()
            assert torch.equal(got, wanted.byte())
        else:
            scaled = ((expected * std + mean) * 255).clamp(0, 255)
            # a rounded byte is half a level off at most, a cut one a level; and fp32's error
            low, high = (-0.501, 0.501) if quantize == "round" else (-0.001, 1.001)
            difference = scaled - got
            assert difference.min() >= low
            assert difference.max() <= high

    return check


CONFIGURATIONS: dict[str, Callable[[], None]] = {
    # every pixel type with every result type; 19 in 24 has unequal margins
    **{
        f"crops {str(kind)[6:]} to {str(result)[6:]}": crops(
            [(40, 9), (3, 50)], 2, kind, 19, 24, result
        )
        for kind in (torch.uint8, *RESULTS)
        for result in RESULTS
    },
    # one tile exactly, and a pixel more; wide margins: tiles without a pixel of the crop
    "crops of one tile": crops([(20, 20)], 1, torch.uint8, 16, 16, torch.float32),
    "crops beyond a tile": crops([(20, 20)], 1, torch.uint8, 33, 33, torch.float32),
    "crops with wide margins": crops([(20, 20)], 1, torch.uint8, 4, 70, torch.float32),
    # more source rows than shared memory holds at once
    "crops shrunk by 20": crops([(100, 90)], 1, torch.uint8, 5, 5, torch.float32),
    "crops in two launches: 65 images": crops(
        [(3 + i % 4, 4) for i in range(65)], 1, torch.uint8, 4, 5, torch.float32
    ),
    "crops in two launches: 17 channels": crops([(9, 9)], 17, torch.uint8, 8, 8, torch.float32),
    **{
        f"mosaic {str(dtype)[6:]} {mode} {quantize}": mosaics(dtype, mode, quantize)
        for dtype in RESULTS
        for mode in ("nearest", "bilinear")
        for quantize in (None, "round", "truncate")
    },
    "mosaic in two launches: 17 channels": mosaics(torch.float32, "nearest", None, 17),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configuration(host: ModuleType, name: str) -> None:
    """Against the float64 twin."""
    CONFIGURATIONS[name]()


def test_bits_do_not_depend_on_the_schedule(host: ModuleType) -> None:
    image = torch.arange(80 * 50).remainder(251).to(torch.uint8).view(1, 1, 80, 50)
    boxes = torch.tensor([[[0, 0, 80, 50], [3, 4, 5, 6]]])

    def run() -> Tensor:
        return ops.multi_crop(image, boxes, size=7, pad_to=9, mean=(0.5,), std=(0.2,))

    expected = run()
    for seed in range(1, 5):
        host.set_seed(seed)
        assert torch.equal(run(), expected)
