"""The command of RDED."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pyddfast.cli.options import DataOptions, Flat, TeacherOptions, plain
from pyddfast.cli.sets import class_progress, make_set
from pyddfast.data import DistilledSet, ImageDataset
from pyddfast.methods.patch_crops import CandidateBackend, check_backend
from pyddfast.methods.rded import RDEDConfig, check_rded, rded

__all__ = ["distill_rded"]


def distill_rded(
    config: Annotated[RDEDConfig, Flat] = RDEDConfig(),  # noqa: B008
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    teacher: Annotated[TeacherOptions, Flat] = TeacherOptions(),  # noqa: B008
    *,
    out: Path,
    resume: bool = False,
    png: bool = False,
    workers: int | None = None,
    backend: CandidateBackend = "pil",
    device: str | None = None,
) -> None:
    """Distill a data set by RDED: the crops that a teacher is surest of, tiled to images.

    Under torchrun the processes share the classes.

    Args:
        config: Settings of RDED.
        data: Which data.
        teacher: The observer.
        out: Run folder; the set goes to OUT/set, each finished class to OUT/crops/classes.
        resume: Go on with the stopped run in OUT.
        png: Write every image to OUT/png as well.
        workers: Threads that decode images; default all cores.
        backend: What decodes: pil, or dali for image files in their own sizes.
        device: cpu or cuda; default CUDA where there is one.
    """
    source = data.load("train")
    check_rded(source, config)
    check_backend(source, backend)
    ranks = teacher.ranks()

    def make() -> DistilledSet:
        side = config.image_size or (None if isinstance(source, ImageDataset) else 224)
        known = teacher.get(data, side, out, config.seed, device)
        with class_progress("RDED", source.num_classes, ranks) as show:
            return rded(
                source,
                known.model,
                config,
                out=out / "crops",
                workers=workers,
                backend=backend,
                on_progress=show,
            )

    facts = {"task": "distill rded", **plain(config), **plain(data), **plain(teacher)}
    del facts["on_error"]  # a stopped run may go on without the file that stopped it
    make_set(out, facts, source, config.ipc, make, resume=resume, png=png, ranks=ranks)
