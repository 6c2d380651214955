"""Craig (Mirzasoleiman et al., ICML 2020): picks whose gradients stand for those of their class."""

from __future__ import annotations

import torch

from pyddfast import ops
from pyddfast.coresets.classes import by_class
from pyddfast.coresets.embedding import Embedding
from pyddfast.coresets.selection import Selection
from pyddfast.coresets.semantics import Semantics, check_semantics

__all__ = ["craig"]

# DeepCore adds it to its similarities, so that the farthest pair's is not 0.
_OFFSET = 1e-3


def craig(
    embedding: Embedding,
    *,
    ipc: int | None = None,
    fraction: float | None = None,
    semantics: Semantics = "paper",
) -> Selection:
    """Greedy facility location of each class, by the distance of last-layer gradients.

    Maximises Σ_i max_{j picked} (max d − d_ij).

    Args:
        embedding: Of a trained network.
        ipc: Picks of every class; or give ``fraction``.
        fraction: Share of each class.
        semantics: ``"official"``, as DeepCore: gradients are of mean losses over batches of 256, so
            that those of a class's last batch are too large; 1e-3 is added to similarities; weights
            are 1 + the cluster size.

    Returns:
        Picks in greedy order; ``weights`` are the sizes of their clusters, the samples whose
        gradients they stand for; ``scores`` their gains.

    Raises:
        TypeError: ``ipc`` is not an int.
        ValueError: An option is unknown or out of range, a class is too small, or its distances do
            not fit into memory.
    """
    check_semantics(semantics)
    official = semantics == "official"
    classes = by_class(embedding, ipc, fraction)
    g, h = classes.gradients(batch_means=official), classes.features
    found = []
    for part, segments, budgets in classes.parts():
        distances = ops.last_layer_gram(g[part], h[part], metric="euclidean", segments=segments)
        similarity = []
        for one in distances:
            farthest = one.max() if len(one) else 0.0
            similarity.append(farthest - one + (_OFFSET if official else 0.0))
        picked = ops.facility_location(None, budgets, similarity=similarity, segments=segments)
        found.append((picked.picks + part.start, picked.gains, picked.sizes + int(official)))
    picks, gains, sizes = (torch.cat(values) for values in zip(*found, strict=True))
    return classes.selection("craig", picks, weights=sizes, scores=gains, semantics=semantics)
