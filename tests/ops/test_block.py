"""``norm_relu_pool`` against torch's own operators in float64, differentiated up to twice."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pyddfast import ops
from pyddfast.ops import _native
from tests.tolerances import FLOAT32, FLOAT64, ROUNDING, assert_close

SHAPES = {
    (3, 7, 8, 8): "the last planes of ConvNet-D3: shorter than a warp's reach; more than 16",
    (1, 3, 16, 16): "the middle ones",
    (2, 3, 32, 32): "the first ones, of whole vectors",
    (2, 4, 2, 2): "one window",
    (1, 3, 7, 5): "odd: the pooling leaves a row and a column out",
    (2, 2, 3, 17): "one row of windows; a vector and an element",
    (2, 2, 9, 6): "rows that are not aligned",
    (1, 2, 64, 66): "a CTA a plane",
}
SWITCHES = list(itertools.product((True, False), (True, False)))  # relu, pool


def composite(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool, pool: bool
) -> Tensor:
    """The official layers: GroupNorm(C, C), ReLU, AvgPool2d(2)."""
    y = F.group_norm(x, x.shape[1], weight, bias, eps)
    y = F.relu(y) if relu else y
    return F.avg_pool2d(y, 2) if pool else y


def randn(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def inputs(shape: tuple[int, ...], pool: bool, offset: float = 0.0) -> list[Tensor]:
    """x, weight and bias; the upstream gradient; cotangents of the three gradients."""
    batch, channels, height, width = shape
    spread = torch.linspace(0.5, 4.0, channels, dtype=torch.float64).view(-1, 1, 1)
    x = randn(*shape, seed=1) * spread + offset * (1 + torch.arange(channels).view(-1, 1, 1))
    small = (height // 2, width // 2) if pool else (height, width)
    vectors = [randn(channels, seed=seed) for seed in (2, 3, 6, 7)]
    fields = [randn(batch, channels, *small, seed=4), randn(*shape, seed=5)]
    return [x, vectors[0], vectors[1], fields[0], fields[1], vectors[2], vectors[3]]


def derivatives(function, tensors: list[Tensor], *options) -> list[Tensor]:
    """y, its gradients to x, weight and bias, and those to upstream gradient, x and weight."""
    x, weight, bias, upstream = (t.detach().requires_grad_() for t in tensors[:4])
    y = function(x, weight, bias, *options)
    first = torch.autograd.grad(y, (x, weight, bias), upstream, create_graph=True)
    second = torch.autograd.grad(first, (upstream, x, weight), tensors[4:])
    return [y, *first, *second]


def ours(x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool, pool: bool) -> Tensor:
    return ops.norm_relu_pool(x, weight, bias, eps=eps, relu=relu, pool=pool)


NAMES = ("y", "grad x", "grad weight", "grad bias", "grad grad", "second x", "second weight")


def check(tensors: list[Tensor], dtype: torch.dtype, *options, slack: float = 1.0) -> None:
    """Everything against float64 on the same values; vectors stay in the arithmetic's type."""
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    given = [t.to(dtype if t.dim() == 4 else wide) for t in tensors]
    want = derivatives(composite, [t.double().cpu() for t in given], *options)
    got = derivatives(ours, given, *options)
    arithmetic = FLOAT64 if dtype is torch.float64 else FLOAT32
    shape = tensors[0].shape
    terms = shape.numel() / shape[1]
    for name, a, b in zip(NAMES, got, want, strict=True):
        assert a.dtype is (dtype if a.dim() == 4 else wide), name
        assert a.is_contiguous()
        bound = slack * (arithmetic + ROUNDING[a.dtype])
        # Subnormals of fp16: half a step of its grid an element.
        absolute = 3e-8 * math.sqrt(b.numel()) if a.dtype is torch.float16 else 0.0
        if a.dim() == 1:  # a sum of so many terms of size 1 and either sign may be near 0
            absolute += arithmetic * math.sqrt(terms)
        elif shape[2:] == (2, 2):  # the mean and the slope that are taken out may be all there is
            absolute += arithmetic * math.sqrt(b.numel())
        assert_close(a, b, bound, name, absolute=absolute)


