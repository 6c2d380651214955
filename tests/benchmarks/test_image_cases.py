"""The cases of the image operators: every provider computes the same pictures."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks.dm_iteration import official_view
from benchmarks.ops import CASES
from benchmarks.ops.dsa import ENTRIES
from pyddfast.compat import vico

CPU = torch.device("cpu")
IMAGE_OPS = ("augment", "multi_crop", "mosaic")


@pytest.mark.parametrize("op", IMAGE_OPS)
def test_providers_agree(op: str) -> None:
    # torch.compile is left out for its compilation time; it compiles the eager expression.
    for case in CASES[op](CPU, True):
        inputs = case.make_inputs(3)
        before = {name: tensor.clone() for name, tensor in inputs.items()}
        ours = case.providers["ours"](inputs)().double()  # type: ignore[attr-defined]
        others = [name for name in case.providers if name not in ("ours", "torch.compile")]
        assert "eager" in others
        for name in others:
            got = case.providers[name](inputs)().double()  # type: ignore[attr-defined]
            assert got.shape == ours.shape
            difference = (got - ours).abs()
            if name.startswith("PIL"):
                # One level of 255 is 0.017 here.  PIL rounds to bytes twice; JPEG loses detail,
                # most in pictures this small (unrelated ones differ by more than 1).
                assert difference.mean() < (0.35 if "JPEG" in name else 0.01)
            else:
                # values reach 3; bfloat16 may round two of them to neighbouring numbers
                assert difference.max() <= (2**-6 if case.dtype == "bfloat16" else 3e-6)
        assert all(torch.equal(inputs[name], before[name]) for name in inputs)


@pytest.mark.parametrize("op", ["crop_flip_roll", "patch_stats"])
def test_providers_agree_on_gradients(op: str) -> None:
    for case in CASES[op](CPU, True):
        inputs = case.make_inputs(3)
        ours, eager = (case.providers[name](inputs)() for name in ("ours", "eager"))
        if case.part == "forward+backward":
            (ours,), (eager,) = ours, eager  # type: ignore[misc, has-type]
        assert ours.shape == eager.shape == case.shape  # type: ignore[attr-defined]
        assert (ours - eager).abs().max() <= 3e-6 * eager.abs().max()  # type: ignore


def test_dsa_draws_what_the_official_expression_draws() -> None:
    for case in CASES["dsa"](CPU, True):
        if case.part.endswith("forward"):
            inputs, views = case.make_inputs(3), []
            for name in ("ours with draws", "eager"):
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(11)
                    views += [case.providers[name](inputs)(), torch.get_rng_state()]
            ours, state, eager, other_state = views
            assert torch.equal(state, other_state)  # type: ignore[arg-type]
            exact = case.part.split()[0] in ("crop", "cutout", "flip")
            # Coordinates of 32 pixels in float32, and sums of 3072 values.
            assert (ours - eager).abs().max() <= (0 if exact else 1e-5)  # type: ignore[operator]


def test_the_official_draws_of_a_seed() -> None:
    """Against the drop-in function, which other tests hold to the official one's outputs."""
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    param = SimpleNamespace(
        aug_mode="S", prob_flip=0.5, ratio_scale=1.2, ratio_rotate=15.0, ratio_crop_pad=0.125,
        ratio_cutout=0.5, brightness=1.0, saturation=2.0, contrast=0.5,
    )  # fmt: skip
    drawn = set()
    with torch.random.fork_rng(devices=[]):
        for seed in range(12):
            view = official_view(images, seed)
            state = torch.get_rng_state()
            want = vico.DiffAugment(images, "_".join(ENTRIES), seed=seed, param=param)
            assert torch.equal(torch.get_rng_state(), state)
            assert (view - want).abs().max() <= 1e-5  # coordinates of 32 pixels in float32
            torch.manual_seed(seed)
            drawn.add(ENTRIES[int(torch.randint(0, 6, (1,)))])
    assert drawn == set(ENTRIES)


def test_providers_agree_on_both_derivatives_of_the_block() -> None:
    for case in CASES["norm_relu_pool"](CPU, True):
        inputs = case.make_inputs(3)
        ours, eager = (case.providers[name](inputs)() for name in ("ours", "eager"))
        if case.part == "forward":
            ours, eager = (ours,), (eager,)
        for a, b in zip(ours, eager, strict=True):  # type: ignore[call-overload]
            # Sums over up to 2 x 32 x 32 products, in float32 both.
            assert (a - b).abs().max() <= 2e-5 * b.abs().max()
        assert ("torch.compile" in case.providers) == ("double" not in case.part)


@pytest.mark.parametrize(
    ("op", "dtype", "bytes_floor"),
    [
        ("augment", "float32", 4 * 3 * 32 * 32 * 4 + round(4 * 3 * 32 * 32 * 0.54)),
        ("augment", "bfloat16", 4 * 3 * 32 * 32 * 2 + round(4 * 3 * 32 * 32 * 0.54)),
        ("multi_crop", "uint8", 2 * 3 * (30 * 40 + 5 * 16 * 16 * 4)),
        ("mosaic", "float32", 8 * 3 * 8 * 8 * 5),
    ],
)
def test_bytes_floor(op: str, dtype: str, bytes_floor: int) -> None:
    floors = [case.bytes_floor for case in CASES[op](CPU, True) if case.dtype == dtype]
    assert floors == [bytes_floor]
