"""The matching distances against restatements of the official expressions, in float64."""

from __future__ import annotations

import copy

import pytest
import torch

from pyddfast import ops
from pyddfast.ops import _native
from tests.tolerances import FLOAT32, FLOAT64, assert_close

METRICS = ("ours", "mse", "cos")
# The gradients of a small ConvNet: 4-d, 1-d, 1-d, 2-d, and a 3-d and a 0-d tensor beside them.
SHAPES = ((8, 3, 3, 3), (8,), (8,), (5, 32), (4, 2, 6), ())


def gradients(seed, dtype=torch.float64, shapes=SHAPES):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]


def official(gw_syn, gw_real, metric):
    """The arithmetic of ``match_loss``, one row at a time, with the formula written out."""
    if metric == "ours":
        total = gw_syn[0].new_zeros(())
        for s, r in zip(gw_syn, gw_real, strict=True):
            if s.ndim < 2:
                continue
            for a, b in zip(s.reshape(len(s), -1), r.reshape(len(s), -1), strict=True):
                # The norm of a row of zeros has no gradient.
                length = a.square().sum().sqrt() if a.any() else a.sum() * 0
                total = total + 1 - (a * b).sum() / (length * b.square().sum().sqrt() + 0.000001)
        return total
    s = torch.cat([x.reshape(-1) for x in gw_syn])
    r = torch.cat([x.reshape(-1) for x in gw_real])
    if metric == "mse":
        return ((s - r) ** 2).sum()
    return 1 - (s * r).sum() / (s.square().sum().sqrt() * r.square().sum().sqrt() + 0.000001)


# Beside SHAPES: rows of more than one partial sum, and more tensors than a launch takes.
LISTS = {"a network": SHAPES, "long": ((3, 5000), *[(2, 5)] * 70)}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shapes", LISTS.values(), ids=LISTS)
def test_gradient_distance(backend, shapes, metric):
    for dtype in backend.dtypes:
        syn, real = (
            [backend.put(x, dtype) for x in gradients(seed, shapes=shapes)] for seed in (0, 1)
        )
        leaves = [s.requires_grad_() for s in syn]
        exact = [s.detach().double().requires_grad_() for s in syn]
        got = ops.gradient_distance(leaves, real, metric)
        expected = official(exact, [r.double() for r in real], metric)
        assert got.dtype == (torch.float32 if dtype.itemsize == 2 else dtype)
        bound = FLOAT64 if dtype == torch.float64 else FLOAT32
        assert_close(got, expected, bound)
        with torch.no_grad():
            assert torch.equal(ops.gradient_distance(syn, real, metric), got)
        (1.7 * got).backward()
        (1.7 * expected).backward()
        for shape, s, e in zip(shapes, leaves, exact, strict=True):
            if e.grad is None:
                assert s.grad is None, shape
                continue
            rounding = {torch.float16: 2e-3, torch.bfloat16: 8e-3}.get(dtype, bound)
            assert_close(s.grad, e.grad, rounding)


@pytest.mark.parametrize("metric", METRICS)
def test_second_order_of_the_synthetic_side(metric):
    shapes = ((2, 3), (2, 1, 2))
    real = gradients(1, shapes=shapes)
    inputs = tuple(x.requires_grad_() for x in gradients(0, shapes=shapes))
    assert torch.autograd.gradcheck(lambda *s: ops.gradient_distance(s, real, metric), inputs)
    assert torch.autograd.gradgradcheck(lambda *s: ops.gradient_distance(s, real, metric), inputs)


@pytest.mark.parametrize("metric", METRICS)
def test_gradients_to_both_sides_and_second_order(metric):
    shapes = ((2, 3), (3,), (2, 1, 2))

    def distance(*tensors):
        return ops.gradient_distance(tensors[:3], tensors[3:], metric)

    inputs = tuple(
        x.requires_grad_() for x in gradients(0, shapes=shapes) + gradients(1, shapes=shapes)
    )
    assert torch.autograd.gradcheck(distance, inputs)
    assert torch.autograd.gradgradcheck(distance, inputs)


