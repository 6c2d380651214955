"""Accuracy of a model on a whole data set."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyddfast.data import ImageDataset, ImageSource, Normalization, ResidentDataset, network_input
from pyddfast.train.distributed import Ranks

__all__ = [
    "check_test_set",
    "evaluate",
    "images_of",
    "predict",
    "predict_batches",
    "sampling_error",
]


def check_test_set(dataset: ImageDataset, test_set: ImageSource) -> None:
    """Whether a network that learns the one can be measured on the other.

    Raises:
        ValueError: the number of classes differs, or one is whitened and the other is not.
    """
    if dataset.num_classes != test_set.num_classes:
        raise ValueError(
            f"dataset has {dataset.num_classes} classes, the test set {test_set.num_classes}"
        )
    if dataset.whitened != getattr(test_set, "whitened", False):
        raise ValueError("dataset and test set must both be whitened, by the same ZCA, or neither")


def images_of(dataset: ImageSource, start: int, stop: int) -> Tensor:
    """Images [start, stop) as one tensor (B, C, H, W).

    Raises:
        ValueError: the images have different sizes.
    """
    images = getattr(dataset, "images", None)
    if isinstance(images, Tensor):
        return images[start:stop]
    if isinstance(dataset, ResidentDataset):
        return dataset.batch(torch.arange(start, min(stop, len(dataset))))
    parts = [dataset[i] for i in range(start, min(stop, len(dataset)))]
    shapes = {tuple(part.shape) for part in parts}
    if len(shapes) > 1:
        raise ValueError(
            f"images {start} to {stop} have different shapes {sorted(shapes)[:4]}; "
            "load the data set with image_size so that they are equal"
        )
    return torch.stack(parts)


@torch.no_grad()
def predict(
    model: nn.Module,
    dataset: ImageSource,
    *,
    normalization: Normalization | None = None,
    size: int | None = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
) -> Tensor:
    """Logits of every image, un-augmented, the model in eval mode (its mode is put back).

    Args:
        model: from normalised (B, C, H, W) to (B, num_classes) logits.
        dataset: images of one size; float32 ones are normalised already.
        normalization: of the pixels; None: the data set's own.
        size: side to resize to (bilinear, antialiased) before the model; None: as stored.
        batch_size: images at once; 256 keeps activations of small networks in a CPU's cache.
        device: where to run; None: where the model's parameters are.

    Returns:
        (N, num_classes) float tensor on ``device``.
    """
    batches = predict_batches(
        model,
        dataset,
        normalization=normalization,
        size=size,
        batch_size=batch_size,
        device=device,
    )
    return torch.cat([logits for _, logits in batches])


@torch.no_grad()
def predict_batches(
    model: nn.Module,
    dataset: ImageSource,
    *,
    normalization: Normalization | None = None,
    size: int | None = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008 frozen
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of :func:`predict`, for data sets whose logits are too many to hold.

    Of several processes (``ranks``) each does its share of the batches.

    Yields:
        Positions in the data set, int64 (B,) on the CPU, and their logits (B, num_classes).
    """
    if device is None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
    normalization = normalization or dataset.normalization
    was_training = model.training
    model.eval()
    try:
        for start in range(ranks.rank * batch_size, len(dataset), ranks.world * batch_size):
            images = images_of(dataset, start, start + batch_size).to(device)
            following = start + ranks.world * batch_size
            if isinstance(dataset, ResidentDataset) and following < len(dataset):
                stop = min(following + batch_size, len(dataset))
                dataset.prefetch(torch.arange(following, stop))
            x = network_input(images, normalization)
            if size is not None and x.shape[-2:] != (size, size):
                x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
            yield torch.arange(start, start + len(images)), model(x)
    finally:
        model.train(was_training)


def evaluate(
    model: nn.Module,
    dataset: ImageSource,
    *,
    normalization: Normalization | None = None,
    size: int | None = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008 frozen
) -> float:
    """Top-1 accuracy on the whole data set, in [0, 1]; arguments as for :func:`predict`.

    Several processes (``ranks``) divide the data set among them; each returns the accuracy on all.

    Raises:
        ValueError: the data set is empty, or its images have different sizes.
    """
    if len(dataset) == 0:
        raise ValueError("dataset has no images to evaluate on")
    batches = predict_batches(
        model,
        dataset,
        normalization=normalization,
        size=size,
        batch_size=batch_size,
        device=device,
        ranks=ranks,
    )
    correct = torch.zeros((), dtype=torch.int64)
    for positions, logits in batches:
        labels = dataset.labels[positions.to(dataset.labels.device)].to(logits.device)
        # Added where the logits are: a batch does not wait for the one before.
        correct = correct.to(logits.device) + (logits.argmax(dim=1) == labels).sum()
    return int(ranks.gather(correct).sum()) / len(dataset)


def sampling_error(accuracy: float, count: int) -> float:
    """Standard error of an accuracy measured on ``count`` independent test images.

    ``sqrt(a (1 - a) / n)``: what another test set of this size would change, seeds aside.
    """
    if count < 1 or not 0 <= accuracy <= 1:
        raise ValueError(f"need an accuracy in [0, 1] and count >= 1, got {accuracy}, {count}")
    return math.sqrt(accuracy * (1 - accuracy) / count)
