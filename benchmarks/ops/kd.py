"""The kd family: KL with its score, soft cross-entropy, MSE with cross-entropy.

`eager` is what a training script writes today; `torch.compile` is the same expression compiled;
`torch.compile (closed form)` compiles the gradient's formula too, without autograd: the most that
Inductor can do, and what `ours (one pass)`, `ops.kd_value_and_grad`, is to be held against.  A
step returns everything that it computed, so nothing can be left out as dead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Case, Step
from pyddfast import ops

TEMPERATURE = 20.0  # of the paper's SL and SL+KD recipes
CE_WEIGHT = 0.1  # of G-VBSM's MSE + CE loss

# The batch 1024 of relabelling on ImageNet-1k; a row too long for registers (ImageNet-21k, odd
# length); the student batch 256 on CIFAR-100 and CIFAR-10, where a call's fixed costs dominate.
CPU_SHAPES = [(1024, 1000), (128, 21841), (256, 100), (256, 10)]
QUICK_SHAPES = [(256, 100), (256, 10)]
# From latency-bound through L2-resident to far beyond the caches.
CUDA_SHAPES = [(256, 10), (256, 100), (1024, 1000), (16384, 1000), (131072, 1000), (1024, 21841)]
# fp32 throughout, labels stored in fp16, mixed precision training.
CUDA_DTYPES = [
    (torch.float32, torch.float32),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.bfloat16),
]

KL_LEVELS = [10.0**exponent for exponent in range(-10, 1)]
ACCURACY_SHAPE = (256, 1000)

Expression = Callable[..., Any]


def grid(
    device: torch.device, quick: bool
) -> list[tuple[tuple[int, int], torch.dtype, torch.dtype]]:
    """(rows, classes), student dtype, teacher dtype of every case."""
    if device.type == "cuda" and not quick:
        return [(shape, *dtypes) for dtypes in CUDA_DTYPES for shape in CUDA_SHAPES]
    shapes = QUICK_SHAPES if quick else CPU_SHAPES
    return [(shape, torch.float32, torch.float32) for shape in shapes]


def dtype_name(student: torch.dtype, teacher: torch.dtype) -> str:
    names = [str(dtype).removeprefix("torch.") for dtype in (student, teacher)]
    return names[0] if names[0] == names[1] else "/".join(names)


def logits(
    seed: int,
    shape: tuple[int, int],
    student_dtype: torch.dtype,
    teacher_dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Tensor]:
    """Logits of spread 3 (a trained network's) and hard labels, from the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(shape, generator=generator) for _ in range(2))
    target = torch.randint(shape[1], (shape[0],), generator=generator)
    return {
        "student": student.to(device, student_dtype).requires_grad_(),
        "teacher": teacher.to(device, teacher_dtype),
        "target": target.to(device),
    }


def inputs_of(
    shape: tuple[int, int], student: torch.dtype, teacher: torch.dtype, device: torch.device
) -> Callable[[int], Mapping[str, Tensor]]:
    return lambda seed: logits(seed, shape, student, teacher, device)


# --- the expressions -------------------------------------------------------------------------


def eager_kd(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Batch-mean KL and EL2N-SL from torch's operators."""
    log_p = F.log_softmax(student.float() / TEMPERATURE, dim=1)
    q = F.softmax(teacher.float() / TEMPERATURE, dim=1)
    loss = F.kl_div(log_p, q, reduction="batchmean")
    score = (log_p.detach().exp() - q).norm(dim=1) / TEMPERATURE
    return loss, score


def closed_form_kd(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, score and gradient without autograd."""
    log_p = F.log_softmax(student.float() / TEMPERATURE, dim=1)
    log_q = F.log_softmax(teacher.float() / TEMPERATURE, dim=1)
    q = log_q.exp()
    difference = log_p.exp() - q
    loss = (q * (log_q - log_p)).sum() / student.shape[0]
    score = difference.norm(dim=1) / TEMPERATURE
    return loss, score, (difference / (TEMPERATURE * student.shape[0])).to(student.dtype)


def our_kd(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    return ops.kd_loss(student, teacher, TEMPERATURE, return_score=True)


def our_one_pass(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return ops.kd_value_and_grad(student, teacher, TEMPERATURE)


def eager_soft_ce(student: Tensor, teacher: Tensor) -> tuple[Tensor]:
    """`teacher` holds probabilities here."""
    return (F.cross_entropy(student.float(), teacher.float()),)


def our_soft_ce(student: Tensor, teacher: Tensor) -> tuple[Tensor]:
    return (ops.soft_ce(student, teacher),)


def eager_mse_ce(student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor]:
    loss = F.mse_loss(student.float(), teacher.float())
    return (loss + CE_WEIGHT * F.cross_entropy(student.float(), target),)


def our_mse_ce(student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor]:
    return (ops.mse_ce(student, teacher, target, ce_weight=CE_WEIGHT),)


# --- from an expression to a step ------------------------------------------------------------


def _arguments(inputs: Mapping[str, Tensor], names: tuple[str, ...]) -> list[Tensor]:
    return [inputs[name] for name in names]


def forward(expression: Expression, *names: str) -> Callable[[Mapping[str, Tensor]], Step]:
    """The expression of the named inputs, without a gradient."""

    def bind(inputs: Mapping[str, Tensor]) -> Step:
        arguments = [tensor.detach() for tensor in _arguments(inputs, names)]
        return lambda: expression(*arguments)

    return bind


def forward_backward(expression: Expression, *names: str) -> Callable[[Mapping[str, Tensor]], Step]:
    """The expression and the gradient of its first value with respect to the student."""

    def bind(inputs: Mapping[str, Tensor]) -> Step:
        arguments, student = _arguments(inputs, names), inputs["student"]

        def step() -> object:
            values = expression(*arguments)
            return values, torch.autograd.grad(values[0], student)

        return step

    return bind


def compiled(expression: Expression) -> Expression:
    """`torch.compile` with its defaults, one shape a graph."""
    result: Expression = torch.compile(expression, fullgraph=True, dynamic=False)
    return result


def liger_kd() -> Expression | None:
    """Liger-Kernel's KL, which takes log-probabilities; None where it is not importable."""
    try:
        from liger_kernel.transformers import LigerKLDIVLoss
    except ImportError:
        return None
    loss_of = LigerKLDIVLoss(reduction="batchmean")

    def expression(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        log_p = F.log_softmax(student.float() / TEMPERATURE, dim=1)
        q = F.softmax(teacher.float() / TEMPERATURE, dim=1)
        score = (log_p.detach().exp() - q).norm(dim=1) / TEMPERATURE
        return loss_of(log_p, q), score

    return expression


def quack_kd() -> Expression | None:
    """QuACK's softmax of both, the rest of KL and score from torch; None where not importable."""
    try:
        from quack.softmax import softmax
    except ImportError:
        return None

    def expression(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        p = softmax(student.float() / TEMPERATURE)
        q = softmax(teacher.float() / TEMPERATURE)
        score = (p.detach() - q).norm(dim=1) / TEMPERATURE
        return F.kl_div(p.log(), q, reduction="batchmean"), score

    return expression


def quack_mse_ce() -> Expression | None:
    """QuACK's cross-entropy beside torch's mean squared difference."""
    try:
        from quack.cross_entropy import cross_entropy
    except ImportError:
        return None

    def expression(student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor]:
        loss = F.mse_loss(student.float(), teacher.float())
        return (loss + CE_WEIGHT * cross_entropy(student, target, reduction="mean"),)

    return expression


def importable(device: torch.device, **peers: Callable[[], Expression | None]) -> dict[str, Any]:
    """Those packages' expressions that are here; their kernels are for CUDA."""
    if device.type != "cuda":
        return {}
    found = {name: make() for name, make in peers.items()}
    return {name: expression for name, expression in found.items() if expression is not None}


# --- the cases -------------------------------------------------------------------------------


def kd_loss_cases(device: torch.device, quick: bool) -> list[Case]:
    """KL with its score: forward and backward, and forward alone."""
    cases = []
    peers = importable(device, liger=liger_kd, quack=quack_kd)
    pair = ("student", "teacher")
    for part in ("forward+backward", "forward"):
        run = forward_backward if part == "forward+backward" else forward
        for shape, student, teacher in grid(device, quick):
            providers = {
                "ours": run(our_kd, *pair),
                "eager": run(eager_kd, *pair),
                "torch.compile": run(compiled(eager_kd), *pair),
            }
            if part == "forward+backward":
                providers["ours (one pass)"] = forward(our_one_pass, *pair)
                closed = forward(compiled(closed_form_kd), *pair)
                providers["torch.compile (closed form)"] = closed
            providers |= {name: run(peer, *pair) for name, peer in peers.items()}
            rows, classes = shape
            gradient = student.itemsize if part == "forward+backward" else 0
            cases.append(
                Case(
                    op="kd_loss",
                    part=part,
                    shape=shape,
                    dtype=dtype_name(student, teacher),
                    # + 4 bytes a row: the score
                    bytes_floor=rows * classes * (student.itemsize + teacher.itemsize + gradient)
                    + 4 * rows,
                    make_inputs=inputs_of(shape, student, teacher, device),
                    providers=providers,
                )
            )
    return cases


def soft_ce_cases(device: torch.device, quick: bool) -> list[Case]:
    """Cross-entropy with stored probabilities."""

    def make(
        shape: tuple[int, int], student: torch.dtype, teacher: torch.dtype
    ) -> Callable[[int], Mapping[str, Tensor]]:
        def probabilities(seed: int) -> Mapping[str, Tensor]:
            inputs = logits(seed, shape, student, torch.float32, device)
            return {**inputs, "teacher": inputs["teacher"].softmax(1).to(teacher)}

        return probabilities

    return [
        Case(
            op="soft_ce",
            part="forward+backward",
            shape=shape,
            dtype=dtype_name(student, teacher),
            bytes_floor=shape[0] * shape[1] * (2 * student.itemsize + teacher.itemsize),
            make_inputs=make(shape, student, teacher),
            providers={
                "ours": forward_backward(our_soft_ce, "student", "teacher"),
                "eager": forward_backward(eager_soft_ce, "student", "teacher"),
                "torch.compile": forward_backward(compiled(eager_soft_ce), "student", "teacher"),
            },
        )
        for shape, student, teacher in grid(device, quick)
    ]


def mse_ce_cases(device: torch.device, quick: bool) -> list[Case]:
    """G-VBSM's loss: mean squared difference of logits, plus weighted cross-entropy."""
    names = ("student", "teacher", "target")
    peers = importable(device, quack=quack_mse_ce)
    return [
        Case(
            op="mse_ce",
            part="forward+backward",
            shape=shape,
            dtype=dtype_name(student, teacher),
            # + 8 bytes a row: the label
            bytes_floor=shape[0] * shape[1] * (2 * student.itemsize + teacher.itemsize)
            + 8 * shape[0],
            make_inputs=inputs_of(shape, student, teacher, device),
            providers={
                "ours": forward_backward(our_mse_ce, *names),
                "eager": forward_backward(eager_mse_ce, *names),
                "torch.compile": forward_backward(compiled(eager_mse_ce), *names),
                **{name: forward_backward(peer, *names) for name, peer in peers.items()},
            },
        )
        for shape, student, teacher in grid(device, quick)
    ]


# --- accuracy --------------------------------------------------------------------------------


def exact_kd(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """KL a row, its gradient with respect to the student's logits, and the score, in float64.

    With d = log q - log p: KL = sum q (d + expm1(-d)), every term >= 0, and p - q = q expm1(-d).
    Both hold their relative accuracy as the distributions meet, which sum q d does not.
    """
    s, t = student.double() / temperature, teacher.double() / temperature
    d = (t - s) + (s.logsumexp(1, keepdim=True) - t.logsumexp(1, keepdim=True))
    q = t.softmax(1)
    difference = q * torch.expm1(-d)
    kl = (q * (d + torch.expm1(-d))).sum(1)
    return kl, difference / temperature, difference.norm(dim=1) / temperature


def logits_at_kl(
    kl: float, shape: tuple[int, int], temperature: float, seed: int
) -> tuple[Tensor, Tensor]:
    """fp32 student and teacher logits, every row's KL(q||p) at the level (to fp32's rounding).

    The student is the teacher plus noise; KL grows with the noise's size, which is bisected.
    """
    generator = torch.Generator().manual_seed(seed)
    teacher, noise = (3 * torch.randn(shape, generator=generator).double() for _ in range(2))
    low, high = torch.zeros(shape[0], 1).double(), torch.full((shape[0], 1), 1e3).double()
    for _ in range(80):
        middle = (low + high) / 2
        above = exact_kd(teacher + middle * noise, teacher, temperature)[0][:, None] > kl
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (teacher + low * noise).float(), teacher.float()


def relative_error(value: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of the exact value."""
    return float((value.detach().double().cpu() - exact).norm() / exact.norm())


def kd_loss_accuracy(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """Norm-wise relative errors against float64 at KL levels from 1e-10 to 1, fp32 inputs."""

    def ours(s: Tensor, t: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        return ops.kd_loss(s, t, temperature, reduction="none", return_score=True)

    def eager(s: Tensor, t: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        log_p, q = F.log_softmax(s / temperature, 1), F.softmax(t / temperature, 1)
        score = (log_p.detach().exp() - q).norm(dim=1) / temperature
        return F.kl_div(log_p, q, reduction="none").sum(1), score

    rows = []
    shape = (32, 100) if quick else ACCURACY_SHAPE
    for temperature in (TEMPERATURE, 1.0):
        for kl in KL_LEVELS[:: 5 if quick else 1]:
            student, teacher = logits_at_kl(kl, shape, temperature, seed=0)
            loss, gradient, score = exact_kd(student, teacher, temperature)
            for provider, function in {"ours": ours, "eager": eager}.items():
                s = student.to(device).requires_grad_()
                got_loss, got_score = function(s, teacher.to(device), temperature)
                (got_gradient,) = torch.autograd.grad(got_loss.sum(), s)
                rows.append(
                    {
                        "op": "kd_loss",
                        "shape": list(shape),
                        "dtype": "float32",
                        "temperature": temperature,
                        "kl": kl,
                        "provider": provider,
                        "loss_error": relative_error(got_loss, loss),
                        "gradient_error": relative_error(got_gradient, gradient),
                        "score_error": relative_error(got_score, score),
                        "negative_losses": float((got_loss < 0).double().mean()),
                    }
                )
    return rows
