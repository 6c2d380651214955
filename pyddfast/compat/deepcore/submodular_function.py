"""``methods_utils/submodular_function.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyddfast import ops

__all__ = ["FacilityLocation", "GraphCut", "LogDeterminant", "SubmodularFunction"]

Array = npt.NDArray[Any]


class SubmodularFunction:
    """A function of similarities, which are computed at once when they are first needed.

    Args:
        index: (n,) what samples are called.
        similarity_kernel: From two masks or arrays of positions to similarities.
        similarity_matrix: (n, n) instead.
        already_selected: Has to be empty.

    Raises:
        ValueError: Neither or a wrong matrix is given, or something is selected already.
    """

    def __init__(
        self,
        index: Array,
        similarity_kernel: Callable[[Array, Array], Array] | None = None,
        similarity_matrix: Array | None = None,
        already_selected: Sequence[int] = (),
    ) -> None:
        if len(already_selected):
            raise ValueError("already_selected must be empty")
        self.index, self.n = index, len(index)
        if similarity_kernel is None and similarity_matrix is None:
            raise ValueError("give similarity_kernel or similarity_matrix")
        if similarity_matrix is not None and similarity_matrix.shape != (self.n, self.n):
            raise ValueError(
                f"similarity_matrix must have shape ({self.n}, {self.n}), "
                f"got {similarity_matrix.shape}"
            )
        self._kernel, self._matrix = similarity_kernel, similarity_matrix

    @property
    def similarity(self) -> Array:
        """(n, n)."""
        if self._matrix is None:
            assert self._kernel is not None
            everything = np.ones(self.n, dtype=bool)
            self._matrix = self._kernel(everything, everything)
        return self._matrix

    def greedy(self, budget: int) -> Tensor | None:
        """Positions of the picks, in their order; None: no operator has them."""
        return None


class FacilityLocation(SubmodularFunction):
    """Σ_i max(0, max_{j picked} s_ij)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cur_max = np.zeros(self.n, dtype=np.float32)

    def calc_gain(self, idx_gain: Array, selected: Array, **kwargs: Any) -> Array:
        """What each candidate would add."""
        more = self.similarity[:, idx_gain] - self.cur_max[:, None]
        return np.maximum(0.0, more).sum(axis=0)  # type: ignore[no-any-return]

    def calc_gain_batch(self, idx_gain: Array, selected: Array, *, batch: int) -> Array:
        """:func:`calc_gain` over the rows that the official loop reaches.

        Its counter is a multiple of ``batch`` and is multiplied by it again: rows from ``batch`` to
        ``batch``² are never covered, nor most of those after them.
        """
        starts = [0, *(i * batch for i in range(batch, self.n, batch) if i * batch < self.n)]
        rows = np.concatenate([np.arange(s, min(s + batch, self.n)) for s in starts])
        more = self.similarity[np.ix_(rows, idx_gain)] - self.cur_max[rows, None]
        return np.maximum(0.0, more).sum(axis=0)  # type: ignore[no-any-return]

    def update_state(self, new_selection: Array, total_selected: Array, **kwargs: Any) -> None:
        """Tell that samples were picked."""
        best = self.similarity[:, new_selection].max(axis=1)
        self.cur_max = np.maximum(self.cur_max, best)

    def greedy(self, budget: int) -> Tensor:
        """By :func:`ops.facility_location`."""
        similarity = torch.from_numpy(self.similarity)
        return ops.facility_location(None, budget, similarity=similarity).picks


class GraphCut(SubmodularFunction):
    """λ Σ_i s_iv − 2 Σ_{j picked} s_jv for every pick v.

    Args:
        lam: λ.
        kwargs: As for the others.
    """

    def __init__(self, lam: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lam = lam

    def calc_gain(self, idx_gain: Array, selected: Array, **kwargs: Any) -> Array:
        """What each candidate would add."""
        candidates = self.similarity[:, idx_gain]
        gain = self.lam * candidates.sum(axis=0) - 2.0 * candidates[selected].sum(axis=0)
        return gain  # type: ignore[no-any-return]

    def update_state(self, new_selection: Array, total_selected: Array, **kwargs: Any) -> None:
        """Nothing: the picks are told to ``calc_gain``."""

    def greedy(self, budget: int) -> Tensor:
        """By :func:`ops.graph_cut`."""
        similarity = torch.from_numpy(self.similarity)
        return ops.graph_cut(None, budget, self.lam, similarity=similarity).picks


class LogDeterminant(SubmodularFunction):
    """S_vA S_A⁺ S_Av for every pick v, A the picks before: what they explain of it, as there.

    The log-determinant's gain falls with it, so that this takes the most redundant samples.  The
    pseudo-inverse is computed once a pick and not at every call.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._known: tuple[bytes, Array] | None = None

    def calc_gain(self, idx_gain: Array, selected: Array, **kwargs: Any) -> Array:
        """What the picks explain of each candidate."""
        key = np.packbits(selected).tobytes()
        if self._known is None or self._known[0] != key:
            self._known = key, np.linalg.pinv(self.similarity[np.ix_(selected, selected)])
        rows = self.similarity[selected][:, idx_gain].T
        return (rows @ self._known[1] * rows).sum(-1)  # type: ignore[no-any-return]

    def update_state(self, new_selection: Array, total_selected: Array, **kwargs: Any) -> None:
        """Nothing: the picks are told to ``calc_gain``."""
