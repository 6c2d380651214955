"""Distillation methods: one file each, a config dataclass and a function."""

from pyddfast.methods.ca2d import ca2d
from pyddfast.methods.rded import RDEDConfig, check_rded, rded

__all__ = ["RDEDConfig", "ca2d", "check_rded", "rded"]
