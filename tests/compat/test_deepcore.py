"""DeepCore's names: what they return, written down again from their descriptions in numpy."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from pyddfast.compat import deepcore
from pyddfast.coresets import TrainingDynamics

RNG = np.random.default_rng(4)
X = RNG.normal(size=(40, 6)).astype(np.float32)
Y = RNG.normal(size=(7, 6)).astype(np.float32)
ARGS = SimpleNamespace(print_freq=20)


def distances(x: Any, y: Any) -> Any:
    gaps = x[:, None].astype(np.float64) - y[None]
    return np.sqrt(np.clip((gaps**2).sum(2), 1e-12, None))


def cosines(x: Any, y: Any) -> Any:
    x, y = (v / np.linalg.norm(v.astype(np.float64), axis=1, keepdims=True) for v in (x, y))
    return 0.5 + 0.5 * x @ y.T


def test_distances_and_similarities() -> None:
    tensors = torch.from_numpy(X), torch.from_numpy(Y)
    for got, want in (
        (deepcore.euclidean_dist_np(X, Y), distances(X, Y)),
        (deepcore.euclidean_dist_pair_np(Y), distances(Y, Y)),
        (deepcore.euclidean_dist(*tensors).numpy(), distances(X, Y)),
        (deepcore.euclidean_dist_pair(tensors[1]).numpy(), distances(Y, Y)),
        (deepcore.cossim_np(X, Y), cosines(X, Y)),
        (deepcore.cossim_pair_np(X), cosines(X, X)),
        (deepcore.cossim(*tensors).numpy(), cosines(X, Y)),
        (deepcore.cossim_pair(tensors[0]).numpy(), cosines(X, X)),
    ):
        np.testing.assert_allclose(got, want, atol=2e-3 if want.min() < 1e-3 else 1e-5)
    # Rows themselves are 1e-6 apart at least, and zeros are like all.
    assert deepcore.euclidean_dist_pair_np(Y).min() >= 1e-6
    zero = np.zeros((1, 6), dtype=np.float32)
    assert deepcore.cossim_np(zero, Y).tolist() == [[0.5] * 7]


def farthest(metric: Callable[..., Any], chosen: list[int], picks: int) -> list[int]:
    d = metric(X, X)
    chosen = list(chosen)
    for _ in range(picks):
        near = d[chosen].min(0)
        near[chosen] = -1
        chosen.append(int(near.argmax()))
    return chosen


def euclidean_dist(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return deepcore.euclidean_dist(x, y)


def cosine_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 1 - deepcore.cossim(x, y)


@pytest.mark.parametrize(
    ("metric", "plain"),
    [(euclidean_dist, distances), (cosine_distance, lambda x, y: 1 - cosines(x, y))],
)
def test_k_centers(metric: Any, plain: Any) -> None:
    index = 100 + np.arange(40)
    got = deepcore.k_center_greedy(X, 8, metric, "cpu", random_seed=3, index=index)
    first = np.random.RandomState(3).randint(0, 40)  # as np.random.seed(3) draws
    assert got.tolist() == sorted(100 + i for i in farthest(plain, [first], 7))
    # Beside what is selected already; the result has both.
    got = deepcore.k_center_greedy(
        torch.from_numpy(X), 5, metric, "cpu", index=index, already_selected=[103, 120]
    )
    assert got.tolist() == sorted(100 + i for i in farthest(plain, [3, 20], 5))
    assert deepcore.k_center_greedy(X, 99, metric, "cpu").tolist() == list(range(40))
    assert deepcore.k_center_greedy(X, 0, metric, "cpu").tolist() == []
    with pytest.raises(ValueError, match="Illegal budget size"):
        deepcore.k_center_greedy(X, -1, metric, "cpu")


def test_herding_takes_the_farthest() -> None:
    mean, chosen = X.mean(0, dtype=np.float64), []
    for i in range(6):
        gap = np.linalg.norm((i + 1) * mean - X[chosen].sum(0) - X, axis=1)
        gap[chosen] = -1
        chosen.append(int(gap.argmax()))
    got = deepcore.herding(None, torch.from_numpy(X), 6, 50 + np.arange(40))
    assert got.tolist() == sorted(50 + i for i in chosen)


def greedy(gains: Callable[[list[int]], Any], budget: int) -> list[int]:
    chosen: list[int] = []
    for _ in range(budget):
        gain = gains(chosen)
        gain[chosen] = -np.inf
        chosen.append(int(gain.argmax()))
    return sorted(chosen)


@pytest.mark.parametrize("given", ["matrix", "kernel"])
@pytest.mark.parametrize("lazy", [deepcore.LazyGreedy, deepcore.NaiveGreedy])
def test_submodular_functions(given: str, lazy: Any) -> None:
    s = cosines(X, X)
    by = (
        {"similarity_matrix": s.astype(np.float32)}
        if given == "matrix"
        else {"similarity_kernel": lambda a, b: deepcore.cossim_np(X[a], X[b])}
    )
    index = 10 * np.arange(40)

    def cover(chosen: list[int]) -> Any:
        best = s[:, chosen].max(1, keepdims=True) if chosen else 0.0
        return np.maximum(0, s - best).sum(0)

    def cut(chosen: list[int]) -> Any:
        return 0.3 * s.sum(0) - 2 * s[chosen].sum(0)

    for function, gains in (
        (deepcore.FacilityLocation(index=index, **by), cover),
        (deepcore.GraphCut(lam=0.3, index=index, **by), cut),
    ):
        want = [10 * i for i in greedy(gains, 9)]
        fast = lazy(ARGS, index, 9).select(function.calc_gain, function.update_state)
        assert fast.tolist() == want

        # Any other function of gains is called; so the two are what they say.
        def call(candidates: Any, selected: Any, function: Any = function) -> Any:
            return function.calc_gain(candidates, selected)

        slow = lazy(ARGS, index, 9).select(call, function.update_state)
        assert slow.tolist() == want


@pytest.mark.parametrize("budget", [0, 1, 5, 40])
def test_matching_pursuit(budget: int) -> None:
    a = RNG.normal(size=(8, 12)).astype(np.float32) + 1  # columns, with a mean to match
    b = a.mean(1)
    residual, chosen = b.astype(np.float64), []
    for _ in range(min(budget, 12)):
        products = a.T @ residual
        products[chosen] = -np.inf
        chosen.append(int(products.argmax()))
        own = a[:, chosen].astype(np.float64)
        if len(chosen) == 1:
            x = own.T @ residual / (own.T @ own)[0]
        else:
            x = np.linalg.solve(own.T @ own + np.eye(len(chosen)), own.T @ b)
        residual = b - own @ x
    want = np.zeros(12)
    if budget == 1:
        want[chosen] = 1
    elif budget:
        want[chosen] = nnls(own.T @ own + np.eye(len(chosen)), own.T @ b)[0]
    got = deepcore.orthogonal_matching_pursuit_np(None, a, b, budget)
    np.testing.assert_allclose(got, want, atol=1e-5)
    again = deepcore.orthogonal_matching_pursuit(
        None, torch.from_numpy(a), torch.from_numpy(b), budget
    )
    assert got.dtype == again.dtype == np.float32
    np.testing.assert_array_equal(got, again)


def test_forgetting_events_of_the_recorder_in_its_place() -> None:
    recorder = TrainingDynamics(20)
    logits = torch.from_numpy(RNG.normal(size=(5, 20, 3)).astype(np.float32))
    targets = torch.arange(20) % 3
    events, last = np.zeros(20), np.zeros(20)
    for epoch in range(5):
        order = RNG.permutation(20)
        for batch in (order[:13], order[13:]):
            outputs = logits[epoch, batch].requires_grad_()
            # As the lines of the page call it, with the sampler's list.
            recorder.update(outputs.detach(), targets[batch], torch.as_tensor(batch.tolist()))
            right = (outputs.argmax(1) == targets[batch]).numpy().astype(float)
            events[batch] += last[batch] - right > 0.01
            last[batch] = right
        recorder.end_tick()
    got = recorder.values("forgetting", never_learned="zero").float()
    assert got.tolist() == events.tolist()
    assert events.max() > 0


def test_refuses() -> None:
    index = np.arange(3)
    with pytest.raises(ValueError, match="Illegal budget for optimizer"):
        deepcore.LazyGreedy(ARGS, index, 4)
    with pytest.raises(ValueError, match="already_selected must be empty"):
        deepcore.LazyGreedy(ARGS, index, 1, [0])
    with pytest.raises(ValueError, match="give similarity_kernel or similarity_matrix"):
        deepcore.GraphCut(index=index)
    with pytest.raises(ValueError, match=r"shape \(3, 3\), got \(2, 2\)"):
        deepcore.FacilityLocation(index=index, similarity_matrix=np.eye(2))
    with pytest.raises(ValueError, match="index has 3 entries, matrix 40 rows"):
        deepcore.k_center_greedy(X, 1, euclidean_dist, "cpu", index=index)
