"""k-centers: samples that every other one of their class is near to.

The features decide the outcome more than the algorithm does: which network, whether their lengths
are normalised, and where the greedy choice begins.  All of it stays in the record of the selection.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyddfast import ops
from pyddfast._extras import require
from pyddfast.coresets.classes import Classes, by_class
from pyddfast.coresets.embedding import Embedding
from pyddfast.coresets.selection import Selection
from pyddfast.coresets.semantics import Semantics, check_semantics
from pyddfast.ops._memory import check_fits
from pyddfast.random import Purpose, numpy_generator, uniform

__all__ = ["first_picks", "k_centers", "k_means_medoids"]

# Lanes of Purpose.SELECTION: random_scores has 0, strata 1, Beta sampling 2.
_START_LANE = 3
# Lloyd's algorithm ends long before on the features of a class; scipy's default is 10.
_ITERATIONS = 100


def k_centers(
    embedding: Embedding,
    *,
    ipc: int | None = None,
    fraction: float | None = None,
    metric: Literal["euclidean", "cosine"] = "euclidean",
    normalize: bool = False,
    init: Literal["random", "mean", "medoid"] = "random",
    seed: int = 0,
    semantics: Semantics = "paper",
) -> Selection:
    """Greedy k-centers of each class: the next pick is the farthest from those before.

    Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach"
    (ICLR 2018), algorithm 1.

    Args:
        embedding: Whose features are compared.
        ipc: Picks of every class; or give ``fraction``.
        fraction: Share of each class.
        metric: Distance of features.
        normalize: Bring features to length 1 first.
        init: First pick of a class: at random, nearest to the mean, or with the least sum of
            distances.
        seed: Of the random first picks.
        semantics: ``"official"``: DeepCore's first pick, ``numpy.random.seed(seed)`` and
            ``randint(n)`` anew in each class, so that classes of one size begin at the same
            position.  It returns its picks sorted, not in their order.

    Returns:
        Picks in greedy order; ``scores`` are the radii of their classes after each pick.

    Raises:
        TypeError: ``ipc`` is not an int.
        ValueError: An option is unknown or out of range, or a class is too small.
    """
    check_semantics(semantics)
    if init not in ("random", "mean", "medoid"):
        raise ValueError(f"init must be 'random', 'mean' or 'medoid', got {init!r}")
    if semantics == "official" and init != "random":
        raise ValueError(f"init must be 'random' with semantics='official', got {init!r}")
    classes = by_class(embedding, ipc, fraction)
    first = first_picks(classes, seed, semantics) if init == "random" else init
    features = classes.unit_features() if normalize else classes.features
    found = ops.k_center(
        features, classes.budgets, metric=metric, init=first, segments=classes.segments
    )
    return classes.selection(
        "k-centers",
        found.picks,
        scores=found.radii,
        metric=metric,
        normalize=normalize,
        init=init,
        seed=seed,
        semantics=semantics,
    )


def k_means_medoids(
    embedding: Embedding,
    *,
    ipc: int | None = None,
    fraction: float | None = None,
    normalize: bool = False,
    seed: int = 0,
) -> Selection:
    """The samples nearest to the centers of k-means, in each class.

    By scipy's ``kmeans2``, begun by k-means++.  Each center takes the nearest sample that no other
    has taken, the center of the most samples first.

    Args:
        embedding: Whose features are compared, by Euclidean distance.
        ipc: Picks of every class; or give ``fraction``.
        fraction: Share of each class.
        normalize: Bring features to length 1 first.
        seed: Of k-means++.

    Returns:
        Picks by falling cluster size (``order`` is ``"none"``: a smaller budget has other
        clusters).

    Raises:
        TypeError: ``ipc`` is not an int.
        ValueError: A number is out of range, a class is too small, or the distances to its centers
            do not fit into memory.
        ModuleNotFoundError: scipy, of the ``methods`` extra, is not installed.
    """
    clusters = require("scipy.cluster.vq", "methods")
    classes = by_class(embedding, ipc, fraction)
    features = (classes.unit_features() if normalize else classes.features).double()
    if not features.shape[1]:
        raise ValueError("features have no column to compare samples by")
    bounds = classes.segments.tolist()
    sizes = classes.segments.diff().tolist()
    most = max((k * size for k, size in zip(classes.budgets, sizes, strict=True)), default=0)
    # In float64: at the last draw of k-means++, and again for the medoids.
    check_fits(
        8 * most,
        features.device,
        "the distances of a class's images to its centers",
        "pick fewer, or by k_centers",
    )
    picks: list[Tensor] = []
    for label, budget in enumerate(classes.budgets):
        own = features[bounds[label] : bounds[label + 1]]
        if budget:
            picks.append(_medoids(clusters, own, budget, seed, label) + bounds[label])
    return classes.selection(
        "k-means-medoids",
        torch.cat(picks) if picks else torch.zeros(0, dtype=torch.int64),
        ranked=False,
        normalize=normalize,
        seed=seed,
    )


def _medoids(clusters: Any, own: Tensor, budget: int, seed: int, label: int) -> Tensor:
    """Rows of one class."""
    # Equal samples leave centers empty, and k-means++ without distances to draw by.
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", UserWarning)
        centers, members = clusters.kmeans2(
            own.numpy(),
            budget,
            iter=_ITERATIONS,
            minit="++",
            seed=numpy_generator(seed, Purpose.SELECTION, label, _START_LANE),
        )
    distances = torch.cdist(torch.from_numpy(centers), own)
    sizes = np.bincount(members, minlength=budget)
    found = torch.empty(budget, dtype=torch.int64)
    for place, center in enumerate(np.argsort(-sizes, kind="stable")):
        found[place] = distances[center].argmin()
        distances[:, found[place]] = torch.inf
    return found


def first_picks(classes: Classes, seed: int, semantics: Semantics) -> list[int]:
    """A row of each class; of an empty one its beginning, which nobody looks at."""
    starts, sizes = classes.segments[:-1], classes.segments.diff()
    if semantics == "official":
        draws = [
            np.random.RandomState(seed).randint(0, size) if size else 0 for size in sizes.tolist()
        ]
        return [int(value) for value in starts + torch.tensor(draws)]
    shares = uniform(seed, Purpose.SELECTION, torch.arange(len(starts)), lanes=_START_LANE)
    return [int(value) for value in starts + (shares * sizes).long()]
