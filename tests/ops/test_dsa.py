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
from tests.tolerances import FLOAT32, FLOAT64, ROUNDING, assert_close

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


def rounded(params, dtype):
    """Parameters as a kernel takes them for images of this type."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    values = {k: v.to(wide) if v.is_floating_point() else v for k, v in params.values.items()}
    return DSAParams(params.transforms, values, params.cutout_size)


def expected_views(x, params, align_corners):
    """One transform of every image, in float64."""
    (name,) = params.transforms
    value = params.values[name]
    rows = [value[0 if len(value) == 1 else b] for b in range(len(x))]
    rows = [row.double() if row.is_floating_point() else row for row in rows]
    return torch.stack(
        [restated(name, x[b], rows[b], params.cutout_size, align_corners) for b in range(len(x))]
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("siamese", [False, True])
@pytest.mark.parametrize("align_corners", [False, True])
def test_each_transform_and_its_gradient(backend, name, siamese, align_corners):
    # A fractional share of 12 and 9 gives an even (6) and an odd (5) cutout.
    drawn = draw(name, siamese=siamese)
    assert len(drawn.values[name]) == (1 if siamese else 5)
    for dtype in backend.dtypes:
        params = rounded(drawn, dtype)
        x = batch().to(dtype)
        exact = x.double().requires_grad_()
        expected = expected_views(exact, params, align_corners)
        views = dsa(
            x.to(backend.device).requires_grad_(),
            params.to(backend.device),
            align_corners=align_corners,
        )
        assert views.dtype == dtype
        bound = FLOAT64 if dtype == torch.float64 else FLOAT32
        assert_close(views, expected, bound + ROUNDING[dtype])
        if name in ("crop", "cutout", "flip"):
            assert torch.equal(views.cpu().double(), expected)
        if name == "brightness":  # one addition: the official code's bits
            shifted = x + params.values[name].to(x.dtype).view(-1, 1, 1, 1)
            wide = dtype in (torch.float32, torch.float64)  # others are added unrounded
            assert not wide or torch.equal(views.cpu(), shifted)
        upstream = batch().flip(0).to(dtype)
        (want,) = torch.autograd.grad(expected, exact, upstream.double())
        leaf = x.to(backend.device).requires_grad_()
        views = dsa(leaf, params.to(backend.device), align_corners=align_corners)
        (got,) = torch.autograd.grad(views, leaf, upstream.to(backend.device))
        assert got.dtype == dtype
        assert_close(got, want, bound + ROUNDING[dtype])


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_of_any_order(name):
    x = batch(2, 6, 5).requires_grad_()
    params = draw(name, n=2, size=(6, 5))
    assert torch.autograd.gradcheck(lambda x: dsa(x, params), (x,), atol=1e-8)
    assert torch.autograd.gradgradcheck(lambda x: dsa(x, params).pow(3), (x,), atol=1e-6)


@pytest.mark.parametrize(
    ("height", "width"), [(1, 9), (9, 1), (1, 1), (17, 33)]
)  # planes without extent, and more columns than a register holds
@pytest.mark.parametrize("name", NAMES)
def test_other_sizes(backend, name, height, width):
    for channels in (1, 5):  # fewer and more than the warps take at once
        g = torch.Generator().manual_seed(1)
        x = torch.randn(3, channels, height, width, generator=g)
        params = rounded(draw(name, n=3, size=(height, width)), torch.float32)
        expected = expected_views(x.double(), params, False)
        got = dsa(x.to(backend.device), params.to(backend.device))
        # The twin rounds coordinates of 33 pixels, the kernels distances of a few.
        assert_close(got, expected, 3 * FLOAT32 if backend.name == "reference" else FLOAT32)


def test_far_parameters(backend):
    """Shifts beyond the image, angles beyond a quarter turn, and factors of any size and sign."""
    x = batch(6, 7, 8).float()
    far = 10**12
    crop = torch.tensor([[7, 0], [-7, 0], [0, 8], [0, -far], [far, 1], [6, -7]])
    factor = torch.tensor([[3.0, 0.2], [-1.0, 1.0], [0.0, 1.0], [1e9, 1.0], [1.0, 1e-30], [1, 1]])
    angle = torch.tensor([3.2, -1.6, 0.0, 100.0, 1e-8, 0.7])
    centre = torch.tensor([[-3, 0], [50, 50], [0, far], [3, 4], [-far, 2], [6, 7]])
    for name, value, cut in (
        ("crop", crop, (0, 0)),
        ("scale", factor, (0, 0)),
        ("rotate", angle, (0, 0)),
        ("cutout", centre, (3, 4)),
        ("cutout", centre, (0, 0)),
    ):
        params = DSAParams((name,), {name: value}, cut)
        exact = x.double().requires_grad_()
        wide = params.to("cpu")
        expected = expected_views(exact, wide, False)
        (want,) = torch.autograd.grad(expected, exact, x.double().flip(1))
        leaf = x.to(backend.device).requires_grad_()
        views = dsa(leaf, params.to(backend.device))
        (got,) = torch.autograd.grad(views, leaf, x.flip(1).to(backend.device))
        # 1e9 pixels away a coordinate has no digits left for the fraction; 100 radians few.
        bound = 2e-5 if name in ("scale", "rotate") else 0.0
        for b in range(6):
            assert_close(views[b], expected[b], bound, f"{name} {b}", absolute=1e-6 * bool(bound))
            assert_close(got[b], want[b], bound, f"{name} {b}", absolute=1e-5 * bool(bound))


def test_rows_may_be_one_for_some_transforms(backend):
    x = batch().float().to(backend.device)
    ids = torch.arange(5)
    own = draw_dsa(0, ids, ids, 0, (12, 9), mode="all")
    shared = draw_dsa(0, None, None, 0, (12, 9), mode="all")
    mixed = {k: (own if k in ("flip", "contrast") else shared).values[k] for k in own.values}
    params = DSAParams(own.transforms, mixed, own.cutout_size).to(backend.device)
    spread = {k: v.expand(5, *v.shape[1:]) for k, v in mixed.items()}
    wide = DSAParams(own.transforms, spread, own.cutout_size).to(backend.device)
    assert torch.equal(dsa(x, params), dsa(x, wide))


def test_transforms_in_another_order(backend):
    x = batch().float().to(backend.device)
    ids = torch.arange(5)
    drawn = draw_dsa(0, ids, ids, 0, (12, 9), mode="all")
    names = ("flip", "contrast", "crop", "cutout", "brightness", "rotate", "saturation", "scale")
    expected = x
    for name in names:
        one = DSAParams((name,), {name: drawn.values[name]}, drawn.cutout_size)
        expected = dsa(expected, one.to(backend.device))
    params = DSAParams(names, drawn.values, drawn.cutout_size).to(backend.device)
    assert_close(dsa(x, params), expected, FLOAT32)


def test_transforms_of_torch_func():
    x = batch(3, 6, 5)
    params = draw("rotate", n=3, size=(6, 5))
    (expected,) = torch.autograd.functional.vjp(lambda x: dsa(x, params).pow(2).sum(), x)[1:]
    assert_close(torch.func.grad(lambda x: dsa(x, params).pow(2).sum())(x), expected, FLOAT64)


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
        (
            lambda: dsa(batch(), DSAParams(("rotate",), {"rotate": torch.tensor([math.nan])})),
            ValueError,
            r"values\['rotate'\] must be finite",
        ),
        (
            lambda: dsa(batch(), DSAParams(("scale",), {"scale": torch.tensor([[1.0, math.inf]])})),
            ValueError,
            r"values\['scale'\] must be finite",
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
