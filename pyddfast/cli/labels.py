"""The commands of sets and their stored labels."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from pyddfast.cli.options import load_teacher
from pyddfast.cli.sets import set_folder
from pyddfast.cli.training import recipe_changes
from pyddfast.data import (
    EFFICIENTNET_LITE_NORMALIZATION,
    DistilledSet,
    Normalization,
    SoftLabels,
    StoreInfo,
    export_fkd,
    import_fkd,
    read_layout,
    recode,
)
from pyddfast.data.layouts import open_layout
from pyddfast.data.softlabels_fkd import FKDFolder
from pyddfast.models import load_pretrained
from pyddfast.train import check_set as report_on
from pyddfast.train import progress
from pyddfast.train import recipe as published_recipe
from pyddfast.train import relabel as make_store
from pyddfast.train.distributed import join_ranks
from pyddfast.train.teacher import RECORD, read_record

__all__ = ["check_set", "labels_export", "labels_import", "labels_recode", "open_set", "relabel"]

LayoutName = Literal["auto", "sre2l", "rded", "d4m", "synset"]


def check_set(
    set: Path,
    /,
    *,
    teacher: Path | None = None,
    pretrained: Literal["efficientnet_lite0"] | None = None,
    layout: LayoutName = "auto",
    num_classes: int | None = None,
    json: bool = False,
    device: str | None = None,
) -> None:
    """Count the images of a set, and ask a teacher whether their labels are in its order.

    Args:
        set: Folder of a set: of this library, or as an official code wrote it.
        teacher: Folder of a trained teacher of the same task.
        pretrained: A published ImageNet-1k network instead (its package has to be installed).
        layout: Of an official code's folders; auto tells it by their names.
        num_classes: Classes of the task; default those of the folders (1000 with PRETRAINED).
        json: Print the report as JSON.
        device: cpu or cuda; default CUDA where there is one.
    """
    if teacher is not None and pretrained is not None:
        raise ValueError("give at most one of --teacher and --pretrained")
    normalization = _normalization(teacher, pretrained)
    if pretrained is not None and num_classes is None:
        num_classes = 1000
    distilled = open_set(set, layout, num_classes, normalization)
    network: nn.Module | None = None
    if teacher is not None:
        network = load_teacher(teacher, distilled, device).model
    elif pretrained is not None:
        network = load_pretrained(pretrained)
        if device is not None:
            network = network.to(device)
    report = report_on(
        distilled,
        network,
        normalization=normalization,
        size=224 if pretrained else None,
    )
    if json:
        print(json_module.dumps(report.to_dict(), indent=1))
        return
    low, high = report.ipc
    height, width = report.image_size
    print(f"{report.count:,} images of {report.channels} x {height} x {width}")
    print(
        f"{report.num_classes:,} classes, {low if low == high else f'{low} to {high}'} images each"
    )
    if report.layout is not None:
        print(f"layout: {report.layout}")
    if report.accuracy is not None:
        print(
            f"the teacher is right about {report.accuracy:.2%} of them (chance {report.chance:.2%})"
        )
    for warning in report.warnings:
        print(f"warning: {warning}")
    if not report.warnings:
        print("nothing looks wrong")


def relabel(
    *,
    set: Path,
    out: Path,
    teacher: Path | None = None,
    pretrained: Literal["efficientnet_lite0"] | None = None,
    layout: LayoutName = "auto",
    num_classes: int | None = None,
    factor: int = 1,
    scale: Literal["small", "large"] = "large",
    recipe: tuple[str, ...] = (),
    epochs: int | None = None,
    form: str = "float16",
    seed: int = 0,
    deterministic: bool = False,
    resume: bool = False,
    device: str | None = None,
) -> None:
    """Store a teacher's logits of every view of an SL+KD training, for train --labels OUT.

    Under torchrun the processes share the batches.

    Args:
        set: Folder of a set: of this library, or as an official code wrote it.
        out: Run folder; the store is OUT/labels.
        teacher: Folder of a trained teacher of the same task.
        pretrained: A published ImageNet-1k network instead (its package has to be installed).
        layout: Of an official code's folders; auto tells it by their names.
        num_classes: Classes of the task; default those of the folders (1000 with PRETRAINED).
        factor: Patches an axis of each image of an official code's folders (RDED: 2).
        scale: Columns of Table 1 that the students will be trained by.
        recipe: Changes of that recipe, each NAME=VALUE, e.g. batch_size=64 augmentation=rrc.
        epochs: Passes over the set instead of the recipe's.
        form: Of the stored logits: float16, float32, int8 or top<k>.
        seed: Seed of order and views.
        deterministic: Deterministic algorithms on CUDA.
        resume: Go on with the stopped run in OUT.
        device: cpu or cuda; default CUDA where there is one.
    """
    if (teacher is None) == (pretrained is None):
        raise ValueError("give one of --teacher and --pretrained")
    normalization = _normalization(teacher, pretrained)
    if pretrained is not None and num_classes is None:
        num_classes = 1000
    distilled = open_set(set, layout, num_classes, normalization, factor)
    if teacher is not None:
        network = load_teacher(teacher, distilled, device).model
    else:
        network = load_pretrained("efficientnet_lite0")
    used = published_recipe("sl-kd", scale, distilled.ipc, **recipe_changes(recipe))
    store = make_store(
        distilled,
        network,
        out=out,
        recipe=used,
        epochs=epochs,
        form=form,
        seed=seed,
        normalization=normalization,
        device=device,
        deterministic=deterministic,
        resume=resume,
    )
    if join_ranks().first:
        _describe(store)


def labels_import(
    folder: Path,
    out: Path,
    /,
    *,
    set: Path | None = None,
    layout: LayoutName = "auto",
    num_classes: int | None = None,
    form: str | None = None,
    sampler_seed: int = 42,
    patches_shuffled: bool = False,
) -> None:
    """Make a store of official soft-label files; a stopped import goes on.

    Args:
        folder: Holds epoch_0, epoch_1 ... with batch_0.tar ...
        out: Folder of the store.
        set: Folder of the set that they belong to; the store then refuses others.
        layout: Of its folders.
        num_classes: Classes of its task.
        form: float16, float32, int8 or top<k>; default as the files are.
        sampler_seed: --fkd-seed of the script that wrote the files.
        patches_shuffled: The views were shuffled by the files' PatchShuffle order, as in a store
            that labels export warned of; EDC's own were not.
    """
    distilled = order = None
    if set is not None:
        distilled = open_set(set, layout, num_classes)
        order = _image_order(set_folder(set), distilled, layout, num_classes)
    with _shown("import", _batches(FKDFolder.scan(folder))) as show:
        store = import_fkd(
            folder,
            out,
            distilled=distilled,
            image_order=order,
            form=form,
            sampler_seed=sampler_seed,
            patches_shuffled=patches_shuffled,
            on_progress=show,
        )
    _describe(store)


def labels_export(store: Path, out: Path, /) -> None:
    """Write a store as official files; warns of what they cannot hold.

    Args:
        store: Folder of the store.
        out: A new folder.
    """
    opened = SoftLabels(store)
    with _shown("export", _batches(opened.info)) as show:
        export_fkd(opened, out, on_progress=show)
    print(f"files: {out}")


def labels_recode(store: Path, out: Path, /, *, form: str) -> None:
    """Write a store in another form.

    Args:
        store: Folder of the store.
        out: Folder of the new one.
        form: float16, float32, int8 or top<k>, e.g. top50.
    """
    opened = SoftLabels(store)
    with _shown("recode", _batches(opened.info)) as show:
        made = recode(opened, out, form, on_progress=show)
    _describe(made)


def open_set(
    folder: Path,
    layout: LayoutName = "auto",
    num_classes: int | None = None,
    normalization: Normalization | None = None,
    factor: int = 1,
) -> DistilledSet:
    """The set of a folder, of the run in it, or of an official code's folders.

    Args:
        folder: Holds ``set.json``, a run's ``set``, or one folder a class.
        layout: Of an official code's folders.
        num_classes: Classes of the task, for official folders.
        normalization: Of the source data, for official folders; None: ImageNet's.
        factor: Patches an axis of each image, for official folders.
    """
    return read_layout(
        set_folder(folder),
        layout,
        num_classes=num_classes,
        normalization=normalization,
        factor=factor,
    )


def _normalization(teacher: Path | None, pretrained: str | None) -> Normalization | None:
    """What the teacher was trained with."""
    if pretrained is not None:
        return EFFICIENTNET_LITE_NORMALIZATION
    if teacher is None:
        return None
    inner = teacher / "teacher"
    record = (inner if (inner / RECORD).is_file() else teacher) / RECORD
    if not record.is_file():
        raise FileNotFoundError(f"{record} is missing; a teacher's folder needs it")
    try:
        values = read_record(record)["config"]["dataset"]["normalization"]
        return Normalization(tuple(values["mean"]), tuple(values["std"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{record} does not say how images were normalised") from error


def _image_order(
    folder: Path, distilled: DistilledSet, layout: LayoutName, num_classes: int | None
) -> Tensor | None:
    """The set's position of each image as official readers count them: by names, as text."""
    if (folder / "set.json").is_file():
        if bool((distilled.labels.diff() < 0).any()):
            raise ValueError(
                f"the images of {folder} are not in the order of their classes, in which official "
                "readers count them"
            )
        return None
    images, _ = open_layout(
        folder, layout, num_classes=num_classes, normalization=distilled.normalization
    )
    text = [(path.parent.name, path.name) for path in images.paths]
    order = torch.tensor(sorted(range(len(text)), key=text.__getitem__))
    return None if torch.equal(order, torch.arange(len(order))) else order


def _batches(labels: StoreInfo | FKDFolder) -> int:
    return labels.epochs * len(labels.batch_sizes)


@contextmanager
def _shown(name: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """Progress of a job that tells how much is done, also where it goes on half-way."""
    with progress(name, total) as advance:
        last = 0

        def show(done: int, _: int) -> None:
            nonlocal last
            advance(done - last)
            last = done

        yield show


def _describe(store: SoftLabels) -> None:
    info = store.info
    size = sum(file.stat().st_size for file in store.path.iterdir())
    print(
        f"{info.epochs:,} epochs of {info.count:,} images, {info.num_classes:,} classes, "
        f"{info.form}: {size / 1e6:,.1f} MB"
    )
    print(f"store: {store.path}")
