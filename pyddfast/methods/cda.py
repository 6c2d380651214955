"""CDA: SRe2L whose crops start large and shrink.

"Dataset Distillation via Curriculum Data Synthesis in Large Data Era" (Yin, Shen, TMLR 2024),
section 3.2; official code VILA-Lab/SRe2L, ``CDA/recover_cda_*.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from pyddfast.data import DistilledSet, ImageSource
from pyddfast.methods.recover import Job, batch_norm, recover, teacher_list
from pyddfast.methods.sre2l import PUBLISHED as SRE2L
from pyddfast.methods.synthesis import SynthesisConfig, Task, Teachers, resolve

__all__ = ["CDAConfig", "cda", "smallest_crop"]

# The commands of CDA/README.md.  There is no script for CIFAR: SRe2L's values with crops, ours.
PUBLISHED: dict[str, dict[str, Any]] = {
    "imagenet-1k": SRE2L["imagenet-1k"],
    "imagenet-21k": {**SRE2L["imagenet-1k"], "iterations": 2000, "lr": 0.05, "bn_weight": 0.25},
    "tiny-imagenet": {
        **SRE2L["tiny-imagenet"], "lr": 0.4, "bn_weight": 0.05, "jitter": (0, 4),
    },
    "cifar-100": {**SRE2L["cifar-100"], "crop": True},
}  # fmt: skip

_SMALLEST = 0.08


@dataclass(frozen=True)
class CDAConfig(SynthesisConfig):
    """Settings of CDA; what is None takes the value published for the preset.

    ``semantics="official"`` also cuts pixels off to bytes (half a level darker on average).

    Attributes:
        curriculum: How the smallest crop goes from the whole image to 8 % of it: step (at once, at
            the milestone), linear or cosine.
        milestone: Share of the iterations after which it is there, in [0, 1]; published: 1.
    """

    curriculum: Literal["step", "linear", "cosine"] = "cosine"
    milestone: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.curriculum not in ("step", "linear", "cosine"):
            raise ValueError(
                f"curriculum must be one of step, linear, cosine, got {self.curriculum!r}"
            )
        if not 0 <= self.milestone <= 1:
            raise ValueError(f"milestone must lie in [0, 1], got {self.milestone}")
        if self.crop is False:
            raise ValueError("crop=False leaves no curriculum; CDA without crops is SRe2L")


def smallest_crop(
    step: int, *, iterations: int, curriculum: str = "cosine", milestone: float = 1.0
) -> float:
    """Smallest share of the area that a crop may cover at a step.

    Args:
        step: in [0, iterations).
        iterations: of the batch.
        curriculum: ``"step"``, ``"linear"`` or ``"cosine"``.
        milestone: share of the iterations after which it is 0.08.
    """
    end = milestone * iterations
    if step >= end:
        return _SMALLEST
    share = {
        "step": 1.0,
        "linear": 1 - step / end,
        "cosine": (1 + math.cos(math.pi * step / end)) / 2,
    }[curriculum]
    return _SMALLEST + (1 - _SMALLEST) * share


def cda(
    task: Task,
    teachers: Teachers,
    config: CDAConfig | None = None,
    *,
    source: ImageSource | None = None,
    job: Job | None = None,
) -> DistilledSet:
    """Distill by CDA; arguments, result and errors as :func:`sre2l`."""
    config = CDAConfig() if config is None else config
    settings = resolve(config, task, PUBLISHED)
    assert settings.iterations is not None
    return recover(
        "cda",
        task,
        teacher_list(teachers),
        settings,
        job or Job(),
        source=source,
        objective=batch_norm(settings),
        min_scale=partial(
            smallest_crop,
            iterations=settings.iterations,
            curriculum=settings.curriculum,
            milestone=settings.milestone,
        ),
    )