@pytest.mark.parametrize(("relu", "pool"), SWITCHES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_derivatives(backend, shape, relu: bool, pool: bool) -> None:
    for dtype in backend.dtypes:
        tensors = [t.to(backend.device) for t in inputs(shape, pool)]
        check(tensors, dtype, 1e-5, relu, pool)


@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.5])
def test_eps(backend, eps: float) -> None:
    tensors = [t.to(backend.device) for t in inputs((2, 3, 6, 6), True)]
    check(tensors, torch.float32, eps, True, True)


def test_planes_far_from_zero(backend) -> None:
    """A mean of a thousand standard deviations costs no digits but those x has lost itself."""
    tensors = [t.to(backend.device) for t in inputs((2, 3, 16, 16), True, offset=1000.0)]
    check(tensors, torch.float32, 1e-5, True, True, slack=2.0)


def test_constant_planes_are_their_bias(backend) -> None:
    x = torch.full((2, 3, 4, 4), 7.25, device=backend.device)
    weight, bias = torch.ones(3), torch.tensor([-1.0, 0.0, 2.5])
    y = ops.norm_relu_pool(x, weight.to(x), bias.to(x))
    assert y[:, :, 0, 0].tolist() == [[0.0, 0.0, 2.5]] * 2
    assert torch.equal(y, y[:, :, :1, :1].expand_as(y))


def test_one_pixel_without_pooling(backend) -> None:
    x = torch.randn(1, 2, 1, 1).to(backend.device).requires_grad_()
    y = ops.norm_relu_pool(x, torch.ones(2).to(x), torch.tensor([0.5, -3.0]).to(x), pool=False)
    assert y.flatten().tolist() == [0.5, 0.0]
    assert torch.autograd.grad(y.sum(), x)[0].flatten().tolist() == [0.0, 0.0]


def test_nan_and_infinity_stay_in_their_plane(backend) -> None:
    tensors = [t.to(backend.device).float() for t in inputs((2, 3, 6, 7), True)]
    plain = derivatives(ours, tensors, 1e-5, True, True)
    for value in (float("nan"), float("inf")):
        x = tensors[0].clone()
        x[1, 2, 3, 4] = value
        got = derivatives(ours, [x, *tensors[1:]], 1e-5, True, True)
        for a, b in zip(got, plain, strict=True):
            if a.dim() == 4:
                assert bool(a[1, 2].isnan().any())
                assert torch.equal(a[0], b[0])
                assert torch.equal(a[1, :2], b[1, :2])
            else:
                assert torch.equal(a[:2], b[:2])


def layouts(t: Tensor) -> dict[str, Tensor]:
    """The same values in other memory layouts."""
    padded = torch.full((*t.shape[:2], t.shape[2] + 1, t.shape[3] + 3), float("nan"))
    padded = padded.to(t)
    shifted = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)[1:].view(t.shape)
    return {
        "channels last": t.contiguous(memory_format=torch.channels_last),
        "transposed": t.transpose(2, 3).contiguous().transpose(2, 3),
        "padded": padded[:, :, 1:, 2:-1].copy_(t),
        "misaligned": shifted.copy_(t),
        "channels backwards": t.flip(1).contiguous().flip(1),
        "batch last": t.movedim(0, -1).contiguous().movedim(-1, 0),
        "every second pixel": t.repeat_interleave(2, 3)[..., ::2],
    }


@pytest.mark.parametrize("name", list(layouts(torch.zeros(1, 1, 1, 1))))
def test_layouts_give_the_same_bits(backend, name: str) -> None:
    """Of x, the upstream gradient and the cotangents; vectors every second element."""
    tensors = [t.to(backend.device).float() for t in inputs((2, 3, 9, 8), True)]
    moved = [layouts(t)[name] if t.dim() == 4 else torch.stack([t, t], -1)[:, 0] for t in tensors]
    kept = [t.clone() for t in moved]
    want = derivatives(ours, tensors, 1e-5, True, True)
    got = derivatives(ours, moved, 1e-5, True, True)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(moved, kept, strict=True))


