"""DeepCore: functions and classes of ``deepcore/methods`` of PatrickZH/DeepCore (74ec709).

Each stands where the official one does, with its name, signature and meaning, so that one import
line behind the official definition replaces it; ``docs/drop-in/deepcore.md`` has the lines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyddfast import ops

__all__ = [
    "FacilityLocation",
    "GraphCut",
    "LazyGreedy",
    "NaiveGreedy",
    "cossim",
    "cossim_np",
    "cossim_pair",
    "cossim_pair_np",
    "euclidean_dist",
    "euclidean_dist_np",
    "euclidean_dist_pair",
    "euclidean_dist_pair_np",
    "herding",
    "k_center_greedy",
    "orthogonal_matching_pursuit",
    "orthogonal_matching_pursuit_np",
]

Array = npt.NDArray[Any]


# --- methods_utils/euclidean.py and cossim.py ----------------------------------------------------


def euclidean_dist(x: Tensor, y: Tensor) -> Tensor:
    """Distances (n, m) of rows, whose squares are at least 1e-12.

    Args:
        x: (n, D) floating point.
        y: (m, D) floating point.
    """
    squares = torch.addmm(x.square().sum(1, keepdim=True), x, y.T, alpha=-2)
    return squares.add_(y.square().sum(1)).clamp_(min=1e-12).sqrt_()


def euclidean_dist_pair(x: Tensor) -> Tensor:
    """:func:`euclidean_dist` of rows with each other, (n, n)."""
    return euclidean_dist(x, x)


def euclidean_dist_np(x: Array, y: Array) -> Array:
    """:func:`euclidean_dist` of arrays; two matrices in memory at most, where it had five."""
    return euclidean_dist(torch.from_numpy(x), torch.from_numpy(y)).numpy()


def euclidean_dist_pair_np(x: Array) -> Array:
    """:func:`euclidean_dist_pair` of an array."""
    return euclidean_dist_np(x, x)


def cossim(v1: Tensor, v2: Tensor) -> Tensor:
    """0.5 + 0.5 cos of rows, (n, m); a row of zeros has 0.5 with all, where it had NaN.

    Args:
        v1: (n, D) floating point.
        v2: (m, D) floating point.
    """
    one, other = (v.norm(dim=1) for v in (v1, v2))
    one, other = (torch.where(norm > 0, norm, 1.0) for norm in (one, other))
    return (v1 @ v2.T).div_(one[:, None]).div_(other).mul_(0.5).add_(0.5)


def cossim_pair(v1: Tensor) -> Tensor:
    """:func:`cossim` of rows with each other, (n, n)."""
    return cossim(v1, v1)


def cossim_np(v1: Array, v2: Array) -> Array:
    """:func:`cossim` of arrays."""
    return cossim(torch.from_numpy(v1), torch.from_numpy(v2)).numpy()


def cossim_pair_np(v1: Array) -> Array:
    """:func:`cossim_pair` of an array."""
    return cossim_np(v1, v1)


# --- kcentergreedy.py, herding.py ----------------------------------------------------------------


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


# --- methods_utils/submodular_function.py and submodular_optimizer.py ----------------------------


class _Submodular:
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

    def greedy(self, budget: int) -> Tensor:
        """Positions of the picks, in their order."""
        raise NotImplementedError


class FacilityLocation(_Submodular):
    """Σ_i max(0, max_{j picked} s_ij)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cur_max = np.zeros(self.n, dtype=np.float32)

    def calc_gain(self, idx_gain: Array, selected: Array, **kwargs: Any) -> Array:
        """What each candidate would add."""
        more = self.similarity[:, idx_gain] - self.cur_max[:, None]
        return np.maximum(0.0, more).sum(axis=0)  # type: ignore[no-any-return]

    def update_state(self, new_selection: Array, total_selected: Array, **kwargs: Any) -> None:
        """Tell that samples were picked."""
        best = self.similarity[:, new_selection].max(axis=1)
        self.cur_max = np.maximum(self.cur_max, best)

    def greedy(self, budget: int) -> Tensor:
        """By :func:`ops.facility_location`."""
        similarity = torch.from_numpy(self.similarity)
        return ops.facility_location(None, budget, similarity=similarity).picks


class GraphCut(_Submodular):
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


class LazyGreedy:
    """Greedy maximisation; both official exact optimisers give the same picks.

    Args:
        args: The script's arguments; not used.
        index: (n,) what samples are called.
        budget: Picks, 1 to n.
        already_selected: Has to be empty.

    Raises:
        ValueError: The budget is out of range, or something is selected already.
    """

    def __init__(
        self, args: Any, index: Array, budget: int, already_selected: Sequence[int] = ()
    ) -> None:
        if budget <= 0 or budget > len(index):
            raise ValueError("Illegal budget for optimizer.")
        if len(already_selected):
            raise ValueError("already_selected must be empty")
        self.args, self.index, self.n, self.budget = args, index, len(index), budget

    def select(
        self,
        gain_function: Callable[..., Array],
        update_state: Callable[..., None] | None = None,
        **kwargs: Any,
    ) -> Array:
        """Pick.

        Args:
            gain_function: ``calc_gain`` of a :class:`FacilityLocation` or :class:`GraphCut`, whose
                picks then come from the operators; or any other, which is called for all
                candidates at every pick.
            update_state: Called after each pick of such another.
            kwargs: For both.

        Returns:
            Picked entries of ``index``, in their order there.
        """
        selected = np.zeros(self.n, dtype=bool)
        function = getattr(gain_function, "__self__", None)
        if isinstance(function, _Submodular):
            selected[function.greedy(self.budget).numpy()] = True
            return self.index[selected]
        for _ in range(self.budget):
            gains = np.full(self.n, -np.inf)
            gains[~selected] = gain_function(~selected, selected, **kwargs)
            pick = int(gains.argmax())
            selected[pick] = True
            if update_state is not None:
                update_state(np.array([pick]), selected, **kwargs)
        return self.index[selected]


NaiveGreedy = LazyGreedy


# --- gradmatch.py --------------------------------------------------------------------------------


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
