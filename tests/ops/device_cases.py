"""Every operator with a kernel, called as the tests of streams, graphs and large tensors need it.

Inputs are made on the CPU from a seed; a call gives all outputs and gradients that have a kernel.
Seeds change values and parameters, never shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyddfast import ops
from pyddfast.ops import AugmentParams, DSAParams, DynamicsState
from tests.ops.test_dynamics import new_state

Inputs = dict[str, Tensor]
Outputs = list[Tensor]
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
DSA_STAGES = {
    "color": ("brightness", "saturation", "contrast"),
    "shift": ("crop", "cutout", "flip"),
    "warp": ("scale", "rotate"),
}


@dataclass(frozen=True)
class DeviceCase:
    """One operator, or one of its launch configurations.

    Attributes:
        name: The public function, and what this case is of it.
        make: (rows or images, seed) to inputs on the CPU.
        call: Inputs on any device to outputs and gradients.
        captures: Whether it waits for no device: greedy selection reads its picks as it goes.
    """

    name: str
    make: Callable[[int, int], Inputs]
    call: Callable[[Inputs], Outputs]
    captures: bool = True

    def __str__(self) -> str:
        return self.name


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def gradients(outputs: Outputs, *inputs: Tensor) -> Outputs:
    """With a different upstream gradient for every element, which any dtype holds exactly."""
    upstream = [torch.arange(o.numel(), device=o.device) % 3 - 0.5 for o in outputs]
    given = [u.view(o.shape).to(o.dtype) for u, o in zip(upstream, outputs, strict=True)]
    return list(torch.autograd.grad(outputs, inputs, given))


def leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


# --- rows of logits --------------------------------------------------------------------------


def make_logits(classes: int) -> Callable[[int, int], Inputs]:
    def make(rows: int, seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        return {
            "student": 3 * randn(seed, rows, classes),
            "teacher": 3 * randn(seed + 1000, rows, classes, dtype=torch.float16),
            "target": torch.randint(classes, (rows,), generator=generator),
            "weight": torch.rand(rows, generator=generator),
        }

    return make


def call_kd(inputs: Inputs) -> Outputs:
    student, teacher = leaf(inputs["student"]), leaf(inputs["teacher"])
    weight = inputs["weight"]
    mean = ops.kd_loss(student, teacher, 4.0, weight=weight)
    loss, score = ops.kd_loss(student, teacher, 4.0, reduction="none", return_score=True)
    once = ops.kd_value_and_grad(inputs["student"], inputs["teacher"], 4.0, weight=weight)
    return [mean, loss, score, *once, *gradients([mean, loss], student, teacher)]


def call_soft_ce(inputs: Inputs) -> Outputs:
    student, target = leaf(inputs["student"]), leaf(inputs["teacher"].float().softmax(-1))
    loss = ops.soft_ce(student, target, 1.5, weight=inputs["weight"])
    return [loss, *gradients([loss], student, target)]


def call_mse_ce(inputs: Inputs) -> Outputs:
    student, teacher = leaf(inputs["student"]), leaf(inputs["teacher"])
    loss = ops.mse_ce(student, teacher, inputs["target"], ce_weight=0.3, weight=inputs["weight"])
    return [loss, *gradients([loss], student, teacher)]


def call_scores(inputs: Inputs) -> Outputs:
    names = ("student", "target")
    found = ops.sample_scores(*(inputs[n] for n in names), teacher=inputs["teacher"])
    return [x for x in found if x is not None]


def make_dynamics(rows: int, seed: int) -> Inputs:
    inputs = make_logits(100)(rows, seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    return {**inputs, "indices": order, "tick": torch.tensor(seed % 5)}


def call_dynamics(inputs: Inputs) -> Outputs:
    device = inputs["student"].device
    fresh = new_state(len(inputs["student"]), extras=("el2n_sl", "entropy"))
    # Made on the device: a copy from the host would wait, which a capture refuses.
    state = DynamicsState(
        *(None if x is None else torch.empty(x.shape, dtype=x.dtype, device=device) for x in fresh)
    )
    for x in (x for x in state if x is not None):
        x.zero_()
    names = ("student", "target", "indices", "tick")
    ops.dynamics_update_(state, *(inputs[n] for n in names), teacher=inputs["teacher"])
    return [x for x in state if x is not None]


# --- activations -----------------------------------------------------------------------------


def make_activations(channels_last: bool) -> Callable[[int, int], Inputs]:
    def make(samples: int, seed: int) -> Inputs:
        x = 2 * randn(seed, samples, 6, 9, 12, dtype=torch.float16) + 1
        if channels_last:
            x = x.to(memory_format=torch.channels_last)
        vectors = {n: randn(seed + i, 6) for i, n in enumerate(("mean", "weight", "bias"), 1)}
        return {"x": x, **vectors, "var": 0.5 + randn(seed + 5, 6).square()}

    return make


def call_stats(inputs: Inputs) -> Outputs:
    x = leaf(inputs["x"])
    found = list(ops.channel_stats(x))
    norm = [inputs[n] for n in ("mean", "var", "weight", "bias")]
    found += ops.bn_eval_stats(x, *norm, activation="relu6")
    return [*found, *gradients(found, x)]


def call_distance(inputs: Inputs) -> Outputs:
    found = [leaf(inputs["weight"]), leaf(inputs["bias"].square())]
    wanted = [inputs["mean"], inputs["var"]]
    loss, layers = ops.bn_distance(*found, *(w[None] for w in wanted), [2, 4])
    return [loss, layers, *gradients([loss, layers], *found)]


def call_patch_stats(inputs: Inputs) -> Outputs:
    x = leaf(inputs["x"])
    found = list(ops.patch_stats(x, 5))
    return [*found, *gradients(found, x)]


def call_block(inputs: Inputs) -> Outputs:
    tensors = [leaf(inputs[n]) for n in ("x", "weight", "bias")]
    y = ops.norm_relu_pool(*tensors)
    upstream = leaf(torch.ones_like(y))
    first = torch.autograd.grad(y, tensors, upstream, create_graph=True)
    return [y, *first, *gradients(list(first), upstream, *tensors[:2])]


def make_gradients(rows: int, seed: int) -> Inputs:
    shapes = {"weight": (rows, 300), "bias": (rows,)}
    sides = enumerate(("syn", "real"))
    return {
        f"{side} {name}": randn(seed + 10 * i, *shape)
        for i, side in sides
        for name, shape in shapes.items()
    }


def call_gradient_distance(inputs: Inputs) -> Outputs:
    syn, real = (
        [x for name, x in inputs.items() if name.startswith(side)] for side in ("syn", "real")
    )
    found = []
    for metric in ("ours", "mse", "cos"):
        leaves = [leaf(x) for x in syn]
        distance = ops.gradient_distance(leaves, real, metric)
        used = leaves if metric != "ours" else leaves[:1]  # it leaves vectors out
        found += [distance, *gradients([distance], *used)]
    return found


# --- images ----------------------------------------------------------------------------------


def pixels(seed: int, images: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (images, 3, height, width), generator=generator).to(torch.uint8)


def make_augment(images: int, seed: int) -> Inputs:
    index = (torch.arange(images) + seed) % images
    drawn = ops.draw_augmentation(seed, index, index, 0, (25, 30), size=20, factor=2)
    params = {name: value for name, value in vars(drawn).items() if value is not None}
    mixed = {"partner": index.flip(0), "mix_box": torch.tensor([2, 3, 11, 17]) + seed % 3}
    return {"images": pixels(seed, images, 25, 30), "index": index, **params, **mixed}


def call_augment(inputs: Inputs) -> Outputs:
    params = AugmentParams(**{k: v for k, v in inputs.items() if k not in ("images", "index")})
    given = (inputs["images"], inputs["index"], params)
    return [ops.augment(*given, mean=MEAN, std=STD, size=20, dtype=torch.float16)]


def make_crops(images: int, seed: int) -> Inputs:
    boxes = torch.tensor([[[0, 0, 25, 30], [3, 4, 7, 9]]]).repeat(images, 1, 1)
    boxes[:, 1] += seed % 4
    return {"images": pixels(seed, images, 25, 30), "boxes": boxes}


def call_crops(inputs: Inputs) -> Outputs:
    return [ops.multi_crop(**inputs, size=12, pad_to=17, mean=MEAN, std=STD)]  # type: ignore[arg-type]


def make_mosaic(images: int, seed: int) -> Inputs:
    return {"patches": randn(seed, 4 * images, 3, 10, 9)}


def call_mosaic(inputs: Inputs) -> Outputs:
    options: dict[str, Any] = {"size": 13, "factor": 2, "mode": "bilinear"}
    return [ops.mosaic(inputs["patches"], **options, mean=MEAN, std=STD)]


def make_rolled(images: int, seed: int) -> Inputs:
    params = torch.tensor([3, 4, 17, 20, seed % 2, 6, -5 + seed])
    return {"images": randn(seed, images, 3, 25, 30), "params": params}


def call_rolled(inputs: Inputs) -> Outputs:
    images = leaf(inputs["images"])
    views = ops.crop_flip_roll(images, inputs["params"], (18, 18))
    return [views, *gradients([views], images)]


def make_dsa(stage: str) -> Callable[[int, int], Inputs]:
    def make(images: int, seed: int) -> Inputs:
        ids = torch.arange(images)
        drawn = ops.draw_dsa(seed, ids, ids, 0, (25, 30), mode="all").values
        values = {name: drawn[name] for name in DSA_STAGES[stage]}
        # In float32, as the kernels take them.
        values = {k: v.float() if v.is_floating_point() else v for k, v in values.items()}
        return {"images": randn(seed, images, 3, 25, 30), **values}

    return make


def call_dsa(inputs: Inputs) -> Outputs:
    images, names = leaf(inputs["images"]), tuple(inputs)[1:]
    params = DSAParams(names, {name: inputs[name] for name in names}, (12, 15))
    views = ops.dsa(images, params)
    return [views, *gradients([views], images)]


# --- selection -------------------------------------------------------------------------------


def make_features(rows: int, seed: int) -> Inputs:
    return {"x": randn(seed, rows, 20)}


def call_greedy(inputs: Inputs) -> Outputs:
    x, segments = inputs["x"], torch.tensor([0, 3, len(inputs["x"])])
    found = [ops.k_center(x, 3, segments=segments), ops.herding(x, 3, segments=segments)]
    found.append(ops.graph_cut(x, 3, segments=segments))
    return [value for result in found for value in result if isinstance(value, Tensor)]


def call_location(inputs: Inputs) -> Outputs:
    found = ops.facility_location(inputs["x"], 3, metric="rbf")
    return [value for value in found if isinstance(value, Tensor)]


def make_divergence(rows: int, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    logp = (3 * randn(seed, rows, 100)).log_softmax(1)
    return {"logp": logp, "knn": torch.randint(rows, (rows, 5), generator=generator)}


def call_divergence(inputs: Inputs) -> Outputs:
    return [ops.knn_divergence(**inputs)]


# Classes: a warp a row, a CTA a row, a cluster a row where there are any.
CLASSES = (100, 3000, 12_001)
LOSSES = {"kd_loss": call_kd, "soft_ce": call_soft_ce, "mse_ce": call_mse_ce}
CASES = [
    *(
        DeviceCase(f"{name} of {classes}", make_logits(classes), call)
        for name, call in {**LOSSES, "sample_scores": call_scores}.items()
        for classes in CLASSES
    ),
    DeviceCase("dynamics_update_", make_dynamics, call_dynamics),
    DeviceCase("channel_stats", make_activations(False), call_stats),
    DeviceCase("channel_stats, channels last", make_activations(True), call_stats),
    DeviceCase("bn_distance", make_activations(False), call_distance),
    DeviceCase("patch_stats", make_activations(False), call_patch_stats),
    DeviceCase("norm_relu_pool", make_activations(False), call_block),
    DeviceCase("gradient_distance", make_gradients, call_gradient_distance),
    DeviceCase("augment", make_augment, call_augment),
    DeviceCase("multi_crop", make_crops, call_crops),
    DeviceCase("mosaic", make_mosaic, call_mosaic),
    DeviceCase("crop_flip_roll", make_rolled, call_rolled),
    *(DeviceCase(f"dsa {stage}", make_dsa(stage), call_dsa) for stage in DSA_STAGES),
    DeviceCase("greedy selection", make_features, call_greedy, captures=False),
    DeviceCase("facility_location", make_features, call_location, captures=False),
    DeviceCase("knn_divergence", make_divergence, call_divergence, captures=False),
]
