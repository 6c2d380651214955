"""Distillation methods: one file each, a config dataclass and a function."""

from pyddfast.methods.rded import RDEDConfig, check_rded, rded

__all__ = ["RDEDConfig", "check_rded", "rded"]
