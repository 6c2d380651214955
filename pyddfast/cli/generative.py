"""The commands of the generative methods: D4M and Minimax Diffusion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pyddfast.cli.matching import run_matching
from pyddfast.cli.options import DataOptions, Flat, plain
from pyddfast.data import DistilledSet, ImageDataset, ImageFolder
from pyddfast.methods import D4MConfig, Job, MinimaxConfig, d4m, minimax, read_prompts
from pyddfast.methods.d4m import check_d4m
from pyddfast.methods.minimax import check_minimax

__all__ = ["distill_d4m", "distill_minimax"]


def distill_d4m(
    config: Annotated[D4MConfig, Flat] = D4MConfig(),  # noqa: B008
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    *,
    model: Path,
    out: Path,
    prompts: Path | None = None,
    prototypes: Path | None = None,
    resume: bool = False,
    png: bool = False,
    device: str | None = None,
) -> None:
    """Distill a data set by D4M: prototypes in a diffusion model's latents, denoised by prompts.

    Under torchrun the processes share the classes, then the images.

    Args:
        config: Settings of D4M.
        data: Which data.
        model: Local folder of a Stable Diffusion model in the diffusers layout.
        out: Run folder; the set goes to OUT/set, the prototypes as D4M's JSON file to OUT/matching.
        prompts: Text file with the prompt of a class a line, in label order, up to a tab; default
            the class names.
        prototypes: JSON file of an earlier run, whose prototypes are taken.
        resume: Go on with the stopped run in OUT.
        png: Write every image to OUT/png as well.
        device: cpu or cuda; default CUDA where there is one.
    """
    words = None if prompts is None else read_prompts(prompts)
    source = data.load("train")
    check_d4m(source, config, prompts=words)

    def make(source: ImageDataset | ImageFolder, job: Job) -> DistilledSet:
        return d4m(source, model, config, prompts=words, prototypes=prototypes, job=job)

    facts = {
        **plain(config),
        **plain(data),
        "model": str(model),
        "prompts": words,
        "prototypes": None if prototypes is None else str(prototypes),
    }
    run_matching("d4m", source, config.ipc, facts, make, out, resume, png, device)


def distill_minimax(
    config: Annotated[MinimaxConfig, Flat] = MinimaxConfig(),  # noqa: B008
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    *,
    model: Path,
    out: Path,
    resume: bool = False,
    png: bool = False,
    device: str | None = None,
) -> None:
    """Distill a data set by Minimax Diffusion: a DiT, fine-tuned for likeness and variety.

    Under torchrun the processes share the phases of the fine-tuning, then the images.

    Args:
        config: Settings of Minimax Diffusion.
        data: Which data.
        model: Local folder of a DiT in the diffusers layout.
        out: Run folder; the set goes to OUT/set, weights and metrics of phases to
            OUT/matching/phases.
        resume: Go on with the stopped run in OUT.
        png: Write every image to OUT/png as well.
        device: cpu or cuda; default CUDA where there is one.
    """
    source = data.load("train")
    check_minimax(source, config)

    def make(source: ImageDataset | ImageFolder, job: Job) -> DistilledSet:
        return minimax(source, model, config, job=job)

    facts = {**plain(config), **plain(data), "model": str(model)}
    run_matching("minimax", source, config.ipc, facts, make, out, resume, png, device)
