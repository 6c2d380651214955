"""Every op that is measured: name to its cases, and name to its accuracy rows.

An op family has one file here.  Order in these tables is the order of rows in a result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.harness import Case
from benchmarks.ops import (
    augment,
    block,
    dsa,
    kd,
    match,
    pairwise,
    patches,
    scores,
    select,
    stats,
    synthesis,
)

Cases = Callable[[torch.device, bool], list[Case]]
"""(device, quick) to cases."""

CASES: dict[str, Cases] = {
    "kd_loss": kd.kd_loss_cases,
    "soft_ce": kd.soft_ce_cases,
    "mse_ce": kd.mse_ce_cases,
    "sample_scores": scores.sample_scores_cases,
    "dynamics_update_": scores.dynamics_cases,
    "channel_stats": stats.channel_stats_cases,
    "bn_eval_stats": stats.bn_eval_stats_cases,
    "patch_stats": stats.patch_stats_cases,
    "augment": augment.augment_cases,
    "multi_crop": patches.multi_crop_cases,
    "mosaic": patches.mosaic_cases,
    "crop_flip_roll": synthesis.crop_flip_roll_cases,
    "dsa": dsa.dsa_cases,
    "gradient_distance": match.gradient_distance_cases,
    "last_layer_gram": pairwise.gram_cases,
    "knn_topk": pairwise.neighbour_cases,
    "knn_divergence": pairwise.divergence_cases,
    "k_center": select.k_center_cases,
    "herding": select.herding_cases,
    "facility_location": select.facility_location_cases,
    "graph_cut": select.graph_cut_cases,
    "norm_relu_pool": block.norm_relu_pool_cases,
}

ACCURACY: dict[str, Callable[[torch.device, bool], list[dict[str, Any]]]] = {
    "kd_loss": kd.kd_loss_accuracy,
}
