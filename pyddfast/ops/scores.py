"""Sample scores: everything that coreset selection ranks by, from one pass over the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyddfast.ops import _checks, _native
from pyddfast.ops._autograd import functorch_active
from pyddfast.ops._native import raw
from pyddfast.ops.reference import scores as reference
from pyddfast.ops.reference.scores import SampleScores

__all__ = ["SampleScores", "sample_scores"]

# The rows of the kernel's table, in the order of csrc/scores/scores_math.h.
_COLUMNS = tuple(name for name in SampleScores._fields if name != "correct")


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
    there.  Runs in float32 whatever the inputs' dtype (float64 for float64 logits).

    Args:
        logits: (..., C), float16, bfloat16, float32 or float64, C at least 1; may hold −inf.
        target: int64 (...) labels, or floating point (..., C) probabilities: not negative, a sum of
            1 (within 1e-3, bfloat16 within 8e-3).  On CUDA a label outside [0, C) or a NaN logit
            makes every score of its row NaN and ``correct`` False instead of raising, and
            probabilities are taken as they are (checking would wait for the device;
            PYDDFAST_DEBUG=1 does check).
        temperature: T, finite and positive.  1 gives the classic scores.
        teacher: (..., C) floating point teacher logits, for ``el2n_sl`` and ``loss``.
        features: (..., D) floating point inputs of the last layer, for ``grand``.

    Returns:
        A :class:`SampleScores` of tensors (...), float32 or, for float64 logits, float64.

    Raises:
        TypeError: An argument of the wrong type or dtype, by name.
        ValueError: A wrong shape, device or value, by name: also a label outside [0, C) and, on
            the CPU, NaN logits and a target that is no probability.
    """
    temperature = _checks.temperature(temperature)
    _checks.logits(logits, "logits")
    _checks.tensor(target, "target")
    hard = not target.dtype.is_floating_point
    if hard:
        _checks.labels(target, logits, check_range=False, first="logits")
    else:
        _checks.logits_pair(logits, target, "target", first="logits")
    if teacher is not None:
        _checks.logits_pair(logits, teacher, "teacher", first="logits")
    if features is not None:
        _checks.row_features(features, logits)

    native = not functorch_active() and _native.usable(logits, target, teacher, features)
    readable = not torch.compiler.is_compiling() and not functorch_active()
    if readable and (_native.debug() if native and _native.recomputes(logits) else not native):
        _check_values(logits, target)
    elif readable and not hard and target.device.type == "cpu":
        # The kernel refuses the rest.  Two reads of the target beside the kernel's work on it.
        _checks.probabilities(target, "target")
    if not native:
        return reference.sample_scores(logits, target, temperature, teacher, features)

    classes = logits.shape[-1]
    rows = logits.numel() // classes  # -1 is ambiguous where a dimension is 0
    inputs = [
        logits.reshape(rows, classes),
        target.reshape(rows) if hard else target.reshape(rows, classes),
        None if teacher is None else teacher.reshape(rows, classes),
        None if features is None else features.reshape(rows, features.shape[-1]),
    ]
    if readable:
        try:
            table, correct = raw.sample_scores(*inputs, temperature)
        except RuntimeError:  # the CPU kernel met a row that may not be: which, and why?
            _check_values(logits, target)
            raise
    else:
        table, correct = raw.sample_scores(*inputs, temperature)
    if logits.dim() != 2:
        table = table.reshape(len(table), *logits.shape[:-1])
        correct = correct.reshape(logits.shape[:-1])
    columns: dict[str, Any] = dict(zip(_COLUMNS, table.unbind(0), strict=False))  # grand: optional
    return SampleScores(correct=correct, **columns)


def _check_values(logits: Tensor, target: Tensor) -> None:
    if target.dtype.is_floating_point:
        _checks.probabilities(target, "target")
    else:
        _checks.labels(target, logits, check_range=True, first="logits")
    _checks.no_nan(logits)
