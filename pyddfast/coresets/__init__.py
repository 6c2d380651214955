"""Coresets: scores of samples, and class-balanced selection by them."""

from pyddfast.coresets.aum import aum_scores
from pyddfast.coresets.cad_prune import cad_prune, cad_scores
from pyddfast.coresets.cal import cal_scores
from pyddfast.coresets.ccs import ccs
from pyddfast.coresets.contextual_diversity import contextual_diversity
from pyddfast.coresets.craig import craig
from pyddfast.coresets.degenerate import repeated
from pyddfast.coresets.dual import beta_sampling, dual_scores
from pyddfast.coresets.dyn_unc import dyn_unc_scores
from pyddfast.coresets.dynamics import DYNAMICS_SCORES, TrainingDynamics
from pyddfast.coresets.el2n import el2n_best, el2n_of_models, el2n_scores
from pyddfast.coresets.el2n_sl import el2n_sl_of_models, el2n_sl_scores
from pyddfast.coresets.embedding import Embedding, embed
from pyddfast.coresets.forgetting import forgetting_scores
from pyddfast.coresets.glister import glister
from pyddfast.coresets.grad_match import grad_match
from pyddfast.coresets.grand import grand_of_models, grand_scores
from pyddfast.coresets.herding import herding
from pyddfast.coresets.k_centers import k_centers, k_means_medoids
from pyddfast.coresets.moderate import moderate_scores
from pyddfast.coresets.random import random_scores
from pyddfast.coresets.recorded import Recorded, dynamics_scores, record_training
from pyddfast.coresets.selection import Scores, Selection, mean_scores, select
from pyddfast.coresets.submodular import facility_location, graph_cut
from pyddfast.coresets.uncertainty import entropy_scores, least_confidence_scores, margin_scores
from pyddfast.coresets.windows import selmatch_window, windows

__all__ = [
    "DYNAMICS_SCORES",
    "Embedding",
    "Recorded",
    "Scores",
    "Selection",
    "TrainingDynamics",
    "aum_scores",
    "beta_sampling",
    "cad_prune",
    "cad_scores",
    "cal_scores",
    "ccs",
    "contextual_diversity",
    "craig",
    "dual_scores",
    "dyn_unc_scores",
    "dynamics_scores",
    "el2n_best",
    "el2n_of_models",
    "el2n_scores",
    "el2n_sl_of_models",
    "el2n_sl_scores",
    "embed",
    "entropy_scores",
    "facility_location",
    "forgetting_scores",
    "glister",
    "grad_match",
    "grand_of_models",
    "grand_scores",
    "graph_cut",
    "herding",
    "k_centers",
    "k_means_medoids",
    "least_confidence_scores",
    "margin_scores",
    "mean_scores",
    "moderate_scores",
    "random_scores",
    "record_training",
    "repeated",
    "select",
    "selmatch_window",
    "windows",
]
