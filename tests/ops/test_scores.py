"""Sample scores against decimal arithmetic of 150 digits and against autograd."""

from __future__ import annotations

from decimal import Decimal, getcontext

import pytest
import torch
from torch import Tensor

from pyddfast.ops.scores import SampleScores, sample_scores
from tests.ops.conftest import Backend

getcontext().prec = 150
GEN = torch.Generator().manual_seed(3)


def decimal_scores(row: list[float], label: int, temperature: float) -> dict[str, float]:
    """Each score by its definition, with digits enough for every cancellation."""
    z = [Decimal(value) for value in row]
    t = Decimal(temperature)
    e = [(value / t).exp() for value in z]
    p = [value / sum(e) for value in e]
    ranked = sorted(p, reverse=True)
    target = [Decimal(int(c == label)) for c in range(len(z))]
    el2n = sum((a - b) ** 2 for a, b in zip(p, target, strict=True)).sqrt()
    others = [c for c in range(len(z)) if c != label]
    result = {
        "p_y": p[label],
        "one_minus_p_y": sum(p[c] for c in others),
        "nll": -p[label].ln(),
        "el2n": el2n,
        "el2n_sl": el2n / t,
        "margin": z[label] - max(z[c] for c in others),
        "margin_prob": p[label] - max(p[c] for c in others),
        "top2_margin": ranked[0] - ranked[1],
        "entropy": -sum(value * value.ln() for value in p),
        "max_prob": ranked[0],
        "max_logit": max(z),
        "loss": -p[label].ln(),
    }
    return {name: float(value) for name, value in result.items()}


ROWS = {
    # name: (logits, label, why)
    "plain": ([1.0, -2.0, 0.5, 3.0], 3),
    "wrong": ([1.0, -2.0, 0.5, 3.0], 1),
    "1-p = 1e-4, the expanded EL2N is 0 in float32": ([9.5, 0.0, 0.0, 0.25], 0),
    "p rounds to 1 in float32, p - 1 is 0": ([20.0, 0.0, 1.0, 0.5], 0),
    "p rounds to 1 in float64": ([45.0, 0.0, 1.0, 0.5], 0),
    "squares of probabilities underflow in float32": ([70.0, 0.0, 1.0, 0.5], 0),
    "p underflows in float32": ([0.0, 150.0, 1.0, 0.5], 0),
    "two classes nearly tie": ([1.0, 1.0 + 2.0**-20, -3.0, -3.0], 0),
    "large logits": ([10_000.0, 9_999.0, -10_000.0, 0.0], 1),
    "two classes": ([0.25, -0.5], 1),
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float32, 1e-6), (torch.float64, 1e-13)],  # half a unit of float32; a few of float64
)
def test_every_score_to_its_last_digits(
    backend: Backend, name: str, temperature: float, dtype: torch.dtype, bound: float
) -> None:
    if dtype not in backend.dtypes:
        return  # float64 on CUDA runs the twin
    row, label = ROWS[name]
    logits = backend.put(torch.tensor([row], dtype=torch.float64), dtype)
    got = sample_scores(
        logits, torch.tensor([label], device=backend.device), temperature=temperature
    )
    for field, want in decimal_scores(row, label, temperature).items():
        value = float(getattr(got, field)[0])
        smallest = 1e-38 if dtype == torch.float32 else 1e-300
        assert abs(value - want) <= bound * abs(want) + smallest, (field, value, want)
    assert bool(got.correct[0]) == (max(range(len(row)), key=lambda c: row[c]) == label)


def test_el2n_keeps_its_relative_accuracy_over_eight_decades(backend: Backend) -> None:
    gaps = torch.linspace(0, 20, 41, dtype=torch.float64)
    logits = torch.zeros(41, 100, dtype=torch.float64)
    logits[:, 7] = gaps
    label = torch.full((41,), 7, device=backend.device)
    got = sample_scores(backend.put(logits), label).el2n.double().cpu()
    p = 1 / (gaps.exp() + 99)  # of each of the 99 others
    want = (99 * p**2 + (99 * p) ** 2).sqrt()
    assert (got / want - 1).abs().max() < 1e-6


def grad_norm(loss: Tensor, *parameters: Tensor) -> float:
    gradients = torch.autograd.grad(loss, parameters)
    return float(torch.cat([g.flatten() for g in gradients]).norm())


@pytest.mark.parametrize("kind", ["label", "probabilities", "teacher"])
def test_el2n_sl_and_grand_are_gradient_norms_of_the_loss(kind: str) -> None:
    torch64 = {"dtype": torch.float64, "generator": GEN}
    features = torch.randn(6, 5, **torch64)  # type: ignore[arg-type]
    weight = torch.randn(9, 5, **torch64).requires_grad_()  # type: ignore[arg-type]
    bias = torch.randn(9, **torch64).requires_grad_()  # type: ignore[arg-type]
    teacher = torch.randn(6, 9, **torch64)  # type: ignore[arg-type]
    label = torch.randint(0, 9, (6,), generator=GEN)
    q = {
        "label": torch.nn.functional.one_hot(label, 9).double(),
        "probabilities": teacher.softmax(-1),
        "teacher": (teacher / 3).softmax(-1),
    }[kind]
    logits = features @ weight.mT + bias
    got = sample_scores(
        logits.detach(),
        q if kind == "probabilities" else label,
        temperature=3.0,
        teacher=teacher if kind == "teacher" else None,
        features=features,
    )
    for row in range(6):
        z = logits[row].detach().requires_grad_()
        loss = (torch.xlogy(q[row], q[row]) - q[row] * (z / 3).log_softmax(-1)).sum()
        assert float(got.loss[row]) == pytest.approx(loss.item(), rel=1e-12)
        assert float(got.el2n_sl[row]) == pytest.approx(grad_norm(loss, z), rel=1e-12)
        loss = -(q[row] * ((weight @ features[row] + bias) / 3).log_softmax(-1)).sum()
        assert got.grand is not None
        assert float(got.grand[row]) == pytest.approx(grad_norm(loss, weight, bias), rel=1e-12)


def test_el2n_uses_the_target_and_el2n_sl_the_teacher() -> None:
    logits, teacher = torch.randn(2, 4, 6, generator=GEN, dtype=torch.float64)
    label = torch.tensor([0, 5, 2, 2])
    got = sample_scores(logits, label, temperature=20.0, teacher=teacher)
    p, q = (logits / 20).softmax(-1), (teacher / 20).softmax(-1)
    onehot = torch.nn.functional.one_hot(label, 6)
    assert (got.el2n - (p - onehot).norm(dim=-1)).abs().max() < 1e-14
    assert (got.el2n_sl - (p - q).norm(dim=-1) / 20).abs().max() < 1e-15


