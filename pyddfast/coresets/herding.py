"""Herding (Welling, ICML 2009; iCaRL): picks whose mean follows the mean of their class."""

from __future__ import annotations

from pyddfast import ops
from pyddfast.coresets.classes import by_class
from pyddfast.coresets.embedding import Embedding
from pyddfast.coresets.selection import Selection
from pyddfast.coresets.semantics import Semantics, check_semantics

__all__ = ["herding"]


def herding(
    embedding: Embedding,
    *,
    ipc: int | None = None,
    fraction: float | None = None,
    normalize: bool = False,
    semantics: Semantics = "paper",
) -> Selection:
    """Pick t of a class is the sample nearest to t · mean − the sum of the picks before.

    Args:
        embedding: Whose features are averaged.
        ipc: Picks of every class; or give ``fraction``.
        fraction: Share of each class.
        normalize: Bring features to length 1 first, as iCaRL does.
        semantics: ``"official"``: the *farthest* sample, which is what DeepCore's code takes.

    Returns:
        Picks in greedy order.

    Raises:
        TypeError: ``ipc`` is not an int.
        ValueError: An option is unknown or out of range, or a class is too small.
    """
    check_semantics(semantics)
    classes = by_class(embedding, ipc, fraction)
    features = classes.unit_features() if normalize else classes.features
    found = ops.herding(
        features, classes.budgets, farthest=semantics == "official", segments=classes.segments
    )
    return classes.selection("herding", found.picks, normalize=normalize, semantics=semantics)
