"""Orthogonal matching pursuit in Gram space, and the non-negative weights at its end.

Arguments are float64 and checked by :mod:`pyddfast.ops.omp`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def omp(
    gram: Tensor, target: Tensor, k: int, *, lam: float, nnls: bool, official: bool
) -> tuple[Tensor, Tensor]:
    """Picks in their order and their weights, those of weight 0 left out.

    With the Cholesky factor L of K_SS + λI, the rows of Q = L⁻¹ K_S: and z = L⁻¹ c_S give the
    products with the residual as c − Qᵀz.  A pick appends a row to Q, whose column at the pick is
    the new row of L.
    """
    n = len(gram)
    q = gram.new_empty((k, n))
    products = target.clone()
    # What K_jj + λ keeps beside the picks: 0 for a vector that they span.
    diagonal = gram.diagonal() + lam
    rest = diagonal.clone()
    tiny = n * torch.finfo(gram.dtype).eps * diagonal
    free = torch.ones(n, dtype=torch.bool, device=gram.device)
    picks: list[int] = []
    for step in range(k):
        seen = products
        if official and step == 1:
            first = picks[0]
            seen = target - gram[first] * (target[first] / gram[first, first])
        gains = seen if nnls else seen.abs()
        gains = gains.masked_fill(~(free & (rest > tiny)), -torch.inf)
        pick = int(gains.argmax())
        if gains[pick] == -torch.inf:
            break
        picks.append(pick)
        free[pick] = False
        root = rest[pick].sqrt()
        q[step] = (gram[pick] - q[:step, pick] @ q[:step]) / root
        products = products - q[step] * (products[pick] / root)
        rest = rest - q[step].square()
    indices = torch.tensor(picks, dtype=torch.int64, device=gram.device)
    if not picks:
        return indices, target[:0]
    system = gram[indices][:, indices]
    system.diagonal().add_(lam)
    side = target[indices]
    if official and k == 1:
        weights = torch.ones_like(side)
    elif not nnls:
        weights = _solve(system, side)
    elif official:
        weights = non_negative(system @ system, system @ side)
    else:
        weights = non_negative(system, side)
    kept = weights != 0
    return indices[kept], weights[kept]


def non_negative(a: Tensor, b: Tensor) -> Tensor:
    """The x ≥ 0 that minimises xᵀAx/2 − bᵀx, for a positive definite A.

    Block principal pivoting (Júdice and Pires, "A block principal pivoting algorithm for
    large-scale strictly monotone linear complementarity problems", 1994): entries of the wrong sign
    change sides all at once while that makes fewer of them, three tries more, then one by one,
    which ends.
    """
    inside = torch.ones_like(b, dtype=torch.bool)
    fewest, tries = len(b) + 1, 3
    # Signs below a rounding error of the terms are none.
    slack = len(b) * torch.finfo(b.dtype).eps
    for _ in range(10 * len(b) + 100):  # a handful does, but for a matrix that is singular
        x = torch.zeros_like(b)
        free = inside.nonzero().squeeze(1)
        x[free] = _solve(a[free][:, free], b[free])
        slope = a @ x - b
        noise = slack * (a.abs() @ x.abs() + b.abs())
        wrong = torch.where(inside, x < 0, slope < -noise).nonzero().squeeze(1)
        if not len(wrong):
            return x
        if len(wrong) < fewest:
            fewest, tries = len(wrong), 3
        elif tries:
            tries -= 1
        else:
            wrong = wrong[-1:]
        inside[wrong] = ~inside[wrong]
    raise ValueError("the Gram matrix of the picks is too close to singular; lam must be larger")


def _solve(a: Tensor, b: Tensor) -> Tensor:
    """A⁻¹b for a symmetric positive definite A."""
    factor, failed = torch.linalg.cholesky_ex(a)
    if int(failed):  # singular within rounding: a solution of the least norm
        inverse: Tensor = torch.linalg.pinv(a, hermitian=True)
        return inverse @ b
    return torch.cholesky_solve(b[:, None], factor).squeeze(1)
