"""The commands of trajectory matching: experts, and the sets that follow them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pyddfast.cli.matching import refuse_whitened_png, run_matching
from pyddfast.cli.options import Flat, ModelOptions, WhitenableData, plain
from pyddfast.data import DistilledSet, ImageDataset, Trajectories
from pyddfast.methods import DATMConfig, Job, TMConfig, datm, tm
from pyddfast.methods.trajectory import TrajectoryConfig
from pyddfast.train import Sharpness, expert_recipe, train_experts
from pyddfast.train.distributed import join_ranks

__all__ = ["distill_datm", "distill_tm", "experts"]


def experts(
    data: Annotated[WhitenableData, Flat] = WhitenableData(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    *,
    out: Path,
    count: int = 100,
    epochs: int = 50,
    batch_size: int = 256,
    lr: float = 0.01,
    gsam: bool = False,
    rho: float = 0.01,
    alpha: float = 0.3,
    image_size: int | None = None,
    seed: int = 0,
    resume: bool = False,
    device: str | None = None,
) -> None:
    """Train experts and keep their parameters after every epoch.

    OUT/replay_buffer_0.pt and so on are in the layout of the official codes.  Under torchrun the
    processes share the experts.

    Args:
        data: Which data.
        model: The network.
        out: Run folder.
        count: Number of experts.
        epochs: Epochs of each; 50 for TM, 100 for DATM.
        batch_size: Images a step.
        lr: Learning rate, constant.
        gsam: Seek flat minima by GSAM, as DATM's experts; two passes a step.
        rho: Length of GSAM's way uphill.
        alpha: Share of the first gradient that GSAM takes off across the second.
        image_size: Side in pixels that images of a folder are resized and cut to.
        seed: Seed of all experts.
        resume: Go on with the stopped run in OUT.
        device: cpu or cuda; default CUDA where there is one.
    """
    found = train_experts(
        data.resident("train", image_size),
        model.spec(),
        test_set=data.resident("test", image_size),
        out=out,
        count=count,
        recipe=expert_recipe(epochs, batch_size=batch_size, lr=lr),
        sharpness=Sharpness(rho=rho, alpha=alpha) if gsam else None,
        seed=seed,
        device=device,
        resume=resume,
    )
    if not join_ranks().first:
        return
    print(f"{len(found)} experts of {found.numel:,} parameters, {found.epochs} epochs each")
    print(f"experts: {out}")


def distill_tm(
    config: Annotated[TMConfig, Flat] = TMConfig(),  # noqa: B008
    data: Annotated[WhitenableData, Flat] = WhitenableData(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    *,
    experts: Path,
    out: Path,
    image_size: int | None = None,
    resume: bool = False,
    png: bool = False,
    device: str | None = None,
) -> None:
    """Synthesise images by TM: a student of them walks as an expert did.

    Args:
        config: Settings of TM.
        data: Which data: classes and first images, whitened if the experts' were.
        model: The distilling network, of the experts' architecture.
        experts: Folder of expert trajectories, of pyddfast experts or of the official scripts.
        out: Run folder; the set goes to OUT/set.
        image_size: Side in pixels that images of a folder are resized and cut to.
        resume: Go on with the stopped run in OUT.
        png: Write every image to OUT/png as well.
        device: cpu or cuda; default CUDA where there is one.
    """
    _distill(tm, experts, config, data, model, out, image_size, resume, png, device)


def distill_datm(
    config: Annotated[DATMConfig, Flat] = DATMConfig(),  # noqa: B008
    data: Annotated[WhitenableData, Flat] = WhitenableData(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    *,
    experts: Path,
    out: Path,
    image_size: int | None = None,
    resume: bool = False,
    png: bool = False,
    device: str | None = None,
) -> None:
    """Synthesise images and soft labels by DATM: TM along easy or hard epochs.

    Args:
        config: Settings of DATM.
        data: Which data: classes and first images, whitened if the experts' were.
        model: The distilling network, of the experts' architecture.
        experts: Folder of expert trajectories, of pyddfast experts or of the official scripts.
        out: Run folder; the set goes to OUT/set.
        image_size: Side in pixels that images of a folder are resized and cut to.
        resume: Go on with the stopped run in OUT.
        png: Write every image to OUT/png as well.
        device: cpu or cuda; default CUDA where there is one.
    """
    _distill(datm, experts, config, data, model, out, image_size, resume, png, device)


def _distill(
    method: Callable[..., DistilledSet],
    folder: Path,
    config: TrajectoryConfig,
    data: WhitenableData,
    model: ModelOptions,
    out: Path,
    image_size: int | None,
    resume: bool,
    png: bool,
    device: str | None,
) -> None:
    refuse_whitened_png(data, png)
    source = data.resident("train", image_size)
    found = Trajectories(folder)
    facts = {
        **plain(config),
        **plain(data),
        **plain(model),
        "experts": str(folder),
        "image_size": image_size,
    }

    def make(source: ImageDataset, job: Job) -> DistilledSet:
        return method(source, found, config, model=model.spec(), job=job)

    run_matching(method.__name__, source, config.ipc, facts, make, out, resume, png, device)
    made = DistilledSet.load(out / "set")
    skipped = made.meta["skipped_iterations"]
    print(f"learning rate of students: {made.lr:.4g}; iterations that moved nothing: {skipped}")
