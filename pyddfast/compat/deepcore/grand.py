"""``grand.py``."""

from __future__ import annotations

from typing import Any

from pyddfast import ops
from pyddfast.compat.deepcore.passes import batches

__all__ = ["finish_run"]


def finish_run(self: Any) -> None:
    """The method of the class ``GraNd``: norms without the gradients.

    It had three tensors of batch × classes × (features + 1).  As there, norms are divided by the
    size of the batch.

    Args:
        self: The method's object; a column of its ``norm_matrix`` is filled.
    """
    recorder, done = self.model.embedding_recorder, 0
    with recorder:
        for logits, labels, features in batches(self, self.dst_train):
            norms = ops.sample_scores(logits, labels, features=features).grand
            assert norms is not None  # features are given
            self.norm_matrix[done : done + len(norms), self.cur_repeat] = norms / len(norms)
            done += len(norms)
    self.model.train()
