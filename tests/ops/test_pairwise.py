"""Gram matrices, alignments and neighbours against the gradients themselves and brute force."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyddfast import ops
from pyddfast.ops import _memory, _native
from tests.ops.conftest import Backend
from tests.tolerances import FLOAT32, FLOAT64, assert_close

pytestmark = pytest.mark.usefixtures("one_thread")

METRICS = ("dot", "cosine", "cosine01", "euclidean")


def randn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def factors(n: int = 12, classes: int = 5, width: int = 7) -> tuple[Tensor, Tensor]:
    """Gradients and features as a network has them; row 3 is certain, row 4 is row 2."""
    z, h = randn(n, classes, seed=1), randn(n, width, seed=2).relu()
    z[3, 0] += 2000  # the others' probabilities underflow
    z[4], h[4] = z[2], h[2]
    label = torch.arange(n) % classes
    label[3], label[4] = 0, label[2]
    return ops.logit_gradient(z, label), h


def dense(g: Tensor, h: Tensor, bias: bool) -> Tensor:
    """The gradients themselves, (n, C (D + 1))."""
    rows = torch.cat((h, h.new_ones(len(h), int(bias))), 1)
    return (g[:, :, None] * rows[:, None]).flatten(1)


def compared(gradients: Tensor, metric: str) -> Tensor:
    if metric == "dot":
        return gradients @ gradients.T
    if metric == "euclidean":
        return (gradients[:, None] - gradients[None]).norm(dim=2)
    cosine = F.cosine_similarity(gradients[:, None], gradients[None], dim=2, eps=0.0).nan_to_num(0)
    return 0.5 + 0.5 * cosine if metric == "cosine01" else cosine


# Of autograd: what the two factors stand for.
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_factors_give_the_gradient_of_the_last_layer(temperature: float) -> None:
    h, teacher = randn(6, 7), randn(6, 5, seed=1)
    label = torch.tensor([0, 4, 1, 1, 3, 2])
    layer = torch.nn.Linear(7, 5).double()
    targets: list[tuple[Tensor, Any]] = [
        (label, "probs"), (teacher.softmax(1), "probs"), (teacher, "logits"),
    ]  # fmt: skip
    for target, kind in targets:
        g = ops.logit_gradient(layer(h), target, temperature=temperature, target_kind=kind)
        for row in range(6):
            log_p = F.log_softmax(layer(h[row]) / temperature, 0)
            if target is label:
                loss = -log_p[label[row]]
            else:
                q = target[row] if kind == "probs" else (target[row] / temperature).softmax(0)
                loss = -(q * log_p).sum()
            weight, offset = torch.autograd.grad(loss, (layer.weight, layer.bias))
            assert_close(torch.outer(g[row], h[row]), weight, 1e-10)
            assert_close(g[row], offset, 1e-10)


def test_logit_gradient_keeps_what_a_difference_loses() -> None:
    logits = torch.zeros(3, 10)
    logits[:, 2] = torch.tensor([3.0, 20.0, 60.0])
    label = torch.full((3,), 2)
    wide = logits.double()
    others = wide.softmax(1).scatter(1, label[:, None], 0)
    want = others.scatter(1, label[:, None], -others.sum(1, keepdim=True))
    one_hot = F.one_hot(label, 10).float()
    for target in (label, one_hot):
        got = ops.logit_gradient(logits, target)
        assert got.dtype == torch.float32
        for row in range(3):  # each on its own: they are 26 powers of ten apart
            assert_close(got[row], want[row], FLOAT32)
    # A teacher that agrees to six digits.
    teacher = wide + 1e-6 * randn(3, 10)
    student = wide.float()
    got = ops.logit_gradient(student, teacher.float(), temperature=20.0, target_kind="logits")
    p, q = ((x / 20).softmax(1) for x in (student.double(), teacher.float().double()))
    assert_close(got, (p - q) / 20, 1e-6, absolute=1e-12)
    half = ops.logit_gradient(student.half(), teacher.half(), target_kind="logits")
    assert half.dtype == torch.float32


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("bias", [True, False])
def test_gram_is_that_of_the_gradients(metric: Any, bias: bool) -> None:
    g, h = factors()
    want = compared(dense(g, h, bias), metric)
    got = ops.last_layer_gram(g, h, metric=metric, bias=bias)
    # Distances of duplicates: the root of a rounding error.
    slack = 1e-7 if metric == "euclidean" else 0.0
    assert_close(got, want, FLOAT64, absolute=slack)
    single = ops.last_layer_gram(g.float(), h.float(), metric=metric, bias=bias)
    assert single.dtype == torch.float32
    want = compared(dense(g.float().double(), h.float().double(), bias), metric)
    assert_close(single, want, FLOAT32, absolute=1e-3 if metric == "euclidean" else 0.0)
    for dtype in (torch.float16, torch.bfloat16):
        low = ops.last_layer_gram(g.to(dtype), h.to(dtype), metric=metric, bias=bias)
        want = compared(dense(g.to(dtype).double(), h.to(dtype).double(), bias), metric)
        assert low.dtype == torch.float32
        assert_close(low, want, FLOAT32, absolute=1e-3 if metric == "euclidean" else 0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(
            ops.last_layer_gram(g.float(), h.float(), metric=metric, bias=bias), single
        )


def test_gram_of_gradients_that_vanish() -> None:
    g, h = factors()
    assert not g[3].any()
    for metric, value in (("cosine", 0.0), ("cosine01", 0.5)):
        got = ops.last_layer_gram(g, h, metric=metric)  # type: ignore[arg-type]
        assert (got[3] == value).all()
        assert (got[:, 3] == value).all()
    # The square of a gradient of 1e-30 is 0 in float32; its direction is not.
    tiny = ops.last_layer_gram((g * 1e-30).float(), h.float(), metric="cosine")
    assert_close(tiny, ops.last_layer_gram(g, h, metric="cosine"), 1e-6)
    large = h * 1e25  # its squares overflow float32
    got = ops.last_layer_gram(g.float(), large.float(), metric="cosine")
    assert_close(got, ops.last_layer_gram(g, large, metric="cosine"), 1e-6)
    distance = ops.last_layer_gram(g.float(), h.float(), metric="euclidean")
    assert not distance.diagonal().any()
    # Without features the bias alone: g g^T.
    assert_close(ops.last_layer_gram(g, h[:, :0]), g @ g.T, FLOAT64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_gradients_have_equal_products(dtype: torch.dtype) -> None:
    """Matrix products round them differently, by where they are; greedy picks would see it."""
    for rows, width in ((3, 17), (13, 64), (20, 130)):
        g, h = randn(rows, 5, dtype=dtype), randn(rows, width, dtype=dtype, seed=1)
        g, h = torch.cat((g, g)), torch.cat((h, h))
        for metric in METRICS:
            gram = ops.last_layer_gram(g, h, metric=metric)  # type: ignore[call-overload]
            assert torch.equal(gram[:rows], gram[rows:])
            assert torch.equal(gram[:, :rows], gram[:, rows:])
        assert not gram.diagonal(rows).any()  # distances of duplicates
        score = ops.grad_align_score(g, h, g[:2], h[:2])
        assert torch.equal(score[:rows], score[rows:])
    nothing = ops.last_layer_gram(g[:, :0], h[:, :0])
    assert not nothing.any()


def test_gram_of_segments_is_each_ones() -> None:
    g, h = factors()
    segments = torch.tensor([0, 5, 5, 11, 12])
    for metric in METRICS:
        grams = ops.last_layer_gram(g, h, metric=metric, segments=segments)  # type: ignore[call-overload]
        assert [tuple(gram.shape) for gram in grams] == [(5, 5), (0, 0), (6, 6), (1, 1)]
        for gram, (a, b) in zip(grams, itertools.pairwise(segments.tolist()), strict=True):
            assert_close(gram, compared(dense(g[a:b], h[a:b], True), metric), 1e-10, absolute=1e-7)


def test_gram_of_one_imagenet_class_needs_a_hundredth(monkeypatch: pytest.MonkeyPatch) -> None:
    n, classes, width = 1300, 1000, 512
    g, h = randn(n, classes, dtype=torch.float32), randn(n, width, dtype=torch.float32, seed=1)
    for metric in METRICS:
        held: list[int] = []
        with torch.profiler.profile(profile_memory=True) as profile:
            ops.last_layer_gram(g, h, metric=metric)  # type: ignore[call-overload]
        now = 0
        for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
            if event.name() == "[memory]":
                now += event.nbytes()
                held.append(now)
        assert max(held) * 100 <= 4 * n * classes * (width + 1)
    monkeypatch.setattr(_memory, "free_bytes", lambda _: 2 * 4 * n * n - 1)
    with pytest.raises(ValueError, match=r"up to 1300 rows needs 0\.0 GiB"):
        ops.last_layer_gram(g, h)


@pytest.mark.parametrize("bias", [True, False])
def test_alignment_is_the_product_with_the_mean_gradient(bias: bool) -> None:
    g, h = factors()
    g_val, h_val = randn(9, 5, seed=5), randn(9, 7, seed=6)
    want = dense(g, h, bias) @ dense(g_val, h_val, bias).mean(0)
    assert_close(ops.grad_align_score(g, h, g_val, h_val, bias=bias), want, FLOAT64)
    lows = [x.float() for x in (g, h, g_val, h_val)]
    got = ops.grad_align_score(*lows, bias=bias)
    assert got.dtype == torch.float32
    want = (
        dense(*(x.double() for x in lows[:2]), bias)
        @ dense(  # type: ignore[misc]
            *(x.double() for x in lows[2:]),
            bias,  # type: ignore[misc]
        ).mean(0)
    )
    assert_close(got, want, FLOAT32)
    halves = [x.bfloat16() for x in lows]
    got = ops.grad_align_score(*halves, bias=bias)
    want = ops.grad_align_score(*(x.double() for x in halves), bias=bias)
    assert_close(got, want, FLOAT32)


def test_alignment_in_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    g, h = factors()
    whole = ops.grad_align_score(g, h, g[:9], h[:9])
    monkeypatch.setattr("pyddfast.ops.reference.pairwise._TEMPORARY", 4 * 7)
    assert_close(ops.grad_align_score(g, h, g[:9], h[:9]), whole, FLOAT64)
    assert ops.grad_align_score(g[:0], h[:0], g, h).shape == (0,)


def brute_force(x: Tensor, k: int, metric: str, exclude_self: bool) -> tuple[Tensor, Tensor]:
    wide = x.double()
    if metric == "euclidean":
        distance = (wide[:, None] - wide[None]).norm(dim=2)
    else:
        unit = F.normalize(wide, dim=1, eps=1e-300)
        distance = (unit[:, None] - unit[None]).square().sum(2) / 2
        zero = (wide == 0).all(1)
        distance[zero], distance[:, zero] = 1.0, 1.0
    if exclude_self:
        distance.fill_diagonal_(torch.inf)
    value, index = distance.sort(dim=1, stable=True)
    return value[:, :k], index[:, :k]


on_cpu_and_device = pytest.mark.parametrize(
    "backend", ["reference", "cpu", pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True
)


def nearest(backend: Backend, x: Tensor, k: int, **options: Any) -> tuple[Tensor, Tensor]:
    """The op's, on the backend's device; back on the CPU."""
    distance, index = ops.knn_topk(x.to(backend.device), k, **options)
    return distance.cpu(), index.cpu()


@on_cpu_and_device
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("tile", [1, 7, 64, 1024])  # rows in pieces, columns in pieces, in one
@pytest.mark.parametrize("exclude_self", [True, False])
def test_neighbours_are_those_of_all_pairs(
    backend: Backend, metric: Any, tile: int, exclude_self: bool
) -> None:
    x = randn(200, 6, dtype=torch.float32)
    x[50], x[70] = x[20], x[20]  # duplicates are neighbours at distance 0
    x[5] = 0
    distance, index = nearest(backend, x, 5, metric=metric, tile=tile, exclude_self=exclude_self)
    want, which = brute_force(x, 5, metric, exclude_self)
    assert torch.equal(index, which)
    assert distance.dtype == torch.float32
    assert_close(distance, want, FLOAT32)
    assert (distance[50, 0], distance[70, 1]) == (0, 0)


@on_cpu_and_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_neighbours_of_other_dtypes(backend: Backend, dtype: torch.dtype) -> None:
    x = randn(60, 9).to(dtype)
    distance, index = nearest(backend, x, 4)
    want, which = brute_force(x, 4, "euclidean", True)
    assert torch.equal(index, which)
    wide = dtype == torch.float64
    assert distance.dtype == (torch.float64 if wide else torch.float32)
    assert_close(distance, want, FLOAT64 if wide else FLOAT32)


@on_cpu_and_device
def test_neighbours_where_the_product_form_has_no_digits(backend: Backend) -> None:
    # Far from 0 and close together: in float32 |x|^2 is 1e10 and a rounding of it 1e3.
    near = 1e5 + randn(80, 4, seed=3).float()
    # Two clusters, so that the mean does not help; and many at the same place.
    far = torch.cat((near, near.neg(), near[:1].expand(30, -1)))
    for x in (near, far):
        for metric in ("euclidean", "cosine"):
            if metric == "cosine" and x is near:
                continue  # one direction: distances of 1e-10, decided by roundings of the norm
            _, which = brute_force(x, 3, metric, True)
            _, index = nearest(backend, x, 3, metric=metric, tile=16)  # type: ignore[arg-type]
            if metric == "euclidean":
                assert torch.equal(index, which)
            else:
                assert ((index // 80 == 1) == (which // 80 == 1)).all()


@on_cpu_and_device
def test_ties_go_to_the_lowest_index(backend: Backend) -> None:
    x = torch.zeros(40, 3)
    for metric in ("euclidean", "cosine"):
        distance, index = nearest(backend, x, 3, metric=metric, tile=4)  # type: ignore[arg-type]
        assert index[0].tolist() == [1, 2, 3]
        assert index[1].tolist() == [0, 2, 3]
        assert index[39].tolist() == [0, 1, 2]
        assert (distance == (metric == "cosine")).all()
    # A grid: four neighbours at distance 1 of each inner point.
    grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0))
    assert nearest(backend, grid, 2)[1][12].tolist() == [7, 11]


@pytest.mark.parametrize("product", ["mm", "addmm"])
def test_neighbours_under_products_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch, product: str
) -> None:
    """A program may allow them; here is a machine on which they are as coarse as that."""
    if product == "addmm":  # the twin's
        monkeypatch.setattr(_native, "usable", lambda *_: False)
    exact = getattr(torch, product)

    def coarse(*tensors: Tensor, **options: Any) -> Tensor:
        *bias, a, b = tensors
        found: Tensor = exact(*bias, a.bfloat16().float(), b.bfloat16().float(), **options)
        return found

    x = randn(400, 4, dtype=torch.float32, seed=7)  # so dense that their roundings decide
    monkeypatch.setattr(torch, product, coarse)
    # More of them would hide the difference.
    monkeypatch.setattr("pyddfast.ops.reference.pairwise.SPARE", 1)
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    try:
        setting.fp32_precision = "bf16"
        _, index = ops.knn_topk(x, 5, tile=32)
    finally:
        setting.fp32_precision = before
    assert torch.equal(index, brute_force(x, 5, "euclidean", True)[1])


def test_neighbours_are_those_of_faiss() -> None:
    import faiss  # here: it brings OpenMP and BLAS of its own

    x = randn(700, 32, dtype=torch.float32, seed=9)
    index = faiss.IndexFlatL2(32)
    index.add(x.numpy())
    square, want = index.search(x.numpy(), 11)
    distance, got = ops.knn_topk(x, 10, tile=128)
    assert torch.equal(got, torch.from_numpy(want[:, 1:]))
    assert_close(distance.square(), torch.from_numpy(square[:, 1:]), 1e-5)


@on_cpu_and_device
def test_neighbours_within_segments(backend: Backend) -> None:
    x = randn(50, 4, dtype=torch.float32)
    segments = torch.tensor([0, 20, 20, 50])
    _, index = nearest(backend, x, 6, segments=segments)
    for a, b in ((0, 20), (20, 50)):
        assert torch.equal(index[a:b] - a, brute_force(x[a:b], 6, "euclidean", True)[1])
    assert nearest(backend, x[:0], 3)[0].shape == (0, 3)


@on_cpu_and_device
def test_neighbours_of_rows_whose_squares_overflow(backend: Backend) -> None:
    x = 1e25 * randn(40, 4, dtype=torch.float32)
    for metric in ("euclidean", "cosine"):
        distance, index = nearest(backend, x, 3, metric=metric)
        want, which = brute_force(x, 3, metric, True)
        assert torch.equal(index, which)
        assert_close(distance, want, FLOAT32)


@on_cpu_and_device
@pytest.mark.parametrize("factor", [2.0**1020, 2.0**600, 2.0**-600, 2.0**-1000])
def test_neighbours_of_float64_rows_whose_squares_leave_its_range(
    backend: Backend, factor: float
) -> None:
    x = randn(40, 4)
    distance, index = nearest(backend, x, 3)
    far, same = nearest(backend, x * factor, 3)
    assert torch.equal(same, index)
    assert_close(far / factor, distance, FLOAT64)


def test_neighbours_that_do_not_fit_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # Distances and indices of the result, those of 39 proposals, and the decision's.
    needed = 40 * 39 * 12 + 40 * 39 * 12 + 40 * 39 * 16
    x = randn(40, 4, dtype=torch.float32)
    want = brute_force(x, 39, "euclidean", True)[1]
    monkeypatch.setattr(_memory, "free_bytes", lambda _: needed)
    assert torch.equal(ops.knn_topk(x, 39)[1], want)
    monkeypatch.setattr(_memory, "free_bytes", lambda _: needed - 1)
    with pytest.raises(ValueError, match=r"k = 39 neighbours of 40 rows needs .* fewer neighbours"):
        ops.knn_topk(x, 39)


def test_neighbours_do_not_depend_on_the_threads() -> None:
    x = randn(600, 40, dtype=torch.float32)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(ops.knn_topk(x, 5))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_opcheck_of_neighbours() -> None:
    for dtype in (torch.float32, torch.float64):
        x = randn(6, 4, dtype=dtype)
        squares, norm = x.square().sum(1), x.double().norm(dim=1)
        values, indices = torch.full((6, 3), torch.inf, dtype=dtype), torch.full((6, 3), -1)
        product = x[:4] @ x.T
        torch.library.opcheck(
            _native.raw.knn_propose_, (product, squares, values, indices, 0, 0, True)
        )
        decide = (x, norm, squares, values, indices, 2, False, 1e-6)
        torch.library.opcheck(_native.raw.knn_decide, decide)


def divergence(logp: Tensor, knn: Tensor, kind: str) -> Tensor:
    """By loops over rows, neighbours and classes, with 0 log 0 = 0; KL with its masses."""
    wide, result = logp.double(), []
    for row in range(len(logp)):
        total = 0.0
        for neighbour in knn[row]:
            p, q = wide[row], wide[neighbour]
            more = float(p.exp().sum() - q.exp().sum())
            q_p = more + sum(
                float(b.exp() * (b - a)) for a, b in zip(p, q, strict=True) if b > -torch.inf
            )
            p_q = -more + sum(
                float(a.exp() * (a - b)) for a, b in zip(p, q, strict=True) if a > -torch.inf
            )
            total += {"jeffreys": (q_p + p_q) / 2, "kl_nb_x": q_p, "kl_x_nb": p_q}[kind]
        result.append(total / knn.shape[1])
    return torch.tensor(result, dtype=torch.float64)


KINDS = ("jeffreys", "kl_nb_x", "kl_x_nb")


def neighbourhood(rows: int, classes: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities in float64, as spread as a trained network's, and neighbours."""
    generator = torch.Generator().manual_seed(classes)
    logits = 3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    knn = torch.randint(0, rows, (rows, neighbours), generator=generator)
    return logits.log_softmax(1), knn


