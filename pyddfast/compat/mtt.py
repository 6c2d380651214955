"""MTT: ``utils.py`` and ``distill.py`` of GeorgeCazenavette/mtt-distillation (50dccea).

``from pyddfast.compat.mtt import *`` behind the imports of ``distill.py`` replaces ``DiffAugment``;
:func:`fuse` and :func:`sgd_step` are for a line each.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyddfast.compat._augment import diff_augment
from pyddfast.data import ZCAWhitening
from pyddfast.nn import fuse_norm_relu_pool as fuse
from pyddfast.ops.match import parameter_distance
from pyddfast.train import unroll

__all__ = [
    "DiffAugment",
    "ZCAWhitening",
    "fuse",
    "load_trajectories",
    "param_loss",
    "sgd_step",
]


def DiffAugment(  # noqa: N802 the official name
    x: Tensor, strategy: str = "", seed: int = -1, param: Any = None
) -> Tensor:
    """The official augmentation: the same draws from torch's global generators, one pass.

    Args:
        x: (N, C, H, W) floating point.
        strategy: Entries joined by ``_``.
        seed: -1: parameters of each image; else one draw for the batch, which reseeds the global
            generators as the official function does.
        param: ``ParamDiffAug``.

    Returns:
        The augmented images, contiguous.
    """
    return diff_augment(x, strategy, seed, param, align_corners=True)


def sgd_step(
    student_net: nn.Module,
    criterion: Callable[[Tensor, Tensor], Tensor],
    params: Tensor,
    syn_lr: Tensor,
    x: Tensor,
    y: Tensor,
) -> Tensor:
    """One inner step: what ``params - syn_lr * grad`` is, and its exact gradient.

    It replaces the forward, the loss, ``torch.autograd.grad(..., create_graph=True)`` and the
    update.  Instead of the step's activations it keeps the parameters, and computes the step again
    in the backward.

    Args:
        student_net: A ``ReparamModule``.
        criterion: Of logits and labels.
        params: Flat parameters.
        syn_lr: Learning rate, a scalar tensor; a negative one is an error here (the script goes on
            with it, away from the minimum).
        x: Augmented images.
        y: Labels, or logits that are learned.

    Returns:
        The flat parameters after the step.
    """

    def logits(theta: Tensor, images: Tensor) -> Tensor:
        out: Tensor = student_net(images, flat_param=theta)
        return out

    return unroll.sgd_step(logits, criterion, params, syn_lr, x, y)


def param_loss(params: Tensor, target_params: Tensor, starting_params: Tensor) -> Tensor:
    """The normalised distance of the student's parameters, ``grand_loss`` of the script."""
    return parameter_distance(params, target_params, starting_params)


def load_trajectories(file: str | Path) -> list[list[list[Tensor]]]:
    """An expert file, mapped into memory; in place of ``torch.load(file)``.

    Nothing in it is executed, and what is not used is not read.

    Args:
        file: ``replay_buffer_<n>.pt``.

    Returns:
        Of each expert its snapshots, of each its parameters.
    """
    experts: list[list[list[Tensor]]] = torch.load(
        file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
    )
    return experts
