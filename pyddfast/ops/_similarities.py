"""The rows that facility location and graph cut select from: features, or their similarities."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyddfast.ops import _checks, _memory
from pyddfast.ops._greedy import check_finite, check_products, features, spans, tiles
from pyddfast.ops._segments import offsets as segment_offsets
from pyddfast.ops._ties import first_equals
from pyddfast.ops.reference import select as reference
from pyddfast.ops.reference.kd import accumulation_dtype

SIMILARITIES = ("cosine01", "cosine", "dot", "euclidean", "rbf")  # positions: the native codes

# Similarities of several small segments that are held at once, so that threads, or a GPU, have
# segments each: 19 classes of 1,300 rows on a CPU, 158 on a GPU.
CPU_GROUP_BYTES, DEVICE_GROUP_BYTES = 1 << 27, 1 << 30


class Rows:
    """Features (N, D) by segments, or one matrix (n, n) a segment."""

    def __init__(
        self,
        like: Tensor,
        bounds: list[int],
        features: Tensor | None,
        matrices: list[Tensor],
        metric: str,
        gamma: float,
    ) -> None:
        self.like, self.bounds = like, bounds
        self.features, self.matrices = features, matrices
        self.metric, self.gamma = metric, gamma
        self.sizes = [stop - start for start, stop in spans(bounds)]
        self.dtype = accumulation_dtype(like)
        self.largest: dict[int, float] = {}  # distance in a segment, where it is known
        self._equals: dict[int, Tensor | None] = {}

    @classmethod
    def of(cls, x: Any, similarity: Any, metric: Any, gamma: Any, segments: Any) -> Rows:
        """Checks the arguments that the submodular functions share."""
        _checks.one_of(metric, SIMILARITIES, "metric")
        if (x is None) == (similarity is None):
            raise ValueError("x or similarity must be given, not both")
        if x is not None:
            bounds = features(x, segments)
            scale = 1.0 / x.shape[1] if gamma is None else _checks.positive(gamma, "gamma")
            return cls(x, bounds, x, [], metric, scale)
        matrices = [similarity] if isinstance(similarity, Tensor) else list(similarity)
        if not matrices:
            raise ValueError("similarity has no matrix")
        for number, matrix in enumerate(matrices):
            name = f"similarity of segment {number}"
            _checks.float_tensor(matrix, name)
            if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
                raise ValueError(f"{name} has shape {tuple(matrix.shape)}; (n, n) is needed")
            first = matrices[0]
            if matrix.dtype is not first.dtype or matrix.device != first.device:
                raise ValueError(
                    f"{name} is {matrix.dtype} on {matrix.device}, that of segment 0 "
                    f"{first.dtype} on {first.device}"
                )
        bounds = list(itertools.accumulate((len(matrix) for matrix in matrices), initial=0))
        if segments is not None and segment_offsets(segments, bounds[-1], "similarity") != bounds:
            raise ValueError(
                f"segments have {torch.diff(segments).tolist()} rows, the matrices of similarity "
                f"{[len(matrix) for matrix in matrices]}"
            )
        return cls(matrices[0], bounds, None, matrices, metric, 1.0)

    def check_bytes(self, limit: int, budgets: list[int], hint: str) -> None:
        """Refuses matrices of features that are beyond `limit`."""
        _checks.count(limit, "max_matrix_bytes")
        if self.features is None:
            return
        for number, (size, budget) in enumerate(zip(self.sizes, budgets, strict=True)):
            needed = size * size * self.dtype.itemsize
            if budget and needed > limit:
                raise ValueError(
                    f"segment {number} has {size:,} rows: its similarities take {needed:,} bytes, "
                    f"max_matrix_bytes is {limit:,}; {hint}"
                )

    def check_fits(self, budgets: list[int]) -> None:
        """Refuses what the twin of graph cut needs, and its kernel does not."""
        if self.features is None:
            return
        wanted = [size for size, k in zip(self.sizes, budgets, strict=True) if k]
        size = max(wanted, default=0)
        # In the dtype of the arithmetic and in float64.
        _memory.check_fits(
            size * size * (self.dtype.itemsize + 8),
            self.like.device,
            f"the similarities of a segment of {size:,} rows, which only the kernel does without,",
            "give segments of fewer rows",
        )

    def check_finite(self) -> None:
        """NaN and infinities are errors, by segment and row."""
        if self.features is not None:
            check_finite(self.features, self.bounds)
            if self.metric in ("dot", "euclidean", "rbf"):
                check_products(self.features)
        for number, matrix in enumerate(self.matrices):
            check_finite(matrix, [0, len(matrix)], f"similarity of segment {number}")

    def groups(self, budgets: list[int]) -> Iterator[list[int]]:
        """Consecutive segments, whose matrices fit a group's bytes if there are several."""
        limit = CPU_GROUP_BYTES if self.like.is_cpu else DEVICE_GROUP_BYTES
        group: list[int] = []
        held = 0
        for number, (size, budget) in enumerate(zip(self.sizes, budgets, strict=True)):
            needed = size * size * self.dtype.itemsize if budget else 0
            if group and held + needed > limit:
                yield group
                group, held = [], 0
            group.append(number)
            held += needed
        if group:
            yield group

    def wide(self, number: int) -> Tensor:
        """The features of a segment, in the dtype of the arithmetic.

        Those that distances are taken of are moved to their mean: products of rows far from 0 have
        no digit left of a small distance.
        """
        assert self.features is not None
        x = self.features[self.bounds[number] : self.bounds[number + 1]].to(self.dtype)
        return x - x.mean(0) if self.metric in ("euclidean", "rbf") and len(x) else x

    def equals(self, number: int) -> Tensor | None:
        """(n,) the first row of a segment that equals each; None where all differ."""
        if self.features is None:
            return None
        if number not in self._equals:
            part = self.features[self.bounds[number] : self.bounds[number + 1]]
            self._equals[number] = first_equals(part)
        return self._equals[number]

    def nearest(self, number: int, columns: Tensor, begin: int) -> Tensor:
        """(n,) the place of each row's most similar one of `columns`, from `begin` on; -1: none."""
        size = self.sizes[number]
        found = torch.full((size,), -1, dtype=torch.int64, device=self.like.device)
        best = self.like.new_full((size,), -torch.inf, dtype=self.dtype)
        for first, part in self.parts(number, columns):
            place = part.argmax(1)
            value = part.gather(1, place[:, None]).squeeze(1)
            better = (value > best) | (found < 0)  # ties: the first
            found = torch.where(better, place + first + begin, found)
            best = torch.where(better, value, best)
        return found

    def parts(self, number: int, columns: Tensor) -> Iterator[tuple[int, Tensor]]:
        """`block` of some columns after the other, and the place of the first."""
        row_bytes = self.sizes[number] * self.dtype.itemsize
        for start, stop in tiles(len(columns), row_bytes, CPU_GROUP_BYTES):
            yield start, self.block(number, columns[start:stop])

    def block(self, number: int, columns: Tensor) -> Tensor:
        """(n, m) similarities of a segment's rows to its rows `columns` (m,), local."""
        if self.features is None:
            return self.matrices[number][:, columns].to(self.dtype)
        x = self.wide(number)
        same = self.equals(number)
        if same is not None:
            columns, which = torch.unique(same[columns], return_inverse=True)
        with torch.autocast(x.device.type, enabled=False):
            block = self._similarity(x, x[columns], self._offset(number, x))
        if self.metric == "euclidean":  # of a row to itself
            block[columns, torch.arange(len(columns), device=x.device)] = self.largest[number]
        return block if same is None else block[same][:, which]

    def matrix(self, number: int, out: Tensor | None = None) -> Tensor:
        """(n, n) similarities of row i to pick j; into `out` transposed."""
        if self.features is None:
            matrix = self.matrices[number].to(self.dtype)
            return matrix if out is None else out.copy_(matrix.T)
        x = self.wide(number)
        with torch.autocast(x.device.type, enabled=False):
            result = self._similarity(x, x, 0.0, out=out)
        if self.metric == "euclidean":
            result.fill_diagonal_(0.0)  # which the products leave at the root of a rounding error
            result.sub_(result.min())
        same = self.equals(number)
        return result if same is None else result.copy_(result[same][:, same])

    def coverage(self, number: int, weight: Tensor | None) -> Tensor:
        """(n,) float64: the weighted similarity of all rows to each, by tiles of the features."""
        factor = self.none(number) + 1.0 if weight is None else weight.double()
        if self.features is None:
            return factor @ self.matrices[number].double()
        covered = self._coverage(number, self.wide(number), factor)
        same = self.equals(number)
        return covered if same is None else covered[same]

    def _coverage(self, number: int, x: Tensor, factor: Tensor) -> Tensor:
        """The same of features."""
        size = self.sizes[number]
        if self.metric in ("cosine01", "dot"):  # linear in the rows
            rows = reference.unit_rows(x) if self.metric == "cosine01" else x
            ranges = tiles(size, x.shape[1] * 8)
            total = sum((factor[a:b] @ rows[a:b].double() for a, b in ranges), self.none(number, 1))
            products = torch.cat([rows[a:b].double() @ total for a, b in ranges])
            return 0.5 * (products + factor.sum()) if self.metric == "cosine01" else products
        parts = []
        with torch.autocast(x.device.type, enabled=False):
            for start, stop in tiles(size, size * 8):
                block = self._similarity(x, x[start:stop], self._offset(number, x))
                if self.metric == "euclidean":  # of a row to itself
                    block[start:stop].fill_diagonal_(self.largest[number])
                parts.append(factor @ block.double())
        return torch.cat(parts)

    def diagonal(self, number: int) -> Tensor:
        """(n,) float64: the similarity of each row to itself."""
        if self.features is None:
            return self.matrices[number].diagonal().double()
        x = self.wide(number)
        if self.metric == "dot":
            return x.double().square().sum(1)
        if self.metric == "euclidean":
            return self.none(number) + self._offset(number, x)
        if self.metric == "rbf":
            return self.none(number) + 1.0
        zero = 0.0 if self.metric == "cosine" else 0.5
        return torch.where((x == 0).all(1), zero, self.none(number) + 1.0)

    def none(self, number: int, dim: int = 0) -> Tensor:
        """Float64 zeros, one a row of the segment, or one a feature."""
        size = self.like.shape[1] if dim else self.sizes[number]
        return self.like.new_zeros(size, dtype=torch.float64)

    def _similarity(self, x: Tensor, y: Tensor, offset: float, out: Tensor | None = None) -> Tensor:
        return reference.similarity(x, y, self.metric, self.gamma, offset, out=out)

    def _offset(self, number: int, x: Tensor) -> float:
        """The largest distance in the segment, where the metric counts down from it."""
        if self.metric != "euclidean":
            return 0.0
        if number not in self.largest:
            ranges = tiles(len(x), len(x) * x.element_size())
            blocks = (self._similarity(x[a:b], x, 0.0) for a, b in ranges)
            self.largest[number] = -min((float(block.min()) for block in blocks), default=0.0)
        return self.largest[number]
