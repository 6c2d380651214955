"""A run as a whole: its arguments, what an interruption leaves, and providers that fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import __main__ as command
from benchmarks import harness, run, schema
from benchmarks.harness import Case
from benchmarks.progress import Progress

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--rounds=0", "'0' is no whole number from 1 on"),
        ("--threads=-1", "'-1' is no whole number from 1 on"),
        ("--ops=", "'' has an empty name"),
        ("--end-to-end=", "'' has an empty name"),
        ("--providers=ours,", "'ours,' has an empty name"),
        ("--limit=nan", "'nan' is no number of seconds from 0 on"),
        ("--limit=-1", "'-1' is no number of seconds from 0 on"),
    ],
)
def test_arguments_that_mean_nothing(
    option: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.parse(["run", option])
    error = capsys.readouterr().err
    assert f"{option.partition('=')[0]}: {text}" in error


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--ops", "kd_loss", "--providers", "ours,mine"], "providers ['mine'] do none of the"),
        (["--ops", "kd_loss", "--out", "."], "--out . is a folder"),
        (["--ops", "kd_loss", "--out", "/dev/null/x.json"], "/dev/null"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_measured(
    arguments: list[str],
    text: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYDDFAST_STRICT", "1")
    monkeypatch.setattr(run, "copy_gb_s", lambda *_, **__: 1.0)
    monkeypatch.setattr(run, "measure", None)
    assert command.main(["run", "--quick", *arguments]) == 2
    assert text in capsys.readouterr().err


def soft_ce(progress: Progress, **options: object) -> dict[str, object]:
    """A run of two cases."""
    settings = {"op_names": ["soft_ce"], "providers": ["ours", "eager"], "quick": True, "rounds": 1}
    return run.run(CPU, **{**settings, **options}, progress=progress)  # type: ignore[arg-type]


def shapes(result: dict[str, object]) -> list[tuple[int, ...]]:
    return [tuple(row["shape"]) for row in result["results"]]  # type: ignore[attr-defined]


def test_an_interruption_loses_one_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, measured = tmp_path / "x.partial", []
    measure = run.measure

    def interrupted(case: Case, *arguments: object, **options: object) -> object:
        measured.append(case.shape)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return measure(case, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        soft_ce(Progress(path))
    left = json.loads(path.read_text())["result"]
    schema.validate(left)
    assert shapes(left) == [(256, 100), (256, 100)]
    with pytest.raises(ValueError, match=r"left by a run with other rounds, providers: delete it"):
        soft_ce(Progress(path), rounds=2, providers=["ours"])
    whole = soft_ce(Progress(path))
    schema.validate(whole)
    assert shapes(whole) == [(256, 100), (256, 100), (256, 10), (256, 10)]
    assert whole["results"][:2] == left["results"]  # type: ignore[index]
    assert measured == [(256, 100), (256, 10), (256, 10)]
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"x\.partial is not what a run has left"):
        soft_ce(Progress(path))


def test_what_does_not_begin_in_time_is_left(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "x.partial")
    assert shapes(soft_ce(progress, limit_s=0.0)) == []
    assert len(progress.left) == 2
    progress = Progress(tmp_path / "x.partial")
    assert len(shapes(soft_ce(progress))) == 4
    assert progress.left == []


def case_of(**functions: Callable[[Tensor], object]) -> Case:
    x = torch.tensor([3.0, 4.0])
    providers = {
        name: lambda inputs, f=function: lambda: f(inputs["x"])  # type: ignore[misc]
        for name, function in functions.items()
    }
    return Case("op", "forward", (2,), "float32", 8, lambda seed: {"x": x}, providers)


def test_a_peer_without_finite_values_is_left_out() -> None:
    left_out: dict[str, str] = {}
    case = case_of(ours=lambda x: x * 2, eager=lambda x: x / 0, off=lambda x: x * 2.5)
    kept, errors = run.available(case, CPU, None, left_out)
    assert list(kept.providers) == ["ours", "off"]
    assert errors == {"ours": 0.0, "off": 0.25}
    assert left_out == {"op forward 2 float32: eager": "ArithmeticError: its relative error is inf"}


@pytest.mark.parametrize("name", ["ours", "ours (one pass)"])
def test_ours_failing_ends_the_run(name: str) -> None:
    def fails(x: Tensor) -> None:
        raise RuntimeError("no kernel")

    case = case_of(**{name: fails, "eager": lambda x: x})
    with pytest.raises(RuntimeError, match=r"op forward 2 float32: ours.* failed"):
        run.available(case, CPU, None, {})


def test_a_peer_that_no_graph_can_hold_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(sets: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(harness, "captured", refuses)
    failed: dict[str, str] = {}
    assert harness.time_cuda({"eager": [lambda: 0]}, rounds=1, failed=failed) == {}
    assert failed["eager"].startswith("RuntimeError: operation not permitted")
    with pytest.raises(RuntimeError, match="not permitted"):
        harness.time_cuda({"ours": [lambda: 0]}, rounds=1, failed=failed)
