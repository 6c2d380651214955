"""What a time is: order of measurement, block sizes, median and spread."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import harness

ROOT = Path(__file__).resolve().parents[2]


class Clock:
    """A clock that only the steps advance."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def step(self, *seconds: float):
        """A step that takes these seconds in turn, the last one for ever."""
        left = list(seconds)

        def run() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


@pytest.mark.parametrize("n", [1, 2, 3, 8, 41])  # one sample, both parities, an odd run's count
def test_summary_is_the_median_and_quartiles(n: int) -> None:
    samples = np.random.default_rng(n).lognormal(size=n)
    timing = harness.summarize(list(samples))
    q1, median, q3 = np.percentile(samples, [25, 50, 75])
    assert timing.median_us == pytest.approx(median, rel=1e-12)
    assert timing.iqr_us == pytest.approx(q3 - q1, rel=1e-9, abs=1e-12)
    assert timing.samples == n


def test_an_empty_summary_is_refused() -> None:
    with pytest.raises(ValueError, match="samples_us is empty"):
        harness.summarize([])


def test_providers_take_turns_and_the_first_place_moves_on() -> None:
    order = harness.turns(["a", "b", "c"], 3)
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


def test_cpu_times_are_a_blocks_mean_over_enough_calls() -> None:
    clock = Clock()
    fast_calls = 0
    fast_step = clock.step(0.001)

    def fast() -> None:
        nonlocal fast_calls
        fast_calls += 1
        fast_step()

    timings = harness.time_cpu(
        {"fast": fast, "slow": clock.step(0.5)}, rounds=4, block_s=0.0095, clock=clock
    )
    assert timings["fast"].median_us == pytest.approx(1000)
    assert timings["slow"].median_us == pytest.approx(500_000)
    assert timings["fast"].samples == timings["slow"].samples == 4
    assert fast_calls == 3 + 1 + 4 * 10  # warm-up, the estimate, four blocks of ceil(9.5 ms / 1 ms)


def test_warm_up_is_not_measured() -> None:
    clock = Clock()
    # Three slow warm-up calls (a compilation, say), then 1 s each: blocks of one call.
    timing = harness.time_cpu({"x": clock.step(9, 9, 9, 1)}, rounds=3, block_s=0.5, clock=clock)[
        "x"
    ]
    assert timing.median_us == pytest.approx(1e6)
    assert timing.iqr_us == pytest.approx(0, abs=1e-6)


def test_the_result_is_the_median_of_the_blocks() -> None:
    clock = Clock()
    step = clock.step(1, 1, 1, 1, 2, 7, 3)  # after warm-up and estimate: 2, 7, 3 seconds
    timing = harness.time_cpu({"x": step}, rounds=3, block_s=0.5, clock=clock)["x"]
    assert timing.median_us == pytest.approx(3e6)
    assert timing.iqr_us == pytest.approx(2.5e6)  # quartiles 2.5 s and 5 s


@pytest.mark.parametrize(
    ("bytes_floor", "expected"),
    [
        (60 << 20, 4),  # as large as the cache: four sets are four times it
        (1 << 40, 2),  # far larger: two, so that no call finds its own inputs
        (7 << 20, 35),  # 240 / 7 rounded up
        (1000, 64),  # latency-bound: bounded
    ],
)
def test_input_sets_overflow_the_l2_cache(bytes_floor: int, expected: int) -> None:
    assert harness.input_sets(bytes_floor, l2_bytes=60 << 20) == expected


def test_a_run_needs_torch_and_the_library_alone() -> None:
    """A machine with a GPU may be without the packages that only reports and photos need."""
    script = """
import sys
extras = {"PIL", "scipy", "safetensors", "matplotlib", "jinja2", "tyro", "rich", "jsonschema"}
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in extras:
            raise ImportError(name)
sys.meta_path.insert(0, Missing())
from benchmarks import __main__, report, run, schema
from benchmarks.steps import STEPS
assert not extras & set(sys.modules)
print(len(STEPS))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr
