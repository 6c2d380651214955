"""``craig.py``."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from pyddfast import ops
from pyddfast.compat.deepcore import passes

__all__ = ["calc_gradient"]


def calc_gradient(self: Any, index: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
    """The method of the class ``Craig``: distances of gradients that are never formed.

    Args:
        self: The method's object.
        index: (n,) positions in the data set; None: all.

    Returns:
        (n, n) Euclidean distances, at least 1e-6.
    """
    g, h = passes.gradients(self, self.dst_train, index)
    return ops.last_layer_gram(g, h, metric="euclidean").clamp_(min=1e-6).numpy()
