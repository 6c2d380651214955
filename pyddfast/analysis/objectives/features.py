"""DM's objective: how far a set's mean features are from the data's, in random networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyddfast.analysis.objectives.value import ImageSet, ObjectiveValue, check_like, switches
from pyddfast.data import ImageDataset, ImageFolder, network_input
from pyddfast.data.digest import describe_data
from pyddfast.methods.small_scale import (
    Networks,
    RealImages,
    augmented,
    class_dsa,
    freeze_batch_norm,
)
from pyddfast.ops import feature_mean_distance
from pyddfast.ops._memory import free_bytes
from pyddfast.ops.dsa import STANDARD_STRATEGY, DSAParams
from pyddfast.train import progress
from pyddfast.train.distributed import resolve_device
from pyddfast.train.models import ModelSpec, describe_model

__all__ = ["DMObjective"]


@dataclass(frozen=True, eq=False)
class DMObjective:
    """Equation 5: ‖mean φ(A(x)) − mean φ(A(s))‖², averaged over networks and augmentations.

    The value is that of ``dm``'s steps on the same images.  Networks with BatchNorm take the
    statistics of real images first, once for both sides; the method takes each batch's own, which
    sets of any size do not have.

    Attributes:
        data: D, the training set.
        model: Network with ``embed``.
        networks: Freshly initialised ones, and draws of the augmentation; their number is the
            user's: the paper does not give it.
        per_class: The mean over the classes of each one's distance, as DM is published and coded.
            False: one mean over all images, as equation 5 is written, without a class index.
        real_batch: Real images of a class and network; None: all.
        dsa_strategy: Augmentation, the same draw on both sides; none: "".
        dsa_align_corners: Of its scale and rotate.
        fused: Swap norm, ReLU and pooling of the networks for one operator.
        batch_size: Images at once.
        seed: Of networks, augmentation and real images.
        device: Default CUDA where there is one.
    """

    data: ImageDataset | ImageFolder
    model: ModelSpec = "convnet-d3"
    networks: int = 10
    per_class: bool = True
    real_batch: int | None = None
    dsa_strategy: str = STANDARD_STRATEGY
    dsa_align_corners: bool = False
    fused: bool = True
    batch_size: int = 256
    seed: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        check_networks(self.networks, self.real_batch, self.batch_size)

    @property
    def name(self) -> str:
        """For tables."""
        return "dm"

    def settings(self) -> dict[str, Any]:
        """See :class:`Objective`."""
        return {
            **switches(self, "data", "model", "device"),
            "model": describe_model(self.model),
            "data": describe_data(self.data),
        }

    @torch.no_grad()
    def __call__(self, sets: Sequence[ImageSet]) -> list[ObjectiveValue]:
        """See :class:`Objective`; ``parts`` are the networks."""
        device = resolve_device(self.device)
        real, made = open_sets(self.data, sets, device, self.seed)
        networks = Networks(self.model, real, self.seed, fused=self.fused)
        losses = []
        with progress(self.name, self.networks * len(real.members)) as advance:
            for step in range(self.networks):
                network = networks.make(step)
                if not hasattr(network, "embed"):
                    raise ValueError(
                        f"DM needs a network with embed, {type(network).__name__} has none"
                    )
                # Nothing of those of initialisation: the method's batches have their own alone.
                freeze_batch_norm(network, real, step, momentum=1.0)
                # (1 + sets, classes, D) sums, and (1 + sets, classes) images.
                sums, counts = zip(
                    *(
                        self._class(network, real, made, label, step, advance)
                        for label in range(len(real.members))
                    ),
                    strict=True,
                )
                losses.append(self._distances(torch.stack(sums, 1), torch.stack(counts, 1)))
        return mean_of_networks(losses)

    def _class(
        self,
        network: nn.Module,
        real: RealImages,
        made: Sequence[RealImages],
        label: int,
        step: int,
        advance: Any,
    ) -> tuple[Tensor, Tensor]:
        """Summed features of a class, (1 + sets, D), and the numbers of images, (1 + sets,)."""
        params = class_dsa(
            self.seed, step, label, len(real.members), real.shape[1:], self.dsa_strategy
        )
        sums, counts = [], []
        for source in (real, *made):
            most = self.real_batch if source is real else None
            features = [
                self._embed(network, images, params)
                for images in class_images(
                    source, label, step, most, self.batch_size, real.data.device
                )
            ]
            sums.append(torch.stack([part.double().sum(0) for part in features]).sum(0))
            counts.append(sum(map(len, features)))
        advance(1)
        return torch.stack(sums), torch.tensor(counts, device=sums[0].device)

    def _embed(self, network: nn.Module, images: Tensor, params: DSAParams | None) -> Tensor:
        views = augmented(images, params, align_corners=self.dsa_align_corners)
        features: Tensor = network.embed(views)  # type: ignore[operator]
        return features

    def _distances(self, sums: Tensor, counts: Tensor) -> Tensor:
        """The loss of each set by a network, (sets,)."""
        if self.per_class:
            means = (sums / counts[..., None])[:, :, None]
        else:
            means = (sums.sum(1) / counts.sum(1)[:, None])[:, None]
        distances = [feature_mean_distance(own, means[0]) for own in means[1:]]
        return torch.stack(distances) / (sums.shape[1] if self.per_class else 1)


def check_networks(networks: int, real_batch: int | None, batch_size: int) -> None:
    """Raise unless the numbers are positive."""
    for name, value in (
        ("networks", networks),
        ("real_batch", real_batch),
        ("batch_size", batch_size),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def open_sets(
    data: ImageDataset | ImageFolder, sets: Sequence[ImageSet], device: torch.device, seed: int
) -> tuple[RealImages, list[RealImages]]:
    """The data on the device, and the sets by class in main memory; streamed where they do not fit.

    Raises:
        ValueError: A set is of another task, or lacks a class.
    """
    real = RealImages(data, device, seed, on_overflow="stream")
    host = torch.device("cpu")
    # Sets of files share half of what is free: each alone would take most of the rest.
    share = free_bytes(host) // (2 * max(1, len(sets)))
    made = [RealImages(one, host, seed, on_overflow="stream", limit_bytes=share) for one in sets]
    for one, opened in zip(sets, made, strict=True):
        check_like(one, opened.shape, real)
    return real, made


def class_images(
    source: RealImages,
    label: int,
    step: int,
    most: int | None,
    batch_size: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """A class's images as a network takes them, ``most`` drawn ones or all, in batches."""
    if most is not None:
        yield from torch.split(source.batch(label, most, step).to(device), batch_size)
        return
    for ids in torch.split(torch.as_tensor(source.members[label]), batch_size):
        yield network_input(source.data.batch(ids).to(device), source.data.normalization)


def mean_of_networks(losses: Sequence[Tensor]) -> list[ObjectiveValue]:
    """Means over networks of each one's (sets,) losses."""
    table = torch.stack(list(losses)).double().cpu()
    return [
        ObjectiveValue(
            float(own.mean()), {f"network {k}": float(value) for k, value in enumerate(own)}
        )
        for own in table.T
    ]
