"""One recorded training on the full data, and the scores that come from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from pyddfast.coresets.dynamics import WINDOW_SCORES, Extra, NeverLearned, TrainingDynamics
from pyddfast.coresets.selection import Scores, mean_scores
from pyddfast.data import ImageDataset, ImageSource
from pyddfast.ops.reference.dynamics import COUNT_LIMIT
from pyddfast.random import Purpose, generator
from pyddfast.train import Budget, Epochs, Recording, Teacher, teacher_recipe, train_teacher
from pyddfast.train.distributed import resolve_device
from pyddfast.train.models import ModelSpec, describe_model
from pyddfast.train.plan import Plan
from pyddfast.train.recipes import Recipe
from pyddfast.train.record import tick_ends

__all__ = ["Recorded", "check_recording", "dynamics_scores", "record_training", "training_device"]


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
    teacher: nn.Module | None = None,
    soft_labels: Literal["image", "view"] = "image",
    test_set: ImageSource | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> Recorded:
    """Train on hard labels and record every sample; resumable.

    For ``grand`` the recorder is told the inputs of the network's last layer, a ``torch.nn.Linear``
    whose output the logits are.

    Args:
        dataset: Training data, N samples.
        model: As :func:`pyddfast.train.train_teacher` takes it.
        dynamics: A new recorder of N samples; filled.
        epochs: Length of the training under :func:`pyddfast.train.teacher_recipe`.
        recipe: How to train, instead of ``epochs``.
        budget: Length instead of the recipe's epochs, the schedule compressed to it.
        ticks: As for :class:`pyddfast.train.Recording`.
        mode: As for :class:`pyddfast.train.Recording`.
        teacher: Network whose soft labels ``el2n_sl`` and ``sharp`` are measured against.
        soft_labels: As for :class:`pyddfast.train.Recording`.
        test_set: For the accuracy in the record; default ``dataset`` itself.
        seed: Seed of the training.
        device: Default CUDA where there is one, else the CPU.
        out: Run folder of the training; a finished one is read, not repeated.
        progress: Show it on stderr.

    Returns:
        The recorder, the network, and how they came about.

    Raises:
        ValueError: The recorder is of another size or has recorded before, or what
            :func:`check_recording` or :func:`pyddfast.train.train_teacher` refuses.
    """
    if len(dynamics) != len(dataset):
        raise ValueError(f"dynamics is of {len(dynamics)} samples, the data set has {len(dataset)}")
    if dynamics.started:
        raise ValueError(
            f"dynamics has recorded before ({dynamics.tick} whole ticks); give a new one"
        )
    if (epochs is None) == (recipe is None):
        raise ValueError("give either epochs or recipe")
    if recipe is None:
        assert epochs is not None
        recipe = teacher_recipe(epochs)
    has_teacher = teacher is not None
    check_recording(
        dynamics, (), recipe, budget=budget, ticks=ticks, mode=mode, has_teacher=has_teacher
    )
    recording = Recording(
        dynamics,
        ticks,
        mode,
        teacher=teacher,
        soft_labels=soft_labels,
        features="grand" in dynamics.record,
    )
    trained = train_teacher(
        dataset,
        model,
        test_set=dataset if test_set is None else test_set,
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
        "recipe": trained.record["config"]["recipe"],
        "epochs": trained.record["epochs"],
        "tick": ticks if ticks == "epoch" else "equally spaced",
        "mode": mode,
        "seed": seed,
        "accuracy": trained.record["accuracy"],
        "accuracy_on": "the scored data" if test_set is None else "the test set",
    }
    if has_teacher:
        meta["teacher"] = trained.record["config"]["recording"]["teacher"]
    return Recorded(dynamics, trained, meta)


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
        ValueError: ``repeats`` is below 1, the trainings would not give the score, or what
            :func:`record_training` refuses.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    used = teacher_recipe(epochs) if recipe is None else replace(recipe, epochs=epochs)
    each = []
    for repeat in range(repeats):
        dynamics = TrainingDynamics(
            len(dataset), window=window, record=record, device=training_device(device)
        )
        check_recording(
            dynamics, (name,), used, mode=mode, drop_last=drop_last, never_learned=never_learned
        )
        recorded = record_training(
            dataset,
            model,
            dynamics,
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


def check_recording(
    dynamics: TrainingDynamics,
    names: Sequence[str],
    recipe: Recipe,
    *,
    budget: Budget | None = None,
    ticks: int | Literal["epoch"] = "epoch",
    mode: Literal["train", "eval"] = "train",
    drop_last: bool | None = None,
    never_learned: NeverLearned = "max",
    has_teacher: bool = False,
) -> int:
    """Refuse before a training what the recorder would refuse during or after it.

    Args:
        dynamics: The recorder.
        names: The scores that will be asked for.
        recipe: How will be trained.
        budget: As for :func:`record_training`, as all that follow.
        ticks: When ticks end.
        mode: Whose logits.
        drop_last: As for :meth:`TrainingDynamics.values`.
        never_learned: As for :meth:`TrainingDynamics.values`.
        has_teacher: Whether there is a teacher.

    Returns:
        The number of ticks.

    Raises:
        ValueError: A score is unknown, not recorded or needs more ticks; ``el2n_sl`` or ``sharp``
            is recorded without a teacher, or a teacher is given for neither; the training is too
            short for its ticks or too long for the recorder's counters; in training mode, a window
            score of a recipe that leaves images out of each epoch.
    """
    plan = Plan(len(dynamics), recipe.batch_size, recipe.drop_last, budget or Epochs(recipe.epochs))
    count = len(tick_ends(ticks, mode, plan))
    shown = int(plan.epochs) if mode == "train" else count
    if max(count, shown) >= COUNT_LIMIT:
        raise ValueError(
            f"the training shows an image {shown} times in {count} ticks; "
            f"the recorder counts to {COUNT_LIMIT - 1}"
        )
    soft = [name for name in ("el2n_sl", "sharp") if name in dynamics.record]
    if soft and not has_teacher:
        raise ValueError(f"dynamics records {soft[0]}, which needs a teacher: give teacher=")
    if has_teacher and not soft:
        raise ValueError("a teacher is given; dynamics records neither el2n_sl nor sharp")
    for name in names:
        dynamics.check(name, count, drop_last=drop_last, never_learned=never_learned)
        if name in WINDOW_SCORES and mode == "train" and plan.samples_per_epoch < plan.count:
            raise ValueError(
                f"{name} in mode 'train' needs every image in every epoch, and drop_last of the "
                f"recipe leaves {plan.count - plan.samples_per_epoch} of {plan.count} out: "
                "drop_last = False or mode = 'eval'"
            )
    return count
