"""A task and teachers small enough to synthesise from in a test, and what restatements share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyddfast import models
from pyddfast.data import DistilledSet, ImageDataset, Normalization, normalize

NORMALIZATION = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
SIZE, CLASSES = 8, 5


def dataset(size: int = SIZE, per_class: int = 4) -> ImageDataset:
    """Noise around a colour for each class."""
    gen = torch.Generator().manual_seed(3)
    count = per_class * CLASSES
    labels = torch.arange(count) % CLASSES
    noise = torch.randint(0, 100, (count, 3, size, size), generator=gen)
    images = noise + 30 * labels[:, None, None, None]
    return ImageDataset(
        images=images.to(torch.uint8),
        labels=labels,
        class_names=tuple("abcde"),
        normalization=NORMALIZATION,
    )


def teacher(seed: int = 0, classes: int = CLASSES) -> nn.Module:
    """A ConvNet whose BatchNorm layers have seen the data; no training, so nothing to diverge."""
    model = models.create("convnet-d2", classes, image_size=SIZE, seed=seed, norm="batch", width=6)
    images = normalize(dataset(per_class=20).images, NORMALIZATION)
    with torch.no_grad():
        for _ in range(20):
            model(images)
    return model.eval()


def share_known(network: nn.Module, images: Tensor, normalization: Normalization) -> float:
    """How many of uint8 images, one a class in label order, a network puts in their class."""
    answers = network(normalize(images, normalization)).argmax(1)
    return float((answers == torch.arange(len(images))).double().mean())


def pixels(images: Tensor) -> Tensor:
    """Normalised images to the scale of bytes, unrounded, in float64."""
    mean = torch.tensor(NORMALIZATION.mean, dtype=torch.float64)[:, None, None]
    std = torch.tensor(NORMALIZATION.std, dtype=torch.float64)[:, None, None]
    return ((images.double() * std + mean) * 255).clamp(0, 255)


class Hook:
    """The official hook's statistics, in float64."""

    def __init__(self, module: nn.BatchNorm2d) -> None:
        self.value = torch.zeros(())
        module.register_forward_hook(self.read)
        self.var_weight = 1.0

    def read(self, module: nn.BatchNorm2d, inputs: tuple[Tensor], output: Tensor) -> None:
        x = inputs[0]
        mean = x.mean([0, 2, 3])
        var = x.transpose(0, 1).flatten(1).var(1, unbiased=False)
        assert module.running_var is not None
        assert module.running_mean is not None
        self.value = (
            self.var_weight * (module.running_var - var).norm()
            + (module.running_mean - mean).norm()
        )


def augmented(images: Tensor, params: Tensor) -> Tensor:
    top, left, height, width, flip, down, right = params.tolist()
    cut = images[:, :, top : top + height, left : left + width]
    views = F.interpolate(cut, size=images.shape[-2:], mode="bilinear", antialias=True)
    return (views.flip(-1) if flip else views).roll((down, right), (2, 3))


def assert_pixels(made: DistilledSet, want: Tensor, *, truncated: bool = False) -> None:
    """Within float32's drift over the steps: some thousandths of a level, then the rounding."""
    got = made.images.double()
    error = (got - (want - 0.5 if truncated else want)).abs()
    assert error.max() < 0.52
    assert got.std() > 10  # the images are not constant
    assert made.labels.tolist() == [c for c in range(CLASSES) for _ in range(made.ipc)]