def test_rows_of_zeros_have_distance_one_and_no_gradient(backend):
    syn, real = (backend.put(torch.ones(3, 4)) for _ in range(2))
    syn[0] = 0
    real[1] = 0
    syn.requires_grad_()
    distance = ops.gradient_distance([syn], [real])
    # Rows 0 and 1 have distance 1, row 2 has 1 - 4 / (4 + 1e-6).
    assert_close(distance, torch.tensor(2.0 + 2.5e-7), FLOAT32)
    distance.backward()
    assert torch.isfinite(syn.grad).all()
    # The official expression: the row's norm has subgradient 0, <s, r> has the gradient r / 1e-6.
    assert torch.equal(syn.grad[1].cpu(), torch.zeros(4))
    assert torch.equal(syn.grad[0].cpu(), torch.full((4,), -1 / 1e-6))


def test_tensors_of_one_dimension_do_not_count_in_ours():
    syn, real = gradients(0), gradients(1)
    kept = [i for i, s in enumerate(SHAPES) if len(s) > 1]
    whole = ops.gradient_distance(syn, real)
    assert torch.equal(
        whole, ops.gradient_distance([syn[i] for i in kept], [real[i] for i in kept])
    )
    assert ops.gradient_distance(syn[1:2], real[1:2]) == 0
    assert ops.gradient_distance(syn[1:2], real[1:2], "mse") > 0


def test_strides_do_not_matter(backend):
    syn, real = ([backend.put(x).requires_grad_() for x in gradients(seed)] for seed in (0, 1))
    real = [r.detach() for r in real]
    other = [x.to(memory_format=torch.channels_last) if x.ndim == 4 else x for x in syn]
    for metric in METRICS:
        got, expected = (ops.gradient_distance(x, real, metric) for x in (other, syn))
        assert_close(got, expected, FLOAT32)
        pairs = ([x for x in xs if metric != "ours" or x.ndim > 1] for xs in (other, syn))
        grads = [torch.autograd.grad(d, p) for d, p in zip((got, expected), pairs, strict=True)]
        for a, b in zip(*grads, strict=True):
            assert_close(a, b, FLOAT32)


@pytest.mark.parametrize("metric", METRICS)
def test_tensors_of_several_dtypes_or_without_values(metric):
    syn, real = gradients(0, torch.float32), gradients(1, torch.float32)
    exact = official([s.double() for s in syn], [r.double() for r in real], metric)
    syn[0], real[-1] = syn[0].double(), real[-1].double()
    empty = [torch.zeros(0, 3)]
    assert_close(ops.gradient_distance(syn + empty, real + empty, metric).float(), exact, FLOAT32)


def test_threads_do_not_change_bits():
    shapes = ((128, 1152), (10, 2048), (128,))
    syn, real = (gradients(seed, torch.float32, shapes) for seed in (0, 1))

    def bits(threads, metric):
        torch.set_num_threads(threads)
        leaves = [s.clone().requires_grad_() for s in syn]
        distance = ops.gradient_distance(leaves, real, metric)
        wanted = [s for s in leaves if metric != "ours" or s.ndim > 1]
        return [distance, *torch.autograd.grad(distance, wanted)]

    before = torch.get_num_threads()
    try:
        for metric in METRICS:
            for one, three in zip(bits(1, metric), bits(3, metric), strict=True):
                assert torch.equal(one, three)
    finally:
        torch.set_num_threads(before)


def test_compile():
    syn, real = gradients(0, torch.float32), gradients(1, torch.float32)
    compiled = torch.compile(ops.gradient_distance, fullgraph=True, backend="aot_eager")
    assert_close(compiled(syn, real), ops.gradient_distance(syn, real), FLOAT32)


