"""Run folders: refusals, resumption, damaged files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import subprocess
import sys

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
    with pytest.raises(ValueError, match="lam must be finite, got nan"):
        RunFolder(tmp_path / "new", {"lam": float("nan")})
    assert not (tmp_path / "new").exists()
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


OTHER = """
import sys
from pyddfast.train import RunFolder
with RunFolder(sys.argv[1], {"x": 1}) as folder:
    print("open", flush=True)
    sys.stdin.readline()
"""


def other_process(path):
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "open\n", process.communicate()
    return process


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path):
    path = tmp_path / "run"
    first = other_process(path)
    with pytest.raises(BlockingIOError, match=rf"run is in use by process {first.pid} on "):
        RunFolder(path, {"x": 1})
    first.communicate("\n", timeout=60)
    assert first.returncode == 0
    assert sorted(p.name for p in path.iterdir()) == ["config.json"]
    # The kernel releases the lock of a killed process; its file stays and is taken over.
    second = other_process(path)
    second.kill()
    second.communicate(timeout=60)
    assert (path / ".lock").exists()
    folder = RunFolder(path, {"x": 1})
    again = RunFolder(path, {"x": 1})  # within a process a folder may be opened twice
    folder.close()
    with (path / ".lock").open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    again.close()
    assert not (path / ".lock").exists()


def test_a_process_of_the_same_job_needs_no_lock(tmp_path):
    first = other_process(tmp_path / "run")
    shared = RunFolder(tmp_path / "run", {"x": 1}, shared=True)
    shared.write_json("part.json", 1)
    first.communicate("\n", timeout=60)
    assert first.returncode == 0


def test_a_failed_start_gives_the_folder_back(tmp_path):
    def fail(path, error, work=lambda folder: None):
        with pytest.raises(type(error)), RunFolder(path, {"x": 1}) as folder:  # noqa: PT012
            work(folder)
            raise error

    fail(tmp_path / "a" / "run", ValueError())
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").mkdir()
    fail(tmp_path / "mine", ValueError())
    assert list((tmp_path / "mine").iterdir()) == []
    # Ctrl-C is no failure, and what was written stays.
    fail(tmp_path / "stopped", KeyboardInterrupt())
    assert (tmp_path / "stopped" / "config.json").exists()
    fail(tmp_path / "logged", ValueError(), lambda folder: folder.log({"step": 1}))
    assert RunFolder(tmp_path / "logged", {"x": 1}).metrics() == [{"step": 1}]
    # Nor is an earlier run's folder touched.
    fail(tmp_path / "stopped", ValueError())
    assert (tmp_path / "stopped" / "config.json").exists()


def test_what_kills_left_is_removed_and_nothing_else(tmp_path):
    RunFolder(tmp_path, {"x": 1})
    others = [".gitignore", ".config.json.old_copy", ".cache.template", "a.12345678.partial"]
    for name in others:
        (tmp_path / name).write_text("mine")
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from pyddfast.data import new_folder, write_bytes\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "if sys.argv[2] == 'file':\n"
        "    write_bytes(Path(sys.argv[1], 'checkpoint.safetensors'), b'half')\n"
        "with new_folder(Path(sys.argv[1], 'set')) as new:\n"
        "    (new / 'set.json').write_text('half')\n"
    )
    for kind in ("file", "folder"):
        killed = subprocess.run([sys.executable, "-c", code, str(tmp_path), kind], check=False)
        assert killed.returncode == -9
    names = {p.name for p in tmp_path.iterdir()}
    assert len(names - {"config.json", *others}) == 2
    RunFolder(tmp_path, {"x": 1})
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", *others}


def test_every_flipped_bit_of_a_tensor_file_is_noticed(tmp_path):
    folder = RunFolder(tmp_path, {})
    folder.write_tensors("t.safetensors", {"a": torch.arange(3.0), "n": torch.ones(())}, {"s": 1.5})
    file = tmp_path / "t.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"\1")
    with pytest.raises(ValueError, match=r"t.safetensors is damaged: its SHA-256"):
        folder.read_tensors("t.safetensors")
    unseen = []
    for position in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            file.write_bytes(flipped)
            with contextlib.suppress(ValueError):
                unseen.append((position, *folder.read_tensors("t.safetensors")))
    # Spaces that pad the header may become other white space; what is read is the same.
    for position, tensors, state in unseen:
        assert content[position : position + 1] == b" "
        assert torch.equal(tensors["a"], torch.arange(3.0))
        assert (tensors["n"].item(), state) == (1, {"s": 1.5})


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'{"step": 1}\n[1]\n', 2),
        (b"5\n", 1),
        (b'{"step": 1}\n{"a": "\xff"}\n', 2),  # not UTF-8
        (b"[" * 100_000 + b"\n", 1),  # too deep for a parser
        (b'{"step": 1}\n\n', 2),
    ],
)
def test_damaged_rows_are_named(tmp_path, content, line):
    folder = RunFolder(tmp_path, {})
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=rf"metrics.jsonl, line {line},"):
        folder.metrics()


@pytest.mark.parametrize("content", [b"\xff{}", b"[" * 100_000, b"{"])
def test_damaged_json_is_named(tmp_path, content):
    folder = RunFolder(tmp_path, {})
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.json is not valid JSON"):
        folder.read_json("a.json")


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path, {})

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    writes = {
        "a.json": lambda: folder.write_json("a.json", 1),
        "a.safetensors": lambda: folder.write_tensors("a.safetensors", {}),
        "metrics.jsonl": lambda: folder.log({}),
    }
    for name, write in writes.items():
        with pytest.raises(OSError, match=f"No space left on device: '.*{name}'"):
            write()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == [".lock"]


def test_a_missing_extra_is_named_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ModuleNotFoundError, match=r"pyddfast\[methods\]"):
        RunFolder(tmp_path / "run", {})
    assert not (tmp_path / "run").exists()
