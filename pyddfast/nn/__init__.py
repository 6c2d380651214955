"""Modules over the fused operators."""

from pyddfast.nn.losses import KDLoss

__all__ = ["KDLoss"]
