"""The stats family against float64, and against the official SRe2L hook's formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pyddfast import ops
from pyddfast.ops import _native
from pyddfast.ops.reference import stats as twin
from tests.tolerances import FLOAT32, FLOAT64, ROUNDING, assert_close

SHAPES = {
    (4, 3, 5, 7): "odd planes, shorter than a vector's multiple",
    (2, 16, 32, 32): "CIFAR; whole vectors",
    (5, 70, 7, 7): "the last stage at 224 px: 49 positions; more channels than a tile has",
    (3, 4, 2, 2): "planes shorter than a vector",
    (2, 2, 96, 100): "a plane of more than one CUDA tile",
    (6, 20): "no positions",
    (3, 8, 11): "one dimension of positions",
    (2, 3, 4, 5, 6): "three",
    (1, 1, 1, 1): "a single element: variance 0",
}


def activation(shape: tuple[int, ...], seed: int = 0, spread: float = 2.0) -> Tensor:
    """Channels of different means, some far from 0."""
    generator = torch.Generator().manual_seed(seed)
    x = spread * torch.randn(shape, generator=generator, dtype=torch.float64)
    return x + 3 * torch.arange(shape[1], dtype=torch.float64).view(-1, *[1] * (len(shape) - 2))


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same values in memory layouts that are read in place, and in some that are not."""
    wide = torch.full((x.shape[0], x.shape[1] + 3, *x.shape[2:]), float("nan"), dtype=x.dtype)
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:].view(x.shape)
    sliced = wide.to(x.device)[:, 2:-1]
    every_second = x.repeat_interleave(2, -1)[..., ::2]
    return {
        "channels sliced": sliced.copy_(x),
        "misaligned base": shifted.copy_(x),
        "every second position": every_second,
        "batch last": x.movedim(0, -1).contiguous().movedim(-1, 0),
        "channels last": x.movedim(1, -1).contiguous().movedim(-1, 1),
    }


def bound(dtype: torch.dtype) -> float:
    return FLOAT64 if dtype is torch.float64 else FLOAT32


def check(x: Tensor, shift: Tensor | None = None) -> tuple[Tensor, ...]:
    """All outputs and the gradient against the twin; returns what was computed."""
    x = x.detach().requires_grad_()
    view, mean, var = ops.channel_stats(x, shift)
    assert torch.equal(view, x)
    assert view.data_ptr() == x.data_ptr()
    wide = x.detach().cpu().double().requires_grad_()
    expected = twin.channel_stats(wide)
    generator = torch.Generator().manual_seed(1)
    upstreams = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in expected]
    # The view's gradient has x's dtype: both sides get the rounded one.
    upstreams[0] = upstreams[0].to(x.dtype).double()
    for got, want, name in zip((mean, var), expected[1:], ("mean", "var"), strict=True):
        assert got.dtype is (torch.float64 if x.dtype is torch.float64 else torch.float32)
        assert_close(got, want, bound(x.dtype), name)
    outputs = (view, mean, var)
    given = [u.to(o.device, o.dtype) for u, o in zip(upstreams, outputs, strict=True)]
    (grad,) = torch.autograd.grad(outputs, x, given)
    (want_grad,) = torch.autograd.grad(expected, wide, [u.cpu().double() for u in given])
    assert grad.dtype is x.dtype
    assert_close(grad, want_grad, bound(x.dtype) + ROUNDING[x.dtype], "gradient")
    return mean, var, grad


@pytest.mark.parametrize("shape", SHAPES)
def test_channel_stats(backend, shape):
    x = backend.put(activation(shape))
    check(x)
    check(x, backend.put(x.float().mean([d for d in range(x.dim()) if d != 1]) + 0.5))


def test_dtypes(backend):
    for dtype in backend.dtypes:
        for shape in ((3, 5, 6, 6), (4, 8, 9, 3)):
            check(backend.put(activation(shape), dtype))
            check(backend.put(activation(shape), dtype).to(memory_format=torch.channels_last))


