"""Readable twin of :func:`pyddfast.ops.scores.sample_scores`, in float64.

One rule runs through it: a small number is never the difference of two large ones.  Samples that a
network already classifies with certainty, where easy-sample methods rank, have 1 − p_y far below
the rounding error of p_y, so 1 − p_y is the sum of the other probabilities, and everything else
(−log p_y, EL2N, entropy, margins) is built on it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyddfast.ops.reference.kd import accumulation_dtype, kd_loss, widen

__all__ = ["SampleScores", "negative_log_prob", "sample_scores"]


class SampleScores(NamedTuple):
    """One value a row for every score; float32, or float64 for float64 logits.

    With p = softmax(logits / T), y the label (or the first largest entry of a soft target), and q
    the teacher's softmax(teacher / T) where a teacher is given, else the target:

    Attributes:
        p_y: Probability of the label.
        one_minus_p_y: Sum of the other probabilities; keeps its digits where ``p_y`` rounds to 1.
        nll: −log p_y.
        el2n: ‖p − target‖₂ (Paul et al., "Deep Learning on a Data Diet", NeurIPS 2021).
        el2n_sl: ‖p − q‖₂ / T (EL2N-SL, "Rethinking Dataset Distillation", §4).
        margin: Label's logit minus the largest other logit (area under the margin averages it).
        margin_prob: The same difference of probabilities.
        top2_margin: Largest minus second largest probability; small = uncertain.
        entropy: −Σ p log p, in nats.
        max_prob: Largest probability; small = least confident.
        max_logit: Largest logit.
        correct: Whether the first largest logit is the label's; bool.
        loss: KL(q‖p), the loss whose gradient ``el2n_sl`` measures; −log p_y for a label.
        grand: Norm of that loss's gradient by the last layer's weight and bias,
            ``el2n_sl · √(1 + ‖h‖²)``; None without features.
    """

    p_y: Tensor
    one_minus_p_y: Tensor
    nll: Tensor
    el2n: Tensor
    el2n_sl: Tensor
    margin: Tensor
    margin_prob: Tensor
    top2_margin: Tensor
    entropy: Tensor
    max_prob: Tensor
    max_logit: Tensor
    correct: Tensor
    loss: Tensor
    grand: Tensor | None = None


def sample_scores(
    logits: Tensor,
    target: Tensor,
    temperature: float,
    teacher: Tensor | None,
    features: Tensor | None,
) -> SampleScores:
    """Every score of every row; arguments as in the public function, already checked."""
    result = accumulation_dtype(logits)
    z = widen(logits)
    hard = not target.dtype.is_floating_point
    label = target if hard else target.argmax(-1)
    y = label.unsqueeze(-1)

    best, guess = z.max(-1, keepdim=True)
    # A row without probabilities: NaN throughout.
    unsound = ~best.isfinite().squeeze(-1)
    shifted = (z - best) / temperature
    total = shifted.exp().sum(-1, keepdim=True)
    p = shifted.exp() / total
    not_y = p.scatter(-1, y, 0.0)
    not_guess = p.scatter(-1, guess, 0.0)
    p_y = p.gather(-1, y).squeeze(-1)
    p_max = p.gather(-1, guess).squeeze(-1)

    # Only the guess can have a probability near 1, where its own log p would cancel.
    surprise = (total.log() - shifted).masked_fill(not_guess == 0, 0.0)
    entropy = p_max * _nll(not_guess, shifted, total, guess) + (not_guess * surprise).sum(-1)

    # p_a - p_b = p_a (1 - exp((z_b - z_a)/T)) for z_a >= z_b.
    margin = z.gather(-1, y).squeeze(-1) - z.scatter(-1, y, -torch.inf).amax(-1)
    higher = torch.maximum(p_y, not_y.amax(-1))
    margin_prob = (higher * -torch.expm1(-margin.abs() / temperature)).copysign(margin)
    runner_up = z.scatter(-1, guess, -torch.inf).amax(-1)
    top2_margin = p_max * -torch.expm1((runner_up - best.squeeze(-1)) / temperature)

    nll = _nll(not_y, shifted, total, y)
    if hard:
        # |p - e_y|^2 = sum_{c != y} p_c^2 + (sum_{c != y} p_c)^2
        loss, el2n = nll, _norm(torch.cat((not_y, not_y.sum(-1, keepdim=True)), dim=-1))
    else:
        loss, tempered = _kl(logits, target, temperature, "probs")
        el2n = tempered * temperature
    el2n_sl = el2n / temperature
    if teacher is not None:
        loss, el2n_sl = _kl(logits, teacher, temperature, "logits")
    grand = None
    if features is not None:
        grand = el2n_sl * (1 + widen(features).square().sum(-1)).sqrt()

    def column(score: Tensor) -> Tensor:
        return score.masked_fill(unsound, torch.nan).to(result)

    return SampleScores(
        p_y=column(p_y),
        one_minus_p_y=column(not_y.sum(-1)),
        nll=column(nll),
        el2n=column(el2n),
        el2n_sl=column(el2n_sl),
        margin=column(margin),
        margin_prob=column(margin_prob),
        top2_margin=column(top2_margin),
        entropy=column(entropy),
        max_prob=column(p_max),
        max_logit=column(best.squeeze(-1)),
        correct=(guess.squeeze(-1) == label) & ~unsound,
        loss=column(loss),
        grand=None if grand is None else column(grand),
    )


def negative_log_prob(logits: Tensor, target: Tensor) -> Tensor:
    """-log softmax(logits)[target], exact near 0 and never infinite by underflow.

    Args:
        logits: (..., C) floating point.
        target: int64 (...).

    Returns:
        (...) float32, or float64 for float64 logits.
    """
    z = widen(logits)
    shifted = z - z.amax(-1, keepdim=True)
    total = shifted.exp().sum(-1, keepdim=True)
    y = target.unsqueeze(-1)
    others = (shifted.exp() / total).scatter(-1, y, 0.0)
    return _nll(others, shifted, total, y).to(accumulation_dtype(logits))


def _nll(others: Tensor, shifted: Tensor, total: Tensor, index: Tensor) -> Tensor:
    """-log p of the class at ``index``; ``others`` holds the other classes' probabilities."""
    rest = others.sum(-1)
    far = (total.log() - shifted.gather(-1, index)).squeeze(-1)
    # Below 1/2 the class has the largest probability, and the sum is exact where far cancels.
    return torch.where(rest < 0.5, -torch.log1p(-rest), far)


def _norm(x: Tensor) -> Tensor:
    """Euclidean norm of rows whose squares may underflow."""
    scale = x.abs().amax(-1, keepdim=True)
    scale = torch.where(scale > 0, scale, 1.0)
    norm: Tensor = torch.linalg.vector_norm(x / scale, dim=-1) * scale.squeeze(-1)
    return norm


def _kl(student: Tensor, q: Tensor, temperature: float, kind: str) -> tuple[Tensor, Tensor]:
    """KL(q | p) and |p - q| / T of every row, by the twin of the KD loss."""
    return kd_loss(
        widen(student),
        q,
        temperature,
        teacher_kind=kind,
        reduction="none",
        t_squared=False,
        weight=None,
    )
