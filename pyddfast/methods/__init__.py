"""Distillation methods: one file each, a config dataclass and a function."""

from pyddfast.methods.rded import RDEDConfig, rded

__all__ = ["RDEDConfig", "rded"]
