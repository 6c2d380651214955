"""The contract that every operator keeps, on every backend (DESIGN.md, "Contract of every op")."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from tests.ops.cases import CASES, OpCase
from tests.tolerances import ROUNDING, assert_close

# Each number of classes has its reason: kernels change their shape between them.
CLASSES = {
    1: "one class: every probability is 1",
    2: "the smallest real row",
    10: "CIFAR-10; shorter than one vector",
    16: "one full fp32 AVX-512 vector, one 16-lane group",
    17: "one element beyond it",
    100: "CIFAR-100; ends in a partial vector",
    127: "odd: every other row is misaligned",
    200: "Tiny-ImageNet",
    1000: "ImageNet-1k; the last width of one warp a row",
    1001: "ImageNet with a background class",
    1024: "whole registers",
    1025: "one element beyond: several fp64 partial sums",
    2048: "the last width of one warp a row for 16-bit inputs",
    8193: "beyond one CTA's registers: clusters, or the looped kernel",
    21841: "ImageNet-21k: odd, larger than the L1 cache",
}
# Long rows are slow on the emulator; one row exercises every launch there.
EMULATED_ROWS = {8193: 1, 21841: 1}
cases = pytest.mark.parametrize("case", CASES, ids=str)


def rows_for(backend: object, classes: int, rows: int) -> int:
    return EMULATED_ROWS.get(classes, rows) if str(backend) == "simt" else rows


def twin_of(
    case: OpCase, a: Tensor, b: Tensor, reduction: str, weight: Tensor | None = None
) -> tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor]:
    """Outputs, both gradients and the upstream gradient used, of the float64 twin."""
    a64 = a.detach().cpu().double().requires_grad_()
    b64 = b.detach().cpu().double().requires_grad_()
    outputs = case.twin(a64, b64, reduction, None if weight is None else weight.cpu().double())
    upstream = upstream_for(outputs[0])
    grads = torch.autograd.grad(outputs[0], (a64, b64), upstream)
    return outputs, *grads, upstream


def upstream_for(loss: Tensor) -> Tensor:
    """A different, non-trivial factor for every loss."""
    return 0.5 + torch.arange(loss.numel(), dtype=loss.dtype, device=loss.device).reshape(
        loss.shape
    )


def check(case: OpCase, a: Tensor, b: Tensor, reduction: str, weight: Tensor | None = None) -> None:
    """Outputs and gradients against the twin on the same values."""
    a, b = a.detach().requires_grad_(), b.detach().requires_grad_()
    outputs = case.op(a, b, reduction, weight)
    expected, expected_a, expected_b, upstream = twin_of(case, a, b, reduction, weight)
    bound = case.bound(a.dtype)
    for value, reference in zip(outputs, expected, strict=True):
        wide = torch.float64 if a.dtype is torch.float64 else torch.float32
        assert value.dtype is wide
        assert_close(value, reference, bound, str(case), absolute=case.absolute)
    grads = torch.autograd.grad(outputs[0], (a, b), upstream.to(outputs[0]))
    factor = float(upstream.abs().max())
    for grad, reference, like in zip(grads, (expected_a, expected_b), (a, b), strict=True):
        assert grad.dtype is like.dtype
        # fp16's grid ends at 6e-8: half a step an element.
        grid = 3e-8 * reference.numel() ** 0.5 if like.dtype is torch.float16 else 0.0
        absolute = factor * case.absolute + grid
        assert_close(
            grad, reference, bound + ROUNDING[like.dtype], f"{case} grad", absolute=absolute
        )


@cases
@pytest.mark.parametrize("classes", CLASSES)
def test_values_and_gradients(backend, case, classes):
    a, b = case.make(rows_for(backend, classes, 3), classes)
    check(case, backend.put(a), backend.put(b), "batchmean")


@cases
@pytest.mark.parametrize(
    "rows", [1, 3, 257]
)  # one; a partial group; more than a grid's block of rows
@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean"])
def test_rows_and_reductions(backend, case, rows, reduction):
    rows = min(rows, 33) if str(backend) == "simt" else rows
    a, b = case.make(rows, 10)
    weight = backend.put(torch.linspace(0, 2, rows))
    check(case, backend.put(a), backend.put(b), reduction, weight)


@cases
def test_dtypes(backend, case):
    """Every pair of storage types (float64 on CUDA runs the twin and is not among them)."""
    for first in backend.dtypes:
        for second in backend.dtypes:
            a, b = case.make(5, 100)
            check(case, backend.put(a, first), backend.put(b, second), "none")


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same values in other memory layouts."""
    rows, classes = x.shape
    padded = torch.full((rows, classes + 3), float("nan"), dtype=x.dtype, device=x.device)
    padded[:, 1:-2] = x
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:].view(x.shape)
    return {
        "transposed": x.t().contiguous().t(),
        "padded rows": padded[:, 1:-2],
        "misaligned base": shifted.copy_(x),
        "every second class": x.repeat_interleave(2, 1)[:, ::2],
        "reversed rows": x.flip(0).contiguous().flip(0),
    }