def test_upstream_gradients_of_stride_zero(backend) -> None:
    tensors = [t.to(backend.device).float() for t in inputs((2, 3, 6, 6), True)]
    expanded = [t if i < 3 else t.flatten()[:1].view([1] * t.dim()).expand_as(t)
                for i, t in enumerate(tensors)]  # fmt: skip
    want = derivatives(ours, [t.contiguous() for t in expanded], 1e-5, True, True)
    got = derivatives(ours, expanded, 1e-5, True, True)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_empty_batch(backend) -> None:
    tensors = [t.to(backend.device).float() for t in inputs((0, 3, 6, 6), True)]
    got = derivatives(ours, tensors, 1e-5, True, True)
    for value, like in zip(got, derivatives(composite, tensors, 1e-5, True, True), strict=True):
        assert value.shape == like.shape
        assert not value.any()


@pytest.mark.parametrize("size", [(10, 12), (8, 8), (16, 16)])  # alone; several side by side
def test_a_plane_does_not_depend_on_its_batch(backend, size: tuple[int, int]) -> None:
    tensors = [t.to(backend.device).float() for t in inputs((7, 3, *size), True)]
    part = [t[2:4] if t.dim() == 4 else t for t in tensors]
    whole, alone = (derivatives(ours, t, 1e-5, True, True) for t in (tensors, part))
    for a, b in zip(whole, alone, strict=True):
        assert a.dim() < 4 or torch.equal(a[2:4], b)


def test_vectors_of_other_dtypes(backend) -> None:
    tensors = [t.to(backend.device) for t in inputs((2, 3, 6, 6), True)]
    x, weight, bias, upstream = (t.half().requires_grad_() for t in tensors[:4])
    y = ops.norm_relu_pool(x, weight, bias)
    grads = torch.autograd.grad(y, (x, weight, bias), upstream)
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    want = composite(*exact, 1e-5, True, True)
    expected = torch.autograd.grad(want, exact, upstream.double())
    for a, b in zip((y, *grads), (want, *expected), strict=True):
        assert a.dtype is torch.float16
        assert_close(a, b, FLOAT32 + ROUNDING[torch.float16], absolute=3e-8 * a.numel() ** 0.5)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_gradients_of_some_inputs(backend, wanted: tuple[int, ...]) -> None:
    tensors = [t.to(backend.device).float() for t in inputs((2, 3, 6, 6), True)]
    everything = derivatives(ours, tensors, 1e-5, True, True)[1:4]
    leaves = [t.requires_grad_(i in wanted) for i, t in enumerate(t.clone() for t in tensors[:3])]
    y = ops.norm_relu_pool(*leaves)
    got = torch.autograd.grad(y, [leaves[i] for i in wanted], tensors[3])
    assert all(torch.equal(a, everything[i]) for a, i in zip(got, wanted, strict=True))


@pytest.mark.parametrize("missing", range(3))
def test_cotangents_of_some_gradients(backend, missing: int) -> None:
    """The second derivative where one of the first ones is not used."""
    tensors = [t.to(backend.device) for t in inputs((2, 3, 6, 6), True)]
    results = []
    for function, dtype in ((ours, torch.float32), (composite, torch.float64)):
        x, weight, bias, upstream, *cotangents = (t.to(dtype).requires_grad_() for t in tensors)
        y = function(x, weight, bias, 1e-5, True, True)
        first = torch.autograd.grad(y, (x, weight, bias), upstream, create_graph=True)
        chosen = [i for i in range(3) if i != missing]
        results.append(
            torch.autograd.grad(
                [first[i] for i in chosen],
                (upstream, x, weight),
                [cotangents[i] for i in chosen],
                materialize_grads=True,
            )
        )
    for a, b in zip(*results, strict=True):
        assert_close(a, b, 2 * FLOAT32)


