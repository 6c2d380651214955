"""Moderate coreset (Xia et al., ICLR 2023): samples at a typical distance from their class."""

from __future__ import annotations

import torch
from torch import Tensor

from pyddfast.coresets.embedding import Embedding
from pyddfast.coresets.selection import Scores
from pyddfast.coresets.semantics import Semantics, check_semantics

__all__ = ["moderate_scores"]


def moderate_scores(embedding: Embedding, *, semantics: Semantics = "paper") -> Scores:
    """How near a sample's distance to the centre of its class is to the median distance.

    Args:
        embedding: Of a trained network.
        semantics: ``"paper"``: the centre is the mean of the class's features, the median that of
            its distances, the score −|distance − median|.  ``"official"`` (tmllab's code): the
            centre is the median of each feature; all samples are ranked by distance, whatever
            their class, and the score falls with the number of ranks to the middle.

    Returns:
        float64 scores (N,); high is typical.  (The paper's own choice is not balanced over classes,
        that of :func:`pyddfast.coresets.select` is.)

    Raises:
        ValueError: ``semantics`` is unknown.
    """
    check_semantics(semantics)
    features = embedding.features.double()
    distances = torch.zeros(len(embedding), dtype=torch.float64)
    medians = torch.zeros_like(distances)
    for label in sorted(set(embedding.labels.tolist())):
        rows = (embedding.labels == label).nonzero()[:, 0]
        own = features[rows]
        centre = own.mean(0) if semantics == "paper" else _median(own)
        distances[rows] = (own - centre).norm(dim=1)
        medians[rows] = _median(distances[rows])
    if semantics == "paper":
        values = -(distances - medians).abs()
    else:
        ranks = distances.argsort(stable=True).argsort()
        values = -(ranks - (len(ranks) - 1) / 2).abs()
    return Scores(values, "moderate", "typical", {**embedding.meta, "semantics": semantics})


def _median(x: Tensor) -> Tensor:
    """Over the first dimension; of an even number the mean of the two in the middle, as numpy's."""
    ordered = x.sort(dim=0).values
    return (ordered[(len(x) - 1) // 2] + ordered[len(x) // 2]) / 2
