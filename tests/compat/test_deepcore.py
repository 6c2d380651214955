"""DeepCore's names: what they return, written down again from their descriptions in numpy."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from pyddfast.compat import deepcore
from pyddfast.compat.deepcore import craig, glister, grand, submodular
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


# --- methods of classes that run a network ---------------------------------------------------


class Recorder:
    """As ``nets_utils/recorder.py``."""

    record_embedding = False
    embedding: torch.Tensor

    def __enter__(self) -> None:
        self.record_embedding = True

    def __exit__(self, *_: object) -> None:
        self.record_embedding = False


class Net(torch.nn.Module):
    """Features that are the images' values, then a linear layer."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.last = torch.nn.Linear(6, 3)
        self.embedding_recorder, self.no_grad = Recorder(), False
        self.embedding_recorder.record_embedding = bool(_.get("record_embedding"))
        with torch.no_grad():
            self.last.weight.copy_(torch.from_numpy(Y[:3]) * 2)
            self.last.bias.copy_(torch.tensor([0.3, -0.2, 0.1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.set_grad_enabled(not self.no_grad):
            if self.embedding_recorder.record_embedding:
                self.embedding_recorder.embedding = x.flatten(1)
            logits: torch.Tensor = self.last(x.flatten(1))
            return logits


class Images(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """The rows of X, three classes in turn."""

    targets = torch.arange(40) % 3
    transform = None

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(X[index]).view(1, 2, 3), int(self.targets[index])


def method(**fields: Any) -> Any:
    """What the official base class keeps, with batches of 12: the last of all rows has 4."""
    data = Images()
    args = SimpleNamespace(
        selection_batch=12, workers=0, device="cpu", num_classes=3, im_size=(2, 3), channel=1
    )
    return SimpleNamespace(
        model=Net(), args=args, dst_train=data, dst_val=data, n_train=40, n_val=40,
        num_classes=3, fraction=0.25, coreset_size=10, balance=True, **fields,
    )  # fmt: skip


def dense(rows: Any) -> tuple[Any, Any]:
    """Log-probabilities, and gradients of batches' mean losses by weight and bias, in float64."""
    net = Net()
    x, y = torch.from_numpy(X[rows]).double(), Images.targets[rows]
    weight = net.last.weight.detach().double()
    log_p = (x @ weight.T + net.last.bias.detach().double()).log_softmax(1)
    g = log_p.exp() - torch.nn.functional.one_hot(y, 3)
    sizes = torch.tensor([min(12, len(y) - i // 12 * 12) for i in range(len(y))])
    g = g / sizes[:, None]
    return log_p.numpy(), torch.cat([g, (g[:, :, None] * x[:, None]).flatten(1)], 1).numpy()


EVERY = np.arange(40)


@pytest.mark.parametrize("name", ["LeastConfidence", "Entropy", "Margin"])
def test_uncertainty(name: str) -> None:
    got = deepcore.rank_uncertainty(method(selection_method=name), EVERY[5:])
    log_p, _ = dense(EVERY[5:])
    p = np.sort(np.exp(log_p), 1)
    if name == "LeastConfidence":
        net = Net()
        logits = net(torch.from_numpy(X[5:]))
        want = logits.detach().numpy().max(1)
    else:
        want = (p * np.log(p + 1e-6)).sum(1) if name == "Entropy" else p[:, 2] - p[:, 1]
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_grand() -> None:
    job = method(norm_matrix=torch.zeros(40, 2), cur_repeat=1)
    grand.finish_run(job)
    assert not job.norm_matrix[:, 0].any()
    assert job.model.training
    assert not job.model.embedding_recorder.record_embedding
    want = np.linalg.norm(dense(EVERY)[1], axis=1)
    np.testing.assert_allclose(job.norm_matrix[:, 1].numpy(), want, rtol=1e-5)


def test_craig_and_submodular_gradients() -> None:
    job = method()
    with job.model.embedding_recorder:
        apart = craig.calc_gradient(job, EVERY[3:])
        alike = submodular.calc_gradient(job)
    rows = dense(EVERY[3:])[1]
    want = distances(rows, rows)
    np.testing.assert_allclose(apart, np.maximum(want, 1e-6), rtol=1e-4, atol=1e-6)
    every = dense(EVERY)[1]
    chosen = np.isin(EVERY, [1, 4, 30])
    for a, b in ((chosen, ~chosen), (chosen, chosen), (EVERY, EVERY)):
        found = deepcore.cossim_np(alike[a], alike[b])
        np.testing.assert_allclose(found, cosines(every[a], every[b]), atol=2e-6)
    assert job.embedding_dim == 6
    with pytest.raises(ValueError, match="or a class of it, holds no sample"):
        craig.calc_gradient(job, EVERY[:0])


@pytest.mark.parametrize("balance", [True, False])
def test_glister_takes_the_most_aligned(balance: bool) -> None:
    job = method(_greedy="LazyGreedy")
    job.balance = balance
    want: list[int] = []
    targets = Images.targets.numpy()
    for rows in [np.flatnonzero(targets == c) for c in range(3)] if balance else [EVERY]:
        gradients = dense(rows)[1]
        gain = gradients @ gradients.mean(0)
        want += sorted(rows[np.argsort(-gain)[: round(0.25 * len(rows))]].tolist())
    assert glister.finish_run(job)["indices"].tolist() == want
    job._greedy = "StochasticGreedy"
    with pytest.raises(ValueError, match="greedy must be 'NaiveGreedy' or"):
        glister.finish_run(job)


@pytest.mark.parametrize("metric", ["euclidean", "own"])
def test_cal(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def own(x: Any) -> Any:
        return np.abs(x[:, None] - x[None]).sum(2)

    class Cal(SimpleNamespace):
        """In a module with the names of the official one."""

    transforms = SimpleNamespace(Compose=lambda steps: steps, Resize=lambda side: side)
    official = SimpleNamespace(
        nets=SimpleNamespace(ResNet18=Net), transforms=transforms, deepcopy=copy.deepcopy
    )
    monkeypatch.setitem(sys.modules, "official_cal", official)
    Cal.__module__ = "official_cal"
    fields = {"neighbors": 4, "pretrain_model": "ResNet18"}
    by = deepcore.euclidean_dist_pair_np if metric == "euclidean" else own
    job = Cal(**vars(method(**fields, metric=by)))
    plain = distances(X, X) if metric == "euclidean" else own(X.astype(np.float64))
    for balance in (True, False):
        job.balance = balance
        found = deepcore.find_knn(job)
        groups = [np.flatnonzero(Images.targets.numpy() == c) for c in range(3)]
        for rows, knn in zip(
            groups if balance else [EVERY], found if balance else [found], strict=True
        ):
            near = np.argsort(plain[np.ix_(rows, rows)], axis=1)[:, 1:5]
            assert knn.tolist() == near.tolist()
            score = deepcore.calc_kl(job, knn, rows)
            log_p = dense(rows)[0]
            gap = log_p[:, None] - log_p[near]
            want = 0.5 * ((np.exp(log_p)[:, None] - np.exp(log_p)[near]) * gap).sum(2).mean(1)
            np.testing.assert_allclose(score, want, rtol=1e-5, atol=1e-9)
    assert job.model.no_grad is False


# --- optimisers --------------------------------------------------------------------------------


def official_lazy(gain: Callable[..., Any], budget: int) -> list[int]:
    """The published lazy loop, which is no greedy one where gains rise."""
    selected = np.zeros(40, dtype=bool)
    known = gain(~selected, selected).astype(np.float64)
    for _ in range(budget):
        best, last = -np.inf, -1
        while (now := int(known.argmax())) != last:
            known[now] = gain(np.array([now]), selected)[0]
            if known[now] >= best:
                best, last = known[now], now
        selected[last], known[last] = True, -np.inf
    return np.flatnonzero(selected).tolist()


def test_log_determinant_as_coded() -> None:
    s = cosines(X, X)

    def gain(candidates: Any, selected: Any) -> Any:
        rows = s[selected][:, candidates]
        return np.einsum("iv,ij,jv->v", rows, np.linalg.pinv(s[np.ix_(selected, selected)]), rows)

    function = deepcore.LogDeterminant(index=EVERY, similarity_matrix=s)
    for mask in (np.isin(EVERY, [3, 8, 21]), np.isin(EVERY, [])):
        np.testing.assert_allclose(function.calc_gain(~mask, mask), gain(~mask, mask), atol=1e-9)
    for optimizer, want in (
        (deepcore.LazyGreedy, official_lazy(gain, 5)),
        (
            deepcore.NaiveGreedy,
            greedy(lambda a: gain(np.ones(40, dtype=bool), np.isin(EVERY, a)), 5),
        ),
    ):
        found = optimizer(ARGS, EVERY, 5).select(function.calc_gain, function.update_state)
        assert found.tolist() == want


def test_approximate_lazy_greedy() -> None:
    gains = np.linspace(1, 3, 40)

    def gain(candidates: Any, selected: Any) -> Any:
        """All gains fall to 0.95, then to 0.8 of what they were with each pick."""
        return gains[candidates] * [1, 0.95, 0.8, 0.8][min(3, int(selected.sum()))]

    # The second pick is within 0.9 of the old gain; of the third every one but the last falls short
    # until the known gains are the new ones.
    got = deepcore.ApproximateLazyGreedy(ARGS, EVERY, 3).select(gain)
    assert got.tolist() == [37, 38, 39]
    asked: list[int] = []

    def cut(candidates: Any, selected: Any) -> Any:
        asked.append(len(np.arange(40)[candidates]))
        return -gains[candidates]

    # Negative gains that stay, over which the official loop does not end.
    assert deepcore.ApproximateLazyGreedy(ARGS, EVERY, 2).select(cut).tolist() == [0, 1]
    assert asked == [40, 1, 1]


def test_stochastic_greedy_draws_as_there() -> None:
    s = cosines(X, X)
    function = deepcore.FacilityLocation(index=EVERY, similarity_matrix=s)
    np.random.seed(7)  # noqa: NPY002
    found = deepcore.StochasticGreedy(ARGS, EVERY, 4, epsilon=0.5).select(
        function.calc_gain, function.update_state
    )
    draw, cover, chosen = np.random.RandomState(7), np.zeros(40), []
    size = round(np.log(2) * 40 / 4)
    for _ in range(4):
        free = np.setdiff1d(EVERY, chosen)
        sample = draw.choice(free, replace=False, size=size)
        gain = np.maximum(0, s[:, sample] - cover[:, None]).sum(0)
        chosen.append(int(sample[gain.argmax()]))
        cover = np.maximum(cover, s[:, chosen[-1]])
    assert found.tolist() == sorted(chosen)


def test_batched_gain_misses_the_rows_that_the_official_loop_misses() -> None:
    s = cosines(X, X)
    function = deepcore.FacilityLocation(index=EVERY, similarity_matrix=s)
    none = np.zeros(40, dtype=bool)
    got = function.calc_gain_batch(~none, none, batch=5)
    rows = [*range(5), *range(25, 30)]  # then 50, beyond the end
    np.testing.assert_allclose(got, s[rows].sum(0), rtol=1e-6)
