"""Contextual diversity (Agarwal et al., ECCV 2020): k-centers of predictions."""

from __future__ import annotations

from pyddfast import ops
from pyddfast.coresets.classes import by_class
from pyddfast.coresets.embedding import Embedding
from pyddfast.coresets.k_centers import first_picks
from pyddfast.coresets.selection import Selection
from pyddfast.coresets.semantics import Semantics, check_semantics

__all__ = ["contextual_diversity"]


def contextual_diversity(
    embedding: Embedding,
    *,
    ipc: int | None = None,
    fraction: float | None = None,
    seed: int = 0,
    semantics: Semantics = "paper",
) -> Selection:
    """Greedy k-centers of each class by the symmetric KL divergence of predictions.

    DeepCore's reading of the paper for classification; it halves the divergence, which changes no
    pick, and its p log(p / q) is NaN where a probability underflows, where differences of
    log-probabilities are not.

    Args:
        embedding: Whose logits give the predictions.
        ipc: Picks of every class; or give ``fraction``.
        fraction: Share of each class.
        seed: Of the random first picks.
        semantics: As for :func:`pyddfast.coresets.k_centers`.

    Returns:
        Picks in greedy order; ``scores`` are the radii of their classes after each pick.

    Raises:
        TypeError: ``ipc`` is not an int.
        ValueError: An option is unknown or out of range, or a class is too small.
    """
    check_semantics(semantics)
    classes = by_class(embedding, ipc, fraction)
    found = ops.k_center(
        embedding.logits.log_softmax(1)[classes.rows],
        classes.budgets,
        metric="jeffreys",
        init=first_picks(classes, seed, semantics),
        segments=classes.segments,
    )
    return classes.selection(
        "contextual-diversity", found.picks, scores=found.radii, seed=seed, semantics=semantics
    )
