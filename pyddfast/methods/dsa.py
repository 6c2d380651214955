"""DSA: gradient matching under Siamese augmentation.

"Dataset Condensation with Differentiable Siamese Augmentation" (Zhao, Bilen, ICML 2021); official
code VICO-UoE/DatasetCondensation, ``main.py --method DSA``.  The same transform with the same
parameters is applied to the real and to the synthetic images of a class.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyddfast.data import DistilledSet, ImageDataset, ImageFolder
from pyddfast.methods.dc import GradientMatchingConfig, gradient_matching, resolve_loops
from pyddfast.methods.recover import Job
from pyddfast.train.models import ModelSpec

__all__ = ["DSAMatchingConfig", "dsa"]


@dataclass(frozen=True)
class DSAMatchingConfig(GradientMatchingConfig):
    """Settings of DSA: first images are real ones, the network is trained on augmented images."""


def dsa(
    data: ImageDataset | ImageFolder,
    model: ModelSpec = "convnet-d3",
    config: DSAMatchingConfig | None = None,
    *,
    job: Job | None = None,
) -> DistilledSet:
    """Distill by gradient matching under Siamese augmentation.

    Args:
        data: As for :func:`pyddfast.methods.dc`.
        model: As there.
        config: Settings; default :class:`DSAMatchingConfig`.
        job: As there.

    Returns:
        As there.

    Raises:
        ValueError: As there.
        FloatingPointError: As there.
    """
    settings = resolve_loops(config or DSAMatchingConfig(), "real")
    return gradient_matching("dsa", data, model, settings, job or Job())
