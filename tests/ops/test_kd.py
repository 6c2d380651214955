"""The kd family's own promises: formulas, accuracy, extremes, the score, errors."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pyddfast import ops
from pyddfast.ops import _native, reference
from tests.ops.cases import logits
from tests.tolerances import FLOAT32, FLOAT64, PROBABILITIES, assert_close, error


def torch_kd(s: Tensor, t: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Loss and score by torch's own operators: independent of the twin."""
    log_p = F.log_softmax(s / temperature, -1)
    q = F.softmax(t / temperature, -1)
    score = (log_p.exp() - q).norm(dim=-1) / temperature
    return F.kl_div(log_p, q, reduction="batchmean"), score


def twin(s: Tensor, t: Tensor, temperature: float, **options) -> tuple[Tensor, Tensor]:
    defaults = {
        "teacher_kind": "logits",
        "reduction": "batchmean",
        "t_squared": False,
        "weight": None,
    }
    return reference.kd_loss(s.double(), t.double(), temperature, **{**defaults, **options})


# 1: no scaling; 4: SRe2L's mixup; 20: the default; 3: no exact inverse; 0.05: sharp; 1000: flat.
@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0, 3.0, 0.05, 1000.0])
def test_agrees_with_torch(backend, temperature):
    s, t = logits(5, 100, 1), logits(5, 100, 2)
    value = ops.kd_loss(backend.put(s), backend.put(t), temperature, return_score=True)
    expected = torch_kd(s.float().double(), t.float().double(), temperature)
    for x, y in zip(value, expected, strict=True):
        assert_close(x, y, FLOAT32)


@pytest.mark.parametrize("classes", [2, 10, 1000, 21841])
@pytest.mark.parametrize("noise", [1.0, 1e-2, 1e-3, 2e-4, 1e-4])  # KL from 1e-1 down to 1e-10
def test_small_divergences(backend, classes, noise):
    rows = 1 if str(backend) == "simt" and classes > 8192 else 4
    t = logits(rows, classes, 3).float()
    s = (t.double() + noise * logits(rows, classes, 4)).float()
    s, t = backend.put(s).requires_grad_(), backend.put(t)
    loss, score = ops.kd_loss(s, t, 4.0, return_score=True)
    (grad,) = torch.autograd.grad(loss, s)
    s64 = s.detach().cpu().double().requires_grad_()
    expected, expected_score = twin(s64, t.cpu(), 4.0)
    (expected_grad,) = torch.autograd.grad(expected, s64)
    if expected > 1e-10:
        assert error(loss, expected) <= FLOAT32
        assert error(grad, expected_grad) <= FLOAT32
        assert error(score, expected_score) <= FLOAT32


@pytest.mark.parametrize("offset", [0.0, 30.0, 1e4])
def test_a_common_offset_costs_nothing(backend, offset):
    t = logits(4, 1000, 5).float()
    s = (t.double() + 1e-2 * logits(4, 1000, 6) + offset).float()
    s = backend.put(s).requires_grad_()
    loss, score = ops.kd_loss(s, backend.put(t), 4.0, return_score=True)
    s64 = s.detach().cpu().double().requires_grad_()
    expected, expected_score = twin(s64, t, 4.0)
    assert error(loss, expected) <= FLOAT32
    assert error(score, expected_score) <= FLOAT32
    grads = torch.autograd.grad(loss, s)[0], torch.autograd.grad(expected, s64)[0]
    assert error(*grads) <= FLOAT32


