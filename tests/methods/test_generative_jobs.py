"""D4M and Minimax in one process, in two, and killed: the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.processes import run_python

RUNNER = Path(__file__).with_name("generative_runner.py")
# What each method keeps of its first stage; D4M's JSON of it lies beside config.json.
KEPT = {"d4m": "prototypes/00000?.safetensors", "minimax": "phases/00000?.safetensors"}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("jobs")
    ended = run_python(str(RUNNER), str(root), timeout=600)
    return root, json.loads(ended.stdout.splitlines()[-1])


def contents(folder: Path, pattern: str):
    return {f.name: f.read_bytes() for f in sorted(folder.glob(pattern))}


@pytest.mark.parametrize("method", ["d4m", "minimax"])
def test_kills_and_ranks_change_no_byte(jobs, method):
    root, seen = jobs
    assert (seen[f"by_{method}-1"], seen[f"by_{method}-2"]) == ([0], [0, 0])
    told = seen[f"by_{method}-killed"]
    assert told["killed"].count(-9) >= 2
    assert told["last"] in ([], [0])
    whole = root / f"by_{method}-1"
    for other in ("2", "killed"):
        folder = root / f"by_{method}-{other}"
        tensors = "set/set.safetensors"
        assert (folder / tensors).read_bytes() == (whole / tensors).read_bytes()
        assert contents(folder, KEPT[method]) == contents(whole, KEPT[method]) != {}
        assert contents(folder, "*.json") == contents(whole, "*.json")
        assert not list(folder.rglob("*.part.safetensors"))