@pytest.mark.parametrize("one_minus_p", [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
@pytest.mark.parametrize("soft", [False, True], ids=["label", "one-hot probabilities"])
def test_el2n_of_easy_samples(backend: Backend, one_minus_p: float, soft: bool) -> None:
    """From where float32 has 1 - p_y = 0 to where nothing cancels, in ragged rows."""
    logits = torch.randn(4, 37, generator=GEN, dtype=torch.float64)
    label = torch.tensor([0, 36, 15, 16])  # the ends of a row and of a vector
    others = logits.scatter(1, label[:, None], -torch.inf).logsumexp(1)
    gap = torch.tensor(1 / one_minus_p - 1, dtype=torch.float64).log()
    logits = logits.scatter(1, label[:, None], (others + gap)[:, None]).float()
    p = logits.double().softmax(1).scatter(1, label[:, None], 0.0)
    want = (p.square().sum(1) + p.sum(1).square()).sqrt()
    target = torch.nn.functional.one_hot(label, 37).float() if soft else label
    got = sample_scores(backend.put(logits), target.to(backend.device))
    assert (got.el2n.cpu().double() / want - 1).abs().max() < 1e-6
    assert (got.one_minus_p_y.cpu().double() / p.sum(1) - 1).abs().max() < 1e-6
    if not soft:
        assert (got.nll.cpu().double() / -torch.log1p(-p.sum(1)) - 1).abs().max() < 1e-6


def test_the_first_largest_logit_is_the_guess(backend: Backend) -> None:
    # Ties within a vector, between vectors, between the threads of a row; in the soft target, too.
    for first, second in ((0, 1), (3, 19), (5, 40), (47, 48), (0, 49)):
        logits = torch.zeros(2, 50)
        logits[:, [first, second]] = 2.0
        label = torch.tensor([first, second], device=backend.device)
        got = sample_scores(backend.put(logits), label)
        assert got.correct.tolist() == [True, False]
        assert got.margin.tolist() == [0.0, 0.0]
        assert got.top2_margin.tolist() == [0.0, 0.0]
        soft = backend.put(logits.softmax(-1))  # its label is the first largest entry as well
        assert sample_scores(backend.put(logits), soft).correct.tolist() == [True, True]


def test_scores_of_a_teacher_that_nearly_agrees() -> None:
    # KL near 1e-10: the float32 difference p - q would have three digits left.
    logits = torch.randn(5, 50, generator=GEN)
    teacher = logits + 2e-4 * torch.randn(5, 50, generator=GEN)
    got = sample_scores(logits, torch.zeros(5, dtype=torch.int64), temperature=2.0, teacher=teacher)
    log_p = (logits.double() / 2).log_softmax(-1)
    log_q = (teacher.double() / 2).log_softmax(-1)
    want = (log_p.exp() - log_q.exp()).norm(dim=-1) / 2
    assert (got.el2n_sl.double() / want - 1).abs().max() < 1e-6
    kl = (log_q.exp() * (log_q - log_p)).sum(-1)
    assert (got.loss.double() / kl - 1).abs().max() < 2e-6


def test_minus_infinity_and_one_class_have_their_limits() -> None:
    masked = sample_scores(torch.tensor([[2.0, -torch.inf, 1.0]]), torch.tensor([0]))
    plain = sample_scores(torch.tensor([[2.0, 1.0]]), torch.tensor([0]))
    for field in SampleScores._fields:
        if field != "grand":
            assert torch.equal(getattr(masked, field), getattr(plain, field)), field
    single = sample_scores(torch.tensor([[2.0]]), torch.tensor([0]))
    assert single.p_y.tolist() == [1.0]
    assert single.el2n.tolist() == [0.0]
    assert single.entropy.tolist() == [0.0]
    assert single.margin_prob.tolist() == [1.0]


@pytest.mark.parametrize(
    "row",
    [[0.0, float("inf"), 1.0], [-float("inf")] * 3, [float("inf"), float("inf"), 0.0]],
    ids=["+inf", "-inf", "+inf twice"],
)
@pytest.mark.parametrize("soft", [False, True], ids=["label", "probabilities"])
def test_a_row_without_probabilities_is_nan_throughout(
    backend: Backend, row: list[float], soft: bool
) -> None:
    logits = backend.put(torch.tensor([[1.0, 2.0, 0.0], row, [0.0, 0.0, 3.0]]))
    target = torch.tensor([1, 0, 2], device=backend.device)
    given = torch.nn.functional.one_hot(target, 3).float() if soft else target
    features = backend.put(torch.ones(3, 2))
    got = sample_scores(logits, given, features=features)
    for field in SampleScores._fields:
        value = getattr(got, field)
        want = [True, False, True] if field == "correct" else [False, True, False]
        assert (value if field == "correct" else value.isnan()).tolist() == want, field


@pytest.mark.parametrize("shape", [(0, 3, 5), (3, 0, 5), (0, 5)])
@pytest.mark.parametrize("soft", [False, True], ids=["label", "probabilities"])
def test_empty_batches_have_empty_scores(
    backend: Backend, shape: tuple[int, ...], soft: bool
) -> None:
    logits = backend.put(torch.zeros(shape))
    target = logits if soft else torch.zeros(shape[:-1], dtype=torch.int64, device=backend.device)
    got = sample_scores(logits, target, teacher=logits, features=logits[..., :2])
    for field in SampleScores._fields:
        assert getattr(got, field).shape == shape[:-1], field


def test_leading_dimensions_half_precision_and_the_batch_do_not_matter() -> None:
    logits = torch.randn(3, 4, 10, generator=GEN)
    label = torch.randint(0, 10, (3, 4), generator=GEN)
    whole = sample_scores(logits, label)
    for i in range(3):
        part = sample_scores(logits[i, 1:], label[i, 1:])
        assert torch.equal(whole.el2n[i, 1:], part.el2n)
    half = sample_scores(logits.half(), label)
    assert half.el2n.dtype == torch.float32
    assert torch.equal(half.el2n, sample_scores(logits.half().float(), label).el2n)
    soft = torch.softmax(logits, -1)
    assert torch.equal(sample_scores(logits, soft).p_y, sample_scores(logits, soft.argmax(-1)).p_y)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"target": torch.tensor([0, 4])}, ValueError, "target has labels from 0 to 4; allowed"),
        ({"target": torch.tensor([-1, 0])}, ValueError, "target has labels from -1 to 0; allowed"),
        ({"target": [0, 1]}, TypeError, "target is a torch.Tensor, not list"),
        ({"target": torch.zeros(2, 4).fill_(0.25).bool()}, TypeError, "target has dtype"),
        ({"target": torch.tensor([0])}, ValueError, "target"),
        ({"target": torch.zeros(2, 3)}, ValueError, "target"),
        (
            {"target": torch.tensor([[0.25] * 4, [0.5, 0.75, -0.25, 0.0]])},
            ValueError,
            "row 1 has -0.25 as its smallest and a sum of 1",
        ),
        (
            {"target": torch.tensor([[0.25, 0.25, 0.25, 0.0], [0.25] * 4])},
            ValueError,
            "row 0 has 0 as its smallest and a sum of 0.75",
        ),
        ({"target": torch.full((2, 4), torch.nan)}, ValueError, "target holds probabilities"),
        ({"target": torch.full((2, 4), 0.26, dtype=torch.bfloat16)}, ValueError, "a sum of 1.0"),
        ({"target": torch.zeros(2, dtype=torch.int32)}, TypeError, "target"),
        ({"logits": torch.zeros(2, 4, dtype=torch.int64)}, TypeError, "logits"),
        ({"logits": torch.full((2, 4), torch.nan)}, ValueError, "logits hold NaN, first in row 0"),
        ({"logits": torch.zeros(2, 0)}, ValueError, "logits"),
        ({"temperature": 0.0}, ValueError, "temperature"),
        ({"temperature": float("nan")}, ValueError, "temperature"),
        ({"temperature": torch.tensor(1.0)}, TypeError, "temperature"),
        ({"teacher": torch.zeros(2, 5)}, ValueError, "teacher"),
        ({"features": torch.zeros(3, 5)}, ValueError, r"features has shape \(3, 5\)"),
        ({"features": torch.zeros(2, 0)}, ValueError, r"shape \(2, 0\); D >= 1 is needed"),
        ({"features": torch.zeros(2)}, ValueError, r"one feature vector a row is \(2, 'D'\)"),
        ({"features": torch.zeros(2, 5, device="meta")}, ValueError, "features is on meta"),
    ],
)
def test_refuses(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, object] = {"logits": torch.zeros(2, 4), "target": torch.tensor([0, 1])}
    arguments.update(change)
    with pytest.raises(error, match=message):
        sample_scores(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_probabilities_that_were_rounded_are_taken(dtype: torch.dtype) -> None:
    # 1000 equal values, each rounded the same way: the sum's error is the largest there is.
    for classes in (7, 1000, 1023):
        target = torch.full((2, classes), 1 / classes, dtype=dtype)
        scores = sample_scores(torch.zeros(2, classes, dtype=dtype), target)
        assert float(scores.el2n.max()) < 1e-2 / classes**0.5
