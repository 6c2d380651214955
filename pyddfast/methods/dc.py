"""DC: images whose gradients of a network are those of the data, while the network is trained.

"Dataset Condensation with Gradient Matching" (Zhao, Mopuri, Bilen, ICLR 2021), equation 6 of
"Rethinking Dataset Distillation: Hard Truths About Soft Labels"; official code
VICO-UoE/DatasetCondensation, ``main.py``.  With Siamese augmentation it is DSA (``dsa.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

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
    derived_seed,
    freeze_batch_norm,
    optimise,
    share_of,
)
from pyddfast.ops import gradient_distance
from pyddfast.ops.dsa import draw_dsa
from pyddfast.ops.match import METRICS, GradientMetric
from pyddfast.random import Purpose, permutation
from pyddfast.train.distributed import Ranks, join_ranks, resolve_device
from pyddfast.train.models import ModelSpec, describe_model

__all__ = ["DCConfig", "GradientMatchingConfig", "dc", "gradient_matching"]

# Image updates on a network, and epochs of training between two of them, by images a class.
LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


@dataclass(frozen=True)
class GradientMatchingConfig(MatchingConfig):
    """Settings of DC and DSA; published: 1000 iterations, lr 0.1, loops by ``ipc``.

    Attributes:
        outer_loops: Updates of the images on one network; published for IPC 1, 10, 20, 30, 40, 50.
        inner_epochs: Epochs that the network is trained on the images between two updates.
        metric: Distance of gradients: "ours" (rows' cosines), "mse" or "cos".
        network_lr: Of the network; SGD without momentum.
        train_batch: Images a step of the network's training.
    """

    outer_loops: int | None = None
    inner_epochs: int | None = None
    metric: GradientMetric = "ours"
    network_lr: float = 0.01
    train_batch: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("outer_loops", "inner_epochs", "train_batch"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise TypeError(f"{name} must be an int, got {value!r}")
            if value is not None and value < (0 if name == "inner_epochs" else 1):
                raise ValueError(f"{name} must be positive, got {value}")
        if self.metric not in METRICS:
            raise ValueError(f"metric must be one of {METRICS}, got {self.metric!r}")
        if not 0 < self.network_lr < float("inf"):
            raise ValueError(f"network_lr must be positive, got {self.network_lr}")


@dataclass(frozen=True)
class DCConfig(GradientMatchingConfig):
    """Settings of DC: first images are noise, and nothing is augmented."""

    dsa_strategy: str = ""


_Config = TypeVar("_Config", bound=GradientMatchingConfig)


def resolve_loops(config: _Config, init: Literal["real", "noise"]) -> _Config:
    """The published value of whatever is None.

    Raises:
        ValueError: The loops are not given and not published for this IPC.
    """
    loops = LOOPS.get(config.ipc)
    if loops is None and (config.outer_loops is None or config.inner_epochs is None):
        raise ValueError(
            f"outer_loops and inner_epochs are published for ipc {', '.join(map(str, LOOPS))}; "
            f"give both for ipc = {config.ipc}"
        )
    outer, inner = loops or (config.outer_loops, config.inner_epochs)
    return replace(
        config,
        iterations=1000 if config.iterations is None else config.iterations,
        lr_img=0.1 if config.lr_img is None else config.lr_img,
        init=config.init or init,
        outer_loops=outer if config.outer_loops is None else config.outer_loops,
        inner_epochs=inner if config.inner_epochs is None else config.inner_epochs,
    )


def dc(
    data: ImageDataset | ImageFolder,
    model: ModelSpec = "convnet-d3",
    config: DCConfig | None = None,
    *,
    job: Job | None = None,
) -> DistilledSet:
    """Distill by gradient matching.

    The gradient of the images is taken class by class, which gives what the official backward over
    all classes gives in one class's memory.  Under ``torchrun`` the processes divide the classes;
    the training of the network between two updates is the same in each, as its batches, the
    synthetic images, are too small to divide.

    Args:
        data: Training set of equally sized images.
        model: Name of ``pyddfast.models``, (name, options), or a function of the seed.
        config: Settings; default :class:`DCConfig`.
        job: Device, run folder, progress.

    Returns:
        A set of kind ``"synthetic"``: float32 images as a network takes them, class by class.

    Raises:
        ValueError: Settings, network and data do not fit together.
        FloatingPointError: The loss is no longer finite.
    """
    settings = resolve_loops(config or DCConfig(), "noise")
    return gradient_matching("dc", data, model, settings, job or Job())


def gradient_matching(
    name: str,
    data: ImageDataset | ImageFolder,
    model: ModelSpec,
    config: GradientMatchingConfig,
    job: Job,
) -> DistilledSet:
    """DC or DSA with settings that are resolved."""
    assert config.iterations is not None
    assert config.outer_loops is not None
    target = resolve_device(job.device)
    ranks = join_ranks(target)
    real = RealImages(data, target, config.seed)
    work = GradientWork(real, Networks(model, real, config.seed, fused=config.fused), config, ranks)
    settings = {field.name: getattr(config, field.name) for field in fields(config)}
    facts = {
        "task": f"distill {name}",
        **settings,
        "model": describe_model(model),
        "dataset": describe_data(data),
        "device": target.type,
    }
    loss = optimise(
        work, config.iterations * config.outer_loops, facts=facts, job=job, ranks=ranks,
        advice=f"lower lr_img ({config.lr_img:g}) or network_lr ({config.network_lr:g})",
        snapshot_every=config.snapshot_every,
    )  # fmt: skip
    meta = {"method": name, **asdict(config), "model": describe_model(model), "loss": loss}
    return as_set(work.synthetic.images, real, meta)


class GradientWork:
    """Images and network; a step is one update of the images and the training after it."""

    def __init__(
        self, real: RealImages, networks: Networks, config: GradientMatchingConfig, ranks: Ranks
    ) -> None:
        assert config.init is not None
        assert config.lr_img is not None
        assert config.outer_loops is not None
        assert config.inner_epochs is not None
        self.real, self.networks, self.config, self.ranks = real, networks, config, ranks
        self.outer, self.inner = config.outer_loops, config.inner_epochs
        self.classes, self.size = len(real.members), real.shape[1:]
        self.synthetic = ImageParameters(
            real.initial(config.ipc, config.init), config.ipc, config.lr_img, config.momentum
        )
        device = self.synthetic.images.device
        self.labels = torch.arange(self.classes, device=device).repeat_interleave(config.ipc)
        self.network = networks.make(0)

    def run_step(self, step: int) -> Tensor:
        """Match the gradients of each class, then train the network; the mean loss of a class."""
        iteration, loop = divmod(step, self.outer)
        if loop == 0:
            self.network = self.networks.make(iteration)
        freeze_batch_norm(self.network, self.real, step)
        self.synthetic.zero_grad()
        total = torch.zeros((), device=self.synthetic.images.device)
        mine = share_of(self.classes, self.ranks)
        for label in range(mine.start, mine.stop):
            total += self._match(label, step)
        self.synthetic.step(self.ranks)
        if loop < self.outer - 1:
            self._train(step)
        return total / self.classes

    def tensors(self) -> dict[str, Tensor]:
        """Images, momentum and the network."""
        network = {f"network/{k}": v for k, v in self.network.state_dict().items()}
        return {**self.synthetic.tensors(), **network}

    def restore(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Continue with them."""
        self.synthetic.restore(tensors)
        state = {k.removeprefix("network/"): v for k, v in tensors.items() if "/" in k}
        self.network.load_state_dict(state)

    def _match(self, label: int, step: int) -> Tensor:
        """Add the gradient of one class's images; its loss."""
        config, parameters = self.config, list(self.network.parameters())
        params = class_dsa(config.seed, step, label, self.classes, self.size, config.dsa_strategy)
        images = self.real.batch(label, config.real_batch, step)
        with torch.no_grad():
            images = augmented(images, params, align_corners=config.dsa_align_corners)
        wanted = torch.autograd.grad(self._loss(images, label), parameters)
        one = slice(label, label + 1)
        leaf = self.synthetic.images.detach()[self.synthetic.of(one)].requires_grad_()
        views = augmented(leaf, params, align_corners=config.dsa_align_corners)
        found = torch.autograd.grad(self._loss(views, label), parameters, create_graph=True)
        loss = gradient_distance(found, wanted, config.metric)
        self.synthetic.add_grad(one, torch.autograd.grad(loss, leaf)[0])
        return loss.detach()

    def _loss(self, images: Tensor, label: int) -> Tensor:
        target = torch.full((len(images),), label, device=images.device)
        return F.cross_entropy(self.network(images), target)

    def _train(self, step: int) -> None:
        """Train the network on the images as they are."""
        config, images = self.config, self.synthetic.images.detach()
        optimizer = torch.optim.SGD(self.network.parameters(), lr=config.network_lr)
        seed = derived_seed(config.seed, Purpose.INNER)
        self.network.train()
        for epoch in range(self.inner):
            visit = step * self.inner + epoch
            order = permutation(seed, Purpose.EPOCH_ORDER, len(images), visit)
            for position, ids in enumerate(torch.split(order, config.train_batch)):
                where = ids.to(images.device)
                views = images[where]
                if config.dsa_strategy:
                    params = draw_dsa(
                        seed,
                        ids,
                        torch.full_like(ids, visit),
                        visit * -(-len(images) // config.train_batch) + position,
                        self.size,
                        strategy=config.dsa_strategy,
                    )
                    views = augmented(views, params, align_corners=config.dsa_align_corners)
                loss = F.cross_entropy(self.network(views), self.labels[where])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
