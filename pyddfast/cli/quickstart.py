"""The quickstart's command."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import torch

from pyddfast.cli.options import Flat
from pyddfast.cli.tables import note, show_results
from pyddfast.quickstart import QuickstartConfig
from pyddfast.quickstart import quickstart as run_quickstart
from pyddfast.report import percent

__all__ = ["quickstart"]


def quickstart(
    config: Annotated[QuickstartConfig, Flat] = QuickstartConfig(),  # noqa: B008
    *,
    out: Path | None = None,
    resume: bool = False,
    device: str | None = None,
    threads: int | None = None,
) -> None:
    """Train a teacher, make five small sets, train students in three label regimes, report.

    Runs on the embedded subset of Fashion-MNIST; no download, no GPU needed.

    Args:
        config: Settings.
        out: Run folder; default runs/quickstart-DATE-TIME.
        resume: Go on with the stopped run in OUT.
        device: cpu or cuda; default CUDA where there is one.
        threads: CPU threads; default all cores.  Equal numbers need equal threads.
    """
    if resume and out is None:
        raise ValueError("--resume needs --out: the folder of the run to go on with")
    if threads is not None:
        if threads < 1:
            raise ValueError(f"--threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    folder = out or Path("runs") / f"quickstart-{datetime.now():%Y%m%d-%H%M%S}"
    note(f"run folder {folder}; if it is stopped: pyddfast quickstart --out {folder} --resume")
    result = run_quickstart(folder, config, resume=resume, device=device)
    show_results(result.results)
    print(f"\nThe teacher has {percent(result.teacher_accuracy)} %.")
    print(f"{result.seconds:.0f} s. Report: {result.report}")
