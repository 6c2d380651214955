"""SRe2L: images whose BatchNorm statistics and class are those of the data, by a teacher alone.

"Squeeze, Recover and Relabel: Dataset Condensation at ImageNet Scale From A New Perspective"
(Yin, Xing, Shen, NeurIPS 2023), equations 5 to 8; official code VILA-Lab/SRe2L, ``SRe2L/recover``
and ``SRe2L/*small_dataset``.  This is the recover step; squeezing is ``train.train_teacher``, and
relabelling the soft labels of ``train.train_student``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyddfast.data import DistilledSet, ImageSource
from pyddfast.methods.recover import Job, batch_norm, recover, teacher_list
from pyddfast.methods.synthesis import SynthesisConfig, Task, Teachers, resolve

__all__ = ["SRe2LConfig", "sre2l"]

# The defaults of the scripts and the commands of the read-me files; CIFAR-100's code neither crops
# nor flips, Tiny-ImageNet's rolls to both sides.
PUBLISHED: dict[str, dict[str, Any]] = {
    "imagenet-1k": {
        "iterations": 4000, "batch_size": 100, "lr": 0.25, "bn_weight": 0.01,
        "jitter": (0, 32), "crop": True,
    },
    "tiny-imagenet": {
        "iterations": 4000, "batch_size": 100, "lr": 0.1, "bn_weight": 1.0,
        "jitter": (-4, 4), "crop": True,
    },
    "cifar-100": {
        "iterations": 1000, "batch_size": 100, "lr": 0.25, "bn_weight": 0.01,
        "jitter": (0, 4), "crop": False,
    },
}  # fmt: skip

# torchvision's default for RandomResizedCrop, which the code relies on.
SMALLEST_CROP = 0.08


@dataclass(frozen=True)
class SRe2LConfig(SynthesisConfig):
    """Settings of SRe2L; what is None takes the value published for the preset.

    ``semantics="official"`` also cuts pixels off to bytes (half a level darker on average), and
    refuses classes that do not fill the last batch, where the ImageNet code fails.

    Attributes:
        tv: Weight of the total variation; published: 0.
        l2: Weight of the images' norm; published: 0.
    """

    tv: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tv", "l2"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


def sre2l(
    task: Task,
    teachers: Teachers,
    config: SRe2LConfig | None = None,
    *,
    source: ImageSource | None = None,
    job: Job | None = None,
) -> DistilledSet:
    """Distill by SRe2L's recover step.

    Args:
        task: Classes and normalisation: a data set, or :class:`TaskInfo` without one.
        teachers: Networks with BatchNorm that map normalised images (B, C, S, S) to logits; several
            take turns, one a step.  Moved to the job's device; mode and gradients are put back.
        config: Settings; default :class:`SRe2LConfig`.
        source: First images for init="data" (default: ``task``) or init="set".
        job: Device, run folder, progress.

    Returns:
        A set of kind ``"synthetic"``, ``ipc`` images of every class, in the order of the settings'
        ``classes``; ``meta["teacher_accuracy"]`` is the share that the first teacher puts in their
        class.

    Raises:
        ValueError: Settings, teachers, task and source do not fit together; before any work.
    """
    config = SRe2LConfig() if config is None else config
    settings = resolve(config, task, PUBLISHED)
    assert settings.batch_size is not None
    rest = len(settings.classes) % min(settings.batch_size, len(settings.classes))
    if settings.semantics == "official" and rest:
        raise ValueError(
            f"semantics='official' needs a number of classes that batch_size = "
            f"{settings.batch_size} divides, got {len(settings.classes)}"
        )
    return recover(
        "sre2l",
        task,
        teacher_list(teachers),
        settings,
        job or Job(),
        source=source,
        min_scale=lambda step: SMALLEST_CROP,
        objective=batch_norm(settings, tv=settings.tv, l2=settings.l2),
    )
