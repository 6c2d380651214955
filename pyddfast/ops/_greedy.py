"""What greedy selections share: checks, segments, and the kernel with one state a row."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from pyddfast.ops import _checks, _native
from pyddfast.ops._native import raw
from pyddfast.ops._segments import offsets as segment_offsets
from pyddfast.ops.reference.kd import accumulation_dtype

# What a pass over features in torch holds beside them: large enough for BLAS, small for a cache.
TILE_BYTES = 1 << 24


class Form(IntEnum):
    """How rows are compared; csrc/select/select_math.h."""

    SQUARES, COSINE, JEFFREYS, DOT, ENTRY = range(5)


class Rule(IntEnum):
    """What the comparison becomes; csrc/select/select_math.h."""

    CENTER, CUT, NEAREST, FARTHEST = range(4)


def greedy_rows(
    x: Tensor,
    form: Form,
    rule: Rule,
    bounds: list[int],
    given: list[list[int]],
    *,
    state: Tensor,
    factor: Tensor | None = None,
    mean: Tensor | None = None,
    similarity: int = 0,
    gamma: float = 0.0,
    offsets: list[float] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel of k-center, graph cut and herding.

    Args:
        x: (N, D) features, or a matrix for ``Form.ENTRY``.
        form: How rows are compared.
        rule: What the comparison becomes.
        bounds: Offsets of the segments.
        given: The picks of each segment, -1 where one is to be found.  The first of a segment has
            to be given, except for the rules that have a `mean`.
        state: (N,) float64 before the first pick; it is not changed.
        factor: (N,) of the keys.
        mean: (S, D) float64, of ``Rule.NEAREST`` and ``Rule.FARTHEST``.
        similarity: Position of the similarity, of ``Rule.CUT``.
        gamma: Of the similarity.
        offsets: Largest distance in each segment, of the similarity.

    Returns:
        ``(picks, keys, state)``: the rows, the best key that each pick leaves, the state at the
        end; keys and state are float64.
    """
    ends = list(itertools.accumulate((len(rows) for rows in given), initial=0))
    layout = [
        (number, *rows, *range_)
        for number, (rows, range_) in enumerate(zip(spans(bounds), spans(ends), strict=True))
    ]
    picks = torch.tensor([row for rows in given for row in rows], dtype=torch.int64)
    scale = None
    if form is Form.COSINE:
        norms = _row_norms(x)
        scale = torch.where(norms == 0, 0.0, 1.0 / norms)
    result: tuple[Tensor, Tensor, Tensor] = raw.greedy_rows(
        x,
        scale,
        factor,
        mean,
        None if offsets is None else torch.tensor(offsets, dtype=torch.float64).to(x.device),
        state,
        picks.to(x.device),
        torch.tensor(layout, dtype=torch.int64).reshape(-1, 5).to(x.device),
        form,
        rule,
        similarity,
        gamma,
        max((len(rows) for rows in given), default=0),
        max((stop - start for start, stop in spans(bounds)), default=0),
    )
    return result


def _row_norms(x: Tensor) -> Tensor:
    """(N,) in the dtype of the arithmetic; squares that leave its range are taken in float64."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=1, dtype=accumulation_dtype(x))
    lost = (~((norms > 1e-15) & (norms < 1e15))).nonzero().squeeze(1)
    norms[lost] = torch.linalg.vector_norm(x[lost], dim=1, dtype=torch.float64).to(norms.dtype)
    return norms


# --- checks --------------------------------------------------------------------------------------


def features(x: Any, segments: Any) -> list[int]:
    """Checks the features and returns the offsets of the segments."""
    _checks.float_tensor(x, "x")
    if x.dim() != 2 or x.shape[1] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; (N, D >= 1) is needed")
    return segment_offsets(segments, len(x), "x")


def row_factor(value: Any, like: Tensor, rows: int, name: str) -> Tensor | None:
    """One number a row, finite and not negative, without gradient."""
    if value is None:
        return None
    _checks.float_tensor(value, name)
    if value.shape != (rows,):
        raise ValueError(f"{name} has shape {tuple(value.shape)}; one number a row is ({rows},)")
    _checks.same_device(like, value, name, first="x")
    if readable(value) and not bool(((value >= 0) & value.isfinite()).all()):
        row = int((~((value >= 0) & value.isfinite())).nonzero()[0, 0])
        raise ValueError(f"{name} must be finite and not negative, got {value[row]} in row {row}")
    factor: Tensor = value.detach().to(accumulation_dtype(like))
    return factor


def readable(values: Tensor) -> bool:
    """On a device a look at the values would wait for it."""
    return values.is_cpu or _native.debug()


def check_finite(x: Tensor, bounds: list[int], name: str = "x") -> None:
    """NaN and infinite values are errors, by row and segment."""
    if not readable(x):
        return
    for start, stop in tiles(len(x), x.shape[1] * x.element_size()):
        row = _checks.unsound_row(x[start:stop].detach())
        if row is not None:
            row += start
            raise ValueError(
                f"{name} holds NaN or infinite values, first in row {row} of segment "
                f"{segment_of(row, bounds)}"
            )


def check_products(x: Tensor) -> None:
    """Products of rows, and squares of their differences, are finite."""
    if not readable(x) or not x.numel():
        return
    dtype = accumulation_dtype(x)
    largest = max(abs(float(value)) for value in x.detach().aminmax())
    # (a - b)^2 is at most 4 of the largest squares.
    if 4.0 * x.shape[1] * largest * largest > torch.finfo(dtype).max:
        raise ValueError(
            f"x holds values up to {largest:.3g}, whose products overflow {dtype}: "
            "divide x by a constant"
        )


def budgets_of(k: Any, available: list[int]) -> list[int]:
    """Picks of each segment, at most what is available."""
    if not isinstance(k, (int, Sequence)) or isinstance(k, str):
        raise TypeError(f"k must be an int or one int a segment, got {k!r}")
    wanted = [k] * len(available) if isinstance(k, int) else list(k)
    if len(wanted) != len(available):
        raise ValueError(f"k has {len(wanted)} budgets; one for each of {len(available)} segments")
    return [min(_checks.count(w, "k"), have) for w, have in zip(wanted, available, strict=True)]


def spans(bounds: Sequence[int]) -> list[tuple[int, int]]:
    """Begin and end of each segment."""
    return list(itertools.pairwise(bounds))


def tiles(rows: int, row_bytes: int, limit: int = TILE_BYTES) -> list[tuple[int, int]]:
    """Ranges of rows of about `limit` bytes."""
    step = max(1, limit // max(1, row_bytes))
    return [(start, min(rows, start + step)) for start in range(0, rows, step)]


def segment_of(row: int, bounds: list[int]) -> int:
    """The segment that `row` lies in."""
    return next(s for s, (start, stop) in enumerate(spans(bounds)) if start <= row < stop)


def ends_of(counts: list[int]) -> Tensor:
    """Offsets of so many picks a segment."""
    return torch.tensor(list(itertools.accumulate(counts, initial=0)), dtype=torch.int64)


def joined(parts: list[Tensor], like: Tensor, dtype: torch.dtype) -> Tensor:
    """All parts in one, on the device of `like`."""
    return torch.cat([like.new_empty(0, dtype=dtype), *(part.to(dtype) for part in parts)])
