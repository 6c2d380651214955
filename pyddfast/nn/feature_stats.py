"""Statistics at the inputs of a model's BatchNorm and convolution layers: G-VBSM's and EDC's loss.

A BatchNorm layer has the statistics of the data; those of a convolution's input have to be taken
from the data first (:class:`FeatureStatsAccumulator`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyddfast import ops
from pyddfast.nn.bn_stats import check_layer, layer_distances
from pyddfast.nn.stat_hooks import StatHooks, layer_input, refuse_replica, with_input
from pyddfast.nn.stats_accumulator import Convention, StatsAccumulator
from pyddfast.ops.reference.kd import accumulation_dtype, widen

__all__ = ["FeatureStatLoss", "FeatureStats", "FeatureStatsAccumulator", "feature_layers"]


def feature_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every ``nn.BatchNorm2d`` and ``nn.Conv2d`` by name, in the order of ``model.modules()``.

    Raises:
        ValueError: There is none, or a BatchNorm is in training mode or without statistics.
    """
    found: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d | nn.Conv2d)
    }
    if not found:
        raise ValueError(f"model ({type(model).__name__}) has neither nn.BatchNorm2d nor nn.Conv2d")
    for name, module in found.items():
        if isinstance(module, nn.BatchNorm2d):
            check_layer(module, name)
    return found


@dataclass(frozen=True)
class FeatureStats:
    """The data's statistics at the layers of :func:`feature_layers`, side by side.

    A BatchNorm has one segment, its channels; a convolution two, its channels and its cells
    (`ops.patch_stats`).

    Attributes:
        sizes: Of the segments.
        mean: (S,); of a BatchNorm the running mean.
        var: (S,).
        class_mean: (classes, S), the same a class, or None.
        class_var: (classes, S), or None.
    """

    sizes: tuple[int, ...]
    mean: Tensor
    var: Tensor
    class_mean: Tensor | None = None
    class_var: Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> FeatureStats:
        """The same on a device, in another precision."""
        known = {
            name: None if tensor is None else tensor.to(device, dtype)
            for name, tensor in (("class_mean", self.class_mean), ("class_var", self.class_var))
        }
        mean, var = self.mean.to(device, dtype), self.var.to(device, dtype)
        return FeatureStats(self.sizes, mean, var, **known)


