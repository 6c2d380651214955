"""One pass of a method's trained network over the data, as its classes run it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyddfast import ops

__all__ = ["batches", "gradients", "unwrap"]


@torch.no_grad()
def batches(
    method: Any, dataset: Any, index: Any = None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Logits, labels and, where the network records them, features of its last layer.

    Args:
        method: An object of the official class.
        dataset: Its data set.
        index: (n,) positions in it; None: all.

    Raises:
        ValueError: There is no sample, as of a class without any.
    """
    method.model.eval()
    rows = dataset if index is None else torch.utils.data.Subset(dataset, index)
    if not len(rows):
        raise ValueError("the data set, or a class of it, holds no sample")
    loader: Any = torch.utils.data.DataLoader(
        rows, batch_size=method.args.selection_batch, num_workers=method.args.workers
    )
    recorder: Any = getattr(method.model, "embedding_recorder", None)
    for images, labels in loader:
        logits = method.model(images.to(method.args.device)).detach()
        recorded = recorder is not None and recorder.record_embedding
        features = recorder.embedding.detach().flatten(1) if recorded else None
        yield logits, labels.to(logits.device), features


def gradients(method: Any, dataset: Any, index: Any = None) -> tuple[Tensor, Tensor]:
    """Gradients by the logits (n, C) and features (n, D), on the CPU.

    The losses are means over batches, so that gradients of a smaller last batch are larger.
    """
    g, h = [], []
    for logits, labels, features in batches(method, dataset, index):
        assert features is not None  # the callers record them
        g.append((ops.logit_gradient(logits, labels) / len(logits)).cpu())
        h.append(features.cpu())
    method.model.train()
    method.embedding_dim = h[0].shape[1]
    return torch.cat(g), torch.cat(h)


def unwrap(method: Any) -> None:
    """Take the network out of its ``DataParallel``."""
    method.model = getattr(method.model, "module", method.model)
