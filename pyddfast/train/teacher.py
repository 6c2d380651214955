"""Train a teacher, observer or scoring model on a full data set."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyddfast.data import ImageDataset, ImageSource
from pyddfast.data.digest import describe_data
from pyddfast.data.stored import read_json, read_tensors
from pyddfast.train.beside import Beside
from pyddfast.train.checkpoint import CHECKPOINT, CHECKPOINT_SECONDS, fit
from pyddfast.train.distributed import join_ranks, resolve_device
from pyddfast.train.evaluate import check_test_set, evaluate, predict_batches
from pyddfast.train.execution import Execution
from pyddfast.train.labels import HardLabels
from pyddfast.train.loop import Trainer, check_batches, deterministic_mode
from pyddfast.train.models import ModelSpec, build_model, describe_model, model_digest
from pyddfast.train.plan import Budget, Epochs, Plan
from pyddfast.train.progress import progress as show_progress
from pyddfast.train.recipes import Recipe
from pyddfast.train.record import RECORDER, Recording, Ticks
from pyddfast.train.run import RunFolder
from pyddfast.train.views import make_views

__all__ = [
    "RECORD",
    "WEIGHTS",
    "Teacher",
    "load_weights",
    "read_record",
    "teacher_recipe",
    "train_teacher",
]

WEIGHTS = "teacher.safetensors"
RECORD = "teacher.json"


@dataclass(frozen=True)
class Teacher:
    """A trained network and the record of its training.

    Attributes:
        model: in eval mode, on the training device.
        record: JSON values: test accuracy, history, configuration, digest of the weights.
    """

    model: nn.Module
    record: dict[str, Any]


def teacher_recipe(epochs: int, **overrides: Any) -> Recipe:
    """The recipe of :func:`train_teacher`: hard labels, SGD, cosine.  Ours; no paper names one.

    SGD momentum 0.9, Nesterov, weight decay 5e-4, cosine and batch 128: DeepCore's training of a
    full set at half its batch; lr 0.05 instead of 0.1, in proportion.  RRC takes at least 64 % of
    the area, about the crops of a 28- or 32-pixel image padded by 4, the usual augmentation there.

    Args:
        epochs: passes over the data.
        **overrides: fields of :class:`Recipe`.
    """
    values: dict[str, Any] = {
        "regime": "hl",
        "scale": "small",
        "epochs": epochs,
        "loss": "ce",
        "optimizer": "sgd",
        "lr": 0.05,
        "schedule": "cosine",
        "batch_size": 128,
        "augmentation": "rrc",
        "rrc_scale": (0.64, 1.0),
        "in_paper": False,
    }
    return Recipe(**{**values, **overrides})


def train_teacher(
    dataset: ImageDataset,
    model: ModelSpec,
    *,
    test_set: ImageSource,
    epochs: int | None = None,
    recipe: Recipe | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    evaluations: int = 1,
    device: torch.device | str | None = None,
    execution: Execution | None = None,
    deterministic: bool = False,
    out: str | Path | None = None,
    resume: bool = True,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    on_epoch: Callable[[int, nn.Module], None] | None = None,
    recording: Recording | None = None,
    progress: bool = True,
) -> Teacher:
    """Train a network on hard labels, as teacher, observer or scoring model.

    Under ``torchrun`` its processes divide every batch, the test set and the recorded samples among
    them; the first one writes and shows progress, all return the teacher.

    Args:
        dataset: uint8 images in memory.
        model: a name of ``pyddfast.models``, (name, options), or a function ``seed -> nn.Module``.
        test_set: for its accuracy.
        epochs: passes over ``dataset``; required unless ``recipe`` is given.
        recipe: how to train; None: :func:`teacher_recipe`.
        budget: length of the training instead of the recipe's epochs; the schedule is compressed
            (or stretched) to it.
        seed: of initialisation, order and augmentation.
        evaluations: on the test set, evenly spread; the last is after the last step.
        device: None: CUDA where there is one, else the CPU.
        execution: precision, compilation, accumulation ...; None: float32, one pass a batch.
        deterministic: torch's deterministic algorithms.
        out: run folder, resumable; holds teacher.safetensors and teacher.json at the end.
        resume: continue what ``out`` holds; False refuses a non-empty folder.
        checkpoint_seconds: at most this long between two checkpoints.
        on_epoch: called as ``on_epoch(finished epochs, model)`` after each epoch, e.g. to score
            with early checkpoints; it must leave the model as it finds it (its mode is put back).
            Epochs that a resumed run finds done are not called again.
        recording: a recorder of every sample's logits.  Its state is part of the checkpoints and,
            at the end, in ``out`` as recorder.safetensors: a resumed or finished run puts it back.
        progress: show it on stderr.

    Returns:
        The model in eval mode and its record.

    Raises:
        ValueError: data set, test set and model do not fit together, or neither ``epochs`` nor
            ``recipe`` is given, or both, or the ticks of ``recording`` do not fit the training;
            the teacher of ``recording`` or the network's last layer do not suit it; there is no
            such device, a file in ``out`` is damaged, or ``out`` holds another run.
        BlockingIOError: another process works in ``out``.
        FileExistsError: ``out`` holds something else.
    """
    if (epochs is None) == (recipe is None):
        raise ValueError("give either epochs or recipe")
    if recipe is not None:
        used = recipe
    else:
        assert epochs is not None
        # Crops take bytes; normalised or whitened images are augmented as the experts' are.
        given = {} if dataset.images.dtype == torch.uint8 else {"augmentation": "dsa"}
        used = teacher_recipe(epochs, **given)
    if used.regime != "hl":
        raise ValueError(f"a teacher learns from hard labels, the recipe has {used.regime!r}")
    check_test_set(dataset, test_set)
    target, how = resolve_device(device), execution or Execution()
    how.check(target)
    plan = Plan(len(dataset), used.batch_size, used.drop_last, budget or Epochs(used.epochs))
    size = used.image_size
    height, width = (size, size) if size is not None else dataset.images.shape[-2:]

    def build() -> nn.Module:
        return build_model(
            model,
            seed,
            num_classes=dataset.num_classes,
            in_channels=dataset.images.shape[1],
            image_size=(height, width),
        ).to(target)

    network = build()
    ranks = join_ranks(target)
    check_batches(network, plan, ranks.world, how)
    plan.evaluation_steps(evaluations)
    ticks = beside = None
    if recording is not None:
        beside = Beside(recording, network, dataset, size=size, device=target)
        ticks = Ticks(
            recording,
            plan,
            dataset.labels,
            lambda: predict_batches(network, dataset, size=size, device=target, ranks=ranks),
            beside,
            ranks,
        )
    config = {
        "task": "train_teacher",
        "recipe": used.to_dict(),
        "model": describe_model(model),
        "seed": seed,
        "evaluations": evaluations,
        "budget": None if budget is None else repr(budget),
        "recording": None if recording is None else recording.to_dict(),
        "dataset": describe_data(dataset),
        "test_set": describe_data(test_set),
        # Of several processes each has a GPU of its own.
        "device": str(target) if ranks.world == 1 else target.type,
        "deterministic": deterministic,
        # As in a student's training: the one thing about the execution that is not rounding.
        "batch_norm_parts": how.accumulate * (1 if how.batch_norm == "sync" else ranks.world),
    }
    with deterministic_mode(deterministic), ExitStack() as stack:
        if beside is not None:
            stack.callback(beside.close)
        folder = None
        facts = {"execution": how.to_dict(), "processes": ranks.world}
        if out is not None and ranks.first:
            folder = stack.enter_context(RunFolder(out, config, resume=resume, execution=facts))
        ranks.wait()
        if out is not None and not ranks.first:
            folder = RunFolder(out, config, shared=True, execution=facts)
        if folder is not None:
            finished = _finished(folder, network)
            if finished is not None:
                if ticks is not None:
                    _restore_recorder(folder, ticks)
                return Teacher(network.eval(), finished)
        views = make_views(
            dataset.images.to(target),
            dataset.normalization,
            used,
            seed=seed,
            dtype=how.dtype,
            channels_last=how.channels_last,
        )
        labels = HardLabels(dataset.labels.to(target))
        trainer = Trainer(network, used, plan, views, labels, seed=seed, execution=how, ranks=ranks)
        with show_progress(
            "train on the full data", plan.total_steps, enabled=progress and ranks.first
        ) as advance:
            trained = fit(
                trainer,
                lambda: evaluate(
                    trainer.result,
                    test_set,
                    normalization=dataset.normalization,
                    size=size,
                    device=target,
                    ranks=ranks,
                ),
                evaluations=evaluations,
                folder=folder,
                key={"seed": seed},
                checkpoint_seconds=checkpoint_seconds,
                advance=advance,
                on_epoch=None if on_epoch is None else lambda done: on_epoch(done, network),
                ticks=ticks,
            )
        # The network that a later call reads from its files, to the last bit of its outputs: not
        # fused, in no other layout, with batch norms that wait for no other process.
        trained_network = build().eval()
        trained_network.load_state_dict(trainer.result.state_dict())
        record = {
            "accuracy": trained.history[-1]["test_accuracy"],
            "test_count": len(test_set),
            "epochs": used.epochs if budget is None else plan.epochs,
            "history": trained.history,
            "diverged": trained.diverged,
            "images_per_second": trained.images_per_second,
            "train_seconds": trained.train_seconds,
            "sha256": model_digest(trained_network),
            "config": config,
        }
        if folder is not None and ranks.first:
            if ticks is not None:
                folder.write_tensors(RECORDER, *ticks.state())
            folder.write_tensors(WEIGHTS, trained_network.state_dict())
            folder.write_json(RECORD, record)
            folder.remove(CHECKPOINT)
        ranks.wait()  # who looks for the files finds them
    if trained.diverged and ranks.first:
        warnings.warn(
            "the training loss of the teacher was not finite: its accuracy and labels mean "
            f"nothing; lower lr ({used.lr:g})",
            stacklevel=2,
        )
    return Teacher(trained_network, record)


def read_record(file: Path) -> dict[str, Any]:
    """The record of a teacher, as :func:`train_teacher` writes it.

    Raises:
        ValueError: it is damaged or something else; the message names it.
    """
    record = read_json(file)
    needed = {"accuracy", "epochs", "history", "sha256", "config"}
    if not isinstance(record, dict) or not needed <= record.keys():
        raise ValueError(f"{file} is not the record of a teacher")
    return record


def load_weights(network: nn.Module, file: Path, record: Mapping[str, Any]) -> None:
    """Give a network the weights of a teacher's folder, if they are those of its record.

    Raises:
        ValueError: they are not, are damaged, or do not fit the network; the message names the
            file.
    """
    tensors, _ = read_tensors(file)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{file} does not fit the network: {error}") from error
    if model_digest(network) != record["sha256"]:
        raise ValueError(f"{file} does not hold the weights whose SHA-256 is in {RECORD}")


def _finished(folder: RunFolder, network: nn.Module) -> dict[str, Any] | None:
    """The record of a training that is over, the network with its weights; None if it is not."""
    record, weights = folder.path / RECORD, folder.path / WEIGHTS
    if not record.is_file() or not weights.is_file():
        return None
    known = read_record(record)
    load_weights(network, weights, known)
    return known


def _restore_recorder(folder: RunFolder, ticks: Ticks) -> None:
    file = folder.path / RECORDER
    if not file.is_file():
        raise ValueError(f"{file} is missing; this run recorded its training")
    recorded = read_tensors(file)
    try:
        ticks.restore(*recorded)
    except Exception as error:
        # Whatever a recorder raises at a state that is not its own.
        raise ValueError(f"{file} is not the recording of this training: {error!r}") from error