@pytest.mark.parametrize("backend", ["reference", "cpu"], indirect=True)
@pytest.mark.parametrize(("relu", "pool"), SWITCHES)
def test_gradgradcheck(backend, relu: bool, pool: bool) -> None:
    tensors = [t.requires_grad_() for t in inputs((2, 3, 5, 6), pool)[:3]]

    def function(*tensors: Tensor) -> Tensor:
        return ops.norm_relu_pool(*tensors, relu=relu, pool=pool)

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


def test_errors() -> None:
    x, vector = torch.zeros(2, 3, 4, 4), torch.ones(3)
    with pytest.raises(ValueError, match=r"x must have shape \(N, C, H, W\), got \(3, 4, 4\)"):
        ops.norm_relu_pool(x[0], vector, vector)
    with pytest.raises(ValueError, match=r"x must have shape .* got \(2, 3, 0, 4\)"):
        ops.norm_relu_pool(x[:, :, :0], vector, vector)
    with pytest.raises(ValueError, match="planes of 4 x 1; pooling needs 2 x 2"):
        ops.norm_relu_pool(x[..., :1], vector, vector)
    with pytest.raises(ValueError, match=r"bias has shape \(2,\); one number a channel of x is"):
        ops.norm_relu_pool(x, vector, vector[:2])
    with pytest.raises(ValueError, match=r"weight is on meta, x on cpu"):
        ops.norm_relu_pool(x, vector.to("meta"), vector)
    with pytest.raises(ValueError, match=r"eps is -1\.0; it must be 0 or above"):
        ops.norm_relu_pool(x, vector, vector, eps=-1)
    with pytest.raises(TypeError, match=r"eps is a Python number, not Tensor"):
        ops.norm_relu_pool(x, vector, vector, eps=torch.tensor(1e-5))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"x has dtype torch\.int64"):
        ops.norm_relu_pool(x.long(), vector, vector)
    with pytest.raises(TypeError, match=r"weight is a torch\.Tensor, not NoneType"):
        ops.norm_relu_pool(x, None, vector)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["cpu", "simt"], indirect=True)
def test_a_third_derivative_raises(backend) -> None:
    x, weight, bias, upstream = (t.float().requires_grad_() for t in inputs((1, 2, 4, 4), True)[:4])
    y = ops.norm_relu_pool(x, weight, bias)
    (first,) = torch.autograd.grad(y, x, upstream, create_graph=True)
    with pytest.raises(NotImplementedError, match="norm_relu_pool has no third derivative"):
        torch.autograd.grad(first.square().sum(), x, create_graph=True)


def test_forward_mode_raises() -> None:
    x, weight, bias = (t.float() for t in inputs((1, 2, 4, 4), True)[:3])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with pytest.raises(NotImplementedError):
            ops.norm_relu_pool(dual, weight, bias)


def test_transforms_of_torch_func() -> None:
    x, weight, bias, *_ = (t.float() for t in inputs((3, 2, 6, 6), True))

    def loss(function, *tensors: Tensor) -> Tensor:
        return function(*tensors, 1e-5, True, True).square().sum()

    args = (0, 1, 2)
    got = torch.func.grad(lambda *t: loss(ours, *t), args)(x, weight, bias)
    exact = [t.double() for t in (x, weight, bias)]
    want = torch.func.grad(lambda *t: loss(composite, *t), args)(*exact)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 2 * FLOAT32)
    rows = torch.func.vmap(torch.func.grad(lambda r: loss(ours, r[None], weight, bias)))(x)
    assert_close(rows, want[0], 2 * FLOAT32)
    y, pullback = torch.func.vjp(lambda *t: ours(*t, 1e-5, True, True), x, weight, bias)
    for a, b in zip(pullback(2 * y), want, strict=True):
        assert_close(a, b, 2 * FLOAT32)


