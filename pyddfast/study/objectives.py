"""The objectives that a study evaluates on every set, and what each can be told."""

from __future__ import annotations

from collections.abc import Callable

from pyddfast.analysis.objectives import (
    DCObjective,
    DMObjective,
    DWAObjective,
    Objective,
    SRe2LObjective,
    TMObjective,
)
from pyddfast.study.options import Options

__all__ = ["OBJECTIVES", "objective_options"]

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "sre2l": SRe2LObjective,
    "dwa": DWAObjective,
    "dm": DMObjective,
    "dc": DCObjective,
    "tm": TMObjective,
}
_FILLED_IN = ("data", "teacher", "experts", "model", "seed", "device")


def objective_options(name: str) -> Options:
    """What an objective can be told."""
    return Options(OBJECTIVES[name], _FILLED_IN)
