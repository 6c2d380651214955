"""Keyed randomness: every draw is a pure function of a seed and of what it is drawn for.

The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011; reference implementation Random123). Nothing here has state, so a draw does not depend on
the batch, worker, rank or thread that asks for it, and a resumed job draws what it would have
drawn.

Counter layout (four 32-bit words), key = the 64-bit seed:

* a draw for one sample: ``(purpose, sample id, visit number of that sample, lane)``;
* a draw for a whole batch: ``(purpose, global step, 0, lane)``.

A lane numbers the draws of one event (crop height, crop width, ...). Torch's and numpy's global
generators are never used and never reseeded.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = [
    "Purpose",
    "generator",
    "normal",
    "numpy_generator",
    "permutation",
    "philox",
    "randint",
    "uniform",
]

U32: TypeAlias = npt.NDArray[np.uint32]
Ints: TypeAlias = int | Sequence[int] | npt.NDArray[np.integer] | Tensor

# Multipliers and Weyl increments of Philox4x32, from the paper's table 2 and section 4.
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_MASK = 0xFFFFFFFF


class Purpose(IntEnum):
    """What a draw is for. Numbers are part of the results: never renumber, only add."""

    EPOCH_ORDER = 1
    CROP = 2
    FLIP = 3
    PATCH_SHUFFLE = 4
    CUTMIX = 5
    DSA = 6
    MODEL_INIT = 7
    SELECTION = 8
    MULTI_CROP = 9
    CANDIDATES = 10
    SCORING = 11
    TEACHER = 12
    NOISE = 13
    BOOTSTRAP = 14
    CUTMIX_BOX = 15
    DSA_BATCH = 16
    LAYERS = 17
    SYNTHESIS = 18
    INITIAL = 19
    FEATURE_DROP = 20
    STATISTICS = 21
    EXPERT = 30
    TRAJECTORY = 31
    TRAJECTORY_BATCH = 32
    REAL_BATCH = 33
    NETWORK = 34
    CLASS_DSA = 35
    INNER = 36
    LATENT = 40
    PROTOTYPE = 41
    DENOISE = 42
    DIFFUSION = 43
    SAMPLE = 44
    CORRUPTION = 50


def _words(value: Ints, name: str) -> npt.NDArray[np.uint64]:
    """Checks that ``value`` fits a counter word; uint64 so that 32 x 32 bit products fit."""
    if isinstance(value, Tensor):
        value = value.numpy(force=True)
    array = np.asarray(value)
    if array.size == 0:
        return array.astype(np.uint64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, got dtype {array.dtype}")
    if int(array.min()) < 0 or int(array.max()) > _MASK:
        raise ValueError(
            f"{name} must lie in [0, 2**32), got [{int(array.min())}, {int(array.max())}]"
        )
    return array.astype(np.uint64)


def philox(seed: int, counter: tuple[Ints, Ints, Ints, Ints]) -> tuple[U32, U32, U32, U32]:
    """Philox4x32-10 of many counters at once.

    Args:
        seed: the key, in [0, 2**64); its low word is the first key word.
        counter: four integers or integer arrays in [0, 2**32), broadcast against each other.

    Returns:
        Four uint32 arrays of the broadcast shape, the four output words.

    Raises:
        ValueError: the seed or a counter word is out of range.
        TypeError: a counter word is not an integer.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed must be an int, got {type(seed).__name__}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must lie in [0, 2**64), got {seed}")
    names = ("counter[0]", "counter[1]", "counter[2]", "counter[3]")
    c0, c1, c2, c3 = np.broadcast_arrays(
        *(_words(word, name) for word, name in zip(counter, names, strict=True))
    )
    k0, k1 = int(seed) & _MASK, int(seed) >> 32
    shift, mask = np.uint64(32), np.uint64(_MASK)
    m0, m1 = np.uint64(_M0), np.uint64(_M1)
    for _ in range(_ROUNDS):
        p0, p1 = m0 * c0, m1 * c2
        c0, c1, c2, c3 = (
            (p1 >> shift) ^ c1 ^ np.uint64(k0),
            p1 & mask,
            (p0 >> shift) ^ c3 ^ np.uint64(k1),
            p0 & mask,
        )
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return (
        c0.astype(np.uint32),
        c1.astype(np.uint32),
        c2.astype(np.uint32),
        c3.astype(np.uint32),
    )


def _unit(high: U32, low: U32) -> npt.NDArray[np.float64]:
    """Two words to a double in [0, 1) with all 53 bits, the usual 27 + 26 bit split."""
    a = (high >> np.uint32(5)).astype(np.float64)
    b = (low >> np.uint32(6)).astype(np.float64)
    unit: npt.NDArray[np.float64] = (a * 67108864.0 + b) / 9007199254740992.0
    return unit


