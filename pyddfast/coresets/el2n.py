"""EL2N: the error norm of networks early in training (Paul et al., NeurIPS 2021).

A sample's score is ‖softmax(f(x)) − onehot(y)‖₂, averaged over several networks that were trained
for a few epochs.  High is hard.  **EL2N-Easy** of "Rethinking Dataset Distillation" is the lowest
score of each class: ``select(scores, labels, strategy="bottomk", ipc=...)``.

The scores of easy samples differ where 1 − p_y is far below float32's rounding error of p_y, so
they come from :func:`pyddfast.ops.scores.sample_scores`, which has no cancellation there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyddfast.coresets.selection import Scores
from pyddfast.data import ImageDataset, ImageSource
from pyddfast.ops.scores import sample_scores
from pyddfast.random import Purpose, generator
from pyddfast.train import predict, teacher_recipe, train_teacher
from pyddfast.train.models import ModelSpec, describe_model
from pyddfast.train.recipes import Recipe

__all__ = ["el2n_of_models", "el2n_scores"]


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
    total = torch.zeros(len(dataset), dtype=torch.float64)
    count = 0
    for model in models:
        logits = predict(model, dataset, device=device).cpu()
        if logits.shape[-1] != dataset.num_classes:
            raise ValueError(
                f"model {count} gives {logits.shape[-1]} logits, "
                f"the data set has {dataset.num_classes} classes"
            )
        total += sample_scores(logits.double(), dataset.labels.cpu()).el2n
        count += 1
    if count == 0:
        raise ValueError("models must hold at least one network")
    return Scores(
        values=total / count,
        name="el2n",
        high_means="hard",
        meta={"models": count, "mode": "eval", **(meta or {})},
    )


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
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    used = teacher_recipe(epochs, schedule="constant") if recipe is None else recipe
    used = replace(used, epochs=epochs)
    accuracies: list[float] = []

    def networks() -> Iterable[nn.Module]:
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

    scores = el2n_of_models(dataset, networks())
    meta = {
        **scores.meta,
        "model": describe_model(model),
        "epochs": epochs,
        "recipe": used.to_dict(),
        "seed": seed,
        "accuracies": accuracies,
        "accuracy_on": "the scored data" if test_set is None else "the test set",
    }
    return replace(scores, meta=meta)
