"""TM's objective: how far from stored experts a student ends that is trained on the set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pyddfast.analysis.objectives.value import ImageSet, ObjectiveValue, switches
from pyddfast.data import DistilledSet, ResidentDataset, Trajectories, network_input
from pyddfast.methods.trajectory import Student, TrajectoryConfig, student_distance
from pyddfast.ops.dsa import STANDARD_STRATEGY
from pyddfast.train import progress
from pyddfast.train.distributed import resolve_device
from pyddfast.train.models import ModelSpec, build_model, describe_model

__all__ = ["TMObjective", "start_epoch_curve"]

# Names of the parts of a value, with the starting epoch behind.
_EPOCH = "epoch "


@dataclass(frozen=True, eq=False)
class TMObjective:
    """Equation 4: ‖θ_N − θ*_{t+M}‖² / ‖θ*_t − θ*_{t+M}‖², averaged over starting epochs t.

    Attributes:
        experts: Trajectories of :func:`pyddfast.train.train_experts`, or their folder.
        model: Their architecture.
        start_epochs: First and last starting epoch, both counted; the paper's are 20 to 35.
        syn_steps: N, steps of the student on the set; the paper's 80.
        expert_epochs: M, epochs that they are to reach; the paper's 2.
        num_experts: Only the first so many; None: all.
        batch_syn: Images of a student's step; None: the whole set.
        lr: The student's learning rate; None: the set's learned one, and 0.01 (the published start
            value for CIFAR-100) where it has none.
        labels: ``"class"``: class indices.  ``"stored"``: the softmax of the set's stored labels
            (DATM's learned ones), where it has them.
        dsa_strategy: Augmentation of the student's batches; none: "".
        dsa_align_corners: Of its scale and rotate.
        fused: Swap the student's instance norms, ReLUs and poolings for one operator.
        seed: Of batches and augmentation.
        device: Default CUDA where there is one.
    """

    experts: Trajectories | str | Path
    model: ModelSpec = "convnet-d3"
    start_epochs: tuple[int, int] = (20, 35)
    syn_steps: int = 80
    expert_epochs: int = 2
    num_experts: int | None = None
    batch_syn: int | None = None
    lr: float | None = None
    labels: Literal["class", "stored"] = "class"
    dsa_strategy: str = STANDARD_STRATEGY
    dsa_align_corners: bool = True
    fused: bool = True
    seed: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        low, high = self.start_epochs
        if not 0 <= low <= high:
            raise ValueError(f"start_epochs must be (first, last), got {self.start_epochs}")
        if self.labels not in ("class", "stored"):
            raise ValueError(f"labels must be class or stored, got {self.labels!r}")
        if self.num_experts is not None and self.num_experts < 1:
            raise ValueError(f"num_experts must be at least 1, got {self.num_experts}")
        self._config()  # raises what is out of range

    @property
    def name(self) -> str:
        """For tables."""
        return "tm"

    def settings(self) -> dict[str, Any]:
        """See :class:`Objective`."""
        found = self._experts()
        return {
            **switches(self, "experts", "model", "device"),
            "start_epochs": list(self.start_epochs),
            "model": describe_model(self.model),
            "experts": {"count": self._count(found), "epochs": found.epochs},
        }

    @torch.no_grad()
    def __call__(self, sets: Sequence[ImageSet]) -> list[ObjectiveValue]:
        """See :class:`Objective`; ``parts`` are the starting epochs, each averaged over experts."""
        experts, device = self._experts(), resolve_device(self.device)
        count = self._count(experts)
        epochs = range(self.start_epochs[0], self.start_epochs[1] + 1)
        values = []
        with progress(self.name, len(sets) * count * len(epochs)) as advance:
            for one in sets:
                data = ResidentDataset(one, device=device, on_overflow="stream")
                student = self._student(data, experts)
                targets = _targets(one, self.labels).to(device)
                batch = partial(_batch, data, targets)
                lr = torch.tensor(self._rate(one), device=device)
                table = torch.empty((count, len(epochs)), dtype=torch.float64)
                for expert in range(count):
                    for column, epoch in enumerate(epochs):
                        start = experts.flat(expert, epoch).to(device)
                        target = experts.flat(expert, epoch + self.expert_epochs).to(device)
                        # A start has draws of its own, whatever the range.
                        key = expert * (experts.epochs + 1) + epoch
                        table[expert, column] = student_distance(
                            self._config(), student, start, target, lr, len(data), batch, key
                        ).double()
                        advance(1)
                curve = table.mean(0)
                parts = {f"{_EPOCH}{t}": float(v) for t, v in zip(epochs, curve, strict=True)}
                values.append(ObjectiveValue(float(curve.mean()), parts))
        return values

    def _config(self) -> TrajectoryConfig:
        return TrajectoryConfig(
            syn_steps=self.syn_steps,
            expert_epochs=self.expert_epochs,
            batch_syn=self.batch_syn,
            lr_init=self.lr,
            dsa_strategy=self.dsa_strategy,
            dsa_align_corners=self.dsa_align_corners,
            seed=self.seed,
        )

    def _experts(self) -> Trajectories:
        """The trajectories, long enough."""
        found = self.experts
        if not isinstance(found, Trajectories):
            found = Trajectories(found)
        last = self.start_epochs[1] + self.expert_epochs
        if last > found.epochs:
            raise ValueError(
                f"start_epochs up to {self.start_epochs[1]} and expert_epochs = "
                f"{self.expert_epochs} need experts of {last} epochs; those in {found.folder} "
                f"have {found.epochs}"
            )
        return found

    def _count(self, experts: Trajectories) -> int:
        return min(len(experts), self.num_experts or len(experts))

    def _student(self, data: ResidentDataset, experts: Trajectories) -> Student:
        channels, height, width = data.image_shape
        network = build_model(
            self.model,
            self.seed,
            num_classes=data.num_classes,
            in_channels=channels,
            image_size=(height, width),
        ).to(data.device)
        experts.check(network)
        return Student(network, fused=self.fused)

    def _rate(self, one: ImageSet) -> float:
        learned = one.lr if isinstance(one, DistilledSet) else None
        return self.lr or learned or 0.01


def start_epoch_curve(parts: Mapping[str, float | None]) -> dict[int, float]:
    """The loss by starting epoch from a value's ``parts``; what was not finite is left out.

    Raises:
        ValueError: They are not TM's.
    """
    return {
        int(name.removeprefix(_EPOCH)): loss for name, loss in parts.items() if loss is not None
    }


def _targets(one: ImageSet, labels: str) -> Tensor:
    stored = one.soft_labels if isinstance(one, DistilledSet) and labels == "stored" else None
    return one.labels if stored is None else stored.float()


def _batch(data: ResidentDataset, targets: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    return network_input(data.batch(ids), data.normalization), targets[ids.to(data.device)]
