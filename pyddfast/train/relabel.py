"""FKD: a teacher labels every view of a training once (Shen & Xing, ECCV 2022; SRe2L's relabel)."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyddfast.data import (
    DistilledSet,
    LabelBatch,
    Normalization,
    ResidentDataset,
    SoftLabels,
    SoftLabelWriter,
    StoreInfo,
)
from pyddfast.data.digest import images_digest
from pyddfast.data.softlabels import labels_digest
from pyddfast.data.softlabels_batch import coords_of
from pyddfast.random import Purpose, permutation
from pyddfast.train.distributed import join_ranks, resolve_device
from pyddfast.train.loop import deterministic_mode
from pyddfast.train.models import model_digest
from pyddfast.train.plan import Epochs, Plan
from pyddfast.train.progress import progress as show_progress
from pyddfast.train.recipes import Recipe
from pyddfast.train.recipes import recipe as published_recipe
from pyddfast.train.run import RunFolder
from pyddfast.train.stored import LABELS
from pyddfast.train.student import resident_on
from pyddfast.train.views import KeyedDraws, Mix, keyed_draws, make_views

__all__ = ["relabel"]


@torch.no_grad()
def relabel(
    distilled_set: DistilledSet | ResidentDataset,
    teacher: nn.Module,
    *,
    out: str | Path,
    recipe: Recipe | None = None,
    epochs: int | None = None,
    form: str = "float16",
    seed: int = 0,
    normalization: Normalization | None = None,
    device: torch.device | str | None = None,
    deterministic: bool = False,
    resume: bool = True,
    progress: bool = True,
) -> SoftLabels:
    """Store a teacher's logits of every view of an SL+KD training.

    Order, views and CutMix are those that :func:`train_student` draws for ``seed`` with the same
    recipe: students of that seed see what they would see with the teacher beside them.

    Under ``torchrun`` the processes take batches in turn, and the first one writes: the same bytes
    as of one process with as many threads.

    Args:
        distilled_set: what students will train on, resident on ``device`` if it is a
            :class:`pyddfast.data.ResidentDataset`.
        teacher: network of its task; put in eval mode on ``device``.
        out: run folder; the store is its ``labels``.  A killed job goes on, with any number of
            processes, and writes the same bytes.
        recipe: of the students, with augmentation ``"rrc"``; None: the paper's large-scale SL+KD.
        epochs: passes; None: the recipe's.
        form: of the logits: ``"float16"``, ``"float32"``, ``"int8"`` or ``"top<k>"``.
        seed: of order and views.
        normalization: of the teacher's input; None: the set's, which students have.
        device: None: CUDA where there is one, else the CPU.
        deterministic: torch's deterministic algorithms.
        resume: continue what ``out`` holds; False refuses a non-empty folder.
        progress: show it on stderr.

    Returns:
        The store.  A mixed batch's lam is the share of a view that is its own.

    Raises:
        ValueError: set, teacher and recipe do not fit together, the set's images are float32, a
            logit is not finite in ``form``, or ``out`` holds another run.
        BlockingIOError: another process works in ``out``.
        FileExistsError: ``out`` holds something else.
    """
    used = recipe or published_recipe("sl-kd", "large")
    if used.regime != "sl-kd" or used.augmentation != "rrc" or used.drop_last:
        raise ValueError(
            "stored labels need a recipe of regime 'sl-kd' with augmentation 'rrc' and without "
            f"drop_last, got {used.regime!r}, {used.augmentation!r} and {used.drop_last}"
        )
    if distilled_set[0].dtype != torch.uint8:
        raise ValueError(
            "stored labels are of random crops, which take uint8 images; the set's are float32: "
            "train with the teacher beside the student (regime 'sl-kd', scale 'small')"
        )
    plan = Plan(len(distilled_set), used.batch_size, False, Epochs(epochs or used.epochs))
    assert isinstance(plan.budget, Epochs)
    target = resolve_device(device)
    teacher.to(target).eval()
    height, width = (int(side) for side in distilled_set[0].shape[-2:])
    draws = keyed_draws(used, seed, (height, width), distilled_set.kind, distilled_set.factor)
    spans = [plan.locate(step) for step in range(plan.steps_per_epoch)]
    labels, images = labels_digest(distilled_set.labels), images_digest(distilled_set)
    config = {
        "task": "relabel",
        "recipe": used.to_dict(),
        "epochs": plan.budget.count,
        "form": form,
        "seed": seed,
        "set": {"labels_sha256": labels, "images_sha256": images, "count": plan.count},
        "normalization": _plain(normalization or distilled_set.normalization),
        "teacher": {"class": type(teacher).__name__, "sha256": model_digest(teacher)},
        "deterministic": deterministic,
    }
    info = StoreInfo(
        epochs=plan.budget.count,
        batch_sizes=tuple(stop - start for _, start, stop in spans),
        num_classes=distilled_set.num_classes,
        form=form,
        patch_factor=draws.factor if draws.factor > 1 else 0,
        patches_shuffled=draws.factor > 1,
        image_size=(height, width),
        view_size=used.image_size,
        labels_sha256=labels,
        images_sha256=images,
        class_names=tuple(distilled_set.class_names),
        origin=config,
    )
    total = plan.total_steps
    ranks = join_ranks()
    with deterministic_mode(deterministic), ExitStack() as stack:
        writer = None
        if ranks.first:
            folder = stack.enter_context(RunFolder(out, config, resume=resume))
            writer = stack.enter_context(SoftLabelWriter(folder.path / LABELS, info))
        begin = torch.tensor(0 if writer is None else writer.done)
        ranks.share([begin])
        first = int(begin)
        enabled = progress and ranks.first
        advance = stack.enter_context(show_progress("relabel", total, enabled=enabled))
        advance(first)
        views = make_views(
            resident_on(target, distilled_set),
            normalization or distilled_set.normalization,
            used,
            seed=seed,
            draws=draws,
        )

        @lru_cache(2)  # at an epoch's end the processes are in two
        def order_of(epoch: int) -> Tensor:
            return permutation(seed, Purpose.EPOCH_ORDER, plan.count, epoch)

        def images_of(step: int) -> tuple[Tensor, Tensor]:
            """Positions and visits of the images of a batch."""
            epoch, start, stop = plan.locate(step)
            ids = order_of(epoch)[start:stop]
            return ids, torch.full_like(ids, epoch)

        for turn in range(first, total, ranks.world):
            # Of equal shape in all processes: a shorter batch, or none at the end, leaves rows 0.
            mine = torch.zeros(used.batch_size, distilled_set.num_classes)
            if (step := turn + ranks.rank) < total:
                ids, visits = images_of(step)
                logits = teacher(views(ids, visits, step))
                if logits.shape != (len(ids), distilled_set.num_classes):
                    raise ValueError(
                        f"the teacher gives logits {tuple(logits.shape)} for {len(ids)} images of "
                        f"{distilled_set.num_classes} classes"
                    )
                mine[: len(ids)] = logits
            made = ranks.gather(mine)
            if writer is None:
                continue
            for step, logits in zip(range(turn, total), made, strict=False):
                ids, visits = images_of(step)
                writer.write(_batch(draws, ids, visits, step, logits[: len(ids)]))
                advance(1)
    ranks.wait()  # the store is finished by its record
    return SoftLabels(Path(out) / LABELS)


def _batch(draws: KeyedDraws, ids: Tensor, visits: Tensor, step: int, logits: Tensor) -> LabelBatch:
    """What was drawn for a step, as a store keeps it."""
    params = draws.params(ids, visits, step, torch.arange(len(ids)))
    mix = draws.mix(step, len(ids))
    height, width = draws.image_size
    whole = torch.tensor([[0, 0, height, width]]).expand(len(ids), 4)
    flip = torch.zeros(len(ids), dtype=torch.bool) if params.flip is None else params.flip
    order = None
    if params.row_order is not None and params.col_order is not None:
        order = torch.stack([params.col_order, params.row_order], dim=1)
    batch = LabelBatch(
        coords=coords_of(whole if params.box is None else params.box, (height, width)),
        flip=flip,
        mix_index=None,
        mix_lam=None,
        mix_bbox=None,
        logits=logits,
        index=ids,
        patch_order=order,
    )
    return batch if mix is None else _mixed(batch, mix, draws)


def _mixed(batch: LabelBatch, mix: Mix, draws: KeyedDraws) -> LabelBatch:
    assert mix.box is not None  # a recipe has CutMix alone
    y0, x0, y1, x1 = mix.box.tolist()
    side = draws.recipe.image_size
    height, width = draws.image_size if side is None else (side, side)
    lam = 1 - (y1 - y0) * (x1 - x0) / (height * width)
    return replace(batch, mix_index=mix.partner, mix_lam=lam, mix_bbox=(y0, x0, y1, x1))


def _plain(normalization: Normalization) -> dict[str, Any]:
    return {"mean": list(normalization.mean), "std": list(normalization.std)}