# 1e-6 and 1e-9: a float64 KL of about 1e-12 and 1e-18, where d + expm1(-d) has lost half its digits
@pytest.mark.parametrize("noise", [1e-2, 1e-6, 1e-9])
@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_small_divergences_in_float64(monkeypatch, name, noise):
    if name == "reference":
        monkeypatch.setattr(_native, "usable", lambda *_: False)
    t = logits(2, 20, 3)
    s = t + noise * logits(2, 20, 4)
    with mpmath.workdps(60):
        rows = [
            mp_kd([mpmath.mpf(x) for x in a], [mpmath.mpf(x) for x in b], 4)
            for a, b in zip(s.tolist(), t.tolist(), strict=True)
        ]
    expected = torch.tensor([float(row) for row in rows], dtype=torch.float64)
    assert_close(ops.kd_loss(s, t, 4.0, reduction="none"), expected, FLOAT64)


def mp_kd(s: list, t: list, temperature: int) -> mpmath.mpf:
    weights = [[mpmath.exp(x / temperature) for x in row] for row in (s, t)]
    p, q = ([w / mpmath.fsum(row) for w in row] for row in weights)
    return mpmath.fsum(b * mpmath.log(b / a) for a, b in zip(p, q, strict=True))


def test_equal_logits_give_zero(backend):
    t = backend.put(logits(3, 1000, 7))
    s = t.clone().requires_grad_()
    loss, score = ops.kd_loss(s, t, 4.0, return_score=True)
    assert loss == 0
    assert torch.equal(score, torch.zeros_like(score))
    assert torch.equal(torch.autograd.grad(loss, s)[0], torch.zeros_like(t))


def test_the_score_is_the_gradients_norm(backend):
    s = backend.put(logits(6, 100, 8)).requires_grad_()
    loss, score = ops.kd_loss(s, backend.put(logits(6, 100, 9)), 4.0, return_score=True)
    (grad,) = torch.autograd.grad(loss, s)
    assert_close(grad.norm(dim=-1) * 6, score, FLOAT32)
    assert not score.requires_grad


def test_the_score_ignores_the_losss_options(backend):
    s, t = backend.put(logits(5, 100, 10)), backend.put(logits(5, 100, 11))
    weight = backend.put(torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5]))
    _, plain = ops.kd_loss(s, t, 4.0, return_score=True)
    for options in (
        {"weight": weight},
        {"reduction": "none"},
        {"reduction": "sum"},
        {"t_squared": True},
    ):
        _, score = ops.kd_loss(s, t, 4.0, return_score=True, **options)
        assert torch.equal(score, plain)
    assert_close(plain, twin(s.cpu(), t.cpu(), 4.0)[1], FLOAT32)


def test_weight_reduction_and_t_squared(backend):
    s, t = backend.put(logits(5, 100, 12)), backend.put(logits(5, 100, 13))
    weight = backend.put(torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5]))
    rows = twin(s.cpu(), t.cpu(), 4.0, reduction="none")[0]
    w = weight.cpu().double()
    for t_squared, factor in ((False, 1.0), (True, 16.0)):
        options = {"weight": weight, "t_squared": t_squared}
        assert_close(
            ops.kd_loss(s, t, 4.0, reduction="none", **options), rows * w * factor, FLOAT32
        )
        total = (rows * w).sum() * factor
        assert_close(ops.kd_loss(s, t, 4.0, reduction="sum", **options), total, 3 * FLOAT32)
        assert_close(ops.kd_loss(s, t, 4.0, **options), total / 5, 3 * FLOAT32)


@pytest.mark.parametrize("kind", ["probs", "log_probs"])
def test_a_teacher_whose_rows_do_not_sum_to_one(backend, kind):
    s = logits(4, 100, 14)
    q = torch.softmax(logits(4, 100, 15), -1) * torch.tensor([[0.5], [1.0], [1.5], [1.001]])
    given = backend.put(q if kind == "probs" else q.log())
    leaf = backend.put(s).requires_grad_()
    loss, score = ops.kd_loss(leaf, given, 4.0, teacher_kind=kind, return_score=True)
    s64 = s.float().double().requires_grad_()
    q64 = given.cpu().double() if kind == "probs" else given.cpu().double().exp()
    log_p = F.log_softmax(s64 / 4.0, -1)
    expected = F.kl_div(log_p, q64, reduction="batchmean")
    assert_close(loss, expected, FLOAT32, absolute=1e-6)
    assert_close(score, (log_p.exp() - q64).norm(dim=-1) / 4.0, FLOAT32, absolute=1e-7)
    grads = torch.autograd.grad(loss, leaf)[0], torch.autograd.grad(expected, s64)[0]
    assert_close(*grads, FLOAT32, absolute=1e-7)


