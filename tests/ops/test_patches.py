"""Patch operators against torch's and PIL's own resize and restatements of the official code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pyddfast.ops.augment import draw_crop_boxes as draw_boxes
from pyddfast.ops.patches import mosaic, multi_crop, select_patches
from pyddfast.random import Purpose

GEN = torch.Generator().manual_seed(20)


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=GEN, dtype=torch.uint8)


def draw_crop_boxes(
    sizes: list[tuple[int, int]],
    ids: list[int],
    *,
    num_crops: int,
    ratio: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """Boxes (N, m, 4) of a sample each, whose visits are its crops."""
    return torch.stack(
        [
            draw_boxes(
                0,
                torch.full((num_crops,), sample),
                torch.arange(num_crops),
                size,
                ratio=ratio,
                purpose=Purpose.MULTI_CROP,
            )
            for size, sample in zip(sizes, ids, strict=True)
        ]
    )


# ------------------------------------------------------------------------------------ multi_crop


def interpolate(image: Tensor, box: list[int], size: int, dtype: torch.dtype) -> Tensor:
    top, left, height, width = box
    crop = image[None, :, top : top + height, left : left + width].to(dtype) / 255
    return F.interpolate(crop, size=(size, size), mode="bilinear", antialias=True)[0]


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (28, 28, 28),  # Fashion-MNIST, factor 1: crops are enlarged
        (28, 28, 14),  # factor 2: both directions occur
        (150, 201, 16),  # strong reduction: wide filters
        (7, 5, 33),  # strong enlargement
        (1, 1, 4),  # nothing to interpolate
    ],
)
@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float64, 1e-12), (torch.float32, 2e-6)],  # interpolate's own float32 weights
)
def test_multi_crop_is_interpolate_of_the_cut_out_crop(
    height: int, width: int, size: int, dtype: torch.dtype, bound: float
) -> None:
    images = pixels(3, 2, height, width)
    boxes = draw_crop_boxes([(height, width)] * 3, [0, 1, 2], num_crops=6, ratio=(0.5, 2.0))
    got = multi_crop(images, boxes, size=size, mean=(0, 0), std=(1, 1), dtype=dtype)
    for n in range(3):
        for m in range(6):
            want = interpolate(images[n], boxes[n, m].tolist(), size, dtype)
            assert (got[m, n] - want).abs().max() <= bound


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (90, 120, 32),
        (375, 500, 112),  # an ImageNet photo to RDED's patch
    ],
)
def test_multi_crop_agrees_with_pil(height: int, width: int, size: int) -> None:
    # Smooth content, as photographs have, and noise, the worst case: PIL rounds to bytes after
    # each of its two passes, which alone puts it 0.25 to 0.31 levels from the exact resize.
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    waves = (128 + 90 * (x / 9).sin(), 255 * y / height, 128 + 100 * ((x + y) / 5).cos())
    for image in (torch.stack(waves).to(torch.uint8), pixels(3, height, width)):
        boxes = draw_crop_boxes([(height, width)], [5], num_crops=8, ratio=(0.75, 4 / 3))
        got = multi_crop(image[None], boxes, size=size, mean=(0,) * 3, std=(1,) * 3)[:, 0] * 255
        source = Image.fromarray(image.permute(1, 2, 0).numpy())
        distances = []
        for crop, (top, left, height_, width_) in zip(got, boxes[0].tolist(), strict=True):
            small = source.crop((left, top, left + width_, top + height_)).resize(
                (size, size), Image.Resampling.BILINEAR
            )
            want = torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1).float()
            distances.append((crop - want).abs())
            assert (crop.round() - want).abs().mean() <= 0.3  # bytes against bytes
        assert torch.stack(distances).max() <= 4
        assert torch.stack(distances).mean() <= 0.3


def test_multi_crop_normalises_then_pads_with_zeros_in_the_middle() -> None:
    images = pixels(1, 2, 12, 12)
    boxes = torch.tensor([[[2, 1, 8, 9]]])
    plain = multi_crop(images, boxes, size=4, mean=(0, 0), std=(1, 1), dtype=torch.float64)
    # 9 - 4 = 5 pixels of border: 2 before, 3 after.
    padded = multi_crop(
        images, boxes, size=4, pad_to=9, mean=(0.4, 0.5), std=(0.2, 0.3), dtype=torch.float64
    )
    want = torch.zeros(1, 1, 2, 9, 9, dtype=torch.float64)
    mean = torch.tensor([0.4, 0.5], dtype=torch.float64)[:, None, None]
    std = torch.tensor([0.2, 0.3], dtype=torch.float64)[:, None, None]
    want[..., 2:6, 2:6] = (plain - mean) / std
    assert (padded - want).abs().max() < 1e-14


def test_multi_crop_of_ragged_images_and_floats_equals_one_by_one() -> None:
    ragged = [pixels(3, 20, 31), pixels(3, 44, 16), pixels(3, 9, 9)]
    sizes = [(20, 31), (44, 16), (9, 9)]
    boxes = draw_crop_boxes(sizes, [0, 1, 2], num_crops=3)
    together = multi_crop(ragged, boxes, size=8, mean=(0.5,) * 3, std=(0.25,) * 3)
    for n, image in enumerate(ragged):
        alone = multi_crop(image[None], boxes[n : n + 1], size=8, mean=(0.5,) * 3, std=(0.25,) * 3)
        assert torch.equal(together[:, n], alone[:, 0])
        floats = multi_crop(
            (image / 255)[None], boxes[n : n + 1], size=8, mean=(0.5,) * 3, std=(0.25,) * 3
        )
        assert (floats - alone).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"boxes": torch.tensor([[[0, 0, 9, 8]]])}, ValueError, "inside"),
        ({"boxes": torch.tensor([[[0, -1, 4, 4]]])}, ValueError, "inside"),
        ({"boxes": torch.tensor([[[0, 0, 0, 4]]])}, ValueError, "empty"),
        ({"boxes": torch.zeros(2, 1, 4, dtype=torch.int64)}, ValueError, "boxes"),
        ({"boxes": torch.ones(1, 1, 4)}, TypeError, "int64"),
        ({"size": 9, "pad_to": 8}, ValueError, "pad_to"),
        ({"std": (0.0,)}, ValueError, "std"),
        ({"mean": (0.0, 0.0), "std": (1.0, 1.0)}, ValueError, "C = 2"),
        ({"images": torch.zeros(1, 1, 8, 8, dtype=torch.int32)}, TypeError, "images"),
        ({"dtype": torch.int32}, TypeError, "dtype"),
    ],
)
def test_multi_crop_refuses(
    change: dict[str, object], error: type[Exception], message: str
) -> None:
    arguments: dict[str, object] = {
        "images": pixels(1, 1, 8, 8),
        "boxes": torch.tensor([[[0, 0, 4, 4]]]),
        "size": 4,
        "mean": (0.0,),
        "std": (1.0,),
    }
    arguments.update(change)
    with pytest.raises(error, match=message):
        multi_crop(**arguments)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------- select_patches


def official_selection(logits: Tensor, label: int, n: int) -> tuple[list[int], list[int]]:
    """One class as the official selector does it, in float64 and by Python's stable sort."""
    score = -logits.double().log_softmax(-1)[..., label]  # (m, k)
    best = [min(range(len(score)), key=lambda crop: score[crop, k]) for k in range(score.shape[1])]
    order = sorted(range(score.shape[1]), key=lambda k: score[best[k], k])[:n]
    return order, [best[k] for k in order]