@pytest.mark.parametrize("name", list(layouts(torch.zeros(1, 1, 1, 1))))
@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (2, 68, 3, 3)])  # whole vectors, and not
def test_layouts(backend, name, shape):
    x = backend.put(activation(shape))
    other = layouts(x)[name]
    assert torch.equal(other, x)
    plain, moved = check(x), check(other)
    # Others sum in another order: channels last, and CUDA's vectors where the base is misaligned.
    reordered = name == "channels last" or (
        name == "misaligned base" and str(backend) in ("simt", "cuda")
    )
    if not reordered:
        for a, b in zip(plain, moved, strict=True):
            assert torch.equal(a, b)


def test_gradient_keeps_the_layout(backend):
    x = backend.put(activation((2, 8, 4, 4))).to(memory_format=torch.channels_last).requires_grad_()
    view, mean, _ = ops.channel_stats(x)
    (grad,) = torch.autograd.grad([view, mean], x, [torch.ones_like(view), torch.ones_like(mean)])
    assert grad.stride() == x.stride()
    assert_close(grad, torch.ones_like(x) * (1 + 1 / 32), FLOAT32)
    # An upstream gradient of another layout, such as the expanded one of a sum.
    loss = sum(t.sum() for t in ops.channel_stats(x))
    (grad,) = torch.autograd.grad(loss, x)
    wide = x.detach().double().requires_grad_()
    want = torch.autograd.grad(sum(t.sum() for t in twin.channel_stats(wide)), wide)[0]
    assert_close(grad, want, FLOAT32)


