"""clip, denormalize, the image priors and the schedule, restated independently."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pyddfast.compat import dwa, edc, fadrm, gvbsm, sre2l

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100 = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
ARGS = SimpleNamespace(mean_norm=[0.3, 0.4, 0.5], std_norm=[0.2, 0.25, 0.5])


def images(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(4, 3, 6, 5, generator=generator, dtype=torch.float64)).to(dtype)


CASES = [
    pytest.param(sre2l.clip, sre2l.denormalize, (MEAN, STD), id="sre2l"),
    pytest.param(gvbsm.clip, gvbsm.denormalize, (MEAN, STD), id="gvbsm"),
    pytest.param(edc.clip, edc.denormalize, (MEAN, STD), id="edc"),
    pytest.param(
        lambda x: fadrm.clip(x, ARGS),
        lambda x: fadrm.denormalize(x, ARGS),
        (ARGS.mean_norm, ARGS.std_norm),
        id="fadrm",
    ),
    *(
        pytest.param(
            lambda x, d=dataset: dwa.clip_image(x, d),
            lambda x, d=dataset: dwa.denormalize_image(x, d),
            constants,
            id=f"dwa-{dataset}",
        )
        for dataset, constants in {
            "imagenet": (MEAN, STD),
            "cifar10": CIFAR10,
            "cifar100": CIFAR100,
        }.items()
    ),
]


@pytest.mark.parametrize(("clip", "denormalize", "constants"), CASES)
def test_clip_and_denormalize(clip, denormalize, constants) -> None:
    mean, std = (np.array(v).reshape(1, 3, 1, 1) for v in constants)
    x = images()
    expected = np.clip(x.numpy(), -mean / std, (1 - mean) / std)
    assert clip(x) is x  # in place, as the scripts rely on
    np.testing.assert_array_equal(x.numpy(), expected)
    y = images()
    pixels = np.clip(y.numpy() * std + mean, 0, 1)
    assert denormalize(y) is y
    np.testing.assert_allclose(y.numpy(), pixels, rtol=0, atol=1e-15)
    # What is clipped are exactly the pixels that denormalise to 0 and 1.
    np.testing.assert_allclose((expected * std + mean).clip(0, 1), pixels, rtol=0, atol=1e-15)


def test_use_fp16_rounds_the_constants() -> None:
    mean, std = np.float16(MEAN), np.float16(STD)
    x = images()
    low, high = (v.astype(np.float64).reshape(1, 3, 1, 1) for v in (-mean / std, (1 - mean) / std))
    np.testing.assert_array_equal(
        sre2l.clip(x, use_fp16=True).numpy(), np.clip(images().numpy(), low, high)
    )
    assert not torch.equal(x, sre2l.clip(images()))
    wide_mean, wide_std = (v.astype(np.float64).reshape(1, 3, 1, 1) for v in (mean, std))
    np.testing.assert_allclose(
        sre2l.denormalize(images(), use_fp16=True).numpy(),
        np.clip(images().numpy() * wide_std + wide_mean, 0, 1),
        rtol=0,
        atol=1e-15,
    )


def test_image_priors_value_and_gradient() -> None:
    x = images().requires_grad_()
    l1, l2 = sre2l.get_image_prior_losses(x)
    y = images().requires_grad_()
    # Pixel by pixel: the four neighbours of each position that has them.
    sums, means = [], []
    for down, right in ((0, 1), (1, 0), (1, -1), (1, 1)):
        pairs = [
            y[:, :, i, j] - y[:, :, i + down, j + right]
            for i in range(6 - down)
            for j in range(max(0, -right), 5 - max(0, right))
        ]
        difference = torch.stack(pairs)
        sums.append((difference**2).sum().sqrt())
        means.append(difference.abs().sum() / difference.numel())
    for value, reference in ((l1, sum(means)), (l2, sum(sums))):
        assert abs(value - reference) <= 1e-10 * reference
        (gradient,) = torch.autograd.grad(value, x, retain_graph=True)
        (slope,) = torch.autograd.grad(reference, y, retain_graph=True)
        assert (gradient - slope).norm() <= 1e-10 * slope.norm()


@pytest.mark.parametrize("warmup", [0, 3], ids=["scripts", "warm-up"])
def test_lr_cosine_policy(warmup: int) -> None:
    optimizer = torch.optim.Adam([torch.zeros(1)], lr=9.0)
    optimizer.add_param_group({"params": [torch.ones(1)]})
    schedule = sre2l.lr_cosine_policy(0.25, warmup, 20)
    for step in range(20):
        schedule(optimizer, -1, step)  # the first counter plays no part
        if step < warmup:
            expected = 0.25 * (step + 1) / warmup
        else:
            expected = 0.125 * (1 + math.cos(math.pi * (step - warmup) / (20 - warmup)))
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([expected] * 2, rel=1e-15)


def test_errors() -> None:
    with pytest.raises(
        ValueError, match=r"image_tensor has shape \(2, 1, 4, 4\); \(B, 3, \.\.\.\)"
    ):
        sre2l.clip(torch.zeros(2, 1, 4, 4))
    with pytest.raises(TypeError, match=r"image_tensor has dtype torch\.uint8"):
        sre2l.denormalize(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="dataset is 'mnist'; allowed are cifar10, cifar100"):
        dwa.clip_image(images(), "mnist")
    with pytest.raises(ValueError, match="inputs_jit has shape"):
        sre2l.get_image_prior_losses(torch.zeros(2, 3, 1, 4))
