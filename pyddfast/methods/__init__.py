"""Distillation methods: one file each, a config dataclass and a function."""

from pyddfast.methods.ca2d import ca2d
from pyddfast.methods.cda import CDAConfig, cda
from pyddfast.methods.d4m import D4MConfig, d4m
from pyddfast.methods.datm import DATMConfig, datm
from pyddfast.methods.dc import DCConfig, dc
from pyddfast.methods.dm import DMConfig, dm
from pyddfast.methods.dsa import DSAMatchingConfig, dsa
from pyddfast.methods.dwa import DWAConfig, dwa
from pyddfast.methods.edc import EDCConfig, edc
from pyddfast.methods.fadrm import FADRMConfig, fadrm
from pyddfast.methods.gvbsm import GVBSMConfig, gvbsm
from pyddfast.methods.minimax import MinimaxConfig, minimax
from pyddfast.methods.prototypes import read_prompts, read_prototypes, write_prototypes
from pyddfast.methods.rded import RDEDConfig, check_rded, rded
from pyddfast.methods.recover import Job
from pyddfast.methods.snapshots import snapshots
from pyddfast.methods.sre2l import SRe2LConfig, sre2l
from pyddfast.methods.synthesis import SynthesisConfig, TaskInfo
from pyddfast.methods.tm import TMConfig, tm

__all__ = [
    "CDAConfig",
    "D4MConfig",
    "DATMConfig",
    "DCConfig",
    "DMConfig",
    "DSAMatchingConfig",
    "DWAConfig",
    "EDCConfig",
    "FADRMConfig",
    "GVBSMConfig",
    "Job",
    "MinimaxConfig",
    "RDEDConfig",
    "SRe2LConfig",
    "SynthesisConfig",
    "TMConfig",
    "TaskInfo",
    "ca2d",
    "cda",
    "check_rded",
    "d4m",
    "datm",
    "dc",
    "dm",
    "dsa",
    "dwa",
    "edc",
    "fadrm",
    "gvbsm",
    "minimax",
    "rded",
    "read_prompts",
    "read_prototypes",
    "snapshots",
    "sre2l",
    "tm",
    "write_prototypes",
]
