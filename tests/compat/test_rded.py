"""compat.rded against the official semantics, restated step by step."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyddfast.compat import rded
from pyddfast.compat.rded import (
    MultiRandomCrop,
    ShufflePatches,
    cross_entropy,
    mix_aug,
    mix_images,
    selector,
)


def noise(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def official_box(height: int, width: int) -> tuple[int, int, int, int]:
    """What torchvision's RandomResizedCrop(ratio=(1, 1)) draws from torch's generator."""
    for _ in range(10):
        area = height * width * torch.empty(1).uniform_(0.08, 1.0).item()
        log_ratio = torch.log(torch.tensor((1, 1)))
        aspect = torch.exp(torch.empty(1).uniform_(log_ratio[0], log_ratio[1])).item()
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = torch.randint(0, height - h + 1, size=(1,)).item()
            left = torch.randint(0, width - w + 1, size=(1,)).item()
            return int(top), int(left), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


@pytest.mark.parametrize(
    ("height", "width"),
    [(40, 40), (37, 60), (60, 21), (200, 12), (5, 7)],
    ids=["square", "wide", "tall", "falls back", "smaller than the crop"],
)
@pytest.mark.parametrize("factor", [1, 2, 3], ids=["whole", "halves", "does not divide"])
def test_crops_are_those_of_the_same_generator(height: int, width: int, factor: int) -> None:
    image = noise(3, height, width)
    torch.manual_seed(1)
    crops = MultiRandomCrop(6, 16, factor)(image)
    after = torch.rand(1)
    torch.manual_seed(1)
    side = 16 // factor
    for crop in crops:
        top, left, h, w = official_box(height, width)
        cut = image[None, :, top : top + h, left : left + w]
        want = F.interpolate(cut, size=(side, side), mode="bilinear", antialias=True)[0]
        torch.testing.assert_close(crop, want, rtol=0, atol=1e-12)
    assert torch.equal(torch.rand(1), after)  # as many numbers were drawn
    assert repr(MultiRandomCrop(6, 16, factor)) == "MultiRandomCrop(num_crop=6, size=16)"


def test_what_is_too_narrow_falls_back_to_the_central_square() -> None:
    # Even 8 % of the area is a square of more than 12 pixels.
    assert {tuple(rded._draw_square(200, 12)) for _ in range(20)} == {(94, 0, 12, 12)}


def test_bytes_are_taken_without_a_conversion() -> None:
    image = (noise(3, 31, 45) * 255).to(torch.uint8)
    made = []
    for pixels in (image, image.float() / 255):
        torch.manual_seed(2)
        made.append(MultiRandomCrop(4, 16, 2)(pixels))
    assert made[0].dtype == torch.float32
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=1e-6)


def test_cross_entropy_rounds_and_underflows_as_the_official_one() -> None:
    logits = torch.tensor([[0.0, 30.0, 0.0], [120.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    got = cross_entropy(logits, torch.tensor([1, 1, 2]))
    assert got[0] == 0.0
    assert got[1] == math.inf
    assert got[2].item() == pytest.approx(math.log(1 + math.exp(-1) + math.exp(-2)), rel=1e-6)
    wide = noise(50, 9)
    labels = torch.arange(50) % 9
    want = [
        -math.log(math.exp(r[y]) / sum(map(math.exp, r)))
        for r, y in zip(wide.tolist(), labels.tolist(), strict=True)
    ]
    assert cross_entropy(wide, labels[:, None]).tolist() == pytest.approx(want, rel=1e-13)


class Observer(nn.Module):
    """Linear, and different in training mode."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * size * size, 4).double()
        self.batches: list[int] = []
        with torch.no_grad():
            self.linear.weight.copy_(noise(*self.linear.weight.shape) - 0.5)

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        logits: Tensor = self.linear(x.flatten(1))
        return -logits if self.training else logits


@pytest.mark.parametrize("size", [8, 11], ids=["no padding", "odd padding"])
def test_selector_is_the_official_one_image_by_image(size: int) -> None:
    images, labels = noise(9, 5, 3, 8, 8) - 0.5, torch.full((9,), 2)
    model = Observer(size)
    got = selector(4, model, images, labels, size, m=5)
    assert not model.training
    assert model.batches == [9] * 5  # the official batches: as many as there are images
    entries = []
    for image in range(9):
        best = None
        for crop in range(5):
            canvas = torch.zeros(1, 3, size, size, dtype=torch.float64)
            start = (size - 8) // 2
            canvas[0, :, start : start + 8, start : start + 8] = images[image, crop]
            with torch.no_grad():
                score = -math.log(model(canvas).softmax(1)[0, 2].item())
            if best is None or score < best[0]:
                best = (score, image, crop)
        assert best is not None
        entries.append(best)
    want = torch.stack([images[image, crop] for _, image, crop in sorted(entries)[:4]])
    assert torch.equal(got, want)
    assert got.device == images.device  # of a GPU machine: the current device
    assert not got.requires_grad


