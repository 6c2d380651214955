"""Distillation objectives as plug-ins: L(S, D) of sets of any size, without a gradient in them."""

from pyddfast.analysis.objectives.batch_norm import DWAObjective, SRe2LObjective
from pyddfast.analysis.objectives.features import DMObjective
from pyddfast.analysis.objectives.gradients import DCObjective
from pyddfast.analysis.objectives.trajectory import TMObjective
from pyddfast.analysis.objectives.value import (
    FunctionObjective,
    ImageSet,
    Objective,
    ObjectiveValue,
    evaluate_objectives,
)

__all__ = [
    "DCObjective",
    "DMObjective",
    "DWAObjective",
    "FunctionObjective",
    "ImageSet",
    "Objective",
    "ObjectiveValue",
    "SRe2LObjective",
    "TMObjective",
    "evaluate_objectives",
]
