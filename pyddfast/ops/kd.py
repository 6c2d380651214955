"""Distillation losses on logits: temperature KL with its score, soft and mixed cross-entropies.

Each loss is one pass over its inputs.  On the CPU the forward also leaves the gradient behind (one
float32 buffer, handed over by the backward); on CUDA the backward computes it from the inputs and a
few numbers a row.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from pyddfast.ops import _checks, _native, reference
from pyddfast.ops._autograd import (
    differentiable_grads,
    functorch_active,
    keeps_gradient,
    leaves_to_twin,
    needs_graph,
    savable,
    take_gradient,
    values_readable,
)
from pyddfast.ops._native import raw

TeacherKind = Literal["logits", "probs", "log_probs"]
Reduction = Literal["batchmean", "sum", "none"]

# The positions are the codes of the native operators.
KINDS: tuple[TeacherKind, ...] = ("logits", "probs", "log_probs")
REDUCTIONS: tuple[Reduction, ...] = ("none", "sum", "batchmean")


@overload
def kd_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float = ...,
    *,
    teacher_kind: TeacherKind = ...,
    reduction: Reduction = ...,
    t_squared: bool = ...,
    weight: Tensor | None = ...,
    return_score: Literal[False] = ...,
) -> Tensor: ...
@overload
def kd_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float = ...,
    *,
    teacher_kind: TeacherKind = ...,
    reduction: Reduction = ...,
    t_squared: bool = ...,
    weight: Tensor | None = ...,
    return_score: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def kd_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 20.0,
    *,
    teacher_kind: TeacherKind = "logits",
    reduction: Reduction = "batchmean",
    t_squared: bool = False,
    weight: Tensor | None = None,
    return_score: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Temperature-scaled KL divergence :math:`KL(q \| p)` and the score EL2N-SL of each row.

    With :math:`p = \mathrm{softmax}(s/T)` and :math:`q = \mathrm{softmax}(t/T)`, a row's loss is
    :math:`\sum_i q_i (\log q_i - \log p_i)` and its score is :math:`\|p - q\|_2 / T`, which is the
    norm of the loss's gradient with respect to the student's logits.  Both keep a relative error of
    about 1e-7 even where p and q nearly agree, where ``F.kl_div`` cancels.

    Differentiable with respect to `student` and `teacher`, twice as well; the score carries no
    gradient.  Runs in float32 whatever the inputs' dtype (float64 for a float64 student).

    Args:
        student: Student logits, (..., C), float16, bfloat16, float32 or float64.
        teacher: Same shape and device; what `teacher_kind` says, in any of these dtypes.
        temperature: T > 0, a Python number; applies to the student, and to a teacher of logits.
        teacher_kind: ``"logits"``, ``"probs"`` (q itself) or ``"log_probs"`` (its natural
            logarithm).  Rows of q need not sum to one; the loss is then that of ``F.kl_div``.
        reduction: ``"batchmean"`` (sum over the rows divided by their number), ``"sum"`` or
            ``"none"`` (shape (...,)).
        t_squared: Multiplies the loss by T², as in Hinton et al. (2015).  The official large-scale
            codebases (SRe2L, RDED, EDC and others) do not.
        weight: (...,) factors of the rows' losses, without gradient: masks, mixing weights.
        return_score: Also returns the score, (...,), unaffected by `weight`, `reduction`,
            `t_squared` and the sum of q.

    Returns:
        The loss, or ``(loss, score)``; float32, or float64 for a float64 student.

    Raises:
        TypeError: An argument of the wrong type or dtype, by name.
        ValueError: A wrong shape, device or value, by name.

    The score is EL2N-SL of "Rethinking Dataset Distillation: Hard Truths About Soft Labels", §4.
    """
    temperature = _checks.temperature(temperature)
    kind = _checks.one_of(teacher_kind, KINDS, "teacher_kind")
    code = _checks.one_of(reduction, REDUCTIONS, "reduction")
    _checks.logits_pair(student, teacher, "teacher")
    _checks.row_weight(weight, student)
    if functorch_active() or not _native.usable(student, teacher):
        loss, score = reference.kd_loss(
            student,
            teacher,
            temperature,
            teacher_kind=teacher_kind,
            reduction=reduction,
            t_squared=t_squared,
            weight=weight,
        )
        return (loss, score) if return_score else loss

    s, t, w = _rows(student, teacher, weight)
    options = (temperature, kind, temperature**2 if t_squared else 1.0, code)
    if needs_graph(student, teacher):
        t, w = savable(t), savable(w)
        outputs = _KdLoss.apply(s, t, w, options, return_score)  # type: ignore[no-untyped-call]
    elif return_score:
        outputs = raw.kd_loss_score(s, t, w, *options)
    else:
        outputs = raw.kd_loss(s, t, w, *options)
    loss = outputs[0]
    if student.dim() == 2:
        return (loss, outputs[1]) if return_score else loss
    if reduction == "none":
        loss = loss.reshape(student.shape[:-1])
    return (loss, outputs[1].reshape(student.shape[:-1])) if return_score else loss


