"""Glister (Killamsetty et al., AAAI 2021): picks whose gradient step serves a validation set."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyddfast import ops
from pyddfast.coresets.classes import by_class
from pyddfast.coresets.embedding import Embedding
from pyddfast.coresets.selection import Selection
from pyddfast.coresets.semantics import Semantics, check_semantics

__all__ = ["glister"]


def glister(
    embedding: Embedding,
    *,
    validation: Embedding | None = None,
    ipc: int | None = None,
    fraction: float | None = None,
    eta: float = 0.1,
    semantics: Semantics = "paper",
) -> Selection:
    """Greedily the sample whose last-layer gradient is most aligned with the validation gradient.

    After each pick the last layer is moved by −η times the mean gradient of the picks, and the
    validation set's gradient is taken anew; all of it in terms of logits and features.

    Args:
        embedding: Of a trained network.
        validation: Other samples by the same network; default the class's own.
        ipc: Picks of every class; or give ``fraction``.
        fraction: Share of each class.
        eta: Step of the last layer; DeepCore's is the training's rate, 0.1.
        semantics: ``"official"``: DeepCore misspells the argument that updates the validation
            gradient, so that it takes the most aligned with the first one; and gradients are of
            mean losses over batches of 256.

    Returns:
        Picks in greedy order; ``scores`` are their alignments when they were picked.

    Raises:
        TypeError: ``ipc`` is not an int.
        ValueError: An option is unknown or out of range, a class is too small, or ``validation`` is
            of another network or lacks a class.
    """
    check_semantics(semantics)
    if not 0 < eta < math.inf:
        raise ValueError(f"eta must be positive and finite, got {eta}")
    other = embedding if validation is None else validation
    classes, known = by_class(embedding, ipc, fraction), by_class(other, 0, None)
    if (other.num_classes, other.features.shape[1]) != (
        embedding.num_classes,
        embedding.features.shape[1],
    ):
        raise ValueError(
            f"validation has {other.num_classes} logits and {other.features.shape[1]} features, "
            f"the embedding {embedding.num_classes} and {embedding.features.shape[1]}"
        )
    official = semantics == "official"
    g, h = classes.gradients(batch_means=official), classes.features
    fixed = known.gradients(batch_means=True) if official else None
    logits, targets, h_val = other.logits[known.rows], other.labels[known.rows], known.features
    bounds, bounds_val = classes.segments.tolist(), known.segments.tolist()
    picks, gains = [], []
    for label, budget in enumerate(classes.budgets):
        own = slice(bounds[label], bounds[label + 1])
        theirs = slice(bounds_val[label], bounds_val[label + 1])
        if budget == 0:
            continue
        if theirs.start == theirs.stop:
            raise ValueError(f"validation has no sample of class {label}")
        if fixed is not None:
            align = ops.grad_align_score(g[own], h[own], fixed[theirs], h_val[theirs])
            ranked = align.sort(descending=True, stable=True)
            found, gain = ranked.indices[:budget], ranked.values[:budget]
        else:
            found, gain = _greedy(
                g[own], h[own], logits[theirs], targets[theirs], h_val[theirs], budget, eta
            )
        picks.append(found + own.start)
        gains.append(gain)
    return classes.selection(
        "glister",
        torch.cat(picks) if picks else torch.zeros(0, dtype=torch.int64),
        scores=torch.cat(gains) if gains else torch.zeros(0),
        eta=eta,
        semantics=semantics,
        validation=validation is not None,
    )


def _greedy(
    g: Tensor, h: Tensor, logits: Tensor, targets: Tensor, h_val: Tensor, budget: int, eta: float
) -> tuple[Tensor, Tensor]:
    """Rows of one class in the order of picking, and their gains."""
    moved = torch.zeros_like(logits)  # by the sum of the picks' gradients
    free = torch.ones(len(g), dtype=torch.bool)
    picks = torch.empty(budget, dtype=torch.int64)
    gains = torch.empty(budget)
    for step in range(budget):
        now = logits - eta / max(step, 1) * moved
        g_val = ops.logit_gradient(now, targets)
        align = ops.grad_align_score(g, h, g_val, h_val).masked_fill(~free, -torch.inf)
        best = int(align.argmax())
        picks[step], gains[step], free[best] = best, align[best], False
        # G = g (x) [h; 1] moves the logits of v by (1 + h . h_v) g.
        moved += (1 + h_val @ h[best])[:, None] * g[best]
    return picks, gains