@cases
@pytest.mark.parametrize("name", list(layouts(torch.zeros(1, 1))))
@pytest.mark.parametrize("classes", [10, 127, 1001])  # short, odd, long and odd
def test_layouts_give_the_same_bits(backend, case, name, classes):
    a, b = (backend.put(x) for x in case.make(3, classes))
    plain = case.op(a, b, "none", None)
    other = case.op(layouts(a)[name], layouts(b)[name], "none", None)
    for x, y in zip(plain, other, strict=True):
        assert torch.equal(x, y)
    check(case, layouts(a)[name], layouts(b)[name], "none")


@cases
def test_expanded_inputs(backend, case):
    a, b = (backend.put(x) for x in case.make(1, 100))
    expanded = case.op(a.expand(4, -1), b.expand(4, -1), "none", None)
    single = case.op(a, b, "none", None)
    if case.name != "mse_ce":  # its labels differ from row to row
        for x, y in zip(expanded, single, strict=True):
            assert torch.equal(x, y.expand(4))
    check(case, a.expand(4, -1), b.expand(4, -1), "none")


@cases
def test_leading_dimensions(backend, case):
    a, b = (backend.put(x) for x in case.make(6, 10))
    shaped = case.op(a.view(2, 3, 10), b.view(2, 3, 10), "none", None)
    flat = case.op(a, b, "none", None)
    for x, y in zip(shaped, flat, strict=True):
        assert x.shape == (2, 3)
        assert torch.equal(x.flatten(), y)
    check(case, a.view(2, 3, 10), b.view(2, 3, 10), "batchmean")
    assert case.op(a[0], b[0], "none", None)[0].shape == ()


@cases
def test_upstream_gradient_of_stride_zero(backend, case):
    a, b = (backend.put(x).requires_grad_() for x in case.make(4, 100))
    loss = case.op(a, b, "none", None)[0]
    summed = torch.autograd.grad(loss.sum(), (a, b))  # hands down an expanded tensor
    for x, y in zip(
        summed, torch.autograd.grad(case.op(a, b, "sum", None)[0], (a, b)), strict=True
    ):
        assert torch.equal(x, y)


@cases
@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean"])
def test_empty_batch(backend, case, reduction):
    a, b = (backend.put(torch.empty(0, 10)).requires_grad_() for _ in range(2))
    outputs = case.op(a, b, reduction, None)
    assert outputs[0].shape == ((0,) if reduction == "none" else ())
    assert outputs[0].sum() == 0
    grads = torch.autograd.grad(outputs[0].sum(), (a, b))
    assert all(g.shape == (0, 10) for g in grads)


@cases
def test_inputs_are_not_changed(backend, case):
    a, b = (backend.put(x).requires_grad_() for x in case.make(5, 127))
    copies = a.detach().clone(), b.detach().clone()
    case.op(a, b, "batchmean", None)[0].backward()
    assert torch.equal(a.detach(), copies[0])
    assert torch.equal(b.detach(), copies[1])


@cases
@pytest.mark.parametrize("classes", [10, 1000])
def test_a_row_does_not_depend_on_its_batch(backend, case, classes):
    a, b = (backend.put(x) for x in case.make(7, classes))
    batch = case.op(a, b, "none", None)
    for r in range(7):
        if case.name == "mse_ce" and r > 0:  # only the first row has the label that it has alone
            continue
        alone = case.op(a[r : r + 1], b[r : r + 1], "none", None)
        for x, y in zip(batch, alone, strict=True):
            assert torch.equal(x[r], y[0])


@cases
def test_bits_repeat(backend, case):
    a, b = (backend.put(x).requires_grad_() for x in case.make(9, 1001))

    def run() -> list[Tensor]:
        outputs = case.op(a, b, "batchmean", None)
        return [*outputs, *torch.autograd.grad(outputs[0], (a, b))]

    first = run()
    for _ in range(3):
        assert all(torch.equal(x, y) for x, y in zip(first, run(), strict=True))


@cases
def test_every_output_is_written(backend, case):
    """Fresh memory holds NaN here; none may reach a result."""
    a, b = (backend.put(x).requires_grad_() for x in case.make(5, 21))
    torch.use_deterministic_algorithms(True)  # with it, torch.empty() is filled
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        outputs = case.op(a, b, "none", None)
        grads = torch.autograd.grad(outputs[0], (a, b), torch.ones_like(outputs[0]))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(bool(torch.isfinite(x).all()) for x in (*outputs, *grads))


