"""The images of each class that compete for its patches: drawn at random, or given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from pyddfast.data import ImageSource
from pyddfast.random import Purpose, permutation

__all__ = ["Candidates", "candidate_pools", "check_enough"]

Candidates: TypeAlias = Sequence[Sequence[int]] | Mapping[int, Sequence[int]]


def candidate_pools(
    dataset: ImageSource, candidates: Candidates | None, *, pool: int, seed: int
) -> list[list[int]]:
    """The ordered pool of each class, as positions in the data set.

    Args:
        dataset: Real images.
        candidates: A list in label order or a mapping by label; None: ``pool`` images of each
            class in keyed random order.
        pool: Images of a random pool.
        seed: Of the random pool.

    Raises:
        ValueError: ``candidates`` does not name every class, or one is out of range, repeated or
            of another class.
    """
    labels = dataset.labels.cpu()
    classes = dataset.num_classes
    if candidates is None:
        pools = []
        for label in range(classes):
            members = (labels == label).nonzero().squeeze(1)
            order = permutation(seed, Purpose.CANDIDATES, len(members), label)
            pools.append(members[order[:pool]].tolist())
        return pools
    if len(candidates) != classes:
        raise ValueError(
            f"candidates must hold one list for each of {classes} classes, got {len(candidates)}"
        )
    if isinstance(candidates, Mapping) and set(candidates) != set(range(classes)):
        raise ValueError(f"candidates must have the keys 0 to {classes - 1}")
    pools = [[int(index) for index in candidates[label]] for label in range(classes)]
    of_image = labels.tolist()
    for label, chosen in enumerate(pools):
        if len(set(chosen)) != len(chosen):
            raise ValueError(f"candidates of class {label} hold an index more than once")
        for index in chosen:
            if not 0 <= index < len(dataset):
                raise ValueError(
                    f"candidates must lie in [0, {len(dataset)}), got {index} for class {label}"
                )
            if of_image[index] != label:
                raise ValueError(
                    f"candidate {index} of class {label} has the label {of_image[index]}"
                )
    return pools


def check_enough(
    pools: Sequence[Sequence[int]], needed: int, dataset: ImageSource, *, why: str, source: str
) -> None:
    """Raise a ValueError unless every pool has ``needed`` images.

    Args:
        pools: Of every class.
        needed: Images of each.
        dataset: Names the classes.
        why: What needs them, for the message.
        source: What the images are, for the message.
    """
    short = {label: len(pool) for label, pool in enumerate(pools) if len(pool) < needed}
    if short:
        label, size = next(iter(short.items()))
        name = dataset.class_names[label] if dataset.class_names else ""
        more = f" ({len(short)} such classes)" if len(short) > 1 else ""
        raise ValueError(f"{why}; class {label} {name!r} has {size} {source}{more}")
