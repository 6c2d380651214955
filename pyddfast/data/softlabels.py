"""Soft labels of every view of a training, in a handful of memory-mapped files.

A store is a folder:

* ``logits.npy`` (epochs, images, classes), float16 unless another form was asked for;
* ``views.npy`` (epochs, images): image, box, flip and partner of every view, in training order;
* ``mixes.npy`` (epochs, batches): what was mixed how;
* ``store.json``: everything else, with checksums.  It comes last: without it a store is unfinished.

The official files hold the same in one small file a batch; :func:`import_fkd` and
:func:`export_fkd` go both ways without loss of a label or a view.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyddfast.data.atomic import naming, new_folder, refuse_non_empty, remove_leftovers, write_bytes
from pyddfast.data.digest import images_digest
from pyddfast.data.distilled import DistilledSet
from pyddfast.data.lock import LOCK_NAME, lock_folder
from pyddfast.data.resident import ResidentDataset
from pyddfast.data.softlabels_batch import LabelBatch, check_batch
from pyddfast.data.softlabels_codec import codec_of
from pyddfast.data.softlabels_fkd import (
    SAMPLER_SEED,
    FKDFolder,
    pack_fkd,
    read_fkd,
    sampler_orders,
    write_fkd,
)
from pyddfast.data.stored import read_json

__all__ = [
    "LabelBatch",
    "SoftLabelWriter",
    "SoftLabels",
    "StoreInfo",
    "export_fkd",
    "import_fkd",
    "labels_digest",
    "read_fkd",
    "recode",
    "write_fkd",
]

_RECORD = "store.json"
_PROGRESS = "progress.json"
_FORMAT = 1
_KINDS = ("none", "mixup", "cutmix")  # numbers in mixes.npy
# At most this long between two points that a killed job goes on from; five minutes are promised.
_FLUSH_SECONDS = 240.0
_MIXES = np.dtype([("kind", "u1"), ("lam", "<f8"), ("box", "<i4", (4,))])


@dataclass(frozen=True)
class StoreInfo:
    """What a store holds; JSON values.

    Attributes:
        epochs: passes over the images.
        batch_sizes: images of each batch, the same in every epoch.
        num_classes: of the logits.
        form: ``"float16"``, ``"float32"``, ``"int8"`` or ``"top<k>"``.
        sampler_seed: seed of torch's sampler that gives the images' numbers in official files of 6
            elements; None where the files hold them.
        patch_factor: strips an axis of PatchShuffle's stored order; 0: none is stored.
        patch_dtype: of that order in official files.
        patches_shuffled: whether the views were shuffled so.  In EDC's files they were not: its
            code stores an order and does not apply it.
        renumbered: whether images are counted otherwise than in the official files.
        image_size: height and width of the images; None: unknown.
        view_size: side of the views; None: unknown.
        labels_sha256: digest of the images' labels in their order; None: unknown.
        images_sha256: digest of the images' pixels in their order; None: unknown.
        class_names: in label order, or empty.
        origin: where the labels come from, for the record.
    """

    epochs: int
    batch_sizes: tuple[int, ...]
    num_classes: int
    form: str = "float16"
    sampler_seed: int | None = None
    patch_factor: int = 0
    patch_dtype: str = "int64"
    patches_shuffled: bool = False
    renumbered: bool = False
    image_size: tuple[int, int] | None = None
    view_size: int | None = None
    labels_sha256: str | None = None
    images_sha256: str | None = None
    class_names: tuple[str, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = (self.epochs, self.num_classes, *self.batch_sizes)
        if not self.batch_sizes or any(not isinstance(n, int) or n < 1 for n in numbers):
            raise ValueError("a store needs epochs, classes and images")
        if len(set(self.batch_sizes[:-1])) > 1:
            raise ValueError(f"all batches but the last must be equal, got {self.batch_sizes[:9]}")
        if not 0 <= self.patch_factor <= 256:
            raise ValueError(f"patch_factor must lie in [0, 256], got {self.patch_factor}")
        if self.patch_dtype not in ("int32", "int64"):
            raise ValueError(f"patch_dtype must be int32 or int64, got {self.patch_dtype!r}")
        codec_of(self.form, self.num_classes)

    @property
    def count(self) -> int:
        """Images of an epoch."""
        return sum(self.batch_sizes)

    @property
    def batch_size(self) -> int:
        """Images of a batch, the last one aside."""
        return self.batch_sizes[0]

    @property
    def views_dtype(self) -> np.dtype[Any]:
        """One row of ``views.npy``."""
        fields: list[Any] = [
            ("image", "<i4"),
            ("box", "<f4", (4,)),
            ("flip", "?"),
            ("partner", "<i4"),
        ]
        if self.patch_factor:
            fields.append(("patches", "u1", (2, self.patch_factor)))
        return np.dtype(fields)

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON values."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), allow_nan=False))
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StoreInfo:
        """The inverse of :meth:`to_dict`."""
        plain = dict(values)
        plain["batch_sizes"] = tuple(plain["batch_sizes"])
        plain["class_names"] = tuple(plain["class_names"])
        if plain["image_size"] is not None:
            height, width = plain["image_size"]
            plain["image_size"] = (int(height), int(width))
        return cls(**plain)


class SoftLabels:
    """A finished store, open for reading; memory is the pages that are looked at.

    It may be handed to worker processes: they open the files again.

    Args:
        folder: what :class:`SoftLabelWriter` wrote.

    Attributes:
        path: the folder.
        info: what it holds.
        sha256: of all of it.

    Raises:
        FileNotFoundError: there is no store.
        ValueError: it is unfinished or damaged; the file is named.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder)
        record = self.path / _RECORD
        if not record.is_file():
            if (self.path / _PROGRESS).is_file():
                raise ValueError(
                    f"{self.path} is unfinished: {_RECORD} comes last; the command that writes it "
                    "goes on where it stopped"
                )
            raise FileNotFoundError(f"{record} is missing; a store of soft labels has it")
        values = _read_record(record)
        try:
            self.info = StoreInfo.from_dict(values["info"])
            self._sha256 = _checksums(values["epochs_sha256"], self.info.epochs)
            self.sha256: str = _digest(values)
        except Exception as error:
            # A missing field, a list instead of an object ...: each its own type.
            raise ValueError(f"{record} is not the record of a store: {error!r}") from error
        self._arrays = {k: np.asarray(v) for k, v in _open(self.path, self.info, "r").items()}
        self._starts = [0, *itertools.accumulate(self.info.batch_sizes)]
        self._codec = codec_of(self.info.form, self.info.num_classes)
        self._encoded = [n for n in self._arrays if n not in ("views", "mixes")]

    def __reduce__(self) -> tuple[Callable[[Path], SoftLabels], tuple[Path]]:
        return SoftLabels, (self.path,)

    def batch(self, epoch: int, position: int) -> LabelBatch:
        """One batch.

        Args:
            epoch: from 0.
            position: of the batch in the epoch, from 0.

        Returns:
            Copies on the CPU; logits as stored, in float32 for the shortened forms.

        Raises:
            IndexError: there is no such batch.
        """
        if not (0 <= epoch < self.info.epochs and 0 <= position < len(self.info.batch_sizes)):
            raise IndexError(
                f"epoch {epoch}, batch {position} of {self.path}: it has {self.info.epochs} epochs "
                f"of {len(self.info.batch_sizes)} batches"
            )
        rows = slice(self._starts[position], self._starts[position + 1])
        encoded = {name: self._arrays[name][epoch, rows].copy() for name in self._encoded}
        views = self._arrays["views"][epoch, rows]
        kind, lam, box = self._arrays["mixes"][epoch, position].item()
        partner = torch.from_numpy(views["partner"].astype(np.int64)) if kind else None
        order = None
        if self.info.patch_factor:
            dtype = getattr(torch, self.info.patch_dtype)
            order = torch.from_numpy(views["patches"].copy()).to(dtype)
        return LabelBatch(
            coords=torch.from_numpy(views["box"].copy()),
            flip=torch.from_numpy(views["flip"].copy()),
            mix_index=partner,
            mix_lam=lam if kind else None,
            mix_bbox=tuple(box.tolist()) if _KINDS[kind] == "cutmix" else None,
            logits=self._codec.decode(encoded, self.info.num_classes),
            index=torch.from_numpy(views["image"].astype(np.int64)),
            patch_order=order,
        )

    def order(self, epoch: int) -> Tensor:
        """The images of an epoch in training order, int64 (N,)."""
        return torch.from_numpy(self._arrays["views"][epoch]["image"].astype(np.int64))

    def verify(self, epoch: int | None = None) -> None:
        """Read an epoch, or all, and compare it with its checksum.

        Raises:
            ValueError: it is damaged.
        """
        for number in range(self.info.epochs) if epoch is None else (epoch,):
            if _epoch_digest(self._arrays, number) != self._sha256[number]:
                raise ValueError(
                    f"{self.path} is damaged: epoch {number} has not the SHA-256 of {_RECORD}"
                )

    def check(
        self, distilled: DistilledSet | ResidentDataset, *, batch_size: int | None = None
    ) -> None:
        """Refuse a set that these labels were not made for.

        Args:
            distilled: the set; streamed from files it is read once, where the store knows its
                images.
            batch_size: of the training, or None.

        Raises:
            ValueError: count, classes, their order, image size, images or batch size differ.
        """
        info = self.info
        pairs: list[tuple[str, object, object]] = [
            ("images", info.count, len(distilled)),
            ("classes", info.num_classes, distilled.num_classes),
        ]
        if info.image_size is not None:
            pairs.append(("image size", info.image_size, tuple(distilled[0].shape[-2:])))
        if batch_size is not None:
            pairs.append(("batch size", info.batch_size, batch_size))
        for name, mine, theirs in pairs:
            if mine != theirs:
                raise ValueError(
                    f"{self.path} holds labels for {name} {mine}, the set or training has {theirs}"
                )
        names = tuple(distilled.class_names)
        if info.class_names and names and info.class_names != names:
            first = next(
                i for i, (a, b) in enumerate(zip(info.class_names, names, strict=True)) if a != b
            )
            raise ValueError(
                f"{self.path} orders its classes differently: class {first} is "
                f"{info.class_names[first]!r} there and {names[first]!r} in the set"
            )
        if info.labels_sha256 not in (None, labels_digest(distilled.labels)):
            raise ValueError(
                f"{self.path} was made for images in another order: their labels, in order, are "
                "not the set's"
            )
        if info.images_sha256 is not None and info.images_sha256 != images_digest(distilled):
            raise ValueError(f"{self.path} was made for other images than the set's")

    def check_views(self, height: int, width: int) -> None:
        """Refuse views that a box of CutMix leaves.

        Raises:
            ValueError: one does; epoch and batch are named.
        """
        boxes = self._arrays["mixes"]["box"].reshape(-1, 2, 2)
        if (outside := (boxes > (height, width)).any(axis=(1, 2))).any():
            epoch, position = divmod(int(outside.argmax()), len(self.info.batch_sizes))
            raise ValueError(
                f"{self.path}: the mix_bbox of epoch {epoch}, batch {position} leaves the "
                f"views of {height} x {width}"
            )


