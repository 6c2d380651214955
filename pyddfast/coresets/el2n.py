"""EL2N: the error norm of networks early in training (Paul et al., NeurIPS 2021).

A sample's score is ‖softmax(f(x)) − onehot(y)‖₂, averaged over several networks that were trained
for a few epochs.  High is hard.  **EL2N-Easy** of "Rethinking Dataset Distillation" is the lowest
score of each class: ``select(scores, labels, strategy="bottomk", ipc=...)``; **EL2N-Best** the best
window of the ranking: :func:`el2n_best`.

The scores of easy samples differ where 1 − p_y is far below float32's rounding error of p_y, so
they come from :func:`pyddfast.ops.scores.sample_scores`, which has no cancellation there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyddfast.coresets.selection import Scores, Selection
from pyddfast.coresets.windows import OFFSETS, windows
from pyddfast.data import ImageDataset, ImageSource
from pyddfast.ops.scores import sample_scores
from pyddfast.random import Purpose, generator
from pyddfast.train import Budget, Scale, predict, teacher_recipe, train_student, train_teacher
from pyddfast.train.models import ModelSpec, describe_model
from pyddfast.train.recipes import Recipe

__all__ = ["el2n_best", "el2n_of_models", "el2n_scores", "scoring_networks"]


def el2n_of_models(
    dataset: ImageSource,
    models: Iterable[nn.Module],
    *,
    device: torch.device | str | None = None,
    meta: dict[str, Any] | None = None,
) -> Scores:
    """EL2N of trained networks, averaged over them.

    Args:
        dataset: Images of one size; scored un-augmented, the networks in evaluation mode.
        models: One or more networks, taken one after the other.
        device: Where to run; default where each network's parameters are.
        meta: For the record of the scores.

    Returns:
        float64 scores (N,); the average is exact to float64, whatever the number of networks.

    Raises:
        ValueError: There is no network, or one gives another number of logits than classes.
    """
    labels = dataset.labels.cpu()
    values, count = mean_over_models(
        dataset, models, lambda logits: sample_scores(logits, labels).el2n, device
    )
    return Scores(
        values=values,
        name="el2n",
        high_means="hard",
        meta={"models": count, "mode": "eval", **(meta or {})},
    )


def mean_over_models(
    dataset: ImageSource,
    models: Iterable[nn.Module],
    score: Callable[[Tensor], Tensor],
    device: torch.device | str | None,
) -> tuple[Tensor, int]:
    """The mean of ``score(logits)`` over networks, float64 (N,), and how many they are.

    Raises:
        ValueError: There is no network, or what :func:`class_logits` refuses.
    """
    total, count = torch.zeros(len(dataset), dtype=torch.float64), 0
    for model in models:
        total += score(class_logits(model, f"model {count}", dataset, device))
        count += 1
    if count == 0:
        raise ValueError("models must hold at least one network")
    return total / count, count


def class_logits(
    model: nn.Module, name: str, dataset: ImageSource, device: torch.device | str | None
) -> Tensor:
    """Logits (N, C) of un-augmented images, float64 on the CPU.

    Raises:
        ValueError: They are not as many as classes; ``name`` is the model's in the message.
    """
    logits = predict(model, dataset, device=device).double().cpu()
    if logits.shape[-1] != dataset.num_classes:
        raise ValueError(
            f"{name} gives {logits.shape[-1]} logits, "
            f"the data set has {dataset.num_classes} classes"
        )
    return logits


def el2n_scores(
    dataset: ImageDataset,
    model: ModelSpec = "convnet-d3",
    *,
    repeats: int = 10,
    epochs: int = 20,
    recipe: Recipe | None = None,
    test_set: ImageSource | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> Scores:
    """Train ``repeats`` networks for a few epochs and average their EL2N.

    Ten networks and epoch 20 are the values of the original paper and of the EL2N-Best
    reproduction.  The learning rate stays constant, as it is that early in the original training;
    otherwise :func:`pyddfast.train.teacher_recipe`.

    Args:
        dataset: Training data, scored as well.
        model: As :func:`pyddfast.train.train_teacher` takes it.
        repeats: Number of networks, each with its own initialisation and order.
        epochs: Passes over the data before the score is taken.
        recipe: How to train, instead of the default; its epochs are replaced by ``epochs``.
        test_set: For the networks' accuracy in the record; default ``dataset`` itself.
        seed: Seed of all networks.
        device: Default CUDA where there is one, else the CPU.
        out: Folder of the networks' runs, ``net0``, ``net1`` ...; finished ones are not repeated.
        progress: Show it on stderr.

    Returns:
        float64 scores (N,) with the networks' accuracies in ``meta``.

    Raises:
        ValueError: ``repeats`` is below 1, or what :func:`pyddfast.train.train_teacher` refuses.
    """
    networks, meta = scoring_networks(
        dataset,
        model,
        repeats=repeats,
        epochs=epochs,
        recipe=recipe,
        test_set=test_set,
        seed=seed,
        device=device,
        out=out,
        progress=progress,
    )
    scores = el2n_of_models(dataset, networks)
    return replace(scores, meta={**scores.meta, **meta})


def scoring_networks(
    dataset: ImageDataset,
    model: ModelSpec,
    *,
    repeats: int,
    epochs: int,
    recipe: Recipe | None = None,
    test_set: ImageSource | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> tuple[Iterator[nn.Module], dict[str, Any]]:
    """The networks of :func:`el2n_scores`, trained as they are asked for; arguments as there.

    Returns:
        The networks, and the record of how they came about, complete after the last of them.

    Raises:
        ValueError: ``repeats`` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    used = teacher_recipe(epochs, schedule="constant") if recipe is None else recipe
    used = replace(used, epochs=epochs)
    accuracies: list[float] = []

    def networks() -> Iterator[nn.Module]:
        for repeat in range(repeats):
            trained = train_teacher(
                dataset,
                model,
                test_set=dataset if test_set is None else test_set,
                recipe=used,
                seed=generator(seed, Purpose.SCORING, repeat).initial_seed(),
                device=device,
                out=None if out is None else Path(out) / f"net{repeat}",
                progress=progress,
            )
            accuracies.append(float(trained.record["accuracy"]))
            yield trained.model

    meta = {
        "model": describe_model(model),
        "epochs": epochs,
        "recipe": used.to_dict(),
        "seed": seed,
        "accuracies": accuracies,
        "accuracy_on": "the scored data" if test_set is None else "the test set",
    }
    return networks(), meta


