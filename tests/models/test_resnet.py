"""ResNet-18 against its definition in float64, and against torchvision's names and size."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pyddfast import models


def expected_state(in_channels: int, classes: int, kernel: int, *, batch: bool):
    """Names and shapes of torchvision's resnet18 in its order, by rule."""

    def norm(at: str, channels: int) -> list:
        names = [(f"{at}.weight", (channels,)), (f"{at}.bias", (channels,))]
        if batch:
            names += [(f"{at}.running_mean", (channels,)), (f"{at}.running_var", (channels,))]
            names += [(f"{at}.num_batches_tracked", ())]
        return names

    names = [("conv1.weight", (64, in_channels, kernel, kernel)), *norm("bn1", 64)]
    before = 64
    for stage, channels in enumerate((64, 128, 256, 512), start=1):
        for block in (0, 1):
            at = f"layer{stage}.{block}"
            names += [
                (f"{at}.conv1.weight", (channels, before, 3, 3)),
                *norm(f"{at}.bn1", channels),
            ]
            names += [
                (f"{at}.conv2.weight", (channels, channels, 3, 3)),
                *norm(f"{at}.bn2", channels),
            ]
            if before != channels:
                names += [(f"{at}.downsample.0.weight", (channels, before, 1, 1))]
                names += norm(f"{at}.downsample.1", channels)
            before = channels
    return [*names, ("fc.weight", (classes, 512)), ("fc.bias", (classes,))]


@pytest.mark.parametrize(
    ("options", "channels", "size", "kernel", "batch", "count"),
    [
        ({}, 3, 224, 7, True, 122),  # torchvision's own
        ({"stem": "imagenet"}, 3, 64, 7, True, 122),
        ({}, 3, 64, 3, True, 122),  # "auto" takes the CIFAR stem up to 64 pixels
        ({}, 1, 65, 7, True, 122),  # and the ImageNet stem above
        ({"stem": "cifar", "norm": "instance"}, 1, 28, 3, False, 62),
    ],
)
def test_names_and_shapes_are_torchvisions(options, channels, size, kernel, batch, count):
    model = models.create("resnet18", 10, channels, size, **options)
    state = [(k, tuple(v.shape)) for k, v in model.state_dict().items()]
    assert state == expected_state(channels, 10, kernel, batch=batch)
    assert len(state) == count


def test_published_parameter_count():
    model = models.create("resnet18", 1000, image_size=224)
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_689_512


def resnet_by_hand(state: dict[str, Tensor], x: Tensor, stem: str, norm: str) -> Tensor:
    """Logits from the parameters alone; batch norm by the batch's own statistics."""

    def conv(x: Tensor, at: str, stride: int, padding: int) -> Tensor:
        return F.conv2d(x, state[f"{at}.weight"], stride=stride, padding=padding)

    def normed(x: Tensor, at: str) -> Tensor:
        dims = (2, 3) if norm == "instance" else (0, 2, 3)
        centred = x - x.mean(dims, keepdim=True)
        scaled = centred / (centred.square().mean(dims, keepdim=True) + 1e-5).sqrt()
        return scaled * state[f"{at}.weight"][:, None, None] + state[f"{at}.bias"][:, None, None]

    if stem == "imagenet":
        x = normed(conv(x, "conv1", 2, 3), "bn1").clamp_min(0)
        # Max-pooling of non-negative values with zero padding, as a maximum over nine shifts.
        padded, (h, w) = F.pad(x, [1, 1, 1, 1]), ((s + 1) // 2 for s in x.shape[2:])
        x = torch.stack(
            [padded[:, :, i : i + 2 * h - 1 : 2, j : j + 2 * w - 1 : 2]
             for i in range(3) for j in range(3)]
        ).amax(0)  # fmt: skip
    else:
        x = normed(conv(x, "conv1", 1, 1), "bn1").clamp_min(0)
    for stage in range(1, 5):
        for block in (0, 1):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            shortcut = x
            if stride == 2:
                shortcut = normed(conv(x, f"{at}.downsample.0", 2, 0), f"{at}.downsample.1")
            x = normed(conv(x, f"{at}.conv1", stride, 1), f"{at}.bn1").clamp_min(0)
            x = (normed(conv(x, f"{at}.conv2", 1, 1), f"{at}.bn2") + shortcut).clamp_min(0)
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_the_forward_pass_against_its_definition(stem, norm):
    size = 37 if stem == "imagenet" else 13  # odd sides: the roundings must agree
    model = models.create("resnet18", 4, 2, size, stem=stem, norm=norm).double()
    stream = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and name != "fc.bias":
            parameter.data += 0.2 * torch.randn(len(parameter), generator=stream).double()
    x = torch.randn(3, 2, size, size, generator=stream, dtype=torch.float64)
    expected = resnet_by_hand(model.state_dict(), x, stem, norm)
    logits = model(x)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    if norm == "instance":
        torch.testing.assert_close(model.eval()(x), expected, rtol=1e-9, atol=1e-9)


def test_evaluation_uses_the_running_statistics():
    model = models.create("resnet18", 4, 1, 8, norm="batch").double().eval()
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # A fresh model's running statistics are 0 and 1, so an image's logits ignore its batch.
    torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-12, atol=1e-12)
    by_batch = resnet_by_hand(model.state_dict(), x, "cifar", "batch")
    assert float((model(x) - by_batch).detach().abs().max()) > 0.1
    linear = F.linear(model.embed(x), model.fc.weight, model.fc.bias)
    torch.testing.assert_close(linear, model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("stem", "smallest"), [("imagenet", 33), ("cifar", 9)])
def test_instance_norm_on_single_pixels_is_refused(stem, smallest):
    with pytest.raises(ValueError, match="norm='instance' needs feature maps larger than 1 x 1"):
        models.create("resnet18", 10, image_size=smallest - 1, stem=stem, norm="instance")
    model = models.create("resnet18", 10, image_size=smallest, stem=stem, norm="instance")
    maps = []
    model.layer4.register_forward_hook(lambda *_args: maps.append(_args[2].shape[2:]))
    model(torch.zeros(1, 3, smallest, smallest))
    assert maps == [(2, 2)]


def test_bad_depth():
    with pytest.raises(ValueError, match="depth must be one of 18, 34, 50, 101, 152, got 20"):
        models.ResNet(10, depth=20)
