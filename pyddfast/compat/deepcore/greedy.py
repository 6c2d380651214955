"""``kcentergreedy.py``, ``herding.py`` and ``gradmatch.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyddfast import ops

__all__ = [
    "herding",
    "k_center_greedy",
    "orthogonal_matching_pursuit",
    "orthogonal_matching_pursuit_np",
]

Array = npt.NDArray[Any]


@torch.no_grad()
def k_center_greedy(
    matrix: Tensor | Array,
    budget: int,
    metric: Callable[[Tensor, Tensor], Tensor],
    device: torch.device | str,
    random_seed: int | None = None,
    index: Array | None = None,
    already_selected: Sequence[int] | None = None,
    print_freq: int = 20,
) -> Array:
    """Greedy k-centers in O(N) memory; it had a matrix of budget × N.

    Args:
        matrix: (N, D) features, or what ``metric`` compares.
        budget: Picks, beside those already selected; more than N is N.
        metric: Distances of rows; one named ``euclidean_dist`` is computed by :func:`ops.k_center`.
        device: Where an array goes.
        random_seed: Seeds numpy's global generator, which draws the first pick, as there.
        index: (N,) what rows are called; default their numbers.
        already_selected: Entries of ``index`` that are centers already; they are in the result.
        print_freq: Nothing is printed.

    Returns:
        Picked entries of ``index``, in their order there.

    Raises:
        ValueError: The budget is negative or ``index`` is of another length.
    """
    rows = torch.from_numpy(matrix).to(device) if isinstance(matrix, np.ndarray) else matrix
    count = len(rows)
    if budget < 0:
        raise ValueError("Illegal budget size.")
    names = np.arange(count) if index is None else index
    if len(names) != count:
        raise ValueError(f"index has {len(names)} entries, matrix {count} rows")
    np.random.seed(random_seed)  # noqa: NPY002 - the generator that the official code uses
    chosen = np.isin(names, [] if already_selected is None else already_selected)
    known = chosen.nonzero()[0].tolist()
    left = min(budget, count - len(known))
    first = int(np.random.randint(0, count)) if not known else None  # noqa: NPY002
    if left == 0:
        return names[chosen]
    if getattr(metric, "__name__", "") == "euclidean_dist":
        centers = torch.tensor(known, dtype=torch.int64, device=rows.device) if known else None
        found = ops.k_center(rows, left, init=first, centers=centers).picks
        chosen[found.cpu().numpy()] = True
    else:
        _farthest(rows, left, metric, first, chosen)
    return names[chosen]


def _farthest(
    rows: Tensor, left: int, metric: Callable[..., Tensor], first: int | None, chosen: Array
) -> None:
    """k-centers by any metric, one row of distances at a time."""
    nearest = torch.full((len(rows),), torch.inf, device=rows.device)
    if first is not None:
        chosen[first] = True
        left -= 1
    for center in chosen.nonzero()[0].tolist():
        nearest = torch.minimum(nearest, metric(rows[[center]], rows)[0])
    for _ in range(left):
        free = nearest.masked_fill(torch.from_numpy(chosen).to(rows.device), -torch.inf)
        pick = int(free.argmax())
        chosen[pick] = True
        nearest = torch.minimum(nearest, metric(rows[[pick]], rows)[0])


@torch.no_grad()
def herding(self: Any, matrix: Tensor, budget: int, index: Array | None = None) -> Array:
    """The method of the class ``Herding``: it takes the farthest row, as there.

    Args:
        self: The method's object, whose metric has to be Euclidean.
        matrix: (N, D) features.
        budget: Picks; more than N is N.
        index: (N,) what rows are called; default their numbers.

    Returns:
        Picked entries of ``index``, in their order there.

    Raises:
        ValueError: The budget is negative.
    """
    if budget < 0:
        raise ValueError("Illegal budget size.")
    names = np.arange(len(matrix)) if index is None else index
    found = ops.herding(matrix, min(budget, len(matrix)), farthest=True).picks
    chosen = np.zeros(len(matrix), dtype=bool)
    chosen[found.cpu().numpy()] = True
    return names[chosen]


@torch.no_grad()
def orthogonal_matching_pursuit(
    self: Any, A: Tensor, b: Tensor, budget: int, lam: float = 1.0
) -> npt.NDArray[np.float32]:
    """The method of the class ``GradMatch``, in Gram space.

    Args:
        self: The method's object; not used.
        A: (d, n) columns.
        b: (d,) target.
        budget: Picks; below 0 is 0, above n is n.
        lam: λ of the ridge, from the second pick on.

    Returns:
        Weights (n,), 0 where a column is not picked.
    """
    count = A.shape[1]
    x = np.zeros(count, dtype=np.float32)
    k = min(max(budget, 0), count)
    if k:
        found = ops.omp(A.T @ A, A.T @ b, k, lam=lam, semantics="official")
        x[found.indices.cpu().numpy()] = found.weights.cpu().numpy()
    return x


def orthogonal_matching_pursuit_np(
    self: Any, A: Array, b: Array, budget: int, lam: float = 1.0
) -> npt.NDArray[np.float32]:
    """:func:`orthogonal_matching_pursuit` of arrays."""
    return orthogonal_matching_pursuit(self, torch.from_numpy(A), torch.from_numpy(b), budget, lam)
