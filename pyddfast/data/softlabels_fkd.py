"""The official soft-label files of FKD and its heirs: one ``torch.save`` a batch.

``<folder>/epoch_<e>/batch_<b>.tar`` is a list of 6 elements (SRe2L, CDA, FADRM, D4M, CV-DD, LPLD),
7 (G-VBSM, EDC: the images' numbers too) or 8 (EDC on ImageNet: PatchShuffle's order too); see
:class:`LabelBatch`.  Facts: VILA-Lab/SRe2L ``relabel/generate_soft_label.py`` (8d00cba) and
shaoshitong/EDC ``Branch_full_ImageNet_1k/relabel`` .
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import RandomSampler

from pyddfast.data.atomic import write_bytes
from pyddfast.data.softlabels_batch import LabelBatch, check_batch, is_plain

__all__ = ["SAMPLER_SEED", "FKDFolder", "pack_fkd", "read_fkd", "sampler_orders", "write_fkd"]

SAMPLER_SEED = 42  # the official default of --fkd-seed
_ELEMENTS = (6, 7, 8)
_ZIP = b"PK\x03\x04"
_NUMBERED = re.compile(r"(epoch|batch)_(0|[1-9]\d*)(\.tar)?")

_NUMBERS = ("i4", "i8", "f4", "f8")


class _Type:
    """Stands for ``numpy.dtype`` in a file, whose own would take any state from it."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in _NUMBERS:
            raise ValueError(f"a number must be one of {', '.join(_NUMBERS)}, got {code!r:.80}")
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] != "<":
            raise ValueError(f"numbers must be little-endian, got {state[1]!r:.80}")


def _number(kind: _Type, content: bytes) -> int | float:
    """Stands for the function that makes NumPy's numbers."""
    value = np.frombuffer(content, f"<{kind.code}")
    if len(value) != 1:
        raise ValueError(f"a number of type {kind.code} has {len(content)} bytes")
    number: int | float = value.item()
    return number


# What a file may name beside torch's own list, with the module's names in NumPy 1 and 2.  Nothing
# else than tensors, numbers and lists is ever built, and nothing of NumPy is called.
_ALLOWED: list[Any] = [
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
    (_Type, "numpy.dtype"),
]
# torch keeps its allow-list in one place for all threads.
_lock = threading.Lock()


def read_fkd(file: str | Path) -> LabelBatch:
    """Read one official file; nothing in it is executed.

    It is loaded by ``torch.load(weights_only=True)``, which builds tensors and plain values only,
    with plain numbers for NumPy's for the time of the call.

    Args:
        file: ``batch_<b>.tar``; ``.tar`` is only its name, it is a zip file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, holds something else, or something that is not data.
    """
    path = Path(file)
    content = path.read_bytes()
    if not content.startswith(_ZIP):
        raise ValueError(f"{path} is not a file of torch.save (torch >= 1.6): it is no zip file")
    try:
        with _lock, torch.serialization.safe_globals(_ALLOWED):
            value = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        # Damage surfaces in many types, and torch's text on refused objects is a page long.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{path} cannot be read as soft labels (damaged, or more than tensors and numbers): "
            f"{reason[0][:200]}"
        ) from error
    return _batch(value, path)


def pack_fkd(batch: LabelBatch) -> bytes:
    """The content of an official file.

    The box's corners become plain ints, so that ``torch.load`` reads the file as it is.
    """
    box = None if batch.mix_bbox is None else list(batch.mix_bbox)
    value: list[Any] = [batch.coords, batch.flip, batch.mix_index, batch.mix_lam, box, batch.logits]
    if batch.index is not None:
        value.append(batch.index)
        if batch.patch_order is not None:
            value.append(batch.patch_order)
    elif batch.patch_order is not None:
        raise ValueError("a batch with patch_order needs index: the 8-element form has both")
    buffer = io.BytesIO()
    # A view would be saved with all of the tensor that it looks into.
    torch.save([v.clone() if isinstance(v, Tensor) else v for v in value], buffer)
    return buffer.getvalue()


def write_fkd(batch: LabelBatch, file: str | Path) -> None:
    """Write one official file, whole or not at all.

    Raises:
        ValueError: the batch's parts do not fit together.
    """
    check_batch(batch, file)
    write_bytes(Path(file), pack_fkd(batch))