def uniform(seed: int, purpose: int, ids: Ints, visits: Ints = 0, lanes: Ints = 0) -> Tensor:
    """Uniform draws in [0, 1) with 53 random bits.

    Args:
        seed: the run's seed, in [0, 2**64).
        purpose: a :class:`Purpose`.
        ids: sample ids (or the global step of a batch-level draw).
        visits: how often each sample was drawn before (0 for a batch-level draw).
        lanes: number of the draw inside its event. ``ids``, ``visits`` and ``lanes`` broadcast.

    Returns:
        float64 CPU tensor of the broadcast shape.

    Example:
        >>> uniform(0, Purpose.FLIP, ids=[[3], [7]], visits=2, lanes=[0, 1]).shape
        torch.Size([2, 2])
    """
    x0, x1, _, _ = philox(seed, (int(purpose), ids, visits, lanes))
    return torch.as_tensor(_unit(x0, x1))


def randint(
    seed: int, purpose: int, low: int, high: int, ids: Ints, visits: Ints = 0, lanes: Ints = 0
) -> Tensor:
    """Uniform integers in [low, high).

    Scaled from 53 random bits, so that the bias is below (high - low) / 2**53.

    Args:
        seed: the run's seed, in [0, 2**64).
        purpose: a :class:`Purpose`.
        low: smallest value.
        high: one past the largest value; at most 2**32 above ``low``.
        ids: sample ids, or the global step of a batch-level draw.
        visits: visit numbers of the samples.
        lanes: number of the draw inside its event. The last three broadcast.

    Returns:
        int64 CPU tensor of the broadcast shape.

    Raises:
        ValueError: the range is empty or too wide.
    """
    if not 0 < high - low <= 2**32:
        raise ValueError(f"need 0 < high - low <= 2**32, got low={low}, high={high}")
    unit = uniform(seed, purpose, ids, visits, lanes)
    return low + (unit * (high - low)).floor().to(torch.int64)


def normal(seed: int, purpose: int, ids: Ints, visits: Ints = 0, lanes: Ints = 0) -> Tensor:
    """Standard normal draws by Box and Muller; arguments as for :func:`uniform`.

    Returns:
        float64 CPU tensor of the broadcast shape.
    """
    x0, x1, x2, x3 = philox(seed, (int(purpose), ids, visits, lanes))
    # 1 - u lies in (0, 1], so that the logarithm is finite.
    radius = np.sqrt(-2.0 * np.log1p(-_unit(x0, x1)))
    return torch.as_tensor(radius * np.cos(2.0 * np.pi * _unit(x2, x3)))


def permutation(seed: int, purpose: int, n: int, step: int = 0) -> Tensor:
    """A random order of ``range(n)``: the ranks of ``n`` 64-bit draws, ties to the lower index.

    Args:
        seed: the run's seed, in [0, 2**64).
        purpose: a :class:`Purpose`.
        n: length, in [0, 2**32].
        step: the global step, epoch or class that the order is for.

    Returns:
        int64 CPU tensor (n,).
    """
    if n < 0:
        raise ValueError(f"n must not be negative, got {n}")
    x0, x1, _, _ = philox(seed, (int(purpose), step, 0, np.arange(n, dtype=np.int64)))
    keys = (x0.astype(np.uint64) << np.uint64(32)) | x1.astype(np.uint64)
    return torch.as_tensor(np.argsort(keys, kind="stable").astype(np.int64))


def _derived_seed(seed: int, purpose: int, keys: tuple[int, ...]) -> int:
    if len(keys) > 3:
        raise ValueError(f"at most 3 keys fit the counter, got {len(keys)}")
    k0, k1, k2 = (*keys, 0, 0, 0)[:3]
    x0, x1, _, _ = philox(seed, (int(purpose), k0, k1, k2))
    return int(x0) << 32 | int(x1)


def generator(seed: int, purpose: int, *keys: int) -> torch.Generator:
    """A CPU ``torch.Generator`` seeded from Philox, for draws that torch makes (initialisation).

    Args:
        seed: the run's seed, in [0, 2**64).
        purpose: a :class:`Purpose`.
        *keys: up to three integers in [0, 2**32): what the generator is for.

    Returns:
        A fresh generator; equal arguments give equal streams.
    """
    return torch.Generator().manual_seed(_derived_seed(seed, purpose, keys))


def numpy_generator(seed: int, purpose: int, *keys: int) -> np.random.Generator:
    """A ``numpy.random.Generator`` seeded as :func:`generator` does, for numpy's distributions."""
    return np.random.Generator(np.random.PCG64(_derived_seed(seed, purpose, keys)))
