"""Tensors of more than 2^31 elements: every row or image of a large batch is that of a small one.

A batch repeats a few rows until it is large enough; by batch invariance its results repeat too,
bit by bit.  On the backend ``simt`` the same calls run on a few hundred elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyddfast import ops
from pyddfast.ops import AugmentParams, DSAParams, DynamicsState
from tests.ops.conftest import Backend
from tests.ops.device_cases import MEAN, STD, Inputs, Outputs, leaf, pixels, randn
from tests.ops.test_dynamics import new_state
from tests.tolerances import FLOAT32, assert_close

ROWS = 8  # that are repeated
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.parametrize(
        "backend", ["simt", pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True
    ),
]


def more_than_int32(backend: Backend, elements_a_row: int) -> int:
    """How often `ROWS` rows have to be repeated; a few times where nothing can be large."""
    least = 2**31 if backend.device.type == "cuda" else 3 * ROWS * elements_a_row
    return math.floor(least / (ROWS * elements_a_row)) + 1


def repeated(backend: Backend, inputs: Inputs, times: int) -> Inputs:
    return {
        name: x.to(backend.device).repeat(times, *[1] * (x.dim() - 1)) for name, x in inputs.items()
    }


def check(backend: Backend, inputs: Inputs, call: Callable[[Inputs], Outputs], width: int) -> None:
    """`width`: the elements a row of the largest tensor that the call reads or writes."""
    times = more_than_int32(backend, width)
    large = call(repeated(backend, inputs, times))
    small = call(repeated(backend, inputs, 1))
    for got, want in zip(large, small, strict=True):
        assert bool((got.unflatten(0, (times, ROWS)) == want).all())
    largest = max(x.numel() for x in [*large, *repeated(backend, inputs, times).values()])
    assert largest >= times * ROWS * width


def logits() -> Inputs:
    student, teacher = (3 * randn(seed, ROWS, 1000, dtype=torch.float16) for seed in (1, 2))
    return {"student": student, "teacher": teacher, "target": torch.arange(ROWS) * 100}


def rows_alike(outputs: Outputs, *inputs: Tensor) -> Outputs:
    """Outputs, and gradients for an upstream gradient of 1, which does not tell rows apart."""
    return [*outputs, *torch.autograd.grad(outputs, inputs, [torch.ones_like(o) for o in outputs])]


def test_kd_loss(backend: Backend) -> None:
    def call(inputs: Inputs) -> Outputs:
        student, teacher = inputs["student"].requires_grad_(), inputs["teacher"]
        loss, score = ops.kd_loss(student, teacher, 4.0, reduction="none", return_score=True)
        return [score, *rows_alike([loss], student)]

    check(backend, logits(), call, 1000)


def test_mse_ce(backend: Backend) -> None:
    def call(inputs: Inputs) -> Outputs:
        student = inputs["student"].requires_grad_()
        loss = ops.mse_ce(student, inputs["teacher"], inputs["target"], reduction="none")
        return rows_alike([loss], student)

    check(backend, logits(), call, 1000)


def test_soft_ce(backend: Backend) -> None:
    def call(inputs: Inputs) -> Outputs:
        student = inputs["student"].requires_grad_()
        loss = ops.soft_ce(student, inputs["teacher"], reduction="none")
        return rows_alike([loss], student)

    inputs = logits()
    del inputs["target"]
    check(backend, {**inputs, "teacher": inputs["teacher"].softmax(1)}, call, 1000)


def test_sample_scores(backend: Backend) -> None:
    def call(inputs: Inputs) -> Outputs:
        found = ops.sample_scores(inputs["student"], inputs["target"])
        return [x for x in found if x is not None]

    check(backend, {n: x for n, x in logits().items() if n != "teacher"}, call, 1000)


def test_dynamics_update(backend: Backend) -> None:
    def call(inputs: Inputs) -> Outputs:
        x = inputs["student"]
        fresh = new_state(len(x))
        state = DynamicsState(*(None if s is None else s.to(x.device) for s in fresh))
        order = torch.arange(len(x), device=x.device)
        tick = torch.tensor(0, device=x.device)
        ops.dynamics_update_(state, x, inputs["target"], order, tick)
        return [s.nan_to_num(-1.0) for s in state if s is not None]

    check(backend, {n: x for n, x in logits().items() if n != "teacher"}, call, 1000)


def activations() -> Inputs:
    return {"x": randn(3, ROWS, 4, 8, 16, dtype=torch.float16) + 1}


@pytest.mark.parametrize("channels_last", [False, True])
def test_batch_norm_and_statistics(backend: Backend, channels_last: bool) -> None:
    vectors = [randn(seed, 4).square().to(backend.device) + 0.5 for seed in range(4)]
    small = activations()["x"].float()

    def call(inputs: Inputs) -> Outputs:
        x = inputs["x"]
        if channels_last:
            x = x.to(memory_format=torch.channels_last)
        x = leaf(x)
        y, mean, var = ops.bn_eval_stats(x, *vectors, activation="relu")
        # Sums over more rows: the same numbers, but for their rounding.
        assert_close(mean, small.mean([0, 2, 3]), FLOAT32)
        assert_close(var, small.var([0, 2, 3], unbiased=False), FLOAT32)
        return rows_alike([y], x)

    check(backend, activations(), call, 512)


def test_patch_stats(backend: Backend) -> None:
    want = [x.clone() for x in ops.patch_stats(activations()["x"], 8)[1:]]

    def call(inputs: Inputs) -> Outputs:
        x = leaf(inputs["x"])
        found = ops.patch_stats(x, 8)
        for got, wanted in zip(found[1:], want, strict=True):
            assert_close(got, wanted, 2 * FLOAT32)
        return rows_alike([found[0]], x)

    check(backend, activations(), call, 512)


def test_norm_relu_pool(backend: Backend) -> None:
    vectors = [randn(seed, 4).to(backend.device) for seed in (1, 2)]

    def call(inputs: Inputs) -> Outputs:
        x = leaf(inputs["x"])
        y = ops.norm_relu_pool(x, *vectors)
        upstream = torch.full_like(y, 0.75).requires_grad_()
        (slope,) = torch.autograd.grad(y, x, upstream, create_graph=True)
        return [y, *rows_alike([slope], upstream, x)]

    check(backend, activations(), call, 512)


def test_gradient_distance(backend: Backend) -> None:
    inputs = {name: randn(k, ROWS, 1000, dtype=torch.float16) for k, name in enumerate("ab")}
    small = ops.gradient_distance([inputs["a"].float()], [inputs["b"].float()])

    def call(inputs: Inputs) -> Outputs:
        syn = leaf(inputs["a"])
        distance = ops.gradient_distance([syn], [inputs["b"]])
        # A sum over more rows.
        assert_close(distance, small * (len(syn) // ROWS), 10 * FLOAT32)
        return list(torch.autograd.grad(distance, syn))

    check(backend, inputs, call, 1000)


def side(backend: Backend) -> int:
    """Of an image: ImageNet's, or as small as it gets on the emulator."""
    return 224 if backend.device.type == "cuda" else 8


