"""Modules over the fused operators."""

from pyddfast.nn.bn_stats import BNStatLoss
from pyddfast.nn.feature_stats import FeatureStatLoss, FeatureStats, FeatureStatsAccumulator
from pyddfast.nn.fused_block import NormReluPool, fuse_norm_relu_pool
from pyddfast.nn.losses import KDLoss
from pyddfast.nn.stats_accumulator import StatsAccumulator

__all__ = [
    "BNStatLoss",
    "FeatureStatLoss",
    "FeatureStats",
    "FeatureStatsAccumulator",
    "KDLoss",
    "NormReluPool",
    "StatsAccumulator",
    "fuse_norm_relu_pool",
]
