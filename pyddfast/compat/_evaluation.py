"""The loop of ``evaluate_synset`` that VICO's code and its descendants share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from pyddfast.compat._dc_augment import dc_augment

__all__ = ["Evaluated", "official_sgd", "official_view", "train_and_test"]


@dataclass(frozen=True)
class Evaluated:
    """A student of an official evaluation.

    Attributes:
        losses: Mean training loss of each epoch.
        accuracies: Accuracy on each epoch's views, in [0, 1].
        test_loss: Cross-entropy of the test images.
        test_accuracy: In [0, 1].
    """

    losses: list[float]
    accuracies: list[float]
    test_loss: float
    test_accuracy: float


def official_view(args: Any, diff_augment: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    """The augmentation that ``args`` asks for.

    Args:
        args: ``dsa``, and with it ``dsa_strategy`` and ``dsa_param``, else ``dc_aug_param``.
        diff_augment: The codebase's ``DiffAugment``.
    """
    if args.dsa:
        return lambda images: diff_augment(images, args.dsa_strategy, param=args.dsa_param)
    param = getattr(args, "dc_aug_param", None)
    return lambda images: dc_augment(images, param)


def official_sgd(net: nn.Module, lr: float) -> torch.optim.Optimizer:
    """The optimiser of all these codes."""
    return torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)


def train_and_test(
    it_eval: int,
    net: nn.Module,
    images_train: Tensor,
    labels_train: Tensor,
    testloader: Iterable[Sequence[Tensor]],
    args: Any,
    view: Callable[[Tensor], Tensor],
    *,
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    make_optimizer: Callable[[nn.Module, float], torch.optim.Optimizer] = official_sgd,
    test_every: int | None = None,
    keeps_labels: bool = False,
) -> Evaluated:
    """Train a network on a set and test it, from the draws of the official loop.

    Epoch + 1 epochs; after epoch Epoch // 2 + 1, counted from 0, a tenth of the rate by a new
    optimiser, so that the momentum is lost.  Images stay on the device, a step waits for nothing.

    Args:
        it_eval: Number of the student, for the line that is printed.
        net: The network, trained in place.
        images_train: (N, C, H, W), as the network takes them.
        labels_train: (N,), or (N, classes) with a ``criterion`` for such.
        testloader: Batches of images and labels.
        args: ``device``, ``lr_net``, ``epoch_eval_train``, ``batch_train``.
        view: The augmentation of a batch, which it may not write to.
        criterion: Of logits and labels.
        make_optimizer: Of the network and a rate, called again for the lower one.
        test_every: Also test after epochs that this divides, and print.
        keeps_labels: Whether labels keep their type; else they become int64.

    Raises:
        ValueError: Images and labels are not as many, or none.
    """
    if not 0 < len(images_train) == len(labels_train):
        raise ValueError(
            f"images_train and labels_train must be as many, at least one; got {len(images_train)} "
            f"and {len(labels_train)}"
        )
    net = net.to(args.device)
    images = images_train.detach().float().to(args.device)
    labels = labels_train.detach().to(args.device)
    if not keeps_labels:
        labels = labels.long()
    hard = labels.argmax(1) if labels.ndim == 2 else labels
    epochs, lr = int(args.epoch_eval_train), float(args.lr_net)
    optimizer = make_optimizer(net, lr)
    # Positions in place of images: the loader's draws are the official ones.
    loader = DataLoader(range(len(images)), batch_size=args.batch_train, shuffle=True)  # type: ignore[arg-type, var-annotated]
    began = time.time()
    sums: list[Tensor] = []  # of the loss and of right answers, read at the end

    def say(epoch: int, tested: tuple[float, float]) -> None:
        loss, right = (float(value) / len(images) for value in sums[-1])
        print(
            f"Evaluate_{it_eval:02d}: epoch = {epoch:04d} train time = {int(time.time() - began)} "
            f"s train loss = {loss:.6f} train acc = {right:.4f}, test acc = {tested[1]:.4f}"
        )

    for epoch in range(epochs + 1):
        net.train()
        total = images.new_zeros(2, dtype=torch.float64)
        for positions in loader:
            where = positions.to(args.device)
            output = net(view(images[where]))
            loss = criterion(output, labels[where])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total[0] += loss.detach() * len(where)
            total[1] += (output.detach().argmax(1) == hard[where]).sum()
        sums.append(total)
        if epoch == epochs // 2 + 1:
            lr *= 0.1
            optimizer = make_optimizer(net, lr)
        if test_every is not None and epoch % test_every == 0:
            say(epoch, _test(net, testloader, args.device))
    tested = _test(net, testloader, args.device)
    say(epochs, tested)
    losses, rights = (torch.stack(sums) / len(images)).T.tolist()
    return Evaluated(losses, rights, *tested)


@torch.no_grad()
def _test(net: nn.Module, batches: Iterable[Sequence[Tensor]], device: Any) -> tuple[float, float]:
    """Mean cross-entropy and accuracy."""
    net.eval()
    total, count = torch.zeros(2, dtype=torch.float64, device=device), 0
    for images, labels, *_ in batches:
        logits, where = net(images.float().to(device)), labels.long().to(device)
        total[0] += F.cross_entropy(logits, where, reduction="sum")
        total[1] += (logits.argmax(1) == where).sum()
        count += len(labels)
    loss, right = (float(value) / count for value in total)
    return loss, right
