"""What every operator keeps (DESIGN.md, "Contract of every op"), for the scores: no gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from pyddfast.ops import _native, reference
from pyddfast.ops.scores import SampleScores, sample_scores
from tests.ops.conftest import Backend
from tests.ops.test_contract import CLASSES, layouts, rows_for
from tests.tolerances import FLOAT32, FLOAT64, PROBABILITIES, assert_close

TEMPERATURE = 1.5  # its inverse is rounded
WIDTH = 37  # of the features: ends in a partial vector
Inputs = dict[str, Tensor]


def inputs_for(kind: str, rows: int, classes: int, seed: int = 0) -> Inputs:
    """The arguments of one kind, float64."""
    generator = torch.Generator().manual_seed(1000 * seed + classes)
    logits, other = 3 * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    label = torch.randint(classes, (rows,), generator=generator)
    inputs = {"logits": logits, "target": label}
    if kind in ("soft", "all"):
        inputs["target"] = torch.softmax(other, -1)
    if kind in ("teacher", "all"):
        inputs["teacher"] = other.flip(0)
        inputs["features"] = torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64)
    return inputs


kinds = pytest.mark.parametrize("kind", ["label", "soft", "teacher", "all"])


def put(backend: Backend, inputs: Inputs, dtype: torch.dtype = torch.float32) -> Inputs:
    return {
        name: backend.put(x, dtype) if x.dtype.is_floating_point else x.to(backend.device)
        for name, x in inputs.items()
    }


def run(inputs: Inputs) -> SampleScores:
    options = {name: x for name, x in inputs.items() if name not in ("logits", "target")}
    return sample_scores(inputs["logits"], inputs["target"], temperature=TEMPERATURE, **options)


def twin(inputs: Inputs) -> SampleScores:
    wide = {
        n: x.cpu().double() if x.dtype.is_floating_point else x.cpu() for n, x in inputs.items()
    }
    return reference.scores.sample_scores(
        wide["logits"], wide["target"], TEMPERATURE, wide.get("teacher"), wide.get("features")
    )


def check(inputs: Inputs) -> None:
    """Every score against the float64 twin on the same values."""
    wide = inputs["logits"].dtype is torch.float64
    bound = FLOAT64 if wide else FLOAT32
    got, want = run(inputs), twin(inputs)
    # Stored probabilities are as exact as they are, and so is what is compared with them.
    soft = {"loss", "el2n", "el2n_sl", "grand"} if inputs["target"].dim() > 1 else set()
    length = 1.0
    if "features" in inputs:
        length = float((1 + inputs["features"].double().square().sum(-1)).sqrt().norm())
    for name, value, expected in zip(SampleScores._fields, got, want, strict=True):
        if expected is None:
            assert value is None
            continue
        assert value is not None
        if name == "correct":
            assert value.dtype is torch.bool
            assert torch.equal(value.cpu(), expected)
            continue
        assert value.dtype is (torch.float64 if wide else torch.float32)
        finite = torch.isfinite(expected)  # the margin of one class is infinite
        assert torch.equal(value.cpu()[~finite].double(), expected[~finite])
        absolute = PROBABILITIES * (length if name == "grand" else 1) if name in soft else 0.0
        assert_close(
            value.cpu()[finite], expected[finite], bound, name, absolute=0.0 if wide else absolute
        )


def assert_same(got: SampleScores, want: SampleScores, rows: object = slice(None)) -> None:
    for name, x, y in zip(SampleScores._fields, got, want, strict=True):
        assert (x is None) == (y is None)
        if x is not None and y is not None:
            assert torch.equal(x, y[rows]), name


@kinds
@pytest.mark.parametrize("classes", CLASSES)
def test_values(backend: Backend, kind: str, classes: int) -> None:
    check(put(backend, inputs_for(kind, rows_for(backend, classes, 3), classes)))


@kinds
@pytest.mark.parametrize("rows", [1, 17, 257])  # one; a group and one more; several blocks of rows
def test_rows(backend: Backend, kind: str, rows: int) -> None:
    check(put(backend, inputs_for(kind, min(rows, 33) if backend.name == "simt" else rows, 10)))


@kinds
def test_dtypes(backend: Backend, kind: str) -> None:
    """Every storage type of the logits beside every one of the rest."""
    for first in backend.dtypes:
        for other in backend.dtypes:
            inputs = put(backend, inputs_for(kind, 5, 100), other)
            check({**inputs, "logits": inputs["logits"].to(first)})


@kinds
@pytest.mark.parametrize("name", list(layouts(torch.zeros(1, 1))))
@pytest.mark.parametrize("classes", [10, 127, 1001])  # short, odd, long and odd
def test_layouts_give_the_same_bits(backend: Backend, kind: str, name: str, classes: int) -> None:
    plain = put(backend, inputs_for(kind, 3, classes))
    other = {n: layouts(x)[name] if x.dim() == 2 else x for n, x in plain.items()}
    if plain["target"].dim() == 1:
        other["target"] = plain["target"].repeat_interleave(2)[::2]
    assert_same(run(other), run(plain))


@kinds
def test_expanded_inputs(backend: Backend, kind: str) -> None:
    single = put(backend, inputs_for(kind, 1, 100))
    many = {n: x.expand(4, *x.shape[1:]) for n, x in single.items()}
    for x, y in zip(run(many), run(single), strict=True):
        assert (x is None and y is None) or torch.equal(x, y.expand(4))


@kinds
def test_leading_dimensions(backend: Backend, kind: str) -> None:
    flat = put(backend, inputs_for(kind, 6, 10))
    shaped = run({n: x.reshape(2, 3, *x.shape[1:]) for n, x in flat.items()})
    for x, y in zip(shaped, run(flat), strict=True):
        if x is not None:
            assert x.shape == (2, 3)
            assert torch.equal(x.flatten(), y)
    row = run({n: x[0] for n, x in flat.items()})
    assert all(x is None or x.shape == () for x in row)


@kinds
def test_empty_batch(backend: Backend, kind: str) -> None:
    for x in run(put(backend, inputs_for(kind, 0, 10))):
        assert x is None or x.shape == (0,)


@kinds
@pytest.mark.parametrize("classes", [10, 1000])
def test_a_row_does_not_depend_on_its_batch(backend: Backend, kind: str, classes: int) -> None:
    inputs = put(backend, inputs_for(kind, 19, classes))
    batch = run(inputs)
    for r in (0, 3, 16, 18):
        assert_same(run({n: x[r : r + 1] for n, x in inputs.items()}), batch, slice(r, r + 1))


@kinds
def test_bits_repeat_and_inputs_stay(backend: Backend, kind: str) -> None:
    inputs = put(backend, inputs_for(kind, 9, 1001))
    copies = {n: x.clone() for n, x in inputs.items()}
    assert_same(run(inputs), run(inputs))
    assert all(torch.equal(x, copies[n]) for n, x in inputs.items())


def test_no_gradient(backend: Backend) -> None:
    inputs = put(backend, inputs_for("teacher", 3, 10))
    inputs["logits"].requires_grad_()
    assert not any(x is not None and x.requires_grad for x in run(inputs))


def test_threads_of_torch_do_not_change_bits() -> None:
    inputs = {n: x.float() if x.dim() > 1 else x for n, x in inputs_for("all", 64, 1000).items()}
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = run(inputs)
        for n in (2, 3):
            torch.set_num_threads(n)
            assert_same(run(inputs), expected)
    finally:
        torch.set_num_threads(threads)


def test_calls_from_many_threads() -> None:
    batches = [inputs_for("all", 8, c) for c in (10, 100, 1000, 17)]
    expected = [run(batch) for batch in batches]

    def work(i: int) -> bool:
        assert_same(run(batches[i % 4]), expected[i % 4])
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(100)))


# ---- values that end or begin somewhere ----------------------------------------------------------


@pytest.mark.parametrize("scale", [1e4, 1e-30])  # +-1e4; differences near the smallest normals
def test_extreme_logits(backend: Backend, scale: float) -> None:
    base = torch.tensor([[1.0, -1.0, 0.99995, 0.0], [0.5, 0.25, -1.0, 1.0]], dtype=torch.float64)
    target = torch.tensor([0, 1])
    check(put(backend, {"logits": base * scale, "target": target}))


@pytest.mark.parametrize("classes", [5, 40, 1100])  # the masked ones in the last vector, and beyond
def test_masked_classes_change_nothing(backend: Backend, classes: int) -> None:
    plain = put(backend, inputs_for("label", 3, classes))
    for mask in (-math.inf, torch.finfo(torch.float32).min):
        padding = backend.put(torch.full((3, 9), mask))
        check({**plain, "logits": torch.cat([plain["logits"], padding], 1)})


def test_a_row_without_logits_is_nan(backend: Backend) -> None:
    logits = torch.zeros(3, 20)
    logits[0] = -torch.inf
    logits[1, 3] = torch.inf
    got = sample_scores(backend.put(logits), torch.tensor([0, 3, 0], device=backend.device))
    for name in ("p_y", "one_minus_p_y", "el2n", "nll", "entropy", "max_prob"):
        value = getattr(got, name)
        assert value.isnan().tolist() == [True, True, False], name


@pytest.mark.parametrize(
    "backend", ["simt", pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True
)
@kinds
def test_rows_that_may_not_be_are_nan_on_cuda(
    backend: Backend, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = put(backend, inputs_for(kind, 4, 100))
    sound = run(inputs)
    inputs["logits"][1, 99] = torch.nan
    bad = [1]
    if kind in ("label", "teacher"):
        inputs["target"][2:] = torch.tensor([100, -1])
        bad = [1, 2, 3]
    got = run(inputs)
    for name, x, y in zip(SampleScores._fields, got, sound, strict=True):
        if x is None:
            continue
        for r in range(4):
            if name == "correct":
                assert bool(x[r]) == (r not in bad and bool(y[r]))
            else:
                assert bool(x[r].isnan()) if r in bad else torch.equal(x[r], y[r]), (name, r)
    monkeypatch.setenv("PYDDFAST_DEBUG", "1")
    with pytest.raises(ValueError, match="hold NaN" if len(bad) == 1 else "labels from -1 to 100"):
        run(inputs)


@pytest.mark.parametrize("backend", ["reference", "cpu"], indirect=True)
@pytest.mark.parametrize("position", [0, 16, 999])  # the first, a vector's first, the last
def test_nan_is_found_wherever_it_is(backend: Backend, position: int) -> None:
    inputs = put(backend, inputs_for("soft", 40, 1000))
    inputs["logits"][23, position] = torch.nan
    with pytest.raises(ValueError, match="logits hold NaN, first in row 23"):
        run(inputs)


# ---- torch's own machinery -----------------------------------------------------------------------


@kinds
def test_compile(kind: str) -> None:
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, dynamic=True)
    def step(inputs: Inputs) -> SampleScores:
        return run({**inputs, "logits": inputs["logits"] * 2})

    for rows in (3, 5):  # the second size must not need another graph
        inputs = inputs_for(kind, rows, 10)
        expected = run({**inputs, "logits": inputs["logits"] * 2})
        for x, y in zip(step(inputs), expected, strict=True):
            assert (x is None and y is None) or torch.equal(x, y)


@kinds
def test_opcheck(kind: str) -> None:
    inputs = inputs_for(kind, 3, 10)
    arguments = (inputs["logits"], inputs["target"], inputs.get("teacher"), inputs.get("features"))
    torch.library.opcheck(_native.raw.sample_scores, (*arguments, TEMPERATURE))


@kinds
def test_torch_func(kind: str) -> None:
    inputs = inputs_for(kind, 4, 10)
    expected = run(inputs)

    def one(*values: Tensor) -> tuple[Tensor, ...]:
        return tuple(x for x in run(dict(zip(inputs, values, strict=True))) if x is not None)

    rows = torch.func.vmap(one)(*inputs.values())
    for x, y in zip(rows, (x for x in expected if x is not None), strict=True):
        assert_close(x.double(), y.double(), FLOAT64)
    score: Callable[[Tensor], Tensor] = lambda z: run({**inputs, "logits": z}).el2n.sum()  # noqa: E731
    assert torch.equal(torch.func.grad(score)(inputs["logits"]), torch.zeros(4, 10).double())


def test_autocast(backend: Backend) -> None:
    inputs = put(backend, inputs_for("soft", 3, 10), torch.bfloat16)
    with torch.autocast(backend.device.type, torch.bfloat16):
        check(inputs)
