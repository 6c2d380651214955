"""``augment`` and its draws against one-image-at-a-time restatements, ``interpolate`` and PIL."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from pyddfast.ops.augment import (
    AugmentParams,
    augment,
    draw_augmentation,
    draw_crop_boxes,
    draw_cutmix,
)
from pyddfast.random import Purpose, uniform

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
ONE = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


def photos(n=6, height=21, width=34, channels=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, height, width), generator=g, dtype=torch.uint8)


def one_by_one(images, index, params, size, *, mean, std, shuffle_first, antialias):
    """float64, one image and one operation at a time."""
    views = []
    for b, i in enumerate(index.tolist()):
        x = images[i].double() / 255

        def strips(x, b=b):
            factor = params.row_order.shape[1]
            for axis, order in ((2, params.col_order[b]), (1, params.row_order[b])):
                side = x.shape[axis] // factor
                bounds = [k * side for k in range(factor)] + [x.shape[axis]]
                x = torch.cat(
                    [x.narrow(axis, bounds[k], bounds[k + 1] - bounds[k]) for k in order.tolist()],
                    axis,
                )
            return x

        if params.row_order is not None and shuffle_first:
            x = strips(x)
        if params.box is not None:
            top, left, h, w = params.box[b].tolist()
            crop = x[None, :, top : top + h, left : left + w]
            x = F.interpolate(
                crop, size=size, mode="bilinear", align_corners=False, antialias=antialias
            )[0]
        if params.flip is not None and params.flip[b]:
            x = x.flip(-1)
        if params.row_order is not None and not shuffle_first:
            x = strips(x)
        views.append(x)
    views = torch.stack(views)
    if params.partner is not None:
        y0, x0, y1, x1 = params.mix_box.tolist()
        mixed = views.clone()
        for b, p in enumerate(params.partner.tolist()):
            mixed[b, :, y0:y1, x0:x1] = views[p, :, y0:y1, x0:x1]
        views = mixed
    m, s = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (mean, std))
    return (views - m) / s


# Odd sides leave a remainder strip; (8, 11) shrinks every crop, (40, 50) enlarges, None keeps.
@pytest.mark.parametrize("size", [None, (8, 11), (40, 50)])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("shuffle_first", [True, False])
def test_everything_together(size, antialias, shuffle_first):
    images, index = photos(), torch.tensor([5, 0, 3, 3, 1])
    params = draw_augmentation(
        7, index, torch.tensor([0, 1, 0, 5, 2]), 11, (21, 34), size=size, factor=3, cutmix=1.0
    )
    assert params.flip.any()
    assert not params.flip.all()
    options = {
        "mean": MEAN, "std": STD, "shuffle_first": shuffle_first, "antialias": antialias
    }  # fmt: skip
    expected = one_by_one(images, index, params, size or (21, 34), **options)
    got = augment(images, index, params, size=size, dtype=torch.float64, **options)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    single = augment(images, index, params, size=size, **options)
    assert single.dtype == torch.float32
    # Values reach 3 in magnitude; a few float32 roundings of sums of at most a dozen terms.
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=3e-6)


def test_no_step_is_plain_normalisation():
    images, index = photos(), torch.tensor([2, 2, 0])
    got = augment(images, index, AugmentParams(), mean=MEAN, std=STD, dtype=torch.float64)
    expected = (images[index].double() / 255 - torch.tensor(MEAN).double()[:, None, None]) / (
        torch.tensor(STD).double()[:, None, None]
    )
    # The constants are float64 in one and float32-rounded in the other.
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_agrees_with_pil_bilinear():
    images = photos(4, 64, 80)
    index = torch.arange(4)
    params = draw_augmentation(1, index, torch.zeros(4, dtype=torch.int64), 0, (64, 80), flip=0)
    got = augment(images, index, params, size=24, **ONE) * 255
    for b in range(4):
        top, left, h, w = params.box[b].tolist()
        whole = Image.fromarray(images[b].permute(1, 2, 0).numpy())
        pil = whole.crop((left, top, left + w, top + h)).resize((24, 24), Image.Resampling.BILINEAR)
        # PIL rounds to a byte after each of its two passes: at most one level apart, plus rounding.
        error = np.abs(np.asarray(pil, np.float64) - got[b].permute(1, 2, 0).double().numpy())
        assert error.max() <= 1.01
        assert error.mean() <= 0.35


def test_views_do_not_depend_on_the_batch():
    images, ids, visits = photos(), torch.arange(6), torch.tensor([4, 0, 2, 2, 9, 1])
    options = {"mean": MEAN, "std": STD, "size": 16}
    draw = {"image_size": (21, 34), "size": 16, "factor": 2}
    whole = augment(images, ids, draw_augmentation(3, ids, visits, 0, **draw), **options)
    order = torch.tensor([3, 0, 5])
    part = draw_augmentation(3, ids[order], visits[order], 8, **draw)
    torch.testing.assert_close(
        augment(images, ids[order], part, **options), whole[order], rtol=0, atol=0
    )
    again = draw_augmentation(3, ids, visits + 1, 0, **draw)
    assert not torch.equal(augment(images, ids, again, **options), whole)


def get_params_restated(u, height, width, scale, ratio):
    """torchvision's recipe with its draws given: rows of (area, ratio, top, left)."""
    for area_u, ratio_u, top_u, left_u in u:
        area = height * width * (scale[0] + (scale[1] - scale[0]) * area_u)
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + (high - low) * ratio_u)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return [int((height - h + 1) * top_u), int((width - w + 1) * left_u), h, w]
    if width / height < min(ratio):
        w, h = width, round(width / min(ratio))
    elif width / height > max(ratio):
        h, w = height, round(height * max(ratio))
    else:
        h, w = height, width
    return [(height - h) // 2, (width - w) // 2, h, w]


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        ((28, 28), (0.08, 1.0), (3 / 4, 4 / 3)),  # the usual case
        ((28, 28), (1.0, 1.0), (3 / 4, 4 / 3)),  # whole area: almost always the fallback
        ((20, 90), (0.9, 1.0), (3 / 4, 4 / 3)),  # too wide for any try: fallback by height
        ((90, 20), (0.9, 1.0), (3 / 4, 4 / 3)),  # too tall: fallback by width
        ((300, 400), (0.08, 1.0), (1.0, 1.0)),  # RDED's square crops
    ],
)
def test_crop_boxes_follow_the_recipe(size, scale, ratio):
    ids, visits = torch.arange(300), torch.arange(300) % 7
    boxes = draw_crop_boxes(5, ids, visits, size, scale=scale, ratio=ratio)
    draws = uniform(5, Purpose.CROP, ids[:, None], visits[:, None], torch.arange(40))
    for row, box in zip(draws.view(300, 10, 4).tolist(), boxes.tolist(), strict=True):
        assert box == get_params_restated(row, *size, scale, ratio)
    top, left, h, w = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (h >= 1).all()
    assert (w >= 1).all()
    assert (top + h <= size[0]).all()
    assert (left + w <= size[1]).all()


