"""Models by name: initialisation from the seed alone, and refusals that say what exists."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from pyddfast import models
from pyddfast.models.init import initialize
from pyddfast.random import Purpose, generator

SMALL = [
    ("convnet-d2", {"width": 8, "norm": "batch"}),
    ("convnet-d2", {"width": 8, "norm": "layer"}),
    ("mlp", {"width": 8}),
    ("resnet18", {}),
    ("resnet50", {}),  # bottlenecks
    ("mobilenet_v2", {"dropout": 0.0}),
    ("efficientnet_lite0", {"dropout": 0.0}),
]


def same(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(("name", "options"), SMALL)
def test_the_seed_alone_decides(name, options):
    first = models.create(name, 10, 1, 8, seed=5, **options)
    torch.rand(7)  # draws in between change nothing
    assert same(first, models.create(name, 10, 1, 8, seed=5, **options))
    assert not same(first, models.create(name, 10, 1, 8, seed=6, **options))


@pytest.mark.parametrize(("name", "options"), SMALL)
def test_global_random_states_are_untouched(name, options):
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    models.create(name, 10, 1, 8, **options)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(map(np.array_equal, np.random.get_state(), before[1]))  # noqa: NPY002
    assert random.getstate() == before[2]


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("convnet-d3", lambda: models.ConvNet(10, depth=3, image_size=32)),
        ("mlp", lambda: models.MLP(10, image_size=32)),
    ],
)
def test_layers_with_bias_start_as_torch_starts_them(name, build):
    with torch.random.fork_rng():
        torch.manual_seed(generator(9, Purpose.MODEL_INIT).initial_seed())
        reference = build()  # torch's own constructors, drawing in the same order
    created = models.create(name, 10, 3, 32, seed=9)
    for (key, value), expected in zip(
        created.state_dict().items(), reference.state_dict().values(), strict=True
    ):
        # The bound's last bit may differ: 1/sqrt(fan_in) here, sqrt(3) sqrt(1/3) / sqrt(fan_in)
        # there.
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7, msg=key)


def test_resnet_starts_as_torchvision_starts_it():
    state = models.create("resnet18", 1000, image_size=224, seed=2).state_dict()
    for key, value in state.items():
        if value.ndim == 4:
            fan_out = value.shape[0] * value.shape[2] * value.shape[3]
            scaled = value.double() * math.sqrt(fan_out / 2)
            n = value.numel()
            # Standard normal: five standard errors of the mean, the variance and the kurtosis.
            assert abs(float(scaled.mean())) < 5 / math.sqrt(n), key
            assert abs(float(scaled.square().mean()) - 1) < 5 * math.sqrt(2 / n), key
            assert abs(float(scaled.pow(4).mean()) - 3) < 5 * math.sqrt(96 / n), key
        elif key.startswith("fc."):
            bound = 1 / math.sqrt(512)
            assert float(value.abs().max()) <= bound
            n = value.numel()
            # A uniform variable's square has variance 4/45 of the bound's fourth power.
            error = abs(float((value.double() / bound).square().mean()) - 1 / 3)
            assert error < 5 * math.sqrt(4 / 45 / n)
        else:
            kind = key.rpartition(".")[2]
            ones = {"weight": 1, "running_var": 1}
            assert (value == ones.get(kind, 0)).all(), key


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_lite0"])
def test_mobile_networks_start_as_their_official_codes_start_them(name):
    model = models.create(name, 1000, image_size=224, seed=2)
    lite = name == "efficientnet_lite0"
    for key, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            # torchvision counts all output channels of a depthwise convolution, timm a group's.
            fan_out = layer.weight.shape[0] * layer.weight.shape[2] * layer.weight.shape[3]
            fan_out //= layer.groups if lite else 1
            scaled = layer.weight.detach().double() * math.sqrt(fan_out / 2)
            error = 5 * math.sqrt(2 / scaled.numel())
            assert abs(float(scaled.square().mean()) - 1) < error, key
        elif isinstance(layer, nn.Linear):
            assert (layer.bias == 0).all()
            if lite:  # uniform in ±1/sqrt(1000), the number of logits
                scaled = layer.weight.detach().double().abs() * math.sqrt(1000)
                assert 0.999 < float(scaled.max()) <= 1 + 1e-6
                assert float(scaled.mean()) == pytest.approx(0.5, abs=0.001)
            else:
                assert float(layer.weight.detach().double().std()) == pytest.approx(0.01, rel=0.005)
        elif isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()
            assert (layer.bias == 0).all()
            assert (layer.running_var == 1).all()


def test_layers_draw_different_numbers():
    state = models.create("resnet18", 10, seed=0).state_dict()
    first, second = state["layer1.0.conv1.weight"], state["layer1.0.conv2.weight"]
    correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
    assert abs(float(correlation)) < 5 / math.sqrt(first.numel())


def test_a_default_device_or_dtype_of_the_caller():
    reference = models.create("mlp", 10, 1, 8, width=8, seed=1)
    with torch.device("meta"):
        inside = models.create("mlp", 10, 1, 8, width=8, seed=1)
    assert same(reference, inside)
    torch.set_default_dtype(torch.float64)
    try:
        assert models.create("mlp", 10, 1, 8).fc_1.weight.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_models_are_trainable():
    for name, options in SMALL:
        model = models.create(name, 10, 1, 16, **options)
        assert model.training
        x = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        model(x).square().sum().backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, (name, key)
            # A bias in front of batch norm has no effect; everything else has a gradient.
            if not (options.get("norm") == "batch" and key.endswith("bias") and "features" in key):
                assert float(parameter.grad.abs().max()) > 0, (name, key)


def test_names():
    expected = {f"convnet-d{depth}" for depth in range(1, 9)} | {"mlp"}
    expected |= {"resnet18", "resnet34", "resnet50", "resnet101", "resnet152"}
    expected |= {"mobilenet_v2", "efficientnet_lite0"}
    assert set(models.names()) == expected


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("convnet-d9", 10), ValueError, "convnet-d1, .*convnet-d8, mlp, resnet18, .*got 'conv"),
        (("ResNet18", 10), ValueError, "got 'ResNet18'"),
        (("mlp", 0), ValueError, "num_classes must be at least 1, got 0"),
        (("mlp", 10, 0), ValueError, "in_channels must be at least 1, got 0"),
        (("mlp", 10, 3, 0), ValueError, "image_size must be at least 1, got 0"),
        (("mlp", 10, 3, (4, -1)), ValueError, "image_size must be at least 1, got -1"),
        (("mlp", 10.0), TypeError, "num_classes must be an int, got 10.0"),
        (("mlp", True), TypeError, "num_classes must be an int, got True"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        models.create(*arguments)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("convnet-d3", {"norm": "bn"}, "norm must be one of 'instance', 'batch'.*got 'bn'"),
        ("convnet-d3", {"activation": "gelu"}, "activation must be one of 'relu'.*got 'gelu'"),
        ("convnet-d3", {"pooling": "sum"}, "pooling must be one of 'avg', 'max', 'none'"),
        ("convnet-d3", {"width": 0}, "width must be at least 1, got 0"),
        ("convnet-d3", {"first_padding": -1}, "first_padding must not be negative, got -1"),
        ("convnet-d3", {"depth": 4}, "width, norm, activation, pooling, first_padding; got depth"),
        ("mlp", {"norm": "batch"}, "mlp has the options width; got norm"),
        ("resnet18", {"stem": "tiny"}, "stem must be one of 'auto', 'imagenet', 'cifar'"),
        ("resnet18", {"norm": "group"}, "norm must be one of 'batch', 'instance'.*got 'group'"),
        ("resnet18", {"width": 64}, "resnet18 has the options stem, norm; got width"),
        ("resnet50", {"depth": 34}, "resnet50 has the options stem, norm; got depth"),
        ("mobilenet_v2", {"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ("efficientnet_lite0", {"dropout": -0.1}, r"dropout must lie in \[0, 1\), got -0.1"),
        ("efficientnet_lite0", {"stem": "cifar"}, "has the options dropout; got stem"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        models.create(name, 10, **options)


@pytest.mark.parametrize("seed", [-1, 2**64])  # one below and one past the 64-bit key
def test_bad_seed(seed):
    with pytest.raises(ValueError, match="seed must lie in"):
        models.create("mlp", 10, seed=seed)


def test_initialize_refuses_a_layer_without_a_rule():
    with pytest.raises(TypeError, match="no initialisation rule for 0 of type Bilinear"):
        initialize(nn.Sequential(nn.Bilinear(2, 2, 2)), seed=0)