def wide_divergence(logp: Tensor, knn: Tensor, kind: str) -> Tensor:
    """The formula without its limits."""
    x, y = logp.double()[:, None], logp.double()[knn]
    p, q, d = x.exp(), y.exp(), y - x
    terms = {"jeffreys": (q - p) * d / 2, "kl_nb_x": q * d - q + p, "kl_x_nb": -p * d - p + q}
    return terms[kind].sum(2).mean(1)


def found_divergence(backend: Backend, logp: Tensor, knn: Tensor, kind: Any) -> Tensor:
    """The op's, on the backend's device; back on the CPU."""
    return ops.knn_divergence(logp.to(backend.device), knn.to(backend.device), kind=kind).cpu()


@pytest.mark.parametrize("kind", KINDS)
def test_divergence_of_neighbours(backend: Backend, kind: str) -> None:
    logp = (3 * randn(20, 11)).log_softmax(1)
    logp[3, :4] = -torch.inf
    logp[4, :4] = -torch.inf
    logp[5, 2] = -torch.inf
    logp = logp.log_softmax(1)
    knn = torch.randint(0, 20, (20, 3), generator=torch.Generator().manual_seed(4))
    knn[3] = 4
    finite = divergence(logp, knn, kind).isfinite()
    for dtype in backend.dtypes:
        given = logp.to(dtype)
        got = found_divergence(backend, given, knn, kind)
        wide = dtype == torch.float64
        assert got.dtype == (torch.float64 if wide else torch.float32)
        want = divergence(given, knn, kind)
        assert torch.equal(got.isfinite(), finite)
        assert_close(got[finite], want[finite], FLOAT64 if wide else FLOAT32)
        assert (got[~finite] == torch.inf).all()


