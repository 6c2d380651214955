"""Picks by the gradients of a trained network's last layer."""

from __future__ import annotations

from typing import Annotated

from pyddfast.cli.coresets.options import CoresetOptions, embedded
from pyddfast.cli.options import DataOptions, Flat, TeacherOptions
from pyddfast.coresets import glister
from pyddfast.coresets.semantics import Semantics

__all__ = ["coreset_glister"]


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
    if eta <= 0:
        raise ValueError(f"--eta must be positive, got {eta}")
    embedded(
        "glister", to, data, network,
        lambda e: glister(e, ipc=to.ipc, eta=eta, semantics=semantics),
        {"eta": eta, "semantics": semantics},
    )  # fmt: skip
