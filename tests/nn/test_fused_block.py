"""``fuse_norm_relu_pool`` against the network it was made from, in the ways networks are used."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pyddfast.models import ConvNet, ResNet
from pyddfast.nn import NormReluPool, fuse_norm_relu_pool
from tests.tolerances import FLOAT64, assert_close, error

pytestmark = pytest.mark.usefixtures("one_thread")

Made = Callable[[], nn.Module]


def random_affine(model: nn.Module, seed: int = 0) -> nn.Module:
    """Norms that scale and shift, unlike fresh ones."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.add_(noise.to(parameter), alpha=0.5)
    return model


class ViCo(nn.Module):
    """The official layout: a list of layers in one Sequential."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (1, 6):
            layers += [nn.Conv2d(channels, 6, 3, padding=1), nn.GroupNorm(6, 6, affine=True)]
            layers += [nn.ReLU(inplace=True), nn.AvgPool2d(kernel_size=2, stride=2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(6 * 9, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


def convnet() -> nn.Module:
    return ConvNet(4, in_channels=1, image_size=12, width=6, depth=2)


def odd() -> nn.Module:
    return ConvNet(4, in_channels=1, image_size=13, width=6, depth=2)


def unpooled() -> nn.Module:
    return ConvNet(4, in_channels=1, image_size=6, width=3, depth=2, pooling="none")


def resnet() -> nn.Module:
    return ResNet(4, in_channels=1, image_size=16, depth=18, norm="instance")


def instance_norm() -> nn.Module:
    norm = nn.InstanceNorm2d(6, eps=1e-3, affine=True)
    head = [nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(54, 4)]
    return nn.Sequential(nn.Conv2d(1, 6, 3, 1, 1), norm, nn.AvgPool2d(2), *head)


MODELS: dict[Made, tuple[int, int, Counter[tuple[bool, bool]]]] = {
    # The side of the images, and how many blocks with (relu, pool) there are.
    ViCo: (12, 12, Counter({(True, True): 2})),
    convnet: (12, 12, Counter({(True, True): 2})),
    odd: (13, 13, Counter({(True, True): 2})),
    unpooled: (6, 6, Counter({(True, False): 2})),
    resnet: (16, 16, Counter({(False, False): 20})),
    instance_norm: (12, 10, Counter({(False, True): 1})),
}
made = pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)


def pair(make: Made) -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    plain = random_affine(make().double())
    fused = copy.deepcopy(plain)
    assert fuse_norm_relu_pool(fused) is fused
    height, width, _ = MODELS[make]
    return plain, fused, torch.randn(3, 1, height, width, dtype=torch.float64)


def cross_entropy(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, torch.arange(len(logits)))


@made
def test_names_and_parameters_stay(make: Made) -> None:
    plain = make()
    names = [name for name, _ in plain.named_modules()]
    parameters = dict(plain.named_parameters())
    fused = fuse_norm_relu_pool(plain)
    assert [name for name, _ in fused.named_modules()] == names
    assert list(fused.state_dict()) == list(make().state_dict())
    assert list(dict(fused.named_parameters())) == list(parameters)
    assert all(fused.get_parameter(name) is value for name, value in parameters.items())
    blocks = [m for m in fused.modules() if isinstance(m, NormReluPool)]
    assert Counter((m.relu, m.pool) for m in blocks) == MODELS[make][2]
    assert not any(isinstance(m, (nn.GroupNorm, nn.InstanceNorm2d)) for m in fused.modules())


@made
def test_values_and_gradients_are_the_networks(make: Made) -> None:
    plain, fused, images = pair(make)
    expected, got = plain(images), fused(images)
    assert_close(got, expected, FLOAT64)
    want = torch.autograd.grad(cross_entropy(expected), list(plain.parameters()))
    have = torch.autograd.grad(cross_entropy(got), list(fused.parameters()))
    for a, b in zip(have, want, strict=True):
        # A bias before an instance norm has no gradient but rounding.
        assert_close(a, b, FLOAT64, absolute=1e-14)


def matched(model: nn.Module, images: Tensor, steps: int) -> Tensor:
    """The images' gradient after `steps` of gradient descent (trajectory matching, MTT)."""
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    start = torch.cat([p.flatten() for p in parameters.values()])
    parameters = {name: p.requires_grad_() for name, p in parameters.items()}
    images = images.clone().requires_grad_()
    labels = torch.arange(len(images)) % 3
    for _ in range(steps):
        loss = F.cross_entropy(torch.func.functional_call(model, parameters, (images,)), labels)
        grads = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        parameters = {
            name: p - 0.1 * g for (name, p), g in zip(parameters.items(), grads, strict=True)
        }
    moved = torch.cat([p.flatten() for p in parameters.values()]) - start
    target = torch.linspace(-1, 1, len(start), dtype=images.dtype) * moved.detach().abs().mean()
    (gradient,) = torch.autograd.grad((moved - target).square().sum(), images)
    return gradient


