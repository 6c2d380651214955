"""Hook for what watches a training sample by sample, such as a recorder of training dynamics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, cast

from torch import Tensor, nn

from pyddfast.train.distributed import Ranks
from pyddfast.train.models import model_digest
from pyddfast.train.plan import Plan

__all__ = ["RECORDER", "Recorder", "Recording", "Ticks", "tick_ends"]

RECORDER = "recorder.safetensors"

# Gives (positions in the data set, logits) of every sample, batch by batch.
Snapshot: TypeAlias = Callable[[], Iterable[tuple[Tensor, Tensor]]]


class Recorder(Protocol):
    """What a training tells, tick by tick; its state is part of the training's checkpoint.

    Under ``torchrun`` each process tells its recorder its own share of the samples, and the
    recorder also has ``all_reduce(group)``, which gives all of them what each was told.

    ``pyddfast.coresets.TrainingDynamics`` is one.
    """

    def update(self, logits: Tensor, targets: Tensor, indices: Tensor) -> None:
        """Take the logits (B, C) of samples, their labels (B,) and positions in the data set.

        As the :class:`Recording` says, with ``teacher=``, a teacher's logits (B, C), and
        ``features=``, the inputs (B, D) of the network's last layer.
        """

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
        ticks: ``"epoch"`` or a number of ticks; see :func:`tick_ends`.
        mode: ``"train"``: the logits of the training steps themselves, augmented, in training mode;
            costs next to nothing.  ``"eval"``: at the end of each tick a pass over the un-augmented
            data in evaluation mode; about a third of an epoch's time each.
        teacher: its logits are told, too; a network for the images of the training, which is moved
            to its device and put in eval mode.
        soft_labels: of the teacher.  ``"image"``: of each un-augmented image, made once and kept,
            4·N·C bytes on the training device.  ``"view"``: of what the network itself sees, by a
            forward pass of the teacher each time.
        features: whether the last layer's inputs are told, too.
    """

    recorder: Recorder
    ticks: int | Literal["epoch"] = "epoch"
    mode: Literal["train", "eval"] = "train"
    teacher: nn.Module | None = None
    soft_labels: Literal["image", "view"] = "image"
    features: bool = False

    def __post_init__(self) -> None:
        _check(self.ticks, self.mode)
        if self.soft_labels not in ("image", "view"):
            raise ValueError(f"soft_labels must be 'image' or 'view', got {self.soft_labels!r}")

    def to_dict(self) -> dict[str, Any]:
        """What decides the recorder's state, JSON values."""
        facts: dict[str, Any] = {"ticks": self.ticks, "mode": self.mode}
        if self.teacher is not None:
            facts["teacher"] = {
                "sha256": model_digest(self.teacher),
                "soft_labels": self.soft_labels,
            }
        if self.features:
            facts["features"] = "of the last layer"
        return facts


def tick_ends(
    ticks: int | Literal["epoch"], mode: Literal["train", "eval"], plan: Plan
) -> list[int]:
    """The optimiser steps after which a tick ends.

    In the mode ``"train"`` a tick is one whole epoch or several, since only in those every image is
    seen: ``"epoch"`` makes each a tick, a number spreads the ends over them evenly.  What is left
    of the training after its last whole epoch is not recorded.

    In the mode ``"eval"`` a tick may end anywhere: a number of ticks end at equally spaced steps.
    The last tick ends with the training; under ``"epoch"`` a last partial epoch of a half or more
    is a tick of its own (7.8 epochs are 8 ticks), a shorter one belongs to the tick before.

    Args:
        ticks: ``"epoch"``, or how many.
        mode: of the recording.
        plan: of the training.

    Raises:
        ValueError: the training is too short for them, or an argument is none of these.
    """
    _check(ticks, mode)
    total, epoch = plan.total_steps, plan.steps_per_epoch
    if mode == "train":
        whole = plan.samples(total) // plan.samples_per_epoch
        count = whole if ticks == "epoch" else ticks
        if whole < max(count, 1):
            raise ValueError(
                f"ticks = {ticks!r} in mode 'train' needs {max(count, 1)} whole epochs, since each "
                f"image is seen once an epoch; the training has {total} steps of the {epoch} of an "
                "epoch: give fewer ticks, more epochs or mode = 'eval'"
            )
        return [epoch * math.ceil(whole * (k + 1) / count) for k in range(count)]
    if ticks == "epoch":
        count = max(1, int(plan.epochs + 0.5))
        return [*(epoch * (k + 1) for k in range(count - 1)), total]
    if total < ticks:
        raise ValueError(
            f"ticks = {ticks} is more than the {total} steps of the training; "
            "give fewer ticks or smaller batches"
        )
    return [math.ceil(total * (k + 1) / ticks) for k in range(ticks)]


