"""The commands that read and write the tensor files of the small-scale codebases."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from pyddfast.cli.sets import load_set
from pyddfast.data import codebase_normalization, read_tensor_layout, write_tensor_layout
from pyddfast.data.datasets import describe_whitening

__all__ = ["set_export", "set_import"]

LayoutName: TypeAlias = Literal["vico", "mtt", "datm", "ddranking", "kip"]


def set_import(
    path: Path,
    out: Path,
    /,
    *,
    layout: LayoutName,
    data: Literal["mnist", "fashion-mnist", "svhn", "cifar10", "cifar100", "tiny-imagenet"],
    method: str | None = None,
    iteration: str = "best",
    experiment: int = -1,
    lr: float | None = None,
    whitened: bool | None = None,
) -> None:
    """Make a set of the tensor files that an official code wrote.

    Args:
        path: vico: the file res_....pt (DC, DSA, DM); kip: the file kip_....npz; others: the folder
            with images_best.pt (MTT, DATM) or images.pt (DD-Ranking).
        out: Folder of the set.
        layout: Whose files.
        data: The data set; with the codebase it tells what the images were normalised by.
        method: dc, dsa, dm, tm or datm, for train --protocol official; default as the files say.
        iteration: Which files of mtt and datm: best or a number.
        experiment: Which one of the experiments in a vico file; -1 is the last.
        lr: The learned learning rate, which MTT does not save.
        whitened: The images are ZCA-whitened; default as the codebase and its files say.  KIP's
            have a whitening of their own.
    """
    classes = {"cifar100": 100, "tiny-imagenet": 200}.get(data, 10)
    made = read_tensor_layout(
        path,
        layout,
        num_classes=classes,
        normalization=codebase_normalization(layout, data),
        method=method,
        iteration=iteration,
        experiment=experiment,
        lr=lr,
        whitened=whitened,
    )
    made.save(out)
    height, width = made.images.shape[-2:]
    normalised = f"normalised as {layout} normalises {data}"
    what = describe_whitening(made.whitened) if made.whitened else normalised
    print(f"{len(made):,} images of {height}x{width}, {made.ipc} for each class, {what}")
    print(f"learning rate: {'none' if made.lr is None else f'{made.lr:.4g}'}")
    print(f"labels: {'hard' if made.soft_labels is None else 'learned logits'}")
    print(f"set: {out}")


def set_export(set: Path, out: Path, /, *, layout: LayoutName, iteration: str = "best") -> None:
    """Write a set as an official code does, for its evaluation.

    Args:
        set: Folder of a set, or of the run that made it.
        out: vico: a new file res_....pt; kip: a new file kip_....npz; others: a new folder.
        layout: Whose files.
        iteration: In the names of mtt and datm.
    """
    print(f"written: {write_tensor_layout(load_set(set), out, layout, iteration=iteration)}")
