"""DeepCore: functions and classes of ``deepcore/methods`` of PatrickZH/DeepCore (74ec709).

Each stands where the official one does, with its name, signature and meaning, so that one import
line behind the official definition replaces it; ``docs/drop-in/deepcore.md`` has the lines.  What
several official files call alike (``calc_gradient``, ``finish_run``) is in modules named like them.
"""

from pyddfast.compat.deepcore.cal import calc_kl, find_knn
from pyddfast.compat.deepcore.distances import (
    LastLayerGradients,
    cossim,
    cossim_np,
    cossim_pair,
    cossim_pair_np,
    euclidean_dist,
    euclidean_dist_np,
    euclidean_dist_pair,
    euclidean_dist_pair_np,
)
from pyddfast.compat.deepcore.greedy import (
    herding,
    k_center_greedy,
    orthogonal_matching_pursuit,
    orthogonal_matching_pursuit_np,
)
from pyddfast.compat.deepcore.submodular_function import FacilityLocation, GraphCut, LogDeterminant
from pyddfast.compat.deepcore.submodular_optimizer import (
    ApproximateLazyGreedy,
    LazyGreedy,
    NaiveGreedy,
    StochasticGreedy,
)
from pyddfast.compat.deepcore.uncertainty import rank_uncertainty

__all__ = [
    "ApproximateLazyGreedy",
    "FacilityLocation",
    "GraphCut",
    "LastLayerGradients",
    "LazyGreedy",
    "LogDeterminant",
    "NaiveGreedy",
    "StochasticGreedy",
    "calc_kl",
    "cossim",
    "cossim_np",
    "cossim_pair",
    "cossim_pair_np",
    "euclidean_dist",
    "euclidean_dist_np",
    "euclidean_dist_pair",
    "euclidean_dist_pair_np",
    "find_knn",
    "herding",
    "k_center_greedy",
    "orthogonal_matching_pursuit",
    "orthogonal_matching_pursuit_np",
    "rank_uncertainty",
]
