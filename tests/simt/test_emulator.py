"""The emulator itself: right kernels give right values, every planted bug is caught.

The kernels are those of selftest.cu; "caught" is a wrong value (NaN where memory was never written)
or an error of the launch that names kind, line and thread.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.simt import build

SEEDS = range(12)  # a missing barrier has to show within these


@pytest.fixture(scope="module")
def library() -> ModuleType:
    return build.load_host()


@pytest.fixture
def host(library: ModuleType) -> Iterator[ModuleType]:
    library.reset()
    yield library
    library.reset()


def line_of(text: str, after: str = "") -> int:
    """The line of selftest.cu where `text` first occurs after the line holding `after`."""
    lines = (build.HERE / "selftest.cu").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if after in line)
    return next(i for i in range(start, len(lines)) if text in lines[i]) + 1


def site(text: str, after: str = "") -> str:
    return f"tests/simt/selftest.cu:{line_of(text, after)}"


def nan(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)


def whole_numbers(*shape: int) -> np.ndarray:
    """Small whole numbers: every order of summation gives the same float."""
    return np.random.default_rng(0).integers(-8, 9, shape).astype(np.float32)


def block_sum(host: ModuleType, threads: int, bug: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel gives and what it should, for 3 blocks of 4 rows."""
    x = whole_numbers(3, 4, threads)
    out = nan(3, threads)
    assert host.block_sum(x, out, 3, threads, 4, host.Bug(bug)) == 0, host.last_error()
    expected = np.einsum("brt,r->b", x, np.arange(1, 5))
    return out, np.repeat(expected[:, None], threads, 1)


def cluster_sum(host: ModuleType, cluster: int, bug: int = 0) -> tuple[int, np.ndarray, np.ndarray]:
    blocks, threads = 8, 64
    x = whole_numbers(blocks, threads)
    out = nan(blocks, threads)
    code = host.cluster_sum(x, out, blocks, threads, cluster, host.Bug(bug))
    groups = x.reshape(-1, cluster, threads).sum(1)
    blocks_sum = 1000.0 * np.arange(blocks).reshape(-1, cluster).sum(1)
    expected = np.repeat(groups + blocks_sum[:, None], cluster, 0)
    return code, out, expected + 0.25 * (np.arange(blocks) % cluster)[:, None]


# ------------------------------------------------------------------------------- right kernels


@pytest.mark.parametrize("threads", [32, 96, 1024])  # one warp; an odd number of them; the maximum
def test_block_sum_is_right_in_every_order(host: ModuleType, threads: int) -> None:
    for seed in SEEDS:
        host.set_seed(seed)
        out, expected = block_sum(host, threads)
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("cluster", [1, 2, 4, 8])
def test_cluster_sum_is_right_in_every_order(host: ModuleType, cluster: int) -> None:
    for seed in SEEDS:
        host.set_seed(seed)
        code, out, expected = cluster_sum(host, cluster)
        assert code == 0, host.last_error()
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("width", [32, 16, 4])
@pytest.mark.parametrize("operand", [0, 1, 3, 17])
def test_shuffles_and_votes(host: ModuleType, operand: int, width: int) -> None:
    x = np.linspace(-1.5, 2.5, 32, dtype=np.float32)
    out = nan(10, 32)
    assert host.warp_ops(x, out, operand, width) == 0, host.last_error()
    lane = np.arange(32)
    first = lane // width * width

    def inside(source: np.ndarray) -> np.ndarray:
        return np.where((source < first) | (source >= first + width), lane, source)

    np.testing.assert_array_equal(out[0], x[first + operand % width])
    np.testing.assert_array_equal(out[1], x[inside(lane - operand)])
    np.testing.assert_array_equal(out[2], x[inside(lane + operand)])
    # xor may read an earlier segment, never a later one (PTX: j <= maxLane).
    flipped = lane ^ operand
    flipped = np.where(flipped >= first + width, lane, flipped)
    np.testing.assert_array_equal(out[3], x[flipped])
    np.testing.assert_array_equal(out[4], (x[flipped].astype(np.float64) + 0.5).astype(np.float32))
    ballot = sum(1 << int(i) for i in np.flatnonzero(x > 0))
    assert set(out[5]) == {float(ballot & 0xFFFF)}
    assert set(out[6]) == {float(ballot >> 16)}
    assert set(out[7]) == {1.0}
    assert set(out[8]) == {0.0}
    np.testing.assert_array_equal(out[9], np.where(lane < 16, 1, -1) * x[lane ^ 3])