def test_augment(backend: Backend) -> None:
    size = side(backend)
    index = torch.arange(ROWS)
    images = pixels(1, ROWS, 25, 30).to(backend.device)
    drawn = ops.draw_augmentation(1, index, index, 0, (25, 30), size=size, factor=2)
    params = {name: x for name, x in vars(drawn).items() if x is not None}

    def call(inputs: Inputs) -> Outputs:
        which, given = inputs.pop("index"), AugmentParams(**inputs)
        return [
            ops.augment(images, which, given, mean=MEAN, std=STD, size=size, dtype=torch.float16)
        ]

    check(backend, {"index": index, **params}, call, 3 * size**2)


def test_multi_crop(backend: Backend) -> None:
    size = side(backend)

    def call(inputs: Inputs) -> Outputs:
        options = {"size": size, "mean": MEAN, "std": STD, "dtype": torch.float16}
        return [ops.multi_crop(inputs["images"], inputs["boxes"], **options)[0]]

    boxes = torch.tensor([[[3, 4, 7, 9]]]).repeat(ROWS, 1, 1)
    boxes[:, 0, 0] += torch.arange(ROWS)
    inputs = {"images": pixels(1, ROWS, 25, 30), "boxes": boxes}
    check(backend, inputs, call, 3 * size**2)