def test_teachers_gradient_of_tiny_probabilities(backend):
    q = torch.tensor([[0.5, 0.5 - 1e-20, 1e-20, 0.0]])
    leaf = backend.put(q).requires_grad_()
    loss = ops.kd_loss(backend.put(torch.zeros(1, 4)), leaf, 1.0, teacher_kind="probs")
    (grad,) = torch.autograd.grad(loss, leaf)
    expected = (q.double().log() + 1 + math.log(4)).masked_fill(q == 0, 0.0)
    assert_close(grad, expected, FLOAT32)


def test_log_probabilities_above_zero(backend):
    """Rows of q need not sum to one: a log q above 0 is as good as any."""
    s, log_q = logits(3, 33, 8), logits(3, 33, 9, scale=1.5) - 1.0
    assert float(log_q.max()) > 1
    a, b = (backend.put(x).requires_grad_() for x in (s, log_q))
    loss, score = ops.kd_loss(a, b, 4.0, teacher_kind="log_probs", return_score=True)
    wide = [x.detach().double().cpu().requires_grad_() for x in (a, b)]
    log_p = F.log_softmax(wide[0] / 4.0, -1)
    expected = F.kl_div(log_p, wide[1], reduction="batchmean", log_target=True)
    assert_close(loss, expected, FLOAT32)
    assert_close(score, (log_p.exp() - wide[1].exp()).norm(dim=-1) / 4.0, FLOAT32)
    grads = torch.autograd.grad(loss, (a, b)), torch.autograd.grad(expected, wide)
    for got, want in zip(*grads, strict=True):
        assert_close(got, want, FLOAT32)


def test_subnormal_probabilities(backend):
    q = torch.tensor([[1e-42, 1e-39, 0.25, 0.75]])
    s, teacher = torch.zeros(1, 4), backend.put(q).requires_grad_()
    loss = ops.kd_loss(backend.put(s), teacher, 1.0, teacher_kind="probs")
    (grad,) = torch.autograd.grad(loss, teacher)
    assert_close(grad, (q.double() / 0.25).log() + 1, FLOAT32)  # dKL/dq = log q/p + 1


