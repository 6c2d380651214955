"""The image side of synthesis against slices, torch's interpolation, and loops over pixels."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyddfast import ops
from pyddfast.ops.synthesis import draw_crop_flip_roll
from tests.tolerances import FLOAT32, FLOAT64, ROUNDING, assert_close

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def restated(images: Tensor, params: Tensor, size: tuple[int, int]) -> Tensor:
    """The official chain: slice, resize, flip, roll."""
    top, left, height, width, flip, down, right = params.tolist()
    cut = images[:, :, top : top + height, left : left + width]
    views = F.interpolate(cut, size=size, mode="bilinear", antialias=True)
    if flip:
        views = views.flip(-1)
    return views.roll((down, right), (2, 3))


def randn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


BOXES = [
    [0, 0, 12, 16],  # whole image
    [3, 5, 7, 4],  # enlarged in both directions
    [11, 15, 1, 1],  # one pixel, the corner
    [0, 0, 1, 16],  # one row
    [2, 1, 9, 13],
    [1, 6, 9, 10],  # of the size of a view, whose pixels are copied where it is not mirrored
]


@pytest.mark.parametrize("backend", ["reference", "cpu"], indirect=True)
@pytest.mark.parametrize("size", [(12, 16), (9, 20), (5, 3), (9, 10)])  # kept; both; shrunk; cut
@pytest.mark.parametrize("box", BOXES)
def test_crop_flip_roll_is_the_official_chain(
    backend, box: list[int], size: tuple[int, int]
) -> None:
    # Rolls: none, the official range, symmetric and beyond the image.
    for flip, (down, right) in itertools.product((0, 1), ((0, 0), (3, 1), (-2, 40))):
        params = torch.tensor([*box, flip, down, right])
        images = randn(2, 3, 12, 16).requires_grad_()
        want = restated(images, params, size)
        got = ops.crop_flip_roll(images, params, size)
        assert_close(got, want, FLOAT64)
        upstream = randn(*want.shape, seed=1)
        (expected,) = torch.autograd.grad(want, images, upstream)
        (gradient,) = torch.autograd.grad(got, images, upstream)
        assert_close(gradient, expected, FLOAT64)
        single = ops.crop_flip_roll(images.detach().float(), params, size)
        assert single.dtype == torch.float32
        assert_close(single, restated(images.detach().float().double(), params, size), FLOAT32)


def test_crop_flip_roll_of_half_types_and_under_autocast() -> None:
    params = torch.tensor([1, 2, 8, 9, 1, 4, 0])
    for dtype in (torch.float16, torch.bfloat16):
        images = randn(2, 3, 12, 16).to(dtype)
        got = ops.crop_flip_roll(images, params)
        assert got.dtype == dtype
        assert_close(got, restated(images.double(), params, (12, 16)), ROUNDING[dtype])
    images = randn(2, 3, 12, 16).float()
    plain = ops.crop_flip_roll(images, params)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ops.crop_flip_roll(images, params), plain)
        assert ops.crop_flip_roll(images, params).dtype == torch.float32


def test_crop_flip_roll_of_layouts_and_of_each_image_alone() -> None:
    params = torch.tensor([1, 2, 8, 9, 0, 4, 7])
    images = randn(3, 3, 12, 16).float()
    plain = ops.crop_flip_roll(images, params)
    kept = images.clone()
    layouts = (
        images.contiguous(memory_format=torch.channels_last),
        images.transpose(2, 3).contiguous().transpose(2, 3),
        torch.cat((images, images))[:3],
    )
    for layout in layouts:
        assert_close(ops.crop_flip_roll(layout, params), plain.double(), FLOAT32)
    assert torch.equal(images, kept)
    for row in range(3):
        assert_close(ops.crop_flip_roll(images[row : row + 1], params)[0], plain[row], FLOAT32)
    assert ops.crop_flip_roll(images[:0], params, 5).shape == (0, 3, 5, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_crop_flip_roll_takes_any_upstream_gradient(dtype: torch.dtype) -> None:
    params = torch.tensor([1, 2, 8, 9, 1, 4, 3])
    images = randn(2, 3, 12, 16).to(dtype).requires_grad_()
    plain = randn(2, 3, 10, 11, seed=2).to(dtype)
    kinds = {
        "stride 0": plain[:1, :1, :1, :1].expand_as(plain),
        "channels last": plain.contiguous(memory_format=torch.channels_last),
        "transposed": plain.transpose(2, 3).contiguous().transpose(2, 3),
    }
    for kind, upstream in kinds.items():
        wide = images.detach().double().requires_grad_()
        want = torch.autograd.grad(restated(wide, params, (10, 11)), wide, upstream.double())[0]
        views = ops.crop_flip_roll(images, params, (10, 11))
        got = torch.autograd.grad(views, images, upstream)[0]
        assert got.dtype is dtype
        assert_close(got, want, FLOAT32 + ROUNDING[dtype], kind)


def test_crop_flip_roll_gradients_do_not_depend_on_threads() -> None:
    params = torch.tensor([5, 9, 40, 33, 1, 4, 3])
    images = randn(5, 3, 64, 64).float().requires_grad_()
    threads, gradients = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            loss = ops.crop_flip_roll(images, params).square().sum()
            gradients += torch.autograd.grad(loss, images)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])


def test_crop_flip_roll_has_derivatives_of_any_order() -> None:
    params = torch.tensor([1, 0, 3, 4, 1, 1, 2])
    images = randn(1, 1, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.crop_flip_roll(x, params), (images,))
    assert torch.autograd.gradgradcheck(lambda x: ops.crop_flip_roll(x, params) ** 3, (images,))
    # The third derivative of the sum of the views' fourth powers, along ones, is 24 Aᵀ(A x).
    direction = torch.ones_like(images)
    third = (ops.crop_flip_roll(images, params) ** 4).sum()
    for _ in range(3):
        (gradient,) = torch.autograd.grad(third, images, create_graph=True)
        third = (gradient * direction).sum()
    views, moved = (ops.crop_flip_roll(x, params).detach() for x in (images, direction))
    assert third.item() == pytest.approx(float((24 * views * moved**3).sum()))


def test_crop_flip_roll_compiles_and_transforms() -> None:
    params = torch.tensor([1, 0, 3, 4, 1, 1, 2])
    images = randn(2, 1, 4, 5).float().requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return ops.crop_flip_roll(x, params).square().sum()

    (want,) = torch.autograd.grad(loss(images), images)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True)
    assert_close(torch.autograd.grad(compiled(images), images)[0], want.double(), FLOAT32)
    assert_close(torch.func.grad(loss)(images.detach()), want.double(), FLOAT32)
    rows = torch.func.vmap(torch.func.grad(lambda x: loss(x[None])))(images.detach())
    assert_close(rows, want.double(), FLOAT32)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(images.detach(), images.detach())
        with pytest.raises(NotImplementedError):
            ops.crop_flip_roll(dual, params)


def test_draws_are_keyed_by_step_and_batch_and_uniform_in_their_ranges() -> None:
    steps = torch.arange(4000)
    drawn = draw_crop_flip_roll(7, steps, 3, (20, 30), shift=(-4, 4))
    again = draw_crop_flip_roll(7, torch.tensor([17, 3999]), 3, (20, 30), shift=(-4, 4))
    assert torch.equal(drawn[[17, 3999]], again)
    assert not torch.equal(draw_crop_flip_roll(7, steps, 4, (20, 30), shift=(-4, 4)), drawn)
    assert not torch.equal(draw_crop_flip_roll(8, steps, 3, (20, 30), shift=(-4, 4)), drawn)
    top, left, height, width, flip, down, right = drawn.unbind(1)
    assert int(top.min()) == 0
    assert int(left.min()) == 0
    assert int((top + height).max()) == 20
    assert int((left + width).max()) == 30
    # A fair coin of 4000 throws leaves [0.46, 0.54] once in 2 million seeds.
    assert 0.46 < flip.double().mean() < 0.54
    for shift in (down, right):
        counts = torch.bincount(shift + 4, minlength=9)
        assert len(counts) == 9
        # 4000 / 9 = 444 expected; five standard deviations of 20.
        assert int((counts - 444).abs().max()) < 100
    area = (height * width).double() / 600
    # Uniform area in [0.08, 1] has mean 0.54; large boxes of extreme shape are redrawn.
    assert 0.4 < area.mean() < 0.56
    assert not torch.equal(down, right)


def test_draws_without_crop_and_flip_only_roll() -> None:
    drawn = draw_crop_flip_roll(
        0, torch.arange(50), 0, (6, 8), scale=None, flip=False, shift=(0, 3)
    )
    assert drawn[:, :5].unique(dim=0).tolist() == [[0, 0, 6, 8, 0]]
    assert sorted(set(drawn[:, 5].tolist())) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="shift"):
        draw_crop_flip_roll(0, torch.arange(3), 0, (6, 8), shift=(2, 1))


def test_draws_of_padded_crops_are_uniform_over_the_padding() -> None:
    drawn = draw_crop_flip_roll(
        0, torch.arange(4000), 0, (6, 8), scale=None, pad=2, flip=False, shift=(0, 0)
    )
    assert drawn[:, 2:].unique(dim=0).tolist() == [[6, 8, 0, 0, 0]]
    # 25 corners, 160 expected; six standard deviations of 12.4.
    corners, counts = drawn[:, :2].unique(dim=0, return_counts=True)
    assert corners.tolist() == [[top, left] for top in range(5) for left in range(5)]
    assert int((counts - 160).abs().max()) < 75
    with pytest.raises(ValueError, match=r"pad must be 0 or more, and 0 with a scale"):
        draw_crop_flip_roll(0, torch.arange(3), 0, (6, 8), pad=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_clamp_normalized(dtype: torch.dtype) -> None:
    images = (4 * randn(2, 3, 5, 6)).to(dtype)
    kept = images.clone()
    got = ops.clamp_normalized(images, mean=MEAN, std=STD)
    assert torch.equal(images, kept)
    for channel, (m, s) in enumerate(zip(MEAN, STD, strict=True)):
        low = torch.tensor(-m / s, dtype=dtype)
        high = torch.tensor((1 - m) / s, dtype=dtype)
        want = torch.where(images[:, channel] < low, low, images[:, channel])
        want = torch.where(want > high, high, want)
        assert torch.equal(got[:, channel], want)
    assert (got != images).any()
    assert ops.clamp_normalized(images, mean=MEAN, std=STD, inplace=True) is images
    assert torch.equal(images, got)
    pixels = ops.to_uint8(got.double(), mean=MEAN, std=STD)
    assert pixels.min() == 0
    assert pixels.max() == 255


def test_bytes_that_were_normalised_come_back() -> None:
    # All 256 values in each channel, under the normalisations that the library knows of.
    pixels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    for mean, std in ((MEAN, STD), ((0.498,) * 3, (0.502,) * 3), ((0.0,) * 3, (1.0,) * 3)):
        shift, spread = (torch.tensor(v)[:, None, None] for v in (mean, std))
        normalized = (pixels / 255 - shift) / spread
        assert torch.equal(ops.to_uint8(normalized, mean=mean, std=std), pixels)


def test_to_uint8_rounds_to_even_truncates_and_clamps() -> None:
    levels = torch.tensor([-3.0, 0.4, 0.5, 1.5, 2.5, 7.9, 254.6, 255.4, 300.0], dtype=torch.float64)
    images = (levels / 255).view(1, 1, 1, -1)
    plain = {"mean": (0.0,), "std": (1.0,)}
    assert ops.to_uint8(images, **plain).flatten().tolist() == [0, 0, 0, 2, 2, 8, 255, 255, 255]
    cut = ops.to_uint8(images, quantize="truncate", **plain)
    assert cut.flatten().tolist() == [0, 0, 0, 1, 2, 7, 254, 255, 255]


def test_image_prior_is_the_official_formula() -> None:
    images = randn(3, 2, 4, 5).requires_grad_()
    squares = [0.0] * 4
    for b, c, y, x in itertools.product(*(range(n) for n in images.shape)):
        here = images[b, c, y, x].item()
        for term, (dy, dx) in enumerate(((0, 1), (1, 0), (1, -1), (1, 1))):
            if y + dy < 4 and 0 <= x + dx < 5:
                squares[term] += (images[b, c, y + dy, x + dx].item() - here) ** 2
    tv = sum(square**0.5 for square in squares)
    l2 = sum(image.pow(2).sum().item() ** 0.5 for image in images) / 3
    assert ops.image_prior(images, tv=0.25, l2=2.0).item() == pytest.approx(0.25 * tv + 2 * l2)
    assert ops.image_prior(images, l2=1.0).item() == pytest.approx(l2)
    assert torch.autograd.gradcheck(lambda x: ops.image_prior(x, 0.3, 0.7), (images,))


def test_image_prior_of_half_precision_is_beyond_its_range() -> None:
    # A norm of 1.2e5 with a coefficient of 1e-4: 12; float16 ends at 65504.
    images = torch.full((1, 3, 40, 40), 1732.0, dtype=torch.float16, requires_grad=True)
    prior = ops.image_prior(images, l2=1e-4)
    assert prior.item() == pytest.approx(1e-4 * 1732 * 4800**0.5, rel=1e-5)
    prior.backward()
    want = torch.full((1, 3, 40, 40), 1e-4 / 4800**0.5)
    assert images.grad is not None
    assert torch.allclose(images.grad.float(), want, rtol=0.02)  # subnormal in float16
    rows = torch.tensor([0.0, 3000.0], dtype=torch.float16).repeat(40)[:, None].expand(80, 80)
    # Three of the four differences are 3000 everywhere: below, lower left, lower right.
    got = ops.image_prior(rows[None, None].contiguous(), tv=1e-3).item()
    want_tv = 1e-3 * 3000 * ((79 * 80) ** 0.5 + 2 * 79)
    assert got == pytest.approx(want_tv, rel=1e-5)


def test_image_prior_skips_what_counts_nothing() -> None:
    # 0 · inf would be NaN: a term that is computed shows.
    images = torch.full((1, 1, 2, 2), torch.inf, requires_grad=True)
    assert ops.image_prior(images).item() == 0.0
    assert not ops.image_prior(images).requires_grad
    assert ops.image_prior(images, l2=1.0).item() == torch.inf
    flat = torch.zeros(2, 1, 3, 3, requires_grad=True)
    ops.image_prior(flat, 1.0, 1.0).backward()
    assert flat.grad is not None
    assert flat.grad.abs().max() == 0.0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, p: ops.crop_flip_roll(x[0], p), ValueError, r"images must have shape"),
        (lambda x, p: ops.crop_flip_roll(x.int(), p), TypeError, "images has dtype"),
        (lambda x, p: ops.crop_flip_roll(x, p.int()), TypeError, "params must be int64"),
        (lambda x, p: ops.crop_flip_roll(x, p[:6]), ValueError, r"params must have shape \(7,\)"),
        (lambda x, p: ops.crop_flip_roll(x, p, 0), ValueError, "out_size"),
        (
            lambda x, p: ops.crop_flip_roll(x, p, (2, 2, 2)),
            ValueError,
            "out_size is one int or two",
        ),
        (lambda x, p: ops.crop_flip_roll(x, p, (2.5, 2)), TypeError, "out_size is one int or two"),
        (lambda x, p: ops.crop_flip_roll(x, p, True), TypeError, "out_size is one int or two"),
        (lambda x, p: ops.crop_flip_roll(x, p, 2.5), TypeError, "out_size is one int or two"),
        (lambda x, p: ops.crop_flip_roll(x, p + 1), ValueError, r"\[1, 1, 5, 5\].*4 x 4"),
        (lambda x, p: ops.crop_flip_roll(x, p * 0), ValueError, "must not be empty"),
        (
            lambda x, p: ops.crop_flip_roll(x, p.to("meta")),
            ValueError,
            "params is on meta, images on cpu",
        ),
        (lambda x, p: ops.clamp_normalized(x, mean=(0,), std=(1,)), ValueError, "1 and 1"),
        (lambda x, p: ops.clamp_normalized(x, mean=MEAN, std=(1, 0, 1)), ValueError, "positive"),
        (
            lambda x, p: ops.clamp_normalized(x, mean=[math.nan] * 3, std=STD),
            ValueError,
            "mean must be finite",
        ),
        (lambda x, p: ops.to_uint8(x.long(), mean=MEAN, std=STD), TypeError, "images"),
        (
            lambda x, p: ops.to_uint8(x, mean=MEAN, std=STD, quantize="floor"),
            ValueError,
            "quantize is 'floor'",
        ),
        (lambda x, p: ops.image_prior(x[0], 1.0), ValueError, "images must have shape"),
        (lambda x, p: ops.image_prior(x, -1.0), ValueError, "tv must not be negative"),
        (lambda x, p: ops.image_prior(x, 0.0, float("nan")), ValueError, "l2"),
    ],
)
def test_errors_name_the_argument(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(torch.zeros(2, 3, 4, 4), torch.tensor([0, 0, 4, 4, 0, 0, 0]))
