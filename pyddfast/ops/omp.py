"""Orthogonal matching pursuit on a Gram matrix: GradMatch without its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias, overload

import torch
from torch import Tensor

from pyddfast.ops import _checks
from pyddfast.ops.reference import omp as reference

__all__ = ["OmpSemantics", "Pursuit", "omp"]

OmpSemantics: TypeAlias = Literal["paper", "official"]


class Pursuit(NamedTuple):
    """Picked columns, in the order they were picked, and their weights.

    Attributes:
        indices: int64 (K,), K at most the k asked for: picks of weight 0 are dropped.
        weights: (K,) float32, or float64 for a float64 Gram matrix.
    """

    indices: Tensor
    weights: Tensor


@overload
def omp(
    gram: Tensor,
    target: Tensor,
    k: int,
    *,
    lam: float = ...,
    nnls: bool = ...,
    semantics: OmpSemantics = ...,
) -> Pursuit: ...
@overload
def omp(
    gram: Sequence[Tensor],
    target: Sequence[Tensor],
    k: int | Sequence[int],
    *,
    lam: float = ...,
    nnls: bool = ...,
    semantics: OmpSemantics = ...,
) -> list[Pursuit]: ...
@torch.no_grad()
def omp(
    gram: Tensor | Sequence[Tensor],
    target: Tensor | Sequence[Tensor],
    k: int | Sequence[int],
    *,
    lam: float = 0.5,
    nnls: bool = True,
    semantics: OmpSemantics = "paper",
) -> Pursuit | list[Pursuit]:
    """Pick k vectors and weights so that their weighted sum comes close to a target vector.

    Of vectors a_i it needs K = ⟨a_i, a_j⟩ and c = ⟨a_i, b⟩ alone: for GradMatch (Killamsetty et
    al., ICML 2021) :func:`last_layer_gram` and, for the mean gradient of the class itself, its
    row means (of other gradients :func:`grad_align_score`). Each step picks the vector with the
    largest product with the residual b − Σ x_s a_s, where x minimises ‖Σ x_s a_s − b‖² + λ ‖x‖²
    over the picks; one row of a Cholesky factor a step, in float64, O(n k) each. Ties go to the
    lowest index.

    Args:
        gram: (n, n) floating point, symmetric; or one for each class.
        target: (n,) floating point; or one for each class.
        k: Picks, 0 to n; of every class, or one number for each.
        lam: λ, not negative: 0.5 in GradMatch, 1 in DeepCore.
        nnls: Whether weights are to be non-negative: picks are by the signed product, and the final
            weights those that minimise the objective over x ≥ 0.  Else picks are by its size, as in
            the original pursuit, and weights may be negative.
        semantics: ``"official"`` does as DeepCore's ``orthogonal_matching_pursuit``: the residual
            after the first pick has no ridge, the non-negative weights minimise
            ‖(K_SS + λI) x − c_S‖ (``scipy.optimize.nnls`` of the normal equations), and a single
            pick has weight 1.

    Returns:
        A :class:`Pursuit`; a list of them for a sequence of Gram matrices.  With λ = 0 it stops
        where every vector left is a combination of the picks.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: Shapes or devices do not fit, a value is not finite, a diagonal is negative, or
            k or ``lam`` is out of range; of several classes it says which.
    """
    code = _checks.one_of(semantics, ("paper", "official"), "semantics")
    if _checks.number(lam, "lam") < 0:
        raise ValueError(f"lam must not be negative, got {lam}")
    single = isinstance(gram, Tensor)
    grams: Sequence[Tensor] = [gram] if isinstance(gram, Tensor) else gram
    targets: Sequence[Tensor] = [target] if isinstance(target, Tensor) else target
    if single and isinstance(k, Sequence):
        raise TypeError(f"k must be an int for a single gram, got {k!r}")
    budgets = list(k) if isinstance(k, Sequence) else [k] * len(grams)
    if not len(grams) == len(targets) == len(budgets):
        raise ValueError(
            f"there are {len(grams)} Gram matrices, {len(targets)} targets and {len(budgets)} k"
        )
    for number, (one, other, budget) in enumerate(zip(grams, targets, budgets, strict=True)):
        _check(one, other, budget, "" if single else f" of class {number}")
    found = []
    for one, other, budget in zip(grams, targets, budgets, strict=True):
        indices, weights = reference.omp(
            one.double(), other.double(), budget, lam=float(lam), nnls=nnls, official=code == 1
        )
        dtype = torch.float64 if one.dtype == torch.float64 else torch.float32
        found.append(Pursuit(indices, weights.to(dtype)))
    return found[0] if single else found


def _check(gram: Tensor, target: Tensor, k: int, which: str) -> None:
    _checks.float_tensor(gram, f"gram{which}")
    _checks.float_tensor(target, f"target{which}")
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(f"gram{which} must have shape (n, n), got {tuple(gram.shape)}")
    if target.shape != gram.shape[:1]:
        raise ValueError(f"target{which} must have shape ({len(gram)},), got {tuple(target.shape)}")
    _checks.same_device(gram, target, f"target{which}", first=f"gram{which}")
    for value, name in ((gram, "gram"), (target, "target")):
        if not bool(value.isfinite().all()):
            row = int((~value.isfinite()).nonzero()[0, 0])
            raise ValueError(f"{name}{which} must be finite; row {row} is not")
    if len(gram) and float(gram.diagonal().min()) < 0:
        raise ValueError(f"gram{which} has a negative diagonal: it is no Gram matrix")
    if _checks.count(k, f"k{which}") > len(gram):
        raise ValueError(f"k = {k} is larger than the {len(gram)} rows of gram{which}")