# One class, CIFAR-10's, a block and a warp, CIFAR-100's, ImageNet-1k's and more.
@pytest.mark.parametrize("classes", [1, 10, 16, 32, 100, 1000, 2100])
def test_divergence_of_any_number_of_classes(backend: Backend, classes: int) -> None:
    for kind in KINDS:
        logp, knn = neighbourhood(7, classes, 4)
        for dtype in backend.dtypes:
            given = logp.to(dtype)
            got = found_divergence(backend, given, knn, kind)
            bound = FLOAT64 if dtype == torch.float64 else FLOAT32
            assert_close(got, wide_divergence(given, knn, kind), bound)


def test_divergence_of_rows_that_are_close(backend: Backend) -> None:
    """Divergences of 1e-10: p - q and the sum of q log(q/p) have no digit left in float32."""
    start = randn(8, 50).log_softmax(1)
    logp = (start[:1] + 1e-5 * start).log_softmax(1).float()
    knn = (torch.arange(8)[:, None] + torch.tensor([1, 3])) % 8
    for kind in KINDS:
        want = wide_divergence(logp, knn, kind)
        assert float(want.max()) < 1e-8
        assert_close(found_divergence(backend, logp, knn, kind), want, FLOAT32)


def test_no_divergence_is_negative(backend: Backend) -> None:
    """Of rows that differ by 1e-8, where float64 cannot tell a divergence from its rounding."""
    logp = (1e-8 * randn(40, 2)).log_softmax(1)
    knn = (torch.arange(40)[:, None] + torch.tensor([1, 3])) % 40
    for kind in KINDS:
        for dtype in backend.dtypes:
            found = found_divergence(backend, logp.to(dtype), knn, kind)
            assert float(found.min()) >= 0


