"""The CUDA kernels of the kd family on the emulator: every launch configuration.

Which kernel runs depends on the number of classes and on the GPU (csrc/common/row_kernels.h); the
contract suite covers what an operator promises, this file what each kernel is made of.
"""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from pyddfast import ops
from tests.ops.cases import CASES, OpCase
from tests.tolerances import FLOAT32, assert_close

# The first and the last number of classes of each kernel.
RESIDENT = [
    1,
    16,
    17,
    64,
    65,
    128,
    129,
    256,
    257,
    512,
    513,
    1024,
    1025,
    2048,
    2049,
    4096,
    4097,
    8192,
]
CLUSTER = [8193, 16384, 16385, 24576, 24577, 65536]  # sm_90; looped below
LOOPED = [65537, 100_000]  # beyond a cluster of 8: read again in each round
CONFIGURATIONS = [
    *((90, classes) for classes in RESIDENT + CLUSTER + LOOPED),
    *((80, classes) for classes in (8192, 8193, 21841)),
]


def kd(student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
    """Loss rows, scores and gradient in one pass, and both gradients of the backward."""
    value = ops.kd_value_and_grad(student, teacher, 4.0, reduction="none")
    s, t = student.detach().requires_grad_(), teacher.detach().requires_grad_()
    loss = ops.kd_loss(s, t, 4.0, reduction="none")
    return (*value, *torch.autograd.grad(loss.sum(), (s, t)))


def pair(rows: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    student, teacher = torch.randn(2, rows, classes, generator=generator) * 3
    return student, teacher


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("capability", "classes"), CONFIGURATIONS)
def test_configuration(host: ModuleType, case: OpCase, capability: int, classes: int) -> None:
    """Loss, score and both gradients against the float64 twin."""
    host.set_compute_capability(capability)
    rows = 1 if classes > 2048 else 3  # 3 rows leave part of the last warp or CTA without a row
    a, b = (x.float() for x in case.make(rows, classes))
    inputs = [x.clone().requires_grad_() for x in (a, b)]
    wide = [x.double().requires_grad_() for x in (a, b)]
    outputs = case.op(*inputs, "sum", None)
    expected = case.twin(*wide, "sum", None)
    for got, want, name in zip(outputs, expected, ("loss", "score"), strict=False):
        assert_close(got, want, FLOAT32, name, absolute=case.absolute)
    got_grads = torch.autograd.grad(outputs[0], inputs)
    want_grads = torch.autograd.grad(expected[0], wide)
    for got, want, name in zip(got_grads, want_grads, ("first", "second"), strict=True):
        assert_close(got, want, FLOAT32, f"gradient of the {name} input", absolute=case.absolute)


# Rows that each thread of the sum takes: 1 to 4 (1024 threads), and more in a second turn.
@pytest.mark.parametrize("rows", [1025, 5000])
def test_configuration_of_many_rows(host: ModuleType, rows: int) -> None:
    case = CASES[0]
    inputs = case.make(rows, 3)
    got = case.op(*(x.float() for x in inputs), "batchmean", None)[0]
    want = case.twin(*(x.float().double() for x in inputs), "batchmean", None)[0]
    assert_close(got, want, FLOAT32)


@pytest.mark.parametrize("classes", [10, 100, 1001, 3000, 12_001])
@pytest.mark.parametrize(
    ("offset", "stride"),
    [
        (0, 0),  # the layout that the others are held against, from another launch
        (1, 0),  # base not aligned to a vector
        (0, 1),  # rows of different alignment
        (3, 5),
    ],
)
def test_bits_do_not_depend_on_alignment_or_batch(
    host: ModuleType, classes: int, offset: int, stride: int
) -> None:
    student, teacher = pair(3, classes)
    expected = kd(student[1:2].clone(), teacher[1:2].clone())
    moved = []
    for x in (student, teacher):
        buffer = torch.full((3 * (classes + stride) + offset,), float("nan"))
        view = buffer[offset:].view(3, classes + stride)[:, :classes]
        moved.append(view.copy_(x))
    for got, want in zip(kd(*moved), expected, strict=True):
        assert torch.equal(got[1:2], want)


@pytest.mark.parametrize(("capability", "classes"), [(90, 3000), (90, 12_001), (80, 12_001)])
def test_bits_do_not_depend_on_the_schedule(
    host: ModuleType, capability: int, classes: int
) -> None:
    host.set_compute_capability(capability)
    student, teacher = pair(2, classes)
    expected = kd(student, teacher)
    for seed in range(1, 6):
        host.set_seed(seed)
        for got, want in zip(kd(student, teacher), expected, strict=True):
            assert torch.equal(got, want)