class _KdLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None,
        options: tuple[float, int, float, int],
        return_score: bool,
    ) -> Any:
        ctx.options, ctx.kept = options, None
        score = row_stats = None
        if keeps_gradient(student, ctx.needs_input_grad[0]):
            loss, score, ctx.kept = raw.kd_value_and_grad(
                student, teacher, weight, None, *options, True
            )
        elif return_score:
            loss, score, row_stats = raw.kd_loss_score(student, teacher, weight, *options)
        else:
            loss, row_stats = raw.kd_loss(student, teacher, weight, *options)
        ctx.save_for_backward(student, teacher, weight, row_stats)
        if not return_score:
            return (loss,)
        ctx.mark_non_differentiable(score)
        ctx.set_materialize_grads(False)  # no zeros for the score's gradient
        return loss, score

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> Any:
        if grad_loss is None:
            return None, None, None, None, None
        student, teacher, weight, row_stats = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        if leaves_to_twin(grad_loss):
            temperature, kind, scale, code = ctx.options

            def loss(s: Tensor, t: Tensor) -> Tensor:
                value, _ = reference.kd_loss(
                    s,
                    t,
                    temperature,
                    teacher_kind=KINDS[kind],
                    reduction=REDUCTIONS[code],
                    t_squared=False,
                    weight=weight,
                )
                return value.mul(scale)

            grads = differentiable_grads(loss, (student, teacher), wanted, grad_loss)
            return *grads, None, None, None

        inputs = (grad_loss, student, teacher, weight, row_stats, *ctx.options)
        grad_student = take_gradient(ctx, grad_loss, student.dtype) if wanted[0] else None
        if wanted[0] and grad_student is None:
            grad_student = raw.kd_grad_student(*inputs)
        grad_teacher = raw.kd_grad_teacher(*inputs) if wanted[1] else None
        return grad_student, grad_teacher, None, None, None


