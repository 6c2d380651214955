"""What a recorder is told beside the logits: a teacher's logits, and the last layer's inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyddfast.data import ImageDataset
from pyddfast.train.evaluate import predict_batches
from pyddfast.train.labels import soft_labels
from pyddfast.train.record import Recording

__all__ = ["Beside", "last_layer"]


class Beside:
    """Watches the forward passes of a network that is recorded.

    It hooks the network until :meth:`close`.  Labels of the kind ``"image"`` are made when the
    first are asked for, so that a finished run does not make them again.

    Args:
        recording: what the recorder wants.
        network: that trains, on the training device.
        dataset: the training data.
        size: side that the views have; None: as stored.
        device: of the training.

    Raises:
        ValueError: the teacher's logits are not as many as the classes, or the network has no last
            layer, see :func:`last_layer`.
    """

    def __init__(
        self,
        recording: Recording,
        network: nn.Module,
        dataset: ImageDataset,
        *,
        size: int | None,
        device: torch.device,
    ) -> None:
        self._dataset, self._size, self._device = dataset, size, device
        self._soft_labels = recording.soft_labels
        self._labels: Tensor | None = None
        self._views = self._features = torch.empty(0)
        self._hooks: list[Any] = []
        self._teacher = recording.teacher
        if self._teacher is not None:
            self._teacher.to(device).eval()
            given = _first_logits(self._teacher, dataset, size, device).shape
            if given != (1, dataset.num_classes):
                raise ValueError(
                    f"the teacher gives logits {tuple(given)} for one image, "
                    f"the data set has {dataset.num_classes} classes"
                )
            if self._soft_labels == "view":
                self._hooks.append(network.register_forward_pre_hook(self._keep_views))
        self._has_features = recording.features
        if recording.features:
            layer = last_layer(network, lambda: _first_logits(network, dataset, size, device))
            self._hooks.append(layer.register_forward_pre_hook(self._keep_features))

    def __call__(self, ids: Tensor) -> dict[str, Tensor]:
        """Keyword arguments of the recorder's ``update`` for the network's last forward pass.

        Args:
            ids: int64 (B,), the images it was of.
        """
        told: dict[str, Tensor] = {}
        if self._teacher is not None:
            told["teacher"] = self._teacher_logits(self._teacher, ids)
        if self._has_features:
            told["features"] = self._features
        return told

    def close(self) -> None:
        """Take the hooks off the network."""
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def _teacher_logits(self, teacher: nn.Module, ids: Tensor) -> Tensor:
        if self._soft_labels == "view":
            logits: Tensor = teacher(self._views)
            return logits
        if self._labels is None:
            self._labels = soft_labels(self._dataset, teacher, size=self._size, device=self._device)
        return self._labels[ids.to(self._device)]

    def _keep_views(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._views = inputs[0].detach()

    def _keep_features(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._features = inputs[0].detach()


def last_layer(network: nn.Module, forward: Callable[[], Tensor]) -> nn.Linear:
    """The linear layer whose output a network's logits are.

    Args:
        network: any module.
        forward: runs it and returns its logits.

    Raises:
        ValueError: there is none.
    """
    outputs: list[tuple[nn.Linear, Tensor]] = []

    def keep(layer: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        outputs.append((layer, output))

    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        logits = forward()
    finally:
        for hook in hooks:
            hook.remove()
    for layer, output in reversed(outputs):
        if output is logits:
            return layer
    raise ValueError(
        "the network's logits are not the output of a torch.nn.Linear, whose inputs are asked for"
    )


def _first_logits(
    network: nn.Module, dataset: ImageDataset, size: int | None, device: torch.device
) -> Tensor:
    """Logits of the first image, in evaluation mode."""
    first = dataset.subset(torch.tensor([0]))
    ((_, logits),) = predict_batches(network, first, size=size, device=device)
    return logits