def test_compile() -> None:
    torch._dynamo.reset()
    tensors = [t.float() for t in inputs((2, 3, 6, 7), True)]
    x, weight, bias = (t.requires_grad_() for t in tensors[:3])
    upstream = tensors[3]
    step = torch.compile(lambda *t: ops.norm_relu_pool(*t) * 2, fullgraph=True)
    y = step(x, weight, bias)
    assert torch.equal(y, ops.norm_relu_pool(x, weight, bias) * 2)
    got = torch.autograd.grad(y, (x, weight, bias), upstream)
    want = torch.autograd.grad(ops.norm_relu_pool(x, weight, bias), (x, weight, bias), 2 * upstream)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    loss = step(x, weight, bias).sum()
    # Torch's words, of either way in which it refuses.
    with pytest.raises(RuntimeError, match=r"double backward|create_graph=False"):
        torch.autograd.grad(loss, x, create_graph=True)[0].square().sum().backward()


def test_opcheck() -> None:
    tensors = [t.float() for t in inputs((2, 3, 5, 6), True)]
    x, weight, bias, upstream, *cotangents = tensors
    _, stats = _native.raw.norm_relu_pool(x, weight, bias, 1e-5, True, True)
    calls = {
        "norm_relu_pool": (x.half(), weight, bias, 1e-5, True, True),
        "norm_relu_pool_grad": (upstream, x, weight, bias, stats, True, True),
        "norm_relu_pool_double_grad": (
            *cotangents,
            *(upstream, x, weight, bias, stats, True, True),
        ),
    }
    for name, arguments in calls.items():
        result = torch.library.opcheck(getattr(_native.raw, name), arguments)
        assert set(result.values()) == {"SUCCESS"}


def test_threads_do_not_change_bits() -> None:
    tensors = [t.float() for t in inputs((9, 5, 32, 32), True)]
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(derivatives(ours, tensors, 1e-5, True, True))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_calls_from_many_threads() -> None:
    tensors = [t.float() for t in inputs((3, 5, 9, 11), True)]
    expected = derivatives(ours, tensors, 1e-5, True, True)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(derivatives, ours, tensors, 1e-5, True, True) for _ in range(32)]
    for future in futures:
        assert all(torch.equal(a, b) for a, b in zip(future.result(), expected, strict=True))


def test_every_output_is_written(backend) -> None:
    """Fresh memory holds NaN here; none may reach a result."""
    tensors = [t.to(backend.device).float() for t in inputs((2, 3, 7, 9), True)]
    torch.use_deterministic_algorithms(True)  # with it, torch.empty() is filled
    try:
        got = derivatives(ours, tensors, 1e-5, True, True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(bool(t.isfinite().all()) for t in got)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_of_the_cpu_keeps_the_dtype(dtype: torch.dtype) -> None:
    """As ``F.group_norm``."""
    x, weight, bias = (t.float() for t in inputs((2, 3, 6, 6), True)[:3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ops.norm_relu_pool(x.to(dtype), weight, bias)
        assert got.dtype is composite(x.to(dtype), weight, bias, 1e-5, True, True).dtype
    assert torch.equal(got, ops.norm_relu_pool(x.to(dtype), weight, bias))


def saved_tensors(function, *options) -> list[int]:
    """Bytes of what is kept for a double backward, each memory once."""
    x, weight, bias, upstream = (
        t.float().requires_grad_() for t in inputs((4, 8, 16, 16), True)[:4]
    )
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = function(x, weight, bias, *options)
        grads = torch.autograd.grad(y, (x, weight, bias), upstream, create_graph=True)
    assert all(g.requires_grad for g in grads)
    return sorted(kept.values(), reverse=True)


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_what_is_kept_for_two_derivatives(backend) -> None:
    planes, elements, results = 4 * 8, 4 * 8 * 256, 4 * 8 * 64
    vectors = [4 * 8] * 2  # weight, bias
    expected = [4 * elements, 4 * results, 4 * 3 * planes, *vectors]
    assert saved_tensors(ours, 1e-5, True, True) == expected
    assert sum(saved_tensors(composite, 1e-5, True, True)) > 2 * sum(expected)