def kd_value_and_grad(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 20.0,
    *,
    teacher_kind: TeacherKind = "logits",
    reduction: Reduction = "batchmean",
    t_squared: bool = False,
    weight: Tensor | None = None,
    grad_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, score and gradient of `kd_loss` in one pass, without autograd.

    For those who call ``student.backward(grad)`` themselves: where nothing multiplies the gradient
    afterwards this reads the inputs once instead of twice.

    Args:
        student: As in `kd_loss`, like the arguments not listed here.
        teacher: As in `kd_loss`.
        temperature: As in `kd_loss`.
        teacher_kind: As in `kd_loss`.
        reduction: As in `kd_loss`; with ``"none"`` row r of the gradient is that of loss r.
        t_squared: As in `kd_loss`.
        weight: As in `kd_loss`.
        grad_scale: A scalar tensor on the student's device that multiplies the gradient before it
            is rounded to the student's dtype, and nothing else: the loss scale of a
            ``GradScaler``, the factor of a gradient accumulation.  float16 gradients of a mean
            need it, most of them are subnormal otherwise.

    Returns:
        ``(loss, score, grad)``; `grad` has the student's shape and dtype.

    Raises:
        TypeError: An argument of the wrong type or dtype, by name.
        ValueError: A wrong shape, device or value, by name.
    """
    temperature = _checks.temperature(temperature)
    kind = _checks.one_of(teacher_kind, KINDS, "teacher_kind")
    code = _checks.one_of(reduction, REDUCTIONS, "reduction")
    _checks.logits_pair(student, teacher, "teacher")
    _checks.row_weight(weight, student)
    if grad_scale is not None:
        _checks.float_tensor(grad_scale, "grad_scale")
        _checks.same_device(student, grad_scale, "grad_scale")
        if grad_scale.numel() != 1:
            raise ValueError(f"grad_scale has shape {tuple(grad_scale.shape)}; it is a scalar")
        grad_scale = grad_scale.detach().reshape(())
    student, teacher = student.detach(), teacher.detach()
    if functorch_active() or not _native.usable(student, teacher):

        def loss_and_score(logits: Tensor) -> tuple[Tensor, Tensor]:
            return reference.kd_loss(
                logits,
                teacher,
                temperature,
                teacher_kind=teacher_kind,
                reduction=reduction,
                t_squared=t_squared,
                weight=weight,
            )

        loss, gradient, score = torch.func.vjp(  # type: ignore[misc]
            loss_and_score, student, has_aux=True
        )
        upstream = torch.ones_like(loss) if grad_scale is None else grad_scale.to(loss.dtype)
        (grad,) = gradient(upstream.expand_as(loss))
        return loss, score, grad

    s, t, w = _rows(student, teacher, weight)
    scale = temperature**2 if t_squared else 1.0
    loss, score, grad = raw.kd_value_and_grad(
        s, t, w, grad_scale, temperature, kind, scale, code, False
    )
    rows = student.shape[:-1]
    return (
        loss.reshape(rows) if reduction == "none" else loss,
        score.reshape(rows),
        grad.reshape(student.shape),
    )


def soft_ce(
    student: Tensor,
    target: Tensor,
    temperature: float = 1.0,
    *,
    reduction: Reduction = "batchmean",
    weight: Tensor | None = None,
) -> Tensor:
    r"""Cross-entropy against soft labels, :math:`-\sum_i q_i \log \mathrm{softmax}(s/T)_i`.

    The student loss of trajectory-matching methods with learned labels (DATM) and of CutMix or
    label smoothing.  Differentiable with respect to `student` and `target`, twice as well.  Runs in
    float32 whatever the inputs' dtype (float64 for a float64 student).

    Args:
        student: Student logits, (..., C), float16, bfloat16, float32 or float64.
        target: Probabilities q of the same shape and device; rows need not sum to one.
        temperature: T > 0, a Python number.
        reduction: ``"batchmean"`` (``"mean"`` of ``F.cross_entropy``), ``"sum"`` or ``"none"``.
        weight: (...,) factors of the rows' losses, without gradient.

    Returns:
        The loss; float32, or float64 for a float64 student.

    Raises:
        TypeError: An argument of the wrong type or dtype, by name.
        ValueError: A wrong shape, device or value, by name.
    """
    temperature = _checks.temperature(temperature)
    code = _checks.one_of(reduction, REDUCTIONS, "reduction")
    _checks.logits_pair(student, target, "target")
    _checks.row_weight(weight, student)
    if functorch_active() or not _native.usable(student, target):
        return reference.soft_ce(
            student, target, temperature=temperature, reduction=reduction, weight=weight
        )
    s, t, w = _rows(student, target, weight)
    if needs_graph(student, target):
        t, w = savable(t), savable(w)
        loss: Tensor = _SoftCe.apply(  # type: ignore[no-untyped-call]
            s, t, w, temperature, code
        )
    else:
        loss = raw.soft_ce(s, t, w, temperature, code)[0]
    return loss.reshape(student.shape[:-1]) if reduction == "none" else loss


class _SoftCe(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        target: Tensor,
        weight: Tensor | None,
        temperature: float,
        code: int,
    ) -> Any:
        ctx.options, ctx.kept, row_stats = (temperature, code), None, None
        if keeps_gradient(student, ctx.needs_input_grad[0]):
            loss, ctx.kept = raw.soft_ce_value_and_grad(student, target, weight, *ctx.options)
        else:
            loss, row_stats = raw.soft_ce(student, target, weight, *ctx.options)
        ctx.save_for_backward(student, target, weight, row_stats)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> Any:
        student, target, weight, row_stats = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        temperature, code = ctx.options
        if leaves_to_twin(grad_loss):

            def loss(s: Tensor, t: Tensor) -> Tensor:
                return reference.soft_ce(
                    s, t, temperature=temperature, reduction=REDUCTIONS[code], weight=weight
                )

            grads = differentiable_grads(loss, (student, target), wanted, grad_loss)
            return *grads, None, None, None

        inputs = (grad_loss, student, target, weight, row_stats, *ctx.options)
        grad_student = take_gradient(ctx, grad_loss, student.dtype) if wanted[0] else None
        if wanted[0] and grad_student is None:
            grad_student = raw.soft_ce_grad_student(*inputs)
        grad_target = raw.soft_ce_grad_target(*inputs) if wanted[1] else None
        return grad_student, grad_target, None, None, None


def mse_ce(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    ce_weight: float = 0.1,
    reduction: Reduction = "batchmean",
    weight: Tensor | None = None,
) -> Tensor:
    r"""Squared error to the teacher's logits plus cross-entropy to the label ("MSE-GT").

    A row's loss is :math:`\frac1C \sum_i (s_i - t_i)^2 - \lambda \log \mathrm{softmax}(s)_y`, so
    that ``"batchmean"`` is ``F.mse_loss(s, t) + λ F.cross_entropy(s, y)``: the student loss of
    G-VBSM (Shao et al., 2024) and EDC.  Differentiable with respect to `student` and `teacher`,
    twice as well.  Runs in float32 whatever the inputs' dtype (float64 for a float64 student).

    Args:
        student: Student logits, (..., C), float16, bfloat16, float32 or float64.
        teacher: Teacher logits of the same shape and device.
        target: Class indices, (...,), int64.  On CUDA an index outside [0, C) makes its row NaN
            instead of raising (checking would wait for the device; PYDDFAST_DEBUG=1 does check).
        ce_weight: λ, a Python number; 0.1 for G-VBSM on ImageNet-1k, 0.025 for EDC.
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"`` (shape (...,)).
        weight: (...,) factors of the rows' losses, without gradient.

    Returns:
        The loss; float32, or float64 for a float64 student.

    Raises:
        TypeError: An argument of the wrong type or dtype, by name.
        ValueError: A wrong shape, device, label or value, by name.
    """
    ce_weight = _checks.number(ce_weight, "ce_weight")
    code = _checks.one_of(reduction, REDUCTIONS, "reduction")
    _checks.logits_pair(student, teacher, "teacher")
    readable = student.device.type == "cpu" or _native.debug()
    check_range = readable and values_readable(target)
    _checks.labels(target, student, check_range=check_range)
    _checks.row_weight(weight, student)
    if functorch_active() or not _native.usable(student, teacher):
        return reference.mse_ce(
            student, teacher, target, ce_weight=ce_weight, reduction=reduction, weight=weight
        )
    s, t, w = _rows(student, teacher, weight)
    y = target.reshape(-1)
    if needs_graph(student, teacher):
        t, y, w = savable(t), savable(y), savable(w)
        loss: Tensor = _MseCe.apply(  # type: ignore[no-untyped-call]
            s, t, y, w, ce_weight, code
        )
    else:
        loss = raw.mse_ce(s, t, y, w, ce_weight, code)[0]
    return loss.reshape(student.shape[:-1]) if reduction == "none" else loss


class _MseCe(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        target: Tensor,
        weight: Tensor | None,
        ce_weight: float,
        code: int,
    ) -> Any:
        ctx.options, ctx.kept, row_stats = (ce_weight, code), None, None
        inputs = (student, teacher, target, weight, *ctx.options)
        if keeps_gradient(student, ctx.needs_input_grad[0]):
            loss, ctx.kept = raw.mse_ce_value_and_grad(*inputs)
        else:
            loss, row_stats = raw.mse_ce(*inputs)
        ctx.save_for_backward(student, teacher, target, weight, row_stats)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> Any:
        student, teacher, target, weight, row_stats = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        ce_weight, code = ctx.options
        if leaves_to_twin(grad_loss):

            def loss(s: Tensor, t: Tensor) -> Tensor:
                return reference.mse_ce(
                    s, t, target, ce_weight=ce_weight, reduction=REDUCTIONS[code], weight=weight
                )

            grads = differentiable_grads(loss, (student, teacher), wanted, grad_loss)
            return *grads, None, None, None, None

        inputs = (grad_loss, student, teacher, target, weight, row_stats, *ctx.options)
        grad_student = take_gradient(ctx, grad_loss, student.dtype) if wanted[0] else None
        if wanted[0] and grad_student is None:
            grad_student = raw.mse_ce_grad_student(*inputs)
        grad_teacher = raw.mse_ce_grad_teacher(*inputs) if wanted[1] else None
        return grad_student, grad_teacher, None, None, None, None


def _rows(
    student: Tensor, other: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The arguments as matrices of rows."""
    if student.dim() == 2:
        return student, other, weight
    classes = student.shape[-1]
    rows = student.numel() // classes  # -1 is ambiguous where a dimension is 0
    return (
        student.reshape(rows, classes),
        other.reshape(rows, classes),
        None if weight is None else weight.reshape(rows),
    )
