"""Run folders: refusals, resumption, damaged files."""

from __future__ import annotations

import json

import pytest
import torch

from pyddfast.train import RunFolder
from pyddfast.train import run as run_module


def test_creates_and_reopens(tmp_path):
    folder = RunFolder(tmp_path / "a" / "run", {"x": 1, "y": [1, 2], "z": (3,)})
    stored = json.loads((folder.path / "config.json").read_text())
    assert stored["config"] == {"x": 1, "y": [1, 2], "z": [3]}
    assert stored["environment"]["torch"] == torch.__version__
    folder.log({"step": 1, "a": 0.5})
    folder.log({"step": 2, "a": None})
    again = RunFolder(folder.path, {"z": [3], "x": 1, "y": [1, 2]})
    assert again.metrics() == [{"step": 1, "a": 0.5}, {"step": 2, "a": None}]
    again.keep_metrics(lambda row: row["step"] > 1)
    assert again.metrics() == [{"step": 2, "a": None}]


def test_tensors_round_trip_with_equal_bytes(tmp_path):
    folder = RunFolder(tmp_path, {})
    shared = torch.arange(6.0)
    tensors = {
        "b": shared,
        "a": shared,
        "strided": torch.arange(6).view(2, 3).T,
        "n": torch.ones(()),
    }
    folder.write_tensors("t.safetensors", tensors, {"step": 3})
    first = (tmp_path / "t.safetensors").read_bytes()
    got, state = folder.read_tensors("t.safetensors")
    assert state == {"step": 3}
    assert got.keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(got[name], value)
    folder.write_tensors("t.safetensors", dict(reversed(tensors.items())), {"step": 3})
    assert (tmp_path / "t.safetensors").read_bytes() == first
    assert folder.read_tensors("none.safetensors") is None


def test_refuses_what_is_not_its_run(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="not a folder"):
        RunFolder(tmp_path / "file", {})
    with pytest.raises(FileExistsError, match="holds no run"):
        RunFolder(tmp_path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    run = tmp_path / "run"
    RunFolder(run, {"lr": {"value": 0.1}, "seeds": [0]})
    with pytest.raises(FileExistsError, match="resume it"):
        RunFolder(run, {"lr": {"value": 0.1}, "seeds": [0]}, resume=False)
    with pytest.raises(ValueError, match=r"lr.value was 0.1, now 0.2; seeds was \[0\], now \[1\]"):
        RunFolder(run, {"lr": {"value": 0.2}, "seeds": [1]})


def test_leftovers_of_a_killed_write_are_no_obstacle(tmp_path):
    # What mkstemp leaves when the process dies before the rename, before config.json exists.
    (tmp_path / ".config.json.abc123").write_text("{")
    assert RunFolder(tmp_path, {"x": 1}, resume=False).config == {"x": 1}


def test_another_environment_warns(tmp_path, monkeypatch):
    RunFolder(tmp_path, {"x": 1})
    monkeypatch.setattr(run_module, "environment", lambda: {"torch": "0.0"})
    with pytest.warns(UserWarning, match=r"another environment.*torch was .* now '0.0'"):
        RunFolder(tmp_path, {"x": 1})


def test_a_cut_line_is_dropped_and_a_damaged_one_named(tmp_path):
    folder = RunFolder(tmp_path, {})
    folder.log({"step": 1})
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 2, "acc')
    assert RunFolder(tmp_path, {}).metrics() == [{"step": 1}]
    metrics.write_text('{"step": 1}\nrubbish\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2"):
        folder.metrics()


def test_damaged_files_are_named(tmp_path):
    folder = RunFolder(tmp_path, {})
    folder.write_tensors("t.safetensors", {"a": torch.zeros(100)}, {})
    content = (tmp_path / "t.safetensors").read_bytes()
    (tmp_path / "t.safetensors").write_bytes(content[:-7])
    with pytest.raises(ValueError, match=r"t.safetensors is damaged"):
        folder.read_tensors("t.safetensors")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not valid JSON"):
        RunFolder(tmp_path, {})
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="not the configuration of a run"):
        RunFolder(tmp_path, {})