@pytest.mark.parametrize("make", [ViCo, convnet, odd, instance_norm], ids=lambda m: m.__name__)
def test_the_image_gradient_of_trajectory_matching(make: Made) -> None:
    plain, fused, images = pair(make)
    assert_close(matched(fused, images, 2), matched(plain, images, 2), FLOAT64)


def test_the_image_gradient_in_float32() -> None:
    torch.manual_seed(0)
    plain = random_affine(ConvNet(10, width=32))
    fused = fuse_norm_relu_pool(copy.deepcopy(plain))
    images = torch.randn(4, 3, 32, 32)
    # Two exact implementations differ by rounding alone: see small-scale unrolls, N = 2.
    assert error(matched(fused, images, 2), matched(plain, images, 2)) <= 1e-5


class Reparametrized(nn.Module):
    """What ``ReparamModule`` of the official codes does: tensors in place of the parameters."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.places = [
            (owner, name) for owner in module.modules() for name, _ in own_parameters(owner)
        ]
        self.flat = torch.cat([p.detach().flatten() for p in module.parameters()])
        self.shapes = [p.shape for p in module.parameters()]
        for owner, name in self.places:
            delattr(owner, name)

    def forward(self, x: Tensor, flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in self.shapes])
        for (owner, name), part, shape in zip(self.places, parts, self.shapes, strict=True):
            setattr(owner, name, part.view(shape))
        logits: Tensor = self.module(x)
        return logits


def own_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(module.named_parameters(recurse=False))


def test_parameters_that_are_tensors_from_elsewhere() -> None:
    plain, fused, images = pair(ViCo)
    results = []
    for model in (plain, fused):
        reparametrized = Reparametrized(model)
        flat = (reparametrized.flat * 1.25).requires_grad_()
        logits = reparametrized(images, flat)
        results.append((logits, torch.autograd.grad(cross_entropy(logits), flat)[0]))
    for got, want in zip(results[1], results[0], strict=True):
        assert_close(got, want, FLOAT64)


def test_transforms_of_torch_func() -> None:
    plain, fused, images = pair(convnet)

    def gradients(model: nn.Module) -> dict[str, Tensor]:
        parameters = {name: p.detach() for name, p in model.named_parameters()}

        def loss(values: dict[str, Tensor], image: Tensor) -> Tensor:
            return torch.func.functional_call(model, values, (image[None],)).square().sum()

        return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, images)

    want, got = gradients(plain), gradients(fused)
    assert list(got) == list(want)
    for name, value in want.items():
        assert_close(got[name], value, FLOAT64, name, absolute=1e-13)


def hooked(kind: type[nn.Module]) -> nn.Module:
    model = ViCo()
    found = next(module for module in model.modules() if isinstance(module, kind))
    found.register_forward_hook(lambda *_: None)
    return model


class Quiet(nn.ReLU):
    """Not torch's own."""


LEFT_ALONE = {
    "batch norm": lambda: ConvNet(3, width=6, norm="batch"),
    "other groups": lambda: ConvNet(3, width=8, norm="group"),
    "layer norm": lambda: ConvNet(3, width=6, norm="layer"),
    "no scale": lambda: nn.Sequential(nn.InstanceNorm2d(4), nn.ReLU()),
    "running statistics": lambda: nn.Sequential(
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True), nn.ReLU()
    ),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_other_networks_are_left_alone(name: str) -> None:
    model = LEFT_ALONE[name]()
    before = list(model.modules())
    fuse_norm_relu_pool(model)
    assert all(a is b for a, b in zip(model.modules(), before, strict=True))


def kinds(model: nn.Module) -> list[type[nn.Module]]:
    return [type(layer) for layer in model]  # type: ignore[attr-defined]


def test_children_that_somebody_listens_to_stay() -> None:
    assert isinstance(hooked(nn.GroupNorm).features[1], nn.GroupNorm)
    model = hooked(nn.GroupNorm)
    first, second = model.features[1], fuse_norm_relu_pool(model).features[5]
    assert isinstance(first, nn.GroupNorm)
    assert isinstance(model.features[2], nn.ReLU)
    assert isinstance(second, NormReluPool)
    model = fuse_norm_relu_pool(hooked(nn.ReLU))
    assert kinds(model.features)[1:4] == [NormReluPool, nn.ReLU, nn.AvgPool2d]
    assert (model.features[1].relu, model.features[1].pool) == (False, False)
    model = fuse_norm_relu_pool(hooked(nn.AvgPool2d))
    assert kinds(model.features)[1:4] == [NormReluPool, nn.Identity, nn.AvgPool2d]


@pytest.mark.parametrize(
    ("follow", "fused"),
    [
        ([nn.ReLU6(), nn.AvgPool2d(2)], 0),
        ([Quiet(), nn.AvgPool2d(2)], 0),
        ([nn.ReLU(), nn.MaxPool2d(2)], 1),
        ([nn.ReLU(), nn.AvgPool2d(3)], 1),
        ([nn.ReLU(), nn.AvgPool2d(2, stride=1)], 1),
        ([nn.ReLU(), nn.AvgPool2d(2, padding=1)], 1),
        ([nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True)], 1),
        ([nn.ReLU(), nn.AvgPool2d(2, divisor_override=3)], 1),
        ([nn.ReLU(), nn.AvgPool2d((2, 2), (2, 2), (0, 0))], 2),
    ],
)
def test_what_follows_has_to_be_the_blocks(follow: list[nn.Module], fused: int) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(random_affine(nn.GroupNorm(3, 3)), *follow)
    model = fuse_norm_relu_pool(copy.deepcopy(plain))
    assert kinds(model).count(nn.Identity) == fused
    x = torch.randn(2, 3, 7, 7)
    assert_close(model(x), plain(x).double(), 1e-6)


def test_a_norm_alone_and_planes_of_other_shapes() -> None:
    torch.manual_seed(0)
    norm = random_affine(nn.GroupNorm(5, 5)).double().eval()
    block = fuse_norm_relu_pool(norm)
    assert isinstance(block, NormReluPool)
    assert block.weight is norm.weight
    assert not block.training
    assert repr(block) == "NormReluPool(5, eps=1e-05, relu=False, pool=False)"
    for shape in ((2, 5, 4, 3), (2, 5, 7), (3, 5, 2, 3, 4)):
        x = torch.randn(shape, dtype=torch.float64)
        assert_close(block(x), norm(x), FLOAT64)


@pytest.mark.parametrize("pool", [False, True])
def test_an_instance_norm_takes_one_image_alone(pool: bool) -> None:
    norm = random_affine(nn.InstanceNorm2d(4, affine=True)).double()
    plain = nn.Sequential(norm, nn.ReLU(), *[nn.AvgPool2d(2)] * pool)
    model = fuse_norm_relu_pool(copy.deepcopy(plain))
    assert isinstance(model[0], NormReluPool)
    for shape in ((4, 4, 6), (4, 5, 6)):  # as high as there are channels, and not
        x = torch.randn(shape, dtype=torch.float64)
        assert_close(model(x), plain(x), FLOAT64)


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"model is a torch\.nn\.Module, not dict"):
        fuse_norm_relu_pool({})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"norm is GroupNorm with as many groups .* not GroupNorm"):
        NormReluPool(nn.GroupNorm(2, 4))
    model = fuse_norm_relu_pool(ViCo())
    with pytest.raises(ValueError, match="x has planes of 1 x 5; pooling needs 2 x 2"):
        model(torch.randn(1, 1, 1, 5))


class Calls(TorchDispatchMode):
    """Counts operators, apart from views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aliases = [returned.alias_info for returned in func._schema.returns]
        if not any(alias is not None and not alias.is_write for alias in aliases):
            self.names[str(func)] += 1
        return func(*args, **(kwargs or {}))


def inner_step(model: nn.Module) -> tuple[Counter[str], Counter[str], float]:
    """Calls of a step of trajectory matching and of its backward; bytes an image that it keeps."""
    parameters = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    torch.manual_seed(0)
    images = torch.randn(4, 3, 32, 32, requires_grad=True)
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), Calls() as forward:
        logits = torch.func.functional_call(model, parameters, (images,))
        leaves = list(parameters.values())
        grads = torch.autograd.grad(cross_entropy(logits), leaves, create_graph=True)
    for p in leaves:
        kept.pop(p.untyped_storage().data_ptr(), None)
    cotangents = [torch.ones_like(g) for g in grads]
    with Calls() as backward:
        torch.autograd.grad(grads, [images, *leaves], cotangents)
    return forward.names, backward.names, sum(kept.values()) / len(images)


def test_a_step_of_trajectory_matching_calls_and_keeps_little() -> None:
    plain = ConvNet(10)
    fused = fuse_norm_relu_pool(copy.deepcopy(plain))
    forward, backward, kept = inner_step(fused)
    assert forward["pyddfast.norm_relu_pool.default"] == 3
    assert forward["pyddfast.norm_relu_pool_grad.default"] == 3
    assert backward["pyddfast.norm_relu_pool_grad.default"] == 3
    assert backward["pyddfast.norm_relu_pool_double_grad.default"] == 3
    assert sum(forward.values()) <= 26
    assert sum(backward.values()) <= 72
    theirs = inner_step(plain)
    assert sum(theirs[0].values()) > 120
    assert sum(theirs[1].values()) > 360
    assert kept < 0.6 * theirs[2]
