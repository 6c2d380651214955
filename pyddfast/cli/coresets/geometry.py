"""Picks by where a network puts the images: centers, covers, means."""

from __future__ import annotations

from typing import Annotated, Literal

from pyddfast.cli.coresets.options import CoresetOptions, embedded
from pyddfast.cli.options import DataOptions, Flat, TeacherOptions
from pyddfast.coresets import (
    Embedding,
    Selection,
    contextual_diversity,
    herding,
    k_centers,
    k_means_medoids,
)
from pyddfast.coresets.semantics import Semantics

__all__ = [
    "coreset_contextual_diversity",
    "coreset_herding",
    "coreset_k_centers",
]


def coreset_k_centers(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    network: Annotated[TeacherOptions, Flat] = TeacherOptions(),  # noqa: B008
    *,
    algorithm: Literal["greedy", "k-means"] = "greedy",
    metric: Literal["euclidean", "cosine"] = "euclidean",
    normalize: bool = False,
    init: Literal["random", "mean", "medoid"] = "random",
    semantics: Semantics = "paper",
) -> None:
    """Pick images that every other one of their class is near to, by features (k-centers).

    Args:
        to: The set.
        data: Which data.
        network: The network.
        algorithm: greedy: the farthest from the picks before; k-means: the images nearest to its
            centers, by Euclidean distance.
        metric: Distance of features.
        normalize: Bring features to length 1 first.
        init: First pick of greedy: random, nearest to the mean, or the medoid.
        semantics: official: DeepCore's random first picks.
    """
    if algorithm == "k-means" and (metric, init, semantics) != ("euclidean", "random", "paper"):
        raise ValueError("--metric, --init and --semantics are options of --algorithm greedy")

    def pick(embedding: Embedding) -> Selection:
        if algorithm == "k-means":
            return k_means_medoids(embedding, ipc=to.ipc, normalize=normalize, seed=to.seed)
        return k_centers(
            embedding,
            ipc=to.ipc,
            metric=metric,
            normalize=normalize,
            init=init,
            seed=to.seed,
            semantics=semantics,
        )

    facts = {
        "algorithm": algorithm,
        "metric": metric,
        "normalize": normalize,
        "init": init,
        "semantics": semantics,
    }
    embedded("k-centers", to, data, network, pick, facts)


def coreset_herding(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    network: Annotated[TeacherOptions, Flat] = TeacherOptions(),  # noqa: B008
    *,
    normalize: bool = False,
    semantics: Semantics = "paper",
) -> None:
    """Pick images whose mean feature follows that of their class (herding).

    Args:
        to: The set.
        data: Which data.
        network: The network.
        normalize: Bring features to length 1 first.
        semantics: paper: the nearest to what the mean lacks; official: the farthest, as DeepCore.
    """
    embedded(
        "herding", to, data, network,
        lambda e: herding(e, ipc=to.ipc, normalize=normalize, semantics=semantics),
        {"normalize": normalize, "semantics": semantics},
    )  # fmt: skip


def coreset_contextual_diversity(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    network: Annotated[TeacherOptions, Flat] = TeacherOptions(),  # noqa: B008
    *,
    semantics: Semantics = "paper",
) -> None:
    """Pick images whose predictions are far apart: k-centers by symmetric KL divergence.

    Args:
        to: The set.
        data: Which data.
        network: The network.
        semantics: official: DeepCore's random first picks.
    """
    embedded(
        "contextual-diversity", to, data, network,
        lambda e: contextual_diversity(e, ipc=to.ipc, seed=to.seed, semantics=semantics),
        {"semantics": semantics},
    )  # fmt: skip
