"""What the operators on images promise on every backend: their shapes do not fit the suite of the
losses.  Gradients of ``crop_flip_roll`` are in test_synthesis.py; the others have no kernel for
theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pyddfast import ops
from pyddfast.ops import AugmentParams, DSAParams, _native
from pyddfast.ops.reference import augment as augment_twin
from pyddfast.ops.reference import dsa as dsa_twin
from pyddfast.ops.reference import patches as patches_twin
from pyddfast.ops.reference import synthesis as synthesis_twin
from tests.tolerances import FLOAT32, FLOAT64, ROUNDING, assert_close

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class ImageCase:
    """An operator on named tensors; `varies` is the one whose layout and dtype the tests vary."""

    name: str
    varies: str
    make: Callable[[int], dict[str, Tensor]]  # number of images -> inputs
    op: Callable[[Inputs, torch.dtype], Tensor]
    twin: Callable[[Inputs], Tensor]  # in float64
    batch_dim: int = 0

    def __str__(self) -> str:
        return self.name


def moments() -> tuple[Tensor, Tensor]:
    return torch.tensor(MEAN, dtype=torch.float64), torch.tensor(STD, dtype=torch.float64)


def pixels(n: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (8, 3, height, width), generator=generator, dtype=torch.uint8)[:n]


def make_augment(n: int) -> dict[str, Tensor]:
    index = (torch.arange(n) * 5) % 8
    drawn = ops.draw_augmentation(1, index, torch.zeros_like(index), 0, (25, 30), size=20, factor=2)
    params = {name: value for name, value in vars(drawn).items() if value is not None}
    partner = (torch.arange(n) ^ 1).clamp(max=n - 1)  # neighbours, so that batches have parts
    mixed = {"partner": partner, "mix_box": torch.tensor([2, 3, 11, 17])}
    return {"images": pixels(8, 25, 30), "index": index, **params, **mixed}


def run_augment(inputs: Inputs, dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    params = AugmentParams(**{k: v for k, v in inputs.items() if k not in ("images", "index")})
    return ops.augment(
        inputs["images"],
        inputs["index"],
        params,
        mean=MEAN,
        std=STD,
        size=20,
        dtype=dtype,
        channels_last=channels_last,
    )


def twin_augment(inputs: Inputs) -> Tensor:
    return augment_twin.augment(
        **inputs,
        mean=moments()[0],
        std=moments()[1],
        size=(20, 20),
        shuffle_first=True,
        antialias=True,
    )


def make_crops(n: int) -> dict[str, Tensor]:
    boxes = torch.tensor([[[0, 0, 25, 30], [3, 4, 7, 9]], [[1, 2, 24, 20], [20, 25, 5, 5]]])
    return {"images": pixels(n, 25, 30), "boxes": boxes.repeat(n, 1, 1)[:n]}


def run_crops(inputs: Inputs, dtype: torch.dtype) -> Tensor:
    return ops.multi_crop(**inputs, size=12, pad_to=17, mean=MEAN, std=STD, dtype=dtype)  # type: ignore[arg-type]


def twin_crops(inputs: Inputs) -> Tensor:
    return patches_twin.multi_crop(
        inputs["images"], inputs["boxes"], 12, 17, *moments(), torch.float64
    )


def make_mosaic(n: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    # image t of n holds ranks t, n + t, ...: the first ranks of a larger batch are not its images
    patches = torch.randn(4, 8, 3, 10, 9, generator=generator)[:, :n]
    return {"patches": patches.reshape(4 * n, 3, 10, 9)}


def run_mosaic(inputs: Inputs, dtype: torch.dtype) -> Tensor:
    return ops.mosaic(
        inputs["patches"].to(dtype), size=13, factor=2, mode="bilinear", mean=MEAN, std=STD
    )


def twin_mosaic(inputs: Inputs) -> Tensor:
    mean, std = (value[:, None, None] for value in moments())
    return patches_twin.mosaic(inputs["patches"].double(), 13, 2, "bilinear") * std + mean


def make_rolled(n: int) -> dict[str, Tensor]:
    params = torch.tensor([3, 4, 17, 20, 1, 6, -5])
    return {"images": pixels(n, 25, 30) / 255, "params": params}


def run_rolled(inputs: Inputs, dtype: torch.dtype) -> Tensor:
    return ops.crop_flip_roll(inputs["images"].to(dtype), inputs["params"])


def twin_rolled(inputs: Inputs) -> Tensor:
    return synthesis_twin.crop_flip_roll(inputs["images"].double(), inputs["params"], (25, 30))


def make_dsa(*transforms: str) -> Callable[[int], dict[str, Tensor]]:
    def make(n: int) -> dict[str, Tensor]:
        ids = torch.arange(8)
        drawn = ops.draw_dsa(1, ids, ids, 0, (25, 30), mode="all").values
        # In float32, as the kernels take them.
        values = {name: drawn[name][:n] for name in transforms}
        values = {k: v.float() if v.is_floating_point() else v for k, v in values.items()}
        return {"images": pixels(n, 25, 30) / 255, **values}

    return make


def dsa_params(inputs: Inputs) -> DSAParams:
    return DSAParams(tuple(inputs)[1:], dict(list(inputs.items())[1:]), (12, 15))


def run_dsa(inputs: Inputs, dtype: torch.dtype) -> Tensor:
    return ops.dsa(inputs["images"].to(dtype), dsa_params(inputs), align_corners=True)


def twin_dsa(inputs: Inputs) -> Tensor:
    exact = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    return dsa_twin.dsa(exact["images"], dsa_params(exact), align_corners=True)


DSA_CASES = [
    ImageCase(name, "images", make_dsa(*transforms), run_dsa, twin_dsa)
    for name, transforms in {
        "dsa_color": ("brightness", "saturation", "contrast"),
        "dsa_shift": ("crop", "cutout", "flip"),
        "dsa_warp": ("scale", "rotate"),
    }.items()
]

CASES = [
    ImageCase("augment", "images", make_augment, run_augment, twin_augment),
    ImageCase("multi_crop", "images", make_crops, run_crops, twin_crops, batch_dim=1),
    ImageCase("mosaic", "patches", make_mosaic, run_mosaic, twin_mosaic),
    ImageCase("crop_flip_roll", "images", make_rolled, run_rolled, twin_rolled),
    *DSA_CASES,
]
cases = pytest.mark.parametrize("case", CASES, ids=str)


def put(backend, inputs: Inputs) -> dict[str, Tensor]:
    return {name: value.to(backend.device) for name, value in inputs.items()}


@cases
def test_dtypes(backend, case):
    inputs = put(backend, case.make(5))
    for dtype in backend.dtypes:
        exact = {name: value.cpu() for name, value in inputs.items()}  # where the moments are
        if exact[case.varies].is_floating_point():  # they are rounded first
            exact[case.varies] = exact[case.varies].to(dtype)
        got = case.op(inputs, dtype)
        assert got.dtype is dtype
        arithmetic = FLOAT64 if dtype is torch.float64 else FLOAT32
        assert_close(got, case.twin(exact), arithmetic + ROUNDING[dtype], case.name)


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same values in other memory layouts."""
    padded = torch.full((*x.shape[:2], x.shape[2] + 2, x.shape[3] + 3), 77, dtype=x.dtype)
    padded = padded.to(x.device)
    padded[:, :, 1:-1, 2:-1] = x
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:].view(x.shape)
    return {
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "padded": padded[:, :, 1:-1, 2:-1],
        "misaligned base": shifted.copy_(x),
        "every second pixel": x.repeat_interleave(2, 3)[..., ::2],
        "channels backwards": x.flip(1).contiguous().flip(1),
    }


