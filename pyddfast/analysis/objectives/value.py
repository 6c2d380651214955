"""What a distillation objective says of a set, and how any objective is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeAlias

from pyddfast.data import DistilledSet, ImageDataset, ImageFolder, ImageSource
from pyddfast.data.stored import finite
from pyddfast.methods.small_scale import RealImages

__all__ = ["FunctionObjective", "ImageSet", "Objective", "ObjectiveValue", "evaluate_objectives"]

# What objectives are evaluated on; a folder's images are decoded as they are needed.
ImageSet: TypeAlias = DistilledSet | ImageDataset | ImageFolder


@dataclass(frozen=True)
class ObjectiveValue:
    """L(S, D) of one set.

    Attributes:
        value: The loss.
        parts: What it was put together from, by name: a number a network (DM, DC), a starting
            epoch (TM), or a layer (SRe2L, DWA).
    """

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)


class Objective(Protocol):
    """A plug-in: evaluates several sets at once, so that what they share is computed once."""

    @property
    def name(self) -> str:
        """For tables."""

    def settings(self) -> dict[str, Any]:
        """Every switch and what the objective was evaluated with; JSON values."""

    def __call__(self, sets: Sequence[ImageSet]) -> list[ObjectiveValue]:
        """The loss of each set, in order; no gradient with respect to the images is taken."""


@dataclass(frozen=True, eq=False)
class FunctionObjective:
    """Any function of a set as an objective.

    Attributes:
        name: For tables.
        function: From a set to its loss.
    """

    name: str
    function: Callable[[ImageSet], float]

    def settings(self) -> dict[str, Any]:
        """Where the function comes from."""
        return {"function": getattr(self.function, "__qualname__", type(self.function).__name__)}

    def __call__(self, sets: Sequence[ImageSet]) -> list[ObjectiveValue]:
        """See :class:`Objective`."""
        return [ObjectiveValue(float(self.function(one))) for one in sets]


def evaluate_objectives(
    objectives: Sequence[Objective], sets: Mapping[str, ImageSet]
) -> dict[str, Any]:
    """Every objective on every set.

    Args:
        objectives: Of different names.
        sets: By name.

    Returns:
        JSON values: ``sets`` (name to images and images a class) and ``objectives`` (name to
        ``settings`` and, by set, ``value`` and ``parts``); what is not finite is None.

    Raises:
        ValueError: There is no set or no objective, two objectives share a name, or what an
            objective refuses.
    """
    names = [objective.name for objective in objectives]
    if not sets or not names or len(set(names)) < len(names):
        raise ValueError(f"sets and differently named objectives are needed, got {names} of these")
    record: dict[str, Any] = {
        "sets": {
            name: {"count": len(one), "ipc": len(one) / one.num_classes}
            for name, one in sets.items()
        },
        "objectives": {},
    }
    for objective in objectives:
        values = objective(list(sets.values()))
        record["objectives"][objective.name] = {
            "settings": objective.settings(),
            "values": {
                name: finite({"value": found.value, "parts": found.parts})
                for name, found in zip(sets, values, strict=True)
            },
        }
    return record


def switches(objective: Any, *without: str) -> dict[str, Any]:
    """The fields of an objective that are plain values."""
    return {f.name: getattr(objective, f.name) for f in fields(objective) if f.name not in without}


def check_like(one: ImageSource, shape: Sequence[int], real: RealImages) -> None:
    """A set is of the data's task and of images as the network takes them.

    Raises:
        ValueError: It is not; the message says in what.
    """
    data = real.data
    for name, given, needed in (
        ("num_classes", one.num_classes, len(real.members)),
        ("image shape", tuple(shape), real.shape),
        ("normalization", one.normalization, data.normalization),
        ("whitened", getattr(one, "whitened", False), data.whitened),
    ):
        if given != needed:
            raise ValueError(f"{name} of the set is {given}, the data's {needed}")
