"""MTT: ``utils.py`` and ``distill.py`` of GeorgeCazenavette/mtt-distillation (50dccea).

``from pyddfast.compat.mtt import *`` behind the imports of ``distill.py`` replaces ``DiffAugment``;
:func:`fuse`, :func:`sgd_step` and :func:`evaluate_synset` are for a line each.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyddfast.compat._augment import diff_augment
from pyddfast.compat._evaluation import Evaluated, official_view, train_and_test
from pyddfast.data import ZCAWhitening
from pyddfast.nn import fuse_norm_relu_pool as fuse
from pyddfast.ops.match import parameter_distance
from pyddfast.train import unroll

# Without evaluate_synset, which lacks the ImageNet subsets and texture: it is imported by name.
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


def evaluate_synset(
    it_eval: int,
    net: nn.Module,
    images_train: Tensor,
    labels_train: Tensor,
    testloader: Iterable[Sequence[Tensor]],
    args: Any,
    return_loss: bool = False,
    texture: bool = False,
) -> tuple[Any, ...]:
    """Train a network on the set and test it, as the official function does, from its draws.

    Args:
        it_eval: Number of the student, for the line that is printed.
        net: The network, trained in place.
        images_train: (N, C, H, W), normalised or whitened.
        labels_train: (N,).
        testloader: Batches of images and labels.
        args: ``device``, ``dataset``, ``lr_net`` (the learned rate), ``epoch_eval_train``,
            ``batch_train``, ``dsa``, and with it ``dsa_strategy`` and ``dsa_param``, else
            ``dc_aug_param``.
        return_loss: Return the losses too.
        texture: Has to be False.

    Returns:
        The network, its accuracies on the views of each epoch, and on the test images; with
        ``return_loss`` also the training loss of each epoch and the test loss.

    Raises:
        ValueError: ``texture``, or ``args.dataset`` is "ImageNet", whose subsets number their
            classes by the script's tables.
    """
    check_supported(args, texture)
    done = train_and_test(
        it_eval, net, images_train, labels_train, testloader, args,
        official_view(args, DiffAugment),
    )  # fmt: skip
    return official_triple(net, done, return_loss)


def check_supported(args: Any, texture: bool) -> None:
    """Refuse what only the script's own function knows."""
    for given, what in ((texture, "texture"), (args.dataset == "ImageNet", "the ImageNet subsets")):
        if given:
            raise ValueError(f"evaluate_synset lacks {what}: keep the official function")


def official_triple(net: nn.Module, done: Evaluated, return_loss: bool) -> tuple[Any, ...]:
    """What the official function returns, which is five things with ``return_loss``."""
    triple = net, done.accuracies, done.test_accuracy
    return (*triple, done.losses, done.test_loss) if return_loss else triple


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
