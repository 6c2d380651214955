"""Philox4x32-10 against Random123's known answers, and the distributions built on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyddfast import random as rnd
from pyddfast.random import Purpose

# (counter, key, output) of philox4x32-10, from Random123's kat_vectors: zeros, ones, digits of pi.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter, key, expected):
    words = rnd.philox(key[0] | key[1] << 32, counter)
    assert tuple(int(word) for word in words) == expected


def test_vectorised_equals_one_by_one():
    ids, visits = np.array([[0], [5], [2**32 - 1]]), np.array([0, 1, 7])
    many = rnd.philox(2**40 + 3, (Purpose.CROP, ids, visits, 2))
    for i, sample in enumerate(ids[:, 0]):
        for j, visit in enumerate(visits):
            one = rnd.philox(2**40 + 3, (Purpose.CROP, int(sample), int(visit), 2))
            assert [int(w[i, j]) for w in many] == [int(w) for w in one]


def test_uniform_uses_53_bits_of_two_words():
    # From the first known answer: counter and key zero.
    expected = ((0x6627E8D5 >> 5) * 2**26 + (0xE169C58D >> 6)) / 2**53
    assert float(rnd.uniform(0, 0, 0)) == expected


def test_uniform_moments_and_independence_of_lanes():
    draws = rnd.uniform(1, Purpose.DSA, torch.arange(20000)[:, None], 3, torch.arange(2))
    assert draws.dtype == torch.float64
    assert draws.min() >= 0
    assert draws.max() < 1
    # Standard errors at n = 20000: 0.002 (mean), 0.007 (correlation); bounds are five of them.
    assert abs(float(draws[:, 0].mean()) - 0.5) < 0.0103
    assert abs(float(draws[:, 0].var()) - 1 / 12) < 0.003
    assert abs(float(torch.corrcoef(draws.T)[0, 1])) < 0.036


def test_normal_moments():
    draws = rnd.normal(1, Purpose.NOISE, torch.arange(20000))
    # Five standard errors of mean, variance and fourth moment (3, its variance 96) at n = 20000.
    assert abs(float(draws.mean())) < 0.036
    assert abs(float(draws.var()) - 1) < 0.05
    assert abs(float((draws**4).mean()) - 3) < 0.35


def test_randint_covers_its_range_evenly():
    draws = rnd.randint(9, Purpose.SELECTION, -2, 3, torch.arange(50000))
    counts = torch.bincount(draws + 2, minlength=5)
    assert counts.sum() == 50000
    # Expected 10000, standard deviation 89.
    assert (counts - 10000).abs().max() < 450


def test_permutation_is_a_permutation_and_keyed():
    a = rnd.permutation(0, Purpose.EPOCH_ORDER, 1000, 4)
    assert torch.equal(a.sort().values, torch.arange(1000))
    assert torch.equal(a, rnd.permutation(0, Purpose.EPOCH_ORDER, 1000, 4))
    for other in (
        rnd.permutation(1, Purpose.EPOCH_ORDER, 1000, 4),
        rnd.permutation(0, Purpose.SELECTION, 1000, 4),
        rnd.permutation(0, Purpose.EPOCH_ORDER, 1000, 5),
    ):
        # Two independent orders agree in one place on average.
        assert int((a == other).sum()) < 12
    assert rnd.permutation(0, 1, 0).numel() == 0


def test_every_order_of_three_is_as_likely():
    codes = torch.stack([rnd.permutation(5, 1, 3, step) for step in range(3000)])
    counts = torch.bincount(codes[:, 0] * 3 + codes[:, 1], minlength=9)
    counts = counts[counts > 0]
    assert len(counts) == 6
    # Expected 500, standard deviation 20.4.
    assert (counts - 500).abs().max() < 103


def test_generators_are_keyed_and_leave_the_global_state_alone():
    before_torch, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    a = torch.rand(4, generator=rnd.generator(3, Purpose.MODEL_INIT, 1, 2))
    b = torch.rand(4, generator=rnd.generator(3, Purpose.MODEL_INIT, 1, 2))
    c = torch.rand(4, generator=rnd.generator(3, Purpose.MODEL_INIT, 1, 3))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    d = rnd.numpy_generator(3, Purpose.CUTMIX, 1).random(3)
    np.testing.assert_array_equal(d, rnd.numpy_generator(3, Purpose.CUTMIX, 1).random(3))
    rnd.uniform(0, 1, 2), rnd.permutation(0, 1, 5)
    assert torch.equal(before_torch, torch.get_rng_state())
    np.testing.assert_array_equal(before_numpy, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: rnd.uniform(-1, 0, 0), ValueError, "seed"),
        (lambda: rnd.uniform(2**64, 0, 0), ValueError, "seed"),
        (lambda: rnd.uniform(0.5, 0, 0), TypeError, "seed"),
        (lambda: rnd.uniform(0, 0, [-1]), ValueError, r"counter\[1\]"),
        (lambda: rnd.uniform(0, 0, 0, 2**32), ValueError, r"counter\[2\]"),
        (lambda: rnd.uniform(0, 0, torch.tensor([0.5])), TypeError, "integers"),
        (lambda: rnd.randint(0, 0, 3, 3, 0), ValueError, "low=3, high=3"),
        (lambda: rnd.permutation(0, 0, -1), ValueError, "n must not be negative"),
        (lambda: rnd.generator(0, 0, 1, 2, 3, 4), ValueError, "at most 3 keys"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