def test_indices(host: ModuleType) -> None:
    out = np.full((2, 3, 5, 2, 4, 8, 6), -1, np.int32)  # grid z, y, x, block z, y, x
    assert host.indices(out, (5, 3, 2), (8, 4, 2), 0, 1) == 0, host.last_error()
    bz, by, bx, tz, ty, tx = np.indices(out.shape[:-1])
    np.testing.assert_array_equal(out, np.stack([bx, by, bz, tx, ty, tz], -1))


def test_intrinsics_are_correctly_rounded(host: ModuleType) -> None:
    x = np.array([1e-3, 0.3, 0.99999994, 1.0, 2.5, 7.0, 20.0, 88.0], np.float32)
    out = nan(16, len(x))
    assert host.intrinsics(x, out) == 0, host.last_error()
    d = x.astype(np.float64)
    bits = x.view(np.uint32)
    expected = [
        *(np.exp(d), np.exp2(d), np.log(d), np.log2(d), 1 / d, 1 / d, d**-0.5, d**0.5, d * d - d),
        *(np.clip(d, 0, 1), np.minimum(d, 1), np.maximum(d, 1), -d),
        [bin(b).count("1") for b in bits],
        [32 - int(v).bit_length() for v in x],
        [(int(v) & -int(v)).bit_length() for v in x],
    ]
    # exp2f is the host library's own: faithful, not always correctly rounded.
    np.testing.assert_allclose(out[1], np.exp2(d), rtol=2**-23)
    with np.errstate(over="ignore"):
        rest = np.array(expected)[np.arange(16) != 1].astype(np.float32)
    np.testing.assert_array_equal(out[np.arange(16) != 1], rest)


def test_the_same_seed_runs_in_the_same_order(host: ModuleType) -> None:
    """A racy kernel shows the order: it repeats with the seed and changes with it."""
    results = []
    for seed in (5, 5, 6):
        host.set_seed(seed)
        out, _ = block_sum(host, 96, host.Bug.MISSING_BARRIER)
        results.append(out.tobytes())
    assert results[0] == results[1] != results[2]


# ---------------------------------------------------------------------------- missing barriers


@pytest.mark.parametrize("bug", ["MISSING_BARRIER", "MISSING_REUSE_BARRIER"])
def test_a_missing_block_barrier_gives_wrong_values(host: ModuleType, bug: str) -> None:
    wrong = 0
    for seed in SEEDS:
        host.set_seed(seed)
        out, expected = block_sum(host, 96, getattr(host.Bug, bug))
        wrong += not np.array_equal(out, expected)
    assert wrong >= len(SEEDS) // 2


def test_a_missing_warp_barrier_reads_what_was_never_written(host: ModuleType) -> None:
    x = whole_numbers(64)
    for seed in SEEDS:
        host.set_seed(seed)
        out = nan(64)
        assert host.warp_exchange(x, out, 64, host.Bug.NONE) == 0
        np.testing.assert_array_equal(out, x[np.arange(64) ^ 1])
        out = nan(64)
        assert host.warp_exchange(x, out, 64, host.Bug.MISSING_BARRIER) == 0
        # The first lane of each pair has read NaN, the second the right value.
        assert np.isnan(out).sum() == 32
        assert (np.isnan(out[0::2]) ^ np.isnan(out[1::2])).all()


def test_a_missing_cluster_barrier_is_caught(host: ModuleType) -> None:
    code, out, _ = cluster_sum(host, 4, host.Bug.MISSING_BARRIER)
    # The first CTA to run reads its siblings before they have written.
    assert code == 0
    assert np.isnan(out).any(axis=1).sum() >= 2
    code, _, _ = cluster_sum(host, 4, host.Bug.MISSING_REUSE_BARRIER)
    assert code == 700
    assert "of the cluster has ended" in host.last_error()


