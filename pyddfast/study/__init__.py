"""Studies: a grid of sets and students as jobs that are done once, and one report of them."""

from __future__ import annotations

from pathlib import Path

from pyddfast.study.cost import seconds
from pyddfast.study.files import read_study, shipped
from pyddfast.study.jobs import Plan, plan
from pyddfast.study.page import StudyResult, write_results
from pyddfast.study.results import published_table
from pyddfast.study.runner import Store, Workers, run_jobs
from pyddfast.study.spec import Study
from pyddfast.study.steps import data_facts, images

__all__ = [
    "Plan",
    "Store",
    "Study",
    "StudyResult",
    "Workers",
    "cost",
    "plan",
    "prepare",
    "read_study",
    "run_jobs",
    "run_study",
    "shipped",
]


def prepare(study: Study) -> Plan:
    """The jobs of a study with the keys of its data; the data are read.

    Raises:
        FileNotFoundError: The data are not there.
        ValueError: They need a root, a method is unknown, or settings do not fit together.
    """
    plan(study)  # what is wrong with the study is said before the data are read
    if study.published is not None:
        published_table(study.published)
    data = study.data.facts()
    names = images(**data, split="train").class_names
    if study.grid_class is not None and study.grid_class not in names:
        raise ValueError(f"grid_class must be one of {', '.join(names)}; got {study.grid_class!r}")
    return plan(study, data_facts(data))


def cost(study: Study, made: Plan, device: str | None = None) -> dict[str, float]:
    """Estimated seconds of each job on this machine, by key; a lower bound.

    Args:
        study: Which.
        made: Its jobs, of :func:`prepare`.
        device: None: CUDA where there is one, else the CPU.
    """
    data = study.data.facts()
    train, test = (images(**data, split=split) for split in ("train", "test"))
    return seconds(made, study, train, test, device)


def run_study(
    study: Study,
    out: str | Path,
    *,
    workers: Workers | None = None,
    device: str | None = None,
    show: bool = True,
) -> StudyResult:
    """Do what is not done yet of a study, and write its report.

    Any number of runners may work in one folder at once, on one study or on several: each job is
    done once, by whoever takes it first.  A killed runner leaves nothing half done.

    Args:
        study: Which; of :func:`read_study`.
        out: Folder of the jobs; ``NAME-SCALE/report.html`` and ``results.json`` in it are written
            at the end.
        workers: How many, and where; default one, in this process.
        device: None: CUDA where there is one, else the CPU.
        show: Progress and remaining time on stderr.

    Returns:
        What was measured.  Jobs that failed are in it, with their tracebacks.

    Raises:
        FileNotFoundError: The data are not there.
        ValueError: The study does not fit together.
        ModuleNotFoundError: An extra is not installed.
    """
    made, store = prepare(study), Store(out)
    estimates = cost(study, made, device)
    run_jobs(made, store, workers, seconds=estimates, device=device, show=show)
    return write_results(study, made, store)
