"""ConvNet and MLP against their formulas in float64, and against published sizes and names."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pyddfast import models


def normalised(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Zero mean and unit biased variance over ``dims``, with torch's default epsilon."""
    mean = x.mean(dims, keepdim=True)
    variance = (x - mean).square().mean(dims, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def norm_by_hand(x: Tensor, norm: str, weight: Tensor, bias: Tensor) -> Tensor:
    if norm == "layer":
        return normalised(x, (1, 2, 3)) * weight + bias
    if norm == "instance":
        y = normalised(x, (2, 3))
    elif norm == "batch":
        y = normalised(x, (0, 2, 3))
    else:
        groups = x.unflatten(1, (4, -1))
        y = normalised(groups, (2, 3, 4)).flatten(1, 2)
    return y * weight[:, None, None] + bias[:, None, None]


def convnet_by_hand(state: dict[str, Tensor], x: Tensor, depth: int, **options) -> Tensor:
    """The logits of a ConvNet in training mode, from its parameters alone."""
    norm, pooling = options.get("norm", "instance"), options.get("pooling", "avg")
    activation = options.get("activation", "relu")
    stride = 2 + (norm != "none") + (pooling != "none")
    for block in range(depth):
        padding = options.get("first_padding", 1) if block == 0 else 1
        weight, bias = (state[f"features.{stride * block}.{part}"] for part in ("weight", "bias"))
        # A 3x3 convolution as a sum over its nine taps.
        padded = F.pad(x, [padding] * 4)
        height, width = padded.shape[2] - 2, padded.shape[3] - 2
        x = bias[:, None, None] + sum(
            torch.einsum(
                "nchw,oc->nohw", padded[:, :, i : i + height, j : j + width], weight[:, :, i, j]
            )
            for i in range(3)
            for j in range(3)
        )
        if norm != "none":
            at = f"features.{stride * block + 1}"
            x = norm_by_hand(x, norm, state[f"{at}.weight"], state[f"{at}.bias"])
        if activation == "relu":
            x = x.clamp_min(0)
        elif activation == "leakyrelu":
            x = torch.where(x > 0, x, 0.01 * x)
        else:
            x = 1 / (1 + torch.exp(-x))
        if pooling != "none":
            x = x[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2]  # an odd last row is dropped
            windows = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
            x = windows.mean((3, 5)) if pooling == "avg" else windows.amax((3, 5))
    return x.flatten(1) @ state["classifier.weight"].T + state["classifier.bias"]


CASES = {
    "the literature's": (3, 3, 16, {}),
    "grey 28 x 28, padded to 32": (3, 1, 28, {"first_padding": 3}),
    "colour 28 x 28 too": (2, 3, 28, {"first_padding": 3}),
    "odd sides": (2, 1, 13, {}),
    "not square": (2, 1, (8, 12), {}),
    "one block": (1, 3, 8, {}),
    "batch norm": (2, 3, 8, {"norm": "batch"}),
    "layer norm": (2, 3, 8, {"norm": "layer"}),
    "layer norm after padding to 32": (2, 1, 28, {"norm": "layer", "first_padding": 3}),
    "group norm": (2, 3, 8, {"norm": "group"}),
    "no norm": (2, 3, 8, {"norm": "none"}),
    "leaky": (2, 3, 8, {"activation": "leakyrelu"}),
    "sigmoid": (2, 3, 8, {"activation": "sigmoid"}),
    "max pooling": (2, 3, 9, {"pooling": "max"}),
    "no pooling": (2, 3, 6, {"pooling": "none"}),
    "neither": (2, 3, 6, {"pooling": "none", "norm": "none"}),
    "official padding of grey images": (2, 1, 16, {"first_padding": 3}),
}


@pytest.mark.parametrize(("depth", "channels", "size", "options"), CASES.values(), ids=CASES)
def test_the_forward_pass_against_its_formula(depth, channels, size, options):
    given = dict(options)
    if size == 28:
        given.pop("first_padding")  # the default must be 3 here
    model = models.create(f"convnet-d{depth}", 5, channels, size, width=8, seed=1, **given).double()
    stream = torch.Generator().manual_seed(3)
    for parameter in model.parameters():  # scales and shifts other than 1 and 0 too
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=stream, dtype=torch.float64)
    sides = (size, size) if isinstance(size, int) else size
    x = torch.randn(3, channels, *sides, generator=stream, dtype=torch.float64)
    expected = convnet_by_hand(model.state_dict(), x, depth, **options)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
    linear = F.linear(model.embed(x), model.classifier.weight, model.classifier.bias)
    torch.testing.assert_close(linear, expected, rtol=1e-10, atol=1e-10)


