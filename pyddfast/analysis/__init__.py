"""The paper's analyses: functions of measured values, with intervals."""

from pyddfast.analysis.dcs import DCS, Adjust, dcs, dcs_difference

__all__ = [
    "DCS",
    "Adjust",
    "dcs",
    "dcs_difference",
]