@cases
def test_backward_twice(backend, case):
    a, b = (backend.put(x).requires_grad_() for x in case.make(3, 100))
    loss = case.op(a, b, "none", None)[0]
    upstreams = [upstream_for(loss), torch.ones_like(loss)]
    for upstream in upstreams:
        grads = torch.autograd.grad(loss, (a, b), upstream, retain_graph=True)
        fresh = torch.autograd.grad(case.op(a, b, "none", None)[0], (a, b), upstream)
        for x, y in zip(grads, fresh, strict=True):
            assert_close(x, y, 1e-6)
    # What was handed out must not be what a later backward works on.
    kept = torch.autograd.grad(loss, a, upstreams[0], retain_graph=True)[0]
    copy = kept.clone()
    torch.autograd.grad(loss, a, upstreams[1])
    assert torch.equal(kept, copy)


@cases
def test_only_the_wanted_gradient(backend, case):
    a, b = (backend.put(x) for x in case.make(3, 100))
    both = torch.autograd.grad(
        case.op(a.requires_grad_(), b.requires_grad_(), "sum", None)[0], (a, b)
    )
    for i, (x, y) in enumerate([(a, b.detach()), (a.detach(), b)]):
        grad = torch.autograd.grad(case.op(x, y, "sum", None)[0], (x, y)[i])[0]
        assert_close(grad, both[i], 1e-6)


