"""The kd cases: every provider computes the same values, and the float64 yardstick is right."""

import sys
from functools import partial
from types import ModuleType

import mpmath
import pytest
import torch
from torch.nn import functional as F

from benchmarks.ops import CASES, kd

CPU = torch.device("cpu")


def exact_by_mpmath(student: torch.Tensor, teacher: torch.Tensor, temperature: float):
    """KL of a row and the norm of p - q over T, with 50 digits."""
    with mpmath.workdps(50):
        s = [mpmath.mpf(x) / temperature for x in student.tolist()]
        t = [mpmath.mpf(x) / temperature for x in teacher.tolist()]
        sum_s, sum_t = mpmath.fsum(map(mpmath.exp, s)), mpmath.fsum(map(mpmath.exp, t))
        p, q = [mpmath.exp(x) / sum_s for x in s], [mpmath.exp(x) / sum_t for x in t]
        kl = mpmath.fsum(b * mpmath.log(b / a) for a, b in zip(p, q, strict=True))
        norm = mpmath.sqrt(mpmath.fsum((a - b) ** 2 for a, b in zip(p, q, strict=True)))
        gradient = [float((a - b) / temperature) for a, b in zip(p, q, strict=True)]
        return float(kl), gradient, float(norm / temperature)


@pytest.mark.parametrize("temperature", [20.0, 1.0])  # the paper's, and peaked distributions
@pytest.mark.parametrize("kl", [1e-10, 1e-5, 1.0])  # the ends of the table and its middle
def test_the_yardstick_is_exact_and_the_inputs_have_the_level(
    kl: float, temperature: float
) -> None:
    student, teacher = kd.logits_at_kl(kl, (3, 17), temperature, seed=1)
    assert student.dtype == teacher.dtype == torch.float32
    loss, gradient, score = kd.exact_kd(student, teacher, temperature)
    for row in range(3):
        want = exact_by_mpmath(student[row], teacher[row], temperature)
        assert float(loss[row]) == pytest.approx(want[0], rel=1e-8)
        torch.testing.assert_close(
            gradient[row], torch.tensor(want[1], dtype=torch.float64), rtol=1e-8, atol=0
        )
        assert float(score[row]) == pytest.approx(want[2], rel=1e-8)
    # Rounding the student to fp32 moves a KL of 1e-10 by up to a few percent.
    torch.testing.assert_close(loss, torch.full_like(loss, kl), rtol=0.05, atol=0)


def flat(values: object) -> list[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        return [values.detach()]
    return [tensor for value in values for tensor in flat(value)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("op", ["kd_loss", "soft_ce", "mse_ce", "sample_scores"])
def test_providers_agree(op: str) -> None:
    # torch.compile is left out for its compilation time; it compiles these same functions.
    for case in CASES[op](CPU, True):
        inputs = case.make_inputs(3)
        before = {name: tensor.detach().clone() for name, tensor in inputs.items()}
        names = [name for name in case.providers if not name.startswith("torch.compile")]
        assert names[:1] == ["ours"]
        assert "eager" in names
        values = {name: flat(case.providers[name](inputs)()) for name in names}
        for name in names[1:]:
            assert len(values[name]) == len(values["ours"])
            for got, want in zip(values[name], values["ours"], strict=True):
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-7)
        for name, tensor in inputs.items():
            assert torch.equal(tensor, before[name])


def test_the_closed_form_is_the_eager_expression() -> None:
    inputs = kd.logits(0, (5, 11), torch.float64, torch.float64, CPU)
    loss, score = kd.eager_kd(inputs["student"], inputs["teacher"])
    (gradient,) = torch.autograd.grad(loss, inputs["student"])
    for got, want in zip(
        kd.closed_form_kd(inputs["student"], inputs["teacher"]),
        (loss, score, gradient),
        strict=True,
    ):
        torch.testing.assert_close(got.double(), want.double(), rtol=1e-4, atol=1e-7)


def test_inputs_come_from_the_seed_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (
        kd.logits(seed, (4, 6), torch.float32, torch.float16, CPU) for seed in (7, 7, 8)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["student"], other["student"])
    assert (first["student"].dtype, first["teacher"].dtype) == (torch.float32, torch.float16)


@pytest.mark.parametrize(
    ("op", "part", "bytes_floor"),
    [  # 256 x 10 fp32: student, teacher, gradient; 4 bytes a row of score, 8 of label
        ("kd_loss", "forward+backward", 3 * 256 * 10 * 4 + 256 * 4),
        ("kd_loss", "forward", 2 * 256 * 10 * 4 + 256 * 4),
        ("soft_ce", "forward+backward", 3 * 256 * 10 * 4),
        ("mse_ce", "forward+backward", 3 * 256 * 10 * 4 + 256 * 8),
    ],
)
def test_bytes_floor(op: str, part: str, bytes_floor: int) -> None:
    cases = [c for c in CASES[op](CPU, True) if c.shape == (256, 10) and c.part == part]
    assert [case.bytes_floor for case in cases] == [bytes_floor]


def test_accuracy_rows_tell_exact_from_cancelling() -> None:
    rows = kd.kd_loss_accuracy(CPU, True)
    tiny = {r["provider"]: r for r in rows if r["kl"] == 1e-10 and r["temperature"] == 20.0}
    # The bound for ours; F.kl_div has no correct digit left at this level.
    assert max(tiny["ours"][f"{v}_error"] for v in ("loss", "gradient", "score")) <= 1e-6
    assert tiny["eager"]["loss_error"] > 1
    assert tiny["ours"]["negative_losses"] == 0


def test_peers_that_are_importable_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their packages need a GPU: here torch stands for their kernels, by their signatures."""
    modules = {
        "quack": {},
        "quack.softmax": {"softmax": lambda x: x.softmax(-1)},
        "quack.cross_entropy": {"cross_entropy": F.cross_entropy},
        "liger_kernel": {},
        "liger_kernel.transformers": {
            "LigerKLDIVLoss": lambda reduction: partial(F.kl_div, reduction=reduction)
        },
    }
    peers = {"liger": kd.liger_kd, "quack": kd.quack_kd}
    assert kd.importable(torch.device("cpu"), **peers) == {}
    assert kd.importable(torch.device("cuda"), missing=lambda: None) == {}
    for name, functions in modules.items():
        module = ModuleType(name)
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, name, module)
    inputs = kd.logits(0, (7, 11), torch.float32, torch.float32, torch.device("cpu"))
    student, teacher, target = (inputs[n] for n in ("student", "teacher", "target"))
    found = kd.importable(torch.device("cuda"), **peers)
    assert set(found) == {"liger", "quack"}
    for peer in found.values():
        for got, want in zip(peer(student, teacher), kd.eager_kd(student, teacher), strict=True):
            torch.testing.assert_close(got, want)
    with_ce = kd.quack_mse_ce()
    assert with_ce is not None
    torch.testing.assert_close(
        with_ce(student, teacher, target), kd.eager_mse_ce(student, teacher, target)
    )
