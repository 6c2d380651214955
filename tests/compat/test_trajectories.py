"""compat.mtt and compat.datm: the official names, draws and gradients."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pyddfast.compat import datm, mtt
from pyddfast.data import write_replay_buffer


def param(mode="S"):
    """The official ParamDiffAug."""
    return SimpleNamespace(
        aug_mode=mode, prob_flip=0.5, ratio_scale=1.2, ratio_rotate=15.0, ratio_crop_pad=0.125,
        ratio_cutout=0.5, ratio_noise=0.05, brightness=1.0, saturation=2.0, contrast=0.5,
    )  # fmt: skip


def images(n=5, side=12):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1)).double()


def official_rotate(x, reseed):
    """MTT's rand_rotate: a draw an image on the CPU, corners aligned."""
    reseed()
    angle = (torch.rand(len(x)) - 0.5) * 2 * 15 / 180 * math.pi
    rows = (
        torch.stack([angle.cos(), (-angle).sin(), 0 * angle], 1),
        torch.stack([angle.sin(), angle.cos(), 0 * angle], 1),
    )
    theta = torch.stack(rows, 1).double()
    grid = F.affine_grid(theta, list(x.shape), align_corners=True)
    return F.grid_sample(x, grid, align_corners=True)


def official_crop(x, reseed):
    reach = int(x.shape[2] * 0.125 + 0.5)
    reseed()
    down = torch.randint(-reach, reach + 1, size=[len(x), 1, 1]).flatten()
    reseed()
    right = torch.randint(-reach, reach + 1, size=[len(x), 1, 1]).flatten()
    out = torch.zeros_like(x)
    side = x.shape[2]
    for n in range(len(x)):
        for i in range(side):
            for j in range(side):
                a, b = i + int(down[n]), j + int(right[n])
                if 0 <= a < side and 0 <= b < side:
                    out[n, :, i, j] = x[n, :, a, b]
    return out


@pytest.mark.parametrize(
    ("strategy", "official", "atol"),
    # Only copies: the same bits; the angle is a float32 draw in both.
    [("crop", official_crop, 0.0), ("rotate", official_rotate, 2e-6)],
)
def test_the_official_draws(strategy, official, atol):
    x = images()
    torch.manual_seed(3)
    found = mtt.DiffAugment(x, strategy, param=param())
    after = torch.rand(1)
    torch.manual_seed(3)
    torch.randint(0, 1, size=(1,))  # the choice of the transform
    expected = official(x, lambda: None)
    assert torch.equal(torch.rand(1), after)  # as many draws
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)
    assert not torch.equal(found, x)


def test_a_seed_reseeds_before_every_draw_and_serves_the_batch():
    x, given = images(), param()
    found = mtt.DiffAugment(x, "crop", seed=41, param=given)
    assert given.batchmode
    assert given.Siamese
    assert given.latestseed == 44  # the choice and two draws
    assert torch.equal(found[:1], mtt.DiffAugment(x[:1], "crop", seed=41, param=param()))
    torch.manual_seed(42)
    down = int(torch.randint(-2, 3, size=[5, 1, 1])[0])
    torch.manual_seed(43)
    right = int(torch.randint(-2, 3, size=[5, 1, 1])[0])
    padded = F.pad(x, (2, 2, 2, 2))
    assert torch.equal(found, padded[:, :, 2 + down : 14 + down, 2 + right : 14 + right])


@pytest.mark.parametrize("strategy", ["", "none", "None"])
def test_no_strategy(strategy):
    x, state = images(), torch.get_rng_state()
    assert mtt.DiffAugment(x, strategy, param=param()) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_an_unknown_mode():
    with pytest.raises(ValueError, match=r"aug_mode must be one of \['M', 'S'\], got 'X'"):
        mtt.DiffAugment(images(), "crop", param=param("X"))


class Reparam(nn.Module):
    """What the scripts use of the official ReparamModule: parameters become plain views."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        self.at = [(m, n, p.shape) for m in module.modules() for n, p in
                   list(m.named_parameters(recurse=False))]  # fmt: skip
        flat = torch.cat([getattr(m, n).detach().reshape(-1) for m, n, _ in self.at])
        for m, n, _ in self.at:
            delattr(m, n)
        self.flat_param = nn.Parameter(flat)

    def forward(self, x, flat_param):
        parts = flat_param.split([shape.numel() for _, _, shape in self.at])
        for (m, n, shape), part in zip(self.at, parts, strict=True):
            setattr(m, n, part.view(shape))
        return self.module(x)


def student():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(4, 4), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(4 * 36, 3),
    ).double()  # fmt: skip


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("soft", [False, True], ids=["mtt", "datm"])
def test_steps_have_the_official_gradient(fused, soft):
    x, y = images(), torch.tensor([0, 1, 2, 1, 0])
    if soft:
        y = torch.randn(5, 3, generator=torch.Generator().manual_seed(2)).double()
    criterion = datm.SoftCrossEntropy if soft else nn.CrossEntropyLoss()
    plain, other = Reparam(student()), Reparam(mtt.fuse(student()) if fused else student())
    theta = plain.flat_param.detach()
    target = theta + 0.1 * torch.randn(len(theta), generator=torch.Generator().manual_seed(4))
    results = []
    for ours in (False, True):
        leaves = [x.clone().requires_grad_(), torch.tensor(0.1).double().requires_grad_()]
        labels = y.clone()
        if soft:
            leaves.append(labels.requires_grad_())
        params = theta.clone().requires_grad_()
        for _ in range(3):
            if ours:
                params = mtt.sgd_step(other, criterion, params, leaves[1], leaves[0], labels)
                continue
            logits = plain(leaves[0], flat_param=params)
            if soft:
                loss = -(labels.softmax(1) * logits.log_softmax(1)).sum() / len(x)
            else:
                loss = F.cross_entropy(logits, labels)
            (grad,) = torch.autograd.grad(loss, params, create_graph=True)
            params = params - leaves[1] * grad
        if ours:
            loss = mtt.param_loss(params, target, theta)
        else:
            # The script divides both by the number of parameters.
            loss = F.mse_loss(params, target) / F.mse_loss(theta, target)
        results.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_trajectories_load_as_the_scripts_use_them(tmp_path):
    experts = [[[torch.randn(2, 3), torch.randn(4)] for _ in range(3)] for _ in range(2)]
    write_replay_buffer(tmp_path / "replay_buffer_0.pt", experts)
    buffer = mtt.load_trajectories(tmp_path / "replay_buffer_0.pt")
    assert (len(buffer), len(buffer[0])) == (2, 3)
    old = tmp_path / "old.pt"  # as torch before 1.6 wrote, which cannot be mapped
    torch.save(experts, old, _use_new_zipfile_serialization=False)
    assert torch.equal(mtt.load_trajectories(old)[1][2][0], experts[1][2][0])
    found = torch.cat([p.data.to("cpu").reshape(-1) for p in buffer[1][2]], 0)
    assert torch.equal(found, torch.cat([p.reshape(-1) for p in experts[1][2]]))
