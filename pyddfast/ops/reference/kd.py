"""Twins of the ``kd`` family: plain torch in float64, differentiable to any order."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def accumulation_dtype(student: Tensor) -> torch.dtype:
    """The dtype of losses and scores: float32, or float64 for a float64 student."""
    return torch.float64 if student.dtype is torch.float64 else torch.float32


def widen(tensor: Tensor) -> Tensor:
    """In float64, or float32 on devices without it."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def reduce_rows(rows: Tensor, weight: Tensor | None, scale: float, reduction: str) -> Tensor:
    """Row weights, `scale` and the reduction, of row losses (...,); 0 for an empty batch."""
    rows = rows if weight is None else rows * weight.to(rows.dtype)
    rows = rows * scale
    if reduction == "none":
        return rows
    return rows.sum() / max(1, rows.numel()) if reduction == "batchmean" else rows.sum()


def kd_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    *,
    teacher_kind: str,
    reduction: str,
    t_squared: bool,
    weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Loss and score of ``ops.kd_loss``, as sum q phi(d) with d = log q - log p.

    phi(d) = d + exp(-d) - 1; the sum equals sum q d, the usual KL, because p and q both sum to one,
    and has no cancellation where the two distributions are close.
    """
    s, t = widen(student) / temperature, widen(teacher)
    log_p = F.log_softmax(s, dim=-1)
    if teacher_kind == "logits":
        t = t / temperature
        log_q = F.log_softmax(t, dim=-1)
    else:
        # Where q = 0 its logarithm is masked below; 1 keeps the gradient of the mask finite.
        log_q = t if teacher_kind == "log_probs" else torch.where(t == 0, 1.0, t).log()
    p = log_p.exp()
    q = t if teacher_kind == "probs" else log_q.exp()
    # Classes without mass contribute their p, and no gradient to the teacher.
    empty = q == 0
    if teacher_kind == "logits":
        # Rounding errors of the normalisers are common to the row, and d^2 takes them out.
        s, t = _moved_to_zero(s), _moved_to_zero(t)
        offset = s.logsumexp(-1, keepdim=True) - t.logsumexp(-1, keepdim=True)
        d = (torch.where(empty, 0.0, t) - torch.where(empty, 0.0, s)) + offset
    else:
        d = torch.where(empty, 0.0, log_q) - torch.where(empty, 0.0, log_p)
    d = torch.where(empty, 0.0, d)
    # Where p and q are far apart, p - q has no cancellation (and q expm1(-d) would overflow).
    close = d.abs() < 1
    near = torch.where(close, d, 0.0)
    difference = torch.where(close & ~empty, q * torch.expm1(-near), p - q)
    divergence = torch.where(close, q * _phi(near), q * d + (p - q))
    rows = torch.where(empty, p, divergence).sum(-1)
    if teacher_kind != "logits":
        rows = rows + (torch.where(empty, 0.0, q).sum(-1) - 1.0)
        difference = p - q  # as exact as the probabilities that were given
    score = (difference.detach().norm(dim=-1) / temperature).to(accumulation_dtype(student))
    scale = temperature**2 if t_squared else 1.0
    loss = reduce_rows(rows, weight, scale, reduction)
    return loss.to(accumulation_dtype(student)), score


def _moved_to_zero(logits: Tensor) -> Tensor:
    """Rows so far from 0 that another row's digits would drown in a difference, without offset."""
    offset = logits.detach().amax(-1, keepdim=True)
    far = (offset.abs() > 1e6) & offset.isfinite()  # nearer, a difference keeps more than it costs
    return logits - torch.where(far, offset, 0.0)


def _phi(d: Tensor) -> Tensor:
    """Of abs(d) < 1: d + exp(-d) - 1 by its series, d^2/2 (1 - d/3 (1 - d/4 (...)))."""
    tail = torch.ones_like(d)
    for k in range(19, 2, -1):  # 2/20! is far below a rounding
        tail = 1 - d / k * tail
    return d.square() / 2 * tail


def soft_ce(
    student: Tensor,
    target: Tensor,
    *,
    temperature: float,
    reduction: str,
    weight: Tensor | None,
) -> Tensor:
    """Loss of ``ops.soft_ce``."""
    log_p = F.log_softmax(widen(student) / temperature, dim=-1)
    q = widen(target)
    # 0 * inf is 0; where log p is finite the product keeps its gradient to the target.
    unbounded = (q == 0) & torch.isinf(log_p)
    rows = -(q * torch.where(unbounded, 0.0, log_p)).sum(-1)
    return reduce_rows(rows, weight, 1.0, reduction).to(accumulation_dtype(student))


def mse_ce(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    ce_weight: float,
    reduction: str,
    weight: Tensor | None,
) -> Tensor:
    """Loss of ``ops.mse_ce``."""
    s, t = widen(student), widen(teacher)
    surprise = -F.log_softmax(s, dim=-1).gather(-1, target[..., None]).squeeze(-1)
    rows = (s - t).square().mean(-1) + ce_weight * surprise
    return reduce_rows(rows, weight, 1.0, reduction).to(accumulation_dtype(student))
