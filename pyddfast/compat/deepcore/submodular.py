"""``submodular.py``."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from pyddfast.compat.deepcore import passes
from pyddfast.compat.deepcore.distances import LastLayerGradients

__all__ = ["calc_gradient"]


def calc_gradient(self: Any, index: npt.NDArray[Any] | None = None) -> LastLayerGradients:
    """The method of the class ``Submodular``, for this package's ``cossim_np``.

    Args:
        self: The method's object.
        index: (n,) positions in the data set; None: all.

    Returns:
        Gradients that are never formed.
    """
    return LastLayerGradients(*passes.gradients(self, self.dst_train, index))
