"""The commands of gradient and distribution matching: DC, DSA and DM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pyddfast.cli.options import Flat, ModelOptions, WhitenableData, plain
from pyddfast.cli.sets import make_set
from pyddfast.data import DistilledSet, ImageDataset, ImageFolder
from pyddfast.methods import DCConfig, DMConfig, DSAMatchingConfig, Job, dc, dm, dsa
from pyddfast.methods.small_scale import MatchingConfig
from pyddfast.train import progress
from pyddfast.train.distributed import join_ranks

__all__ = ["distill_dc", "distill_dm", "distill_dsa", "refuse_whitened_png", "run_matching"]

_Source = TypeVar("_Source", ImageDataset, ImageDataset | ImageFolder)


def distill_dc(
    config: Annotated[DCConfig, Flat] = DCConfig(),  # noqa: B008
    data: Annotated[WhitenableData, Flat] = WhitenableData(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    *,
    out: Path,
    image_size: int | None = None,
    resume: bool = False,
    png: bool = False,
    device: str | None = None,
) -> None:
    """Synthesise images by DC: a network's gradients on them are those on the data.

    Under torchrun the processes divide the classes.

    Args:
        config: Settings of DC.
        data: Which data.
        model: The networks that gradients are taken of.
        out: Run folder; the set goes to OUT/set.
        image_size: Side in pixels that images of a folder are resized and cut to.
        resume: Go on with the stopped run in OUT.
        png: Write every image to OUT/png as well.
        device: cpu or cuda; default CUDA where there is one.
    """
    _distill(dc, config, data, model, out, image_size, resume, png, device)


def distill_dsa(
    config: Annotated[DSAMatchingConfig, Flat] = DSAMatchingConfig(),  # noqa: B008
    data: Annotated[WhitenableData, Flat] = WhitenableData(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    *,
    out: Path,
    image_size: int | None = None,
    resume: bool = False,
    png: bool = False,
    device: str | None = None,
) -> None:
    """Synthesise images by DSA: DC with the same augmentation on both sides.

    Under torchrun the processes divide the classes.

    Args:
        config: Settings of DSA.
        data: Which data.
        model: The networks that gradients are taken of.
        out: Run folder; the set goes to OUT/set.
        image_size: Side in pixels that images of a folder are resized and cut to.
        resume: Go on with the stopped run in OUT.
        png: Write every image to OUT/png as well.
        device: cpu or cuda; default CUDA where there is one.
    """
    _distill(dsa, config, data, model, out, image_size, resume, png, device)


def distill_dm(
    config: Annotated[DMConfig, Flat] = DMConfig(),  # noqa: B008
    data: Annotated[WhitenableData, Flat] = WhitenableData(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    *,
    out: Path,
    image_size: int | None = None,
    resume: bool = False,
    png: bool = False,
    device: str | None = None,
) -> None:
    """Synthesise images by DM: their mean features are those of the data.

    Under torchrun the processes divide the classes.

    Args:
        config: Settings of DM.
        data: Which data.
        model: The networks that features are taken of.
        out: Run folder; the set goes to OUT/set.
        image_size: Side in pixels that images of a folder are resized and cut to.
        resume: Go on with the stopped run in OUT.
        png: Write every image to OUT/png as well.
        device: cpu or cuda; default CUDA where there is one.
    """
    _distill(dm, config, data, model, out, image_size, resume, png, device)


def _distill(
    method: Callable[..., DistilledSet],
    config: MatchingConfig,
    data: WhitenableData,
    model: ModelOptions,
    out: Path,
    image_size: int | None,
    resume: bool,
    png: bool,
    device: str | None,
) -> None:
    def make(source: ImageDataset | ImageFolder, job: Job) -> DistilledSet:
        return method(source, model.spec(), config, job=job)

    refuse_whitened_png(data, png)
    facts = {**plain(config), **plain(data), **plain(model), "image_size": image_size}
    source = data.load("train", image_size)
    run_matching(method.__name__, source, config.ipc, facts, make, out, resume, png, device)


def refuse_whitened_png(data: WhitenableData, png: bool) -> None:
    """Before any work: the set of whitened data cannot be shown."""
    if png and data.whitened:
        raise ValueError("whitened images have no pixels: leave --png or --zca out")


def run_matching(
    name: str,
    source: _Source,
    ipc: int,
    facts: Mapping[str, Any],
    method: Callable[[_Source, Job], DistilledSet],
    out: Path,
    resume: bool,
    png: bool,
    device: str | None,
) -> None:
    """Make a set by a method that keeps its state in OUT/matching, with progress.

    Args:
        name: Of the method.
        source: What it distils.
        ipc: Images a class.
        facts: What a resumed run has to agree in.
        method: From the source and the job to the set.
        out: Run folder.
        resume: Go on with the stopped run in it.
        png: Write the images too.
        device: Of the job.
    """
    ranks = join_ranks()

    def make() -> DistilledSet:
        shown = 0
        with progress(name, 1000, enabled=ranks.first) as advance:

            def show(done: int, total: int) -> None:
                # In thousandths: how many steps there are is the method's to know.
                nonlocal shown
                now = 1000 * done // total
                advance(now - shown)
                shown = now

            return method(source, Job(device=device, out=out / "matching", on_progress=show))

    facts = {"task": f"distill {name}", **facts}
    make_set(out, facts, source, ipc, make, resume=resume, png=png, ranks=ranks)