def test_divergence_at_any_distance(backend: Backend) -> None:
    """Every row on its own: of two classes, on both sides of where another formula takes over."""
    z = torch.linspace(-12, 12, 193, dtype=torch.float64)
    logp = torch.stack((z, torch.zeros_like(z)), 1).log_softmax(1).float()
    for step in (1, 7, 8, 16, 17, 90):  # differences of 0.125 to 11.25
        knn = ((torch.arange(193) + step) % 193)[:, None]
        for kind in KINDS:
            want = wide_divergence(logp, knn, kind)
            got = found_divergence(backend, logp, knn, kind).double()
            assert ((got - want).abs() <= FLOAT32 * want).all()


def test_divergence_of_probabilities_that_underflow(backend: Backend) -> None:
    """exp(-100) is 0 in float32, and yet no class without probability."""
    logp = torch.tensor(
        [[0.0, -torch.inf, -torch.inf], [0.0, -100.0, -torch.inf], [0.0, -90.0, -95.0]]
    )
    knn = torch.tensor([[1], [0], [1]])
    want = {
        "jeffreys": [torch.inf, torch.inf, torch.inf],
        "kl_nb_x": [torch.inf, 0.0, 0.0],
        "kl_x_nb": [0.0, torch.inf, torch.inf],
    }
    for kind in KINDS:
        got = found_divergence(backend, logp, knn, kind)
        assert_close(
            got.nan_to_num(posinf=7.0), torch.tensor(want[kind]).nan_to_num(posinf=7.0), 1e-30
        )