@dataclass(frozen=True)
class FKDFolder:
    """What the files of a folder have in common.

    Attributes:
        path: holds ``epoch_0``, ``epoch_1`` ...
        epochs: how many.
        batch_sizes: images of each batch, the same in every epoch.
        num_classes: of the logits.
        dtype: of the logits.
        elements: 6, 7 or 8.
        patch_order: factor and dtype of the eighth element, or None.
    """

    path: Path
    epochs: int
    batch_sizes: tuple[int, ...]
    num_classes: int
    dtype: torch.dtype
    elements: int
    patch_order: tuple[int, torch.dtype] | None

    @classmethod
    def scan(cls, folder: str | Path) -> FKDFolder:
        """Look at the folder's names and at its first and last batch.

        Raises:
            FileNotFoundError: there is no folder, or ``epoch_0/batch_0.tar`` is missing.
            ValueError: a number is missing, or a file is not what it should be; it is named.
        """
        path = Path(folder)
        if not path.is_dir():
            raise FileNotFoundError(f"{path} is not a folder")
        epochs = _count(path, "epoch")
        batches = _count(path / "epoch_0", "batch")
        for epoch in range(1, epochs):
            if (count := _count(path / f"epoch_{epoch}", "batch")) > batches:
                raise ValueError(
                    f"{path}/epoch_{epoch} has {count} batches, {path}/epoch_0 has {batches}"
                )
            if count < batches:
                raise FileNotFoundError(f"{path}/epoch_{epoch}/batch_{count}.tar is missing")
        first = read_fkd(path / "epoch_0" / "batch_0.tar")
        last = first if batches == 1 else read_fkd(path / "epoch_0" / f"batch_{batches - 1}.tar")
        order = first.patch_order
        return cls(
            path=path,
            epochs=epochs,
            batch_sizes=(len(first),) * (batches - 1) + (len(last),),
            num_classes=first.logits.shape[1],
            dtype=first.logits.dtype,
            elements=6 + (first.index is not None) + (order is not None),
            patch_order=None if order is None else (order.shape[2], order.dtype),
        )

    @property
    def count(self) -> int:
        """Images of an epoch."""
        return sum(self.batch_sizes)

    def read(self, epoch: int, position: int) -> LabelBatch:
        """One batch, if it is like the others.

        Raises:
            FileNotFoundError: its file is missing.
            ValueError: it is damaged or unlike the others; it is named.
        """
        file = self.path / f"epoch_{epoch}" / f"batch_{position}.tar"
        batch = read_fkd(file)
        order = batch.patch_order
        have = {
            "images": len(batch),
            "classes": batch.logits.shape[1],
            "logits": batch.logits.dtype,
            "elements": 6 + (batch.index is not None) + (order is not None),
            "patch_order": None if order is None else (order.shape[2], order.dtype),
        }
        want = {
            "images": self.batch_sizes[position],
            "classes": self.num_classes,
            "logits": self.dtype,
            "elements": self.elements,
            "patch_order": self.patch_order,
        }
        if differing := [k for k in want if want[k] != have[k]]:
            key = differing[0]
            raise ValueError(f"{file} has {key} {have[key]}, it should have {want[key]}")
        return batch


def sampler_orders(count: int, seed: int = SAMPLER_SEED) -> Iterator[list[int]]:
    """The images' orders, epoch after epoch, that the official scripts draw and do not store.

    One generator goes on from epoch to epoch in torch's ``RandomSampler``.
    """
    sampler = RandomSampler(range(count), generator=torch.Generator().manual_seed(seed))
    while True:
        yield list(sampler)


def _count(folder: Path, kind: str) -> int:
    """How many of ``kind_0``, ``kind_1`` ... a folder holds."""
    names = [_NUMBERED.fullmatch(p.name) for p in folder.iterdir()] if folder.is_dir() else []
    ending = ".tar" if kind == "batch" else ""
    numbers = {int(m[2]) for m in names if m and m[1] == kind and (m[3] or "") == ending}
    for number in range(max(numbers, default=0) + 1):
        if number not in numbers:
            raise FileNotFoundError(f"{folder}/{kind}_{number}{ending} is missing")
    return len(numbers)


def _batch(value: object, path: Path) -> LabelBatch:
    if not isinstance(value, list | tuple) or len(value) not in _ELEMENTS:
        what = f"{len(value)} elements" if isinstance(value, list | tuple) else type(value).__name__
        raise ValueError(f"{path} must hold a list of {_ELEMENTS} elements, got {what}")
    coords, flip, mix_index, lam, box, logits, index, order = (*value, None, None)[:8]
    for position, part in enumerate(value):
        # A view may repeat what is stored, to any size: 2 kB can claim a terabyte.
        if is_plain(part) and part.numel() * part.element_size() > part.untyped_storage().nbytes():
            raise ValueError(
                f"{path}: element {position} claims {part.dtype} {tuple(part.shape)}, more than "
                f"the {part.untyped_storage().nbytes()} bytes that the file holds of it"
            )
    batch = LabelBatch(coords, flip, mix_index, lam, _box(box, path), logits, index, order)
    if len(value) > 6 and index is None:
        raise ValueError(f"{path}: element 6, the images' numbers, is missing")
    check_batch(batch, path)
    return batch


def _box(box: object, path: Path) -> tuple[int, int, int, int] | None:
    if box is None:
        return None
    if not isinstance(box, list | tuple) or len(box) != 4:
        raise ValueError(f"{path}: mix_bbox must be 4 numbers, got {box!r:.80}")
    corners = []
    for value in box:
        if is_plain(value) and value.numel() == 1 and not value.is_floating_point():
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{path}: mix_bbox must be 4 integers, got {box!r:.80}")
        corners.append(value)
    return corners[0], corners[1], corners[2], corners[3]