class SoftLabelWriter:
    """Writes a store, batch after batch; a killed job goes on and writes the same bytes.

    As a context manager it finishes the store at the end of the block if all batches are there.

    Args:
        folder: new, empty, or what a killed job left of the same store.
        info: what the store will hold.

    Attributes:
        done: batches written, over all epochs: where to go on.

    Raises:
        FileExistsError: the folder holds something else, or a store of other labels.
        ValueError: the record of what a killed job did is damaged.
        BlockingIOError: another process writes there.
        OSError: there is no room for the whole store; said before anything is written.
    """

    def __init__(self, folder: str | Path, info: StoreInfo) -> None:
        self.path, self.info, self.done = Path(folder), info, 0
        self._codec = codec_of(info.form, info.num_classes)
        self._starts = [0, *itertools.accumulate(info.batch_sizes)]
        self._sha256: list[str] = []
        self._saved = time.monotonic()
        self._total = info.epochs * len(info.batch_sizes)
        self._closed = False
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(self.path)  # until close
        known = next((n for n in (_RECORD, _PROGRESS) if (self.path / n).is_file()), None)
        if known is not None:
            values = _read_record(self.path / known)
            if values.get("info") != info.to_dict():
                raise FileExistsError(
                    f"{self.path} holds other soft labels, or those of other settings; "
                    "give another folder"
                )
            if known == _RECORD:
                self.done, self._closed, self._lock = self._total, True, None
                return
            remove_leftovers(self.path)
            try:
                self.done = int(values["done"])
                epochs = divmod(self.done, len(info.batch_sizes))[0]
                self._sha256 = _checksums(values["epochs_sha256"], epochs)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{self.path / known} is damaged: {error!r}") from error
            self._files = _open(self.path, info, "r+")
            self._arrays = {name: np.asarray(file) for name, file in self._files.items()}
            return
        ours = {LOCK_NAME, *(f"{name}.npy" for name in _layout(info))}
        remove_leftovers(self.path)
        if not {entry.name for entry in self.path.iterdir()} <= ours:
            refuse_non_empty(self.path)
        self._files = _create(self.path, info)
        self._arrays = {name: np.asarray(file) for name, file in self._files.items()}
        self._save_progress()

    def __enter__(self) -> SoftLabelWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        self._lock = None

    def write(self, batch: LabelBatch) -> None:
        """Write the next batch.

        Raises:
            ValueError: its parts do not fit together or the store, a logit is not finite, or the
                store is closed or has all its batches.
        """
        if self._closed or self.done == self._total:
            raise ValueError(
                f"{self.path} is {'closed' if self.done < self._total else 'complete'}"
            )
        epoch, position = divmod(self.done, len(self.info.batch_sizes))
        name = f"epoch {epoch}, batch {position}"
        check_batch(batch, name)
        self._check(batch, name)
        rows = slice(self._starts[position], self._starts[position + 1])
        for key, value in self._codec.encode(batch.logits).items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise ValueError(
                    f"{name}: the teacher's logits are not finite in {self.info.form}: "
                    "it diverged, or they need form float32"
                )
            self._arrays[key][epoch, rows] = value
        views = np.zeros(len(batch), self.info.views_dtype)
        assert batch.index is not None  # _check
        views["image"], views["box"] = batch.index.numpy(), batch.coords.numpy()
        views["flip"] = batch.flip.numpy()
        if batch.mix_index is not None:
            views["partner"] = batch.mix_index.numpy()
        if batch.patch_order is not None:
            views["patches"] = batch.patch_order.numpy()
        self._arrays["views"][epoch, rows] = views
        self._arrays["mixes"][epoch, position] = (
            _KINDS.index(batch.kind),
            batch.mix_lam or 0.0,
            batch.mix_bbox or (0, 0, 0, 0),
        )
        self.done += 1
        if position + 1 == len(self.info.batch_sizes):
            self._end_epoch(epoch)
        elif time.monotonic() - self._saved >= _FLUSH_SECONDS:
            self._save_progress()

    def close(self) -> None:
        """Finish the store, if it is complete; else keep what is there for the next time."""
        if self._closed:
            return
        self._save_progress()
        self._closed = True
        if self.done < self._total:
            self._lock = None
            return
        record: dict[str, Any] = {
            "format": _FORMAT,
            "info": self.info.to_dict(),
            "epochs_sha256": self._sha256,
        }
        record["record_sha256"] = _digest(record)
        write_bytes(self.path / _RECORD, (json.dumps(record, indent=1) + "\n").encode())
        (self.path / _PROGRESS).unlink(missing_ok=True)
        self._lock = None

    def _check(self, batch: LabelBatch, name: str) -> None:
        info = self.info
        position = self.done % len(info.batch_sizes)
        if len(batch) != info.batch_sizes[position] or batch.logits.shape[1] != info.num_classes:
            raise ValueError(
                f"{name}: logits are {tuple(batch.logits.shape)}, the store takes "
                f"({info.batch_sizes[position]}, {info.num_classes})"
            )
        if batch.index is None or int(batch.index.max()) >= 2**31:
            raise ValueError(f"{name}: the images' numbers are missing or too large")
        factor = 0 if batch.patch_order is None else batch.patch_order.shape[2]
        if factor != info.patch_factor:
            raise ValueError(f"{name}: patch_order has {factor} strips, not {info.patch_factor}")
        if info.view_size is not None and max(batch.mix_bbox or (0,)) > info.view_size:
            raise ValueError(
                f"{name}: mix_bbox {batch.mix_bbox} leaves views of {info.view_size} pixels a side"
            )

    def _end_epoch(self, epoch: int) -> None:
        images = np.sort(self._arrays["views"][epoch]["image"])
        if not np.array_equal(images, np.arange(self.info.count)):
            raise ValueError(
                f"epoch {epoch} does not have each of the images 0 to {self.info.count - 1} once"
            )
        self._sha256.append(_epoch_digest(self._arrays, epoch))
        self._save_progress()

    def _save_progress(self) -> None:
        with naming(self.path):
            for file in self._files.values():
                file.flush()
        values: dict[str, Any] = {
            "format": _FORMAT,
            "info": self.info.to_dict(),
            "done": self.done,
            "epochs_sha256": self._sha256,
        }
        values["record_sha256"] = _digest(values)
        write_bytes(self.path / _PROGRESS, json.dumps(values).encode())
        self._saved = time.monotonic()


