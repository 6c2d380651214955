"""Doing the jobs of a study: each once, whoever does it, whatever is killed.

Every worker walks over all jobs and takes one whose needs are done and whose folder nobody has
locked.  So any number of workers, of one runner or of several, on one machine or on many that share
the folder, divide the work among them, and none has to know of another.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import torch

from pyddfast._extras import require
from pyddfast.data.atomic import remove_leftovers, write_bytes
from pyddfast.data.lock import lock_folder
from pyddfast.data.stored import read_json
from pyddfast.report.tables import percent
from pyddfast.study.jobs import Job, Plan
from pyddfast.study.steps import STEPS, Step
from pyddfast.train import environment
from pyddfast.train.distributed import resolve_device

__all__ = ["Store", "Workers", "run_jobs", "time_text"]

DONE, FAILED, JOB = "done.json", "failed.json", "job.json"
_KEYS = {DONE: {"result", "seconds", "environment"}, FAILED: {"run", "error", "traceback"}}
# Between two looks for a job that another worker has finished.
_POLL_SECONDS = 2.0


class Store:
    """The folder of all jobs.

    Args:
        path: ``jobs`` in it has a folder a job.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{path} is not a folder; give one for the jobs")

    def folder(self, job: Job) -> Path:
        """Where a job works."""
        return self.path / "jobs" / job.key

    def done(self, job: Job) -> dict[str, Any] | None:
        """What a finished job left: result, seconds, environment; None where it is not finished."""
        return self._read(job, DONE)

    def failed(self, job: Job) -> dict[str, Any] | None:
        """What the last attempt ended with; None where there is none, or a later one ended well."""
        return None if self.done(job) else self._read(job, FAILED)

    def _read(self, job: Job, name: str) -> dict[str, Any] | None:
        file = self.folder(job) / name
        try:
            found: dict[str, Any] = read_json(file)
            if not isinstance(found, dict) or not _KEYS[name] <= found.keys():
                raise ValueError(f"{file} must have {', '.join(sorted(_KEYS[name]))}")
        except FileNotFoundError:
            return None
        except ValueError as error:  # of a disk that was full, or a hand
            warnings.warn(f"{error}; the job is done again", stacklevel=4)
            return None
        return found

    def run(self, job: Job, run: str, device: str | None) -> bool:
        """Do a job, unless it is done or another process is at it.

        Args:
            job: Whose needs are done.
            run: The runner; a job that failed is not tried again by the same one.
            device: Where.

        Returns:
            Whether it was done now or tried now; False where another process is at it.
        """
        folder = self.folder(job)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = lock_folder(folder)
        except BlockingIOError:
            return False
        try:
            if self.done(job) is not None:
                return True
            remove_leftovers(folder)
            _write(folder / JOB, {**job.to_dict(), "shown": job.shown})
            needs = {name: self.folder(need) for name, need in job.needs.items()}
            began = time.perf_counter()
            result = STEPS[job.kind](Step(job.settings, needs, folder, device))
            seconds = time.perf_counter() - began
            # Last: this file says that the job is done.
            _write(
                folder / DONE,
                {
                    "result": result,
                    "seconds": round(seconds, 3),
                    "finished": _now(),
                    "environment": _machine(device),
                },
            )
        except Exception as error:
            _write(
                folder / FAILED,
                {
                    "run": run,
                    "error": f"{type(error).__name__}: {error}",
                    "traceback": traceback.format_exc(),
                    "at": _now(),
                },
            )
        finally:
            del lock
        return True


@dataclass(frozen=True)
class Workers:
    """Who does the jobs.

    Attributes:
        count: Workers at once.
        where: processes of this machine (joblib), or jobs of a Slurm cluster (submitit).
        slurm: Parameters of submitit's executor, e.g. ``{"slurm_partition": "gpu"}``.
        executor: submitit's; default Slurm, ``"local"`` runs on this machine, as tests do.
    """

    count: int = 1
    where: Literal["machine", "slurm"] = "machine"
    slurm: Mapping[str, Any] | None = None
    executor: str | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"jobs must be at least 1, got {self.count}")