def test_mosaic(backend: Backend) -> None:
    size = side(backend)

    def call(inputs: Inputs) -> Outputs:
        options = {"size": size, "factor": 1, "mode": "bilinear", "quantize": "round"}
        return [ops.mosaic(inputs["patches"], mean=MEAN, std=STD, **options)]

    check(backend, {"patches": randn(1, ROWS, 3, 10, 9)}, call, 3 * size**2)


def images() -> Inputs:
    return {"images": randn(1, ROWS, 3, 16, 16, dtype=torch.float16)}


def test_crop_flip_roll(backend: Backend) -> None:
    params = torch.tensor([2, 1, 11, 13, 1, 6, -5], device=backend.device)

    def call(inputs: Inputs) -> Outputs:
        x = leaf(inputs["images"])
        return rows_alike([ops.crop_flip_roll(x, params)], x)

    check(backend, images(), call, 768)


@pytest.mark.parametrize(
    "names", [("brightness", "saturation", "contrast"), ("crop", "cutout", "flip"), ("rotate",)]
)
def test_dsa(backend: Backend, names: tuple[str, ...]) -> None:
    ids = torch.arange(ROWS)
    drawn = ops.draw_dsa(1, ids, ids, 0, (16, 16), mode="all").values
    values = {n: drawn[n].float() if drawn[n].is_floating_point() else drawn[n] for n in names}

    def call(inputs: Inputs) -> Outputs:
        x = leaf(inputs.pop("images"))
        return rows_alike([ops.dsa(x, DSAParams(names, inputs, (8, 8)))], x)

    check(backend, {**images(), **values}, call, 768)


def test_k_center(backend: Backend) -> None:
    """The farthest row of all is the last one."""
    times = more_than_int32(backend, 512)
    x = repeated(backend, {"x": randn(1, ROWS, 512, dtype=torch.float16)}, times)["x"]
    x[-1] = 100.0
    picks = ops.k_center(x, 2, centers=torch.tensor([0])).picks
    assert int(picks[0]) == len(x) - 1
    assert 0 < int(picks[1]) < len(x) - 1


def test_knn_divergence(backend: Backend) -> None:
    inputs = {
        "logp": (3 * randn(1, ROWS, 1000)).log_softmax(1),
        "knn": torch.arange(ROWS)[:, None].roll(1),
    }
    check(backend, inputs, lambda given: [ops.knn_divergence(**given)], 1000)


def test_herding(backend: Backend) -> None:
    """The nearest row to the mean is the last one."""
    times = more_than_int32(backend, 512)
    x = repeated(backend, {"x": randn(1, ROWS, 512, dtype=torch.float16)}, times)["x"]
    x[-1] = x[:ROWS].float().mean(0)
    assert ops.herding(x, 1).picks.tolist() == [len(x) - 1]


def test_facility_location(backend: Backend) -> None:
    """Of a matrix of that many similarities; the last row is as near as can be to all."""
    rows = 46_400 if backend.device.type == "cuda" else 40
    x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(1)).to(backend.device)
    x += 1
    x[-1] = 1
    found = ops.facility_location(x, 2, max_matrix_bytes=1 << 34)
    assert int(found.picks[0]) == rows - 1
    assert 0 <= int(found.picks[1]) < rows - 1
