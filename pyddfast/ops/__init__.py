"""Fused operators: functions on tensors, the same on CPU and GPU.

Importing this imports torch and nothing else heavy.  Each function's kernel has a readable float64
twin in ``pyddfast.ops.reference``.
"""

from pyddfast.ops import _fakes
from pyddfast.ops._segments import class_segments
from pyddfast.ops.augment import AugmentParams, augment, draw_augmentation
from pyddfast.ops.block import norm_relu_pool
from pyddfast.ops.dsa import DSAConfig, DSAParams, draw_dsa, draw_dsa_official, dsa
from pyddfast.ops.dynamics import DynamicsState, Signal, dynamics_update_
from pyddfast.ops.kd import Reduction, TeacherKind, kd_loss, kd_value_and_grad, mse_ce, soft_ce
from pyddfast.ops.match import feature_mean_distance, gradient_distance, parameter_distance
from pyddfast.ops.omp import OmpSemantics, Pursuit, omp
from pyddfast.ops.pairwise import (
    DivergenceKind,
    GramMetric,
    KnnMetric,
    grad_align_score,
    knn_divergence,
    knn_topk,
    last_layer_gram,
    logit_gradient,
)
from pyddfast.ops.patches import PatchSelection, mosaic, multi_crop, select_patches
from pyddfast.ops.ranking import (
    beta_keys,
    beta_sample,
    segmented_topk,
    segmented_window,
    stratified,
)
from pyddfast.ops.scores import SampleScores, sample_scores
from pyddfast.ops.select import (
    Herding,
    KCenters,
    Similarity,
    SubmodularSelection,
    facility_location,
    graph_cut,
    herding,
    k_center,
)
from pyddfast.ops.stats import (
    Activation,
    bn_distance,
    bn_eval_stats,
    channel_stats,
    class_targets,
    patch_stats,
)
from pyddfast.ops.synthesis import (
    clamp_normalized,
    crop_flip_roll,
    draw_crop_flip_roll,
    image_prior,
    to_uint8,
)

_fakes.register()

__all__ = [
    "Activation",
    "AugmentParams",
    "DSAConfig",
    "DSAParams",
    "DivergenceKind",
    "DynamicsState",
    "GramMetric",
    "Herding",
    "KCenters",
    "KnnMetric",
    "OmpSemantics",
    "PatchSelection",
    "Pursuit",
    "Reduction",
    "SampleScores",
    "Signal",
    "Similarity",
    "SubmodularSelection",
    "TeacherKind",
    "augment",
    "beta_keys",
    "beta_sample",
    "bn_distance",
    "bn_eval_stats",
    "channel_stats",
    "clamp_normalized",
    "class_segments",
    "class_targets",
    "crop_flip_roll",
    "draw_augmentation",
    "draw_crop_flip_roll",
    "draw_dsa",
    "draw_dsa_official",
    "dsa",
    "dynamics_update_",
    "facility_location",
    "feature_mean_distance",
    "grad_align_score",
    "gradient_distance",
    "graph_cut",
    "herding",
    "image_prior",
    "k_center",
    "kd_loss",
    "kd_value_and_grad",
    "knn_divergence",
    "knn_topk",
    "last_layer_gram",
    "logit_gradient",
    "mosaic",
    "mse_ce",
    "multi_crop",
    "norm_relu_pool",
    "omp",
    "parameter_distance",
    "patch_stats",
    "sample_scores",
    "segmented_topk",
    "segmented_window",
    "select_patches",
    "soft_ce",
    "stratified",
    "to_uint8",
]