def test_every_barrier_is_needed(host: ModuleType) -> None:
    """Dropping any site that a right kernel reaches makes that kernel wrong, for some seed."""

    def run() -> bool:
        """Whether all is right."""
        right = True
        for seed in SEEDS:
            host.set_seed(seed)
            out, expected = block_sum(host, 96)
            right &= np.array_equal(out, expected)
            x, exchanged = whole_numbers(64), nan(64)
            host.warp_exchange(x, exchanged, 64, host.Bug.NONE)
            right &= np.array_equal(exchanged, x[np.arange(64) ^ 1])
            code, out, expected = cluster_sum(host, 2)
            right &= code == 0 and np.array_equal(out, expected)
        return right

    assert run()
    sites = host.barrier_sites()
    arrivals = len(SEEDS) * 3 * 4 * 96  # seeds, blocks, rows, threads
    assert sites == {
        site("__syncthreads", "kMissingBarrier"): ("__syncthreads", arrivals),
        site("__syncthreads", "kMissingReuseBarrier"): ("__syncthreads", arrivals),
        site("__syncwarp"): ("__syncwarp", len(SEEDS) * 64),
        site("cluster_sync", "void cluster_sum"): ("cluster_sync", len(SEEDS) * 8 * 64),
        site("kMissingReuseBarrier", "void cluster_sum"): ("cluster_sync", len(SEEDS) * 8 * 64),
    }
    assert set(sites) <= build.written_barriers([build.HERE / "selftest.cu"])
    for dropped in sites:
        host.drop_barrier(dropped)
        assert not run(), dropped
    host.drop_barrier(None)
    assert run()


def test_drop_barrier_names_an_unknown_site(host: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"'nowhere.cu:1' is no barrier"):
        host.drop_barrier("nowhere.cu:1")


# -------------------------------------------------------------------------------------- errors

# Bug, CUDA's error code, what the text has to say, and where ("" for no one line).
BUGS = [
    ("DIVERGENT_SHUFFLE", 719, "divergent warp: lane", "__shfl_xor_sync"),
    ("SHUFFLE_MASKS_DIFFER", 719, "with mask 0x0000ffff", "__shfl_xor_sync"),
    ("SHUFFLE_OUTSIDE_MASK", 719, "is not in its mask 0x000000ff", "__shfl_sync"),
    ("SHUFFLE_FROM_OUTSIDE", 719, "reads lane 9, which is not in mask 0x000000ff", "__shfl_sync"),
    ("SHUFFLE_WITH_ENDED", 719, "has ended", "__shfl_xor_sync"),
    ("SHUFFLE_WIDTH", 719, "width 12", "__shfl_sync"),
    ("DIVERGENT_BARRIER", 719, "divergent __syncthreads", "__syncthreads"),
    ("BARRIER_WITH_ENDED", 719, "ended", "__syncthreads"),
    ("DEADLOCK", 719, "32 thread(s) wait in __syncthreads", "__syncthreads"),
    ("DEADLOCK", 719, "deadlock: no thread can run: 32 thread(s) wait in __shfl_xor_sync", ""),
    ("DIVERGENT_CLUSTER_BARRIER", 719, "divergent cluster_sync", "cluster_sync"),
    ("ACTIVE_MASK", 719, "__activemask is not allowed", "__activemask"),
    ("TRAP", 719, "thread (9,0,0)", "__trap"),
    ("OUT_OF_BOUNDS", 700, "index 64 out of bounds of 'float", "values[thread + 1"),
    ("OUT_OF_BOUNDS", 700, "thread (63,0,0)", "values[thread + 1"),
    ("CLUSTER_RANK", 700, "rank 1 of a cluster of 1", "cluster_load"),
    ("CLUSTER_GLOBAL", 700, "is not in shared memory", "cluster_load"),
]


@pytest.mark.parametrize(("bug", "code", "text", "where"), BUGS)
def test_errors(host: ModuleType, bug: str, code: int, text: str, where: str) -> None:
    name = "k" + "".join(word.capitalize() for word in bug.split("_"))
    for seed in SEEDS:
        host.set_seed(seed)
        assert host.misbehave(nan(64), getattr(host.Bug, bug)) == code
        error = host.last_error()
        assert text in error
        if where:
            lines = [line_of(where, f"case {name}:")]
            if bug.startswith("DIVERGENT"):  # there the message may start with the other branch
                lines.append(line_of("} else {", f"case {name}:") + 1)
            assert any(f"tests/simt/selftest.cu:{line}" in error for line in lines), error
        assert "selftest::(anonymous namespace)::misbehave(" in error
        assert f"seed {seed}, launch 1" in error
    # An error leaves nothing behind.
    out = nan(64)
    assert host.misbehave(out, host.Bug.NONE) == 0
    np.testing.assert_array_equal(out, np.arange(64))


@pytest.mark.parametrize("dynamic", [False, True])
def test_an_uninitialised_read_is_nan(host: ModuleType, dynamic: bool) -> None:
    for _ in range(2):  # also when an earlier block has written there
        out = np.zeros(32, np.float32)
        assert host.uninitialised_read(out, dynamic) == 0
        assert np.flatnonzero(np.isnan(out)).tolist() == [7]
        assert (np.delete(out, 7) == 1.0).all()


@pytest.mark.parametrize(
    ("how", "alignment"),
    [
        ("LOAD_VECTOR", 16),
        ("STORE_VECTOR", 16),
        ("FLOAT4", 16),
        ("FLOAT4_STORE", 16),
        ("LDG", 8),
        ("SCALAR", 4),
    ],
)
def test_alignment(host: ModuleType, how: str, alignment: int) -> None:
    # numpy aligns to 16 bytes at least.
    source = np.arange(64, dtype=np.uint8)
    access = getattr(host.Access, how)
    data = np.ones(4, np.float32).view(np.uint8)
    for offset in (0, alignment):
        out = np.zeros(64, np.uint8)
        source[offset : offset + 16] = data
        assert host.access(source, out, offset, access) == 0, host.last_error()
        assert out.any()
    # 8 is aligned for 8-byte elements only, 4 for 4-byte ones, 1 for none.
    for offset in {alignment // 2, 1}:
        out = np.zeros(64, np.uint8)
        assert host.access(source, out, offset, access) == 716
        assert not out.any()
        error = host.last_error()
        assert "misaligned" in error
        assert f"is no multiple of {alignment}" in error
        assert "thread (0,0,0)" in error
        address = (out if "STORE" in how else source).ctypes.data + offset
        assert f"address {address:#x}" in error


def test_a_dependent_kernel_has_to_wait(host: ModuleType) -> None:
    out = nan(32)
    assert host.dependent(out, 32) == 0
    assert (out == 1.0).all()
    for waiting in (0, 31):
        assert host.dependent(nan(32), waiting) == 719
        assert "thread ended without grid_dependency_wait()" in host.last_error()


KILO = 1024
# Grid, block, dynamic shared bytes, cluster, compute capability, CUDA's code, what the text names.
CONFIGURATIONS = [
    ((1, 1, 1), (1024, 1, 1), 0, 1, 90, 0, ""),
    ((1, 1, 1), (1025, 1, 1), 0, 1, 90, 9, "block (1025,1,1)"),
    ((1, 1, 1), (32, 33, 1), 0, 1, 90, 9, "block (32,33,1)"),
    ((1, 1, 1), (1, 1, 65), 0, 1, 90, 9, "block (1,1,65)"),
    ((1, 1, 1), (0, 1, 1), 0, 1, 90, 9, "block (0,1,1)"),
    ((0, 1, 1), (32, 1, 1), 0, 1, 90, 9, "grid (0,1,1)"),
    ((1, 65536, 1), (32, 1, 1), 0, 1, 90, 9, "grid (1,65536,1)"),
    ((1, 1, 1), (32, 1, 1), 227 * KILO, 1, 90, 0, ""),
    ((1, 1, 1), (32, 1, 1), 227 * KILO + 1, 1, 90, 1, "shared_bytes 232449: at most 232448"),
    ((1, 1, 1), (32, 1, 1), 163 * KILO, 1, 80, 0, ""),
    ((1, 1, 1), (32, 1, 1), 163 * KILO + 1, 1, 80, 1, "compute capability 80"),
    ((1, 1, 1), (32, 1, 1), 99 * KILO + 1, 1, 89, 1, "compute capability 89"),
    ((8, 1, 1), (32, 1, 1), 0, 8, 90, 0, ""),
    ((4, 1, 1), (32, 1, 1), 0, 4, 80, 912, "clusters need compute capability 90, this is 80"),
    ((16, 1, 1), (32, 1, 1), 0, 16, 90, 912, "cluster 16"),
    ((6, 1, 1), (32, 1, 1), 0, 4, 90, 9, "grid.x 6 is no multiple of cluster 4"),
]


@pytest.mark.parametrize(
    ("grid", "block", "shared_bytes", "cluster", "capability", "code", "text"), CONFIGURATIONS
)
def test_launch_configurations(
    host: ModuleType,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    shared_bytes: int,
    cluster: int,
    capability: int,
    code: int,
    text: str,
) -> None:
    host.set_compute_capability(capability)
    size = max(1, int(np.prod(grid) * np.prod(block)))
    out = np.full((size, 6), -1, np.int32)
    assert host.indices(out, grid, block, shared_bytes, cluster) == code, host.last_error()
    # A refused launch writes nothing; one that runs writes everything.
    assert (out == -1).all() if code else (out >= 0).all()
    assert text in host.last_error()


def test_many_barriers(host: ModuleType) -> None:
    """8 blocks of 1024 threads with 50 barriers: 409,600 switches, about 40 ms."""
    out = nan(1024)
    assert host.barriers(out, 8, 1024, 50) == 0
    assert (out == 50.0).all()


def test_launches_from_several_threads(host: ModuleType) -> None:
    with ThreadPoolExecutor(4) as pool:
        for out, expected in pool.map(lambda _: block_sum(host, 96), range(40)):
            np.testing.assert_array_equal(out, expected)


# ------------------------------------------------------------------------------- the build


def test_a_second_build_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    path = build.build_host()

    def run(command: object) -> None:
        raise AssertionError(command)

    monkeypatch.setattr(build, "_run", run)
    assert build.build_host() == path


def test_a_missing_source_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"no source .*csrc/absent\.cu"):
        build.build_torch_library("absent", ["csrc/absent.cu"])


