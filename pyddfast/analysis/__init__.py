"""The paper's analyses: functions of measured values, with intervals."""

from pyddfast.analysis.convergence import Convergence, convergence, convergence_ratio
from pyddfast.analysis.dcs import DCS, Adjust, dcs, dcs_difference
from pyddfast.analysis.robust_scores import (
    LEARNING_RATES,
    RobustScore,
    ars,
    lrs,
    searched_accuracies,
)
from pyddfast.analysis.scaling_law import (
    LawMethod,
    ScalingLaw,
    fit_scaling_law,
    scaling_law_difference,
)

__all__ = [
    "DCS",
    "LEARNING_RATES",
    "Adjust",
    "Convergence",
    "LawMethod",
    "RobustScore",
    "ScalingLaw",
    "ars",
    "convergence",
    "convergence_ratio",
    "dcs",
    "dcs_difference",
    "fit_scaling_law",
    "lrs",
    "scaling_law_difference",
    "searched_accuracies",
]
