"""Coresets: scores of samples, and class-balanced selection by them."""

from pyddfast.coresets.dynamics import DYNAMICS_SCORES, TrainingDynamics
from pyddfast.coresets.el2n import el2n_of_models, el2n_scores
from pyddfast.coresets.random import random_scores
from pyddfast.coresets.selection import Scores, Selection, select

__all__ = [
    "DYNAMICS_SCORES",
    "Scores",
    "Selection",
    "TrainingDynamics",
    "el2n_of_models",
    "el2n_scores",
    "random_scores",
    "select",
]
