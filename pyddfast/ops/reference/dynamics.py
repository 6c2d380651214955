"""Readable twin of :func:`pyddfast.ops.dynamics.dynamics_update_`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyddfast.ops.reference.kd import widen
from pyddfast.ops.reference.scores import sample_scores

__all__ = ["COUNT_LIMIT", "DynamicsState", "dynamics_update_", "teacher_cosine"]

# Counters are int16 and stay at their largest value: a training presents a sample some hundred
# times, and two bytes a counter keep the state of ImageNet-1k below 90 MB.
COUNT_LIMIT = 32767


class DynamicsState(NamedTuple):
    """What is kept of every sample during a training; N samples, all tensors on one device.

    Attributes:
        ring: (N, R) float32 or float16; slot ``tick % R`` holds the signal of that tick, NaN where
            the sample was not seen in it.
        last_correct: (N,) uint8, 1 where the last presentation was classified correctly.
        seen: (N,) int16, number of presentations; like every counter it stops at 32767.
        forgetting: (N,) int16, how often a correct presentation was followed by a wrong one.
        correct: (N,) int16, number of correct presentations.
        first_learned: (N,) int16, number (from 0) of the first correct presentation, −1 before it.
        aum: (N,) float32, sum of the logit margins.
        el2n: (N,) float32, sum of EL2N.
        el2n_sl: (N,) float32, sum of EL2N-SL; None: not recorded, as for the following.
        entropy: (N,) float32, sum of the prediction's entropy in nats.
        nll: (N,) float32, sum of −log p_y.
        grand: (N,) float32, sum of the last layer's gradient norm.
        sharp: (N,) float32, sum of cos(p − y, p − q), q the teacher's prediction.
    """

    ring: Tensor
    last_correct: Tensor
    seen: Tensor
    forgetting: Tensor
    correct: Tensor
    first_learned: Tensor
    aum: Tensor
    el2n: Tensor
    el2n_sl: Tensor | None = None
    entropy: Tensor | None = None
    nll: Tensor | None = None
    grand: Tensor | None = None
    sharp: Tensor | None = None


def dynamics_update_(
    state: DynamicsState,
    logits: Tensor,
    target: Tensor,
    indices: Tensor,
    tick: Tensor,
    temperature: float,
    teacher: Tensor | None,
    features: Tensor | None,
    signal: str,
    soft_temperature: float | None = None,
) -> None:
    """Write a batch into the state; arguments as in the public function, already checked."""
    joint = state.el2n_sl is not None and soft_temperature is None
    scores = sample_scores(logits, target, temperature, teacher if joint else None, features)
    el2n_sl = scores.el2n_sl
    if state.el2n_sl is not None and soft_temperature is not None:
        el2n_sl = sample_scores(logits, target, soft_temperature, teacher, None).el2n_sl
    value = {"1-p": scores.one_minus_p_y, "nlp": scores.nll, "el2n": scores.el2n}[signal]
    state.ring[indices, tick % state.ring.shape[1]] = value.to(state.ring.dtype)

    before = state.last_correct[indices] != 0
    count = state.seen[indices]
    first = state.first_learned[indices]
    state.first_learned[indices] = torch.where((first < 0) & scores.correct, count, first)
    for counter, event in (
        (state.seen, torch.ones_like(before)),
        (state.forgetting, before & ~scores.correct),
        (state.correct, scores.correct),
    ):
        counter[indices] = (counter[indices].int() + event).clamp(max=COUNT_LIMIT).short()
    state.last_correct[indices] = scores.correct.to(torch.uint8)

    sharp = None
    if state.sharp is not None:
        assert teacher is not None  # checked by the public function
        sharp = teacher_cosine(logits, target, teacher, temperature)
    for total, addend in (
        (state.aum, scores.margin),
        (state.el2n, scores.el2n),
        (state.el2n_sl, el2n_sl),
        (state.entropy, scores.entropy),
        (state.nll, scores.nll),
        (state.grand, scores.grand),
        (state.sharp, sharp),
    ):
        if total is not None:
            assert addend is not None
            total[indices] += addend.to(total.dtype)


def teacher_cosine(logits: Tensor, target: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """cos(p − onehot(y), p − q) of every row; 0 where one of the two is zero.

    Args:
        logits: (..., C) floating point; p is its softmax at the temperature.
        target: int64 (...) labels y.
        teacher: (..., C) floating point; q is its softmax at the temperature.
        temperature: T.

    Returns:
        (...) float64, or float32 on devices without it.
    """
    log_p = (widen(logits) / temperature).log_softmax(-1)
    log_q = (widen(teacher) / temperature).log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    # q(exp(log p - log q) - 1) keeps the digits of p - q where the two are close.
    d = log_p - log_q
    near = d.abs() < 1  # false for infinities and their NaN
    to_teacher = torch.where(near, q * torch.expm1(torch.where(near, d, 0.0)), p - q)
    y = target.unsqueeze(-1)
    others = p.scatter(-1, y, 0.0)
    to_label = others.scatter(-1, y, -others.sum(-1, keepdim=True))
    return (_unit(to_label) * _unit(to_teacher)).sum(-1)


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1, also where squares would underflow; zero rows stay zero."""
    scale = x.abs().amax(-1, keepdim=True)
    x = x / torch.where(scale > 0, scale, 1.0)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(norm > 0, norm, 1.0)