def _check(ticks: object, mode: object) -> None:
    whole = isinstance(ticks, int) and not isinstance(ticks, bool) and ticks >= 1
    if ticks != "epoch" and not whole:
        raise ValueError(f"ticks must be 'epoch' or an int of at least 1, got {ticks!r}")
    if mode not in ("train", "eval"):
        raise ValueError(f"mode must be 'train' or 'eval', got {mode!r}")


class Ticks:
    """A recording of one training in progress.

    Args:
        recording: what to record.
        plan: of the training.
        labels: int64 (N,) of all samples.
        snapshot: logits of all samples, for the mode ``"eval"``.
        beside: what the recorder is told of samples beside the logits just given, by name.
        ranks: processes that divide the samples among them; of a snapshot, too.

    Raises:
        ValueError: the ticks do not fit the training, or the recorder several processes.
    """

    def __init__(
        self,
        recording: Recording,
        plan: Plan,
        labels: Tensor,
        snapshot: Snapshot,
        beside: Callable[[Tensor], Mapping[str, Tensor]],
        ranks: Ranks = Ranks(),  # noqa: B008 frozen
    ) -> None:
        self.recorder = recording.recorder
        self.ends = frozenset(tick_ends(recording.ticks, recording.mode, plan))
        self.in_training = recording.mode == "train"
        self._labels, self._snapshot, self._beside = labels.cpu(), snapshot, beside
        if ranks.world > 1 and not hasattr(self.recorder, "all_reduce"):
            raise ValueError(
                f"{type(self.recorder).__name__} has no all_reduce, which a recorder needs where "
                f"{ranks.world} processes train"
            )
        self._ranks = ranks
        self._own = False  # whether the recorder was told what those of other processes were not

    def takes(self, step: int) -> bool:
        """Whether the logits of a training step (from 0) are recorded."""
        return self.in_training and step < max(self.ends)

    def take(self, logits: Tensor, ids: Tensor) -> None:
        """The logits of a training step."""
        update = cast(Callable[..., None], self.recorder.update)
        update(logits.detach(), self._labels[ids], ids, **self._beside(ids))
        self._own = True

    def end(self) -> None:
        """End a tick, after the pass over the data where there is one."""
        if not self.in_training:
            for ids, logits in self._snapshot():
                self.take(logits, ids)
            self._own = True  # a process may have had no batch of a small set
        self.share()
        self.recorder.end_tick()

    def share(self) -> None:
        """Give every process's recorder what all were told.

        At the end of each epoch at the latest: in the next one a sample may be another process's,
        and a recorder knows one process's presentations of it since they last agreed.
        """
        if self._own and self._ranks.world > 1:
            # Through gloo, which has no device of its own: a recorder may be on the host.
            cast(Any, self.recorder).all_reduce(self._ranks.group)
        self._own = False

    def state(self) -> tuple[dict[str, Tensor], Any]:
        """Tensors and JSON values of the recorder; every process takes part."""
        self.share()
        state = self.recorder.state_dict()
        return {k: v for k, v in state.items() if isinstance(v, Tensor)}, state["meta"]

    def restore(self, tensors: Mapping[str, Tensor], meta: Any) -> None:
        """Put the recorder back to what :meth:`state` returned."""
        self.recorder.load_state_dict({**tensors, "meta": meta})