def test_divergence_of_layouts_and_of_each_row(backend: Backend) -> None:
    logp, knn = neighbourhood(9, 100, 5)
    logp, knn = logp.float().to(backend.device), knn.to(backend.device)
    want = ops.knn_divergence(logp, knn)
    wide = torch.zeros(9, 205, device=backend.device)
    wide[:, 1:201:2] = logp
    shifted = torch.zeros(9, 103, device=backend.device)
    shifted[:, 1:101] = logp
    for layout in (wide[:, 1:201:2], shifted[:, 1:101], logp.T.contiguous().T):
        assert torch.equal(ops.knn_divergence(layout, knn), want)
    assert torch.equal(ops.knn_divergence(logp, knn.T.contiguous().T), want)
    # A row's result is that of the row and its neighbours alone.
    rows = torch.cat((torch.tensor([4], device=backend.device), knn[4]))
    neighbours = torch.arange(1, 6, device=backend.device).expand(6, -1)
    assert torch.equal(ops.knn_divergence(logp[rows], neighbours)[0], want[4])


def test_divergence_does_not_depend_on_the_threads() -> None:
    logp, knn = neighbourhood(500, 100, 5)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(ops.knn_divergence(logp.float(), knn))
    torch.set_num_threads(before)
    assert torch.equal(*found)