def test_crop_boxes_of_images_of_different_sizes():
    sizes = torch.tensor([[375, 500], [1, 9], [800, 200], [333, 500], [6, 6]])
    ids = torch.arange(5) * 11
    visits = torch.tensor([0, 3, 0, 1, 2])
    boxes = draw_crop_boxes(4, ids, visits, sizes)
    for i, size in enumerate(sizes.tolist()):
        alone = draw_crop_boxes(4, ids[i : i + 1], visits[i : i + 1], tuple(size))
        assert torch.equal(boxes[i], alone[0])
    with pytest.raises(ValueError, match=r"image_size must be positive, got \(0, 7\)"):
        draw_crop_boxes(4, ids[:2], visits[:2], torch.tensor([[3, 3], [0, 7]]))
    with pytest.raises(ValueError, match=r"have shape \(5, 2\), got \(3, 2\)"):
        draw_crop_boxes(4, ids, visits, sizes[:3])


def test_strip_orders_are_uniform():
    ids = torch.arange(2000)
    params = draw_augmentation(0, ids, torch.zeros_like(ids), 0, (8, 8), factor=2, scale=None)
    for order in (params.row_order, params.col_order):
        assert torch.equal(order.sort(dim=1).values, torch.tensor([[0, 1]]).expand(2000, 2))
        # Standard deviation of the count is 22.
        assert abs(int(order[:, 0].sum()) - 1000) < 112
    both = (params.row_order[:, 0] * 2 + params.col_order[:, 0]).bincount(minlength=4)
    assert (both - 500).abs().max() < 97


