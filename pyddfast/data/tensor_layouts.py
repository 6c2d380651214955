"""Distilled sets as the small-scale codebases store them: PyTorch files of tensors, KIP's arrays.

These files carry neither the normalisation nor, mostly, the learned rate, and whether images are
whitened is known by their names at best; a :class:`DistilledSet` carries all of it.  Nothing in a
file is executed: ``weights_only``, with numpy's numbers allowed, which DC's, DSA's and DM's files
hold among their accuracies.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from pyddfast.data.atomic import new_folder, refuse_non_empty, write_bytes
from pyddfast.data.cifar import CIFAR10_NORMALIZATION, CIFAR100_NORMALIZATION
from pyddfast.data.datasets import (
    IMAGENET_NORMALIZATION,
    ImageDataset,
    Normalization,
    Whitened,
    describe_whitening,
    network_input,
)
from pyddfast.data.distilled import DistilledSet
from pyddfast.data.fashion_mnist import FASHION_MNIST_NORMALIZATION
from pyddfast.data.kip import kip_bytes, read_kip

__all__ = [
    "TensorLayout",
    "codebase_normalization",
    "read_dcbench",
    "read_tensor_layout",
    "read_vico_tiny_imagenet",
    "write_tensor_layout",
]

# vico: DC, DSA, DM and DC-BENCH; datm: DATM; mtt: MTT and TESLA; ddranking: DD-Ranking.
TensorLayout: TypeAlias = Literal["vico", "mtt", "datm", "ddranking", "kip"]

# What the codebases normalise by; MTT and its descendants take CIFAR-10's numbers for CIFAR-100.
_BY_DATA = {
    "mnist": Normalization((0.1307,), (0.3081,)),
    "fashion-mnist": FASHION_MNIST_NORMALIZATION,
    "svhn": Normalization((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "cifar10": CIFAR10_NORMALIZATION,
    "cifar100": CIFAR100_NORMALIZATION,
    "tiny-imagenet": IMAGENET_NORMALIZATION,
}
# DC-BENCH's folders.
_DCBENCH = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "tiny-imagenet": "tinyimagenet"}
_PARTS = 5  # files of Tiny-ImageNet's IPC 50 there


def codebase_normalization(layout: TensorLayout, data: str) -> Normalization:
    """The normalisation that a codebase applies to a data set.

    Args:
        layout: Of which codebase.
        data: ``"mnist"``, ``"fashion-mnist"``, ``"svhn"``, ``"cifar10"``, ``"cifar100"`` or
            ``"tiny-imagenet"``.

    Raises:
        ValueError: Unknown layout or data set.
    """
    _check_layout(layout)
    if data not in _BY_DATA:
        raise ValueError(f"data must be one of {', '.join(_BY_DATA)}, got {data!r}")
    if data == "cifar100" and layout != "vico":
        return CIFAR10_NORMALIZATION
    return _BY_DATA[data]


def read_tensor_layout(
    path: str | Path,
    layout: TensorLayout,
    *,
    num_classes: int,
    normalization: Normalization,
    class_names: Sequence[str] = (),
    method: str | None = None,
    iteration: str | int = "best",
    experiment: int = -1,
    lr: float | None = None,
    whitened: Whitened | None = None,
) -> DistilledSet:
    """Read the set that an official code wrote.

    Args:
        path: ``"vico"``: the file ``res_METHOD_DATA_MODEL_IPCipc.pt``; ``"kip"``: the file
            ``kip_DATA_MODEL_ssizeN_....npz``; others: the folder with
            ``images_best.pt`` (``"datm"``: it or the folder with ``Normal`` in it), or
            ``images.pt`` (``"ddranking"``).
        layout: Whose layout.
        num_classes: Classes of the task.
        normalization: What the images were normalised by; :func:`codebase_normalization` knows the
            official values.  The test images of students are normalised by it too.
        class_names: Names in label order, or empty.
        method: For the record, and for ``protocol="official"``; None: that of the file's name, or
            ``"tm"``, ``"datm"``, ``"kip"``.
        iteration: Which files of ``"mtt"`` and ``"datm"``: ``"best"`` or a number.
        experiment: Which one of the experiments in a ``"vico"`` file; -1: the last, as DC-BENCH.
        lr: The learned learning rate where the layout has no file for it (``"mtt"``).
        whitened: Whether the images are ZCA-whitened; None: DATM's are, MTT's where a file
            ``images_zca_*`` lies beside them (the pictures of whitened ones), KIP's by KIP's
            whitening, no others.

    Returns:
        A set of kind ``"synthetic"`` of float32 images.  Labels with a value a class become
        ``soft_labels``, and the hard label is the image's place, ``ipc`` to a class.

    Raises:
        FileNotFoundError: There is no such file; the message names it.
        ValueError: A file is damaged, or not what the layout says.
    """
    _check_layout(layout)
    path = Path(path)
    if layout == "vico":
        images, labels = _vico(path, experiment)
        given = path.stem.split("_")
        method = method or (given[1].lower() if given[0] == "res" and len(given) > 1 else None)
    elif layout == "kip":
        if whitened not in (None, "kip"):
            raise ValueError(f"whitened of the layout 'kip' is 'kip', got {whitened!r}")
        images, labels = read_kip(path, num_classes)
        method, whitened = method or "kip", "kip"
    else:
        folder = path / "Normal" if layout == "datm" and (path / "Normal").is_dir() else path
        suffix = "" if layout == "ddranking" else f"_{iteration}"
        images = _tensor(folder / f"images{suffix}.pt")
        labels = _tensor(folder / f"labels{suffix}.pt")
        file = folder / f"lr{suffix}.pt"
        if lr is None and layout != "mtt" and (layout == "datm" or file.is_file()):
            lr = _rate(file)
        if whitened is None:
            whitened = layout == "datm" or (folder / f"images_zca{suffix}.pt").is_file()
        method = method or {"mtt": "tm", "datm": "datm"}.get(layout)
    if layout == "mtt" and lr is None:
        warnings.warn(
            f"{path} comes without the learned learning rate, which this codebase does not save: "
            "give lr, or students take another one than it was published with",
            stacklevel=2,
        )
    return _made(
        path, images, labels, num_classes, normalization, class_names, lr, whitened or False,
        {"method": method, "layout": layout, "file": path.name},
    )  # fmt: skip


def write_tensor_layout(
    distilled: DistilledSet, path: str | Path, layout: TensorLayout, *, iteration: str = "best"
) -> Path:
    """Write a set as an official code does, for its evaluation.

    Args:
        distilled: uint8 images are normalised; float32 ones are written as they are.
        path: ``"vico"``, ``"kip"``: a new file; others: a folder that does not exist or is empty.
        layout: Whose layout.
        iteration: In the names of ``"mtt"`` and ``"datm"``.

    Returns:
        The path.

    Raises:
        FileExistsError: It is there already.
        ValueError: ``"datm"`` without soft labels or learning rate; soft labels of classes with
            unequal numbers of images, as an image's class is its place beside soft labels (images
            are written class after class then); whitened images for ``"vico"``, whose evaluation
            whitens nothing; others than KIP's whitening for ``"kip"``, or its for another layout.

    Warns:
        UserWarning: Soft labels are left out (``"vico"``, ``"mtt"``, ``"kip"``: hard ones), or the
            files do not tell that the images are whitened (``"datm"``: that they are not), which
            :func:`read_tensor_layout` then needs to be told.
    """
    _check_layout(layout)
    path = Path(path)
    if distilled.soft_labels is not None and layout in ("vico", "mtt", "kip"):
        warnings.warn(
            f"the layout {layout!r} holds hard labels: the set's soft_labels are left out",
            stacklevel=2,
        )
    elif distilled.soft_labels is not None:
        distilled = _in_class_order(distilled, distilled.soft_labels)
    if (distilled.whitened == "kip") != (layout == "kip") or (
        distilled.whitened and layout == "vico"
    ):
        wanted = {"vico": "normalised", "kip": describe_whitening("kip")}.get(
            layout, "normalised or ZCA-whitened"
        )
        raise ValueError(
            f"images of the layout {layout!r} are {wanted}, these are "
            f"{describe_whitening(distilled.whitened)}"
        )
    images = network_input(distilled.images, distilled.normalization).cpu().contiguous()
    if layout in ("vico", "kip"):
        if path.exists():
            raise FileExistsError(f"{path} exists")
        path.parent.mkdir(parents=True, exist_ok=True)
        labels = distilled.labels.cpu()
        if layout == "kip":
            write_bytes(path, kip_bytes(images, labels, distilled.num_classes))
        else:
            write_bytes(path, _bytes({"data": [[images, labels]], "accs_all_exps": {}}))
        return path
    tensors: dict[str, Tensor] = {"images": images, "labels": distilled.labels.cpu()}
    if layout == "datm" and (distilled.soft_labels is None or distilled.lr is None):
        raise ValueError("the layout 'datm' needs soft_labels and lr, which the set lacks")
    if layout in ("datm", "ddranking"):
        if distilled.soft_labels is not None:
            tensors["labels"] = distilled.soft_labels.float().cpu().contiguous()
        if distilled.lr is not None:
            tensors["lr"] = torch.tensor(distilled.lr)
    if distilled.whitened != (layout == "datm"):
        warnings.warn(
            f"files of the layout {layout!r} do not tell whether images are whitened: read these "
            f"with whitened={distilled.whitened}",
            stacklevel=2,
        )
    if Path(f"_{iteration}").name != f"_{iteration}":
        raise ValueError(f"iteration is part of a file's name, got {iteration!r}")
    suffix = "" if layout == "ddranking" else f"_{iteration}"
    with new_folder(refuse_non_empty(path)) as new:
        inner = new / "Normal" if layout == "datm" else new
        inner.mkdir(exist_ok=True)
        for name, tensor in tensors.items():
            (inner / f"{name}{suffix}.pt").write_bytes(_bytes(tensor))
    return path


def read_dcbench(
    root: str | Path,
    method: Literal["dc", "dsa", "dm", "tm", "random", "kmeans", "kip"],
    data: Literal["cifar10", "cifar100", "tiny-imagenet"],
    ipc: int,
    *,
    lr: float | None = None,
    whitened: bool | None = None,
) -> DistilledSet:
    """A set of DC-BENCH's tree ``distilled_results/METHOD/DATA/IPCn``.

    Images are normalised as DC-BENCH normalises; its TM sets as MTT does, the settings that were
    whitened among them (CIFAR-10 at IPC 1 and 10, CIFAR-100 at IPC 1 and 50).

    Args:
        root: The folder ``distilled_results``.
        method: Whose set.
        data: Of which data set.
        ipc: Images a class.
        lr: Of TM: its learned learning rate, which is not stored.
        whitened: Of TM; None: what the published settings say.

    Raises:
        FileNotFoundError: There is no such file; the message names it.
        ValueError: A file is damaged, or an argument unknown.
    """
    if data not in _DCBENCH:
        raise ValueError(f"data must be one of {', '.join(_DCBENCH)}, got {data!r}")
    known = ("dc", "dsa", "dm", "tm", "random", "kmeans", "kip")
    if method not in known:
        raise ValueError(f"method must be one of {', '.join(known)}, got {method!r}")
    name = {"random": "Random", "kmeans": "Kmeans"}.get(method, method.upper())
    folder = Path(root) / name / _DCBENCH[data] / f"IPC{ipc}"
    classes = {"cifar10": 10, "cifar100": 100, "tiny-imagenet": 200}[data]
    if method != "tm":
        kind = ".npz" if method == "kip" else ".pt"
        files = sorted(folder.glob(f"*{kind}"))
        if len(files) != 1:
            raise FileNotFoundError(f"{folder} must hold one {kind} file, it holds {len(files)}")
        images, labels = read_kip(files[0], classes) if method == "kip" else _vico(files[0], -1)
        return _made(
            files[0], images, labels, classes, codebase_normalization("vico", data), (), None,
            "kip" if method == "kip" else False,
            {"method": method, "layout": "dcbench", "file": files[0].name},
        )  # fmt: skip
    if whitened is None:
        whitened = (data, ipc) in {
            ("cifar10", 1), ("cifar10", 10), ("cifar100", 1), ("cifar100", 50)
        }  # fmt: skip
    split = data == "tiny-imagenet" and ipc == 50
    ends = [f"best_{part}" for part in range(_PARTS)] if split else ["best"]
    images = torch.cat([_tensor(folder / f"images_{end}.pt") for end in ends])
    labels = torch.cat([_tensor(folder / f"labels_{end}.pt") for end in ends])
    return _made(
        folder, images, labels, classes,
        codebase_normalization("mtt", data), (), lr, whitened,
        {"method": "tm", "layout": "dcbench", "file": folder.name},
    )  # fmt: skip


def read_vico_tiny_imagenet(path: str | Path) -> tuple[ImageDataset, ImageDataset]:
    """VICO's and DC-BENCH's ``tinyimagenet.pt``: Tiny-ImageNet as bytes in one file.

    Returns:
        Training and validation images (the split ``"test"`` here), normalised as ImageNet.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is damaged or another file.
    """
    path = Path(path)
    content = _load(path)
    names = ("classes", "images_train", "labels_train", "images_val", "labels_val")
    if not isinstance(content, dict) or any(name not in content for name in names):
        raise ValueError(f"{path} is not a dictionary of {', '.join(names)}")
    try:
        train, test = (
            ImageDataset(
                content[f"images_{part}"],
                torch.as_tensor(content[f"labels_{part}"]).long(),
                tuple(str(name) for name in content["classes"]),
                IMAGENET_NORMALIZATION,
                "tiny-imagenet",
                split,
            )
            for part, split in (("train", "train"), ("val", "test"))
        )
    except Exception as error:
        # Not a tensor, another type or shape: each its own error.
        raise ValueError(f"{path} does not hold Tiny-ImageNet: {error}") from error
    return train, test


def _check_layout(layout: object) -> None:
    if layout not in get_args(TensorLayout):
        raise ValueError(f"layout must be one of {get_args(TensorLayout)}, got {layout!r}")


def _vico(path: Path, experiment: int) -> tuple[Tensor, Tensor]:
    """Images and labels of one experiment."""
    content = _load(path)
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, list) or not data:
        raise ValueError(f"{path} holds no list 'data' of experiments")
    try:
        images, labels = data[experiment]
    except (IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} holds {len(data)} experiments of images and labels, asked for {experiment}"
        ) from error
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
        raise ValueError(f"{path} holds no tensors in experiment {experiment}")
    return _plain(path, images), _plain(path, labels)


def _made(
    path: Path,
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    normalization: Normalization,
    class_names: Sequence[str],
    lr: float | None,
    whitened: Whitened,
    meta: dict[str, Any],
) -> DistilledSet:
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if not images.is_floating_point() or not images.ndim or not len(images):
        raise ValueError(
            f"{path} must hold images as a network takes them, floating point and normalised, got "
            f"{len(images) if images.ndim else 0} of {images.dtype}"
        )
    soft = None
    if labels.ndim == 2:
        soft, count = labels.float().contiguous(), len(labels)
        if count % num_classes:
            raise ValueError(f"{path}: {count} images are not as many for each of {num_classes}")
        labels = torch.arange(num_classes).repeat_interleave(count // num_classes)
    elif labels.dtype.is_floating_point:
        if not torch.equal(labels, labels.round()):
            raise ValueError(f"{path}: labels must be whole numbers")
        labels = labels.long()
    elif labels.dtype != torch.bool:
        labels = labels.long()
    try:
        return DistilledSet(
            images=images.float().contiguous(),
            labels=labels,
            num_classes=num_classes,
            normalization=normalization,
            class_names=tuple(class_names),
            soft_labels=soft,
            kind="synthetic",
            meta=meta,
            lr=lr,
            whitened=whitened,
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} does not fit the task: {error}") from error


def _tensor(path: Path) -> Tensor:
    content = _load(path)
    if not isinstance(content, Tensor):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a tensor")
    return _plain(path, content)


def _plain(path: Path, tensor: Tensor) -> Tensor:
    """The tensor, which must be of real numbers, dense and in memory."""
    if tensor.layout != torch.strided or not tensor.is_cpu or tensor.dtype.is_complex:
        raise ValueError(
            f"{path} holds a tensor of {tensor.dtype} ({tensor.layout}, on {tensor.device}); real "
            "numbers, dense and in memory, are needed"
        )
    return tensor.detach()


def _in_class_order(distilled: DistilledSet, soft_labels: Tensor) -> DistilledSet:
    """The set class after class, which tells the hard labels where soft ones are written."""
    counts = set(distilled.class_counts.tolist())
    if len(counts) != 1:
        raise ValueError(
            "files of soft labels tell an image's class by its place, as many images a class; the "
            f"set has from {min(counts)} to {max(counts)}"
        )
    order = distilled.labels.argsort(stable=True)
    return replace(
        distilled,
        images=distilled.images[order],
        labels=distilled.labels[order],
        soft_labels=soft_labels[order],
    )


def _rate(path: Path) -> float:
    value = _tensor(path)
    if value.numel() != 1:
        raise ValueError(f"{path} must hold one learning rate, it holds {value.numel()} values")
    return float(value)


def _load(path: Path) -> Any:
    """Content of a PyTorch file that is made of tensors, lists, dictionaries and numbers."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    # Where numpy keeps it has changed with version 2; files name either.
    scalar = np.float64(0).__reduce__()[0]
    allowed: list[Any] = [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        type(np.dtype(np.float64)),
        type(np.dtype(np.float32)),
    ]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # A damaged pickle ends in any type: an IndexError of its stack, an unknown encoding.
        text = str(error).splitlines()[0] if str(error) else repr(error)
        raise ValueError(f"{path} is damaged or holds more than tensors: {text}") from error


def _bytes(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()
