"""What G-VBSM and EDC share: settings, and the loss of statistics of convolutions and classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyddfast.data import ImageSource
from pyddfast.methods.chunks import Chunk, Order
from pyddfast.methods.data_pass import DataPass
from pyddfast.methods.objective import Forward, Objective, Site
from pyddfast.methods.synthesis import SynthesisConfig, Task, check_counts
from pyddfast.nn import FeatureStatLoss
from pyddfast.random import Purpose, uniform

__all__ = ["FeatureConfig", "FeatureObjective", "feature_objective"]


@dataclass(frozen=True)
class FeatureConfig(SynthesisConfig):
    """Settings that G-VBSM and EDC share; what is None takes the value published for the preset.

    Attributes:
        bn_weight: Weight of the statistics, of BatchNorm and convolutions, in the loss.
        momentum: Weight of the past in the moving averages of the statistics.
        drop_rate: Share of the steps in which a convolution is left out.
        cell: Pixels a side of the cells, whose statistics convolutions have too.
    """

    order: ClassVar[Order] = "class"

    momentum: float | None = None
    drop_rate: float | None = None
    cell: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("momentum", "drop_rate"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")
        check_counts(self, "cell")
        if self.bn_mode != "tap":
            raise ValueError("bn_mode must be 'tap': convolutions' inputs are read too")


class FeatureObjective:
    """The distance of :class:`FeatureStatLoss`, a loss a teacher.

    Args:
        site: Where.
        data_pass: How the data's statistics are taken.
        weight: Of the distance.
        first_multiplier: Of the first layer's part of it.
        momentum: Of the moving averages.
        from_zero: Averages start at 0.
        class_weight: Weight of the classes' target.
        drop_rate: Share of the steps in which a convolution is left out.
        iterations: Steps of a chunk.
        seed: Of that choice.
    """

    name = "features"

    def __init__(
        self,
        site: Site,
        *,
        data_pass: DataPass,
        weight: float,
        first_multiplier: float,
        momentum: float,
        from_zero: bool,
        class_weight: float,
        drop_rate: float,
        iterations: int,
        seed: int,
    ) -> None:
        self.device, self.weight = site.device, weight
        self.drop_rate, self.iterations, self.seed = drop_rate, iterations, seed
        self.losses: list[FeatureStatLoss] = []
        with ExitStack() as hooks:
            for teacher, stats in zip(site.teachers, data_pass.take(site), strict=True):
                loss = FeatureStatLoss(
                    teacher,
                    stats,
                    first_multiplier=first_multiplier,
                    momentum=momentum,
                    from_zero=from_zero,
                    class_weight=class_weight,
                    cell=data_pass.cell,
                )
                self.losses.append(hooks.enter_context(loss))
            self.hooks = hooks.pop_all()

    def begin(self, chunk: Chunk) -> None:
        """Averages start anew; what is left out is drawn for all steps."""
        labels = torch.tensor(chunk.labels, device=self.device)
        for turn, loss in enumerate(self.losses):
            keep = None
            if self.drop_rate:
                steps = torch.arange(turn, self.iterations, len(self.losses))
                layers = torch.arange(len(loss.convolutions))
                draws = uniform(
                    self.seed, Purpose.FEATURE_DROP, steps[:, None], chunk.index, layers
                )
                keep = (draws >= self.drop_rate) | ~torch.tensor(loss.convolutions)
                keep = keep.to(self.device)
            loss.begin(labels, keep)

    def __call__(self, forward: Forward) -> tuple[Tensor, Tensor]:
        """See :class:`Objective`."""
        distance = self.losses[forward.turn]()
        loss = self.weight * distance
        further = self.further(forward)
        return (loss if further is None else loss + further), distance

    def further(self, forward: Forward) -> Tensor | None:
        """What a method adds, weighted; None: nothing."""
        return None

    def state(self) -> dict[str, Tensor]:
        """The averages of every teacher."""
        return {
            f"{turn}.{name}": value
            for turn, loss in enumerate(self.losses)
            for name, value in loss.state_dict().items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See :class:`Objective`."""
        for turn, loss in enumerate(self.losses):
            loss.load_state_dict({name: tensors[f"{turn}.{name}"] for name in loss.state_dict()})

    def close(self) -> None:
        """Take the hooks off the teachers."""
        self.hooks.close()


def feature_objective(
    kind: Callable[..., Objective],
    config: FeatureConfig,
    task: Task,
    data: ImageSource,
    *,
    pad: int | None,
    batch_size: int,
    classes: int | None = None,
    class_weight: float = 0.0,
    **options: Any,
) -> Callable[[Site], Objective]:
    """The objective of a method, for settings that are resolved.

    Args:
        kind: A subclass of :class:`FeatureObjective`.
        config: Without None.
        task: Classes and normalisation.
        data: See :class:`DataPass`.
        pad: See :class:`DataPass`.
        batch_size: See :class:`DataPass`.
        classes: See :class:`DataPass`.
        class_weight: See :class:`FeatureObjective`.
        options: What ``kind`` takes besides.
    """
    assert config.image_size is not None
    assert config.cell is not None
    official = config.semantics == "official"
    return partial(
        kind,
        data_pass=DataPass(
            data=data,
            normalization=task.normalization,
            size=config.image_size,
            pad=pad,
            batch_size=batch_size,
            batch_variances=official,
            classes=classes,
            within_images=official,
            swapped=official and classes is not None,
            cell=config.cell,
            seed=config.seed,
        ),
        weight=config.bn_weight,
        first_multiplier=config.first_multiplier,
        momentum=config.momentum,
        from_zero=official,
        class_weight=class_weight,
        drop_rate=config.drop_rate,
        iterations=config.iterations,
        seed=config.seed,
        **options,
    )
