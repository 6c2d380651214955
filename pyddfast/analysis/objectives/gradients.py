"""DC's objective: how far a set's gradients are from the data's, in random networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyddfast.analysis.objectives.features import (
    check_networks,
    class_images,
    mean_of_networks,
    open_sets,
)
from pyddfast.analysis.objectives.value import ImageSet, ObjectiveValue, switches
from pyddfast.data import ImageDataset, ImageFolder
from pyddfast.data.digest import describe_data
from pyddfast.methods.small_scale import (
    Networks,
    RealImages,
    augmented,
    class_dsa,
    freeze_batch_norm,
)
from pyddfast.ops import gradient_distance
from pyddfast.ops.dsa import DSAParams
from pyddfast.ops.match import METRICS, GradientMetric
from pyddfast.train import progress
from pyddfast.train.distributed import resolve_device
from pyddfast.train.models import ModelSpec, describe_model

__all__ = ["DCObjective"]


@dataclass(frozen=True, eq=False)
class DCObjective:
    """Equation 6: the mean over the classes of the gradients' distance, averaged over networks.

    The value is that of ``dc``'s first step on each network.  Networks stay as they were
    initialised; the method goes on to train them on the set between its steps.

    Attributes:
        data: D, the training set.
        model: The networks.
        networks: Freshly initialised ones; the paper does not give their number.
        real_batch: Real images of a class and network; None: all.
        metric: Distance of gradients: "ours" (rows' cosines), "mse" or "cos".
        dsa_strategy: Augmentation, the same draw on both sides (DSA); none: "", as DC.
        dsa_align_corners: Of its scale and rotate.
        fused: Swap norm, ReLU and pooling of the networks for one operator.
        batch_size: Images at once.
        seed: Of networks, augmentation and real images.
        device: Default CUDA where there is one.
    """

    data: ImageDataset | ImageFolder
    model: ModelSpec = "convnet-d3"
    networks: int = 10
    real_batch: int | None = None
    metric: GradientMetric = "ours"
    dsa_strategy: str = ""
    dsa_align_corners: bool = False
    fused: bool = True
    batch_size: int = 256
    seed: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        check_networks(self.networks, self.real_batch, self.batch_size)
        if self.metric not in METRICS:
            raise ValueError(f"metric must be one of {METRICS}, got {self.metric!r}")

    @property
    def name(self) -> str:
        """For tables."""
        return "dc"

    def settings(self) -> dict[str, Any]:
        """See :class:`Objective`."""
        return {
            **switches(self, "data", "model", "device"),
            "model": describe_model(self.model),
            "data": describe_data(self.data),
        }

    def __call__(self, sets: Sequence[ImageSet]) -> list[ObjectiveValue]:
        """See :class:`Objective`; ``parts`` are the networks."""
        device = resolve_device(self.device)
        real, made = open_sets(self.data, sets, device, self.seed)
        networks, losses = Networks(self.model, real, self.seed, fused=self.fused), []
        classes = len(real.members)
        with progress(self.name, self.networks * classes) as advance:
            for step in range(self.networks):
                network = networks.make(step)
                freeze_batch_norm(network, real, step)
                total = torch.zeros(len(made), dtype=torch.float64)
                for label in range(classes):
                    params = class_dsa(
                        self.seed, step, label, classes, real.shape[1:], self.dsa_strategy
                    )
                    wanted = self._gradient(network, real, label, step, params, self.real_batch)
                    for row, one in enumerate(made):
                        found = self._gradient(network, one, label, step, params, None)
                        total[row] += float(gradient_distance(found, wanted, self.metric))
                    advance(1)
                losses.append(total / classes)
        return mean_of_networks(losses)

    def _gradient(
        self,
        network: nn.Module,
        source: RealImages,
        label: int,
        step: int,
        params: DSAParams | None,
        most: int | None,
    ) -> list[Tensor]:
        """The gradient of the mean cross-entropy of a class's images, a tensor a parameter."""
        parameters = list(network.parameters())
        total = [torch.zeros_like(p) for p in parameters]
        count = 0
        for images in class_images(
            source, label, step, most, self.batch_size, parameters[0].device
        ):
            views = augmented(images, params, align_corners=self.dsa_align_corners)
            target = torch.full((len(views),), label, device=views.device)
            loss = F.cross_entropy(network(views), target, reduction="sum")
            torch._foreach_add_(total, torch.autograd.grad(loss, parameters))
            count += len(views)
        return list(torch._foreach_div(total, float(count)))