@cases
@pytest.mark.parametrize("name", list(layouts(torch.zeros(1, 1, 1, 1))))
def test_layouts_give_the_same_bits(backend, case, name):
    inputs = put(backend, case.make(4))
    moved = {**inputs, case.varies: layouts(inputs[case.varies])[name]}
    assert torch.equal(case.op(moved, torch.float32), case.op(inputs, torch.float32))


@cases
def test_parameters_of_any_stride(backend, case):
    inputs = put(backend, case.make(4))
    names = [name for name in inputs if name != case.varies]
    spread = {
        name: torch.stack([inputs[name], -inputs[name].long()], -1)[..., 0].to(inputs[name].dtype)
        for name in names
    }
    spread = {
        name: value if value.dtype is torch.bool else torch.stack([value, -value], -1)[..., 0]
        for name, value in spread.items()
    }
    got = case.op({**inputs, **spread}, torch.float32)
    assert torch.equal(got, case.op(inputs, torch.float32))


@cases
def test_expanded_images(backend, case):
    inputs = put(backend, case.make(8))
    first = inputs[case.varies][:1]
    expanded = {**inputs, case.varies: first.expand_as(inputs[case.varies])}
    copied = {**inputs, case.varies: expanded[case.varies].contiguous()}
    assert torch.equal(case.op(expanded, torch.float32), case.op(copied, torch.float32))


