"""One recorded training on the full data, and the scores that come from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from pyddfast.coresets.dynamics import Extra, NeverLearned, TrainingDynamics
from pyddfast.coresets.selection import Scores, mean_scores
from pyddfast.data import ImageDataset, ImageSource
from pyddfast.random import Purpose, generator
from pyddfast.train import Budget, Recording, Teacher, teacher_recipe, train_teacher
from pyddfast.train.distributed import resolve_device
from pyddfast.train.models import ModelSpec, describe_model
from pyddfast.train.recipes import Recipe

__all__ = ["Recorded", "check_epochs", "dynamics_scores", "record_training", "training_device"]


class Recorded(NamedTuple):
    """A recorded training.

    Attributes:
        dynamics: Its recorder, at the end.
        teacher: The trained network and its record.
        meta: Model, recipe, ticks, mode, seed and accuracy; JSON values for :class:`Scores`.
    """

    dynamics: TrainingDynamics
    teacher: Teacher
    meta: dict[str, Any]

    def scores(
        self,
        name: str,
        *,
        drop_last: bool | None = None,
        never_learned: NeverLearned = "max",
    ) -> Scores:
        """As :meth:`TrainingDynamics.scores`, the training in its ``meta``."""
        scores = self.dynamics.scores(name, drop_last=drop_last, never_learned=never_learned)
        return Scores(scores.values, name, scores.high_means, {**scores.meta, **self.meta})


def record_training(
    dataset: ImageDataset,
    model: ModelSpec,
    dynamics: TrainingDynamics,
    *,
    epochs: int | None = None,
    recipe: Recipe | None = None,
    budget: Budget | None = None,
    ticks: int | Literal["epoch"] = "epoch",
    mode: Literal["train", "eval"] = "train",
    test_set: ImageSource | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> Recorded:
    """Train on hard labels and record every sample; resumable.

    Args:
        dataset: Training data, N samples.
        model: As :func:`pyddfast.train.train_teacher` takes it.
        dynamics: A new recorder of N samples; filled.
        epochs: Length of the training under :func:`pyddfast.train.teacher_recipe`.
        recipe: How to train, instead of ``epochs``.
        budget: Length instead of the recipe's epochs, the schedule compressed to it.
        ticks: As for :class:`pyddfast.train.Recording`.
        mode: As for :class:`pyddfast.train.Recording`.
        test_set: For the accuracy in the record; default ``dataset`` itself.
        seed: Seed of the training.
        device: Default CUDA where there is one, else the CPU.
        out: Run folder of the training; a finished one is read, not repeated.
        progress: Show it on stderr.

    Returns:
        The recorder, the network, and how they came about.

    Raises:
        ValueError: The recorder is of another size or has recorded before, or what
            :func:`pyddfast.train.train_teacher` refuses.
    """
    if len(dynamics) != len(dataset):
        raise ValueError(f"dynamics is of {len(dynamics)} samples, the data set has {len(dataset)}")
    if dynamics.tick:
        raise ValueError(f"dynamics has recorded {dynamics.tick} ticks; give a new one")
    recording = Recording(dynamics, ticks, mode)
    teacher = train_teacher(
        dataset,
        model,
        test_set=dataset if test_set is None else test_set,
        epochs=epochs,
        recipe=recipe,
        budget=budget,
        seed=seed,
        device=device,
        out=out,
        recording=recording,
        progress=progress,
    )
    meta = {
        "model": describe_model(model),
        "recipe": teacher.record["config"]["recipe"],
        "epochs": teacher.record["epochs"],
        "tick": ticks if ticks == "epoch" else "equally spaced",
        "mode": mode,
        "seed": seed,
        "accuracy": teacher.record["accuracy"],
        "accuracy_on": "the scored data" if test_set is None else "the test set",
    }
    return Recorded(dynamics, teacher, meta)


def dynamics_scores(
    dataset: ImageDataset,
    model: ModelSpec,
    name: str,
    *,
    epochs: int,
    repeats: int = 1,
    recipe: Recipe | None = None,
    mode: Literal["train", "eval"] = "train",
    window: int = 10,
    record: Sequence[Extra] = (),
    drop_last: bool | None = None,
    never_learned: NeverLearned = "max",
    test_set: ImageSource | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> Scores:
    """A score of ``TrainingDynamics``, averaged over trainings of so many epochs.

    Args:
        dataset: Training data, scored as well.
        model: As :func:`pyddfast.train.train_teacher` takes it.
        name: One of ``DYNAMICS_SCORES``.
        epochs: Passes over the data; a tick each.
        repeats: Number of trainings, each with its own initialisation and order.
        recipe: How to train, instead of :func:`pyddfast.train.teacher_recipe`; its epochs are
            replaced by ``epochs``.
        mode: As for :class:`pyddfast.train.Recording`.
        window: J of the window scores.
        record: As for :class:`TrainingDynamics`.
        drop_last: As for :meth:`TrainingDynamics.values`.
        never_learned: As for :meth:`TrainingDynamics.values`.
        test_set: For the networks' accuracy in the record; default ``dataset`` itself.
        seed: Seed of all trainings.
        device: Default CUDA where there is one, else the CPU.
        out: Folder of the trainings, ``net0``, ``net1`` ...; finished ones are not repeated.
        progress: Show it on stderr.

    Returns:
        float64 scores (N,).

    Raises:
        ValueError: ``repeats`` is below 1, there are too few epochs for the window, or what
            :func:`record_training` refuses.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    check_epochs(name, epochs, window)
    used = teacher_recipe(epochs) if recipe is None else replace(recipe, epochs=epochs)
    each = []
    for repeat in range(repeats):
        recorded = record_training(
            dataset,
            model,
            TrainingDynamics(
                len(dataset), window=window, record=record, device=training_device(device)
            ),
            recipe=used,
            mode=mode,
            test_set=test_set,
            seed=generator(seed, Purpose.SCORING, repeat).initial_seed(),
            device=device,
            out=None if out is None else Path(out) / f"net{repeat}",
            progress=progress,
        )
        each.append(recorded.scores(name, drop_last=drop_last, never_learned=never_learned))
    return mean_scores(each, meta={"seed": seed})


def training_device(device: torch.device | str | None) -> torch.device:
    """Where a training runs, so that its recorder does not wait for copies of the logits."""
    return resolve_device(device)


def check_epochs(name: str, epochs: int, window: int) -> None:
    """Refuse before hours of training what the recorder would refuse after them.

    Raises:
        ValueError: Windows of ``window`` ticks do not fit into so many epochs.
    """
    needed = {"dyn_unc": window + 1, "dual": window, "mean_p": window}.get(name, 1)
    if epochs < needed:
        raise ValueError(f"{name} with window = {window} needs {needed} epochs, got {epochs}")
