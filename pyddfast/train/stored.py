"""SL+KD from stored labels: a student replays the views that a teacher labelled before."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyddfast.data import DistilledSet, LabelBatch, ResidentDataset, SoftLabels
from pyddfast.data.softlabels_batch import replay_boxes
from pyddfast.ops.augment import AugmentParams
from pyddfast.ops.kd import kd_loss
from pyddfast.train.plan import Plan
from pyddfast.train.recipes import Recipe
from pyddfast.train.views import Mix

__all__ = ["StoredLabels", "check_stored", "open_labels", "stored_recipe"]

LABELS = "labels"  # the store in the run folder of relabel
# Fields of a recipe that say how the views of a store were made.
_VIEWS = ("image_size", "antialias", "patch_shuffle_first", "batch_size")


class StoredLabels:
    """Order, views and loss of a training, out of a store.

    Args:
        store: of this set, see :func:`check_stored`.
        plan: of the training.
        image_size: height and width of the set's images.
        temperature: softens student and teacher.
        t_squared: multiply by T².
        device: of the training.
    """

    def __init__(
        self,
        store: SoftLabels,
        plan: Plan,
        image_size: tuple[int, int],
        temperature: float,
        *,
        t_squared: bool,
        device: torch.device,
    ) -> None:
        self.store, self.plan, self.image_size = store, plan, image_size
        self.temperature, self.t_squared, self.device = temperature, t_squared, device
        # Of the step that runs and of the one that is prepared.
        self._batches: dict[int, LabelBatch] = {}
        self._logits = torch.empty(0, device=device)
        self._row_of = torch.zeros(plan.count, dtype=torch.int64, device=device)
        self._step = -1

    def order(self, epoch: int) -> Tensor:
        """The images of an epoch, int64 (N,), whose labels are compared with their checksum."""
        self.store.verify(epoch)
        return self.store.order(epoch)

    def mix(self, step: int, count: int) -> Mix | None:
        """What the teacher's batch was mixed with."""
        batch = self._batch(step)
        if batch.mix_index is None or batch.mix_lam is None:
            return None
        box = None if batch.mix_bbox is None else torch.tensor(batch.mix_bbox)
        return Mix(batch.mix_index, box, batch.mix_lam)

    def params(self, ids: Tensor, visits: Tensor, step: int, rows: Tensor) -> AugmentParams:
        """Box, flip and PatchShuffle of the teacher's views."""
        batch = self._batch(step)
        if step != self._step:
            assert batch.index is not None  # a store has it
            self._row_of[batch.index.to(self.device)] = torch.arange(len(batch), device=self.device)
            self._logits, self._step = batch.logits.to(self.device), step
        order = batch.patch_order if self.store.info.patches_shuffled else None
        columns, strips = (None, None) if order is None else order[rows].long().unbind(1)
        return AugmentParams(
            box=replay_boxes(batch.coords[rows], self.image_size),
            flip=batch.flip[rows],
            row_order=strips,
            col_order=columns,
        )

    def loss(self, logits: Tensor, ids: Tensor, views: Tensor) -> Tensor:
        """KL(teacher || student), mean over the batch."""
        target = self._logits[self._row_of[ids]]
        return kd_loss(logits, target, self.temperature, t_squared=self.t_squared)

    def describe(self) -> dict[str, Any]:
        """Source and store."""
        return {
            "source": "a teacher's labels of every view, stored",
            "form": self.store.info.form,
            "store_sha256": self.store.sha256,
            "origin": dict(self.store.info.origin),
        }

    def _batch(self, step: int) -> LabelBatch:
        if step not in self._batches:
            batch = self.store.batch(*divmod(step, self.plan.steps_per_epoch))
            self._batches = {k: v for k, v in self._batches.items() if k == step - 1}
            self._batches[step] = batch
        return self._batches[step]


def open_labels(folder: Path) -> SoftLabels:
    """The store of a folder, or of the run of :func:`relabel` in it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is unfinished or damaged, or the folder holds official files.
    """
    if (folder / "epoch_0").is_dir():
        raise ValueError(f"{folder} holds official files: make a store by pyddfast labels import")
    inner = folder / LABELS
    return SoftLabels(inner if inner.is_dir() else folder)


def stored_recipe(store: SoftLabels) -> Recipe | None:
    """The recipe whose views a store of :func:`relabel` holds; None for imported files."""
    values = store.info.origin.get("recipe")
    if values is None:
        return None
    known = {field.name for field in dataclasses.fields(Recipe)}
    try:
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known
        }
        return Recipe(**plain)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{store.path} holds no valid recipe: {error}") from error


def check_stored(
    store: SoftLabels, distilled: DistilledSet | ResidentDataset, recipe: Recipe, plan: Plan
) -> None:
    """Refuse a training that a store does not fit.

    Args:
        store: the labels.
        distilled: the set.
        recipe: of the training.
        plan: of the training.

    Raises:
        ValueError: set, batches, epochs or the making of the views differ.
    """
    store.check(distilled, batch_size=recipe.batch_size)
    if recipe.augmentation != "rrc":
        raise ValueError(
            f"stored labels are of views by augmentation 'rrc', the recipe has "
            f"{recipe.augmentation!r}"
        )
    made = stored_recipe(store)
    for name in _VIEWS if made is not None else ():
        if getattr(made, name) != getattr(recipe, name):
            raise ValueError(
                f"{store.path} was made with {name} {getattr(made, name)}, "
                f"the recipe has {getattr(recipe, name)}"
            )
    height, width = (int(side) for side in distilled[0].shape[-2:])
    store.check_views(recipe.image_size or height, recipe.image_size or width)
    sizes = store.info.batch_sizes
    for step in {0, plan.steps_per_epoch - 1, plan.total_steps - 1}:
        _, start, stop = plan.locate(step)
        position = step % plan.steps_per_epoch
        if len(sizes) != plan.steps_per_epoch or sizes[position] != stop - start:
            raise ValueError(
                f"{store.path} has {len(sizes)} batches an epoch, the last of {sizes[-1]} images; "
                f"the training has {plan.steps_per_epoch}, and a batch of {stop - start} as number "
                f"{position}: stored batches are replayed whole"
            )
    epochs = math.ceil(plan.total_steps / plan.steps_per_epoch)
    if epochs > store.info.epochs:
        raise ValueError(
            f"{store.path} has labels for {store.info.epochs} epochs, the training has {epochs}: "
            f"relabel for as many, or give a budget (--epochs {store.info.epochs})"
        )