def test_opcheck():
    syn, real = (gradients(seed, torch.float32, ((3, 4), (2, 2, 2))) for seed in (0, 1))
    for metric in range(len(METRICS)):
        _, coefficients = _native.raw.gradient_distance(syn, real, metric)
        torch.library.opcheck(_native.raw.gradient_distance, (syn, real, metric))
        torch.library.opcheck(
            _native.raw.gradient_distance_grad,
            (torch.tensor(0.7), syn, real, coefficients, metric),
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_feature_mean_distance(dtype):
    g = torch.Generator().manual_seed(3)
    syn = torch.randn(4, 3, 7, generator=g).to(dtype).requires_grad_()
    real = torch.randn(4, 6, 7, generator=g).to(dtype)
    got = ops.feature_mean_distance(syn, real)
    exact = syn.detach().double().requires_grad_()
    # main_DM.py's loss, class by class.
    expected = sum(
        torch.sum((torch.mean(real[c].double(), dim=0) - torch.mean(exact[c], dim=0)) ** 2)
        for c in range(4)
    )
    bound = FLOAT64 if dtype == torch.float64 else FLOAT32
    assert_close(got, expected, bound)
    got.backward()
    expected.backward()
    assert_close(syn.grad, exact.grad, 1e-3 if dtype == torch.float16 else bound)
    # Without classes: eq. 5, one mean over everything.
    one = ops.feature_mean_distance(syn.flatten(0, 1), real.flatten(0, 1))
    mean = real.double().mean((0, 1)) - syn.detach().double().mean((0, 1))
    assert_close(one, mean.square().sum(), bound)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("flat", [False, True])
def test_parameter_distance(dtype, flat):
    params, target, start = (gradients(seed, dtype) for seed in (0, 1, 2))
    exact = [torch.cat([x.double().flatten() for x in xs]) for xs in (params, target, start)]
    # distill.py: sums of squares, both divided by the number of parameters.
    count = exact[0].numel()
    expected = (((exact[0] - exact[1]) ** 2).sum() / count) / (
        ((exact[2] - exact[1]) ** 2).sum() / count
    )
    if flat:
        params, target, start = (
            torch.cat([x.flatten() for x in xs]) for xs in (params, target, start)
        )
    leaves = [params] if flat else params
    for leaf in leaves:
        leaf.requires_grad_()
    bound = FLOAT64 if dtype == torch.float64 else FLOAT32
    got = ops.parameter_distance(params, target, start)
    assert_close(got, expected, bound)
    squared = ((exact[0] - exact[1]) ** 2).sum()
    assert_close(ops.parameter_distance(params, target), squared, bound)
    got.backward()
    gradient = torch.cat([leaf.grad.flatten() for leaf in leaves])
    closed = 2 * (exact[0] - exact[1]) / ((exact[2] - exact[1]) ** 2).sum()
    assert_close(gradient, closed, bound)


def test_inputs_stay():
    syn, real = gradients(0), gradients(1)
    before = copy.deepcopy((syn, real))
    for metric in METRICS:
        ops.gradient_distance(syn, real, metric)
    ops.parameter_distance(syn, real, syn)
    for now, then in zip((*syn, *real), (*before[0], *before[1]), strict=True):
        assert torch.equal(now, then)


W, V = torch.ones(2, 3), torch.ones(3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.gradient_distance([W], [W], "l1"), ValueError, "metric is 'l1'"),
        (lambda: ops.gradient_distance(W, [W]), TypeError, "grads_syn is a sequence"),
        (lambda: ops.gradient_distance([W], [W, W]), ValueError, "1 tensors, grads_real 2"),
        (lambda: ops.gradient_distance([], []), ValueError, "at least one"),
        (lambda: ops.gradient_distance([W], [V]), ValueError, r"grads_real\[0\] has shape \(3,\)"),
        (lambda: ops.gradient_distance([W.int()], [W]), TypeError, r"grads_syn\[0\]"),
        (lambda: ops.gradient_distance([None], [W]), TypeError, r"grads_syn\[0\]"),
        (lambda: ops.feature_mean_distance(V, V), ValueError, r"features_syn has shape \(3,\)"),
        (lambda: ops.feature_mean_distance(W, W[:0]), ValueError, r"features_real.*images >= 1"),
        (lambda: ops.feature_mean_distance(W, W[:, :2]), ValueError, "last dimension but one"),
        (lambda: ops.feature_mean_distance(W[None], W), ValueError, "last dimension but one"),
        (lambda: ops.feature_mean_distance(W.int(), W), TypeError, "features_syn has dtype"),
        (lambda: ops.parameter_distance(V, V, W), ValueError, r"start\[0\] has shape"),
        (lambda: ops.parameter_distance(V, [V, V]), ValueError, "params has 1 tensors, target 2"),
        (lambda: ops.parameter_distance(V, None), TypeError, "target is a sequence"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