def el2n_best(
    dataset: ImageDataset,
    scores: Scores,
    *,
    ipc: int,
    test_set: ImageSource,
    model: ModelSpec = "convnet-d3",
    offsets: Sequence[float] = OFFSETS,
    scale: Scale | None = None,
    recipe: Recipe | None = None,
    budget: Budget | None = None,
    seeds: Sequence[int] = (0,),
    device: torch.device | str | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> Selection:
    """The window of each class's ranking on which hard-label students do best.

    One full training a window and seed: what CAD-Prune does without.

    Args:
        dataset: What was scored.
        scores: Usually of :func:`el2n_scores`.
        ipc: Images a class.
        test_set: Judges the windows.  With the test set of the paper's tables, as there, the best
            accuracy is an optimistic one; with held-out training data it is not.
        model: The students.
        offsets: Starts of the windows, as ``offset`` of :func:`select`; equal accuracies go to the
            first.
        scale: Column of Table 1 of the paper; default by image size, as ``train_student``.
        recipe: How students are trained, instead of the paper's hard-label recipe.
        budget: Length instead of the recipe's epochs.
        seeds: One student each, a window.
        device: Default CUDA where there is one, else the CPU.
        out: Folder of the students' runs, ``window0``, ``window1`` ...; finished ones are read.
        progress: Show it on stderr.

    Returns:
        The best window; ``meta`` holds ``offsets``, the mean accuracy of each, and the choice.

    Raises:
        ValueError: There are no offsets, or what :func:`select` or ``train_student`` refuses.
    """
    candidates = list(
        windows(
            scores, dataset.labels, ipcs=(ipc,), offsets=offsets, num_classes=dataset.num_classes
        )
    )
    accuracies = []
    for number, window in enumerate(candidates):
        result = train_student(
            window.to_distilled(dataset),
            "hl",
            model,
            test_set=test_set,
            scale=scale,
            recipe=recipe,
            budget=budget,
            seeds=seeds,
            evaluations=1,
            device=device,
            out=None if out is None else Path(out) / f"window{number}",
            progress=progress,
        )
        accuracies.append(result.mean)
    best = max(range(len(candidates)), key=lambda number: (accuracies[number], -number))
    sweep = {"offsets": list(offsets), "accuracies": accuracies, "seeds": list(seeds)}
    chosen = candidates[best]
    meta = {**chosen.meta, "method": f"{scores.name}-best", "sweep": sweep}
    return replace(chosen, meta=meta)
