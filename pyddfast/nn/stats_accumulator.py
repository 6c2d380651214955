"""Statistics of a whole set of activations, a batch at a time."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from pyddfast import ops

Convention = Literal["whole", "batch_mean"]


class StatsAccumulator:
    """Mean and variance a channel over any number of batches, without gradients.

    Counts, means and sums of squared deviations are merged in float64 (Chan, Golub and LeVeque,
    1983), so that neither the number of batches nor a mean far from zero costs accuracy::

        stats = StatsAccumulator()
        for images in loader:
            stats.update(features(images))
        mean, var = stats.mean_var()

    Results depend on the order of the batches within rounding (1e-15).
    """

    def __init__(self) -> None:
        # (4, C), float64: elements, their mean, squared deviations from it, and the sum of the
        # batches' own squared deviations; None before the first batch.
        self._state: Tensor | None = None

    def update(self, x: Tensor, shift: Tensor | None = None) -> None:
        """Adds a batch.

        Args:
            x: (B, C, ...), as `ops.channel_stats`; an empty batch adds nothing.
            shift: (C,), a guess of the mean.

        Raises:
            TypeError: As `ops.channel_stats`.
            ValueError: As `ops.channel_stats`; another C or device than before.
        """
        with torch.no_grad():  # which makes x a constant
            _, mean, var = ops.channel_stats(x, shift)
            count = x.numel() // max(1, x.shape[1])
            if count == 0:
                return
            wide = torch.float32 if x.device.type == "mps" else torch.float64
            mean, squares = mean.to(wide), var.to(wide) * count
            self._add(torch.stack([torch.full_like(mean, count), mean, squares, squares]))

    def merge(self, other: StatsAccumulator) -> None:
        """Adds the batches of `other`, which keeps them."""
        if not isinstance(other, StatsAccumulator):
            raise TypeError(f"other is a StatsAccumulator, not {type(other).__name__}")
        if other._state is not None:
            self._add(other._state)

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Makes every process hold the batches of all of them, merged in the order of the ranks.

        Raises:
            RuntimeError: ``torch.distributed`` is not initialised.
        """
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError("all_reduce needs torch.distributed.init_process_group() before it")
        states: list[Tensor | None] = [None] * dist.get_world_size(group)
        dist.all_gather_object(states, None if self._state is None else self._state.cpu(), group)
        device = None if self._state is None else self._state.device
        self._state = None
        for state in states:
            if state is not None:
                self._add(state if device is None else state.to(device))

    def mean_var(self, convention: Convention = "whole") -> tuple[Tensor, Tensor]:
        """The statistics, (C,) each, float64.

        Args:
            convention: ``"whole"``: the biased variance of all elements.  ``"batch_mean"``: the
                mean of the batches' biased variances, weighted by their sizes, which lacks the
                spread of the batches' means: what G-VBSM and EDC store.

        Raises:
            ValueError: No batch was added, or an unknown convention.
        """
        if convention not in ("whole", "batch_mean"):
            raise ValueError(f"convention is {convention!r}; allowed are whole, batch_mean")
        if self._state is None:
            raise ValueError("no batch has been added")
        count, mean, squares, within = self._state
        return mean.clone(), (squares if convention == "whole" else within) / count

    @property
    def count(self) -> int:
        """Elements a channel so far."""
        return 0 if self._state is None else int(self._state[0, 0])

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint needs."""
        return {} if self._state is None else {"state": self._state.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continues from a checkpoint.

        Raises:
            ValueError: Not a state of this class.
        """
        tensor = state.get("state")
        if set(state) - {"state"} or (tensor is not None and tensor.shape[:1] != (4,)):
            raise ValueError(f"state has keys {sorted(state)}; a (4, C) tensor 'state' is needed")
        self._state = None if tensor is None else tensor.clone()

    def _add(self, other: Tensor) -> None:
        if self._state is None:
            self._state = other.clone()
            return
        state = self._state
        if other.shape != state.shape or other.device != state.device:
            raise ValueError(
                f"statistics of {other.shape[1]} channels on {other.device} cannot be added to "
                f"those of {state.shape[1]} on {state.device}"
            )
        count = state[0] + other[0]
        step, share = other[1] - state[1], other[0] / count
        between = step.square() * state[0] * share
        self._state = torch.stack(
            [
                count,
                state[1] + step * share,
                state[2] + other[2] + between,
                state[3] + other[3],
            ]
        )
