"""DSA against per-image restatements of the published formulas, with gradients in float64."""

from __future__ import annotations

import math

import pytest
import torch

from pyddfast.ops.dsa import (
    STANDARD_STRATEGY,
    DSAConfig,
    DSAParams,
    draw_dsa,
    draw_dsa_official,
    dsa,
)

NAMES = ("brightness", "saturation", "contrast", "crop", "cutout", "flip", "scale", "rotate")


def batch(n=5, height=12, width=9, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, height, width, generator=g, dtype=torch.float64).to(dtype)


def bilinear(x, row, col):
    """Value at a fractional position, zeros outside; plain Python."""
    r0, c0 = math.floor(row), math.floor(col)
    value = torch.zeros(x.shape[0], dtype=x.dtype)
    for r in (r0, r0 + 1):
        for c in (c0, c0 + 1):
            if 0 <= r < x.shape[1] and 0 <= c < x.shape[2]:
                value = value + (1 - abs(row - r)) * (1 - abs(col - c)) * x[:, r, c]
    return value


def warp(x, matrix, align_corners):
    _, height, width = x.shape
    out = torch.zeros_like(x)
    for i in range(height):
        for j in range(width):
            if align_corners:
                u, v = 2 * j / (width - 1) - 1, 2 * i / (height - 1) - 1
            else:
                u, v = (2 * j + 1) / width - 1, (2 * i + 1) / height - 1
            u, v = matrix[0][0] * u + matrix[0][1] * v, matrix[1][0] * u + matrix[1][1] * v
            if align_corners:
                col, row = (u + 1) / 2 * (width - 1), (v + 1) / 2 * (height - 1)
            else:
                col, row = ((u + 1) * width - 1) / 2, ((v + 1) * height - 1) / 2
            out[:, i, j] = bilinear(x, row, col)
    return out


