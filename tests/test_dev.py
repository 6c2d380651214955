"""The script `dev`: its errors come before any work and say what to install."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BASH = shutil.which("bash") or "/bin/bash"


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder with the script, and `bin` with almost nothing: a machine without tools."""
    shutil.copy(ROOT / "dev", tmp_path)
    (tmp_path / "bin").mkdir()
    for tool in ("dirname", "cat"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or "")
    return tmp_path


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def dev(bare: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BASH, str(bare / "dev"), *arguments],
        env={"PATH": str(bare / "bin"), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_compiler(bare: Path) -> None:
    done = dev(bare, "test")
    assert done.returncode == 1
    assert "no C++ compiler found" in done.stderr
    assert "apt-get install g++" in done.stderr
    assert not (bare / ".venv").exists()


def test_a_compiler_that_does_not_exist(bare: Path) -> None:
    done = dev(bare, "test", CXX="nothing++ -g")
    assert done.returncode == 1
    assert "CXX=nothing++ -g is not an executable" in done.stderr


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_no_python(bare: Path, compiler: str) -> None:
    executable(bare / "bin" / compiler, "#!/bin/sh\n")
    # An old Python: any check of its version fails.
    executable(bare / "bin" / "python3", "#!/bin/sh\nexit 1\n")
    done = dev(bare, "quickstart")
    assert done.returncode == 1
    assert "no Python >= 3.10 found" in done.stderr
    assert "apt-get install python3-venv" in done.stderr
    assert not (bare / ".venv").exists()


def test_an_unknown_command(bare: Path) -> None:
    done = dev(bare, "tests")
    assert done.returncode == 1
    assert "unknown command 'tests'" in done.stderr
    assert "quickstart" in done.stderr


@pytest.fixture
def installed(bare: Path) -> Path:
    """Its virtual environment was made before; the Python in it only tells what it is to do."""
    for tool in ("find", "sort", "xargs", "sha256sum"):
        (bare / "bin" / tool).symlink_to(shutil.which(tool) or "")
    executable(bare / "bin" / "g++", "#!/bin/sh\n")
    (bare / "csrc").mkdir()
    (bare / "pyddfast").mkdir()
    for file in ("pyproject.toml", "setup.py", "pyddfast/_version.py", "csrc/x"):
        (bare / file).touch()
    (bare / ".venv" / "bin").mkdir(parents=True)
    executable(bare / ".venv" / "bin" / "python", '#!/bin/sh\necho "python $*"\n')
    for file, text in {"made-in": str(bare), "torch": "torch==9", "calling_bin": "bin"}.items():
        (bare / ".venv" / file).write_text(text)
    return bare


def test_quiet_steps_say_what_they_do_and_that_they_take_minutes(installed: Path) -> None:
    bare = installed
    steps = [line for line in dev(bare, "docs").stdout.splitlines() if line]
    assert [line.split()[0] for line in steps] == ["==", "python", "==", "python", "python"]
    for said, done, words in ((steps[0], steps[1], "torch==9"), (steps[2], steps[3], "-e .[")):
        assert "minutes" in said
        assert words in done
        assert "-qq" in done
    (bare / "csrc" / "x").write_text("changed")
    steps = [line for line in dev(bare, "docs").stdout.splitlines() if line]
    assert "building the native sources (a minute or more)" in steps[0]
    assert "build_ext" in steps[1]


def test_a_release_has_every_architecture_and_no_spill(installed: Path) -> None:
    for tool in ("sed", "rm"):
        (installed / "bin" / tool).symlink_to(shutil.which(tool) or "")
    shutil.copy(ROOT / "setup.py", installed)
    (installed / "dist").mkdir()
    (installed / "dist" / "pyddfast-0-old.whl").touch()
    tells = '#!/bin/sh\necho "$TORCH_CUDA_ARCH_LIST $PYDDFAST_CUDA $*"\n'
    executable(installed / ".venv" / "bin" / "python", tells)
    done = dev(installed, "release", TORCH_CUDA_ARCH_LIST="9.0")
    assert done.returncode == 0, done.stderr
    steps = [line for line in done.stdout.splitlines() if line and not line.startswith("==")][-3:]
    assert all(step.startswith("8.0;8.6;8.9;9.0;10.0;12.0+PTX 1 ") for step in steps)
    assert "tools/kernel_report.py --shipped" in steps[0]
    assert "pip wheel" in steps[1]
    assert "tools/check_installed.py" in steps[2]
    assert not list((installed / "dist").iterdir())


def test_help(bare: Path) -> None:
    done = dev(bare)
    assert done.returncode == 0
    for command in ("quickstart", "test", "bench", "docs", "release"):
        assert f"\n  {command} " in done.stdout


def test_ci_runs_the_test_command_and_nothing_else() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    code = [line for line in lines if line and not line.startswith("#")]
    assert len(code) == 1
    assert code[0].startswith("exec ")
    assert code[0].endswith('/dev" test')
