"""Picks by the gradients of a trained network's last layer."""

from __future__ import annotations

import math
from typing import Annotated

from pyddfast.cli.coresets.options import CoresetOptions, embedded
from pyddfast.cli.options import DataOptions, Flat, TeacherOptions
from pyddfast.coresets import craig, facility_location, glister, grad_match, graph_cut
from pyddfast.coresets.semantics import Semantics
from pyddfast.coresets.submodular import Compared

__all__ = [
    "coreset_craig",
    "coreset_facility_location",
    "coreset_glister",
    "coreset_grad_match",
    "coreset_graph_cut",
]


def coreset_facility_location(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    network: Annotated[TeacherOptions, Flat] = TeacherOptions(),  # noqa: B008
    *,
    compared: Compared = "gradients",
) -> None:
    """Pick images that every other one of their class is like (facility location).

    Args:
        to: The set.
        data: Which data.
        network: The network.
        compared: gradients of the last layer, or features.
    """
    embedded(
        "facility-location", to, data, network,
        lambda e: facility_location(e, ipc=to.ipc, compared=compared), {"compared": compared},
    )  # fmt: skip


def coreset_graph_cut(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    network: Annotated[TeacherOptions, Flat] = TeacherOptions(),  # noqa: B008
    *,
    compared: Compared = "gradients",
    lam: float = 1.0,
) -> None:
    """Pick images that are like their class and unlike each other (graph cut).

    Args:
        to: The set.
        data: Which data.
        network: The network.
        compared: gradients of the last layer, or features.
        lam: Weight of being like the class.
    """
    if not math.isfinite(lam):
        raise ValueError(f"--lam must be finite, got {lam}")
    embedded(
        "graph-cut", to, data, network,
        lambda e: graph_cut(e, ipc=to.ipc, compared=compared, lam=lam),
        {"compared": compared, "lam": lam},
    )  # fmt: skip


def coreset_craig(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    network: Annotated[TeacherOptions, Flat] = TeacherOptions(),  # noqa: B008
    *,
    semantics: Semantics = "paper",
) -> None:
    """Pick images whose gradients stand for those of their class (Craig).

    Args:
        to: The set.
        data: Which data.
        network: The network.
        semantics: paper: the formula; official: gradients of mean losses over batches and weights
            of 1 more, as DeepCore.
    """
    embedded(
        "craig", to, data, network,
        lambda e: craig(e, ipc=to.ipc, semantics=semantics), {"semantics": semantics},
    )  # fmt: skip


def coreset_grad_match(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    network: Annotated[TeacherOptions, Flat] = TeacherOptions(),  # noqa: B008
    *,
    lam: float | None = None,
) -> None:
    """Pick images whose weighted gradients sum to the mean gradient of their class (GradMatch).

    Args:
        to: The set.
        data: Which data.
        network: The network.
        lam: Weight of the ridge; default 0.5, as in the paper.
    """
    if lam is not None and not 0 <= lam < math.inf:
        raise ValueError(f"--lam must be finite and not negative, got {lam}")
    embedded(
        "grad-match", to, data, network, lambda e: grad_match(e, ipc=to.ipc, lam=lam), {"lam": lam}
    )


def coreset_glister(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    network: Annotated[TeacherOptions, Flat] = TeacherOptions(),  # noqa: B008
    *,
    eta: float = 0.1,
    semantics: Semantics = "paper",
) -> None:
    """Pick the images whose gradient step serves their class best, one after the other (Glister).

    Args:
        to: The set.
        data: Which data.
        network: The network.
        eta: Step of its last layer after each pick.
        semantics: paper: with that step; official: without it, as DeepCore does.
    """
    if not 0 < eta < math.inf:
        raise ValueError(f"--eta must be positive and finite, got {eta}")
    embedded(
        "glister", to, data, network,
        lambda e: glister(e, ipc=to.ipc, eta=eta, semantics=semantics),
        {"eta": eta, "semantics": semantics},
    )  # fmt: skip
