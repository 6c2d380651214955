"""DD-Ranking's class against the official draws, and its installation."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from pyddfast.compat import ddranking

ENTRIES = ("scale", "rotate", "flip", "color", "crop", "cutout")
PARAMS = {
    "flip": 0.5, "rotate": 15.0, "saturation": 2.0, "brightness": 1.0, "contrast": 0.5,
    "scale": 1.2, "crop": 0.125, "cutout": 0.5,
}  # fmt: skip


def restated(x, seed):
    """Flip and crop as the package computes them, None for another entry."""
    torch.manual_seed(seed)
    entry = ENTRIES[int(torch.randint(0, 6, size=(1,)))]
    torch.manual_seed(seed + 1)
    if entry == "flip":
        return torch.where(torch.rand(len(x), 1, 1, 1)[:1] < 0.5, x.flip(3), x)
    if entry != "crop":
        return None
    down = int(torch.randint(-1, 2, size=(len(x), 1, 1))[0])
    torch.manual_seed(seed + 2)
    right = int(torch.randint(-1, 2, size=(len(x), 1, 1))[0])
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    return padded[:, :, 1 + down : 9 + down, 1 + right : 9 + right]


def test_the_entry_and_its_draws_are_the_official_ones():
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    compared = 0
    for seed in range(40):
        params = dict(PARAMS)
        expected = restated(x, seed)
        got = ddranking.DSA(params, seed=seed)(x)
        if expected is not None:
            assert torch.equal(got, expected)
            compared += 1
        else:
            assert not torch.equal(got, x)
        assert params["siamese"] is True
        assert params["latestseed"] >= seed + 2
    assert compared >= 8
    params = dict(PARAMS)
    ddranking.DSA(params)(x)
    assert (params["siamese"], params["latestseed"]) == (False, -1)


def test_install_replaces_the_class_wherever_it_was_imported(monkeypatch):
    names = ("ddranking", "ddranking.aug", "ddranking.metrics", "ddranking.metrics.general")
    modules = {name: ModuleType(name) for name in names}
    for name in names[1:2] + names[3:]:
        modules[name].DSA = object
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    assert ddranking.install() == ["ddranking.aug", "ddranking.metrics.general"]
    assert modules["ddranking.aug"].DSA is ddranking.DSA
    assert not hasattr(modules["ddranking.metrics"], "DSA")


def test_unfit_parameters_are_named():
    with pytest.raises(ValueError, match=r"params lacks \['flip'"):
        ddranking.DSA({"prob_flip": 0.5})  # as the package's read-me has it
    with pytest.raises(ValueError, match="aug_mode"):
        ddranking.DSA(PARAMS, aug_mode="X")