def test_select_patches_is_the_official_selection_class_by_class() -> None:
    logits = torch.randn(5, 60, 7, generator=GEN) * 4
    labels = torch.randint(0, 3, (60,), generator=GEN) * 2  # classes 0, 2, 4, mixed in the batch
    picked = select_patches(logits, labels, 8)
    assert picked.classes.tolist() == [0, 2, 4]
    for row, label in enumerate((0, 2, 4)):
        members = (labels == label).nonzero().squeeze(1)
        order, crops = official_selection(logits[:, members], label, 8)
        assert picked.images[row].tolist() == members[order].tolist()
        assert picked.crops[row].tolist() == crops
        want = -logits.double().log_softmax(-1)[crops, members[order], label]
        assert picked.scores[row].double().sub(want).abs().div(want).max() < 1e-6


def test_select_patches_ranks_where_a_float32_softmax_cannot() -> None:
    # Gaps of 40, 60 and 50 to the rival: all probabilities round to 1, all scores to 0.
    confident = torch.tensor([[[40.0, 0.0], [60.0, 0.0], [50.0, 0.0]]])
    picked = select_patches(confident, torch.zeros(3, dtype=torch.int64), 3)
    assert picked.images.tolist() == [[1, 2, 0]]
    want = torch.tensor([-60.0, -50.0, -40.0], dtype=torch.float64).exp()
    assert (picked.scores[0].double() / want - 1).abs().max() < 1e-6
    # Gaps of 200 the other way: the probability underflows, the official score is +inf.
    hopeless = torch.tensor([[[0.0, 250.0], [0.0, 200.0]]])
    picked = select_patches(hopeless, torch.zeros(2, dtype=torch.int64), 2)
    assert picked.images.tolist() == [[1, 0]]
    assert picked.scores.tolist() == [[200.0, 250.0]]


