"""Scores of recorded trainings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pyddfast.cli.coresets.options import CoresetOptions, highest
from pyddfast.cli.options import DataOptions, Flat, ModelOptions
from pyddfast.coresets import (
    Scores,
    TrainingDynamics,
    aum_scores,
    dual_scores,
    dyn_unc_scores,
    forgetting_scores,
)
from pyddfast.coresets.recorded import check_recording
from pyddfast.data import ImageDataset
from pyddfast.train import teacher_recipe

__all__ = ["coreset_aum", "coreset_dual", "coreset_dyn_unc", "coreset_forgetting"]


def coreset_forgetting(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    *,
    repeats: int = 5,
    epochs: int = 200,
    never_learned: Literal["max", "inf", "zero"] = "max",
) -> None:
    """Pick the images of each class that a training forgets most often.

    Args:
        to: The set.
        data: Which data.
        model: The network.
        repeats: Trainings that the score is averaged over.
        epochs: Epochs of a training.
        never_learned: Images never classified correctly: max: so many events more as presentations;
            inf: first of all; zero: no event.
    """
    facts = {"repeats": repeats, "epochs": epochs, "never_learned": never_learned}
    _dynamics("forgetting", forgetting_scores, to, data, model, facts)


def coreset_aum(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    *,
    repeats: int = 1,
    epochs: int = 150,
) -> None:
    """Pick the images with the largest area under the margin: easy, and surely labelled right.

    Args:
        to: The set.
        data: Which data.
        model: The network.
        repeats: Trainings that the score is averaged over.
        epochs: Epochs of a training.
    """
    _dynamics("aum", aum_scores, to, data, model, {"repeats": repeats, "epochs": epochs})


def coreset_dyn_unc(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    *,
    repeats: int = 1,
    epochs: int = 60,
    window: int = 10,
    mode: Literal["train", "eval"] = "eval",
    drop_last: bool = True,
) -> None:
    """Pick the images with the highest Dyn-Unc: whose probability varies most within a window.

    Args:
        to: The set.
        data: Which data.
        model: The network.
        repeats: Trainings that the score is averaged over.
        epochs: Epochs of a training.
        window: J, epochs a window.
        mode: eval: a pass over the data an epoch; train: the training's own logits.
        drop_last: Leave the window at the last epoch out, as the formula does.
    """
    facts = {
        "repeats": repeats,
        "epochs": epochs,
        "window": window,
        "mode": mode,
        "drop_last": drop_last,
    }
    _dynamics("dyn-unc", dyn_unc_scores, to, data, model, facts)


def coreset_dual(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    *,
    repeats: int = 1,
    epochs: int = 30,
    window: int = 10,
) -> None:
    """Pick the images with the highest DUAL score: uncertain and hard.

    Args:
        to: The set.
        data: Which data.
        model: The network.
        repeats: Trainings that the score is averaged over.
        epochs: Epochs of a training.
        window: J, epochs a window.
    """
    facts = {"repeats": repeats, "epochs": epochs, "window": window}
    _dynamics("dual", dual_scores, to, data, model, facts)


def _dynamics(
    name: str,
    function: Callable[..., Scores],
    to: CoresetOptions,
    data: DataOptions,
    model: ModelOptions,
    options: dict[str, Any],
) -> None:
    """A coreset of the highest of a score of recorded trainings."""
    if options["repeats"] < 1:
        raise ValueError(f"--repeats must be at least 1, got {options['repeats']}")
    check_recording(
        TrainingDynamics(1, window=options.get("window", 10)),
        (name.replace("-", "_"),),
        teacher_recipe(options["epochs"]),
        mode=options.get("mode", "train"),
        drop_last=options.get("drop_last"),
    )

    def scores(source: ImageDataset) -> Scores:
        return function(
            source,
            model.spec(),
            seed=to.seed,
            device=to.device,
            out=to.out / "networks",
            **options,
        )

    highest(name, to, data, model, scores, options)
