"""Modules over the fused operators."""

from pyddfast.nn.bn_stats import BNStatLoss
from pyddfast.nn.losses import KDLoss
from pyddfast.nn.stats_accumulator import StatsAccumulator

__all__ = ["BNStatLoss", "KDLoss", "StatsAccumulator"]
