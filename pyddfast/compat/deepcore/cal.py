"""``cal.py``."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pyddfast import ops
from pyddfast.compat.deepcore.passes import batches

__all__ = ["calc_kl", "find_knn"]

Array = npt.NDArray[Any]


def find_knn(self: Any) -> list[Array] | Array:
    """The method of the class ``Cal``: nearest neighbours without n × n distances.

    A row is left out by its number, where the official code drops the first column, which of equal
    images may be another.  A metric of your own is sorted as there.

    Args:
        self: The method's object.

    Returns:
        (n, neighbours) positions, within each class if ``balance``.
    """
    official = sys.modules[type(self).__module__]
    features = _Features(
        official.nets.__dict__[self.pretrain_model](
            channel=self.args.channel,
            num_classes=self.args.num_classes,
            im_size=(224, 224),
            record_embedding=True,
            no_grad=True,
            pretrained=True,
        ).to(self.args.device),
        self.args,
    )
    dataset = self.dst_train
    if tuple(self.args.im_size[:2]) != (224, 224):
        transforms = official.transforms
        dataset = official.deepcopy(dataset)
        dataset.transform = transforms.Compose([dataset.transform, transforms.Resize(224)])
    if not self.balance:
        return _nearest(features.of(dataset), self)
    targets = np.asarray(self.dst_train.targets)
    return [
        _nearest(features.of(dataset, np.flatnonzero(targets == label)), self)
        for label in range(self.args.num_classes)
    ]


def calc_kl(self: Any, knn: Array, index: Array | None = None) -> npt.NDArray[np.float64]:
    """The method of the class ``Cal``: half of both divergences, mean over neighbours.

    From differences of log-probabilities, which are finite where the official p / q is 0 / 0.

    Args:
        self: The method's object.
        knn: (n, neighbours) positions.
        index: (n,) positions in the data set; None: all.

    Returns:
        Scores (n,).
    """
    self.model.no_grad = True
    logits = torch.cat([z.double() for z, *_ in batches(self, self.dst_train, index)])
    self.model.no_grad = False
    neighbours = torch.from_numpy(knn).to(logits.device)
    return ops.knn_divergence(logits.log_softmax(1), neighbours).cpu().numpy()


class _Features:
    """What :func:`batches` asks of a method, for another network."""

    def __init__(self, model: Any, args: Any) -> None:
        self.model, self.args = model, args

    def of(self, dataset: Any, index: Array | None = None) -> torch.Tensor:
        return torch.cat([h for *_, h in batches(self, dataset, index) if h is not None])


def _nearest(features: torch.Tensor, method: Any) -> Array:
    if getattr(method.metric, "__name__", "") == "euclidean_dist_pair_np":
        k = min(method.neighbors, len(features) - 1)
        return ops.knn_topk(features, k)[1].cpu().numpy()
    order: Array = np.argsort(method.metric(features.cpu().numpy()), axis=1)
    return order[:, 1 : method.neighbors + 1]
