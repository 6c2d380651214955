"""CAL, contrastive active learning (Margatina et al., EMNLP 2021): neighbours predicted unalike."""

from __future__ import annotations

import torch

from pyddfast import ops
from pyddfast.coresets.embedding import Embedding
from pyddfast.coresets.selection import Scores
from pyddfast.coresets.semantics import Semantics, check_semantics

__all__ = ["cal_scores"]


def cal_scores(
    embedding: Embedding,
    *,
    neighbours: int = 10,
    by: Embedding | None = None,
    semantics: Semantics = "paper",
) -> Scores:
    """How differently a network predicts a sample and its nearest neighbours.

    The original looks among labelled samples for the neighbours of unlabelled ones.  Here every
    sample has a label, so that neighbours come from the whole data set.

    Args:
        embedding: Whose logits are compared, and whose features say who is near.
        neighbours: Of each sample; at most those that there are (``meta`` tells).
        by: Says who is near instead: of another network, the same samples (DeepCore: a ResNet-18
            trained on ImageNet, at 224 pixels).
        semantics: ``"paper"``: neighbours by normalised features among all samples, the mean of
            KL(neighbour ‖ sample); high is contrastive and picked.  ``"official"``, as DeepCore:
            neighbours within the class by Euclidean distance, half the sum of both divergences, and
            the *least* contrastive are picked (its issue 29), so that the score is minus the mean.
            It leaves out the first neighbour as the sample itself, also where that is a duplicate;
            here a sample is left out by its position.

    Returns:
        Scores whose highest are the picks.

    Raises:
        ValueError: ``semantics`` is unknown, ``neighbours`` is below 1, ``by`` is of other samples,
            or a sample has no neighbour.
    """
    check_semantics(semantics)
    if neighbours < 1:
        raise ValueError(f"neighbours must be at least 1, got {neighbours}")
    near = embedding if by is None else by
    if not len(embedding):
        raise ValueError("the embedding holds no sample")
    if not torch.equal(near.labels, embedding.labels):
        raise ValueError("by is of other samples than the embedding: their labels differ")
    paper = semantics == "paper"
    sizes = torch.bincount(near.labels)
    count = min(neighbours, (len(near) if paper else int(sizes[sizes > 0].min())) - 1)
    if count < 1:
        where = "the embedding" if paper else "a class"
        raise ValueError(f"{where} has a single sample, which has no neighbour")
    logp = embedding.logits.log_softmax(1)
    meta = {
        **embedding.meta,
        "neighbours": count,
        "near": dict(near.meta),
        "semantics": semantics,
    }
    if paper:
        _, knn = ops.knn_topk(near.features, count, metric="cosine")
        values = ops.knn_divergence(logp, knn, kind="kl_nb_x")
        return Scores(values, "cal", "contrastive", meta)
    rows, segments = ops.class_segments(near.labels, near.num_classes)
    _, knn = ops.knn_topk(near.features[rows], count, segments=segments)
    sorted_values = ops.knn_divergence(logp[rows], knn, kind="jeffreys")
    values = torch.empty_like(sorted_values)
    values[rows] = -sorted_values
    return Scores(values, "cal", "predicted as its neighbours", meta)
