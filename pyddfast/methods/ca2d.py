"""CA2D: RDED on the head of the CAD ranking ("Rethinking Dataset Distillation", §8).

RDED draws each class's pool at random; CA2D takes the images with the highest CAD
(:func:`pyddfast.coresets.cad_scores`) and goes on as RDED does: several crops of each, the
teacher's best crop of an image, the most confident images, factor × factor crops to an image.
Factor 1 at low resolution, 2 from 128 px, as there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from pyddfast.data import DistilledSet, ImageSource
from pyddfast.methods.patch_crops import CandidateBackend
from pyddfast.methods.rded import RDEDConfig, rded

__all__ = ["Ranking", "ca2d", "ranking_pools"]


class Ranking(Protocol):
    """Scores of images, such as :class:`pyddfast.coresets.Scores`."""

    @property
    def values(self) -> Tensor:
        """Floating point (N,)."""


def ca2d(
    dataset: ImageSource,
    teacher: nn.Module,
    cad: Tensor | Ranking,
    config: RDEDConfig | None = None,
    *,
    device: torch.device | str | None = None,
    out: str | Path | None = None,
    resume: bool = True,
    workers: int | None = None,
    backend: CandidateBackend = "pil",
    on_progress: Callable[[int, int], None] | None = None,
) -> DistilledSet:
    """Distill a data set by CA2D.

    Args:
        dataset: Real images, N.
        teacher: The observer, as for :func:`pyddfast.methods.rded`.
        cad: Floating point (N,), the CAD of every image, as ``coresets.cad_scores`` gives it.
        config: As for :func:`pyddfast.methods.rded`; ``pool`` is how many of each class, by falling
            CAD, compete.  300 as in RDED; the paper's number is not known.
        device: As for :func:`pyddfast.methods.rded`, like the following.
        out: Run folder.
        resume: Continue what ``out`` holds.
        workers: Threads that decode.
        backend: What decodes.
        on_progress: Called with (classes done, classes of this process in all) after each class.

    Returns:
        As :func:`pyddfast.methods.rded`.

    Raises:
        ValueError: ``cad`` does not fit, or what :func:`pyddfast.methods.rded` refuses.
    """
    config = RDEDConfig() if config is None else config
    ranking = cad if isinstance(cad, Tensor) else cad.values
    made = rded(
        dataset,
        teacher,
        config,
        candidates=ranking_pools(ranking, dataset, config.pool),
        device=device,
        out=out,
        resume=resume,
        workers=workers,
        backend=backend,
        on_progress=on_progress,
    )
    return replace(made, meta={**made.meta, "method": "ca2d", "candidates": "highest CAD"})


def ranking_pools(scores: Tensor, dataset: ImageSource, pool: int) -> list[list[int]]:
    """The first ``pool`` images of each class by falling score; ties to the lower position.

    Raises:
        ValueError: There is not one score an image, or one is NaN.
    """
    if scores.shape != (len(dataset),):
        raise ValueError(f"cad must have shape ({len(dataset)},), got {tuple(scores.shape)}")
    if bool(scores.isnan().any()):
        raise ValueError("cad must not hold NaN")
    labels = dataset.labels.cpu()
    ranked = scores.cpu().sort(descending=True, stable=True).indices
    of_class = labels[ranked]
    return [ranked[of_class == label][:pool].tolist() for label in range(dataset.num_classes)]
