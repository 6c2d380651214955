"""VICO: ``utils.py`` of VICO-UoE/DatasetCondensation (53f63a6), the codes of DC, DSA and DM.

``from pyddfast.compat.vico import *`` at the end of ``utils.py`` replaces ``DiffAugment``,
``match_loss`` and ``evaluate_synset`` there and wherever they are imported; :func:`fuse` is for a
line in ``get_network``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from pyddfast.compat._augment import diff_augment
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
            ``dsa_strategy`` and ``dsa_param``, else ``dc_aug_param``.

    Returns:
        The network, its accuracy on the last epoch's views, and on the test images.

    Raises:
        ValueError: DC's own augmentation is asked for (the digits, networks with batch norm).
    """
    if (
        not args.dsa
        and (getattr(args, "dc_aug_param", None) or {}).get("strategy", "none") != "none"
    ):
        raise ValueError(
            f"evaluate_synset has DSA and no augmentation; dc_aug_param asks for "
            f"{args.dc_aug_param['strategy']!r}: keep the official function for it"
        )
    net = net.to(args.device)
    images = images_train.detach().float().to(args.device)
    labels = labels_train.detach().long().to(args.device)
    epochs, lr = int(args.epoch_eval_train), float(args.lr_net)
    optimizer = _optimizer(net, lr)
    # Positions in place of images: the loader's draws are the official ones.
    loader = DataLoader(range(len(images)), batch_size=args.batch_train, shuffle=True)  # type: ignore[arg-type, var-annotated]
    began, loss_sum, right = time.time(), images.new_zeros(()), images.new_zeros(())
    for epoch in range(epochs + 1):
        net.train()
        loss_sum, right = images.new_zeros(()), images.new_zeros(())
        for positions in loader:
            where = positions.to(args.device)
            views, target = images[where], labels[where]
            if args.dsa:
                views = DiffAugment(views, args.dsa_strategy, param=args.dsa_param)
            output = net(views)
            loss = F.cross_entropy(output, target)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss_sum += loss.detach() * len(where)
            right += (output.detach().argmax(1) == target).sum()
        if epoch == epochs // 2 + 1:
            lr *= 0.1
            optimizer = _optimizer(net, lr)  # the momentum is lost, as there
    seconds, accuracy = time.time() - began, float(right) / len(images)
    tested = _accuracy(net, testloader, args.device)
    print(
        f"Evaluate_{it_eval:02d}: epoch = {epochs:04d} train time = {int(seconds)} s train loss = "
        f"{float(loss_sum) / len(images):.6f} train acc = {accuracy:.4f}, test acc = {tested:.4f}"
    )
    return net, accuracy, tested


def _optimizer(net: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)


@torch.no_grad()
def _accuracy(net: nn.Module, batches: Iterable[Sequence[Tensor]], device: Any) -> float:
    net.eval()
    right, count = torch.zeros((), device=device), 0
    for images, labels, *_ in batches:
        logits = net(images.float().to(device))
        right += (logits.argmax(1) == labels.long().to(device)).sum()
        count += len(labels)
    return float(right) / count