def test_cutmix_draws():
    shares = []
    for step in range(600):
        partner, box = draw_cutmix(2, step, 9, (20, 30))
        assert torch.equal(partner.sort().values, torch.arange(9))
        y0, x0, y1, x1 = box.tolist()
        assert 0 <= y0 <= y1 <= 20
        assert 0 <= x0 <= x1 <= 30
        shares.append((y1 - y0) * (x1 - x0) / 600)
    again, same = draw_cutmix(2, 599, 9, (20, 30))
    assert torch.equal(again, partner)
    assert torch.equal(same, box)
    # lam ~ U(0, 1): the side share c = sqrt(1 - lam) has density 2c; clipping at a uniform centre
    # leaves c - c^2 / 4 of it on average, on each axis: the mean area is the integral of
    # 2c (c - c^2 / 4)^2 = 0.321.  Whole pixels take off up to 2 of 20 of a side.
    assert 0.24 < float(np.mean(shares)) < 0.34


@pytest.mark.parametrize("fmt", [False, True])
def test_half_precision_and_memory_format(fmt):
    images, index = photos(), torch.tensor([1, 4])
    params = draw_augmentation(0, index, torch.zeros(2, dtype=torch.int64), 0, (21, 34), size=12)
    full = augment(images, index, params, mean=MEAN, std=STD, size=12)
    half = augment(
        images, index, params, mean=MEAN, std=STD, size=12, dtype=torch.bfloat16, channels_last=fmt
    )
    assert torch.equal(half, full.bfloat16())
    assert half.is_contiguous(memory_format=torch.channels_last) == fmt


def test_empty_batch():
    none = torch.zeros(0, dtype=torch.int64)
    params = draw_augmentation(0, none, none, 0, (21, 34), size=12, factor=2, cutmix=1.0)
    assert augment(photos(), none, params, size=12, **ONE).shape == (0, 3, 12, 12)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": torch.zeros(2, 3, 4, 4)}, TypeError, "images must be uint8"),
        ({"index": torch.tensor([0.0])}, TypeError, "index must be int64"),
        ({"mean": (0.0,)}, ValueError, "3 values"),
        ({"std": (0.0, 1.0, 1.0)}, ValueError, "std must be positive"),
        ({"size": 0}, ValueError, "size must be positive"),
        ({"size": 9}, ValueError, "params.box"),
        ({"dtype": torch.int32}, TypeError, "dtype"),
        ({"params": AugmentParams(flip=torch.tensor([1]))}, TypeError, "params.flip"),
        ({"params": AugmentParams(flip=torch.tensor([True] * 2))}, ValueError, "params.flip"),
        ({"params": AugmentParams(partner=torch.tensor([0]))}, ValueError, "together"),
        (
            {
                "params": AugmentParams(
                    row_order=torch.arange(22)[None], col_order=torch.arange(2)[None]
                )
            },
            ValueError,
            "21 pixels into 22 strips",
        ),
    ],
)
def test_bad_input_is_named(change, error, message):
    given = {
        "images": photos(), "index": torch.tensor([0]), "params": AugmentParams(), **ONE, **change
    }  # fmt: skip
    with pytest.raises(error, match=message):
        augment(given.pop("images"), given.pop("index"), given.pop("params"), **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, "flip"),
        ({"factor": 99}, "factor"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"ratio": (2.0, 1.0)}, "ratio"),
        ({"cutmix": 0.0}, "alpha"),
    ],
)
def test_bad_draws_are_named(options, message):
    ids = torch.arange(2)
    with pytest.raises(ValueError, match=message):
        draw_augmentation(0, ids, ids, 0, (21, 34), **options)