@cases
def test_empty_batch(backend, case):
    got = case.op(put(backend, case.make(0)), torch.float32)
    assert got.shape[case.batch_dim] == 0
    assert got.shape == case.twin(case.make(0)).shape


@cases
def test_inputs_are_not_changed(backend, case):
    inputs = put(backend, case.make(3))
    before = {name: value.clone() for name, value in inputs.items()}
    case.op(inputs, torch.float32)
    assert all(torch.equal(inputs[name], before[name]) for name in inputs)


@cases
def test_an_image_does_not_depend_on_its_batch(backend, case):
    whole = case.op(put(backend, case.make(7)), torch.float32)
    part = case.op(put(backend, case.make(2)), torch.float32)
    assert torch.equal(part, whole.narrow(case.batch_dim, 0, 2))


@cases
def test_every_output_is_written(backend, case):
    """Fresh memory holds NaN here; none may reach a result."""
    torch.use_deterministic_algorithms(True)  # with it, torch.empty() is filled
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        got = case.op(put(backend, case.make(3)), torch.float32)
    finally:
        torch.use_deterministic_algorithms(False)
    assert bool(torch.isfinite(got).all())


@cases
def test_threads_of_torch_do_not_change_bits(case):
    inputs = case.make(8)
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(case.op(inputs, torch.float32))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


@cases
def test_calls_from_many_threads(case):
    inputs = case.make(6)
    expected = case.op(inputs, torch.float32)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(case.op, inputs, torch.float32) for _ in range(32)]
    assert all(torch.equal(future.result(), expected) for future in futures)


@cases
def test_compile(case):
    torch._dynamo.reset()
    step = torch.compile(lambda x: case.op(x, torch.float32) * 2, fullgraph=True)
    inputs = case.make(4)
    assert torch.equal(step(inputs), case.op(inputs, torch.float32) * 2)


RAW = {
    "augment": lambda i: (
        *(i[name] for name in ("images", "index", "box", "flip", "row_order", "col_order")),
        *(i["partner"], i["mix_box"], MEAN, STD, 20, 20, True, True, torch.float16, True),
    ),
    "multi_crop": lambda i: ([i["images"]], i["boxes"], 12, 17, MEAN, STD, torch.bfloat16),
    "mosaic": lambda i: (i["patches"], 13, 2, True, MEAN, STD, 1),
    "crop_flip_roll": lambda i: (i["images"], i["params"], 25, 30, False),
    "dsa_color": lambda i: tuple(i.values()),
    "dsa_shift": lambda i: (*i.values(), 12, 15, True),
    "dsa_warp": lambda i: (i["images"], i["rotate"], True, True, True),
}


