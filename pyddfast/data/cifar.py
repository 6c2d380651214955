"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), read from the official archives or their folders.

The python version's files are pickles.  They are read by an unpickler that knows the few names
which these files contain and builds inert objects for them, so that no file can run anything.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pyddfast.data.datasets import ImageDataset, Normalization

__all__ = ["CIFAR10_NORMALIZATION", "CIFAR100_NORMALIZATION", "read_cifar"]

Bytes = npt.NDArray[np.uint8]

# The values of the DC/DSA/DM code (VICO-UoE DatasetCondensation, utils.py), so that numbers
# compare.  CIFAR-10's std is the mean of the images' own; over all pixels it is about 0.25.  MTT,
# TESLA, DATM and DD-Ranking normalise CIFAR-100 by CIFAR-10's values.
CIFAR10_NORMALIZATION = Normalization(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
CIFAR100_NORMALIZATION = Normalization(mean=(0.5071, 0.4866, 0.4409), std=(0.2673, 0.2564, 0.2762))

_IMAGE = (3, 32, 32)
_PIXELS = 3 * 32 * 32  # a row: red plane, green plane, blue plane


@dataclass(frozen=True)
class _Version:
    """One of the two forms in which a set is published."""

    archive: str
    md5: str  # as https://www.cs.toronto.edu/~kriz/cifar.html states it
    folder: str  # inside the archive
    files: dict[str, tuple[str, ...]]  # of each split
    names_file: str
    labels_key: str = ""  # python version: keys of the dictionaries
    names_key: str = ""
    label_bytes: int = 0  # binary version: bytes before the pixels; the last one is the label

    @property
    def is_binary(self) -> bool:
        return self.label_bytes > 0


_TRAIN_10 = tuple(f"data_batch_{number}" for number in range(1, 6))
_VERSIONS = {
    "cifar10": (
        _Version(
            archive="cifar-10-python.tar.gz",
            md5="c58f30108f718f92721af3b95e74349a",
            folder="cifar-10-batches-py",
            files={"train": _TRAIN_10, "test": ("test_batch",)},
            names_file="batches.meta",
            labels_key="labels",
            names_key="label_names",
        ),
        _Version(
            archive="cifar-10-binary.tar.gz",
            md5="c32a1d4ab5d03f1284b67883e8d87530",
            folder="cifar-10-batches-bin",
            files={
                "train": tuple(f"{name}.bin" for name in _TRAIN_10),
                "test": ("test_batch.bin",),
            },
            names_file="batches.meta.txt",
            label_bytes=1,
        ),
    ),
    "cifar100": (
        _Version(
            archive="cifar-100-python.tar.gz",
            md5="eb9058c3a382ffc7106e4002c42a8d85",
            folder="cifar-100-python",
            files={"train": ("train",), "test": ("test",)},
            names_file="meta",
            labels_key="fine_labels",
            names_key="fine_label_names",
        ),
        _Version(
            archive="cifar-100-binary.tar.gz",
            md5="03b5dce01913d631647c71ecec9e9cb8",
            folder="cifar-100-binary",
            files={"train": ("train.bin",), "test": ("test.bin",)},
            names_file="fine_label_names.txt",
            label_bytes=2,  # the coarse label comes first
        ),
    ),
}
# Images of a split.  A binary file cut between two records shows in nothing else.
_COUNTS = {"train": 50_000, "test": 10_000}
_CLASSES = {"cifar10": 10, "cifar100": 100}
_NORMALIZATIONS = {"cifar10": CIFAR10_NORMALIZATION, "cifar100": CIFAR100_NORMALIZATION}


def read_cifar(root: str | Path, split: str, *, name: str) -> ImageDataset:
    """Read one split of CIFAR-10 or CIFAR-100, whose labels are the fine ones.

    Args:
        root: An official ``.tar.gz`` (python or binary version), its extracted folder, or a folder
            that holds one of these.  Extracted folders are taken before archives.
        split: ``"train"`` or ``"test"``.
        name: ``"cifar10"`` or ``"cifar100"``.

    Returns:
        uint8 (50,000 or 10,000, 3, 32, 32) images with int64 labels, in file order.

    Raises:
        FileNotFoundError: Nothing of the set is in ``root``, or one of its files is missing.
        ValueError: An archive's MD5 is not the official one, a file is damaged or not of the
            format, shapes or counts are wrong, or a label is out of range.  The message names the
            file.
    """
    version, place, read = _locate(Path(root), name)
    images, labels = [], []
    for file in version.files[split]:
        where = f"{place}/{file}"
        pixels, classes = (
            _read_binary(read(file), where, version)
            if version.is_binary
            else _read_batch(read(file), where, version)
        )
        if len(classes) and not 0 <= classes.min() <= classes.max() < _CLASSES[name]:
            position = int(((classes < 0) | (classes >= _CLASSES[name])).argmax())
            raise ValueError(
                f"{where} has the label {classes[position]} at position {position}; "
                f"{name} has the labels 0 to {_CLASSES[name] - 1}"
            )
        images.append(pixels)
        labels.append(classes)
    count = sum(map(len, labels))
    if count != _COUNTS[split]:
        listed = ", ".join(version.files[split])
        raise ValueError(
            f"{place} has {count} images in {listed}; {name} has {_COUNTS[split]} in its {split} "
            "split"
        )
    class_names = _read_names(read(version.names_file), f"{place}/{version.names_file}", version)
    if len(class_names) != _CLASSES[name]:
        raise ValueError(
            f"{place}/{version.names_file} has {len(class_names)} class names, "
            f"{name} has {_CLASSES[name]} classes"
        )
    return ImageDataset(
        images=torch.from_numpy(np.concatenate(images).reshape(-1, *_IMAGE)),
        labels=torch.from_numpy(np.concatenate(labels)),
        class_names=class_names,
        normalization=_NORMALIZATIONS[name],
        name=name,
        split=split,
    )


def _locate(root: Path, name: str) -> tuple[_Version, str, Callable[[str], bytes]]:
    """Find the set: its version, its name for messages, and a reader of its files."""
    versions = _VERSIONS[name]
    for version in versions:
        for folder in (root, root / version.folder):
            if (folder / version.names_file).is_file():
                return version, str(folder), lambda file, folder=folder: _file(folder / file)
    for version in versions:
        for path in (root, root / version.archive):
            if path.name == version.archive and path.is_file():
                return version, str(path), _archive(path, version)
    wanted = " or ".join(f"{version.folder}/, {version.archive}" for version in versions)
    raise FileNotFoundError(f"{root} neither is nor holds {wanted}")


def _file(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    return path.read_bytes()


def _archive(path: Path, version: _Version) -> Callable[[str], bytes]:
    content = path.read_bytes()
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != version.md5:
        raise ValueError(
            f"{path} is incomplete or not the official archive: its MD5 is {md5}, not {version.md5}"
        )
    wanted = {version.names_file, *(file for files in version.files.values() for file in files)}
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            for member in archive:  # nothing is written to disk
                folder, _, file = member.name.rpartition("/")
                if folder == version.folder and file in wanted:
                    opened = archive.extractfile(member)
                    if opened is not None:
                        members[file] = opened.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is not a complete tar.gz file: {error}") from error

    def read(file: str) -> bytes:
        if file not in members:
            raise FileNotFoundError(f"{path} holds no {version.folder}/{file}")
        return members[file]

    return read


def _read_binary(content: bytes, where: str, version: _Version) -> tuple[Bytes, npt.NDArray[Any]]:
    record = version.label_bytes + _PIXELS
    if len(content) % record:
        raise ValueError(
            f"{where} is truncated: {len(content)} bytes are not a multiple of its "
            f"records' {record}"
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
    labels = records[:, version.label_bytes - 1].astype(np.int64)
    return records[:, version.label_bytes :], labels


def _read_batch(content: bytes, where: str, version: _Version) -> tuple[Bytes, npt.NDArray[Any]]:
    batch = _unpickle(content, where)
    labels, pixels = batch.get(version.labels_key), batch.get("data")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise ValueError(f"{where} has no list of integers {version.labels_key!r}")
    for position, label in enumerate(labels):
        if abs(label) >= 2**63:  # beyond int64; the others are checked with their range
            raise ValueError(f"{where} has the label {label} at position {position}: no class")
    if not isinstance(pixels, np.ndarray) or pixels.shape != (len(labels), _PIXELS):
        got = pixels.shape if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise ValueError(
            f"{where} must hold uint8 'data' of shape ({len(labels)}, {_PIXELS}), one row for each "
            f"of its {version.labels_key}, got {got}"
        )
    return pixels, np.array(labels, dtype=np.int64)


def _read_names(content: bytes, where: str, version: _Version) -> tuple[str, ...]:
    if version.is_binary:
        return tuple(content.decode("latin1").split())
    listed = _unpickle(content, where).get(version.names_key)
    if not isinstance(listed, list):
        raise ValueError(f"{where} has no list {version.names_key!r}")
    return tuple(_text(entry) for entry in listed)


def _text(value: object) -> str:
    # Python 2's strings arrive as bytes.
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _unpickle(content: bytes, where: str) -> dict[str, Any]:
    """Read a pickled dictionary of lists, strings, numbers and uint8 arrays; run nothing.

    Raises:
        ValueError: The content is damaged, refers to anything but numpy's arrays, or is no
            dictionary.
    """

    # Names of this call alone: whatever a file does to them ends with it.
    class Dtype:
        code: object = None

        def __init__(self, code: object = None, *_flags: object) -> None:
            self.code = code

        def __setstate__(self, state: object) -> None:
            """Byte order and the like; a uint8 has none."""

    class Array:
        state: object = None

        def __setstate__(self, state: object) -> None:
            self.state = state

    def reconstruct(*_arguments: object) -> Array:
        return Array()

    def encode(text: object, _encoding: object = None) -> bytes:
        # How protocol 2 of Python 3 writes bytes.
        if not isinstance(text, str):
            raise pickle.UnpicklingError("_codecs.encode of something that is no text")
        return text.encode("latin1")

    known = {
        "numpy.core.multiarray._reconstruct": reconstruct,
        "numpy._core.multiarray._reconstruct": reconstruct,  # numpy 2
        "numpy.ndarray": Array,
        "numpy.dtype": Dtype,
        "_codecs.encode": encode,
    }

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if f"{module}.{name}" not in known:
                raise pickle.UnpicklingError(f"it refers to {module}.{name}")
            return known[f"{module}.{name}"]

    def plain(value: object) -> object:
        if not isinstance(value, Array):
            return value
        if not isinstance(value.state, tuple) or len(value.state) != 5:
            raise ValueError("an array without its content")
        _, shape, dtype, fortran, raw = value.state
        if not isinstance(dtype, Dtype) or _text(dtype.code) not in ("u1", "|u1"):
            code = _text(dtype.code) if isinstance(dtype, Dtype) else type(dtype).__name__
            raise ValueError(f"an array of type {code}, uint8 expected")
        array = np.frombuffer(raw, dtype=np.uint8)
        return array.reshape(shape, order="F" if fortran else "C")

    try:
        loaded = Reader(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(loaded, dict):
            raise ValueError(f"a {type(loaded).__name__}, dict expected")
        return {_text(key): plain(value) for key, value in loaded.items()}
    except Exception as error:
        # A damaged pickle fails in any type (EOFError, KeyError, struct.error, MemoryError ...).
        raise ValueError(f"{where} is not the expected pickle: {error}") from error