def test_opcheck_of_divergence() -> None:
    logp, knn = neighbourhood(5, 20, 3)
    for given in (logp, logp.float()):
        torch.library.opcheck(_native.raw.knn_divergence, (given, knn, 0))


def test_divergence_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin's."""
    monkeypatch.setattr(_native, "usable", lambda *_: False)
    logp, knn = neighbourhood(9, 100, 5)
    logp[4, 50] = -torch.inf
    logp = logp.log_softmax(1)
    for kind in KINDS:
        whole = ops.knn_divergence(logp, knn, kind=kind)  # type: ignore[arg-type]
        with monkeypatch.context() as context:
            # 7 classes and 2 rows at a time.
            context.setattr("pyddfast.ops.reference.pairwise._TEMPORARY", 7 * 2 * 9)
            context.setattr("pyddfast.ops.reference.pairwise._CACHED", 2 * 5 * 7)
            tiles = ops.knn_divergence(logp, knn, kind=kind)  # type: ignore[arg-type]
        finite = whole.isfinite()
        assert torch.equal(tiles.isfinite(), finite)
        assert_close(tiles[finite], whole[finite], FLOAT64)


def test_divergence_of_equals_and_of_nothing(backend: Backend) -> None:
    logp = randn(4, 6).log_softmax(1).float()
    own = torch.arange(4)[:, None]
    for kind in KINDS:
        assert not found_divergence(backend, logp, own, kind).any()
        assert found_divergence(backend, logp[:0], own[:0], kind).shape == (0,)


