"""One run of one script, up to a number of steps: ``python -m benchmarks.dropin.child JOB``."""

from __future__ import annotations

import json
import random
import resource
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.dropin import stubs


class Finished(BaseException):
    """Ends the script after the last step; scripts do not catch it."""


def main(job_path: str) -> None:
    """Run a job: a JSON file with `script`, `arguments`, `dtype`, `steps`, `threads`, `out`.

    Every loss on which ``backward`` is called and the processor time of every step of Adam go to
    `out`, the images after the last step to `out` + ``.npy``.  `steps` null runs the script to its
    end; `small` is that of ``stubs.install``, `stubs` names further functions of ``stubs.py``.
    """
    job = json.loads(Path(job_path).read_text())
    torch.set_num_threads(job["threads"])
    stubs.install(getattr(torch, job["dtype"]), small=job.get("small", True))
    for name in job.get("stubs", ()):
        getattr(stubs, name)()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the generator that the scripts use
    torch.manual_seed(0)

    losses: list[float] = []
    ends: list[float] = []
    backward, step = torch.Tensor.backward, torch.optim.Adam.step

    def recorded_backward(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        losses.append(tensor.item())
        backward(tensor, *args, **kwargs)

    def recorded_step(self: torch.optim.Adam, *args: Any, **kwargs: Any) -> Any:
        result = step(self, *args, **kwargs)
        ends.append(time.process_time())
        if len(ends) == job["steps"]:
            np.save(job["out"] + ".npy", self.param_groups[0]["params"][0].detach().numpy())
            raise Finished
        return result

    patched: Any = torch
    patched.Tensor.backward = recorded_backward
    patched.optim.Adam.step = recorded_step
    script = Path(job["script"])
    sys.argv = [str(script), *job["arguments"]]
    sys.path.insert(0, str(script.parent))
    try:
        runpy.run_path(str(script), run_name="__main__")
    except Finished:
        pass
    else:
        if job["steps"] is not None:
            raise RuntimeError(f"{script} ended after {len(ends)} of {job['steps']} steps")
    _record(job["out"], losses, ends)


def _record(out: str, losses: list[float], ends: list[float]) -> None:
    record = {
        "losses": losses,
        "step_seconds": np.diff(ends).tolist(),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    Path(out).write_text(json.dumps(record))


if __name__ == "__main__":
    main(sys.argv[1])
