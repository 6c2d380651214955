"""The command line: help, exit codes, one-line errors, and the commands on real files."""

from __future__ import annotations

import fcntl
import json
import platform
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pyddfast import __version__, data
from pyddfast.cli import COMMANDS, main, options
from pyddfast.cli import quickstart as quickstart_command
from pyddfast.cli import rded as rded_command
from pyddfast.data import DistilledSet
from pyddfast.methods import RDEDConfig
from pyddfast.quickstart import QuickstartConfig


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    # What is begun without being asked for is told before it.
    lines = [line for line in lines if not line.startswith("no --teacher is given")]
    assert len(lines) == 1, lines
    assert lines[0].startswith("pyddfast: error: ")
    return lines[0]


def test_help_answers_without_torch() -> None:
    code = (
        "import sys, pyddfast.cli\n"
        "calls = [], ['--help'], ['distill'], ['--version']\n"
        "codes = [pyddfast.cli.main(argv) for argv in calls]\n"
        "print(codes, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 0] False False"
    for command, (_, line) in COMMANDS.items():
        assert " ".join(command) in done.stdout
        assert line in done.stdout


@pytest.mark.parametrize(
    ("command", "defaults"),
    [
        (("quickstart",), vars(QuickstartConfig())),
        (("distill", "rded"), vars(RDEDConfig())),
        (("coreset", "random"), {"ipc": 10, "data": "fashion-mnist-mini"}),
        (("coreset", "el2n-easy"), {"repeats": 10, "epochs": 20, "model": "convnet-d3"}),
        (("train",), {"seeds": 3, "evaluations": 10, "teacher-epochs": 20}),
    ],
)
def test_each_command_shows_its_defaults(
    command: tuple[str, ...], defaults: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--help"]) == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name, value in defaults.items():
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        # A comma stands between a flag and its opposite.
        _, *found = re.split(f"--{name.replace('_', '-')}[ ,]", words, maxsplit=1)
        assert found, name
        rest = found[0]
        assert f"(default: {shown})" in rest, name
        assert rest.index(f"(default: {shown})") == rest.index("(default: "), name


def test_info_prints_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert __version__ in shown
    assert torch.__version__ in shown


def test_coreset_random_writes_a_set_and_refuses_to_overwrite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = ["coreset", "random", "--ipc", "2", "--seed", "7", "--out", str(out)]
    assert main([*arguments, "--png"]) == 0
    made = DistilledSet.load(out / "set")
    source = data.load("fashion-mnist-mini")
    assert torch.equal(made.images, source.images[made.meta["source_indices"]])
    assert made.class_counts.tolist() == [2] * 10
    assert len(list((out / "png").rglob("*.png"))) == 20
    capsys.readouterr()
    assert main(arguments) == 2
    assert str(out) in error_line(capsys)
    assert main([*arguments, "--resume"]) == 0
    capsys.readouterr()
    assert main([*arguments, "--resume", "--ipc", "3"]) == 2
    assert "ipc was 2, now 3" in error_line(capsys)


def test_rded_then_train_with_its_teacher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {
        split: data.load("fashion-mnist-mini", split=split).subset(range(400))
        for split in ("train", "test")
    }
    monkeypatch.setattr(options, "load", lambda name, *, split, **rest: small[split])
    rded, students = tmp_path / "rded", tmp_path / "students"
    teacher = ["--teacher-epochs", "1", "--teacher-option", "width=4", "norm=batch"]
    made = ["distill", "rded", "--ipc", "2", "--pool", "9", "--factor", "2", *teacher]
    assert main([*made, "--out", str(rded)]) == 0
    distilled = DistilledSet.load(rded / "set")
    assert (distilled.factor, distilled.kind, len(distilled)) == (2, "patches", 20)

    train = ["train", "--set", str(rded), "--regime", "sl", "--teacher", str(rded)]
    train += ["--model-option", "width=4", "--steps", "3", "--seeds", "2", "--seed", "5"]
    train += ["--evaluations", "1", "--recipe", "lr=0.002", "batch_size=8"]
    capsys.readouterr()
    assert main([*train, "--out", str(students)]) == 0
    shown = capsys.readouterr().out
    result = json.loads((students / "students" / "result.json").read_text())
    assert [s["seed"] for s in result["seeds"]] == [5, 6]
    assert result["config"]["recipe"]["lr"] == 0.002
    assert result["config"]["budget"]["total_steps"] == 3
    record = json.loads((rded / "teacher" / "teacher.json").read_text())
    assert result["config"]["teacher"]["accuracy"] == record["accuracy"]
    assert f"mean {100 * result['mean']:.2f} %" in shown

    assert main([*train, "--out", str(students), "--resume"]) == 0
    capsys.readouterr()
    assert main([*train[:-2], "--out", str(tmp_path / "x"), "--recipe", "speed=9"]) == 2
    assert "--recipe has no speed" in error_line(capsys)
    assert main([*train, "--out", str(tmp_path / "x"), "--epochs", "2"]) == 2
    assert "at most one" in error_line(capsys)
    weights = rded / "teacher" / "teacher.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert main([*train, "--out", str(tmp_path / "y")]) == 2
    assert "teacher.safetensors is damaged" in error_line(capsys)
    weights.write_bytes(b"torn")
    assert main([*train, "--out", str(tmp_path / "y")]) == 2
    assert "holds no teacher" in error_line(capsys)


def test_el2n_easy_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = data.load("fashion-mnist-mini")
    rows = [(whole.labels == label).nonzero()[:6, 0] for label in range(10)]
    small = whole.subset(torch.cat(rows))
    monkeypatch.setattr(options, "load", lambda name, **rest: small)
    arguments = ["coreset", "el2n-easy", "--ipc", "2", "--repeats", "2", "--epochs", "1"]
    assert main([*arguments, "--model-option", "width=4", "--out", str(tmp_path / "run")]) == 0
    made = DistilledSet.load(tmp_path / "run" / "set")
    assert made.meta["method"] == "el2n-easy"
    assert made.meta["scoring"]["models"] == 2
    assert (tmp_path / "run" / "el2n" / "net1" / "teacher.json").is_file()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model-option", "width=0"], "width must be at least 1"),
        (["--model", "convnet-d9"], "convnet-d9"),
        (["--seed", "-1"], "seed must lie in"),
        (["--device", "cuda:99"], "device 'cuda:99' cannot be used here"),
        (["--evaluations", "0"], "evaluations must be at least 1"),
        (["--recipe", "lr=abc"], "lr must be a finite number, got 'abc'"),
        (["--recipe", "lr=nan"], "lr must be a finite number, got 'nan'"),
        (["--regime", "sl", "--labels", "stored"], "no soft_labels"),
        (["--regime", "sl", "--teacher", "nowhere"], "nowhere/teacher.json is missing"),
        (["--regime", "sl", "--teacher-model", "convnet-d9"], "convnet-d9"),
        (["--regime", "sl", "--teacher-option", "width=0"], "width must be at least 1"),
        (["--regime", "sl", "--teacher-epochs", "0"], "epochs must be a positive int"),
    ],
)
def test_a_bad_option_of_train_leaves_the_folder_to_the_corrected_command(
    argv: list[str],
    message: str,
    tmp_path_factory: pytest.TempPathFactory,
    small_set: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path_factory.mktemp("runs") / "out"
    train = ["train", "--set", str(small_set), "--regime", "hl", "--steps", "2", "--seeds", "1"]
    assert main([*train, "--out", str(out), *argv]) == 2
    assert message in error_line(capsys)
    assert not out.exists()


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("set") / "run"
    assert main(["coreset", "random", "--ipc", "2", "--out", str(out)]) == 0
    return out


def test_a_bad_option_after_the_teacher_is_told_before_it(
    small_set: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*args: object, **keywords: object) -> None:
        raise AssertionError("a teacher was trained for a student that cannot be")

    monkeypatch.setattr(options, "train_teacher", never)
    train = ["train", "--set", str(small_set), "--regime", "sl", "--out", str(tmp_path / "out")]
    assert main([*train, "--model-option", "width=0"]) == 2
    assert "width must be at least 1" in error_line(capsys)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["coreset", "el2n-easy", "--repeats", "0"], "repeats must be at least 1"),
        (["coreset", "el2n-easy", "--model-option", "width=0"], "width must be at least 1"),
        (["coreset", "random", "--seed", "-1"], "seed must lie in"),
        (["distill", "rded", "--device", "cuda:99"], "device 'cuda:99'"),
        (["distill", "rded", "--teacher", "nowhere"], "nowhere/teacher.json is missing"),
    ],
)
def test_a_bad_option_of_a_set_leaves_no_folder(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*argv, "--ipc", "2", "--out", str(tmp_path / "out")]) == 2
    assert message in error_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_use_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with (out / ".lock").open("w") as file:
        file.write("process 7 on elsewhere")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)  # as another process would
        monkeypatch.setattr(rded_command, "rded", None)
        monkeypatch.setattr(options, "train_teacher", None)
        assert main(["distill", "rded", "--ipc", "2", "--out", str(out)]) == 2
    assert "run is in use by process 7 on elsewhere" in error_line(capsys)


