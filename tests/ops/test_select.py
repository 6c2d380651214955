"""k-center, facility location, graph cut and herding against brute force and other packages."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from pyddfast import ops
from pyddfast.ops import _memory, _native
from pyddfast.ops.reference import select as reference
from tests.ops.conftest import Backend
from tests.tolerances import FLOAT32, FLOAT64, assert_close

SIZES = [7, 1, 0, 40, 33]  # a small class, one row, none, more than a vector, odd


def features(rows: int, dim: int = 24, seed: int = 0) -> Tensor:
    """Clusters of different spread, so that neither distances nor gains tie."""
    generator = torch.Generator().manual_seed(seed)
    centers = 2 * torch.randn(5, dim, generator=generator)
    spread = 0.2 + torch.rand(5, 1, generator=generator)
    cluster = torch.randint(0, 5, (rows,), generator=generator)
    noise = torch.randn(rows, dim, generator=generator)
    return centers[cluster] + spread[cluster] * noise + 1.0


def segments(sizes: list[int] = SIZES) -> Tensor:
    return torch.tensor(list(itertools.accumulate(sizes, initial=0)))


def spans(sizes: list[int] = SIZES) -> list[tuple[int, int]]:
    return list(itertools.pairwise(segments(sizes).tolist()))


def distance_matrix(x: Tensor, metric: str) -> np.ndarray:
    """All distances in float64, each by itself."""
    rows = x.double().numpy()
    if metric == "euclidean":
        return np.sqrt(((rows[:, None] - rows[None]) ** 2).sum(-1))
    if metric == "jeffreys":
        return ((np.exp(rows[:, None]) - np.exp(rows[None])) * (rows[:, None] - rows[None])).sum(-1)
    norm = np.linalg.norm(rows, axis=1)
    with np.errstate(invalid="ignore"):
        cosines = (rows @ rows.T) / norm[:, None] / norm[None]
    return 1.0 - np.nan_to_num(cosines, nan=0.0)


def similarity_matrix(x: Tensor, metric: str) -> np.ndarray:
    if metric == "dot":
        return x.double().numpy() @ x.double().numpy().T
    if metric in ("cosine", "cosine01"):
        cosines = 1.0 - distance_matrix(x, "cosine")
        return np.maximum(cosines, 0.0) if metric == "cosine" else 0.5 + 0.5 * cosines
    distances = distance_matrix(x, "euclidean")
    return np.exp(-(distances**2) / x.shape[1]) if metric == "rbf" else distances.max() - distances


def brute_k_center(
    d: np.ndarray, k: int, first: list[int], weight: np.ndarray
) -> tuple[list[int], list[float]]:
    picks, radii = list(first), []
    for _ in range(k):
        nearest = (d[:, picks].min(1) * weight) if picks else np.zeros(len(d))
        nearest[picks] = -1.0
        if len(picks) < len(first) + k:
            picks.append(int(nearest.argmax()))
        nearest = d[:, picks].min(1) * weight
        nearest[picks] = 0.0
        radii.append(float(nearest.max()))
    return picks[len(first) :], radii


def brute_location(s: np.ndarray, k: int, weight: np.ndarray) -> tuple[list[int], list[float]]:
    def value(chosen: list[int]) -> float:
        return float((weight * np.maximum(s[:, chosen].max(1), 0.0)).sum()) if chosen else 0.0

    picks: list[int] = []
    values = [0.0]
    for _ in range(k):
        rest = [j for j in range(len(s)) if j not in picks]
        picks.append(max(rest, key=lambda j: (value([*picks, j]), -j)))
        values.append(value(picks))
    return picks, np.diff(values).tolist()


def brute_cut(
    s: np.ndarray, k: int, lam: float, weight: np.ndarray, diagonal: bool
) -> tuple[list[int], list[float]]:
    total = lam * (weight @ s)
    picks: list[int] = []
    gains: list[float] = []
    for _ in range(k):
        gain = total - 2 * s[picks].sum(0) - (np.diag(s) if diagonal else 0.0)
        gain[picks] = -np.inf
        picks.append(int(gain.argmax()))
        gains.append(float(gain[picks[-1]]))
    return picks, gains


def brute_herding(x: Tensor, k: int, farthest: bool) -> list[int]:
    rows = x.double().numpy()
    picks: list[int] = []
    for t in range(1, k + 1):
        target = t * rows.mean(0) - rows[picks].sum(0)
        distance = np.linalg.norm(rows - target, axis=1) * (-1 if farthest else 1)
        distance[picks] = np.inf
        picks.append(int(distance.argmin()))
    return picks


# --- k-center ------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "jeffreys"])
@pytest.mark.parametrize("weighted", [False, True])
def test_k_center_by_brute_force(backend: Backend, metric: str, weighted: bool) -> None:
    x = features(sum(SIZES))
    if metric == "jeffreys":
        x = x.log_softmax(1)
    weights = torch.rand(len(x), generator=torch.Generator().manual_seed(1)) + 0.5
    budgets = [3, 2, 4, 9, 33]
    found = ops.k_center(
        backend.put(x),
        budgets,
        metric=metric,
        weights=backend.put(weights) if weighted else None,
        segments=segments(),
    )
    assert torch.diff(found.offsets).tolist() == [3, 1, 0, 9, 33]
    for number, (start, stop) in enumerate(spans()):
        if start == stop:
            continue
        d = distance_matrix(x[start:stop], metric)
        weight = weights[start:stop].double().numpy() if weighted else np.ones(stop - start)
        count = min(budgets[number], stop - start)
        later, radii = brute_k_center(d, count - 1, [0], weight)
        begin, end = found.offsets[number : number + 2].tolist()
        picks = [0, *later]
        assert (found.picks[begin:end].cpu() - start).tolist() == picks
        first = d[0] * weight
        first[0] = 0.0
        assert_close(found.radii[begin:end], torch.tensor([first.max(), *radii]), 4 * FLOAT32)
        nearest = torch.tensor(d[:, picks].min(1))
        nearest[picks] = 0.0
        assert_close(found.distances[start:stop], nearest, 4 * FLOAT32, absolute=1e-12)


def test_k_center_goes_on_from_centers(backend: Backend) -> None:
    x = features(60)
    whole = ops.k_center(backend.put(x), 12, init=17)
    order = torch.tensor([5, 0, 3, 1, 4, 2])  # the order of centers does not matter
    rest = ops.k_center(backend.put(x), 6, centers=whole.picks[:6][order.to(backend.device)])
    assert rest.picks.tolist() == whole.picks[6:].tolist()
    assert torch.equal(rest.radii, whole.radii[6:])
    assert torch.equal(rest.distances, whole.distances)
    d = distance_matrix(x, "euclidean")
    fixed = ops.k_center(backend.put(x), 3, centers=whole.picks[:2], init=40)
    later, _ = brute_k_center(d, 2, [*whole.picks[:2].tolist(), 40], np.ones(60))
    assert fixed.picks.tolist() == [40, *later]


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "jeffreys"])
def test_k_center_begins_at_the_mean_or_the_medoid(backend: Backend, metric: str) -> None:
    x = features(sum(SIZES), seed=3)
    if metric == "jeffreys":
        x = x.log_softmax(1)
    mean = ops.k_center(backend.put(x), 1, metric=metric, init="mean", segments=segments())
    medoid = ops.k_center(backend.put(x), 1, metric=metric, init="medoid", segments=segments())
    at = 0
    for start, stop in spans():
        if start == stop:
            continue
        part = x[start:stop].double()
        if metric == "cosine":
            center = (part / part.norm(dim=1, keepdim=True)).mean(0)
        else:
            center = part.exp().mean(0).log() if metric == "jeffreys" else part.mean(0)
        to_mean = distance_matrix(torch.cat([part, center[None]]), metric)[-1, :-1]
        assert int(mean.picks[at]) - start == int(to_mean.argmin())
        sums = distance_matrix(part, metric).sum(1)
        assert int(medoid.picks[at]) - start == int(sums.argmin())
        at += 1
    assert at == len(mean.picks) == len(medoid.picks)


def test_k_center_never_repeats_a_pick(backend: Backend) -> None:
    repeated = features(4).repeat(5, 1)  # exact ties: every row five times
    found = ops.k_center(backend.put(repeated), 20)
    assert sorted(found.picks.tolist()) == list(range(20))
    assert sorted(found.picks[:4].tolist()) == [0, 1, 2, 3]  # the lowest row of each point
    assert found.picks[4:].tolist() == list(range(4, 20))  # all at distance 0
    assert found.radii[3:].tolist() == [0.0] * 17
    constant = ops.k_center(backend.put(torch.ones(6, 3)), 9)
    assert constant.picks.tolist() == list(range(6))
    ignored = ops.k_center(backend.put(features(6)), 6, weights=backend.put(torch.zeros(6)))
    assert ignored.picks.tolist() == list(range(6))


def test_cosine_of_a_zero_row_is_zero(backend: Backend) -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.1], [0.0, 0.0]])
    found = ops.k_center(backend.put(x), 2, metric="cosine")
    assert found.picks.tolist() == [0, 1]
    assert_close(found.distances, torch.tensor([0.0, 0.0, 1 - 1 / 1.01**0.5, 1.0]), FLOAT32)


# --- facility location ---------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine01", "cosine", "dot", "euclidean", "rbf"])
@pytest.mark.parametrize("greedy", ["lazy", "naive"])
def test_facility_location_by_brute_force(backend: Backend, metric: str, greedy: str) -> None:
    x = features(sum(SIZES))
    weight = torch.rand(len(x), generator=torch.Generator().manual_seed(1)) + 0.5
    for weights in (None, weight):
        found = ops.facility_location(
            backend.put(x),
            9,
            metric=metric,
            sample_weight=None if weights is None else backend.put(weights),
            segments=segments(),
            greedy=greedy,
        )
        for number, (start, stop) in enumerate(spans()):
            begin, end = found.offsets[number : number + 2].tolist()
            assert end - begin == min(9, stop - start)
            if start == stop:
                assert found.objective[number] == 0.0
                continue
            s = similarity_matrix(x[start:stop], metric)
            w = np.ones(len(s)) if weights is None else weights[start:stop].double().numpy()
            picks, gains = brute_location(s, end - begin, w)
            got = (found.picks[begin:end].cpu() - start).tolist()
            # Without weights two rows that serve each other alone tie: either may come first.
            assert got == picks if weights is not None else len(set(got)) == len(picks)
            scale = max(gains[0], 1e-6)  # later gains are differences of values of this size
            assert_close(
                found.gains[begin:end], torch.tensor(gains), 4 * FLOAT32, absolute=4e-6 * scale
            )
            assert float(found.objective[number]) == pytest.approx(sum(gains), rel=1e-5, abs=1e-6)
            nearest = s[:, got].argmax(1) + begin
            assert found.assignments[start:stop].tolist() == nearest.tolist()
            sizes = np.bincount(nearest - begin, minlength=len(picks))
            assert found.sizes[begin:end].tolist() == sizes.tolist()


def test_facility_location_of_submodlib(backend: Backend) -> None:
    import submodlib  # here: a machine with a GPU may be without the oracles

    x = features(90, dim=8, seed=5)
    s = similarity_matrix(x, "cosine01").astype(np.float32)
    peer = submodlib.FacilityLocationFunction(n=len(s), mode="dense", sijs=s, separate_rep=False)
    greedy = peer.maximize(budget=20, optimizer="LazyGreedy", show_progress=False)
    found = ops.facility_location(backend.put(x), 20)
    # Two rows that serve each other alone tie exactly: picks may differ, gains may not.
    assert_close(found.gains, torch.tensor([gain for _, gain in greedy]), 1e-5)
    assert float(found.objective) == pytest.approx(sum(gain for _, gain in greedy), rel=1e-5)


@pytest.mark.parametrize("greedy", ["lazy", "naive"])
def test_similarities_need_not_be_symmetric(backend: Backend, greedy: str) -> None:
    generator = torch.Generator().manual_seed(2)
    matrices = [torch.rand(n, n, generator=generator) - 0.2 for n in (12, 1, 35)]
    given = [backend.put(m) for m in matrices]
    found = ops.facility_location(None, 6, similarity=given, greedy=greedy)
    at, row = 0, 0
    for matrix in matrices:
        picks, gains = brute_location(matrix.double().numpy(), min(6, len(matrix)), 1.0)
        assert (found.picks[at : at + len(picks)].cpu() - row).tolist() == picks
        assert_close(found.gains[at : at + len(picks)], torch.tensor(gains), 1e-5, absolute=1e-5)
        at, row = at + len(picks), row + len(matrix)
    transposed = [m.T.contiguous().T for m in given]  # another layout of the same values
    again = ops.facility_location(None, 6, similarity=transposed, greedy=greedy)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_ties_go_to_the_lowest_row_and_no_pick_repeats(backend: Backend) -> None:
    same = torch.full((9, 9), 0.5)
    same[:, 4] = 0.75
    found = ops.facility_location(None, 9, similarity=backend.put(same))
    assert found.picks.tolist() == [4, 0, 1, 2, 3, 5, 6, 7, 8]
    assert found.gains.tolist() == [6.75] + [0.0] * 8
    assert found.sizes.tolist() == [9] + [0] * 8
    cut = ops.graph_cut(None, 9, similarity=backend.put(same))
    assert cut.picks.tolist() == [4, 0, 1, 2, 3, 5, 6, 7, 8]


@pytest.mark.parametrize("metric", ["cosine01", "cosine", "dot", "euclidean", "rbf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rows_are_picked_from_the_lowest_on(metric: str, dtype: torch.dtype) -> None:
    """Matrix products round their similarities differently: in float64, and of few rows."""
    for rows, dim in ((3, 17), (3, 130), (13, 64), (20, 17)):
        x = features(rows, dim).to(dtype)
        twice = torch.cat((x, x))
        for call in (ops.facility_location, ops.graph_cut):
            order = call(twice, 2 * rows, metric=metric).picks.argsort()
            assert (order[:rows] < order[rows:]).all()


@pytest.mark.parametrize("metric", ["euclidean", "rbf"])
def test_small_distances_far_from_zero(metric: str) -> None:
    # As products of rows of length 5e4, squares of distances of 0.1 are off by 200.
    x = (1e4 + 1e-2 * features(60)).float()
    for call in (ops.facility_location, ops.graph_cut):
        assert torch.equal(
            call(x, 12, metric=metric).picks, call(x.double(), 12, metric=metric).picks
        )


@pytest.mark.parametrize("factor", [2.0**100, 2.0**-90])
def test_cosines_of_rows_whose_squares_leave_the_range(factor: float) -> None:
    x = features(40)
    for call in (ops.facility_location, ops.graph_cut):
        assert torch.equal(call(factor * x, 8).picks, call(x, 8).picks)
    for init in (None, "medoid"):
        found = ops.k_center(factor * x, 8, metric="cosine", init=init)
        assert torch.equal(found.picks, ops.k_center(x, 8, metric="cosine", init=init).picks)


def test_products_that_overflow_are_refused() -> None:
    x = 1e19 * features(20)
    for metric in ("dot", "euclidean", "rbf"):
        for call in (ops.facility_location, ops.graph_cut):
            with pytest.raises(ValueError, match=r"whose products overflow torch\.float32: divide"):
                call(x, 3, metric=metric)
    with pytest.raises(ValueError, match=r"x holds values up to .* divide x by a constant"):
        ops.herding(x, 3)
    assert torch.equal(ops.herding(x.double(), 3).picks, ops.herding(features(20), 3).picks)


def test_stochastic_greedy_of_few_picks_needs_no_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    x = features(2000)  # of which two picks look at all: 16 MB of similarities
    whole = ops.facility_location(x, 2, greedy="stochastic")
    monkeypatch.setattr("pyddfast.ops._similarities.CPU_GROUP_BYTES", 1 << 20)
    with torch.profiler.profile(profile_memory=True) as profile:
        parts = ops.facility_location(x, 2, greedy="stochastic")
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    held = itertools.accumulate(e.nbytes() for e in events if e.name() == "[memory]")
    assert max(held) < 4 << 20
    assert torch.equal(parts.picks, whole.picks)
    assert_close(parts.gains, whole.gains, FLOAT32)


def test_assignments_in_parts_are_those_of_all_picks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = features(90)
    whole = ops.graph_cut(x, 40)
    s = torch.from_numpy(similarity_matrix(x, "cosine01"))
    assert torch.equal(whole.assignments, s[:, whole.picks].argmax(1))
    monkeypatch.setattr("pyddfast.ops._similarities.CPU_GROUP_BYTES", 90 * 4 * 7)
    assert torch.equal(ops.graph_cut(x, 40).assignments, whole.assignments)


def test_stochastic_greedy_loses_little_and_repeats_nothing() -> None:
    x = features(300)
    exact = ops.facility_location(x, 30)
    found = ops.facility_location(x, 30, greedy="stochastic", epsilon=0.05, seed=4)
    assert len(set(found.picks.tolist())) == 30
    assert float(exact.objective) >= float(found.objective) >= 0.98 * float(exact.objective)
    s = similarity_matrix(x, "cosine01")
    picks = found.picks.tolist()
    value = [s[:, picks[: i + 1]].max(1).sum() for i in range(30)]
    assert_close(found.gains.cumsum(0), torch.tensor(value), 1e-5)
    again = ops.facility_location(x, 30, greedy="stochastic", epsilon=0.05, seed=4)
    other = ops.facility_location(x, 30, greedy="stochastic", epsilon=0.05, seed=5)
    assert torch.equal(found.picks, again.picks)
    assert not torch.equal(found.picks, other.picks)
    # A sample of everything is the exhaustive greedy; no matrix is needed.
    whole = ops.facility_location(x, 30, greedy="stochastic", epsilon=1e-13, max_matrix_bytes=0)
    assert torch.equal(whole.picks, exact.picks)


# --- graph cut -----------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine01", "cosine", "dot", "euclidean", "rbf"])
@pytest.mark.parametrize("given", ["features", "matrices"])
def test_graph_cut_by_brute_force(backend: Backend, metric: str, given: str) -> None:
    x = features(sum(SIZES))
    weight = torch.rand(len(x), generator=torch.Generator().manual_seed(1)) + 0.5
    matrices = [
        torch.tensor(similarity_matrix(x[a:b], metric)) if a < b else torch.empty(0, 0).double()
        for a, b in spans()
    ]
    for weights, diagonal, lam in ((None, False, 1.0), (weight, True, 0.3)):
        found = ops.graph_cut(
            backend.put(x) if given == "features" else None,
            9,
            lam,
            metric=metric,
            similarity=None if given == "features" else [backend.put(m) for m in matrices],
            diagonal=diagonal,
            sample_weight=None if weights is None else backend.put(weights),
            segments=segments() if given == "features" else None,
        )
        for number, (start, stop) in enumerate(spans()):
            begin, end = found.offsets[number : number + 2].tolist()
            s = matrices[number].numpy()
            w = np.ones(len(s)) if weights is None else weights[start:stop].double().numpy()
            if start == stop:
                continue
            picks, gains = brute_cut(s, end - begin, lam, w, diagonal)
            assert (found.picks[begin:end].cpu() - start).tolist() == picks
            scale = abs(lam) * float(np.abs(w @ s).max())
            assert_close(found.gains[begin:end], torch.tensor(gains), 1e-6, absolute=4e-6 * scale)
            nearest = s[:, picks].argmax(1) + begin
            assert found.assignments[start:stop].tolist() == nearest.tolist()


def test_graph_cut_of_apricot(backend: Backend) -> None:
    from apricot import GraphCutSelection  # as submodlib

    x = features(80, dim=8, seed=7)
    s = similarity_matrix(x, "cosine01")
    peer = GraphCutSelection(15, metric="precomputed", alpha=2.5, optimizer="naive", verbose=False)
    peer.fit(s)
    found = ops.graph_cut(backend.put(x), 15, 2.5, diagonal=True)
    assert found.picks.tolist() == peer.ranking.tolist()


# --- herding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("farthest", [False, True])
def test_herding_by_brute_force(backend: Backend, farthest: bool) -> None:
    x = features(sum(SIZES))
    budgets = [3, 2, 4, 12, 33]
    found = ops.herding(backend.put(x), budgets, farthest=farthest, segments=segments())
    for number, (start, stop) in enumerate(spans()):
        begin, end = found.offsets[number : number + 2].tolist()
        picks = brute_herding(x[start:stop], end - begin, farthest) if start < stop else []
        assert (found.picks[begin:end].cpu() - start).tolist() == picks


# --- threads, dtypes, layouts, budgets ------------------------------------------------------------


def test_threads_change_nothing() -> None:
    """Rows of one segment and many segments are spread over threads; 600 rows are three tasks."""
    sizes = [600, 300, 1, 40]
    x = features(sum(sizes), dim=70)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        try:
            found = [
                call(x, 12, segments=segments(sizes))
                for call in (ops.k_center, ops.facility_location, ops.graph_cut, ops.herding)
            ]
        finally:
            torch.set_num_threads(before)
        results.append([value for result in found for value in result])
    # Similarities come from a matrix product, whose last bits are its own.
    exact = [i for i, value in enumerate(results[0]) if not value.is_floating_point()]
    for other in results[1:]:
        assert all(torch.equal(results[0][i], other[i]) for i in exact)
        assert torch.equal(results[0][2], other[2])
        assert torch.equal(results[0][3], other[3])
    want = [
        reference.k_center(x[a:b], min(12, b - a), "euclidean", 0, [], None)[0] + a
        for a, b in spans(sizes)
    ]
    assert torch.equal(results[0][0], torch.cat(want))


def test_small_halves_count(backend: Backend) -> None:
    """Subnormal float16 values, at every position of a vector."""
    x = torch.zeros(18, 18)
    x[torch.arange(18), torch.arange(18)] = torch.arange(1, 19) * 2.0**-24
    found = ops.k_center(backend.put(-x, torch.float16), 18)
    assert found.picks.tolist() == [0, *range(17, 0, -1)]
    distance = torch.tensor([(a * a + 1.0) ** 0.5 for a in range(18, 1, -1)]) * 2.0**-24
    assert_close(found.radii[:1], distance[:1], FLOAT32)


def test_long_rows_lose_nothing(backend: Backend) -> None:
    x = features(40, dim=3000) + 3.0
    found = ops.k_center(backend.put(x), 8)
    d = distance_matrix(x, "euclidean")
    later, radii = brute_k_center(d, 7, [0], np.ones(40))
    assert found.picks.tolist() == [0, *later]
    assert_close(found.radii[1:], torch.tensor(radii), FLOAT32)


def test_dtypes_and_layouts(backend: Backend) -> None:
    base = features(50)
    for dtype in backend.dtypes:
        x = base.to(dtype)
        exact = x.double()
        strided = torch.empty(50, 60, dtype=dtype, device=backend.device)[:, 5:53:2].copy_(x)
        columns = x.to(backend.device).T.contiguous().T
        for given in (x.to(backend.device), strided, columns):
            found = ops.k_center(given, 10)
            later, radii = brute_k_center(distance_matrix(exact, "euclidean"), 9, [0], np.ones(50))
            assert found.picks.tolist() == [0, *later]
            bound = FLOAT64 if dtype is torch.float64 else FLOAT32
            assert_close(found.radii[1:], torch.tensor(radii, dtype=torch.float64), bound)
            assert found.radii.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
            s = similarity_matrix(exact, "cosine01")
            for op, brute in (
                (ops.facility_location, brute_location(s, 6, np.ones(50))),
                (ops.graph_cut, brute_cut(s, 6, 1.0, np.ones(50), False)),
            ):
                chosen = op(given, 6)
                assert len(set(chosen.picks.tolist())) == 6
                assert_close(chosen.gains, torch.tensor(brute[1]), 1e-5)
            assert ops.herding(given, 8).picks.tolist() == brute_herding(exact, 8, False)


def test_budgets_of_nothing_and_of_everything(backend: Backend) -> None:
    x = backend.put(features(5))
    for call in (ops.k_center, ops.facility_location, ops.graph_cut, ops.herding):
        none = call(x, 0)
        assert (none.picks.tolist(), none.offsets.tolist()) == ([], [0, 0])
        everything = call(x, 99)
        assert sorted(everything.picks.tolist()) == list(range(5))
        empty = call(x[:0], 3)
        assert (empty.picks.tolist(), empty.offsets.tolist()) == ([], [0, 0])
    unserved = ops.facility_location(x, 0)
    assert (unserved.assignments.tolist(), unserved.objective.tolist()) == ([-1] * 5, [0.0])
    assert ops.k_center(x, 0).distances.tolist() == [float("inf")] * 5
    assert ops.k_center(x, 0, centers=torch.tensor([2])).distances[2] == 0.0


def test_inputs_stay_and_carry_no_graph(backend: Backend) -> None:
    x = backend.put(features(30)).requires_grad_()
    before = x.detach().clone()
    for call in (ops.k_center, ops.facility_location, ops.graph_cut, ops.herding):
        results = call(x, 5)
        assert not any(value.requires_grad for value in results)
    assert torch.equal(x, before)
    matrix = backend.put(torch.rand(8, 8, generator=torch.Generator().manual_seed(0)))
    kept = matrix.clone()
    ops.facility_location(None, 3, similarity=matrix)
    ops.graph_cut(None, 3, similarity=matrix)
    assert torch.equal(matrix, kept)


# --- errors --------------------------------------------------------------------------------------


def test_nan_features_are_named_by_row_and_segment() -> None:
    x = features(sum(SIZES))
    x[11, 3] = float("nan")
    for call in (ops.k_center, ops.facility_location, ops.graph_cut, ops.herding):
        with pytest.raises(ValueError, match=r"x holds NaN .* first in row 11 of segment 3"):
            call(x, 2, segments=segments())
    matrix = torch.eye(4)
    matrix[2, 1] = float("inf")
    for call in (ops.facility_location, ops.graph_cut):
        with pytest.raises(ValueError, match=r"similarity of segment 1 holds NaN .* row 2"):
            call(None, 2, similarity=[torch.eye(3), matrix])


def test_a_matrix_that_is_too_large_is_refused_with_its_bytes() -> None:
    x = torch.zeros(40_000, 1)
    message = "segment 0 has 40,000 rows: its similarities take 6,400,000,000 bytes"
    with pytest.raises(ValueError, match=message):
        ops.facility_location(x, 5)


def test_the_matrix_of_graph_cuts_twin_is_refused_where_it_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = features(40)
    picks = ops.graph_cut(x, 5).picks
    monkeypatch.setattr(_native, "usable", lambda *_: False)
    monkeypatch.setattr(_memory, "free_bytes", lambda _: 40 * 40 * 12)
    assert torch.equal(ops.graph_cut(x, 5).picks, picks)
    monkeypatch.setattr(_memory, "free_bytes", lambda _: 40 * 40 * 12 - 1)
    with pytest.raises(ValueError, match="similarities of a segment of 40 rows, which only the k"):
        ops.graph_cut(x, 5)


X = torch.zeros(4, 2)
ERRORS = [
    (lambda: ops.k_center([[1.0]], 1), TypeError, "x is a torch.Tensor, not list"),
    (lambda: ops.k_center(torch.zeros(4), 1), ValueError, r"x has shape \(4,\)"),
    (lambda: ops.k_center(X, -1), ValueError, "k must not be negative, got -1"),
    (lambda: ops.k_center(X, 1.5), TypeError, "k must be an int or one int a segment, got 1.5"),
    (lambda: ops.k_center(X, [1, 2]), ValueError, "k has 2 budgets; one for each of 1 segments"),
    (lambda: ops.k_center(X, 1, metric="l1"), ValueError, "metric is 'l1'; allowed are euclid"),
    (lambda: ops.k_center(X + 1, 1, metric="jeffreys"), ValueError, "x holds 1.0; metric='jeff"),
    (lambda: ops.k_center(X, 1, init=4), ValueError, "init must be a row of its segment, got 4"),
    (lambda: ops.k_center(X, 1, init="best"), ValueError, "init is 'best'; allowed are None"),
    (lambda: ops.k_center(X, 1, init=1.5), TypeError, "init must be None, ints"),
    (lambda: ops.k_center(X, 1, centers=torch.tensor([4])), ValueError, r"centers must lie in \[0"),
    (lambda: ops.k_center(X, 1, centers=torch.tensor([1, 1])), ValueError, "name a row twice"),
    (lambda: ops.k_center(X, 1, centers=torch.tensor([1]), init=1), ValueError, "one of centers"),
    (
        lambda: ops.k_center(X, 1, centers=torch.tensor([1]), init="mean"),
        ValueError,
        "with centers it must be None or rows of x",
    ),
    (lambda: ops.k_center(X, 1, weights=torch.zeros(3)), ValueError, r"weights has shape \(3,\)"),
    (lambda: ops.k_center(X, 1, weights=-torch.ones(4)), ValueError, "not negative, got -1.0 in"),
    (lambda: ops.facility_location(None, 1), ValueError, "x or similarity must be given, not both"),
    (lambda: ops.graph_cut(X, 1, similarity=X), ValueError, "x or similarity must be given"),
    (lambda: ops.facility_location(None, 1, similarity=X), ValueError, r"\(4, 2\); \(n, n\) is"),
    (lambda: ops.facility_location(None, 1, similarity=[]), ValueError, "similarity has no matrix"),
    (
        lambda: ops.facility_location(X, 1, greedy="x"),
        ValueError,
        "greedy is 'x'; allowed are lazy",
    ),
    (lambda: ops.facility_location(X, 1, metric="x"), ValueError, "metric is 'x'; allowed are cos"),
    (lambda: ops.facility_location(X, 1, epsilon=1.0), ValueError, "epsilon is 1.0; it must be"),
    (lambda: ops.facility_location(X, 1, gamma=0.0), ValueError, "gamma is 0.0; it must be above"),
    (lambda: ops.graph_cut(X, 1, float("nan")), ValueError, "lam is nan; it must be finite"),
    (
        lambda: ops.graph_cut(None, 1, similarity=torch.eye(3), segments=torch.tensor([0, 1, 3])),
        ValueError,
        r"segments have \[1, 2\] rows, the matrices of similarity \[3\]",
    ),
    (
        lambda: ops.herding(X, 1, segments=torch.tensor([0, 5])),
        ValueError,
        "segments must begin at 0 and end at 4, the rows of x",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distances_that_overflow_are_refused(dtype: torch.dtype) -> None:
    # They are all infinite, so that the picks would be the first rows.
    x = torch.tensor([[0.0], [1.0], [9.0], [5.0]], dtype=dtype)
    large = x * torch.finfo(dtype).max ** 0.75
    with pytest.raises(ValueError, match="distances from row 0 of x overflow: divide x by"):
        ops.k_center(large, 3)
    assert ops.k_center(x * 1e15, 3).picks.tolist() == [0, 2, 3]
