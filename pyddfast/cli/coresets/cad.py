"""CAD-Prune, and CA2D on its ranking."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pyddfast.cli.coresets.options import CoresetOptions, highest
from pyddfast.cli.options import DataOptions, Flat, ModelOptions, TeacherOptions, plain
from pyddfast.cli.score import read_scores
from pyddfast.cli.sets import class_progress, make_set
from pyddfast.coresets import Scores, cad_scores
from pyddfast.coresets.cad_prune import check_cad
from pyddfast.coresets.selection import check_ipc
from pyddfast.data import DistilledSet, ImageDataset, ImageFolder
from pyddfast.methods.ca2d import ca2d
from pyddfast.methods.patch_crops import CandidateBackend, check_backend
from pyddfast.methods.rded import RDEDConfig, check_rded

__all__ = ["CADOptions", "coreset_cad_prune", "distill_ca2d"]


@dataclass(frozen=True)
class CADOptions:
    """The compute-matched run of CAD-Prune.

    Attributes:
        downstream_epochs: Epochs that the set will be trained for; the run sees as many images.
        ticks: Number of equally spaced snapshots, or epoch: one an epoch.
        cad_window: J, ticks a window; default all but W.
        cad_average: W, windows that are averaged.
        drop_last: Leave the window at the last tick out, as the formula does.
        signal: Whose deviation: p_y or el2n.
        mode: eval: a pass over the data a tick; train: the training's own logits.
    """

    downstream_epochs: int = 300
    ticks: int | Literal["epoch"] = 30
    cad_window: int | None = None
    cad_average: int = 2
    drop_last: bool = True
    signal: Literal["p_y", "el2n"] = "p_y"
    mode: Literal["train", "eval"] = "eval"


def coreset_cad_prune(
    to: Annotated[CoresetOptions, Flat],
    cad: Annotated[CADOptions, Flat] = CADOptions(),
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
) -> None:
    """Pick the images with the highest CAD: still learnt at the end of a compute-matched run.

    Args:
        to: The set.
        cad: The run.
        data: Which data.
        model: The network.
    """
    _check_cad(data.resident("train", to.image_size), to, cad)
    highest("cad-prune", to, data, model, lambda source: _cad(source, to, cad, model), plain(cad))


def distill_ca2d(
    to: Annotated[CoresetOptions, Flat],
    cad: Annotated[CADOptions, Flat] = CADOptions(),
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    teacher: Annotated[TeacherOptions, Flat] = TeacherOptions(),  # noqa: B008
    *,
    scores: Path | None = None,
    pool: int = 300,
    factor: int | None = None,
    num_crops: int = 5,
    batch_size: int | None = None,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    channels_last: bool = False,
    on_error: Literal["raise", "skip"] = "raise",
    workers: int | None = None,
    backend: CandidateBackend = "pil",
) -> None:
    """Distill a data set by CA2D: RDED among the images with the highest CAD of each class.

    Under torchrun the processes share the classes; it needs --scores and --teacher.

    Args:
        to: The set.
        cad: The compute-matched run that ranks the images.
        data: Which data.
        model: The network of that run.
        teacher: The observer of the crops.
        scores: Folder of a finished "pyddfast score" on the same data, whose CAD ranks the images
            instead of a run of its own; images are then decoded when needed, at their own sizes.
        pool: Images of each class that compete, by falling CAD.
        factor: Each image is factor x factor patches; default 1 below 128 pixels, 2 from there on.
        num_crops: Random crops of each image.
        batch_size: Crops in one forward pass of the teacher; default 500, on a CPU fewer.
        precision: Arithmetic of the teacher: fp32, or bf16 or fp16 by autocast.
        channels_last: Memory format in which the teacher runs.
        on_error: An image that cannot be decoded: raise stops with its name; skip leaves it out.
        workers: Threads that decode images; default all cores.
        backend: What decodes: pil, or dali for image files in their own sizes.
    """
    ranks = teacher.ranks()
    if ranks.world > 1 and scores is None:
        raise ValueError("under torchrun give the scores of a finished run: --scores")
    source: ImageDataset | ImageFolder
    if scores is None:
        source = resident = data.resident("train", to.image_size)
        _check_cad(resident, to, cad)

        def rank() -> Scores:
            return _cad(resident, to, cad, model)

    else:
        source = data.load("train")  # crops are cut at the images' own sizes
        known_cad = read_scores(scores, "cad", source)

        def rank() -> Scores:
            return known_cad

    config = RDEDConfig(
        ipc=to.ipc,
        factor=factor,
        image_size=to.image_size,
        num_crops=num_crops,
        pool=pool,
        seed=to.seed,
        batch_size=batch_size,
        precision=precision,
        channels_last=channels_last,
        on_error=on_error,
    )
    check_rded(source, config)
    check_backend(source, backend)
    teacher.check()

    def make() -> DistilledSet:
        values = rank()  # before the teacher, whose training is shorter
        side = to.image_size or (None if isinstance(source, ImageDataset) else 224)
        known = teacher.get(data, side, to.out, to.seed, to.device)
        with class_progress("CA2D", source.num_classes, ranks) as show:
            return ca2d(
                source,
                known.model,
                values,
                config,
                out=to.out / "crops",
                workers=workers,
                backend=backend,
                on_progress=show,
            )

    facts = {
        "task": "distill ca2d",
        "scores": None if scores is None else str(scores),
        **plain(config),
        **to.facts(),
        **plain(cad),
        **plain(data),
        **plain(model),
        **plain(teacher),
    }
    del facts["on_error"]  # as for RDED
    make_set(to.out, facts, source, to.ipc, make, resume=to.resume, png=to.png, ranks=ranks)


def _check_cad(source: ImageDataset, to: CoresetOptions, cad: CADOptions) -> None:
    check_ipc(to.ipc, source.class_counts.tolist())
    check_cad(source, ipc=to.ipc, **plain(cad))


def _cad(source: ImageDataset, to: CoresetOptions, cad: CADOptions, model: ModelOptions) -> Scores:
    return cad_scores(
        source,
        model.spec(),
        ipc=to.ipc,
        **plain(cad),
        seed=to.seed,
        device=to.device,
        out=to.out / "cad",
    )