@pytest.mark.parametrize("neighbour", [-1, 4, 1 << 40])
def test_divergence_refuses_what_its_kernel_finds(backend: Backend, neighbour: int) -> None:
    logp, knn = randn(4, 6).log_softmax(1).float(), torch.arange(4)[:, None]
    knn[2] = neighbour
    with pytest.raises(ValueError, match=r"knn must hold rows in \[0, 4\)"):
        found_divergence(backend, logp, knn, "jeffreys")
    for value in (torch.nan, 0.0, 1000.0):
        wrong = logp.clone()
        wrong[1, 3] = value
        with pytest.raises(ValueError, match="those of row 1 sum to"):
            found_divergence(backend, wrong, knn.clamp(0, 3), "jeffreys")


X, G, H = torch.zeros(4, 3), torch.zeros(4, 2), torch.zeros(4, 3)
LOGP, KNN = torch.zeros(4, 1), torch.zeros(4, 1, dtype=torch.int64)
NAN = torch.tensor([[0.0], [0.0], [torch.nan], [0.0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.last_layer_gram(G, H[:3]), "h has 3 rows, g 4"),
        (lambda: ops.last_layer_gram(G[0], H), r"g must have shape \(N, D\), got \(2,\)"),
        (lambda: ops.last_layer_gram(G, H, metric="l2"), "metric is 'l2'; allowed are dot"),
        (lambda: ops.last_layer_gram(G, NAN), "h must be finite; row 2"),
        (lambda: ops.last_layer_gram(G, H, segments=torch.tensor([0, 3])), "end at 4"),
        (lambda: ops.grad_align_score(G, H, G[:, :1], H), "g_val has 1 columns, g 2"),
        (lambda: ops.grad_align_score(G, H, G[:0], H[:0]), "g_val has no rows"),
        (lambda: ops.knn_topk(X, 0), "k must be at least 1, got 0"),
        (lambda: ops.knn_topk(X, 4), "k = 4 neighbours beside the row .* class 0 has 3"),
        (lambda: ops.knn_topk(X, 5, exclude_self=False), "k = 5 neighbours .* class 0 has 4"),
        (lambda: ops.knn_topk(X, 1 << 60), "neighbours beside the row .* class 0 has 3"),
        (lambda: ops.knn_topk(NAN, 1), "x must be finite; row 2"),
        (lambda: ops.knn_topk(X, 1, tile=0), "tile must be at least 1"),
        (lambda: ops.knn_topk(X, 1, metric="dot"), "metric"),
        (lambda: ops.knn_divergence(LOGP, KNN[:3]), r"knn must have shape \(4, k\)"),
        (lambda: ops.knn_divergence(LOGP, KNN + 4), r"rows in \[0, 4\), got values from 4 to 4"),
        (lambda: ops.knn_divergence(LOGP, KNN - 1), "from -1 to -1"),
        (lambda: ops.knn_divergence(LOGP + 1, KNN), r"those of row 0 sum to 2\.7"),
        (lambda: ops.knn_divergence(NAN, KNN), "row 2 sum to nan"),
        (lambda: ops.knn_divergence(LOGP, KNN, kind="js"), "kind"),
        (lambda: ops.logit_gradient(NAN, KNN[:, 0]), "logits hold NaN, first in row 2"),
        (lambda: ops.logit_gradient(G, KNN[:, 0] + 2), "labels from 2 to 2"),
        (lambda: ops.logit_gradient(LOGP, NAN), "target hold NaN, first in row 2"),
        (lambda: ops.logit_gradient(LOGP, NAN, target_kind="logits"), "target hold NaN.* row 2"),
    ],
)
def test_pairwise_refuses(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_pairwise_refuses_types() -> None:
    with pytest.raises(TypeError, match="g has dtype"):
        ops.last_layer_gram(G.long(), H)
    with pytest.raises(TypeError, match=r"k must be an int, got 1\.0"):
        ops.knn_topk(X, 1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="knn must be int64"):
        ops.knn_divergence(LOGP, KNN.int())
