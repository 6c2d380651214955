"""Processes of the tests: Python and torchrun, and forked children that are ranks of one job.

A child is a fork of a parent that has imported everything and started no thread (a backward pass
starts some), so that it costs milliseconds and not an import of torch.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def run_python(*words: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """A script or module that must end well, with this repository's modules in its path."""
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=timeout,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def child(work: Callable[[], object], **environment: str) -> int:
    """Process id of a forked child; its exit code is 0, or 1 after an error."""
    pid = os.fork()
    if pid == 0:
        try:
            os.environ |= environment
            work()
            sys.stdout.flush()  # as an exit of Python's own would
            os._exit(0)
        except BaseException as error:
            print(environment.get("RANK", ""), repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return pid


def start(job: Callable[[Path], object], out: Path, world: int = 1) -> list[int]:
    """Process ids of the job, one a rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [
        child(
            lambda: job(out), WORLD_SIZE=str(world), RANK=str(rank), LOCAL_RANK=str(rank),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
        )
        for rank in range(world)
    ]  # fmt: skip


def wait(pids: list[int]) -> list[int]:
    """Exit codes; the number of a signal is negative."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
