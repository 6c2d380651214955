"""Sample scores: everything that coreset selection ranks by, from one pass over the logits."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyddfast.ops.reference import scores as reference

__all__ = ["SampleScores", "sample_scores"]


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
    grand: Tensor | None


@torch.no_grad()
def sample_scores(
    logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    teacher: Tensor | None = None,
    features: Tensor | None = None,
) -> SampleScores:
    """Scores of every sample; no gradient flows.

    None of them cancels: the usual ‖softmax − onehot‖ is off by up to √C in float32 once p_y
    rounds to 1, and the expanded square is 0 from 1 − p_y = 1e-4 down.  Easy samples are ranked
    there.

    Args:
        logits: (..., C) floating point, C at least 1; may hold −inf, not NaN.
        target: int64 (...) labels, or floating point (..., C) probabilities.
        temperature: T, finite and positive.  1 gives the classic scores.
        teacher: (..., C) floating point teacher logits, for ``el2n_sl`` and ``loss``.
        features: (..., D) floating point inputs of the last layer, for ``grand``.

    Returns:
        A :class:`SampleScores` of tensors (...).

    Raises:
        TypeError: A dtype is wrong, or ``temperature`` is not a number.
        ValueError: Shapes do not fit, a label is out of range, the temperature is not finite and
            positive, or logits hold NaN.
    """
    if not isinstance(temperature, int | float) or isinstance(temperature, bool):
        raise TypeError(f"temperature must be a Python float, got {type(temperature).__name__}")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be finite and positive, got {temperature}")
    _check_rows("logits", logits)
    if logits.ndim < 1 or logits.shape[-1] < 1:
        raise ValueError(f"logits must have shape (..., C) with C >= 1, got {tuple(logits.shape)}")
    rows, classes = logits.shape[:-1], logits.shape[-1]
    if target.dtype == torch.int64:
        if target.shape != rows:
            raise ValueError(
                f"target must have shape {tuple(rows)}, the rows of logits, "
                f"got {tuple(target.shape)}"
            )
        if target.numel() and not 0 <= int(target.min()) <= int(target.max()) < classes:
            raise ValueError(
                f"target must lie in [0, {classes}), "
                f"got values from {int(target.min())} to {int(target.max())}"
            )
    elif target.dtype.is_floating_point:
        if target.shape != logits.shape:
            raise ValueError(
                f"target probabilities must have the shape of logits {tuple(logits.shape)}, "
                f"got {tuple(target.shape)}"
            )
    else:
        raise TypeError(f"target must be int64 or floating point, got {target.dtype}")
    if teacher is not None:
        _check_rows("teacher", teacher)
        if teacher.shape != logits.shape:
            raise ValueError(
                f"teacher must have the shape of logits {tuple(logits.shape)}, "
                f"got {tuple(teacher.shape)}"
            )
    if features is not None:
        _check_rows("features", features)
        if features.shape[:-1] != rows:
            raise ValueError(
                f"features must have shape (*{tuple(rows)}, D), got {tuple(features.shape)}"
            )
    if bool(logits.isnan().any()):
        raise ValueError("logits must not hold NaN")
    return SampleScores(
        *reference.sample_scores(logits, target, float(temperature), teacher, features)
    )


def _check_rows(name: str, value: Tensor) -> None:
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name} must be floating point, got {value.dtype}")
