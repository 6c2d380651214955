"""The command that runs a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from pyddfast.cli.options import assignments
from pyddfast.cli.tables import new_table, note, print_table
from pyddfast.report import percent
from pyddfast.study import Store, Study, Workers, cost, prepare, read_study, run_jobs, shipped
from pyddfast.study.jobs import Plan
from pyddfast.study.page import write_results
from pyddfast.study.results import NOT_DONE
from pyddfast.study.runner import time_text

__all__ = ["study"]


def study(
    which: Annotated[str, tyro.conf.Positional] = "list",
    *,
    out: Path = Path("runs/studies"),
    scale: Literal["published", "full", "smoke"] = "published",
    root: Path | None = None,
    seeds: int | None = None,
    jobs: int = 1,
    cluster: bool = False,
    slurm: tuple[str, ...] = (),
    dry_run: bool = False,
    device: str | None = None,
) -> None:
    """Run a study of the paper, or one of your own, as jobs that are done once.

    Without a name, or with "list": the studies of the package.  The cost is printed first.  The
    same command again goes on where a stopped one was; several at once share the work.

    Args:
        which: Name of a study (table-3 ...), or a YAML file.
        out: Folder of the jobs, which all studies share, and of the reports.
        scale: published: the paper's data and settings; full: full Fashion-MNIST; smoke: its
            embedded subset, minutes on two cores.
        root: Folder of the data, where they are not embedded.
        seeds: Students of each cell; default the study's.
        jobs: Workers at once, processes of this machine or jobs of the cluster.
        cluster: Send the workers to Slurm (pyddfast[cluster]).
        slurm: Of the cluster's jobs, each NAME=VALUE: timeout_min=600 slurm_partition=gpu ...
        dry_run: Print jobs and cost, and end.
        device: cpu or cuda; default CUDA where there is one.
    """
    if which == "list":
        _list()
        return
    if slurm and not cluster:
        raise ValueError("--slurm is of the cluster's jobs; it needs --cluster")
    workers = Workers(jobs, "slurm" if cluster else "machine", assignments("slurm", slurm))
    chosen = read_study(which, scale=scale, root=root, seeds=seeds)
    try:
        made, store = prepare(chosen), Store(out)
    except ValueError as error:
        if scale == "published" and str(error).startswith("root is needed"):
            hint = "--scale smoke needs no data" if which in shipped() else "data.root of the file"
            raise ValueError(f"{error}; give --root ({hint})") from None
        raise
    estimates = cost(chosen, made, device)
    _show_cost(chosen, made, store, estimates, jobs)
    if dry_run:
        return
    run_jobs(made, store, workers, seconds=estimates, device=device)
    result = write_results(chosen, made, store)
    measured = result.measured
    table = new_table(f"{chosen.name}, test accuracy (%)", "set", *measured.columns)
    for row in measured.rows:
        cells = [measured.cells.get((row, column)) for column in measured.columns]
        table.add_row(row, *("" if c is None else percent(c.mean) for c in cells))
    if measured.columns:
        print_table(table)
    for line in result.claims:
        print(line)
    for failure in measured.failures:
        note(f"failed: {failure['job']}: {failure['error']}")
    print(f"\nreport: {result.report}")
    if measured.failures:
        raise RuntimeError(
            f"failed jobs: {len(measured.failures)}; the report has their tracebacks"
        )
    if left := [where for where, why in measured.missing.items() if why == NOT_DONE]:
        raise RuntimeError(f"cells not done: {len(left)}; the same command goes on")


def _list() -> None:
    table = new_table("Studies", "name", "title")
    for name in shipped():
        table.add_row(name, read_study(name).title)
    table.columns[1].justify = "left"
    print_table(table)


def _show_cost(
    chosen: Study, made: Plan, store: Store, estimates: dict[str, float], workers: int
) -> None:
    """Seconds by kind of job; what is done costs nothing."""
    table = new_table(f"Cost of {chosen.name}, {chosen.scale}", "jobs", "number", "done", "time")
    kinds: dict[str, list[str]] = {}
    for key, job in made.jobs.items():
        kinds.setdefault(job.kind, []).append(key)
    total = 0.0
    for kind, keys in kinds.items():
        done = [key for key in keys if store.done(made.jobs[key]) is not None]
        left = sum(estimates[key] for key in keys if key not in done)
        total += left
        table.add_row(kind, str(len(keys)), str(len(done)), time_text(left))
    table.add_row("all", str(len(made.jobs)), "", time_text(total))
    print_table(table)
    if workers > 1:
        note(f"{workers} workers share it")