def test_select_patches_gives_ties_to_the_lowest_crop_and_image() -> None:
    logits = torch.zeros(4, 300, 2)
    picked = select_patches(logits, torch.zeros(300, dtype=torch.int64), 250)
    assert picked.images[0].tolist() == list(range(250))
    assert picked.crops.unique().tolist() == [0]


@pytest.mark.parametrize(
    ("logits", "labels", "n", "error", "message"),
    [
        (torch.zeros(2, 3, 4), torch.tensor([0, 0, 1]), 2, ValueError, r"\{1: 1\}"),
        (torch.zeros(2, 3, 4), torch.tensor([0, 0, 4]), 1, ValueError, r"\[0, 4\)"),
        (torch.zeros(2, 3, 4), torch.tensor([0, 0]), 1, ValueError, "labels"),
        (torch.zeros(3, 4), torch.tensor([0, 0, 0]), 1, ValueError, "logits"),
        (torch.full((1, 1, 2), torch.nan), torch.tensor([0]), 1, ValueError, "NaN"),
        (torch.zeros(2, 3, 4), torch.zeros(3), 1, TypeError, "int64"),
        (torch.zeros(2, 3, 4), torch.tensor([0, 0, 0]), 0, ValueError, "n must"),
    ],
)
def test_select_patches_refuses(
    logits: Tensor, labels: Tensor, n: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        select_patches(logits, labels, n)


# ---------------------------------------------------------------------------------------- mosaic


def restated_mosaic(patches: Tensor, size: int, factor: int, n: int) -> Tensor:
    """The official layout written out: running tile number, longer tiles first."""
    out = torch.zeros(n, patches.shape[1], size, size, dtype=patches.dtype)
    base, rest = size // factor, size % factor
    k = top = 0
    for row in range(factor):
        height = base + 1 if row < rest else base
        left = 0
        for column in range(factor):
            width = base + 1 if column < rest else base
            for t in range(n):
                source = patches[k * n + t]
                for y in range(height):
                    for x in range(width):
                        out[t, :, top + y, left + x] = source[
                            :, y * source.shape[1] // height, x * source.shape[2] // width
                        ]
            left += width
            k += 1
        top += height
    return out


@pytest.mark.parametrize(
    ("size", "factor", "patch"),
    [
        (8, 2, 4),  # identity copy into the tiles
        (8, 1, 8),  # factor 1 is the patch itself
        (7, 3, 2),  # one remainder pixel: slots 3, 2, 2
        (8, 3, 2),  # two remainder pixels: slots 3, 3, 2
        (6, 2, 5),  # reduction by nearest
    ],
)
def test_mosaic_layout(size: int, factor: int, patch: int) -> None:
    patches = torch.rand(3 * factor**2, 2, patch, patch, generator=GEN, dtype=torch.float64)
    got = mosaic(patches, size=size, factor=factor)
    assert torch.equal(got, restated_mosaic(patches, size, factor, 3))


def test_mosaic_image_t_holds_every_nth_rank() -> None:
    ranks = torch.arange(12.0)[:, None, None, None].expand(12, 1, 2, 2)
    images = mosaic(ranks, size=4, factor=2)
    assert images[0, 0, ::2, ::2].tolist() == [[0, 3], [6, 9]]
    assert images[2, 0, ::2, ::2].tolist() == [[2, 5], [8, 11]]


def test_mosaic_bilinear_halves_by_the_exact_mean() -> None:
    patches = torch.rand(4, 1, 8, 8, generator=GEN, dtype=torch.float64)
    images = mosaic(patches, size=8, factor=2, mode="bilinear")
    mean = patches.unflatten(-1, (4, 2)).unflatten(-3, (4, 2)).mean((-1, -3))
    assert (images[0, :, :4, :4] - mean[0]).abs().max() < 1e-15
    assert (images[0, :, 4:, :4] - mean[2]).abs().max() < 1e-15


def test_mosaic_quantises_by_rounding_or_cutting_off() -> None:
    value = torch.tensor([-0.1, 0.9999, 254.6 / 255, 1.5, 0.5]) * torch.ones(1, 1, 1, 5)
    patches = (value.expand(1, 1, 5, 5) - 0.3) / 0.7
    arguments = {"size": 5, "factor": 1, "mean": (0.3,), "std": (0.7,)}
    rounded = mosaic(patches, quantize="round", **arguments)  # type: ignore[arg-type]
    assert rounded.dtype == torch.uint8
    assert rounded[0, 0, 0].tolist() == [0, 255, 255, 255, 128]
    cut = mosaic(patches, quantize="truncate", **arguments)  # type: ignore[arg-type]
    assert cut[0, 0, 0].tolist() == [0, 254, 254, 255, 127]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"factor": 3}, ValueError, "multiples"),
        ({"factor": 0}, ValueError, "factor"),
        ({"factor": 9}, ValueError, "factor"),
        ({"mode": "cubic"}, ValueError, "mode"),
        ({"quantize": "floor"}, ValueError, "quantize"),
        ({"mean": (0.0,)}, ValueError, "together"),
        ({"mean": (0.0, 0.0), "std": (1.0, 1.0)}, ValueError, "values"),
        ({"patches": torch.zeros(4, 1, 4, 4, dtype=torch.uint8)}, TypeError, "patches"),
    ],
)
def test_mosaic_refuses(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, object] = {"patches": torch.zeros(4, 1, 4, 4), "size": 8, "factor": 2}
    arguments.update(change)
    with pytest.raises(error, match=message):
        mosaic(**arguments)  # type: ignore[arg-type]


# Outside on each side, empty, and so far out that a sum would wrap around.
@pytest.mark.parametrize(
    "box", [[-1, 0, 4, 4], [0, 5, 4, 4], [0, 0, 0, 4], [2**62, 0, 2**62, 4], [0, 0, 4, 2**63 - 1]]
)
def test_a_box_outside_its_image_is_named(box):
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    boxes = torch.tensor([[[0, 0, 4, 4], box]])
    with pytest.raises(ValueError, match=r"boxes\[0, 1\].*inside its image of 8 x 8"):
        multi_crop([image], boxes, size=4, mean=[0.5] * 3, std=[0.5] * 3)