def restated(name, x, value, cutout_size, align_corners):
    """One image (C, H, W) and its own parameter."""
    _, height, width = x.shape
    if name == "brightness":
        return x + value
    if name == "saturation":
        m = x.mean(0, keepdim=True)
        return (x - m) * value + m
    if name == "contrast":
        return (x - x.mean()) * value + x.mean()
    if name == "flip":
        return x.flip(-1) if value else x
    if name == "crop":
        out = torch.zeros_like(x)
        for i in range(height):
            for j in range(width):
                r, c = i + int(value[0]), j + int(value[1])
                if 0 <= r < height and 0 <= c < width:
                    out[:, i, j] = x[:, r, c]
        return out
    if name == "cutout":
        out = x.clone()
        for k in range(cutout_size[0]):
            for m in range(cutout_size[1]):
                r = min(max(int(value[0]) - cutout_size[0] // 2 + k, 0), height - 1)
                c = min(max(int(value[1]) - cutout_size[1] // 2 + m, 0), width - 1)
                out[:, r, c] = 0
        return out
    if name == "scale":
        matrix = [[float(value[0]), 0.0], [0.0, float(value[1])]]
    else:
        a = float(value)
        matrix = [[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]
    return warp(x, matrix, align_corners)


def draw(name, *, siamese=False, n=5, step=0, size=(12, 9), seed=4):
    ids = None if siamese else torch.arange(n) + 10
    visits = None if siamese else torch.arange(n) % 3
    return draw_dsa(seed, ids, visits, step, size, strategy=name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("siamese", [False, True])
@pytest.mark.parametrize("align_corners", [False, True])
def test_each_transform(name, siamese, align_corners):
    x = batch()
    # A fractional share of 12 and 9 gives an even (6) and an odd (5) cutout.
    params = draw(name, siamese=siamese)
    value = params.values[name]
    assert len(value) == (1 if siamese else 5)
    got = dsa(x, params, align_corners=align_corners)
    expected = torch.stack(
        [
            restated(name, x[b], value[0 if siamese else b], params.cutout_size, align_corners)
            for b in range(5)
        ]
    )
    exact = name in ("crop", "cutout", "flip", "brightness")
    torch.testing.assert_close(got, expected, rtol=0, atol=0 if exact else 1e-12)
    single = dsa(x.float(), params, align_corners=align_corners)
    assert single.dtype == torch.float32
    # Coordinates are rounded in float32 before they become weights: a few 1e-7 of side 12.
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name):
    x = batch(2, 6, 5).requires_grad_()
    params = draw(name, n=2, size=(6, 5))
    assert torch.autograd.gradcheck(lambda x: dsa(x, params), (x,), atol=1e-8)


def test_all_applies_every_transform_in_order():
    x = batch()
    ids = torch.arange(5)
    params = draw_dsa(1, ids, ids, 3, (12, 9), mode="all")
    assert params.transforms == (
        "brightness", "saturation", "contrast", "crop", "cutout", "flip", "scale", "rotate"
    )  # fmt: skip
    expected = x
    for name in params.transforms:
        expected = torch.stack(
            [
                restated(name, expected[b], params.values[name][b], params.cutout_size, True)
                for b in range(5)
            ]
        )
    torch.testing.assert_close(dsa(x, params, align_corners=True), expected, rtol=0, atol=1e-12)


def test_single_picks_entries_evenly_by_step():
    counts = dict.fromkeys(("brightness", "crop", "cutout", "flip", "scale", "rotate"), 0)
    ids = torch.arange(1)
    for step in range(1200):
        params = draw_dsa(0, ids, ids, step, (8, 8))
        counts[params.transforms[0]] += 1
        assert len(params.transforms) == (3 if params.transforms[0] == "brightness" else 1)
    # Expected 200, standard deviation 12.9.
    assert max(abs(count - 200) for count in counts.values()) < 65


def test_draws_have_the_published_ranges():
    ids = torch.arange(4000)
    v = draw_dsa(0, ids, ids * 0, 0, (32, 32), mode="all").values
    expected = {
        "brightness": (-0.5, 0.5),
        "saturation": (0.0, 2.0),
        "contrast": (0.5, 1.5),
        "scale": (1 / 1.2, 1.2),
        "rotate": (-math.radians(15), math.radians(15)),
        "crop": (-4, 4),
        "cutout": (0, 32),
    }
    for name, (low, high) in expected.items():
        values = v[name].double()
        assert float(values.min()) >= low
        assert float(values.max()) <= high
        # 4000 draws come within 1 % of both ends (missed with probability below 1e-17) ...
        assert float(values.min()) <= low + 0.01 * (high - low)
        assert float(values.max()) >= high - 0.01 * (high - low)
        # ... and their mean within five standard errors, (high-low)/sqrt(12*4000), of the middle.
        assert abs(float(values.mean()) - (low + high) / 2) < 0.026 * (high - low)
    assert abs(float(v["flip"].double().mean()) - 0.5) < 0.04
    assert draw_dsa(0, ids, ids, 0, (32, 32), strategy="cutout").cutout_size == (16, 16)


def test_draws_are_keyed_by_sample_and_visit():
    ids, visits = torch.arange(6), torch.tensor([0, 3, 1, 1, 0, 2])
    whole = draw_dsa(9, ids, visits, 0, (8, 8), mode="all").values
    order = torch.tensor([4, 1])
    part = draw_dsa(9, ids[order], visits[order], 77, (8, 8), mode="all").values
    # A transform's draw does not depend on the strategy around it either.
    alone = draw_dsa(9, ids, visits, 0, (8, 8), strategy="rotate").values
    for name in NAMES:
        assert torch.equal(part[name], whole[name][order])
    assert torch.equal(alone["rotate"], whole["rotate"])
    siamese = draw_dsa(9, None, None, 5, (8, 8), mode="all").values
    other = draw_dsa(9, None, None, 6, (8, 8), mode="all").values
    assert not torch.equal(siamese["rotate"], other["rotate"])


def official_stream(name, n, seed, single):
    """The official draws of one transform, restated: values of each image, and the next seed."""

    def draw(sample):
        nonlocal seed
        if seed != -1:
            torch.manual_seed(seed)
            seed += 1
        value = sample()
        return value[:1].expand(n) if seed != -1 else value

    if single:
        draw(lambda: torch.randint(0, 1, (1,)).expand(n))
    if name in ("brightness", "saturation", "contrast"):
        r = draw(lambda: torch.rand(n, 1, 1, 1, dtype=torch.float64).flatten())
        value = {"brightness": r - 0.5, "saturation": r * 2.0, "contrast": r + 0.5}[name]
    elif name == "flip":
        value = draw(lambda: torch.rand(n, 1, 1, 1).flatten()) < 0.5
    elif name == "crop":  # int(12 * 0.125 + 0.5) = 2 and int(9 * 0.125 + 0.5) = 1
        value = [draw(lambda r=r: torch.randint(-r, r + 1, (n, 1, 1)).flatten()) for r in (2, 1)]
    elif name == "cutout":  # 6 of 12 is even: 13 places; 5 of 9 is odd: 9 places
        value = [draw(lambda p=p: torch.randint(0, p, (n, 1, 1)).flatten()) for p in (13, 9)]
    elif name == "scale":
        value = [draw(lambda: torch.rand(n)) * (1.2 - 1 / 1.2) + 1 / 1.2 for _ in range(2)]
    else:
        value = (draw(lambda: torch.rand(n)) - 0.5) * 2 * 15.0 / 180 * math.pi
    return (torch.stack(value, 1) if isinstance(value, list) else value), seed


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [-1, 41])
@pytest.mark.parametrize("mode", ["single", "all"])
def test_official_streams(name, seed, mode):
    x = batch()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        params, latest = draw_dsa_official(x, seed=seed, strategy=name, mode=mode)
        got, state = dsa(x, params), torch.get_rng_state()
        torch.manual_seed(8)
        value, next_seed = official_stream(name, 5, seed, mode == "single")
        # The same numbers of the same streams were consumed, and nothing else.
        assert torch.equal(torch.get_rng_state(), state)
    assert latest == next_seed
    expected = torch.stack(
        [restated(name, x[b], value[b], params.cutout_size, False) for b in range(5)]
    )
    exact = name in ("crop", "cutout", "flip", "brightness")
    # Angles and factors are drawn in float32 and used in float64.
    torch.testing.assert_close(got, expected, rtol=0, atol=0 if exact else 1e-6)


def test_official_siamese_draws_do_not_depend_on_the_batch():
    with torch.random.fork_rng(devices=[]):
        few, _ = draw_dsa_official(batch(2), seed=3, mode="all")
        many, latest = draw_dsa_official(batch(7), seed=3, mode="all")
    assert few.transforms == many.transforms
    for name in NAMES:
        assert torch.equal(few.values[name], many.values[name])
    # Eight transforms; crop, cutout and scale draw twice.
    assert latest == 3 + 11
    with pytest.raises(ValueError, match="seed must be -1"):
        draw_dsa_official(batch(2), seed=-2)


def test_standard_strategy_is_the_published_one():
    assert STANDARD_STRATEGY == "color_crop_cutout_flip_scale_rotate"
    assert DSAConfig() == DSAConfig(0.5, 1.2, 15.0, 0.125, 0.5, 1.0, 2.0, 0.5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: dsa(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), draw("flip")), TypeError, "float"),
        (lambda: dsa(torch.zeros(3, 4, 4), draw("flip")), ValueError, "N, C, H, W"),
        (lambda: dsa(batch(4), draw("flip")), ValueError, r"values\['flip'\]"),
        (lambda: dsa(batch(), DSAParams(("flip",), {})), ValueError, "lacks 'flip'"),
        (lambda: dsa(batch(), DSAParams(("blur",), {})), ValueError, "'blur'"),
        (
            lambda: dsa(batch(), DSAParams(("flip",), {"flip": torch.ones(5)})),
            TypeError,
            r"values\['flip'\]",
        ),
        (lambda: draw("flip_blur"), ValueError, "'blur'"),
        (lambda: draw_dsa(0, None, None, 0, (4, 4), mode="S"), ValueError, "mode"),
        (lambda: draw_dsa(0, torch.arange(2), None, 0, (4, 4)), ValueError, "together"),
        (
            lambda: draw_dsa(0, None, None, 0, (4, 4), strategy="flip_flip", mode="all"),
            ValueError,
            "twice",
        ),
        (lambda: DSAConfig(flip=1.5), ValueError, "probability"),
        (lambda: DSAConfig(scale=0.5), ValueError, "scale"),
        (lambda: DSAConfig(crop=-0.1), ValueError, "crop"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
