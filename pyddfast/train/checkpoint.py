"""Run a trainer to its end with evaluations and checkpoints; a killed run continues exactly."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyddfast.train.loop import Trainer
from pyddfast.train.record import Ticks
from pyddfast.train.run import METRICS, RunFolder

__all__ = ["CHECKPOINT", "CHECKPOINT_SECONDS", "Fit", "diverged", "fit"]

CHECKPOINT = "checkpoint.safetensors"
# A run may lose five minutes of work at most; one minute is left for a slow step or disk.
CHECKPOINT_SECONDS = 240.0
# Names of a recorder's tensors in a checkpoint begin so.
_RECORDED = "recorder/"


def diverged(history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a training's loss was NaN or infinite before one of its evaluations."""
    return any(row["train_loss"] is None for row in history)


@dataclass
class Fit:
    """What a finished training reports.

    Attributes:
        history: a row an evaluation: step, epoch, samples, lr, train_loss, test_accuracy.
        train_seconds: time in training steps, evaluations and checkpoints left out.
        samples: images seen.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    train_seconds: float = 0.0
    samples: int = 0

    @property
    def diverged(self) -> bool:
        """Whether the training loss was not finite: the weights are then worth nothing."""
        return diverged(self.history)

    @property
    def images_per_second(self) -> float:
        """Throughput of the training steps."""
        return self.samples / max(self.train_seconds, 1e-9)


def fit(
    trainer: Trainer,
    evaluate: Callable[[], float],
    *,
    evaluations: int = 10,
    folder: RunFolder | None = None,
    key: Mapping[str, Any] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    advance: Callable[[int], None] = lambda n: None,
    on_epoch: Callable[[int], None] | None = None,
    ticks: Ticks | None = None,
) -> Fit:
    """Train to the end of the plan.

    Args:
        trainer: at its start; continued from the folder's checkpoint if that has the same ``key``.
        evaluate: test accuracy of the model as it is, in [0, 1].
        evaluations: how many, evenly spread over the epochs; the last step is always one.
        folder: where checkpoints and metrics go, written by the first of several processes; None
            keeps nothing on disk.
        key: names this training in the folder (e.g. ``{"seed": 0}``); part of every metrics row.
        checkpoint_seconds: at most this long between two checkpoints.
        advance: told the number of steps taken.
        on_epoch: told the number of finished epochs, after each.
        ticks: records the training; its recorder is saved and restored with the trainer.

    Raises:
        ValueError: ``evaluations`` is below 1, or the checkpoint is damaged.
    """
    name, ranks = dict(key or {}), trainer.ranks
    at = set(trainer.plan.evaluation_steps(evaluations))
    tick_ends = frozenset[int]() if ticks is None else ticks.ends
    result = _restore(trainer, folder, name, ticks)
    advance(trainer.step)
    per_epoch = trainer.plan.steps_per_epoch
    saved = began = time.perf_counter()
    while not trainer.done:
        if ticks is not None:
            trainer.on_logits = ticks.take if ticks.takes(trainer.step) else None
        trainer.run_step()
        advance(1)
        epoch_ends = trainer.step % per_epoch == 0
        if ticks is not None and epoch_ends:
            ticks.share()
        if trainer.step in at or trainer.step in tick_ends or (on_epoch is not None and epoch_ends):
            _wait(trainer.device)
            result.train_seconds += time.perf_counter() - began
            if ticks is not None and trainer.step in tick_ends:
                ticks.end()
            if on_epoch is not None and epoch_ends:
                on_epoch(trainer.step // per_epoch)
            if trainer.step in at:
                row = _row(trainer, evaluate())
                result.history.append(row)
                if folder is not None and ranks.first:
                    folder.log({**name, **row})
            began = time.perf_counter()
        if folder is not None and ranks.agree(time.perf_counter() - saved >= checkpoint_seconds):
            _wait(trainer.device)
            result.train_seconds += time.perf_counter() - began
            tensors, counters = trainer.state()
            state = {
                "key": name,
                "counters": counters,
                "history": result.history,
                "train_seconds": result.train_seconds,
            }
            if ticks is not None:
                recorded, state["recorder"] = ticks.state()
                tensors |= {f"{_RECORDED}{k}": v for k, v in recorded.items()}
            if ranks.first:
                folder.write_tensors(CHECKPOINT, tensors, state)
            saved = began = time.perf_counter()
    result.samples = trainer.plan.samples(trainer.step)
    return result


def _restore(
    trainer: Trainer, folder: RunFolder | None, name: dict[str, Any], ticks: Ticks | None
) -> Fit:
    if folder is None:
        return Fit()
    found = folder.read_tensors(CHECKPOINT)
    result, step = Fit(), 0
    if found is not None:
        tensors, state = found
        try:
            if state["key"] == name:  # else it is of another seed
                result = _continue(trainer, tensors, state, ticks)
                step = trainer.step
        except Exception as error:
            # A state that is no dict, lacks something or does not fit: each its own type.
            raise ValueError(
                f"{folder.path / CHECKPOINT} is no checkpoint of this training: {error!r}"
            ) from error

    def before(row: dict[str, Any]) -> bool:
        if any(row.get(k) != v for k, v in name.items()):
            return True
        if not isinstance(row.get("step"), int):
            raise ValueError(f"{folder.path / METRICS} has a row without a step: {row}")
        return bool(row["step"] <= step)

    # What this training logged after its checkpoint will be logged again.
    if trainer.ranks.first:
        folder.keep_metrics(before)
    return result


def _continue(
    trainer: Trainer, tensors: Mapping[str, Tensor], state: dict[str, Any], ticks: Ticks | None
) -> Fit:
    history, seconds = list(state["history"]), float(state["train_seconds"])
    trainer.restore(tensors, state["counters"])
    if ticks is not None:
        own = {k[len(_RECORDED) :]: v for k, v in tensors.items() if k.startswith(_RECORDED)}
        ticks.restore(own, state["recorder"])
    return Fit(history, seconds)


def _row(trainer: Trainer, accuracy: float) -> dict[str, Any]:
    plan = trainer.plan
    samples = plan.samples(trainer.step)
    return {
        "step": trainer.step,
        "epoch": round(samples / plan.samples_per_epoch, 6),
        "samples": samples,
        "lr": trainer.optimizer.param_groups[0]["lr"],
        "train_loss": trainer.read_loss(),
        "test_accuracy": accuracy,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