@pytest.mark.parametrize("chosen", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_each_output_alone(backend, chosen):
    x = backend.put(activation((3, 4, 5, 5))).requires_grad_()
    wide = x.detach().cpu().double().requires_grad_()
    got = sum((ops.channel_stats(x)[i] ** 2).sum() for i in chosen)
    want = sum((twin.channel_stats(wide)[i] ** 2).sum() for i in chosen)
    (grad,) = torch.autograd.grad(got, x)
    (want_grad,) = torch.autograd.grad(want, wide)
    assert_close(grad, want_grad, FLOAT32)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("guess", [None, "running_mean", "zero"])
def test_variance_far_from_zero(backend, layout, guess):
    """At mean / sigma = 300 the variance is good to 1e-5, whatever the shift."""
    generator = torch.Generator().manual_seed(3)
    x = (300 + torch.randn(4, 6, 28, 28, generator=generator)).to(memory_format=layout)
    shift = {None: None, "running_mean": torch.full((6,), 300.5), "zero": torch.zeros(6)}[guess]
    _, _, var = ops.channel_stats(backend.put(x), None if shift is None else backend.put(shift))
    relative = (var.double().cpu() / x.double().var([0, 2, 3], unbiased=False) - 1).abs().max()
    assert relative <= 1e-5


def test_empty_batch(backend):
    x = backend.put(torch.empty(0, 3, 4, 4)).requires_grad_()
    view, mean, var = ops.channel_stats(x)
    assert torch.isnan(mean).all()
    assert torch.isnan(var).all()
    (grad,) = torch.autograd.grad([view, mean], x, [torch.ones_like(view), torch.ones_like(mean)])
    assert grad.shape == x.shape


def test_non_finite_values_stay_in_their_channel(backend):
    x = activation((2, 3, 4, 4))
    x[1, 1, 2, 2] = float("nan")
    x[0, 2, 0, 0] = float("inf")
    _, mean, var = ops.channel_stats(backend.put(x))
    assert torch.isfinite(mean).tolist() == [True, False, False]
    assert torch.isnan(var).tolist() == [False, True, True]


def test_bits_repeat_and_inputs_stay(backend):
    x = backend.put(activation((5, 9, 14, 14)))
    copy = x.clone()
    first, second = check(x), check(x)
    assert torch.equal(x, copy)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_threads_of_torch_do_not_change_bits(layout):
    x = activation((16, 24, 56, 56)).float().to(memory_format=layout)  # several pieces a channel
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(check(x))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_every_output_is_written(backend):
    x = backend.put(activation((3, 5, 7, 7))).requires_grad_()
    torch.use_deterministic_algorithms(True)  # with it, torch.empty() is filled with NaN
    try:
        check(x)
        check(x.detach().to(memory_format=torch.channels_last))
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_changed_input_is_noticed():
    x = activation((2, 3, 4, 4)).float().requires_grad_()
    y = x * 1
    _, mean, _ = ops.channel_stats(y)
    with torch.no_grad():
        y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        mean.sum().backward()


def test_nothing_but_x_is_saved():
    x = activation((4, 8, 16, 16)).float().requires_grad_()
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        ops.channel_stats(x)
    large = [t for t in saved if t.numel() > 8]
    assert [t.data_ptr() for t in large] == [x.data_ptr()]


# --- bn_eval_stats -----------------------------------------------------------------------------


def norm_of(channels: int) -> dict[str, Tensor]:
    """Running statistics near those of `activation`; weights of both signs."""
    c = torch.arange(channels, dtype=torch.float64)
    return {
        "running_mean": 3 * c + torch.sin(c),
        "running_var": 1.5 + torch.cos(3 * c),
        "weight": torch.sin(5 * c + 1),
        "bias": 2 + 2 * torch.cos(7 * c),
    }


def check_norm(x: Tensor, chosen: str, names: tuple[str, ...]) -> tuple[Tensor, ...]:
    channels = x.shape[1]
    norm = {k: v.to(x) for k, v in norm_of(channels).items() if k in names}
    if x.dtype in (torch.float16, torch.bfloat16):
        norm = {k: v.float() for k, v in norm.items()}
    x = x.detach().requires_grad_()
    outputs = ops.bn_eval_stats(x, **norm, eps=1e-3, activation=chosen)
    wide = x.detach().cpu().double().requires_grad_()
    # torch's own operators, in float64
    args = {k: v.cpu().double() for k, v in norm.items()}
    y = F.batch_norm(
        wide,
        args["running_mean"],
        args["running_var"],
        args.get("weight"),
        args.get("bias"),
        False,
        0.0,
        1e-3,
    )
    y = {"none": lambda t: t, "relu": F.relu, "relu6": F.relu6}[chosen](y)
    dims = [d for d in range(x.dim()) if d != 1]
    expected = (y, wide.mean(dims), wide.var(dims, unbiased=False))
    assert_close(outputs[0], y, bound(x.dtype) + ROUNDING[x.dtype], "y")
    assert outputs[0].dtype is x.dtype
    for got, want in zip(outputs[1:], expected[1:], strict=True):
        assert_close(got, want, bound(x.dtype))
    generator = torch.Generator().manual_seed(1)
    pairs = list(zip(expected, outputs, strict=True))
    given = [torch.randn(t.shape, generator=generator).to(o) for t, o in pairs]
    (grad,) = torch.autograd.grad(outputs, x, given)
    (want,) = torch.autograd.grad(expected, wide, [g.cpu().double() for g in given])
    # A float32 y may fall on the other side of a bound of the activation: none does here.
    assert_close(grad, want, bound(x.dtype) + ROUNDING[x.dtype], "gradient")
    return *outputs, grad


@pytest.mark.parametrize("chosen", ["none", "relu", "relu6"])
@pytest.mark.parametrize(
    "shape", [(4, 3, 5, 7), (2, 16, 8, 8), (3, 68, 7, 7), (2, 2, 96, 100), (6, 20), (3, 8, 11)]
)
def test_bn_eval_stats(backend, chosen, shape):
    names = ("running_mean", "running_var", "weight", "bias")
    x = backend.put(activation(shape))
    check_norm(x, chosen, names)
    if x.dim() == 4:
        check_norm(x.to(memory_format=torch.channels_last), chosen, names)
    check_norm(x, chosen, names[:2])


def test_bn_eval_stats_dtypes(backend):
    names = ("running_mean", "running_var", "weight", "bias")
    for dtype in backend.dtypes:
        x = backend.put(activation((3, 5, 6, 6)), dtype)
        check_norm(x, "none", names)
        check_norm(x.to(memory_format=torch.channels_last), "none", names)


def test_bn_eval_stats_of_a_strange_layout(backend):
    names = ("running_mean", "running_var", "weight", "bias")
    x = backend.put(activation((3, 5, 4, 6)))
    for other in layouts(x).values():
        plain, moved = check_norm(x, "relu", names), check_norm(other, "relu", names)
        for a, b in zip(plain, moved, strict=True):
            assert_close(a, b, FLOAT32)


def test_activation_slope_at_its_bounds(backend):
    """torch takes 0 for the derivative at exactly 0 and 6."""
    x = backend.put(torch.tensor([[-1.0], [0.0], [3.0], [6.0], [7.0]])).requires_grad_()
    zero, one = backend.put(torch.zeros(1)), backend.put(torch.ones(1))
    for chosen, slope in (("relu", [0, 0, 1, 1, 1]), ("relu6", [0, 0, 1, 0, 0])):
        y, _, _ = ops.bn_eval_stats(x, zero, one, eps=0.0, activation=chosen)
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert grad.flatten().tolist() == slope


def test_trained_parameters_have_gradients(backend):
    x = backend.put(activation((3, 4, 5, 5))).requires_grad_()
    norm = {k: backend.put(v) for k, v in norm_of(4).items()}
    norm["weight"].requires_grad_()
    norm["bias"].requires_grad_()
    y, mean, var = ops.bn_eval_stats(x, **norm, activation="relu")
    loss = (y**2).sum() + mean.sum() + (var**2).sum()
    inputs = (x, norm["weight"], norm["bias"])
    grads = torch.autograd.grad(loss, inputs)
    wide = [t.detach().cpu().double().requires_grad_() for t in inputs]
    y = F.batch_norm(
        wide[0],
        norm["running_mean"].cpu().double(),
        norm["running_var"].cpu().double(),
        wide[1],
        wide[2],
    ).relu()
    var = wide[0].var([0, 2, 3], unbiased=False)
    want = torch.autograd.grad((y**2).sum() + wide[0].mean([0, 2, 3]).sum() + (var**2).sum(), wide)
    for a, b in zip(grads, want, strict=True):
        assert_close(a, b, 2 * FLOAT32)


# --- bn_distance -------------------------------------------------------------------------------

SIZES = [3, 64, 1, 200]


def packed(targets: int = 1, seed: int = 0) -> list[Tensor]:
    """mean, var and their targets; the second layer's means are on target."""
    generator = torch.Generator().manual_seed(seed)
    channels = sum(SIZES)
    values = [torch.randn(channels, generator=generator, dtype=torch.float64) for _ in range(2)]
    values += [
        torch.randn(targets, channels, generator=generator, dtype=torch.float64) for _ in range(2)
    ]
    values[2][0, 3:67] = values[0][3:67]
    return values


def distances(
    mean: Tensor,
    var: Tensor,
    target_mean: Tensor,
    target_var: Tensor,
    target_weight: list[float],
    var_weight: float,
    squared: bool,
) -> list[Tensor]:
    """The layers' distances as the codebases write them."""
    power = 2 if squared else 1
    results = []
    start = 0
    for size in SIZES:
        part = slice(start, start + size)
        start += size
        r = mean.new_zeros(())
        for u, tm, tv in zip(target_weight, target_mean, target_var, strict=True):
            r = r + u * var_weight * torch.norm(tv[part] - var[part], 2) ** power
            r = r + u * torch.norm(tm[part] - mean[part], 2) ** power
        results.append(r)
    return results


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("target_weight", [[1.0], [0.5, 0.5], [0.2, 0.3, 0.1, 0.7]])
def test_bn_distance(backend, squared, target_weight):
    for dtype in (torch.float32, torch.float64):
        if dtype not in backend.dtypes:
            continue
        tensors = [backend.put(t, dtype).requires_grad_() for t in packed(len(target_weight))]
        weights = [10.0, 1.0, 0.3, 2.0]
        loss, per_layer = ops.bn_distance(
            *tensors,
            SIZES,
            layer_weight=weights,
            target_weight=target_weight,
            var_weight=2.0,
            squared=squared,
        )
        wide = [t.detach().cpu().double().requires_grad_() for t in tensors]
        want = distances(*wide, target_weight, 2.0, squared)
        want_loss = sum(w * r for w, r in zip(weights, want, strict=True))
        assert_close(per_layer, torch.stack(want), bound(dtype))
        assert_close(loss, want_loss, bound(dtype))
        upstream = torch.tensor([0.3, -1.0, 2.0, 0.1], dtype=torch.float64)
        grads = torch.autograd.grad(
            [loss, per_layer], tensors, [torch.full_like(loss, 0.7), upstream.to(per_layer)]
        )
        total = 0.7 * want_loss + (upstream * torch.stack(want)).sum()
        for got, exact in zip(grads, torch.autograd.grad(total, wide), strict=True):
            assert_close(got, exact, bound(dtype), "gradient")


def test_a_zero_norm_has_no_gradient(backend):
    tensors = [backend.put(t).requires_grad_() for t in packed()]
    with torch.no_grad():
        tensors[3].copy_(tensors[1][None])
    loss, per_layer = ops.bn_distance(*tensors, SIZES)
    grads = torch.autograd.grad(loss, tensors)
    assert per_layer[1] == 0
    assert (grads[0][3:67] == 0).all()
    assert (grads[1] == 0).all()
    assert (grads[0][:3] != 0).all()


def test_straight_through(backend):
    """G-VBSM: the value of the running average, the gradient of the current statistics."""
    mean, var, target_mean, target_var = (backend.put(t) for t in packed())
    at = (0.4 * mean, 0.6 * var + 0.1)
    inputs = [mean.requires_grad_(), var.requires_grad_()]
    loss, per_layer = ops.bn_distance(*inputs, target_mean, target_var, SIZES, at=at)
    wide = [t.detach().cpu().double().requires_grad_() for t in inputs]
    values = [a.detach().cpu().double() + x - x.detach() for a, x in zip(at, wide, strict=True)]
    targets = target_mean.cpu().double(), target_var.cpu().double()
    want = distances(*values, *targets, [1.0], 1.0, False)
    assert_close(per_layer, torch.stack(want), FLOAT32)
    grads = torch.autograd.grad(loss, inputs)
    for got, exact in zip(grads, torch.autograd.grad(sum(want), wide), strict=True):
        assert_close(got, exact, FLOAT32)


def test_class_targets(backend):
    table = backend.put(torch.randn(7, 11, dtype=torch.float64))
    labels = torch.tensor([3, 3, 6, 0], device=table.device)
    want = (2 * table[3] + table[6] + table[0]).double() / 4
    assert_close(ops.class_targets(table, labels), want, FLOAT32)


def test_class_targets_of_many_large_rows(backend):
    # One after the other in float32 they would be off by 4e-5.
    gen = torch.Generator().manual_seed(5)
    table = 1e4 + torch.rand(10, 64, generator=gen)
    labels = torch.randint(0, 10, (4000,), generator=gen)
    got = ops.class_targets(backend.put(table.double()).float(), labels.to(backend.device))
    assert_close(got, table.double()[labels].mean(0), FLOAT32)


def test_the_official_hook(backend):
    """SRe2L's BNFeatureHook (recover/utils.py), restated in float64: value and gradient."""
    for dtype in {torch.float64, torch.float32} & set(backend.dtypes):
        check_official_hook(backend, dtype)


def check_official_hook(backend, dtype):
    xs = [activation(shape, seed) for seed, shape in enumerate([(4, 3, 9, 9), (4, 8, 5, 5)])]
    running = [norm_of(x.shape[1]) for x in xs]

    wide = [x.to(dtype).double().requires_grad_() for x in xs]
    official = wide[0].new_zeros(())
    for i, (x, bn) in enumerate(zip(wide, running, strict=True)):
        mean = x.mean([0, 2, 3])
        var = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)
        rv, rm = (bn[k].to(dtype).double() for k in ("running_var", "running_mean"))
        feature = torch.norm(rv - var, 2) + torch.norm(rm - mean, 2)
        official = official + feature * (10.0 if i == 0 else 1.0)
    want = torch.autograd.grad(official, wide)

    ours = [backend.put(x, dtype).requires_grad_() for x in xs]
    shifts = [backend.put(bn["running_mean"], dtype) for bn in running]
    stats = [ops.channel_stats(x, shift) for x, shift in zip(ours, shifts, strict=True)]
    loss, _ = ops.bn_distance(
        torch.cat([mean for _, mean, _ in stats]),
        torch.cat([var for _, _, var in stats]),
        torch.cat(shifts),
        torch.cat([backend.put(bn["running_var"], dtype) for bn in running]),
        [3, 8],
        layer_weight=[10.0, 1.0],
    )
    allowed = 1e-10 if dtype is torch.float64 else FLOAT32
    assert_close(loss, official, allowed)
    for got, exact in zip(torch.autograd.grad(loss, ours), want, strict=True):
        assert_close(got, exact, allowed)