def labels_digest(labels: Tensor) -> str:
    """SHA-256 of labels in their order, int64 (N,)."""
    return hashlib.sha256(labels.cpu().contiguous().numpy().astype("<i8").tobytes()).hexdigest()


def import_fkd(
    folder: str | Path,
    out: str | Path,
    *,
    distilled: DistilledSet | None = None,
    image_order: Tensor | None = None,
    form: str | None = None,
    sampler_seed: int = SAMPLER_SEED,
    patches_shuffled: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> SoftLabels:
    """Make a store of official files.

    Args:
        folder: holds ``epoch_<e>/batch_<b>.tar``.
        out: a new folder, or one where this was killed.
        distilled: the set that they belong to; with it the store refuses other sets later.
        image_order: int64 (N,), the set's position of each image as the official reader counts
            them (class folders and files sorted as text); None: the set counts them so too.
        form: of the store; None: the files' float16 or float32, which loses nothing.
        sampler_seed: ``--fkd-seed`` of the official scripts; files of 6 elements need it to tell
            which image is which.
        patches_shuffled: whether the labels are of views to which the files' PatchShuffle order was
            applied, which the files do not say: it was where :func:`export_fkd` wrote them of such
            a store, it was not in EDC's own.
        on_progress: called with (batches done, batches in all) after each batch.

    Raises:
        FileNotFoundError: a file is missing.
        FileExistsError: ``out`` holds something else.
        ValueError: a file is damaged or unlike the others, or they are another set's; it is named.
            ``patches_shuffled`` is given for files that hold no order.
    """
    source = FKDFolder.scan(folder)
    if patches_shuffled and source.patch_order is None:
        raise ValueError(
            f"patches_shuffled must be False for {source.path}: its files of {source.elements} "
            "elements hold no PatchShuffle order, which is the eighth"
        )
    if distilled is not None:
        for name, mine, theirs in (
            ("images", source.count, len(distilled)),
            ("classes", source.num_classes, distilled.num_classes),
        ):
            if mine != theirs:
                raise ValueError(f"{source.path} has labels of {mine} {name}, the set has {theirs}")
    if image_order is not None and not torch.equal(
        image_order.sort().values, torch.arange(source.count)
    ):
        raise ValueError(f"image_order must hold each of 0 to {source.count - 1} once")
    factor, dtype = source.patch_order or (0, torch.int64)
    info = StoreInfo(
        epochs=source.epochs,
        batch_sizes=source.batch_sizes,
        num_classes=source.num_classes,
        form=form or str(source.dtype).removeprefix("torch."),
        sampler_seed=sampler_seed if source.elements == 6 else None,
        patch_factor=factor,
        patch_dtype=str(dtype).removeprefix("torch."),
        patches_shuffled=patches_shuffled,
        renumbered=image_order is not None,
        image_size=_size(distilled),
        labels_sha256=None if distilled is None else labels_digest(distilled.labels),
        images_sha256=None if distilled is None else images_digest(distilled),
        class_names=() if distilled is None else tuple(distilled.class_names),
        origin={"format": "FKD", "elements": source.elements},
    )
    orders = sampler_orders(source.count, sampler_seed) if source.elements == 6 else None
    steps = len(source.batch_sizes)
    with SoftLabelWriter(out, info) as writer:
        begin = writer.done
        for epoch in range(source.epochs):
            order = None if orders is None else torch.tensor(next(orders))
            for position in range(steps):
                if epoch * steps + position < begin:
                    continue
                batch = source.read(epoch, position)
                if order is not None:
                    start = position * source.batch_sizes[0]
                    batch = dataclasses.replace(batch, index=order[start : start + len(batch)])
                if image_order is not None and batch.index is not None:
                    if int(batch.index.max()) >= source.count:
                        raise ValueError(f"{source.path} has an image {int(batch.index.max())}")
                    batch = dataclasses.replace(batch, index=image_order[batch.index])
                try:
                    writer.write(batch)
                except ValueError as error:
                    raise ValueError(f"{source.path}: {error}") from error
                if on_progress is not None:
                    on_progress(writer.done, source.epochs * steps)
    return SoftLabels(out)


def export_fkd(
    store: SoftLabels,
    folder: str | Path,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a store as official files: 6 elements where it came from such, else 7 or 8.

    Args:
        store: in any form; the shortened ones give float16 files.
        folder: a path that does not exist yet, or an empty folder; it appears whole.
        on_progress: called with (batches done, batches in all) after each batch.

    Returns:
        The folder.

    Warns:
        UserWarning: the views were shuffled by PatchShuffle (``patches_shuffled``): the files hold
            the order but cannot say that it was applied, so official code shows students other
            views than the labels are of, and :func:`import_fkd` has to be told.

    Raises:
        FileExistsError: ``folder`` is a file or is not empty.
        ValueError: the files would hold numbers of images that were renumbered, or the store is
            damaged.
    """
    info = store.info
    if info.renumbered and info.sampler_seed is None:
        raise ValueError(
            f"{store.path} counts images as its set does, not as the official files that it was "
            "made of: those are the export"
        )
    if info.patches_shuffled:
        warnings.warn(
            f"{folder} loses patches_shuffled of {store.path}: official files hold PatchShuffle's "
            "order but cannot say that it was applied to the views, and official code does not "
            "apply it; import them with patches_shuffled=True (--patches-shuffled)",
            stacklevel=2,
        )
    done, total = 0, info.epochs * len(info.batch_sizes)
    with new_folder(folder) as new:
        for epoch in range(info.epochs):
            store.verify(epoch)
            (new / f"epoch_{epoch}").mkdir()
            for position in range(len(info.batch_sizes)):
                batch = store.batch(epoch, position)
                if info.form not in ("float16", "float32"):
                    batch = dataclasses.replace(batch, logits=batch.logits.half())
                if info.sampler_seed is not None:
                    batch = dataclasses.replace(batch, index=None)
                (new / f"epoch_{epoch}" / f"batch_{position}.tar").write_bytes(pack_fkd(batch))
                done += 1
                if on_progress is not None:
                    on_progress(done, total)
    return Path(folder)


def recode(
    store: SoftLabels,
    out: str | Path,
    form: str,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> SoftLabels:
    """Write a store's labels in another form; see ``docs/softlabels.md`` for what each one costs.

    Args:
        store: in any form; a shortened one does not get back what it lost.
        out: a new folder, or one where this was killed.
        form: ``"float16"``, ``"float32"``, ``"int8"`` or ``"top<k>"``.
        on_progress: called with (batches done, batches in all) after each batch.

    Raises:
        FileExistsError: ``out`` holds something else.
        ValueError: there is no such form, or the store is damaged.
    """
    info = dataclasses.replace(store.info, form=form)
    steps = len(info.batch_sizes)
    with SoftLabelWriter(out, info) as writer:
        verified = -1
        while writer.done < info.epochs * steps:
            epoch, position = divmod(writer.done, steps)
            if epoch != verified:
                store.verify(epoch)
                verified = epoch
            writer.write(store.batch(epoch, position))
            if on_progress is not None:
                on_progress(writer.done, info.epochs * steps)
    return SoftLabels(out)


def _size(distilled: DistilledSet | None) -> tuple[int, int] | None:
    if distilled is None:
        return None
    height, width = distilled.images.shape[-2:]
    return int(height), int(width)


def _read_record(file: Path) -> dict[str, Any]:
    """The values of ``store.json`` or ``progress.json``, if they are what was written."""
    values = read_json(file)
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise ValueError(f"{file} is not the record of a store in format {_FORMAT}")
    if values.pop("record_sha256", None) != _digest(values):
        raise ValueError(f"{file} is damaged or was edited: its SHA-256 is not its own")
    return values


def _checksums(values: Any, epochs: int) -> list[str]:
    if not isinstance(values, list) or len(values) != epochs:
        raise ValueError(f"epochs_sha256 must be a list of {epochs} checksums, got {values!r:.80}")
    return values


def _layout(info: StoreInfo) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Type and shape of every array of a store."""
    lead = (info.epochs, info.count)
    fields = codec_of(info.form, info.num_classes).fields(info.num_classes)
    arrays = {name: (np.dtype(dtype), (*lead, *row)) for name, (dtype, row) in fields.items()}
    arrays["views"] = (info.views_dtype, lead)
    arrays["mixes"] = (_MIXES, (info.epochs, len(info.batch_sizes)))
    return arrays


def _open(folder: Path, info: StoreInfo, mode: Any) -> dict[str, np.memmap[Any, Any]]:
    files = {}
    for name, (dtype, shape) in _layout(info).items():
        file = folder / f"{name}.npy"
        try:
            array = np.lib.format.open_memmap(file, mode=mode)
        except FileNotFoundError:
            raise
        except Exception as error:
            # A header of another kind, a file that was cut short ...: each its own type.
            raise ValueError(f"{file} is damaged: {error}") from error
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(
                f"{file} is damaged: it holds {array.dtype} {array.shape}, "
                f"{_RECORD} says {dtype} {shape}"
            )
        files[name] = array
    return files


def _create(folder: Path, info: StoreInfo) -> dict[str, np.memmap[Any, Any]]:
    files = {}
    for name, (dtype, shape) in _layout(info).items():
        file = folder / f"{name}.npy"
        with naming(file):
            array = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
            # The room is taken now: a full disk met later, in mapped memory, kills the process.
            descriptor = os.open(file, os.O_RDWR)
            try:
                os.posix_fallocate(descriptor, 0, file.stat().st_size)
            finally:
                os.close(descriptor)
        files[name] = array
    return files


def _epoch_digest(arrays: Mapping[str, npt.NDArray[Any]], epoch: int) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name][epoch]).view(np.uint8).data)
    return digest.hexdigest()


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
