"""DATM: ``utils/utils_baseline.py`` and ``distill/DATM.py`` of NUS-HPC-AI-Lab/DATM (97ae510).

Its utilities are MTT's; learned labels are added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from pyddfast.compat._evaluation import official_view, train_and_test
from pyddfast.compat.mtt import (
    DiffAugment,
    ZCAWhitening,
    check_supported,
    fuse,
    load_trajectories,
    official_triple,
    param_loss,
    sgd_step,
)

# Without evaluate_synset, which lacks the ImageNet subsets and texture: it is imported by name.
__all__ = [
    "DiffAugment",
    "SoftCrossEntropy",
    "ZCAWhitening",
    "fuse",
    "load_trajectories",
    "param_loss",
    "sgd_step",
]


def SoftCrossEntropy(  # noqa: N802 the official name
    inputs: Tensor, target: Tensor, reduction: str = "average"
) -> Tensor:
    """Cross-entropy with the softmax of ``target``, the mean over the batch.

    Args:
        inputs: Logits (N, classes).
        target: Logits of the labels (N, classes), differentiable too.
        reduction: Without effect, as in the official function.
    """
    return F.cross_entropy(inputs, target.softmax(1))


def evaluate_synset(
    it_eval: int,
    net: nn.Module,
    images_train: Tensor,
    labels_train: Tensor,
    testloader: Iterable[Sequence[Tensor]],
    args: Any,
    return_loss: bool = False,
    texture: bool = False,
    train_criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    Preciser_Scheduler: bool = False,
    type: int = 1,
) -> tuple[Any, ...]:
    """As :func:`pyddfast.compat.mtt.evaluate_synset`, for learned labels too.

    It runs on ``args.device``; the official function takes ``cuda:0`` without ``args.parall_eva``.

    Args:
        it_eval: As there.
        net: As there.
        images_train: As there.
        labels_train: (N,), or with ``train_criterion`` the label logits (N, classes).
        testloader: As there.
        args: As there.
        return_loss: As there.
        texture: As there.
        train_criterion: Of logits and label logits (:func:`SoftCrossEntropy`); None: cross-entropy.
        Preciser_Scheduler: Has to be False.
        type: Without effect, as it is there.

    Returns:
        As there; with ``train_criterion`` training accuracies are those of the largest logit, where
        the official function returns 1.

    Raises:
        ValueError: As there, or ``Preciser_Scheduler``.
    """
    check_supported(args, texture)
    if Preciser_Scheduler:
        raise ValueError("evaluate_synset lacks Preciser_Scheduler: keep the official function")
    done = train_and_test(
        it_eval, net, images_train, labels_train, testloader, args,
        official_view(args, DiffAugment),
        criterion=F.cross_entropy if train_criterion is None else train_criterion,
        keeps_labels=train_criterion is not None,
    )  # fmt: skip
    return official_triple(net, done, return_loss)