@cases
def test_opcheck(case):
    operator = getattr(_native.raw, case.name)
    result = torch.library.opcheck(operator, RAW[case.name](case.make(3)))
    assert set(result.values()) == {"SUCCESS"}


with_kernels = pytest.mark.parametrize(
    "backend", ["cpu", "simt", pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True
)
BAD = {
    "index": 8,  # beyond the set
    "box": (1, 0, 25, 30),  # beyond the image
    "row_order": (0, 0),  # the last strip is missing
    "col_order": (1, 2),  # a strip that does not exist
    "partner": 3,  # beyond the batch
}


def with_bad(inputs: Inputs, name: str) -> dict[str, Tensor]:
    """The inputs with a value of sample 1 that is out of range."""
    changed = inputs[name].clone()
    changed[1] = torch.tensor(BAD[name])
    return {**inputs, name: changed}


@with_kernels
@pytest.mark.parametrize("name", BAD)
def test_an_unchecked_bad_value_is_nan_and_reads_nothing_else(backend, name):
    """As on CUDA, where values are not looked at before the kernel runs."""
    inputs = put(backend, make_augment(3))
    expected = _native.raw.augment(*RAW["augment"](inputs))
    got = _native.raw.augment(*RAW["augment"](with_bad(inputs, name)))
    bad = torch.zeros(got.shape, dtype=torch.bool, device=got.device)
    if name == "partner":
        bad[1, :, 2:11, 3:17] = True
    else:  # the view of sample 1, which sample 0 mixes in
        bad[1] = True
        bad[1, :, 2:11, 3:17] = False
        bad[0, :, 2:11, 3:17] = True
    assert torch.equal(got.isnan(), bad)
    assert torch.equal(got[~bad], expected[~bad])


@with_kernels
def test_an_unchecked_bad_crop_is_nan(backend):
    inputs = put(backend, make_crops(2))
    expected = _native.raw.multi_crop(*RAW["multi_crop"](inputs))
    boxes = inputs["boxes"].clone()
    boxes[1, 0] = torch.tensor([0, -1, 5, 5])
    got = _native.raw.multi_crop(*RAW["multi_crop"]({**inputs, "boxes": boxes}))
    assert bool(got[0, 1, :, 2:14, 2:14].isnan().all())
    keep = torch.ones_like(got, dtype=torch.bool)
    keep[0, 1, :, 2:14, 2:14] = False
    assert torch.equal(got[keep], expected[keep])


@pytest.mark.parametrize("name", BAD)
def test_bad_values_on_the_cpu_are_named(name):
    with pytest.raises(ValueError, match=name):
        run_augment(with_bad(make_augment(3), name), torch.float32)


@pytest.mark.parametrize("backend", ["cpu", "simt"], indirect=True)
def test_gradients_of_floating_point_inputs(backend):
    """Wanted gradients run the differentiable twin; the values are those of the kernel."""
    images = (pixels(2, 25, 30) / 255).requires_grad_()
    boxes = make_crops(2)["boxes"]
    crops = ops.multi_crop(images, boxes, size=12, pad_to=17, mean=MEAN, std=STD)
    assert_close(crops, run_crops({"images": images.detach(), "boxes": boxes}, torch.float32), 1e-6)
    (gradient,) = torch.autograd.grad(crops.sum(), images)
    # each output pixel's weights sum to 1, and are divided by std
    share = 2 * 2 * 144 * sum(1 / s for s in STD)
    assert float(gradient.double().sum()) == pytest.approx(share, rel=1e-5)
    patches = make_mosaic(2)["patches"].requires_grad_()
    tiles = ops.mosaic(patches, size=13, factor=2, mean=MEAN, std=STD)
    (gradient,) = torch.autograd.grad(tiles.sum(), patches)
    assert float(gradient.double().sum()) == pytest.approx(2 * 169 * sum(STD), rel=1e-5)
