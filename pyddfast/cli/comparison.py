"""The command that compares sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pyddfast.cli.options import Flat, ModelOptions, WhitenableData, load_teacher
from pyddfast.cli.sets import load_set
from pyddfast.cli.tables import show_results
from pyddfast.data import DistilledSet
from pyddfast.report import ComparisonConfig, compare_sets

__all__ = ["compare"]


def compare(
    config: Annotated[ComparisonConfig, Flat] = ComparisonConfig(),  # noqa: B008
    data: Annotated[WhitenableData, Flat] = WhitenableData(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    *,
    sets: tuple[Path, ...],
    names: tuple[str, ...] = (),
    teacher: Path | None = None,
    out: Path,
    resume: bool = False,
    device: str | None = None,
) -> None:
    """Train students on several sets, and say which differences are more than chance.

    Every set in every regime, measured on the test split of the data: a table, a figure and the
    judged differences in OUT/report.html and OUT/results.json.

    Args:
        config: Regimes, seeds and length.
        data: Whose test split measures the students.
        model: The student.
        sets: Folders of sets or of the runs that made them, of the same classes and images a class.
        names: Their names in the tables; default the names of the folders.
        teacher: Folder of the teacher of sl and sl-kd, or of a run that trained one.
        out: Run folder.
        resume: Go on with the stopped run in OUT.
        device: cpu or cuda; default CUDA where there is one.
    """
    loaded = _named(sets, names)
    shapes = {one.images.shape[-1] for one in loaded.values()}
    test_set = data.resident("test", max(shapes) if data.data == "folder" else None)
    known = None if teacher is None else load_teacher(teacher, test_set, device)
    measured = compare_sets(
        loaded,
        model.spec(),
        config,
        test_set=test_set,
        teacher=None if known is None else known.model,
        teacher_info=None if known is None else {"accuracy": known.record["accuracy"]},
        out=out,
        resume=resume,
        device=device,
    )
    show_results(measured.results)
    print(f"\nreport: {measured.report}")


def _named(folders: tuple[Path, ...], names: tuple[str, ...]) -> dict[str, DistilledSet]:
    """The sets by name."""
    if names and len(names) != len(folders):
        raise ValueError(f"--names has {len(names)} names for {len(folders)} sets")
    # A run keeps its set in RUN/set: the run's name says more.
    chosen = names or tuple((f.parent if f.name == "set" else f).resolve().name for f in folders)
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"sets need different names, got {', '.join(chosen)}: give --names")
    return {name: load_set(folder) for name, folder in zip(chosen, folders, strict=True)}