# Parameters published with the DC, MTT and DC-BENCH codes for width 128 and instance norm.
COUNTS = [
    ("convnet-d3", 10, 32, 320_010),
    ("convnet-d3", 100, 32, 504_420),
    ("convnet-d4", 200, 64, 857_160),
    ("convnet-d5", 10, 128, 615_690),
    ("mlp", 10, 32, 411_146),
    ("mlp", 100, 32, 422_756),
]


@pytest.mark.parametrize(("name", "classes", "size", "count"), COUNTS)
def test_published_parameter_counts(name, classes, size, count):
    model = models.create(name, classes, 3, size)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("depth", range(1, 9))
@pytest.mark.parametrize("norm", ["instance", "batch", "none"])  # with, with buffers, without slot
def test_names_and_shapes_in_the_official_order(depth, norm):
    # 2 ** depth pixels leave one feature after the last pooling; instance norm sees 2 x 2 before.
    model = models.create(f"convnet-d{depth}", 7, 1, 2**depth, width=4, norm=norm)
    expected = []
    step = 3 if norm == "none" else 4
    for block in range(depth):
        at = f"features.{step * block}"
        expected += [(f"{at}.weight", (4, 1 if block == 0 else 4, 3, 3)), (f"{at}.bias", (4,))]
        if norm != "none":
            at = f"features.{step * block + 1}"
            expected += [(f"{at}.weight", (4,)), (f"{at}.bias", (4,))]
        if norm == "batch":
            expected += [(f"{at}.running_mean", (4,)), (f"{at}.running_var", (4,))]
            expected += [(f"{at}.num_batches_tracked", ())]
    expected += [("classifier.weight", (7, 4)), ("classifier.bias", (7,))]
    assert [(k, tuple(v.shape)) for k, v in model.state_dict().items()] == expected


@pytest.mark.parametrize(
    ("depth", "size", "block"),
    [(6, 32, 6), (6, 28, 6), (3, 7, 3), (8, (512, 128), 8)],  # 28 counts as 32; the shorter side
)
def test_too_deep_for_the_image(depth, size, block):
    with pytest.raises(ValueError, match=f"depth {depth} is too deep .* block {block}") as caught:
        models.create(f"convnet-d{depth}", 10, 3, size)
    assert str(size) in str(caught.value)
    assert models.create(f"convnet-d{depth}", 10, 3, size, pooling="none", width=1)


def test_norms_that_cannot_work():
    with pytest.raises(ValueError, match="width divisible by 4, got 6"):
        models.create("convnet-d2", 10, width=6, norm="group")
    with pytest.raises(ValueError, match="norm='instance' needs feature maps larger than 1 x 1"):
        models.create("convnet-d1", 10, image_size=1, pooling="none")


@pytest.mark.parametrize("name", ["convnet-d2", "mlp"])
def test_images_of_another_size_are_refused(name):
    model = models.create(name, 10, 1, 8, width=4)
    for shape in [(2, 3, 8, 8), (2, 1, 9, 8), (1, 8, 8)]:
        with pytest.raises(ValueError, match=r"\(N, 1, 8, 8\), got") as caught:
            model(torch.zeros(shape))
        assert str(shape) in str(caught.value)


def test_mlp_against_its_formula():
    model = models.create("mlp", 5, 2, (3, 4), width=6).double()
    state = model.state_dict()
    assert [(k, tuple(v.shape)) for k, v in state.items()] == [
        ("fc_1.weight", (6, 24)), ("fc_1.bias", (6,)),
        ("fc_2.weight", (6, 6)), ("fc_2.bias", (6,)),
        ("fc_3.weight", (5, 6)), ("fc_3.bias", (5,)),
    ]  # fmt: skip
    x = torch.randn(4, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hidden = x.reshape(4, 24)
    for layer in ("fc_1", "fc_2"):
        hidden = (hidden @ state[f"{layer}.weight"].T + state[f"{layer}.bias"]).clamp_min(0)
    torch.testing.assert_close(model.embed(x), hidden, rtol=1e-12, atol=1e-12)
    logits = hidden @ state["fc_3.weight"].T + state["fc_3.bias"]
    torch.testing.assert_close(model(x), logits, rtol=1e-12, atol=1e-12)
