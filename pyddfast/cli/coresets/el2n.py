"""Scores of networks early in training."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pyddfast.cli.coresets.options import CoresetOptions, highest, picked
from pyddfast.cli.options import DataOptions, Flat, ModelOptions, TeacherOptions, plain
from pyddfast.coresets import (
    Scores,
    Selection,
    el2n_best,
    el2n_scores,
    el2n_sl_scores,
    grand_scores,
)
from pyddfast.coresets.grand import Layer, check_grand
from pyddfast.coresets.semantics import Semantics
from pyddfast.coresets.windows import OFFSETS, check_offsets
from pyddfast.data import ImageDataset
from pyddfast.train import Epochs, teacher_recipe
from pyddfast.train.distributed import join_ranks

__all__ = [
    "coreset_el2n",
    "coreset_el2n_best",
    "coreset_el2n_easy",
    "coreset_el2n_sl",
    "coreset_grand",
]


def coreset_el2n(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    *,
    repeats: int = 10,
    epochs: int = 20,
) -> None:
    """Pick the images with the highest EL2N of each class: what young networks find hardest.

    Args:
        to: The set.
        data: Which data.
        model: The scoring network.
        repeats: Networks that the score is averaged over.
        epochs: Epochs before they score.
    """

    def scores(source: ImageDataset) -> Scores:
        return _el2n(source, to, model, repeats, epochs)

    _check_networks(repeats, epochs)
    highest("el2n", to, data, model, scores, {"repeats": repeats, "epochs": epochs})


def coreset_el2n_easy(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    *,
    repeats: int = 10,
    epochs: int = 20,
) -> None:
    """Pick the images with the lowest EL2N of each class: what young networks find easiest.

    Args:
        to: The set.
        data: Which data.
        model: The scoring network.
        repeats: Networks that the score is averaged over.
        epochs: Epochs before they score.
    """

    def scores(source: ImageDataset) -> Scores:
        return _el2n(source, to, model, repeats, epochs)

    _check_networks(repeats, epochs)
    highest(
        "el2n-easy", to, data, model, scores, {"repeats": repeats, "epochs": epochs}, lowest=True
    )


def coreset_el2n_best(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    *,
    repeats: int = 10,
    epochs: int = 20,
    offsets: tuple[float, ...] = OFFSETS,
    student_epochs: int | None = None,
    student_seeds: int = 1,
) -> None:
    """Pick the window of the EL2N ranking that hard-label students do best on; trains on each.

    The windows are judged on the test split, as in the paper's tables: the best is an optimistic
    choice.

    Args:
        to: The set.
        data: Which data.
        model: The scoring network, and the student.
        repeats: Networks that the score is averaged over.
        epochs: Epochs before they score.
        offsets: Starts of the windows, as shares of the positions they can start at.
        student_epochs: Epochs of a student; default the paper's.
        student_seeds: Students a window.
    """
    if student_seeds < 1:
        raise ValueError(f"--student-seeds must be at least 1, got {student_seeds}")
    check_offsets(offsets)
    _check_networks(repeats, epochs)
    budget = None if student_epochs is None else Epochs(student_epochs)

    source = data.resident("train", to.image_size)

    def pick() -> Selection:
        scores = _el2n(source, to, model, repeats, epochs)
        return el2n_best(
            source,
            scores,
            ipc=to.ipc,
            test_set=data.resident("test", to.image_size),
            model=model.spec(),
            offsets=offsets,
            budget=budget,
            seeds=tuple(range(to.seed, to.seed + student_seeds)),
            device=to.device,
            out=to.out / "windows",
        )

    facts = {
        "repeats": repeats,
        "epochs": epochs,
        "offsets": list(offsets),
        "student_epochs": student_epochs,
        "student_seeds": student_seeds,
        **plain(model),
    }
    picked("el2n-best", to, data, source, pick, facts)


def coreset_el2n_sl(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    teacher: Annotated[TeacherOptions, Flat] = TeacherOptions(),  # noqa: B008
    *,
    temperature: float = 20.0,
    repeats: int = 10,
    epochs: int = 20,
) -> None:
    """Pick the images with the highest EL2N-SL: where young networks are farthest from a teacher.

    Args:
        to: The set.
        data: Which data.
        model: The scoring network.
        teacher: Gives the soft labels.
        temperature: T of both softmaxes.
        repeats: Networks that the score is averaged over.
        epochs: Epochs before they score.
    """

    def scores(source: ImageDataset) -> Scores:
        known = teacher.get(data, to.image_size, to.out, to.seed, to.device)
        return el2n_sl_scores(
            source,
            known.model,
            model.spec(),
            temperature=temperature,
            repeats=repeats,
            epochs=epochs,
            seed=to.seed,
            device=to.device,
            out=to.out / "el2n",
        )

    ranks = teacher.ranks()
    _check_networks(repeats, epochs)
    if not 0 < temperature < math.inf:
        raise ValueError(f"--temperature must be positive and finite, got {temperature}")
    teacher.check()
    facts = {"temperature": temperature, "repeats": repeats, "epochs": epochs, **plain(teacher)}
    highest("el2n-sl", to, data, model, scores, facts, ranks=ranks)


def coreset_grand(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    teacher: Annotated[TeacherOptions, Flat] = TeacherOptions(),  # noqa: B008
    *,
    layer: Layer = "last",
    labels: Literal["hard", "soft"] = "hard",
    temperature: float = 1.0,
    semantics: Semantics = "paper",
    memory: int = 256,
    repeats: int = 10,
    epochs: int = 20,
) -> None:
    """Pick the images with the highest GraNd: the loss's gradient is longest.

    Under torchrun the processes share the trainings and the passes over the data.

    Args:
        to: The set.
        data: Which data.
        model: The scoring network.
        teacher: Gives the soft labels.
        layer: last: the gradient by the last layer's weights, one forward pass over the data (4
            bytes an image for each class and input of the layer); all: by all weights, a forward
            and a backward pass a network whose gradients are held image by image.
        labels: hard: of the data; soft: the teacher's.
        temperature: T of both softmaxes.
        semantics: paper: the norm; official: as DeepCore, divided by the size of the image's batch
            of 256, so that a smaller last batch scores higher.
        memory: MiB that the gradients of all weights may take at once.
        repeats: Networks that the score is averaged over.
        epochs: Epochs before they score.
    """
    soft = labels == "soft"
    if teacher.teacher is not None and not soft:
        raise ValueError("--teacher is for --labels soft, got --labels hard")

    def scores(source: ImageDataset) -> Scores:
        known = teacher.get(data, to.image_size, to.out, to.seed, to.device) if soft else None
        return grand_scores(
            source,
            model.spec(),
            layer=layer,
            teacher=None if known is None else known.model,
            temperature=temperature,
            semantics=semantics,
            memory=memory * 2**20,
            repeats=repeats,
            epochs=epochs,
            seed=to.seed,
            device=to.device,
            out=to.out / "networks",
            ranks=ranks,
            progress=ranks.first,
        )

    ranks = teacher.ranks() if soft else join_ranks()
    _check_networks(repeats, epochs)
    check_grand(layer, temperature, semantics, soft=soft, memory=memory)
    facts: dict[str, Any] = {
        "layer": layer,
        "labels": labels,
        "temperature": temperature,
        "semantics": semantics,
        "repeats": repeats,
        "epochs": epochs,
    }
    if soft:
        teacher.check()
        facts |= plain(teacher)
    highest("grand", to, data, model, scores, facts, ranks=ranks)


def _el2n(
    source: ImageDataset, to: CoresetOptions, model: ModelOptions, repeats: int, epochs: int
) -> Scores:
    return el2n_scores(
        source,
        model.spec(),
        repeats=repeats,
        epochs=epochs,
        seed=to.seed,
        device=to.device,
        out=to.out / "el2n",
    )


def _check_networks(repeats: int, epochs: int) -> None:
    """Scoring networks that can be trained."""
    if repeats < 1:
        raise ValueError(f"--repeats must be at least 1, got {repeats}")
    teacher_recipe(epochs)
