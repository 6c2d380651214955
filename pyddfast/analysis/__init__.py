"""The paper's analyses: functions of measured values, with intervals."""

from pyddfast.analysis.dcs import DCS, Adjust, dcs, dcs_difference
from pyddfast.analysis.scaling_law import (
    LawMethod,
    ScalingLaw,
    fit_scaling_law,
    scaling_law_difference,
)

__all__ = [
    "DCS",
    "Adjust",
    "LawMethod",
    "ScalingLaw",
    "dcs",
    "dcs_difference",
    "fit_scaling_law",
    "scaling_law_difference",
]
