"""DC-BENCH: ``evaluator/evaluator_utils.py`` of justincui03/dc_benchmark (2a57711).

Its ``DiffAugment`` is VICO's and its ``evaluate_synset`` takes an optimiser and a logger; a line
each after the class puts them in place: ``EvaluatorUtils.DiffAugment = staticmethod(DiffAugment)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyddfast.compat._evaluation import official_sgd, official_view, train_and_test
from pyddfast.compat.vico import DiffAugment, fuse

__all__ = ["DiffAugment", "evaluate_synset", "fuse"]


def evaluate_synset(
    it_eval: int,
    net: nn.Module,
    images_train: Tensor,
    labels_train: Tensor,
    testloader: Iterable[Sequence[Tensor]],
    args: Any,
    logging: Any,
) -> tuple[nn.Module, float, float]:
    """Train a network on the set and test it, as the official function does, from its draws.

    Args:
        it_eval: Number of the student, for the line that is printed and logged.
        net: The network, trained in place.
        images_train: (N, C, H, W), normalised.
        labels_train: (N,), or (N, classes) float32 probabilities.
        testloader: Batches of images and labels.
        args: As of :func:`pyddfast.compat.vico.evaluate_synset`, ``eval_gap``, and ``optimizer``:
            ``"adam"`` (rate 0.003 throughout) or another word, SGD.
        logging: With a method ``info``.

    Returns:
        The network, its accuracy on the last epoch's views, and on the test images.

    Raises:
        ValueError: ``args.aug`` asks for one of torchvision's augmentations; or an unknown entry.
    """
    other = getattr(args, "aug", "")
    if other and not args.dsa:
        raise ValueError(
            f"evaluate_synset has DSA and DC's augmentation; args.aug asks for {other!r}: keep the "
            "official function for it"
        )
    kept: list[torch.optim.Optimizer] = []

    def adam(net: nn.Module, lr: float) -> torch.optim.Optimizer:
        # The official code builds no new one for the second half.
        if not kept:
            kept.append(torch.optim.Adam(net.parameters(), lr=0.003))
        return kept[0]

    done = train_and_test(
        it_eval, net, images_train, labels_train, testloader, args,
        official_view(args, DiffAugment),
        make_optimizer=adam if args.optimizer == "adam" else official_sgd,
        test_every=args.eval_gap,
        keeps_labels=True,
    )  # fmt: skip
    logging.info(
        "Evaluate_%02d: epoch = %04d train loss = %.6f train acc = %.4f, test acc = %.4f",
        it_eval, int(args.epoch_eval_train), done.losses[-1], done.accuracies[-1],
        done.test_accuracy,
    )  # fmt: skip
    return net, done.accuracies[-1], done.test_accuracy
