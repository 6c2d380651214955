"""``patch_stats`` on every backend, against the resized plane cut into its cells in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pyddfast import ops
from pyddfast.ops import _native
from pyddfast.ops.reference import stats as twin
from tests.ops.test_stats import activation, bound, layouts
from tests.tolerances import FLOAT32, ROUNDING, assert_close

# (batch, channels, height, width), cell: what the resize and the cells differ by.
SHAPES = {
    ((3, 4, 32, 16), 16): "whole cells: nothing is resized",
    ((2, 3, 7, 7), 16): "one cell, more than doubled: every pixel next to every cell's",
    ((2, 5, 14, 28), 16): "a pixel in two cells",
    ((2, 2, 20, 33), 16): "enlarged most: twice, less a pixel",
    ((1, 2, 1, 1), 16): "one pixel: its variance over the channels",
    ((2, 3, 1, 40), 16): "one row",
    ((2, 2, 16, 20), 16): "only one axis is resized",
    ((2, 2, 9, 5), 4): "small cells",
    ((2, 2, 3, 10), 2): "the smallest that resize",
    ((2, 2, 5, 6), 1): "each pixel a cell",
    ((1, 2, 6, 9), 50): "a cell of more pixels than a block has threads",
}


def restated(x: Tensor, cell: int) -> tuple[Tensor, ...]:
    """The official hook of a convolution, cell by cell."""
    height, width = (cell * -(-n // cell) for n in x.shape[2:])
    resized = F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
    parts = [
        resized[:, :, top : top + cell, left : left + cell]
        for top, left in itertools.product(range(0, height, cell), range(0, width, cell))
    ]
    means, variances = ([f(p) for p in parts] for f in (torch.mean, variance))
    of_channels = twin.channel_stats(x)
    return *of_channels, torch.stack(means), torch.stack(variances)


def variance(x: Tensor) -> Tensor:
    return x.var(unbiased=False)


def upstreams(outputs: tuple[Tensor, ...], chosen: tuple[int, ...]) -> list[Tensor]:
    """Gradients that every dtype holds exactly."""
    return [torch.linspace(-1, 2, outputs[k].numel()).half().view(outputs[k].shape) for k in chosen]


def check(x: Tensor, cell: int, chosen: tuple[int, ...] = (0, 1, 2, 3, 4)) -> None:
    x = x.detach().requires_grad_()
    wide = x.detach().cpu().double().requires_grad_()
    outputs, expected = ops.patch_stats(x, cell), restated(wide, cell)
    for got, want in zip(outputs[1:], expected[1:], strict=True):
        assert got.dtype is (torch.float64 if x.dtype is torch.float64 else torch.float32)
        assert_close(got, want, bound(x.dtype))
    assert outputs[0].data_ptr() == x.data_ptr()
    grads = upstreams(expected, chosen)
    (want,) = torch.autograd.grad([expected[k] for k in chosen], wide, [g.double() for g in grads])
    (got,) = torch.autograd.grad(
        [outputs[k] for k in chosen],
        x,
        [g.to(outputs[k]) for k, g in zip(chosen, grads, strict=True)],
    )
    assert got.dtype is x.dtype
    assert_close(got, want, 2 * bound(x.dtype) + ROUNDING[x.dtype])


@pytest.mark.parametrize(("shape", "cell"), SHAPES)
def test_patch_stats(backend, shape, cell):
    check(backend.put(activation(shape)), cell)


def test_dtypes(backend):
    for dtype in backend.dtypes:
        for shape in ((2, 3, 7, 20), (2, 3, 16, 16)):
            check(backend.put(activation(shape), dtype), 16)


@pytest.mark.parametrize("chosen", [(0,), (1,), (3,), (4,), (0, 2), (1, 4), (3, 4)])
def test_some_outputs_alone(backend, chosen):
    check(backend.put(activation((2, 3, 7, 20))), 16, chosen)


@pytest.mark.parametrize("name", list(layouts(torch.zeros(1, 1, 1, 1))))
def test_layouts(backend, name):
    x = backend.put(activation((2, 5, 7, 20)))
    check(layouts(x)[name], 16)


def test_gradients_of_any_layout(backend):
    x = backend.put(activation((2, 3, 7, 20))).requires_grad_()
    view, *_, patch_var = ops.patch_stats(x)
    plain = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)
    kinds = [
        plain,
        plain.to(memory_format=torch.channels_last),
        plain[:1, :1, :1, :1].expand(x.shape),
        plain.transpose(2, 3).contiguous().transpose(2, 3),
    ]
    (alone,) = torch.autograd.grad(patch_var.sum(), x, retain_graph=True)
    for upstream in kinds:
        loss = (view * upstream).sum() + patch_var.sum()
        (got,) = torch.autograd.grad(loss, x, retain_graph=True)
        assert_close(got, alone.double() + upstream.double(), 2 * FLOAT32)


def test_far_from_zero(backend):
    """A mean of 300 standard deviations, whose rounding alone moves a variance by 4e-10."""
    x = activation((4, 6, 14, 20), spread=1.0) + 300
    check(backend.put(x), 16)


def test_non_finite_values_reach_their_cells_alone(backend):
    x = backend.put(activation((2, 3, 32, 32)))
    x[0, 1, 3, 20] = torch.inf  # in the second of four cells, far from the others
    _, mean, var, patch_mean, patch_var = ops.patch_stats(x)
    for value, bad in ((mean, 1), (var, 1), (patch_mean, 1), (patch_var, 1)):
        finite = torch.isfinite(value)
        assert not finite[bad]
        assert int(finite.sum()) == len(value) - 1


def test_bits_repeat_and_the_input_stays(backend):
    x = backend.put(activation((3, 4, 14, 20)))
    before = x.clone()
    first, second = ([*ops.patch_stats(x)] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(x, before)


def test_threads_of_torch_do_not_change_bits():
    x = activation((9, 8, 28, 40)).float().requires_grad_()
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            outputs = ops.patch_stats(x)
            grads = [
                g.to(o) for g, o in zip(upstreams(outputs, (1, 2, 3, 4)), outputs[1:], strict=True)
            ]
            results.append([*outputs[1:], *torch.autograd.grad(outputs[1:], x, grads)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_every_output_is_written(backend):
    """Fresh memory holds NaN here; none may reach a result."""
    x = backend.put(activation((2, 3, 20, 9))).requires_grad_()
    torch.use_deterministic_algorithms(True)  # with it, torch.empty() is filled
    try:
        outputs = ops.patch_stats(x)
        (grad,) = torch.autograd.grad(sum(o.sum() for o in outputs), x)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(bool(torch.isfinite(t).all()) for t in (*outputs, grad))


def squares(x: Tensor) -> Tensor:
    """A scalar that every output goes into."""
    return sum((o**2).sum() for o in ops.patch_stats(x, 3))  # type: ignore[return-value]


def test_derivatives():
    x = activation((2, 2, 4, 3)).requires_grad_()
    assert torch.autograd.gradcheck(squares, (x,))
    assert torch.autograd.gradgradcheck(squares, (x,))


def test_double_backward(backend, monkeypatch):
    def second(x: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(squares(x), x, create_graph=True)
        return torch.autograd.grad((grad**2).sum(), x)[0]

    x = activation((2, 3, 4, 5))
    got = second(backend.put(x).requires_grad_())
    monkeypatch.setattr(_native, "usable", lambda *_: False)
    assert_close(got, second(x.float().double().requires_grad_()), 4 * FLOAT32)


def test_transforms():
    x = activation((3, 4, 4, 4))
    (want,) = torch.autograd.grad(squares(x.requires_grad_()), x)
    x = x.detach()
    assert_close(torch.func.grad(squares)(x), want, 1e-12)
    values = torch.func.vmap(squares)(torch.stack([x, 2 * x]))
    assert_close(values, torch.stack([squares(x), squares(2 * x)]), 1e-12)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with pytest.raises((NotImplementedError, RuntimeError), match=r"(?i)forward|jvp"):
            ops.patch_stats(dual)


def test_compile_and_opcheck():
    torch._dynamo.reset()
    step = torch.compile(squares, fullgraph=True)
    x = activation((2, 4, 5, 6)).float().requires_grad_()
    assert_close(step(x), squares(x), FLOAT32)
    got, want = (torch.autograd.grad(f(x), x)[0] for f in (step, squares))
    assert_close(got, want, FLOAT32)
    raw = torch.ops.pyddfast
    for memory in (torch.contiguous_format, torch.channels_last):
        y = x.detach().to(memory_format=memory)
        *_, kept = outputs = raw.patch_stats(y, 4)
        for op, arguments in (
            (raw.patch_stats, (y, 4)),
            (raw.patch_stats_grad, (y, kept, 4, y, *outputs[:4])),
        ):
            torch.library.opcheck(
                op.default, arguments, test_utils=("test_schema", "test_faketensor")
            )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: ops.patch_stats(x[0]), ValueError, "B, C, H, W"),
        (lambda x: ops.patch_stats(x[:0]), ValueError, r"\(0, 3, 4, 4\); .* without a 0"),
        (lambda x: ops.patch_stats(x.int()), TypeError, "x has dtype torch.int32"),
        (lambda x: ops.patch_stats(x, 0), ValueError, "cell is 0; it must be 1 to 32768"),
        (lambda x: ops.patch_stats(x, 32769), ValueError, "cell is 32769"),
        (lambda x: ops.patch_stats(x, 1.5), TypeError, "cell is an int, not float"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.zeros(2, 3, 4, 4))
