"""``uncertainty.py``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyddfast import ops
from pyddfast.compat.deepcore.passes import batches

__all__ = ["rank_uncertainty"]


def rank_uncertainty(self: Any, index: npt.NDArray[Any] | None = None) -> npt.NDArray[np.float64]:
    """The method of the class ``Uncertainty``: low is uncertain.

    Args:
        self: The method's object; its ``selection_method`` decides: the largest *logit*
            (``"LeastConfidence"``), Σ p log(p + 1e-6) (``"Entropy"``), or the lead of the largest
            probability (``"Margin"``).
        index: (n,) positions in the data set; None: all.

    Returns:
        Scores (n,).
    """
    scores = [
        _score(logits, self.selection_method) for logits, *_ in batches(self, self.dst_train, index)
    ]
    return torch.cat(scores).cpu().double().numpy()


def _score(logits: Tensor, name: str) -> Tensor:
    if name == "LeastConfidence":
        return logits.amax(1)
    if name == "Entropy":
        p = logits.softmax(1)
        return ((p + 1e-6).log() * p).sum(1)
    return ops.sample_scores(logits, logits.argmax(1)).top2_margin
