"""FADRM: SRe2L from real patches, in stages between which the patches are mixed in again.

"FADRM: Fast and Accurate Data Residual Matching for Dataset Distillation" (Cui, Bi, Luo, Zhao, Liu,
Shen, NeurIPS 2025), algorithm 1; official code Jiacheng8/FADRM (f445e38), ``recover/recover.py``.
Optimisation washes the details of the first images out; each later stage starts from a share of
them.  Stages at a smaller size are cheaper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pyddfast.data import DistilledSet, ImageSource
from pyddfast.methods.engine import Stage
from pyddfast.methods.recover import Job, batch_norm, recover, teacher_list
from pyddfast.methods.sre2l import SMALLEST_CROP
from pyddfast.methods.synthesis import SynthesisConfig, Task, Teachers, resolve

__all__ = ["FADRMConfig", "fadrm", "plan_stages"]

# recover/scripts/*/recover_fadrm_ipc50.sh: one teacher.  The scripts of FADRM+, four teachers in
# turn, differ for Tiny-ImageNet only: 2000 iterations in four stages, lr 0.25.
PUBLISHED: dict[str, dict[str, Any]] = {
    "imagenet-1k": {
        "iterations": 2000, "batch_size": 100, "lr": 0.25, "bn_weight": 0.01,
        "jitter": (0, 32), "crop": True,
    },
    "tiny-imagenet": {
        "iterations": 1000, "batch_size": 100, "lr": 0.01, "bn_weight": 0.01,
        "jitter": (0, 4), "crop": True,
    },
    "cifar-100": {
        "iterations": 2000, "batch_size": 100, "lr": 0.25, "bn_weight": 0.01,
        "jitter": (0, 4), "crop": True,
    },
}  # fmt: skip
# Sizes of the stages, as shares of the image's.
_SHARES = {
    "imagenet-1k": (200 / 224, 1.0, 200 / 224, 1.0),
    "tiny-imagenet": (1.0, 1.0),
    "cifar-100": (1.0, 1.0, 1.0, 1.0),
}


@dataclass(frozen=True)
class FADRMConfig(SynthesisConfig):
    """Settings of FADRM; what is None or empty takes the value published for the preset.

    The published first images are RDED's of medium difficulty: ``init="set"`` and such a set.  The
    published precision is fp16, which rounds only.  FADRM+ is several teachers.

    ``semantics="official"`` also takes first images in the data set's order instead of a keyed
    random one, cuts pixels off to bytes (half a level darker on average), and refuses
    ``init="noise"``, where the code has nothing to mix in.

    Attributes:
        init: First images: data, set (published) or noise.
        stage_sizes: Side of the images in each stage, in pixels; the iterations are shared out
            equally.  Empty: as published, for ImageNet 200/224 of the image's in every second one.
        residual: Share of the first images in what a later stage starts from; published: 0.5.
    """

    init: Literal["noise", "data", "set"] = "data"
    stage_sizes: tuple[int, ...] = ()
    residual: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(type(side) is int for side in self.stage_sizes):
            raise TypeError(f"stage_sizes must be ints, got {self.stage_sizes}")
        if min(self.stage_sizes, default=1) < 1:
            raise ValueError(f"stage_sizes must be at least 1, got {self.stage_sizes}")
        if not 0 <= self.residual <= 1:
            raise ValueError(f"residual must lie in [0, 1], got {self.residual}")
        if self.init == "noise" and self.semantics == "official":
            raise ValueError("semantics='official' has no init='noise': nothing could be mixed in")


def plan_stages(sizes: tuple[int, ...], iterations: int) -> tuple[Stage, ...]:
    """Stages of equal length; the first ones have a step more where they do not come out even.

    Raises:
        ValueError: There are fewer iterations than stages.
    """
    length, rest = divmod(iterations, len(sizes))
    if length == 0:
        raise ValueError(f"iterations = {iterations} are too few for {len(sizes)} stages")
    return tuple(Stage(size, length + (number < rest)) for number, size in enumerate(sizes))


def fadrm(
    task: Task,
    teachers: Teachers,
    config: FADRMConfig | None = None,
    *,
    source: ImageSource | None = None,
    job: Job | None = None,
) -> DistilledSet:
    """Distill by FADRM; arguments, result and errors as :func:`sre2l`.

    Teachers have to take images of every stage's size.
    """
    config = FADRMConfig() if config is None else config
    settings = resolve(config, task, PUBLISHED)
    assert settings.iterations is not None
    assert settings.image_size is not None
    size = settings.image_size
    sizes = settings.stage_sizes or tuple(round(share * size) for share in _SHARES[settings.preset])
    if sizes[-1] != size:
        raise ValueError(f"the last of stage_sizes must be the image size {size}, got {sizes}")
    return recover(
        "fadrm",
        task,
        teacher_list(teachers),
        settings,
        job or Job(),
        source=source,
        min_scale=lambda step: SMALLEST_CROP,
        objective=batch_norm(settings),
        stages=plan_stages(sizes, settings.iterations),
        residual=settings.residual,
    )
