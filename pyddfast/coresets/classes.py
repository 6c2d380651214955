"""An embedding sorted by class, as the greedy operators take it, and back to positions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyddfast.coresets.embedding import Embedding
from pyddfast.coresets.selection import Selection, check_budget
from pyddfast.ops import class_segments, logit_gradient

__all__ = ["Classes", "by_class"]

# Of the n x n matrices that are made at once, so that a class's threads share small classes and a
# thousand classes do not lie in memory together.
_MATRIX_BYTES = 1 << 30
# DeepCore's selection_batch: its losses are means over batches, so that a gradient has the factor
# 1/256, in the last and smaller batch of a class 1 over its size.
_BATCH = 256


@dataclass(frozen=True, eq=False)
class Classes:
    """Samples class after class.

    Attributes:
        embedding: In the data set's order.
        rows: int64 (N,), position in the data set of each sorted row.
        segments: int64 (C + 1,), where each class begins.
        budgets: Picks of each class.
        asked: ``ipc`` and ``fraction`` as they were given, for the record.
    """

    embedding: Embedding
    rows: Tensor
    segments: Tensor
    budgets: list[int]
    asked: dict[str, Any]

    @property
    def features(self) -> Tensor:
        """(N, D), sorted."""
        return self.embedding.features[self.rows]

    def unit_features(self) -> Tensor:
        """The same, of length 1, however short they are; zeros stay zeros."""
        if not self.features.shape[1]:
            raise ValueError("features have no column to compare samples by")
        largest = torch.linalg.vector_norm(self.features, torch.inf, dim=1, keepdim=True)
        scaled = self.features / torch.where(largest > 0, largest, 1.0)
        length = scaled.norm(dim=1, keepdim=True)
        return scaled / torch.where(length > 0, length, 1.0)

    def gradients(self, *, batch_means: bool = False) -> Tensor:
        """Gradients of the labels' cross entropy by the logits, (N, C), sorted.

        Args:
            batch_means: Divide them by the size of their batch, of 256 rows of a class, as the
                official code's mean losses do.
        """
        g = logit_gradient(self.embedding.logits, self.embedding.labels)[self.rows]
        return g / self._batch_sizes()[:, None] if batch_means else g

    def parts(self) -> Iterator[tuple[slice, Tensor, list[int]]]:
        """Consecutive classes whose square matrices fit into memory together.

        Yields:
            Their rows, their segments counted from the first of these, and their budgets.
        """
        bounds = self.segments.tolist()
        first = 0
        while first < len(self.budgets):
            last, size = first, 0
            while last < len(self.budgets):
                size += 4 * (bounds[last + 1] - bounds[last]) ** 2
                if last > first and size > _MATRIX_BYTES:
                    break
                last += 1
            segments = self.segments[first : last + 1] - bounds[first]
            yield slice(bounds[first], bounds[last]), segments, self.budgets[first:last]
            first = last

    def selection(
        self,
        method: str,
        picks: Tensor,
        *,
        weights: Tensor | None = None,
        scores: Tensor | None = None,
        ranked: bool = True,
        **meta: Any,
    ) -> Selection:
        """The picks of an operator as positions in the data set.

        Args:
            method: Its name.
            picks: int64 (K,), sorted rows, class after class.
            weights: (K,) of the picks.
            scores: (K,) of the picks, e.g. gains.
            ranked: Whether a class's picks are in the order of picking.
            meta: Options of the method, for the record.
        """
        return Selection(
            indices=self.rows[picks],
            order="ranked" if ranked else "none",
            weights=None if weights is None else weights.float(),
            scores=scores,
            meta={"method": method, **self.asked, **meta, "scoring": dict(self.embedding.meta)},
        )

    def _batch_sizes(self) -> Tensor:
        sizes = []
        for start, stop in zip(
            self.segments[:-1].tolist(), self.segments[1:].tolist(), strict=True
        ):
            row = torch.arange(stop - start)
            sizes.append(
                (row // _BATCH * _BATCH + _BATCH).clamp(max=stop - start) - row // _BATCH * _BATCH
            )
        return torch.cat(sizes)


def by_class(embedding: Embedding, ipc: int | None, fraction: float | None) -> Classes:
    """Sort an embedding by class and say how many samples each class gives.

    Args:
        embedding: Of the data set.
        ipc: Picks of every class; exactly so many, or an error.
        fraction: Or a share of each class in [0, 1], ``round(fraction · n)``, halves to even.

    Raises:
        TypeError: ``embedding`` is none, or ``ipc`` is not an int.
        ValueError: Neither or both are given, one is out of range, or a class is too small.
    """
    if not isinstance(embedding, Embedding):
        raise TypeError(
            f"embedding must be an Embedding, got {type(embedding).__name__}; embed(dataset, "
            "network) or Embedding(logits, features, labels) makes one"
        )
    rows, segments = class_segments(embedding.labels, embedding.num_classes)
    sizes = segments.diff().tolist()
    check_budget(ipc, fraction, sizes)
    budgets = [round((fraction or 0.0) * size) if ipc is None else ipc for size in sizes]
    return Classes(embedding, rows, segments, budgets, {"ipc": ipc, "fraction": fraction})
