"""The result of a distillation or selection: a small set that knows how to be trained on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyddfast._extras import require
from pyddfast.data.atomic import new_folder, refuse_non_empty
from pyddfast.data.datasets import Normalization, Whitened, check_images, check_labels, to_pixels
from pyddfast.data.stored import read_json

__all__ = ["KINDS", "DistilledSet", "export_png"]

# real: whole images of the source; patches: images tiled from crops of the source (RDED);
# synthetic: optimised or generated pixels.
KINDS = ("real", "patches", "synthetic")

_TENSORS = "set.safetensors"
_RECORD = "set.json"
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class DistilledSet:
    """A distilled or selected data set with everything a student's training needs to know.

    Args:
        images: uint8 (N, C, H, W), or float32: what a network takes, normalised or whitened
            already.  Images that gradients made (DC, DM, TM ...) leave the range of bytes.
        labels: Hard labels, int64 (N,), values in [0, num_classes).
        num_classes: Classes of the task; a class may have no image.
        normalization: The normalisation of the source data.
        class_names: One name a class in label order, or empty when unknown.
        factor: Each image is a factor × factor mosaic of patches (RDED, §3.2); 1 elsewhere.
        soft_labels: Stored teacher logits, floating point (N, num_classes), or None.
        kind: ``"real"``, ``"patches"`` or ``"synthetic"``.
        lr: The learning rate that was learned with the images (TM, DATM), or None.
        whitened: The float32 images are ZCA-whitened in place of normalised: students of them are
            measured on images that are whitened likewise.  ``"kip"``: by KIP's whitening.
        meta: Where the set comes from (method, seed, source indices ...); JSON values only.

    Raises:
        TypeError: A tensor has the wrong dtype, or ``meta`` holds something JSON cannot.
        ValueError: Shapes, lengths or values do not fit together.
    """

    images: Tensor
    labels: Tensor
    num_classes: int
    normalization: Normalization
    class_names: tuple[str, ...] = ()
    factor: int = 1
    soft_labels: Tensor | None = None
    kind: str = "real"
    meta: Mapping[str, Any] = field(default_factory=dict)
    lr: float | None = None
    whitened: Whitened = False

    def __post_init__(self) -> None:
        check_images("images", self.images, self.normalization, whitened=self.whitened)
        for name, value in (("num_classes", self.num_classes), ("factor", self.factor)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {value!r}")
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {self.num_classes}")
        check_labels("labels", self.labels, len(self.images), self.num_classes)
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(
                f"class_names has {len(self.class_names)} names for {self.num_classes} classes"
            )
        if self.factor < 1:
            raise ValueError(f"factor must be at least 1, got {self.factor}")
        if min(self.images.shape[2:]) < self.factor:
            raise ValueError(
                f"factor {self.factor} is more than the image size {tuple(self.images.shape[2:])}"
            )
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {self.kind!r}")
        if self.lr is not None and not (isinstance(self.lr, float) and 0 < self.lr < math.inf):
            raise ValueError(f"lr must be a positive float, got {self.lr!r}")
        if self.soft_labels is not None:
            _check_soft_labels(self.soft_labels, len(self.images), self.num_classes)
        try:
            json.dumps(self.meta, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TypeError(f"meta must hold JSON values only: {error}") from error

    @property
    def class_counts(self) -> Tensor:
        """Images of each class, int64 (num_classes,)."""
        return torch.bincount(self.labels, minlength=self.num_classes)

    @property
    def ipc(self) -> int:
        """Images per class: the mean over classes, rounded, at least 1.

        Exact for a balanced set.  A selection without class balance has the budget of this many
        images per class; ``class_counts`` tells the numbers.
        """
        return max(1, round(len(self) / self.num_classes))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> Tensor:
        """Return image ``index`` (C, H, W)."""
        return self.images[index]

    def pixels(self) -> Tensor:
        """The images as uint8 (N, C, H, W), to look at: float32 ones are rounded and cut off.

        Raises:
            ValueError: The images are whitened; the transformation that did it has the inverse.
        """
        if self.whitened:
            raise ValueError("whitened images have no pixels: invert the whitening first")
        return to_pixels(self.images, self.normalization)

    def save(self, folder: str | Path) -> Path:
        """Write the set to a new folder: ``set.safetensors`` and ``set.json``.

        The folder appears whole, by one rename; nothing is overwritten.

        Args:
            folder: A path that does not exist yet, or an empty folder.

        Returns:
            The folder.

        Raises:
            FileExistsError: ``folder`` is a file or is not empty.
            ModuleNotFoundError: safetensors, of the ``methods`` extra, is not installed.
        """
        path = refuse_non_empty(folder)
        safetensors = require("safetensors.torch", "methods")
        tensors = {"images": self.images, "labels": self.labels}
        if self.soft_labels is not None:
            tensors["soft_labels"] = self.soft_labels
        content: bytes = safetensors.save(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        )
        record: dict[str, Any] = {
            "format": _FORMAT,
            "sha256": hashlib.sha256(content).hexdigest(),
            "count": len(self),
            "num_classes": self.num_classes,
            "class_names": list(self.class_names),
            "normalization": {
                "mean": list(self.normalization.mean),
                "std": list(self.normalization.std),
            },
            "factor": self.factor,
            "kind": self.kind,
            "meta": self.meta,
        }
        if self.lr is not None:
            record["lr"] = self.lr
        if self.whitened:
            record["whitened"] = self.whitened
        record["record_sha256"] = _record_digest(record)
        with new_folder(path) as new:
            (new / _TENSORS).write_bytes(content)
            (new / _RECORD).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
        return path

    @classmethod
    def load(cls, folder: str | Path) -> DistilledSet:
        """Read a folder that ``save`` wrote.

        Raises:
            FileNotFoundError: The folder or one of its two files is missing.
            ValueError: A file is damaged, or the two do not belong together; it names the file.
            ModuleNotFoundError: safetensors, of the ``methods`` extra, is not installed.
        """
        path = Path(folder)
        for file in (path / _RECORD, path / _TENSORS):
            if not file.is_file():
                raise FileNotFoundError(f"{file} is missing; a distilled set needs it")
        record = _read_record(path / _RECORD)
        content = (path / _TENSORS).read_bytes()
        if hashlib.sha256(content).hexdigest() != record["sha256"]:
            raise ValueError(
                f"{path / _TENSORS} is damaged or belongs to another set: "
                f"its SHA-256 is not the one in {path / _RECORD}"
            )
        safetensors = require("safetensors.torch", "methods")
        try:
            tensors: dict[str, Tensor] = safetensors.load(content)
            loaded = cls(
                images=tensors["images"],
                labels=tensors["labels"],
                num_classes=record["num_classes"],
                normalization=Normalization(
                    mean=tuple(record["normalization"]["mean"]),
                    std=tuple(record["normalization"]["std"]),
                ),
                class_names=tuple(record["class_names"]),
                factor=record["factor"],
                soft_labels=tensors.get("soft_labels"),
                kind=record["kind"],
                meta=record["meta"],
                lr=record.get("lr"),
                whitened=record.get("whitened", False),
            )
        except Exception as error:
            # safetensors raises its own exception type; every cause here is an unfit pair of files.
            raise ValueError(f"{path} does not hold a valid distilled set: {error!r}") from error
        if len(loaded) != record["count"]:
            raise ValueError(
                f"{path / _TENSORS} holds {len(loaded)} images, "
                f"{path / _RECORD} says {record['count']}"
            )
        return loaded


def export_png(distilled: DistilledSet, folder: str | Path) -> Path:
    """Write every image as a PNG: ``<label>/<position>.png``, five digits each.

    Folders named by label keep the label order when an image-folder reader sorts them.  A class
    without images gets no folder.

    Args:
        distilled: A set with 1 (grey) or 3 (RGB) channels.
        folder: A path that does not exist yet, or an empty folder.

    Returns:
        The folder, which appears whole by one rename.

    Raises:
        FileExistsError: ``folder`` is a file or is not empty.
        ValueError: The images have neither 1 nor 3 channels.
        ModuleNotFoundError: Pillow, of the ``methods`` extra, is not installed.
    """
    path = refuse_non_empty(folder)
    channels = distilled.images.shape[1]
    if channels not in (1, 3):
        raise ValueError(f"a PNG needs 1 or 3 channels, the images have {channels}")
    image_module = require("PIL.Image", "methods")
    pixels = distilled.pixels().cpu().permute(0, 2, 3, 1).contiguous().numpy()
    with new_folder(path) as new:
        for position, label in enumerate(distilled.labels.tolist()):
            target = new / f"{label:05d}" / f"{position:05d}.png"
            target.parent.mkdir(exist_ok=True)
            image = pixels[position, :, :, 0] if channels == 1 else pixels[position]
            image_module.fromarray(image).save(target)
    return path


def _check_soft_labels(soft_labels: Tensor, count: int, num_classes: int) -> None:
    if not soft_labels.dtype.is_floating_point:
        raise TypeError(f"soft_labels must be floating point, got {soft_labels.dtype}")
    if soft_labels.shape != (count, num_classes):
        raise ValueError(
            f"soft_labels must have shape ({count}, {num_classes}), got {tuple(soft_labels.shape)}"
        )
    if not bool(soft_labels.isfinite().all()):
        raise ValueError("soft_labels must be finite; some values are NaN or infinite")


def _record_digest(record: dict[str, Any]) -> str:
    # Through JSON and back, so that tuples and integer keys count as what the file will hold.
    plain = json.loads(json.dumps(record))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _read_record(path: Path) -> dict[str, Any]:
    record = read_json(path)
    needed = {
        "format", "sha256", "count", "num_classes", "class_names",
        "normalization", "factor", "kind", "meta", "record_sha256",
    }  # fmt: skip
    if not isinstance(record, dict) or "format" not in record:
        raise ValueError(f"{path} is not the record of a distilled set")
    if record["format"] != _FORMAT:
        raise ValueError(f"{path} has format {record['format']!r}; this version reads {_FORMAT}")
    if missing := sorted(needed - record.keys()):
        raise ValueError(f"{path} lacks the fields {missing}")
    if record.pop("record_sha256") != _record_digest(record):
        raise ValueError(f"{path} is damaged or was edited: its SHA-256 is not the one it states")
    return record