# A finite logit below every other number, alone in the row or beside numbers as low: finfo.min is
# how logits are masked.  16 classes fill a vector register, 5 and 33 leave padding.
@pytest.mark.parametrize("value", [-1e37, -1e38, -3e38, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("classes", [5, 16, 33])
def test_rows_of_huge_negative_logits(backend, classes, value):
    flat, other = torch.full((2, classes), value), logits(2, classes, 10).float()
    uniform = torch.zeros(2, classes)
    for s, t in ((flat, other), (other, flat)):
        even = [uniform if x is flat else x for x in (s, t)]
        a = backend.put(s).requires_grad_()
        loss, score = ops.kd_loss(a, backend.put(t), 2.0, return_score=True)
        expected, expected_score = twin(*even, 2.0)
        assert_close(loss, expected, FLOAT32)
        assert_close(score, expected_score, FLOAT32)
        assert_close(torch.autograd.grad(loss, a)[0].norm(), score.norm() / 2, FLOAT32)
    target = torch.softmax(other, -1)
    ce = ops.soft_ce(backend.put(flat), backend.put(target))
    assert_close(ce, torch.tensor(math.log(classes)), PROBABILITIES)  # fp32 rows of mass 1 + 1e-7
    label = torch.zeros(2, dtype=torch.int64, device=backend.device)
    mixed = ops.mse_ce(backend.put(flat), backend.put(flat), label, ce_weight=1.0)
    assert_close(mixed, torch.tensor(math.log(classes)), FLOAT32)


def test_minus_infinity_where_the_teacher_has_no_mass(backend):
    s, t = logits(3, 50, 16), logits(3, 50, 17)
    s[:, 7] = t[:, 7] = -math.inf  # masked in both
    t[:, 9] = -math.inf  # masked in the teacher only
    s, t = backend.put(s).requires_grad_(), backend.put(t)
    loss, score = ops.kd_loss(s, t, 2.0, return_score=True)
    keep = [i for i in range(50) if i != 7]
    s64 = s.detach().cpu().double()[:, keep].requires_grad_()
    expected, expected_score = torch_kd(s64, t.cpu().double()[:, keep], 2.0)
    assert_close(loss, expected, FLOAT32)
    assert_close(score, expected_score, FLOAT32)
    (grad,) = torch.autograd.grad(loss, s)
    assert torch.equal(grad[:, 7], torch.zeros_like(grad[:, 7]))
    assert_close(grad[:, keep], torch.autograd.grad(expected, s64)[0], FLOAT32)


def test_minus_infinity_where_the_teacher_has_mass(backend):
    s, t = logits(2, 10, 18), logits(2, 10, 19)
    s[0, 3] = -math.inf
    loss = ops.kd_loss(backend.put(s), backend.put(t), 2.0, reduction="none")
    assert loss[0] == math.inf
    assert_close(loss[1:], twin(s[1:], t[1:], 2.0, reduction="none")[0], FLOAT32)


@pytest.mark.parametrize("bad", [-math.inf, math.nan, math.inf])
def test_rows_without_a_softmax_are_nan(backend, bad):
    s, t = logits(3, 40, 20), logits(3, 40, 21)
    s[0] = bad
    t[1] = bad
    loss, score = ops.kd_loss(
        backend.put(s), backend.put(t), 2.0, reduction="none", return_score=True
    )
    assert torch.isnan(loss[:2]).all()
    assert torch.isnan(score[:2]).all()
    assert_close(loss[2:], twin(s[2:].float(), t[2:].float(), 2.0, reduction="none")[0], FLOAT32)


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_one_nan_reaches_the_result(backend, which):
    s, t = logits(2, 100, 22), logits(2, 100, 23)
    (s if which == "student" else t)[0, 50] = math.nan
    loss = ops.kd_loss(backend.put(s), backend.put(t), 2.0, reduction="none")
    assert torch.isnan(loss[0])
    assert torch.isfinite(loss[1])


def test_huge_logits(backend):
    s, t = 1e4 * logits(4, 100, 24, 1.0), 1e4 * logits(4, 100, 25, 1.0)
    s, t = s.float(), t.float()
    loss, score = ops.kd_loss(backend.put(s), backend.put(t), 1.0, return_score=True)
    expected, expected_score = twin(s, t, 1.0)
    assert_close(loss, expected, FLOAT32)
    assert_close(score, expected_score, FLOAT32)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_one_hot_teacher_is_cross_entropy(backend, classes):
    s = logits(5, classes, 26).float()
    labels = torch.arange(5) % classes
    one_hot = F.one_hot(labels, classes).float()
    loss, score = ops.kd_loss(
        backend.put(s), backend.put(one_hot), 1.0, teacher_kind="probs", return_score=True
    )
    assert_close(loss, F.cross_entropy(s.double(), labels), FLOAT32)
    el2n = (F.softmax(s.double(), -1) - one_hot).norm(dim=-1)
    assert_close(score, el2n, FLOAT32)
    # As logits: all other classes masked.
    masked = torch.where(one_hot > 0, 0.0, -math.inf)
    assert_close(
        ops.kd_loss(backend.put(s), backend.put(masked), 1.0),
        F.cross_entropy(s.double(), labels),
        FLOAT32,
    )


def test_stored_half_precision_labels(backend):
    """fp16 labels of a sharp teacher are mostly subnormal or 0: none may be flushed or rounded."""
    q = torch.softmax(logits(2, 2048, 27, 2.0), -1).half()
    assert ((q > 0) & (q < 2.0**-14)).float().mean() > 0.3
    s = logits(2, 2048, 28).float()
    loss, score = ops.kd_loss(
        backend.put(s), backend.put(q, torch.float16), 4.0, teacher_kind="probs", return_score=True
    )
    log_p = F.log_softmax(s.double() / 4.0, -1)
    assert_close(loss, F.kl_div(log_p, q.double(), reduction="batchmean"), FLOAT32, absolute=1e-6)
    assert_close(score, (log_p.exp() - q.double()).norm(dim=-1) / 4.0, FLOAT32)


def test_many_classes(backend):
    s, t = logits(1, 100_000, 29).float(), logits(1, 100_000, 30).float()
    loss, score = ops.kd_loss(backend.put(s), backend.put(t), 4.0, return_score=True)
    expected, expected_score = twin(s, t, 4.0)
    assert_close(loss, expected, FLOAT32)
    assert_close(score, expected_score, FLOAT32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean"])
def test_value_and_grad(backend, dtype, reduction):
    s, t = backend.put(logits(5, 100, 31), dtype), backend.put(logits(5, 100, 32))
    weight = backend.put(torch.linspace(0.5, 1.5, 5))
    options = {"reduction": reduction, "weight": weight, "t_squared": True}
    loss, score, grad = ops.kd_value_and_grad(s, t, 4.0, **options)
    leaf = s.clone().requires_grad_()
    expected, expected_score = ops.kd_loss(leaf, t, 4.0, return_score=True, **options)
    (expected_grad,) = torch.autograd.grad(expected.sum(), leaf)
    assert_close(loss, expected, FLOAT32)
    assert_close(score, expected_score, FLOAT32)
    assert grad.dtype is dtype
    assert_close(grad, expected_grad, {torch.float32: FLOAT32}.get(dtype, 2.0**-9))


def test_grad_scale_is_applied_before_rounding(backend):
    """Most fp16 gradients of a mean are subnormal; a loss scale keeps their digits."""
    s, t = backend.put(logits(64, 100, 33), torch.float16), backend.put(logits(64, 100, 34))
    scale = torch.tensor(65536.0, device=s.device)
    _, _, scaled = ops.kd_value_and_grad(s, t, 20.0, grad_scale=scale)
    s64 = s.cpu().double().requires_grad_()
    expected = torch.autograd.grad(twin(s64, t.cpu(), 20.0)[0], s64)[0]
    assert_close(scaled.double().cpu() / 65536, expected, 2.0**-11)
    _, _, plain = ops.kd_value_and_grad(s, t, 20.0)
    assert error(plain, expected) > 1e-3  # without it they are gone


def test_soft_ce_is_cross_entropy(backend):
    s, q = logits(5, 100, 35).float(), torch.softmax(logits(5, 100, 36), -1).float()
    assert_close(
        ops.soft_ce(backend.put(s), backend.put(q)),
        F.cross_entropy(s.double(), q.double()),
        FLOAT32,
    )
    masked = s.clone()
    masked[:, 3] = -math.inf
    q[:, 3] = 0
    value = ops.soft_ce(backend.put(masked), backend.put(q), 2.0)
    keep = [i for i in range(100) if i != 3]
    expected = F.cross_entropy(s.double()[:, keep] / 2.0, q.double()[:, keep])
    assert_close(value, expected, FLOAT32)


def test_mse_ce_is_its_two_terms(backend):
    s, t = logits(5, 100, 37).float(), logits(5, 100, 38).float()
    y = torch.tensor([0, 99, 50, 3, 3])
    value = ops.mse_ce(backend.put(s), backend.put(t), y.to(backend.device), ce_weight=0.025)
    expected = F.mse_loss(s.double(), t.double()) + 0.025 * F.cross_entropy(s.double(), y)
    assert_close(value, expected, FLOAT32)


def test_an_out_of_range_label_poisons_its_row_only(emulated_library):
    """On CUDA labels are not read back; a bad one must show and must not read foreign memory."""
    s, t = logits(3, 10, 39).float().requires_grad_(), logits(3, 10, 40).float()
    y = torch.tensor([1, 10, -1])
    with _native.emulated(emulated_library):
        loss, _ = _native.raw.mse_ce(s.detach(), t, y, None, 0.1, 0)
    assert torch.isfinite(loss[0])
    assert torch.isnan(loss[1:]).all()


def test_the_cpu_keeps_one_buffer():
    """Beside the returned gradient at most one B x C buffer lives from forward to backward."""
    s, t = logits(64, 1000, 41).float().requires_grad_(), logits(64, 1000, 42).float()
    loss, _ = ops.kd_loss(s, t, return_score=True)
    node = loss.grad_fn
    saved = [x for x in node.saved_tensors if x is not None and x.numel() >= s.numel()]
    assert {x.data_ptr() for x in saved} <= {s.data_ptr(), t.data_ptr()}
    assert node.kept.shape == s.shape
    address = node.kept.data_ptr()
    loss.backward()
    assert node.kept is None
    assert s.grad.data_ptr() == address  # handed over uncopied for an upstream of 1


def test_value_and_grad_under_func():
    s, t = logits(3, 10, 21), logits(3, 10, 22)

    def one(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return ops.kd_value_and_grad(a, b, 4.0, reduction="none")

    for got, want in zip(torch.func.vmap(one)(s, t), one(s, t), strict=True):
        assert_close(got, want, FLOAT64)


@pytest.mark.parametrize(
    "convert",
    [torch.Tensor.to_sparse, torch.Tensor.to_mkldnn, lambda x: torch.nested.nested_tensor([x])],
    ids=["sparse", "mkldnn", "nested"],
)
def test_tensors_that_are_not_dense(convert):
    s, t = logits(3, 10, 21).float(), logits(3, 10, 22).float()
    for pair, name in (((convert(s), t), "student"), ((s, convert(t)), "teacher")):
        with pytest.raises(TypeError, match=f"{name} is a .*dense"):
            ops.kd_loss(*pair)


def test_errors_name_the_argument():
    s, t = torch.zeros(3, 5), torch.zeros(3, 5)
    y = torch.zeros(3, dtype=torch.int64)
    cases = [
        (TypeError, "student", lambda: ops.kd_loss([1.0], t)),
        (TypeError, "student.*int64", lambda: ops.kd_loss(s.long(), t)),
        (TypeError, "teacher.*complex64", lambda: ops.kd_loss(s, t.to(torch.complex64))),
        (ValueError, r"teacher.*\(3, 4\).*\(3, 5\)", lambda: ops.kd_loss(s, t[:, :4])),
        (ValueError, r"student.*\(3, 0\)", lambda: ops.kd_loss(s[:, :0], t[:, :0])),
        (ValueError, "teacher is on meta", lambda: ops.kd_loss(s, t.to("meta"))),
        (ValueError, "temperature is 0", lambda: ops.kd_loss(s, t, 0)),
        (ValueError, "temperature is -1", lambda: ops.kd_loss(s, t, -1)),
        (ValueError, "temperature is inf", lambda: ops.kd_loss(s, t, math.inf)),
        (ValueError, "temperature is nan", lambda: ops.kd_loss(s, t, math.nan)),
        (ValueError, "temperature is 1e-40", lambda: ops.kd_loss(s, t, 1e-40)),
        (TypeError, "temperature.*Tensor.*float", lambda: ops.kd_loss(s, t, torch.tensor(4.0))),
        (TypeError, "temperature.*bool", lambda: ops.kd_loss(s, t, True)),
        (ValueError, "reduction is 'mean'.*batchmean", lambda: ops.kd_loss(s, t, reduction="mean")),
        (ValueError, "teacher_kind is 'x'.*log_probs", lambda: ops.kd_loss(s, t, teacher_kind="x")),
        (ValueError, r"weight.*\(5,\).*\(3,\)", lambda: ops.kd_loss(s, t, weight=torch.ones(5))),
        (
            ValueError,
            "weight requires grad",
            lambda: ops.kd_loss(s, t, weight=torch.ones(3, requires_grad=True)),
        ),
        (
            ValueError,
            "grad_scale",
            lambda: ops.kd_value_and_grad(s, t, grad_scale=torch.ones(2)),
        ),
        (ValueError, "target has shape", lambda: ops.soft_ce(s, t[:2])),
        (TypeError, "target.*int64", lambda: ops.mse_ce(s, t, y.int())),
        (
            ValueError,
            "target has labels from 0 to 5",
            lambda: ops.mse_ce(s, t, y + torch.tensor([0, 5, 1])),
        ),
        (ValueError, "target has shape", lambda: ops.mse_ce(s, t, y[:2])),
        (ValueError, "ce_weight is nan", lambda: ops.mse_ce(s, t, y, ce_weight=math.nan)),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()


def test_no_kernel_for_a_device_warns_once_and_raises_under_strict(monkeypatch):
    monkeypatch.setattr(_native, "_warned", set())
    monkeypatch.delenv("PYDDFAST_STRICT", raising=False)
    s = torch.zeros(3, 5, device="meta")
    with pytest.warns(RuntimeWarning, match="meta"):
        ops.kd_loss(s, s)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.kd_loss(s, s)
    monkeypatch.setenv("PYDDFAST_STRICT", "1")
    with pytest.raises(RuntimeError, match="PYDDFAST_STRICT"):
        ops.kd_loss(s, s)


KD_OPERATORS = [n for n in _native.OPERATORS if n.startswith(("kd_", "soft_ce", "mse_ce"))]


@pytest.mark.parametrize("name", KD_OPERATORS)
def test_opcheck(name):
    """torch's own checks of schema, fake kernel and dispatch."""
    s, t = logits(4, 10, 43).float(), torch.softmax(logits(4, 10, 44), -1).float()
    y, weight = torch.arange(4), torch.ones(4)
    kd, ce, mse = (4.0, 0, 16.0, 2), (1.5, 2), (0.1, 2)
    stats = None
    arguments = {
        "kd_loss": (s, t, weight, *kd),
        "kd_loss_score": (s, t, None, *kd),
        "kd_value_and_grad": (s.half(), t, weight, torch.tensor(2.0), 4.0, 0, 1.0, 0, False),
        "kd_grad_student": (torch.tensor(1.0), s.half(), t, None, stats, *kd),
        "kd_grad_teacher": (torch.ones(4), s, t.half(), weight, stats, 4.0, 0, 1.0, 0),
        "soft_ce": (s, t, weight, *ce),
        "soft_ce_value_and_grad": (s, t, None, *ce),
        "soft_ce_grad_student": (torch.tensor(1.0), s, t, None, stats, *ce),
        "soft_ce_grad_target": (torch.tensor(1.0), s, t, None, stats, *ce),
        "mse_ce": (s, t, y, None, *mse),
        "mse_ce_value_and_grad": (s, t, y, weight, *mse),
        "mse_ce_grad_student": (torch.tensor(1.0), s, t, y, None, stats, *mse),
        "mse_ce_grad_teacher": (torch.tensor(1.0), s, t, y, None, stats, *mse),
    }[name]
    torch.library.opcheck(getattr(torch.ops.pyddfast, name).default, arguments)
