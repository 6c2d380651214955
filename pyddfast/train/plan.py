"""Budgets, and which images each step of a training sees."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Budget", "Epochs", "Plan", "Samples", "Steps"]


@dataclass(frozen=True)
class _Amount:
    count: int

    def __post_init__(self) -> None:
        name = type(self).__name__
        if isinstance(self.count, bool) or not isinstance(self.count, int):
            raise TypeError(f"{name} takes an int, got {self.count!r}")
        if self.count < 1:
            raise ValueError(f"{name} must be positive, got {self.count}")


@dataclass(frozen=True)
class Epochs(_Amount):
    """Train for this many passes over the set."""


@dataclass(frozen=True)
class Steps(_Amount):
    """Train for this many optimiser steps."""


@dataclass(frozen=True)
class Samples(_Amount):
    """Train until this many images were seen, exactly: the last batch is cut to fit."""


Budget: TypeAlias = Epochs | Steps | Samples


@dataclass(frozen=True)
class Plan:
    """The batches of a whole training, known from its first step on.

    Each epoch visits the ``count`` images once, in batches of ``batch_size``.  A last partial batch
    is kept unless ``drop_last``; one of a single image joins the batch before it.

    Attributes:
        count: images of the set.
        batch_size: images a step.
        drop_last: leave the last partial batch of an epoch out.
        budget: how much to train.
    """

    count: int
    batch_size: int
    drop_last: bool
    budget: Budget

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError("the set has no images")
        if self.drop_last and self.count < self.batch_size:
            raise ValueError(
                f"drop_last leaves nothing of {self.count} images at batch size {self.batch_size}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of a full epoch."""
        return self._steps(self.samples_per_epoch)

    @property
    def samples_per_epoch(self) -> int:
        """Images seen in a full epoch."""
        if self.drop_last:
            return self.count - self.count % self.batch_size
        return self.count

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the training."""
        if isinstance(self.budget, Epochs):
            return self.budget.count * self.steps_per_epoch
        if isinstance(self.budget, Steps):
            return self.budget.count
        full, rest = divmod(self.budget.count, self.samples_per_epoch)
        return full * self.steps_per_epoch + (self._steps(rest) if rest else 0)

    @property
    def epochs(self) -> float:
        """Length in epochs; fractional where the budget ends inside one."""
        return self.samples(self.total_steps) / self.samples_per_epoch

    @property
    def smallest_batch(self) -> int:
        """Images of the smallest batch that occurs."""
        last = range(max(0, self.total_steps - self.steps_per_epoch), self.total_steps)
        first = range(min(self.steps_per_epoch, self.total_steps))
        sizes = []
        for step in {*first, *last}:
            _, start, stop = self.locate(step)
            sizes.append(stop - start)
        return min(sizes)

    def locate(self, step: int) -> tuple[int, int, int]:
        """Epoch of a step, and the start and stop of its batch in that epoch's order."""
        epoch, position = divmod(step, self.steps_per_epoch)
        images = self.samples_per_epoch
        if isinstance(self.budget, Samples):
            images = min(images, self.budget.count - epoch * images)
        start = position * self.batch_size
        is_last = position == self._steps(images) - 1
        return epoch, start, images if is_last else start + self.batch_size

    def samples(self, steps: int) -> int:
        """Images seen after that many steps."""
        if steps == 0:
            return 0
        epoch, _, stop = self.locate(steps - 1)
        return epoch * self.samples_per_epoch + stop

    def evaluation_steps(self, evaluations: int) -> list[int]:
        """Steps after which to evaluate: evenly spread ends of epochs, and the last step.

        Raises:
            ValueError: ``evaluations`` is below 1.
        """
        if evaluations < 1:
            raise ValueError(f"evaluations must be at least 1, got {evaluations}")
        wanted = set()
        for k in range(1, evaluations + 1):
            epoch = math.ceil(self.epochs * k / evaluations)
            wanted.add(min(epoch * self.steps_per_epoch, self.total_steps))
        return sorted(wanted | {self.total_steps})

    def _steps(self, images: int) -> int:
        full, rest = divmod(images, self.batch_size)
        if rest == 0 or (full and rest == 1):
            return full
        return full + 1