class FeatureStatsAccumulator:
    """Takes :class:`FeatureStats` from the data, a batch at a time, in float64.

    Over all data, convolutions by :class:`StatsAccumulator`.  With classes also a class:
    ``class_var`` is the variance over all pixels of a class's images, or, with
    ``within_images``, the mean over its images of the variance inside one, which is smaller
    (what EDC's code stores).

    Args:
        model: In evaluation mode.
        cell: Pixels a side of a cell.
        classes: Number of classes; None: no statistics a class.

    Raises:
        ValueError: As :func:`feature_layers`.
    """

    def __init__(self, model: nn.Module, cell: int, classes: int | None = None) -> None:
        self.model, self.cell, self.classes = model, cell, classes
        self.layers = feature_layers(model)
        self.parts = {
            f"{name}.{part}": StatsAccumulator()
            for name, layer in self.layers.items()
            if isinstance(layer, nn.Conv2d)
            for part in ("channels", "cells")
        }
        # A class: images; and sums over its images of means, variances and squared means.
        self.counts: Tensor | None = None
        self.sums: Tensor | None = None

    @property
    def cell_segments(self) -> list[bool]:
        """Which segments are those of cells."""
        return [
            cells
            for layer in self.layers.values()
            for cells in ((False, True) if isinstance(layer, nn.Conv2d) else (False,))
        ]

    @torch.no_grad()
    def update(self, images: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            images: (B, C, H, W), normalised, on the model's device.
            labels: int64 (B,).
        """
        seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
        hooks = [
            layer.register_forward_pre_hook(partial(self._read, name, seen), with_kwargs=True)
            for name, layer in self.layers.items()
        ]
        try:
            self.model(images)
        finally:
            for hook in hooks:
                hook.remove()
        missing = [name for name in self.layers if name not in seen]
        if missing:
            raise ValueError(f"the model's forward does not reach {missing[0]!r}")
        if self.classes is None:
            return
        pairs = [pair for name in self.layers for pair in seen[name]]
        mean, var = (widen(torch.cat(side, 1)) for side in zip(*pairs, strict=True))
        # A product and not index_add_, whose order of summation changes on CUDA.
        member = widen(F.one_hot(labels, self.classes).T)
        sums = torch.stack([member @ mean, member @ var, member @ mean.square()])
        self.sums = sums if self.sums is None else self.sums + sums
        counts = member.sum(1)
        self.counts = counts if self.counts is None else self.counts + counts

    def _read(
        self,
        name: str,
        seen: dict[str, list[tuple[Tensor, Tensor]]],
        layer: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        x = layer_input(args, kwargs)
        seen[name] = [_moments(x, (2, 3))] if self.classes is not None else []
        if not isinstance(layer, nn.Conv2d):
            return
        cells = _cells(x, self.cell)
        self.parts[f"{name}.channels"].update(x)
        self.parts[f"{name}.cells"].update(cells.flatten(0, 1))
        if self.classes is not None:
            seen[name].append(_moments(cells, (1, 3)))

    def result(
        self, convention: Convention = "whole", *, within_images: bool = False
    ) -> FeatureStats:
        """The statistics so far.

        Args:
            convention: Of the convolutions' variances over all data; see
                :meth:`StatsAccumulator.mean_var`.
            within_images: Of the classes' variances, see the class.

        Returns:
            The statistics in float64; NaN for a class without images.

        Raises:
            ValueError: No batch was added.
        """
        mean, var = [], []
        for name, layer in self.layers.items():
            if isinstance(layer, nn.BatchNorm2d):
                assert layer.running_mean is not None
                assert layer.running_var is not None
                mean.append(layer.running_mean)
                var.append(layer.running_var)
                continue
            for part in ("channels", "cells"):
                m, v = self.parts[f"{name}.{part}"].mean_var(convention)
                mean.append(m)
                var.append(v)
        sizes = tuple(len(m) for m in mean)
        packed = (torch.cat([widen(m) for m in mean]), torch.cat([widen(v) for v in var]))
        if self.classes is None:
            return FeatureStats(sizes, *packed)
        if self.counts is None or self.sums is None:
            raise ValueError("no batch has been added")
        means, within, squares = self.sums / self.counts[:, None]
        class_var = within if within_images else within + (squares - means.square()).clamp(min=0)
        return FeatureStats(sizes, *packed, means, class_var)

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint needs."""
        state = {
            f"{name}.{key}": value
            for name, part in self.parts.items()
            for key, value in part.state_dict().items()
        }
        if self.counts is not None and self.sums is not None:
            state |= {"class.counts": self.counts, "class.sums": self.sums}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a checkpoint."""
        device = next(chain(self.model.parameters(), self.model.buffers())).device
        for name, part in self.parts.items():
            found = state.get(f"{name}.state")
            part.load_state_dict({} if found is None else {"state": found.to(device)})
        self.counts, self.sums = (
            state[name].to(device) if name in state else None
            for name in ("class.counts", "class.sums")
        )


class FeatureStatLoss(StatHooks[list[tuple[Tensor, Tensor]]]):
    r"""Distance of moving averages of a model's batch statistics from the data's.

    The sum over the layers of :func:`feature_layers` of
    :math:`w_l \sum_t u_t (\lVert v^*_t - \bar v \rVert_2 + \lVert m^*_t - \bar m \rVert_2)`, for a
    convolution over channels and over cells, with
    :math:`\bar m \leftarrow \alpha \bar m + (1 - \alpha) m`.  Gradients go to the batch as if its
    statistics were the averages.  Targets t are all data (G-VBSM) and the mean over the batch's
    images of their classes' statistics (EDC)::

        with FeatureStatLoss(teacher, stats, momentum=0.4) as distance:
            distance.begin(labels)
            for views in steps:
                loss = F.cross_entropy(teacher(views), labels) + 0.01 * distance()

    Forwards without gradients pass unseen.  Under CUDA graphs every step is the same.

    Args:
        model: In evaluation mode, on its device.
        stats: Of the data; with classes where ``class_weight`` is above 0.
        first_multiplier: Weight of the first layer; the others have 1.
        momentum: alpha, the weight of the past.
        from_zero: Averages start at 0 instead of at the first batch's statistics.
        class_weight: Weight of the classes' target; that of all data is the rest to 1.
        cell: Pixels a side of a cell.

    Raises:
        ValueError: As :func:`feature_layers`, or there are no statistics a class.
    """

    def __init__(
        self,
        model: nn.Module,
        stats: FeatureStats,
        *,
        first_multiplier: float = 10.0,
        momentum: float = 0.0,
        from_zero: bool = False,
        class_weight: float = 0.0,
        cell: int = 16,
    ) -> None:
        layers = feature_layers(model)
        self.convolutions = [isinstance(layer, nn.Conv2d) for layer in layers.values()]
        example = next(chain(model.parameters(), model.buffers()))
        dtype = torch.float64 if example.dtype is torch.float64 else torch.float32
        self.stats = stats.to(example.device, dtype)
        self.momentum, self.from_zero = momentum, from_zero
        self.class_weight, self.cell = class_weight, cell
        if class_weight and stats.class_mean is None:
            raise ValueError(f"class_weight = {class_weight} needs statistics a class")
        self.weights = [
            first_multiplier if number == 0 else 1.0
            for number, is_conv in enumerate(self.convolutions)
            for _ in range(1 + is_conv)
        ]
        self._targets: tuple[Tensor, Tensor] | None = None
        self._state: dict[str, Tensor] = {}
        self._keep: Tensor | None = None
        super().__init__(model, list(layers))
        for number, layer in enumerate(layers.values()):
            self._watch(layer, partial(self._before, number))

    def begin(self, labels: Tensor, keep: Tensor | None = None) -> None:
        """A new batch of images: averages start anew.

        Args:
            labels: int64 (B,), the classes of the images.
            keep: bool (calls, layers): which layers count at a call, on the model's device; those
                that do not are left out and their averages stay.  None: all, always.
        """
        stats = self.stats
        means, variances = [stats.mean], [stats.var]
        if self.class_weight:
            assert stats.class_mean is not None
            assert stats.class_var is not None
            means.append(ops.class_targets(stats.class_mean, labels))
            variances.append(ops.class_targets(stats.class_var, labels))
        self._targets = torch.stack(means), torch.stack(variances)
        self._keep = None
        if keep is not None:
            segments = torch.tensor([1 + is_conv for is_conv in self.convolutions])
            self._keep = keep.repeat_interleave(segments.to(keep.device), 1)
            self._sizes = torch.tensor(stats.sizes, device=keep.device)
        self._state = {
            "mean": torch.zeros_like(stats.mean),
            "var": torch.zeros_like(stats.var),
            # 1 where the average holds something: until then the past has no weight.
            "begun": torch.full_like(stats.mean, float(self.from_zero)),
            "calls": torch.zeros(1, dtype=torch.int64, device=stats.mean.device),
        }

    def __call__(self) -> Tensor:
        """The loss of the last forward, a scalar; moves the averages on.

        Raises:
            RuntimeError: Before :meth:`begin`, or without a forward since the last call.
        """
        if self._targets is None:
            raise RuntimeError("begin() has to be called before a batch's first step")
        stats = [pair for layer in self._take() for pair in layer]
        state = self._state
        kept = None
        with torch.no_grad():
            share = 1 - self.momentum * state["begun"]
            if self._keep is None:
                state["begun"].fill_(1.0)
            else:
                kept = self._keep.index_select(0, state["calls"])[0].float()
                counts = kept.repeat_interleave(self._sizes, output_size=len(share))
                share = share * counts
                torch.maximum(state["begun"], counts, out=state["begun"])
            for name, side in zip(("mean", "var"), zip(*stats, strict=True), strict=True):
                state[name].lerp_(torch.cat([vector.detach() for vector in side]), share)
            state["calls"] += 1
        loss, per_layer = layer_distances(
            stats,
            *self._targets,
            self.weights,
            target_weight=[1 - self.class_weight, self.class_weight][: len(self._targets[0])],
            at=(state["mean"], state["var"]),
        )
        if kept is None:
            return loss
        return (per_layer * kept * kept.new_tensor(self.weights)).sum()

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint needs to go on with a batch of images."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a checkpoint, after :meth:`begin`."""
        for name, value in self._state.items():
            value.copy_(state[name])

    def _begin(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled():
            super()._begin(model, args)

    def _before(
        self, number: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not torch.is_grad_enabled():
            return None
        refuse_replica(self, layer)
        if isinstance(layer, nn.BatchNorm2d):
            check_layer(layer, self.names[number])
            view, mean, var = ops.channel_stats(layer_input(args, kwargs), layer.running_mean)
            self._seen[number] = [(mean, var)]
        else:
            x = layer_input(args, kwargs)
            view, mean, var, cell_mean, cell_var = ops.patch_stats(x, self.cell)
            self._seen[number] = [(mean, var), (cell_mean, cell_var)]
        return with_input(view, args, kwargs)


def _moments(x: Tensor, dims: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each image over some dimensions."""
    var, mean = torch.var_mean(x.to(accumulation_dtype(x)), dim=list(dims), correction=0)
    return mean, var


def _cells(x: Tensor, cell: int) -> Tensor:
    """The plane's cells as `ops.patch_stats` takes them: (B, C, cells, pixels of a cell)."""
    height, width = (-(-size // cell) * cell for size in x.shape[2:])
    if (height, width) != tuple(x.shape[2:]):
        x = F.interpolate(
            x.to(accumulation_dtype(x)), (height, width), mode="bilinear", align_corners=False
        )
    cells = x.reshape(*x.shape[:2], height // cell, cell, width // cell, cell).transpose(3, 4)
    return cells.reshape(*x.shape[:2], -1, cell * cell)
