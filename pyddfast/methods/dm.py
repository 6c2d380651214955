"""DM: images whose mean features are those of the data, in randomly initialised networks.

"Dataset Condensation with Distribution Matching" (Zhao, Bilen, WACV 2023), and equation 5 of
"Rethinking Dataset Distillation: Hard Truths About Soft Labels"; official code
VICO-UoE/DatasetCondensation, ``main_DM.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pyddfast.data import DistilledSet, ImageDataset, ImageFolder
from pyddfast.data.digest import describe_data
from pyddfast.methods.recover import Job
from pyddfast.methods.small_scale import (
    ImageParameters,
    MatchingConfig,
    Networks,
    RealImages,
    as_set,
    augmented,
    class_dsa,
    optimise,
    share_of,
)
from pyddfast.ops import feature_mean_distance
from pyddfast.train.batch_norm import has_batch_norm
from pyddfast.train.distributed import Ranks, join_ranks, resolve_device
from pyddfast.train.models import ModelSpec, describe_model

__all__ = ["DMConfig", "dm"]

# Pixels that go through a network at once.  On a GPU 1024 images of 32 x 32 (maps of 0.5 GB in a
# ConvNet) fill it.  On a CPU maps have to stay in the cache: 16 images take half the time of 256.
_PIXELS = {"cuda": 1024 * 32 * 32, "cpu": 16 * 32 * 32}


@dataclass(frozen=True)
class DMConfig(MatchingConfig):
    """Settings of DM; published: 20,000 iterations, lr 1 (10 for CIFAR-10 from IPC 100 on), DSA.

    Attributes:
        per_class: Match each class's mean, as DM is published and coded.  False: the mean over all
            classes, as equation 5 of "Hard Truths" is written, without a class index.
    """

    per_class: bool = True


def resolve_dm(config: DMConfig, data: ImageDataset | ImageFolder) -> DMConfig:
    """The published value of whatever is None."""
    large = getattr(data, "name", "") == "cifar10" and config.ipc >= 100
    return replace(
        config,
        iterations=20_000 if config.iterations is None else config.iterations,
        lr_img=(10.0 if large else 1.0) if config.lr_img is None else config.lr_img,
        init=config.init or "real",
    )


def dm(
    data: ImageDataset | ImageFolder,
    model: ModelSpec = "convnet-d3",
    config: DMConfig | None = None,
    *,
    job: Job | None = None,
) -> DistilledSet:
    """Distill by distribution matching.

    As many images go through a network together as suit the device, whatever their class, which is
    exact where a feature depends on its image alone; networks with BatchNorm see all classes at
    once, as in the official code.  Under ``torchrun`` the processes divide the classes.

    Args:
        data: Training set of equally sized images.
        model: Network with ``embed``: a name of ``pyddfast.models``, (name, options), or a function
            of the seed.
        config: Settings; default :class:`DMConfig`.
        job: Device, run folder, progress.

    Returns:
        A set of kind ``"synthetic"``: float32 images as a network takes them, class by class.

    Raises:
        ValueError: Settings, network and data do not fit together, or BatchNorm or ``per_class``
            off with several processes.
        FloatingPointError: The loss is no longer finite.
    """
    job = job or Job()
    settings = resolve_dm(config or DMConfig(), data)
    assert settings.iterations is not None
    target = resolve_device(job.device)
    ranks = join_ranks(target)
    real = RealImages(data, target, settings.seed)
    work = DMWork(real, Networks(model, real, settings.seed, fused=settings.fused), settings, ranks)
    facts = {
        "task": "distill dm",
        **asdict(settings),
        "model": describe_model(model),
        "dataset": describe_data(data),
        "device": target.type,
    }
    loss = optimise(
        work, settings.iterations, facts=facts, job=job, ranks=ranks,
        advice=f"lower lr_img ({settings.lr_img:g})",
        snapshot_every=settings.snapshot_every,
    )  # fmt: skip
    meta = {"method": "dm", **asdict(settings), "model": describe_model(model), "loss": loss}
    return as_set(work.synthetic.images, real, meta)


class DMWork:
    """The images and a step of DM."""

    def __init__(
        self, real: RealImages, networks: Networks, config: DMConfig, ranks: Ranks
    ) -> None:
        self.real, self.networks, self.config, self.ranks = real, networks, config, ranks
        assert config.init is not None
        assert config.lr_img is not None
        first = networks.make(0)
        if not hasattr(first, "embed"):
            raise ValueError(f"DM needs a network with embed, {type(first).__name__} has none")
        # Both mix images of different classes.
        self.together = has_batch_norm(first) or not config.per_class
        if self.together and ranks.world > 1:
            raise ValueError(
                "BatchNorm and per_class=False compare all classes at once, which several "
                "processes cannot divide: run one, or take norm='instance'"
            )
        self.pixels = _PIXELS.get(real.data.device.type, _PIXELS["cuda"])
        self.synthetic = ImageParameters(
            real.initial(config.ipc, config.init), config.ipc, config.lr_img, config.momentum
        )

    def run_step(self, step: int) -> Tensor:
        """Match the means of all classes on the network of this step; the mean loss of a class."""
        network = self.networks.make(step).requires_grad_(False)
        self.synthetic.zero_grad()
        classes = len(self.real.members)
        total = torch.zeros((), device=self.synthetic.images.device)
        for labels in self._groups():
            where = self.synthetic.of(labels)
            leaf = self.synthetic.images.detach()[where].requires_grad_()
            loss = self._loss(network, leaf, labels, step)
            self.synthetic.add_grad(labels, torch.autograd.grad(loss, leaf)[0])
            total += loss.detach()
        self.synthetic.step(self.ranks)
        return total / (classes if self.config.per_class else 1)

    def tensors(self) -> dict[str, Tensor]:
        """Images and momentum."""
        return self.synthetic.tensors()

    def restore(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Continue with them; a step makes its own network."""
        self.synthetic.restore(tensors)

    def _groups(self) -> Iterator[slice]:
        """Consecutive classes whose synthetic images go through the network together."""
        mine = share_of(len(self.real.members), self.ranks)
        _, height, width = self.real.shape
        # Real ones wait beside them, without a graph.
        most = max(self.config.ipc, self.config.real_batch // 8)
        each = max(1, self.pixels // (most * height * width))
        if self.together:
            each = mine.stop - mine.start
        for start in range(mine.start, mine.stop, each):
            yield slice(start, min(mine.stop, start + each))

    def _loss(self, network: nn.Module, leaf: Tensor, labels: slice, step: int) -> Tensor:
        """Sum over the classes of the distance of mean features."""
        config, size = self.config, self.real.shape[1:]
        pairs = []
        for label in range(labels.start, labels.stop):
            params = class_dsa(
                config.seed, step, label, len(self.real.members), size, config.dsa_strategy
            )
            images = self.real.batch(label, config.real_batch, step)
            row = label - labels.start
            own = leaf[row * config.ipc : (row + 1) * config.ipc]
            with torch.no_grad():
                images = augmented(images, params, align_corners=config.dsa_align_corners)
            pairs.append((images, augmented(own, params, align_corners=config.dsa_align_corners)))
        counts = [len(images) for images, _ in pairs]
        with torch.no_grad():
            real = self._embed(network, [images for images, _ in pairs])
        synthetic = network.embed(torch.cat([images for _, images in pairs]))  # type: ignore[operator]
        if not config.per_class:
            return feature_mean_distance(synthetic, real)
        means = torch.stack([part.mean(0) for part in torch.split(real, counts)])
        return feature_mean_distance(synthetic.unflatten(0, (len(pairs), -1)), means[:, None])

    def _embed(self, network: nn.Module, images: list[Tensor]) -> Tensor:
        """Features of real images, at most so many at once; all of them under BatchNorm."""
        everything = torch.cat(images)
        _, height, width = self.real.shape
        at_once = len(everything) if self.together else max(1, self.pixels // (height * width))
        embed: Any = network.embed
        return torch.cat([embed(part) for part in torch.split(everything, at_once)])
