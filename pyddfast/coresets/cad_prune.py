"""CAD-Prune: pruning by compute-aligned difficulty ("Rethinking Dataset Distillation", §8).

What a network finds hard depends on how long it trains.  So the samples are scored in a run on the
full data whose compute is that of the training that will use them: K epochs of N samples, with
K · N = E · ipc · C for E epochs on ipc images of each of C classes, and a learning-rate schedule of
that length.  With U_k the standard deviation (ddof = 1) of p_y over the ticks k .. k + J − 1 of K,

    CAD = mean of U_k over the W windows k = K − J − W .. K − J − 1,

and the highest of each class are kept: what the network is still learning at the end of the run.

K is often only a few epochs (1.6 for 10 images a class of ImageNet-1k), which is fewer than J + W.
So here it counts in ticks: by default 30 equally spaced snapshots of the run, whatever its length,
and J all of them but W.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import torch

from pyddfast.coresets.dynamics import TrainingDynamics
from pyddfast.coresets.recorded import check_recording, record_training, training_device
from pyddfast.coresets.selection import Scores, Selection, check_ipc, select
from pyddfast.data import ImageDataset, ImageSource
from pyddfast.train import Samples, teacher_recipe
from pyddfast.train.models import ModelSpec
from pyddfast.train.plan import Plan
from pyddfast.train.recipes import Recipe
from pyddfast.train.record import tick_ends

__all__ = ["cad_prune", "cad_scores", "check_cad"]


def cad_scores(
    dataset: ImageDataset,
    model: ModelSpec = "convnet-d3",
    *,
    ipc: int,
    downstream_epochs: int = 300,
    ticks: int | Literal["epoch"] = 30,
    cad_window: int | None = None,
    cad_average: int = 2,
    drop_last: bool = True,
    signal: Literal["p_y", "el2n"] = "p_y",
    mode: Literal["train", "eval"] = "eval",
    recipe: Recipe | None = None,
    test_set: ImageSource | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> Scores:
    """CAD of every sample, from one compute-matched run.

    Args:
        dataset: Training data, scored as well; N samples of C classes.
        model: As :func:`pyddfast.train.train_teacher` takes it.
        ipc: Images a class that will be trained on.
        downstream_epochs: E, how long they will be trained on: 300 at small, 200 at large scale.
        ticks: Number of equally spaced snapshots of the run; or ``"epoch"``: one an epoch, the
            paper's counting (with ``cad_window=6`` its ImageNet-1k setting).  The paper's run of
            7.8 epochs for 50 images a class has to be eight ticks for that: a last partial epoch of
            a half or more is a tick, too (:func:`pyddfast.train.record.tick_ends`).
        cad_window: J; None: all ticks but W.
        cad_average: W; 2 in the paper.
        drop_last: The formula's sum ends at k = K − J − 1, which leaves the window at the last tick
            out, as Dyn-Unc's formula and code do; False moves all windows to the end.
        signal: ``"p_y"``, or EL2N, as a reproduction reads the paper.
        mode: ``"eval"``: snapshots of un-augmented data in evaluation mode, each about a third of
            an epoch's time.  ``"train"``: the logits of the training steps, which cost nothing, but
            see each sample once an epoch: ticks are whole epochs then.  The paper does not say.
        recipe: How to train; default :func:`pyddfast.train.teacher_recipe`, in batches small
            enough for a step a tick.
        test_set: For the network's accuracy in the record; default ``dataset`` itself.
        seed: Of the run.
        device: Default CUDA where there is one, else the CPU.
        out: Folder of the run; a finished one is not repeated.
        progress: Show it on stderr.

    Returns:
        float64 scores (N,); high is uncertain.

    Raises:
        ValueError: The run is too short for its ticks, the ticks are fewer than J + W (before any
            work), or what :func:`pyddfast.coresets.record_training` refuses.
    """
    dynamics, used, samples = check_cad(
        dataset,
        ipc=ipc,
        downstream_epochs=downstream_epochs,
        ticks=ticks,
        cad_window=cad_window,
        cad_average=cad_average,
        drop_last=drop_last,
        signal=signal,
        mode=mode,
        recipe=recipe,
        device=device,
    )
    recorded = record_training(
        dataset,
        model,
        dynamics,
        recipe=used,
        budget=Samples(samples),
        ticks=ticks,
        mode=mode,
        test_set=test_set,
        seed=seed,
        device=device,
        out=out,
        progress=progress,
    )
    scores = recorded.scores("cad", drop_last=drop_last)
    meta = {
        **scores.meta,
        "compute_matched_to": {"ipc": ipc, "epochs": downstream_epochs},
        "samples": samples,
    }
    return Scores(scores.values, "cad", scores.high_means, meta)


def check_cad(
    dataset: ImageSource,
    *,
    ipc: int,
    downstream_epochs: int = 300,
    ticks: int | Literal["epoch"] = 30,
    cad_window: int | None = None,
    cad_average: int = 2,
    drop_last: bool = True,
    signal: Literal["p_y", "el2n"] = "p_y",
    mode: Literal["train", "eval"] = "eval",
    recipe: Recipe | None = None,
    device: torch.device | str | None = None,
) -> tuple[TrainingDynamics, Recipe, int]:
    """The compute-matched run, if it has ticks enough; arguments as for :func:`cad_scores`.

    Returns:
        Its recorder, how it trains, and the number of images that it sees.

    Raises:
        TypeError: ``ipc`` or ``downstream_epochs`` is no int.
        ValueError: It has not, or an argument is out of range.
    """
    if signal not in ("p_y", "el2n"):
        raise ValueError(f"signal must be 'p_y' or 'el2n', got {signal!r}")
    for name, value in (("ipc", ipc), ("downstream_epochs", downstream_epochs)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    samples = downstream_epochs * ipc * dataset.num_classes
    epochs = samples / len(dataset)  # K
    used = recipe
    if used is None:
        # Where the run is short, smaller batches, so that each tick has a step of its own.
        short = mode == "eval" and isinstance(ticks, int) and ticks > 0
        batch = max(2, min(128, samples // int(ticks))) if short else 128
        used = teacher_recipe(math.ceil(epochs), batch_size=batch)
    plan = Plan(len(dataset), used.batch_size, used.drop_last, Samples(samples))
    count = len(tick_ends(ticks, mode, plan))
    dynamics = TrainingDynamics(
        len(dataset),
        window=2,  # of scores that are not asked for
        ring=max(2, count) if cad_window is None else None,
        cad_window=cad_window,
        cad_average=cad_average,
        signal="1-p" if signal == "p_y" else "el2n",
        device=training_device(device),
    )
    try:
        check_recording(
            dynamics,
            ("cad",),
            used,
            budget=Samples(samples),
            ticks=ticks,
            mode=mode,
            drop_last=drop_last,
        )
    except ValueError as error:
        raise ValueError(f"{error}; the run has {epochs:.2f} epochs") from error
    return dynamics, used, samples


def cad_prune(
    dataset: ImageDataset, model: ModelSpec = "convnet-d3", *, ipc: int, **options: object
) -> Selection:
    """The ``ipc`` images of each class with the highest CAD.

    Args:
        dataset: As for :func:`cad_scores`.
        model: As for :func:`cad_scores`.
        ipc: Images a class.
        **options: Of :func:`cad_scores`.

    Raises:
        ValueError: A class has fewer images, before any work, or what :func:`cad_scores` refuses.
    """
    check_ipc(ipc, torch.bincount(dataset.labels.cpu(), minlength=dataset.num_classes).tolist())
    scores = cad_scores(dataset, model, ipc=ipc, **options)  # type: ignore[arg-type]
    return select(
        scores, dataset.labels, ipc=ipc, num_classes=dataset.num_classes, method="cad-prune"
    )