# --- derivatives of any order, transforms, compilation -------------------------------------------


def all_ops(x: Tensor) -> Tensor:
    """A scalar that every output of every op of the family goes into."""
    norm = {k: v.to(x) for k, v in norm_of(x.shape[1]).items()}
    view, mean, var = ops.channel_stats(x, norm["running_mean"])
    y, mean2, var2 = ops.bn_eval_stats(view * 1.5, **norm, activation="relu6")
    loss, per_layer = ops.bn_distance(
        torch.cat([mean, mean2]),
        torch.cat([var, var2]),
        torch.cat([norm["running_mean"], norm["weight"]]),
        torch.cat([norm["running_var"], norm["bias"]]),
        [x.shape[1], x.shape[1]],
        layer_weight=[10.0, 1.0],
        var_weight=2.0,
    )
    return loss + (per_layer**2).sum() + (y**2).sum()


def test_gradcheck():
    x = activation((2, 3, 2, 2)).requires_grad_()
    assert torch.autograd.gradcheck(all_ops, (x,))
    assert torch.autograd.gradgradcheck(all_ops, (x,))
    assert torch.autograd.gradgradcheck(lambda t: ops.channel_stats(t), (x,))
    last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    assert torch.autograd.gradcheck(all_ops, (last,))


def test_double_backward(backend, monkeypatch):
    def second(x: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(all_ops(x), x, create_graph=True)
        return torch.autograd.grad((grad**2).sum(), x)[0]

    x = activation((2, 3, 4, 4))
    got = second(backend.put(x).requires_grad_())
    monkeypatch.setattr(_native, "usable", lambda *_: False)
    assert_close(got, second(x.float().double().requires_grad_()), 4 * FLOAT32)


def test_torch_func():
    x = activation((3, 4, 4, 4))
    want = torch.autograd.grad(all_ops(x.requires_grad_()), x)[0]
    x = x.detach()
    assert_close(torch.func.grad(all_ops)(x), want, 1e-12)
    stacked = torch.stack([x, 2 * x])
    values = torch.func.vmap(all_ops)(stacked)
    for value, one in zip(values, stacked, strict=True):
        assert_close(value, all_ops(one), 1e-12)


CALLS = {
    "channel_stats": lambda x, mean, var: ops.channel_stats(x, mean)[1],
    "bn_eval_stats": lambda x, mean, var: ops.bn_eval_stats(x, mean, var)[0],
    "bn_distance": lambda x, mean, var: ops.bn_distance(x[:, 0], x[:, 1], mean, var, [4])[0],
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("requires_grad", [True, False])
def test_forward_mode_raises(call, requires_grad):
    x = activation((4, 4)).float().requires_grad_(requires_grad)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises((NotImplementedError, RuntimeError), match=r"(?i)forward|jvp"):
            call(dual, torch.zeros(4), torch.ones(4))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_targets_made_in_inference_mode(call):
    x = activation((4, 4)).float().requires_grad_()
    with torch.inference_mode():
        inferred = torch.zeros(4), torch.ones(4)
    grads = []
    for targets in ((torch.zeros(4), torch.ones(4)), inferred):
        grads += torch.autograd.grad(call(x, *targets).sum(), x)
    assert torch.equal(*grads)


def test_compile():
    torch._dynamo.reset()
    step = torch.compile(all_ops, fullgraph=True)
    x = activation((2, 4, 6, 6)).float().requires_grad_()
    loss = step(x)
    assert_close(loss, all_ops(x), FLOAT32)
    assert_close(torch.autograd.grad(loss, x)[0], torch.autograd.grad(all_ops(x), x)[0], FLOAT32)


def test_opcheck():
    x = activation((2, 4, 6, 6)).float().to(memory_format=torch.channels_last)
    raw = torch.ops.pyddfast
    mean, var, _ = raw.channel_stats(x, None)
    norm = [v.float() for v in norm_of(4).values()]
    stats = [torch.rand(4) for _ in range(2)] + [torch.rand(2, 4) for _ in range(2)]
    options = [[1, 3], [1.0, 2.0], [0.5, 0.5], 1.0, False]
    norms = raw.bn_distance(*stats, *options)[2]
    tests = ("test_schema", "test_faketensor")
    for op, arguments in (
        (raw.channel_stats, (x, None)),
        (raw.channel_stats_grad, (x, mean, x, mean, var)),
        (raw.bn_eval_stats, (x, *norm, 1e-5, 1)),
        (raw.bn_eval_stats_grad, (x, mean, *norm, x, mean, var, 1e-5, 1)),
        (raw.bn_distance, (*stats, *options)),
        (raw.bn_distance_grad, (torch.tensor(1.0), None, *stats, norms, *options, True)),
        (raw.bn_distance_grad, (None, torch.rand(2), *stats, norms, *options, False)),
    ):
        torch.library.opcheck(op.default, arguments, test_utils=tests)


# --- errors ------------------------------------------------------------------------------------

X = torch.zeros(2, 3, 4, 4)
C = torch.zeros(3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.channel_stats([1.0]), TypeError, "x is a torch.Tensor, not list"),
        (lambda: ops.channel_stats(X.int()), TypeError, "x has dtype torch.int32"),
        (lambda: ops.channel_stats(C), ValueError, r"x has shape \(3,\); \(B, C, ...\)"),
        (lambda: ops.channel_stats(X, X[0]), ValueError, r"shift has shape \(3, 4, 4\)"),
        (lambda: ops.channel_stats(X, torch.zeros(4)), ValueError, r"shift .*one value.*\(3,\)"),
        (
            lambda: ops.channel_stats(X, C.clone().requires_grad_()),
            ValueError,
            "shift requires grad; it is a constant here",
        ),
        (
            lambda: ops.bn_eval_stats(X, C, C, activation="gelu"),
            ValueError,
            "activation is 'gelu'; allowed are none, relu, relu6",
        ),
        (lambda: ops.bn_eval_stats(X, C, C, eps=-1.0), ValueError, "eps is -1.0"),
        (lambda: ops.bn_eval_stats(X, None, C), TypeError, "running_mean is a torch.Tensor"),
        (lambda: ops.bn_eval_stats(X, C, C[:2]), ValueError, r"running_var has shape \(2,\)"),
        (lambda: ops.bn_distance(C, C, C, C, [1, 1]), ValueError, "2 layers with 2 channels"),
        (lambda: ops.bn_distance(C, C, C, C, [4, -1]), ValueError, "sizes are numbers"),
        (
            lambda: ops.bn_distance(*[torch.zeros(300)] * 4, [1] * 300),
            ValueError,
            "1 to 256 layers",
        ),
        (lambda: ops.bn_distance(C, C, C, C[:2]), ValueError, r"target_var has shape \(2,\)"),
        (lambda: ops.bn_distance(C, C, C, C.double()), TypeError, "target_var has dtype"),
        (lambda: ops.bn_distance(C, C, C.expand(5, 3), C.expand(5, 3)), ValueError, "5 targets"),
        (
            lambda: ops.bn_distance(C, C, C, C, layer_weight=[1.0, 2.0]),
            ValueError,
            "layer_weight has 2 numbers; 1 are needed",
        ),
        (
            lambda: ops.class_targets(X[0, 0], torch.tensor([4])),
            ValueError,
            "labels run from 4 to 4; allowed are 0 to 3",
        ),
        (lambda: ops.class_targets(X[0, 0], C), TypeError, "labels has dtype"),
        (
            lambda: ops.class_targets(X[0, 0].half(), torch.tensor([0])),
            TypeError,
            r"table has dtype torch\.float16; allowed are float32, float64",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