def test_ties_go_to_the_first_and_few_images_are_all_kept() -> None:
    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), 4)

    images = noise(6, 3, 3, 4, 4, dtype=torch.float32)
    assert torch.equal(selector(9, Same(), images, torch.zeros(6).long(), 8, m=3), images[:, 0])


@pytest.mark.parametrize(
    ("patch", "size", "factor"),
    [(8, 16, 2), (8, 17, 2), (5, 16, 3), (9, 9, 1)],
    ids=["fits", "a row and a column remain", "two remain", "factor 1"],
)
def test_mix_images_is_the_official_one_tile_by_tile(patch: int, size: int, factor: int) -> None:
    n = 3
    patches = noise(n * factor**2 + 1, 3, patch, patch, dtype=torch.float32)
    got = mix_images(patches.requires_grad_(), size, factor, n)
    assert (got.dtype, got.device.type, got.requires_grad) == (torch.float32, "cpu", False)
    sides = [size // factor + (i < size % factor) for i in range(factor)]
    for image in range(n):
        for row in range(factor):
            for column in range(factor):
                rank = (row * factor + column) * n + image
                tile = F.interpolate(patches[rank : rank + 1].detach(), (sides[row], sides[column]))
                y, x = sum(sides[:row]), sum(sides[:column])
                have = got[image, :, y : y + sides[row], x : x + sides[column]]
                assert torch.equal(have, tile[0])


@pytest.mark.parametrize(("height", "width"), [(12, 12), (13, 10)], ids=["even", "remainders"])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_strips_are_shuffled_by_pythons_generator(height: int, width: int, factor: int) -> None:
    image = torch.arange(2 * height * width, dtype=torch.float32).view(2, height, width)
    random.seed(3)
    got = ShufflePatches(factor)(image)
    after = random.random()
    random.seed(3)
    want = image
    for _ in range(2):  # columns, then rows
        side = want.shape[-1] // factor
        ends = [*(side * i for i in range(factor)), want.shape[-1]]
        strips = [want[..., a:b] for a, b in pairwise(ends)]
        random.shuffle(strips)
        want = torch.cat(strips, -1).transpose(1, 2)
    assert torch.equal(got, want)
    assert random.random() == after
    random.seed(3)
    assert torch.equal(ShufflePatches(9).shuffle_weight(image, 1), image)


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_mix_aug_draws_anew_from_the_official_streams(kind: str) -> None:
    images = noise(6, 3, 20, 30)
    args = SimpleNamespace(mix_type=kind, cutmix=1.0, mixup=0.8)
    for seed in range(20):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        given = images.clone()
        got, partner, lam, box = mix_aug(given, args, torch.arange(6), 0.5, [0, 0, 1, 1])
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        order = torch.randperm(6)
        weight = np.random.beta(getattr(args, kind), getattr(args, kind))  # noqa: NPY002
        assert torch.equal(partner, order)
        assert lam == weight
        want = images.clone()
        if kind == "mixup":
            assert box is None
            for i in range(6):
                want[i] = weight * images[i] + (1 - weight) * images[order[i]]
        else:
            assert got is given
            cut = np.sqrt(1.0 - weight)
            x, y = int(20 * cut) // 2, int(30 * cut) // 2
            cx, cy = np.random.randint(20), np.random.randint(30)  # noqa: NPY002
            bounds = [np.clip(cx - x, 0, 20), np.clip(cy - y, 0, 30)]
            bounds += [np.clip(cx + x, 0, 20), np.clip(cy + y, 0, 30)]
            assert box == bounds
            x0, y0, x1, y1 = bounds
            for i in range(6):
                want[i, :, x0:x1, y0:y1] = images[order[i], :, x0:x1, y0:y1]
        torch.testing.assert_close(got, want, rtol=0, atol=1e-15)
    none = SimpleNamespace(mix_type=None)
    assert mix_aug(images, none) == (images, None, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: MultiRandomCrop()(np.zeros((3, 9, 9))), TypeError, "image must be a tensor"),
        (lambda: MultiRandomCrop()(noise(1, 3, 9, 9)), ValueError, r"\(C, H, W\)"),
        (lambda: MultiRandomCrop(5, 2, 3)(noise(3, 9, 9)), ValueError, "factor must be at most"),
        (lambda: cross_entropy(noise(4, 3), torch.zeros(3)), ValueError, "one label a row"),
        (lambda: cross_entropy(torch.ones(4, 3).long(), torch.zeros(4)), TypeError, "y_pre"),
        (
            lambda: selector(1, Observer(8), noise(4, 5, 3, 8, 8), torch.zeros(4).long(), 8, m=3),
            ValueError,
            "m = 3",
        ),
        (
            lambda: selector(1, Observer(8), noise(4, 5, 3, 9, 8), torch.zeros(4).long(), 8),
            ValueError,
            r"at least a crop's \(9, 8\), got 8",
        ),
        (lambda: mix_images(noise(7, 3, 4, 4), 8, 2, 2), ValueError, "need 8 patches.*has 7"),
        (lambda: ShufflePatches(4)(noise(3, 9, 3)), ValueError, "at least 4 pixels"),
    ],
)
def test_errors(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
