"""DATM: ``utils/utils_baseline.py`` and ``distill/DATM.py`` of NUS-HPC-AI-Lab/DATM (97ae510).

Its utilities are MTT's; learned labels are added.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from pyddfast.compat.mtt import (
    DiffAugment,
    ZCAWhitening,
    fuse,
    load_trajectories,
    param_loss,
    sgd_step,
)

__all__ = [
    "DiffAugment",
    "SoftCrossEntropy",
    "ZCAWhitening",
    "fuse",
    "load_trajectories",
    "param_loss",
    "sgd_step",
]


def SoftCrossEntropy(  # noqa: N802 the official name
    inputs: Tensor, target: Tensor, reduction: str = "average"
) -> Tensor:
    """Cross-entropy with the softmax of ``target``, the mean over the batch.

    Args:
        inputs: Logits (N, classes).
        target: Logits of the labels (N, classes), differentiable too.
        reduction: Without effect, as in the official function.
    """
    return F.cross_entropy(inputs, target.softmax(1))