def test_a_source_that_does_not_compile_shows_the_compilers_text(tmp_path: Path) -> None:
    source = tmp_path / "broken.cu"
    source.write_text('#include "common/simt.h"\n__global__ void kernel() { undeclared(); }\n')
    with pytest.raises(RuntimeError, match=r"broken\.cu:2.*undeclared"):
        build.build_torch_library("broken", [source])


# ------------------------------------------------------------------------------ other builds


def run_this_file(environment: dict[str, str], *arguments: str) -> str:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-s",
        "-p",
        "no:cacheprovider",
        *arguments,
    ]
    done = subprocess.run(
        [*command, __file__], cwd=build.REPO, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


NOT_NESTED = "-k=not nested"


def test_nested_portable_context_switch() -> None:
    """The ucontext switch, for machines other than x86-64, passes every test of this file."""
    environment = {**build.plain_environment(), "PYDDFAST_SIMT_UCONTEXT": "1"}
    assert " passed" in run_this_file(environment, NOT_NESTED)


def test_nested_sanitizers() -> None:
    """Under ASan and UBSan every test passes, and an overrun of an output is found."""
    environment = build.sanitizer_environment()
    assert " passed" in run_this_file(environment, NOT_NESTED)
    script = (
        "import numpy as np; from tests.simt import build; host = build.load_host();"
        "x, out = np.zeros(64, np.float32), np.zeros(32, np.float32);"  # out is too short
        "host.cluster_sum(x, out, 1, 64, 1, host.Bug(0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=build.REPO,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 77
    assert "AddressSanitizer" in done.stderr
    assert "selftest.cu" in done.stderr
