"""``glister.py``."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyddfast import ops
from pyddfast.compat.deepcore import passes

__all__ = ["finish_run"]


def finish_run(self: Any) -> dict[str, Any]:
    """The method of the class ``Glister``, with inner products of gradients that are never formed.

    Its gains are ⟨G_i, mean validation gradient⟩ and stay as they are after a pick (the official
    ``upadate_state=`` is swallowed), so that the largest are taken.

    Args:
        self: The method's object; its optimiser has to be an exact one.

    Returns:
        ``indices``, sorted within each class.

    Raises:
        ValueError: The optimiser draws or approximates.
    """
    if self._greedy not in ("NaiveGreedy", "LazyGreedy"):
        raise ValueError(f"greedy must be 'NaiveGreedy' or 'LazyGreedy', got {self._greedy!r}")
    passes.unwrap(self)
    train, val = (np.asarray(data.targets) for data in (self.dst_train, self.dst_val))
    groups = (
        [(np.flatnonzero(train == c), np.flatnonzero(val == c)) for c in range(self.num_classes)]
        if self.balance
        else [(np.arange(self.n_train), np.arange(self.n_val))]
    )
    chosen = []
    self.model.no_grad = True
    with self.model.embedding_recorder:
        for rows, judges in groups:
            budget = round(self.fraction * len(rows)) if self.balance else self.coreset_size
            to = passes.gradients(self, self.dst_val, judges)
            own = (
                to
                if self.dst_val is self.dst_train
                else passes.gradients(self, self.dst_train, rows)
            )
            order = ops.grad_align_score(*own, *to).argsort(descending=True, stable=True)
            chosen.append(np.sort(rows[order[:budget].numpy()]))
    self.model.no_grad = False
    return {"indices": np.concatenate(chosen)}