def run_jobs(
    plan: Plan,
    store: Store,
    workers: Workers | None = None,
    *,
    seconds: Mapping[str, float] | None = None,
    device: str | None = None,
    show: bool = True,
) -> None:
    """Do every job of a plan that is not done.

    A job that fails is recorded with its traceback, those that need it are left out, and the rest
    goes on.  Killed and called again, the work goes on where it was.

    Args:
        plan: Which jobs.
        store: Where.
        workers: How many, and where; default one, in this process.
        seconds: Estimates by key, for the remaining time.
        device: None: CUDA where there is one, else the CPU.
        show: A line a finished job on stderr.
    """
    workers = workers or Workers()
    run = uuid.uuid4().hex
    jobs = list(plan.jobs.values())
    estimates = dict(seconds or {})
    call = (jobs, store, run, estimates, workers.count, device, show)
    if workers.where == "slurm":
        submitit = require("submitit", "cluster")
        executor = submitit.AutoExecutor(store.path / "slurm", cluster=workers.executor or "slurm")
        executor.update_parameters(**(workers.slurm or {}))
        with executor.batch():
            handles = [executor.submit(_work, *call) for _ in range(workers.count)]
        if show:
            print(f"the workers' own lines: {store.path / 'slurm'}", file=sys.stderr, flush=True)
        # All are waited for: what a lost one leaves, the others do, or the next call.
        lost = [error for handle in handles if (error := handle.exception()) is not None]
        if lost:
            warnings.warn(
                f"{len(lost)} of {len(handles)} workers were lost: {lost[0]}", stacklevel=2
            )
    elif workers.count == 1:
        _work(*call)
    else:
        joblib = require("joblib", "methods")
        # Each worker gets its share of the cores, so that they do not wait for one another.
        threads = max(1, (os.cpu_count() or 1) // workers.count)
        joblib.Parallel(n_jobs=workers.count, batch_size=1)(
            joblib.delayed(_work)(*call, threads) for _ in range(workers.count)
        )


def _work(
    jobs: list[Job],
    store: Store,
    run: str,
    estimates: Mapping[str, float],
    workers: int,
    device: str | None,
    show: bool,
    threads: int | None = None,
) -> None:
    """Do jobs until there is none left that this worker could do."""
    parent = os.getppid() if threads is not None else None
    if threads is not None:
        torch.set_num_threads(threads)
    told = _Teller(jobs, store, estimates, workers) if show else None
    done: set[str] = set()
    failed: set[str] = set()
    while True:
        worked = waiting = False
        for job in jobs:
            if job.key in done or job.key in failed:
                continue
            if any(need.key in failed for need in job.needs.values()):
                failed.add(job.key)
                continue
            if store.done(job) is not None:
                done.add(job.key)
                continue
            last = store.failed(job)
            if last is not None and last["run"] == run:
                failed.add(job.key)
                continue
            if any(need.key not in done for need in job.needs.values()):
                waiting = True
                continue
            if parent is not None and os.getppid() != parent:
                return  # the runner was killed: nobody waits for this worker
            if not store.run(job, run, device):
                waiting = True
                continue
            worked = True
            (done if store.done(job) is not None else failed).add(job.key)
            if told is not None:
                told.say(job)
        if not worked:
            if not waiting:
                return
            time.sleep(_POLL_SECONDS)


class _Teller:
    """A line a finished job, with the remaining time."""

    def __init__(
        self, jobs: list[Job], store: Store, estimates: Mapping[str, float], workers: int
    ) -> None:
        self.jobs, self.store, self.estimates, self.workers = jobs, store, estimates, workers
        self.known: dict[str, float] = {}

    def say(self, job: Job) -> None:
        for other in self.jobs:
            if other.key not in self.known and (found := self.store.done(other)) is not None:
                self.known[other.key] = float(found["seconds"])
        measured = sum(self.known.values())
        expected = sum(self.estimates.get(key, 0.0) for key in self.known)
        # What was done so far tells how far off the estimates are.
        factor = measured / expected if expected else 1.0
        left = sum(v for key, v in self.estimates.items() if key not in self.known)
        failure = self.store.failed(job)
        if failure is not None:
            said = f"FAILED: {failure['error']}"
        else:
            result = (self.store.done(job) or {})["result"]
            accuracy = f"{percent(result['accuracy'])} %, " if "accuracy" in result else ""
            said = f"{accuracy}{self.known[job.key]:.0f} s"
        print(
            f"[{len(self.known)}/{len(self.jobs)}] {job.shown}: {said}; "
            f"about {time_text(left * factor / self.workers)} left",
            file=sys.stderr,
            flush=True,
        )


def time_text(seconds: float) -> str:
    """Seconds, minutes, hours or days, whichever says it shortest."""
    for unit, size, most in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 48 * 3600)):
        if seconds < most:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def _write(file: Path, value: Any) -> None:
    write_bytes(file, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def _machine(device: str | None) -> dict[str, Any]:
    """Versions and hardware that a job was done with."""
    target = resolve_device(device)
    gpu = {"gpu": torch.cuda.get_device_name(target)} if target.type == "cuda" else {}
    return {**environment(), **gpu}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