def test_a_diverged_training_is_told(
    small_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", "--set", str(small_set), "--regime", "hl", "--steps", "4", "--seeds", "1"]
    train += ["--recipe", "lr=1e30", "--model-option", "width=4", "--out", str(tmp_path / "out")]
    assert main(train) == 0
    shown = capsys.readouterr()
    assert "diverged, so that these numbers mean nothing: seeds [0]" in shown.out
    assert "pyddfast: warning: the training loss of the students of seeds [0]" in shown.err


def test_a_warning_is_told_once(
    small_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learned = tmp_path / "learned"
    replace(DistilledSet.load(small_set / "set"), lr=0.02).save(learned)
    train = ["train", "--set", str(learned), "--regime", "hl", "--steps", "1", "--seeds", "1"]
    assert main([*train, "--model-option", "width=4", "--out", str(tmp_path / "out")]) == 0
    # Before the run folder is made and when the students begin.
    assert capsys.readouterr().err.count("the learning rate 0.02 was learned with the set") == 1


def test_a_resumed_set_of_other_data_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["coreset", "random", "--ipc", "2", "--out", str(tmp_path / "run"), "--resume"]
    assert main(command) == 0
    other = data.load("fashion-mnist-mini")
    other.images[0, 0, 0, 0] ^= 1
    monkeypatch.setattr(options, "load", lambda name, **rest: other)
    capsys.readouterr()
    assert main(command) == 2
    assert "dataset.sha256 was" in error_line(capsys)


def test_info_needs_no_extra() -> None:
    code = (
        "import sys\n"
        "for name in ('tyro', 'rich', 'safetensors', 'scipy', 'PIL', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "import pyddfast.cli\n"
        "print(pyddfast.cli.main(['info']), pyddfast.cli.main(['info', '--help']))\n"
        "sys.exit(pyddfast.cli.main(['info', '--fast']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("pyddfast ")
    assert "missing extras" in done.stdout
    assert done.stdout.endswith("0 0\n")
    assert done.returncode == 2
    assert "unrecognized arguments: --fast" in done.stderr


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["frobnicate"], "unknown command 'frobnicate'"),
        (["distill", "sre3l"], "unknown command 'distill sre3l'"),
        (["quickstart", "--resume"], "--resume needs --out"),
        (["quickstart", "--seeds", "1", "--out", "OUT"], "seeds"),
        (["quickstart", "--threads", "0"], "--threads"),
        (["coreset", "random", "--ipc", "601", "--out", "OUT"], "ipc = 601"),
        (["coreset", "random", "--data", "mnist", "--out", "OUT"], "mnist"),
        (["distill", "rded", "--ipc", "0", "--out", "OUT"], "ipc"),
        (["distill", "rded", "--factor", "6", "--out", "OUT"], "needs 360 images"),
        (["train", "--set", "OUT", "--regime", "hl", "--out", "OUT"], "is not a folder"),
    ],
)
def test_errors_are_one_line_and_nothing_is_left(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([str(out) if word == "OUT" else word for word in argv]) == 2
    assert message in error_line(capsys)
    assert not out.exists()


def test_arguments_that_do_not_parse_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--set", "x", "--regime", "soft", "--out", "y"]) == 2
    assert "soft" in capsys.readouterr().err
    assert main(["coreset", "random"]) == 2
    assert "--out" in capsys.readouterr().err


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYDDFAST_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown command"):
        main(["frobnicate"])


def test_ctrl_c_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def stop(*args: object, **keywords: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart_command, "run_quickstart", stop)
    assert main(["quickstart", "--out", str(tmp_path / "run")]) == 130
    assert "goes on where it was, by --resume where it has that option" in capsys.readouterr().err


def test_freed_memory_is_kept_on_glibc_unless_the_environment_decides() -> None:
    code = (
        "import os, pyddfast.cli as cli\n"
        "os.environ = {k: v for k, v in os.environ.items() if not k.startswith('MALLOC_')}\n"
        "print(cli.keep_freed_memory())\n"
        "os.environ['MALLOC_ARENA_MAX'] = '2'\n"
        "print(cli.keep_freed_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(platform.libc_ver()[0] == "glibc"), "False"]
