"""``methods_utils/submodular_optimizer.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pyddfast.compat.deepcore.submodular_function import SubmodularFunction

__all__ = ["ApproximateLazyGreedy", "LazyGreedy", "NaiveGreedy", "StochasticGreedy"]

Array = npt.NDArray[Any]


class NaiveGreedy:
    """Greedy maximisation that asks for every gain at every pick.

    Args:
        args: The script's arguments; not used.
        index: (n,) what samples are called.
        budget: Picks, 1 to n.
        already_selected: Has to be empty.

    Raises:
        ValueError: The budget is out of range, or something is selected already.
    """

    exact = True  # picks the largest gain, which the operators do as well

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
                exact picks come from the operators; or any other.
            update_state: Called after each pick of such another.
            kwargs: For both.

        Returns:
            Picked entries of ``index``, in their order there.
        """
        selected = np.zeros(self.n, dtype=bool)
        function = getattr(gain_function, "__self__", None)
        plain = getattr(gain_function, "__name__", "") == "calc_gain"
        if self.exact and plain and isinstance(function, SubmodularFunction):
            picks = function.greedy(self.budget)
            if picks is not None:
                selected[picks.numpy()] = True
                return self.index[selected]

        def gain(candidates: Array) -> Array:
            return gain_function(candidates, selected, **kwargs)

        gains = np.zeros(self.n)
        self._begin(gain, gains)
        for _ in range(self.budget):
            pick = self._next(gain, gains, selected)
            selected[pick] = True
            gains[pick] = -np.inf
            if update_state is not None:
                update_state(np.array([pick]), selected, **kwargs)
        return self.index[selected]

    def _begin(self, gain: Callable[[Array], Array], gains: Array) -> None:
        """Before the first pick."""

    def _next(self, gain: Callable[[Array], Array], gains: Array, selected: Array) -> int:
        """The next pick; ``gains`` are as of earlier calls, -inf of what is picked."""
        gains[~selected] = gain(~selected)
        return int(gains.argmax())


class LazyGreedy(NaiveGreedy):
    """Asks again only for the largest gain, until it stays the largest."""

    def _begin(self, gain: Callable[[Array], Array], gains: Array) -> None:
        gains[:] = gain(np.ones(self.n, dtype=bool))

    def _next(self, gain: Callable[[Array], Array], gains: Array, selected: Array) -> int:
        best, found = -np.inf, -1
        while (largest := int(gains.argmax())) != found:
            gains[largest] = gain(np.array([largest]))[0]
            if gains[largest] >= best:
                best, found = gains[largest], largest
        return found


class ApproximateLazyGreedy(LazyGreedy):
    """Takes the largest known gain if it is still β of what it was.

    Args:
        args: As for the others.
        index: As for the others.
        budget: As for the others.
        already_selected: Has to be empty.
        beta: β.
    """

    exact = False

    def __init__(
        self,
        args: Any,
        index: Array,
        budget: int,
        already_selected: Sequence[int] = (),
        beta: float = 0.9,
    ) -> None:
        super().__init__(args, index, budget, already_selected)
        self.beta = beta

    def _next(self, gain: Callable[[Array], Array], gains: Array, selected: Array) -> int:
        while True:
            largest = int(gains.argmax())
            known, gains[largest] = gains[largest], gain(np.array([largest]))[0]
            # A negative gain that stays is below its share: the official loop would not end.
            if gains[largest] >= min(self.beta * known, known):
                return largest


class StochasticGreedy(NaiveGreedy):
    """Takes the largest gain of a random sample, drawn by numpy's global generator as there.

    Args:
        args: As for the others.
        index: As for the others.
        budget: As for the others.
        already_selected: Has to be empty.
        epsilon: ε: samples are of max(round(-ln ε · n / budget), 1) candidates.
    """

    exact = False

    def __init__(
        self,
        args: Any,
        index: Array,
        budget: int,
        already_selected: Sequence[int] = (),
        epsilon: float = 0.9,
    ) -> None:
        super().__init__(args, index, budget, already_selected)
        self.epsilon = epsilon

    def _next(self, gain: Callable[[Array], Array], gains: Array, selected: Array) -> int:
        size = max(round(-np.log(self.epsilon) * self.n / self.budget), 1)
        free = np.flatnonzero(~selected)
        sample = np.random.choice(  # noqa: NPY002 - the generator that the official code uses
            free, replace=False, size=min(size, len(free))
        )
        return int(sample[gain(sample).argmax()])
