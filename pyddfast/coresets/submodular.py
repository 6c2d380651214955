"""Facility location and graph cut: picks that cover their class, by similarity.

Samples are alike where the gradients of their losses by the last layer point the same way
(DeepCore's ``Submodular``: 0.5 + 0.5 cos of them), or where their features do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from pyddfast import ops
from pyddfast.coresets.classes import by_class
from pyddfast.coresets.embedding import Embedding
from pyddfast.coresets.selection import Selection
from pyddfast.ops.select import SubmodularSelection

__all__ = ["Compared", "facility_location", "graph_cut"]

Compared: TypeAlias = Literal["gradients", "features"]


def facility_location(
    embedding: Embedding,
    *,
    ipc: int | None = None,
    fraction: float | None = None,
    compared: Compared = "gradients",
    sample_weight: Tensor | None = None,
) -> Selection:
    """Greedy facility location: every sample of the class has a similar one among the picks.

    Maximises Σ_i w_i max_{j picked} s_ij with s = 0.5 + 0.5 cos.  Both semantics agree: DeepCore's
    factor 1/B of a batch's mean loss does not change an angle, and where a gradient underflows to
    zero it divides by zero, where here the similarity is 0.5.

    Args:
        embedding: Of a trained network.
        ipc: Picks of every class; or give ``fraction``.
        fraction: Share of each class.
        compared: Last-layer gradients, or features.
        sample_weight: (N,) factors of the samples that are to be covered, not negative, in the data
            set's order; e.g. scores.

    Returns:
        Picks in greedy order; ``scores`` are their gains, ``weights`` the samples that are most
        similar to each.

    Raises:
        TypeError: ``ipc`` is not an int, or the weights no floating point.
        ValueError: An option is unknown or out of range, a class is too small, or its similarities
            do not fit into memory.
    """

    def cover(similarity: list[Tensor], k: list[int], **where: Any) -> SubmodularSelection:
        return ops.facility_location(None, k, similarity=similarity, **where)

    return _greedy("facility-location", cover, embedding, ipc, fraction, compared, sample_weight)


def graph_cut(
    embedding: Embedding,
    *,
    ipc: int | None = None,
    fraction: float | None = None,
    compared: Compared = "gradients",
    lam: float = 1.0,
) -> Selection:
    """Greedy graph cut: picks that are like their class and unlike each other.

    A sample's gain is λ Σ_i s_iv − 2 Σ_{j picked} s_jv with s = 0.5 + 0.5 cos, DeepCore's default
    method.  Both semantics agree, as for :func:`facility_location`.

    Args:
        embedding: Of a trained network.
        ipc: Picks of every class; or give ``fraction``.
        fraction: Share of each class.
        compared: Last-layer gradients, or features.
        lam: λ, the weight of being like the class.

    Returns:
        Picks in greedy order; ``scores`` are their gains.

    Raises:
        TypeError: ``ipc`` is not an int.
        ValueError: An option is unknown or out of range, a class is too small, or its similarities
            do not fit into memory.
    """

    def cut(similarity: list[Tensor], k: list[int], **where: Any) -> SubmodularSelection:
        return ops.graph_cut(None, k, lam, similarity=similarity, **where)

    found = _greedy("graph-cut", cut, embedding, ipc, fraction, compared, None, lam=lam)
    return Selection(found.indices, found.order, None, found.scores, found.meta)


def _greedy(
    name: str,
    function: Callable[..., SubmodularSelection],
    embedding: Embedding,
    ipc: int | None,
    fraction: float | None,
    compared: Compared,
    sample_weight: Tensor | None,
    **meta: Any,
) -> Selection:
    """Class after class; weights are the numbers of assigned samples."""
    if compared not in ("gradients", "features"):
        raise ValueError(f"compared must be 'gradients' or 'features', got {compared!r}")
    if sample_weight is not None and sample_weight.shape != (len(embedding),):
        raise ValueError(
            f"sample_weight must have shape ({len(embedding)},), got {tuple(sample_weight.shape)}"
        )
    classes = by_class(embedding, ipc, fraction)
    features = classes.features
    if compared == "gradients":
        g, h = classes.gradients(), features
    else:
        # <h_i, h_j> is the inner product of gradients [h] (x) [1] without the bias.
        g, h = torch.ones(len(features), 1), features
    found = []
    for part, segments, budgets in classes.parts():
        similarity = ops.last_layer_gram(
            g[part], h[part], metric="cosine01", bias=compared == "gradients", segments=segments
        )
        where: dict[str, Any] = {"segments": segments}
        if sample_weight is not None:
            where["sample_weight"] = sample_weight[classes.rows[part]]
        picked = function(similarity, budgets, **where)
        found.append((picked.picks + part.start, picked.gains, picked.sizes))
    picks, gains, sizes = (torch.cat(values) for values in zip(*found, strict=True))
    return classes.selection(
        name, picks, weights=sizes, scores=gains, compared=compared,
        weighted=sample_weight is not None, **meta,
    )  # fmt: skip
