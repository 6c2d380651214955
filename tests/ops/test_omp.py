"""Matching pursuit in Gram space against the one on the vectors themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, nnls
from torch import Tensor

from pyddfast import ops
from pyddfast.ops.reference.omp import non_negative
from tests.tolerances import FLOAT64, assert_close


def vectors(n: int = 60, width: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows with a common direction, as gradients of a class have, and their mean."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, width, generator=generator, dtype=torch.float64) + 0.3
    return a, a.mean(0)


def dense(
    a: Tensor, b: Tensor, k: int, lam: float, *, signed: bool, official: bool
) -> tuple[list[int], np.ndarray]:
    """The pursuit on the vectors: residual, products and least squares anew in every step."""
    a_, b_ = a.numpy(), b.numpy()
    picks: list[int] = []
    residual, x = b_, np.zeros(0)
    for _ in range(k):
        products = a_ @ residual
        gains = products if signed else abs(products)
        gains[picks] = -np.inf
        picks.append(int(gains.argmax()))
        rows = a_[picks]
        ridge = 0.0 if official and len(picks) == 1 else lam
        x = np.linalg.solve(rows @ rows.T + ridge * np.eye(len(picks)), rows @ b_)
        residual = b_ - rows.T @ x
    return picks, x


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("lam", [0.5, 1.0, 30.0])  # the paper's, DeepCore's, one that shrinks
def test_picks_and_weights_are_those_of_the_vectors(
    lam: float, signed: bool, official: bool
) -> None:
    for seed in range(4):
        a, b = vectors(seed=seed)
        picks, x = dense(a, b, 25, lam, signed=signed, official=official)
        if signed:
            rows = a[picks].numpy()
            system = rows @ rows.T + lam * np.eye(25)
            if official:
                x = nnls(system, rows @ b.numpy())[0]
            else:
                # min ‖Lᵀx − L⁻¹c‖ over x ≥ 0 is min xᵀ(LLᵀ)x/2 − cᵀx.
                factor = np.linalg.cholesky(system)
                x = nnls(factor.T, np.linalg.solve(factor, rows @ b.numpy()))[0]
        got = ops.omp(
            a @ a.T, a @ b, 25, lam=lam, nnls=signed, semantics="official" if official else "paper"
        )
        kept = x != 0
        assert got.indices.tolist() == [p for p, keep in zip(picks, kept, strict=True) if keep]
        assert_close(got.weights, torch.from_numpy(x[kept]), 1e-9)
        if signed and not official:
            objective = minimize(
                lambda w: np.sum((rows.T @ w - b.numpy()) ** 2) + lam * np.sum(w**2),  # noqa: B023
                np.full(25, 0.1), bounds=[(0, None)] * 25, options={"maxfun": 10**5},
            ).fun  # fmt: skip
            w = got.weights.numpy()
            ours = np.sum((a[got.indices].numpy().T @ w - b.numpy()) ** 2) + lam * np.sum(w**2)
            assert ours <= objective * (1 + 1e-9)


def test_without_a_ridge_it_is_exact_once_the_target_is_spanned() -> None:
    a, _ = vectors(n=30, width=8)
    b = 2 * a[3] + a[11] - 0.5 * a[20]
    got = ops.omp(a @ a.T, a @ b, 30, lam=0.0, nnls=False)
    # Eight vectors span everything; it stops there instead of dividing by rounding errors.
    assert len(got.indices) == 8
    assert_close(got.weights @ a[got.indices], b, 1e-9)
    # Duplicates are spanned by the first of them.
    twice = torch.cat((a[:4], a[:4]))
    got = ops.omp(twice @ twice.T, twice @ a[:4].sum(0), 8, lam=0.0, nnls=False)
    assert sorted(got.indices.tolist()) == [0, 1, 2, 3]
    assert_close(got.weights, torch.ones(4), 1e-9)


def test_of_one_pick_and_of_none() -> None:
    a, b = vectors()
    best = int((a @ b).argmax())
    one = ops.omp(a @ a.T, a @ b, 1, lam=0.5)
    assert one.indices.tolist() == [best]
    assert_close(one.weights, ((a @ b)[best] / (a[best] @ a[best] + 0.5))[None], FLOAT64)
    assert ops.omp(a @ a.T, a @ b, 1, semantics="official").weights.tolist() == [1.0]
    assert len(ops.omp(a @ a.T, a @ b, 0).indices) == 0
    empty = ops.omp(a[:0] @ a[:0].T, a[:0] @ b, 0)
    assert (empty.indices.shape, empty.weights.shape) == ((0,), (0,))
    # Of a target that all vectors point away from nothing is left.
    away = ops.omp(a.abs() @ a.abs().T, a.abs() @ -b.abs(), 5)
    assert len(away.indices) == 0


def test_ties_go_to_the_lowest_index() -> None:
    gram = torch.eye(6, dtype=torch.float64)
    got = ops.omp(gram, torch.ones(6, dtype=torch.float64), 4, lam=0.5)
    assert got.indices.tolist() == [0, 1, 2, 3]
    assert_close(got.weights, torch.full((4,), 1 / 1.5, dtype=torch.float64), FLOAT64)


def test_of_several_classes_and_of_factored_gradients() -> None:
    generator = torch.Generator().manual_seed(1)
    g, h = torch.randn(50, 6, generator=generator), torch.randn(50, 9, generator=generator)
    segments = torch.tensor([0, 20, 20, 50])
    grams = ops.last_layer_gram(g, h, segments=segments)
    found = ops.omp(grams, [gram.mean(1) for gram in grams], [5, 0, 9], lam=1.0)
    assert len(found[1].indices) == 0
    for (start, stop), k, got in (((0, 20), 5, found[0]), ((20, 50), 9, found[2])):
        rows = torch.cat((h, torch.ones(50, 1)), 1)[start:stop].double()
        a = (g[start:stop, :, None].double() * rows[:, None]).flatten(1)
        picks, _ = dense(a, a.mean(0), k, 1.0, signed=True, official=False)
        assert set(got.indices.tolist()) <= set(picks)
        want = ops.omp(a @ a.T, a @ a.mean(0), k, lam=1.0)
        assert torch.equal(got.indices, want.indices)
        assert got.weights.dtype == torch.float32
        assert_close(got.weights, want.weights, 1e-5)


def test_non_negative_weights_are_those_of_scipy() -> None:
    generator = torch.Generator().manual_seed(2)
    for n in (1, 2, 7, 40, 90):
        # Nearly parallel columns, of which many have to be left out.
        m = torch.randn(2 * n, n, generator=generator, dtype=torch.float64)
        m += 3 * torch.randn(2 * n, 1, generator=generator, dtype=torch.float64)
        b = torch.randn(2 * n, generator=generator, dtype=torch.float64)
        want = nnls(m.numpy(), b.numpy())[0]
        assert_close(non_negative(m.T @ m, m.T @ b), torch.from_numpy(want), 1e-8, absolute=1e-12)


def test_official_weights_of_a_singular_system() -> None:
    # Duplicates, and no ridge after the first pick; the system squared is singular.
    a, b = vectors(n=10, width=30)
    twice = torch.cat((a, a + 1e-9 * torch.arange(300).view(10, 30)))
    got = ops.omp(twice @ twice.T, twice @ b, 20, lam=1e-14, semantics="official")
    assert (got.weights > 0).all()
    assert_close(got.weights @ twice[got.indices], b, 1e-3)


EYE, ONES = torch.eye(3), torch.ones(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.omp(EYE[:2], ONES, 1), r"gram must have shape \(n, n\), got \(2, 3\)"),
        (lambda: ops.omp(EYE, ONES[:2], 1), r"target must have shape \(3,\), got \(2,\)"),
        (lambda: ops.omp(EYE, ONES, 4), "k = 4 is larger than the 3 rows of gram"),
        (lambda: ops.omp(EYE, ONES, -1), "k must not be negative"),
        (lambda: ops.omp(EYE, ONES, 1, lam=-1.0), "lam must not be negative"),
        (lambda: ops.omp(EYE / 0, ONES, 1), "gram must be finite; row 0"),
        (lambda: ops.omp(EYE, ONES / 0, 1), "target must be finite; row 0"),
        (lambda: ops.omp(-EYE, ONES, 1), "negative diagonal"),
        (lambda: ops.omp([EYE, EYE], [ONES], 1), "2 Gram matrices, 1 targets and 2 k"),
        (lambda: ops.omp([EYE, EYE], [ONES, ONES], [1, 4]), "the 3 rows of gram of class 1"),
        (lambda: ops.omp(EYE, ONES, 1, semantics="deepcore"), "semantics is 'deepcore'"),
    ],
)
def test_omp_refuses(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_omp_refuses_types() -> None:
    with pytest.raises(TypeError, match=r"k must be an int, got 2\.0"):
        ops.omp(EYE, ONES, 2.0)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"k must be an int for a single gram, got \[2\]"):
        ops.omp(EYE, ONES, [2])  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="gram has dtype"):
        ops.omp(EYE.long(), ONES, 1)
    with pytest.raises(TypeError, match="gram of class 1"):
        ops.omp([EYE, 3.0], [ONES, ONES], 1)  # type: ignore[list-item]
