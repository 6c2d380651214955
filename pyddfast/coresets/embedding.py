"""What a network makes of every sample: logits and features, from one pass over the data.

Methods of geometry, gradients and uncertainty start from these two matrices and do not run the
network again.  Features are the inputs of its last layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyddfast.coresets.parts import in_parts
from pyddfast.data import ImageSource, Normalization, network_input
from pyddfast.data.digest import describe_data
from pyddfast.data.stored import tensors_digest
from pyddfast.train.beside import last_layer
from pyddfast.train.distributed import Ranks
from pyddfast.train.evaluate import images_of

__all__ = ["PART", "Embedding", "embed", "evaluating", "run"]

# Images of a file of the cache: on two CPU cores some seconds of a small network and some minutes
# of a ResNet at 224 pixels, so that a kill loses no more.
PART = 2048
# As in predict(): activations of small networks stay in a CPU's cache.
_BATCH = 256


@dataclass(frozen=True, eq=False)
class Embedding:
    """Logits and features of N samples.

    Args:
        logits: Floating point (N, C).
        features: Floating point (N, D), inputs of the last layer.
        labels: int64 (N,), values in [0, C).
        meta: The network, its accuracy, the normalisation ...; JSON values, which go into the
            record of every selection: the source of the features decides its accuracy.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: Shapes do not fit, a label is out of range, a value is not finite, or features
            are so large that their products overflow.
    """

    logits: Tensor
    features: Tensor
    labels: Tensor
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.labels)
        if self.labels.dtype != torch.int64 or self.labels.ndim != 1:
            raise TypeError(
                f"labels must be int64 (N,), got {self.labels.dtype} {tuple(self.labels.shape)}"
            )
        for name, value in (("logits", self.logits), ("features", self.features)):
            if not value.dtype.is_floating_point:
                raise TypeError(f"{name} must be floating point, got {value.dtype}")
            if value.ndim != 2 or len(value) != count:
                raise ValueError(
                    f"{name} must have shape ({count}, width), a row for each label, "
                    f"got {tuple(value.shape)}"
                )
            unsound = (~value.isfinite().all(1)).nonzero()
            if len(unsound):
                raise ValueError(f"{name} must be finite; sample {int(unsound[0])} is not")
        self._check_lengths()
        if count and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.num_classes:
            raise ValueError(
                f"labels must lie in [0, {self.num_classes}), got values from "
                f"{int(self.labels.min())} to {int(self.labels.max())}"
            )

    def _check_lengths(self) -> None:
        """Raise where distances and inner products of features would overflow, and picks with them.

        A millionth of the root of the largest number: they are summed before they are squared.
        """
        if not self.features.numel():
            return
        # The operators compute with float64 of float64, else with float32.
        double = self.features.dtype == torch.float64
        limit = 1e-6 * torch.finfo(torch.float64 if double else torch.float32).max ** 0.5
        largest_of = torch.linalg.vector_norm(self.features, torch.inf, dim=1)
        largest, sample = largest_of.double().max(0)
        if float(largest) > limit:
            raise ValueError(
                f"features must lie within {limit:.1e}, so that their products do not overflow; "
                f"sample {int(sample)} has {float(largest):.1e}: divide them by a constant"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return self.logits.shape[1]


def embed(
    dataset: ImageSource,
    network: nn.Module,
    *,
    normalization: Normalization | None = None,
    meta: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    out: str | Path | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008 frozen
    progress: bool = True,
) -> Embedding:
    """Run a network once over the un-augmented images, in evaluation mode.

    Args:
        dataset: Images of one size.
        network: Its logits must be the output of a ``torch.nn.Linear``.
        normalization: Of the pixels; None: the data set's own.
        meta: For the record: what the network is.
        device: Where to run; None: where the network's parameters are.
        out: Run folder of the results, which are written in parts: a stopped call goes on, a
            finished one is read.
        ranks: The processes of the job: each runs its share of the parts; needs ``out``.
        progress: Show it on stderr.

    Returns:
        Float32 logits and features, 4 (C + D) bytes a sample, on the CPU.

    Raises:
        ValueError: The data set is empty, the network gives another number of logits than classes
            or has no such last layer, a value is not finite, or ``out`` holds another run or a
            damaged file.
    """
    if not len(dataset):
        raise ValueError("the data set holds no image")
    weights = tensors_digest(network.state_dict())
    used = dataset.normalization if normalization is None else normalization
    record = {
        "features": "inputs of the last layer",
        "mode": "eval",
        "normalization": {"mean": list(used.mean), "std": list(used.std)},
        "weights": weights,
        **(meta or {}),
    }
    with evaluating(network, device) as target:
        rows = in_parts(
            "embedding",
            lambda start, stop: run(dataset, network, start, stop, used, target),
            len(dataset),
            PART,
            config={"task": "embed", "part": PART, "dataset": describe_data(dataset), **record},
            out=out,
            ranks=ranks,
            progress=progress,
        )
    return Embedding(rows["logits"], rows["features"], dataset.labels.cpu(), record)


@contextmanager
def evaluating(
    network: nn.Module, device: torch.device | str | None = None
) -> Iterator[torch.device]:
    """A network in evaluation mode on a device, default its own; afterwards as it was."""
    given = next((p.device for p in network.parameters()), torch.device("cpu"))
    target = given if device is None else torch.device(device)
    was_training = network.training
    network.to(target).eval()
    try:
        yield target
    finally:
        network.to(given).train(was_training)


@torch.no_grad()
def run(
    dataset: ImageSource,
    network: nn.Module,
    start: int,
    stop: int,
    normalization: Normalization,
    device: torch.device,
) -> dict[str, Tensor]:
    """Logits and features of images [start, stop)."""
    features: list[Tensor] = []

    def forward(first: int, last: int) -> Tensor:
        images = images_of(dataset, first, last).to(device)
        logits: Tensor = network(network_input(images, normalization))
        return logits

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features.append(inputs[0].float().cpu())

    layer = last_layer(network, lambda: forward(start, start + 1))
    if layer.out_features != dataset.num_classes:
        raise ValueError(
            f"the network gives {layer.out_features} logits, "
            f"the data set has {dataset.num_classes} classes"
        )
    hook = layer.register_forward_pre_hook(keep)
    try:
        logits = [
            forward(first, min(first + _BATCH, stop)).float().cpu()
            for first in range(start, stop, _BATCH)
        ]
    finally:
        hook.remove()
    return {"logits": torch.cat(logits), "features": torch.cat(features)}
