"""VICO's names against its formulas written down once more: draws, distances, the evaluation."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pyddfast.compat import dcbench, vico

EVERYTHING = "color_crop_cutout_flip_scale_rotate"


def parameters(mode="S"):
    return SimpleNamespace(
        aug_mode=mode, prob_flip=0.5, ratio_scale=1.2, ratio_rotate=15.0, ratio_crop_pad=0.125,
        ratio_cutout=0.5, brightness=1.0, saturation=2.0, contrast=0.5,
    )  # fmt: skip


def restated(x, entry, seed):
    """One entry with one draw for the batch, from generators that are seeded before each draw."""
    seeds = iter(range(seed, seed + 99))

    def draw(make):
        torch.manual_seed(next(seeds))
        return make()

    n, _, h, w = x.shape
    draw(lambda: torch.randint(0, 6, size=(1,)))  # of the entry
    if entry == "flip":
        return x.flip(3) if draw(lambda: torch.rand(n, 1, 1, 1))[0] < 0.5 else x
    if entry == "color":
        x = x + (draw(lambda: torch.rand(n, 1, 1, 1, dtype=x.dtype))[0] - 0.5)
        gain = draw(lambda: torch.rand(n, 1, 1, 1, dtype=x.dtype))[0] * 2
        mean = x.mean(1, keepdim=True)
        x = (x - mean) * gain + mean
        gain = draw(lambda: torch.rand(n, 1, 1, 1, dtype=x.dtype))[0] + 0.5
        mean = x.mean((1, 2, 3), keepdim=True)
        return (x - mean) * gain + mean
    if entry == "crop":
        reach = int(h * 0.125 + 0.5)
        down, right = (
            int(draw(lambda: torch.randint(-reach, reach + 1, size=(n, 1, 1)))[0]) for _ in "hw"
        )
        out = torch.zeros_like(x)
        for i in range(h):
            for j in range(w):
                if 0 <= i + down < h and 0 <= j + right < w:
                    out[:, :, i, j] = x[:, :, i + down, j + right]
        return out
    if entry == "cutout":
        size = int(h * 0.5 + 0.5)
        top, left = (
            int(draw(lambda: torch.randint(0, h + (1 - size % 2), size=(n, 1, 1)))[0]) for _ in "hw"
        )
        out = x.clone()
        for i in range(size):
            for j in range(size):
                row, column = top + i - size // 2, left + j - size // 2
                out[:, :, min(max(row, 0), h - 1), min(max(column, 0), w - 1)] = 0
        return out
    if entry == "scale":
        sx, sy = (draw(lambda: torch.rand(n))[0] * (1.2 - 1 / 1.2) + 1 / 1.2 for _ in "xy")
        theta = torch.tensor([[[sx, 0, 0], [0, sy, 0]]])
    else:
        a = (draw(lambda: torch.rand(n))[0] - 0.5) * 2 * 15.0 / 180 * math.pi
        theta = torch.tensor([[[a.cos(), (-a).sin(), 0], [a.sin(), a.cos(), 0]]])
    grid = F.affine_grid(theta.to(x.dtype).expand(n, 2, 3), x.shape, align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


@pytest.mark.parametrize("size", [8, 9])  # even and odd sides round differently
def test_diff_augment_is_the_official_one_draw_for_draw(size):
    x = torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(1))
    seen = set()
    for seed in range(30):
        torch.manual_seed(seed)
        entry = EVERYTHING.split("_")[int(torch.randint(0, 6, size=(1,)))]
        seen.add(entry)
        param = parameters()
        torch.manual_seed(123)
        got = vico.DiffAugment(x, EVERYTHING, seed=seed, param=param)
        state = torch.get_rng_state()
        torch.manual_seed(123)
        torch.testing.assert_close(got, restated(x, entry, seed), rtol=0, atol=2e-5)
        assert torch.equal(state, torch.get_rng_state()), entry
        assert param.Siamese
        if entry in ("flip", "crop", "cutout"):
            assert torch.equal(got, restated(x, entry, seed))
    assert seen == set(EVERYTHING.split("_"))


def test_without_a_strategy_nothing_is_drawn():
    x, state = torch.randn(2, 3, 4, 4), torch.get_rng_state()
    for strategy in ("", "none", "None"):
        assert vico.DiffAugment(x, strategy) is x
    assert torch.equal(torch.get_rng_state(), state)
    assert dcbench.DiffAugment is vico.DiffAugment
    with pytest.raises(ValueError, match="aug_mode"):
        vico.DiffAugment(x, "flip", param=parameters("T"))


@pytest.mark.parametrize("metric", ["ours", "mse", "cos"])
def test_match_loss(metric):
    g = torch.Generator().manual_seed(0)
    shapes = [(4, 3, 3, 3), (4,), (5, 4), (5,)]
    syn = [torch.randn(s, generator=g).double().requires_grad_() for s in shapes]
    real = [torch.randn(s, generator=g).double() for s in shapes]
    got = vico.match_loss(syn, real, SimpleNamespace(dis_metric=metric))
    if metric == "ours":
        expected = torch.zeros((), dtype=torch.float64)
        for s, r in zip(syn, real, strict=True):
            if s.ndim > 1:
                for a, b in zip(s.flatten(1), r.flatten(1), strict=True):
                    expected = expected + 1 - (a @ b) / (a.norm() * b.norm() + 1e-6)
    else:
        a, b = (torch.cat([t.flatten() for t in ts]) for ts in (syn, real))
        if metric == "mse":
            expected = (a - b).square().sum()
        else:
            expected = 1 - (a @ b) / (a.norm() * b.norm() + 1e-6)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad(got, syn[0])[0]
    torch.testing.assert_close(ours, torch.autograd.grad(expected, syn[0])[0])


def network():
    torch.manual_seed(4)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))


@pytest.mark.parametrize("dsa", [False, True])
def test_evaluate_synset_is_the_official_loop(dsa, capsys):
    images = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(7) % 3
    test = DataLoader(TensorDataset(images + 0.1, labels), batch_size=4)
    args = SimpleNamespace(
        device="cpu", lr_net=0.05, epoch_eval_train=5, batch_train=3, dsa=dsa,
        dsa_strategy="flip_crop", dsa_param=parameters(), dc_aug_param=None,
    )  # fmt: skip
    torch.manual_seed(9)
    net, train, accuracy = vico.evaluate_synset(0, network(), images, labels, test, args)
    state = torch.get_rng_state()
    torch.manual_seed(9)
    expected, lr = network(), 0.05
    optimizer = torch.optim.SGD(expected.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(TensorDataset(images, labels), batch_size=3, shuffle=True)
    for epoch in range(5 + 1):
        right = 0
        for x, y in loader:
            if dsa:
                x = vico.DiffAugment(x, "flip_crop", param=parameters())
            logits = expected(x)
            right += int((logits.argmax(1) == y).sum())
            optimizer.zero_grad()
            F.cross_entropy(logits, y).backward()
            optimizer.step()
        if epoch in [5 // 2 + 1]:
            lr *= 0.1
            optimizer = torch.optim.SGD(
                expected.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4
            )
    assert train == right / 7
    assert accuracy == sum(int((expected(x).argmax(1) == y).sum()) for x, y in test) / 7
    for ours, theirs in zip(net.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(state, torch.get_rng_state())
    assert "Evaluate_00: epoch = 0005" in capsys.readouterr().out
