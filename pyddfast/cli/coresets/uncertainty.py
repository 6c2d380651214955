"""What a trained network is unsure of, finds typical, or predicts unlike its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pyddfast.cli.coresets.options import CoresetOptions, embedded
from pyddfast.cli.options import DataOptions, Flat, TeacherOptions
from pyddfast.coresets import (
    Embedding,
    Scores,
    Selection,
    cal_scores,
    entropy_scores,
    least_confidence_scores,
    margin_scores,
    moderate_scores,
    select,
)
from pyddfast.coresets.semantics import Semantics

__all__ = [
    "coreset_cal",
    "coreset_entropy",
    "coreset_least_confidence",
    "coreset_margin",
    "coreset_moderate",
]


def coreset_entropy(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    network: Annotated[TeacherOptions, Flat] = TeacherOptions(),  # noqa: B008
    *,
    semantics: Semantics = "paper",
) -> None:
    """Pick the images of each class whose predictions have the highest entropy.

    Args:
        to: The set.
        data: Which data.
        network: The network.
        semantics: paper: the formula; official: as DeepCore, log(p + 1e-6).
    """
    _highest(
        "entropy", to, data, network, lambda e: entropy_scores(e, semantics=semantics), semantics
    )


def coreset_least_confidence(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    network: Annotated[TeacherOptions, Flat] = TeacherOptions(),  # noqa: B008
    *,
    semantics: Semantics = "paper",
) -> None:
    """Pick the images of each class whose largest probability is smallest.

    Args:
        to: The set.
        data: Which data.
        network: The network.
        semantics: paper: the probability; official: as DeepCore, the largest logit.
    """
    _highest(
        "least-confidence", to, data, network,
        lambda e: least_confidence_scores(e, semantics=semantics), semantics,
    )  # fmt: skip


def coreset_margin(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    network: Annotated[TeacherOptions, Flat] = TeacherOptions(),  # noqa: B008
) -> None:
    """Pick the images of each class whose two largest probabilities differ least.

    Args:
        to: The set.
        data: Which data.
        network: The network.
    """
    _highest("margin", to, data, network, margin_scores, "paper")


def coreset_moderate(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    network: Annotated[TeacherOptions, Flat] = TeacherOptions(),  # noqa: B008
    *,
    semantics: Semantics = "paper",
) -> None:
    """Pick the images whose features are at a typical distance from the middle of their class.

    Args:
        to: The set.
        data: Which data.
        network: The network.
        semantics: paper: mean and median of a class; official: as the published code.
    """
    _highest(
        "moderate", to, data, network, lambda e: moderate_scores(e, semantics=semantics), semantics
    )


def coreset_cal(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    network: Annotated[TeacherOptions, Flat] = TeacherOptions(),  # noqa: B008
    *,
    neighbours: int = 10,
    semantics: Semantics = "paper",
) -> None:
    """Pick the images of each class that are predicted most unlike their neighbours (CAL).

    Args:
        to: The set.
        data: Which data.
        network: The network.
        neighbours: Of each image.
        semantics: paper: neighbours of any class; official: as DeepCore, within the class, and the
            images that are predicted most like them.
    """
    if neighbours < 1:
        raise ValueError(f"--neighbours must be at least 1, got {neighbours}")
    _highest(
        "cal", to, data, network,
        lambda e: cal_scores(e, neighbours=neighbours, semantics=semantics), semantics,
        {"neighbours": neighbours},
    )  # fmt: skip


def _highest(
    name: str,
    to: CoresetOptions,
    data: DataOptions,
    network: TeacherOptions,
    scores: Callable[[Embedding], Scores],
    semantics: Semantics,
    options: dict[str, Any] | None = None,
) -> None:
    """The highest scores of each class."""

    def pick(embedding: Embedding) -> Selection:
        return select(
            scores(embedding),
            embedding.labels,
            ipc=to.ipc,
            num_classes=embedding.num_classes,
            method=name,
        )

    embedded(name, to, data, network, pick, {"semantics": semantics, **(options or {})})
