"""Hook for what watches a training sample by sample, such as a recorder of training dynamics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from torch import Tensor

from pyddfast.train.plan import Plan

__all__ = ["RECORDER", "Recorder", "Recording", "Ticks"]

RECORDER = "recorder.safetensors"

# Gives (positions in the data set, logits) of every sample, batch by batch.
Snapshot: TypeAlias = Callable[[], Iterable[tuple[Tensor, Tensor]]]


class Recorder(Protocol):
    """What a training tells, tick by tick; its state is part of the training's checkpoint.

    ``pyddfast.coresets.TrainingDynamics`` is one.
    """

    def update(self, logits: Tensor, targets: Tensor, indices: Tensor) -> None:
        """Take the logits (B, C) of samples, their labels (B,) and positions in the data set."""

    def end_tick(self) -> None:
        """The stretch of training in which each sample was told once is over."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors, and under ``"meta"`` JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue from such a state."""


@dataclass(frozen=True)
class Recording:
    """What is recorded of a training.

    Attributes:
        recorder: at its start; a resumed training puts it back to where the checkpoint is.
        ticks: ``"epoch"``: a tick a whole epoch; or a number of ticks that end at equally spaced
            steps, the last step among them, whatever the length of the training.
        mode: ``"train"``: the logits of the training steps themselves, augmented, in training mode;
            costs next to nothing.  ``"eval"``: at the end of each tick a pass over the un-augmented
            data in evaluation mode; about a third of an epoch's time each.
    """

    recorder: Recorder
    ticks: int | Literal["epoch"] = "epoch"
    mode: Literal["train", "eval"] = "train"

    def __post_init__(self) -> None:
        whole = isinstance(self.ticks, int) and not isinstance(self.ticks, bool)
        if self.ticks != "epoch" and not (whole and int(self.ticks) >= 1):
            raise ValueError(f"ticks must be 'epoch' or an int of at least 1, got {self.ticks!r}")
        if self.mode not in ("train", "eval"):
            raise ValueError(f"mode must be 'train' or 'eval', got {self.mode!r}")

    def steps(self, plan: Plan) -> list[int]:
        """The optimiser steps after which a tick ends.

        Raises:
            ValueError: the training has fewer steps than ticks, or not a whole epoch.
        """
        total = plan.total_steps
        if self.ticks == "epoch":
            epochs = total // plan.steps_per_epoch
            if epochs < 1:
                raise ValueError(
                    f"ticks = 'epoch', but the training has {total} steps of the "
                    f"{plan.steps_per_epoch} of an epoch; give a number of ticks"
                )
            return [plan.steps_per_epoch * (k + 1) for k in range(epochs)]
        if total < self.ticks:
            raise ValueError(
                f"ticks = {self.ticks} is more than the {total} steps of the training; "
                "give fewer ticks or smaller batches"
            )
        return [math.ceil(total * (k + 1) / self.ticks) for k in range(self.ticks)]

    def to_dict(self) -> dict[str, Any]:
        """Ticks and mode, JSON values."""
        return {"ticks": self.ticks, "mode": self.mode}


class Ticks:
    """A recording of one training in progress.

    Args:
        recording: what to record.
        plan: of the training.
        labels: int64 (N,) of all samples.
        snapshot: logits of all samples, for the mode ``"eval"``.

    Raises:
        ValueError: the ticks do not fit the training.
    """

    def __init__(
        self, recording: Recording, plan: Plan, labels: Tensor, snapshot: Snapshot
    ) -> None:
        self.recorder = recording.recorder
        self.ends = frozenset(recording.steps(plan))
        self.in_training = recording.mode == "train"
        self._labels, self._snapshot = labels.cpu(), snapshot

    def take(self, logits: Tensor, ids: Tensor) -> None:
        """The logits of a training step."""
        self.recorder.update(logits.detach(), self._labels[ids], ids)

    def end(self) -> None:
        """End a tick, after the pass over the data where there is one."""
        if not self.in_training:
            for ids, logits in self._snapshot():
                self.take(logits, ids)
        self.recorder.end_tick()

    def state(self) -> tuple[dict[str, Tensor], Any]:
        """Tensors and JSON values of the recorder."""
        state = self.recorder.state_dict()
        return {k: v for k, v in state.items() if isinstance(v, Tensor)}, state["meta"]

    def restore(self, tensors: Mapping[str, Tensor], meta: Any) -> None:
        """Put the recorder back to what :meth:`state` returned."""
        self.recorder.load_state_dict({**tensors, "meta": meta})
