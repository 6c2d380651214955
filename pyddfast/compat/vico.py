"""VICO: ``utils.py`` of VICO-UoE/DatasetCondensation (53f63a6), the codes of DC, DSA and DM.

``from pyddfast.compat.vico import *`` at the end of ``utils.py`` replaces ``DiffAugment``,
``match_loss`` and ``evaluate_synset`` there and wherever they are imported; :func:`fuse` is for a
line in ``get_network``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from pyddfast.compat._augment import diff_augment
from pyddfast.compat._evaluation import official_view, train_and_test
from pyddfast.nn import fuse_norm_relu_pool as fuse
from pyddfast.ops.match import gradient_distance

__all__ = ["DiffAugment", "evaluate_synset", "fuse", "match_loss"]


def DiffAugment(  # noqa: N802 the official name
    x: Tensor, strategy: str = "", seed: int = -1, param: Any = None
) -> Tensor:
    """The official augmentation: the same draws from torch's global generators.

    Args:
        x: (N, C, H, W) floating point.
        strategy: Entries joined by ``_``; ``""``, ``"none"`` and ``"None"`` leave ``x`` as it is.
        seed: -1: parameters of each image; else one draw for the batch, which reseeds the global
            generators as the official function does.
        param: ``ParamDiffAug``.

    Returns:
        The augmented images, contiguous.
    """
    if not strategy or strategy.lower() == "none":
        return x
    # Torch's default since 1.3; the official code names none.
    return diff_augment(x, strategy, seed, param, align_corners=False)


def match_loss(gw_syn: Sequence[Tensor], gw_real: Sequence[Tensor], args: Any) -> Tensor:
    """The official distance of gradients.

    Args:
        gw_syn: Gradients of the synthetic batch.
        gw_real: Of the real batch.
        args: ``dis_metric`` is ``"ours"``, ``"mse"`` or ``"cos"``.

    Returns:
        A scalar, differentiable in ``gw_syn``.
    """
    return gradient_distance(list(gw_syn), list(gw_real), args.dis_metric)


def evaluate_synset(
    it_eval: int,
    net: nn.Module,
    images_train: Tensor,
    labels_train: Tensor,
    testloader: Iterable[Sequence[Tensor]],
    args: Any,
) -> tuple[nn.Module, float, float]:
    """Train a network on the set and test it, as the official function does, from its draws.

    Images stay on the device and a step waits for nothing.

    Args:
        it_eval: Number of the student, for the line that is printed.
        net: The network, trained in place.
        images_train: (N, C, H, W), normalised.
        labels_train: (N,).
        testloader: Batches of images and labels.
        args: ``device``, ``lr_net``, ``epoch_eval_train``, ``batch_train``, ``dsa``, and with it
            ``dsa_strategy`` and ``dsa_param``, else ``dc_aug_param``: DC's own augmentation.

    Returns:
        The network, its accuracy on the last epoch's views, and on the test images.

    Raises:
        ValueError: ``dc_aug_param`` or ``dsa_strategy`` names an unknown entry.
    """
    done = train_and_test(
        it_eval, net, images_train, labels_train, testloader, args,
        official_view(args, DiffAugment),
    )  # fmt: skip
    return net, done.accuracies[-1], done.test_accuracy