@cases
@pytest.mark.parametrize("backend", ["cpu", "simt"], indirect=True)  # the twin works on copies
def test_a_changed_input_is_noticed(backend, case):
    a, b = (backend.put(x).requires_grad_() for x in case.make(3, 10))
    x = a * 1
    loss = case.op(x, b, "sum", None)[0]
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@cases
def test_double_backward(backend, case):
    a, b = (backend.put(x).requires_grad_() for x in case.make(3, 10))
    v, u = backend.put(case.make(3, 10)[1]) + 0.3, backend.put(case.make(3, 10)[0])

    def second(op, x: Tensor, y: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        loss = op(x, y, "none", None)[0]
        upstream = upstream_for(loss).requires_grad_()
        gx, gy = torch.autograd.grad(loss, (x, y), upstream, create_graph=True)
        return torch.autograd.grad((gx * v.to(gx)).sum() + (gy * u.to(gy)).sum(), (x, y, upstream))

    grads = second(case.op, a, b, torch.float32)
    a64, b64 = (x.detach().cpu().double().requires_grad_() for x in (a, b))
    for x, y in zip(grads, second(case.twin, a64, b64, torch.float64), strict=True):
        assert_close(x, y, case.bound(a.dtype), str(case), absolute=case.absolute)


@cases
def test_gradcheck(case):
    a, b = (x.requires_grad_() for x in case.make(2, 5))

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return case.op(x, y, "none", None)[0]

    assert torch.autograd.gradcheck(loss, (a, b))
    assert torch.autograd.gradgradcheck(loss, (a, b))


@cases
@pytest.mark.parametrize("requires_grad", [True, False])
def test_forward_mode_raises(case, requires_grad):
    a, b = (x.float() for x in case.make(2, 5))
    with torch.autograd.forward_ad.dual_level():
        a.requires_grad_(requires_grad)
        dual = torch.autograd.forward_ad.make_dual(a, torch.ones_like(a))
        with pytest.raises((NotImplementedError, RuntimeError), match=r"(?i)forward|jvp"):
            case.op(dual, b, "sum", None)


@cases
def test_torch_func(case):
    a, b = case.make(4, 10)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return case.op(x, y, "sum", None)[0]

    expected = torch.autograd.grad(loss(a.requires_grad_(), b), a)[0]
    a = a.detach()
    assert_close(torch.func.grad(loss)(a, b), expected, 1e-12)
    _, pullback = torch.func.vjp(lambda x: loss(x, b), a)
    assert_close(pullback(torch.tensor(1.0, dtype=torch.float64))[0], expected, 1e-12)
    stacked = torch.stack([a, a + 1, 2 * a])
    rows = torch.func.vmap(lambda x: case.op(x, b, "none", None)[0])(stacked)
    for i in range(3):
        assert_close(rows[i], case.op(stacked[i], b, "none", None)[0], 1e-12)
    hessian = torch.func.hessian(loss)(a[:1, :3], b[:1, :3])
    assert hessian.shape == (1, 3, 1, 3)
    again = torch.autograd.functional.hessian(lambda x: loss(x, b[:1, :3]), a[:1, :3])
    assert_close(hessian, again, 1e-10)


@cases
def test_compile(case):
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, dynamic=True)
    def step(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return case.op(x * 2, y, "batchmean", None)

    for rows in (3, 5):  # the second size must not need another graph
        a, b = (x.float().requires_grad_() for x in case.make(rows, 10))
        outputs = step(a, b)
        grads = torch.autograd.grad(outputs[0], (a, b))
        plain = case.op(a * 2, b, "batchmean", None)
        expected = torch.autograd.grad(plain[0], (a, b))
        for x, y in zip((*outputs, *grads), (*plain, *expected), strict=True):
            assert_close(x, y, 1e-6)


@cases
def test_compiled_double_backward_raises(case):
    """As every compiled expression does; an answer without the second derivative would be wrong."""
    torch._dynamo.reset()
    a, b = (x.float() for x in case.make(3, 10))
    step = torch.compile(lambda x: case.op(x, b, "sum", None)[0], fullgraph=True)
    a.requires_grad_()
    (grad,) = torch.autograd.grad(step(a), a, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        (grad.square().sum() + a.square().sum()).backward()


@cases
def test_inputs_made_in_inference_mode(backend, case):
    """A teacher evaluated under inference_mode, as many do."""
    a, b = (backend.put(x) for x in case.make(3, 10))
    weight = torch.rand(3, device=a.device)
    with torch.inference_mode():
        teacher, factors = b.clone(), weight.clone()
    grads = []
    for x, w in ((b, weight), (teacher, factors)):
        s = a.clone().requires_grad_()
        grads += torch.autograd.grad(case.op(s, x, "sum", w)[0], s)
    assert torch.equal(*grads)


@cases
def test_batched_gradients(backend, case):
    a, b = (backend.put(x).requires_grad_() for x in case.make(3, 10))
    rows = case.op(a, b, "none", None)[0]
    upstream = torch.eye(3, device=rows.device)
    batched = torch.autograd.grad(rows, (a, b), upstream, is_grads_batched=True, retain_graph=True)
    for k in range(3):
        single = torch.autograd.grad(rows, (a, b), upstream[k], retain_graph=True)
        for x, y in zip(batched, single, strict=True):
            assert_close(x[k], y, case.bound(a.dtype), absolute=case.absolute)


@cases
def test_fake_tensors_and_traces(case):
    """Shapes without values, and a traced graph with its backward."""
    a, b = (x.float().requires_grad_() for x in case.make(3, 10))

    def step(x: Tensor) -> Tensor:
        return torch.autograd.grad(case.op(x, b, "sum", None)[0], x)[0]

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = mode.from_tensor(a)
        grad = step(fake)
        assert isinstance(grad, FakeTensor)
        assert (grad.shape, grad.dtype) == (a.shape, a.dtype)
    traced = make_fx(step)(a)
    assert "pyddfast" in traced.code
    for x in (a, a.detach() * 2):
        assert_close(traced(x), step(x.requires_grad_()), 1e-6)


@cases
def test_autocast(backend, case):
    a, b = (backend.put(x, torch.bfloat16) for x in case.make(3, 10))
    with torch.autocast(backend.device.type, torch.bfloat16):
        outputs = case.op(a, b, "batchmean", None)
    assert all(
        x.dtype is torch.float32 for x in outputs
    )  # as log_softmax and kl_div under autocast


@cases
def test_threads_of_torch_do_not_change_bits(case):
    a, b = (x.float().requires_grad_() for x in case.make(64, 1000))
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            outputs = case.op(a, b, "batchmean", None)
            results.append([*outputs, *torch.autograd.grad(outputs[0], (a, b))])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@cases
def test_calls_from_many_threads(case):
    inputs = [tuple(x.float() for x in case.make(8, c)) for c in (10, 100, 1000, 17)]
    expected = [case.op(a, b, "none", None) for a, b in inputs]

    def work(i: int) -> bool:
        outputs = case.op(*inputs[i % 4], "none", None)
        return all(torch.equal(x, y) for x, y in zip(outputs, expected[i % 4], strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(200)))


def test_fork_before_first_use():
    script = """
import os, torch
from pyddfast import ops
pid = os.fork()
loss = float(ops.kd_loss(torch.eye(40).repeat(20, 30), torch.eye(40).flip(0).repeat(20, 30)))
if pid:
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
print(loss)
os._exit(0) if pid == 0 else None
"""
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    run = subprocess.run(
        [sys.executable, "-u", "-c", script],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    values = run.stdout.split()
    assert len(values) == 2
    assert values[0] == values[1]
