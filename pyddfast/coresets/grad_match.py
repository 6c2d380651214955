"""GradMatch (Killamsetty et al., ICML 2021): weighted picks whose gradient is that of the class."""

from __future__ import annotations

import torch

from pyddfast import ops
from pyddfast.coresets.classes import by_class
from pyddfast.coresets.embedding import Embedding
from pyddfast.coresets.selection import Selection
from pyddfast.coresets.semantics import Semantics, check_semantics

__all__ = ["grad_match"]


def grad_match(
    embedding: Embedding,
    *,
    ipc: int | None = None,
    fraction: float | None = None,
    lam: float | None = None,
    semantics: Semantics = "paper",
) -> Selection:
    """Orthogonal matching pursuit of a class's mean last-layer gradient, in Gram space.

    The weighted sum of the picks' gradients comes close to the mean; no gradient is formed.

    Args:
        embedding: Of a trained network.
        ipc: Picks of every class; or give ``fraction``.
        fraction: Share of each class.
        lam: λ of the ridge; default 0.5, as in the paper, and 1 in the official form.
        semantics: ``"official"``, as DeepCore: gradients are of mean losses over batches of 256;
            the first residual has no ridge; weights solve the normal equations by non-negative
            least squares; and a class has fewer picks than asked where some get no weight.
            ``"paper"`` fills it up with the samples most aligned with the mean, at weight 0.

    Returns:
        Picks in the order of the pursuit, with their ``weights``.  (A training that counts all
        images alike does not know them.)

    Raises:
        TypeError: ``ipc`` is not an int.
        ValueError: An option is unknown or out of range, a class is too small, or its Gram matrix
            does not fit into memory.
    """
    check_semantics(semantics)
    official = semantics == "official"
    ridge = (1.0 if official else 0.5) if lam is None else lam
    classes = by_class(embedding, ipc, fraction)
    g, h = classes.gradients(batch_means=official), classes.features
    picks, weights = [], []
    for part, segments, budgets in classes.parts():
        grams = ops.last_layer_gram(g[part], h[part], segments=segments)
        # Of an empty class nothing is asked, and it has no mean.
        held = [number for number, budget in enumerate(budgets) if budget]
        pursuits = ops.omp(
            [grams[number] for number in held],
            [grams[number].mean(1) for number in held],
            [budgets[number] for number in held],
            lam=ridge,
            semantics=semantics,
        )
        for number, pursuit in zip(held, pursuits, strict=True):
            chosen, factors = pursuit.indices, pursuit.weights
            if not official:
                lacking = budgets[number] - len(chosen)
                aligned = grams[number].mean(1)
                aligned[chosen] = -torch.inf
                more = aligned.sort(descending=True, stable=True).indices[:lacking]
                chosen = torch.cat((chosen, more))
                factors = torch.cat((factors, factors.new_zeros(lacking)))
            picks.append(chosen + part.start + int(segments[number]))
            weights.append(factors)
    return classes.selection(
        "grad-match",
        torch.cat(picks) if picks else torch.zeros(0, dtype=torch.int64),
        weights=torch.cat(weights) if weights else torch.zeros(0),
        lam=ridge,
        semantics=semantics,
    )
