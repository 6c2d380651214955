"""Which data a run was made from: digests of what data sets hold, for ``config.json``."""

from __future__ import annotations

import hashlib
import os
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pyddfast.data.datasets import ImageSource
from pyddfast.data.folder import ImageFolder

__all__ = ["data_digest", "describe_data", "images_digest"]

# Digests of data sets that are still in use; a run asks for the same one many times.
_known: WeakKeyDictionary[ImageSource, tuple[tuple[int, ...], str]] = WeakKeyDictionary()


def describe_data(source: ImageSource) -> dict[str, Any]:
    """A data set for a configuration: two sets that train differently differ here; JSON values."""
    normalization = source.normalization
    whitened = getattr(source, "whitened", False)
    return {
        **({"whitened": whitened} if whitened else {}),
        "name": getattr(source, "name", None),
        "split": getattr(source, "split", None),
        "count": len(source),
        "normalization": {"mean": list(normalization.mean), "std": list(normalization.std)},
        "sha256": data_digest(source),
    }


def data_digest(source: ImageSource) -> str:
    """SHA-256 of images and labels.

    Of an :class:`ImageFolder`: of its labels and options and its files' names and sizes, which
    takes no decoding.  Of other sources that hold no ``images`` tensor every image is read once.
    """
    images = getattr(source, "images", None)
    held = (source.labels, images) if isinstance(images, Tensor) else (source.labels,)
    # Changed in place, a tensor has another version.
    version = tuple(0 if t.is_inference() else t._version for t in held)
    keeps = type(source).__hash__ is object.__hash__  # else it may be equal to another one
    found = _known.get(source) if keeps else None
    if found is not None and found[0] == version:
        return found[1]
    digest = hashlib.sha256()
    _add(digest, source.labels)
    if isinstance(images, Tensor):
        _add(digest, images)
    elif isinstance(source, ImageFolder):
        digest.update(repr((source.image_size, source.resize)).encode())
        for path in source.paths:
            # Relative to the root, so that a moved data set is still the same.
            name = os.path.relpath(path, source.root)
            digest.update(f"{name}\0{path.stat().st_size}\n".encode())
    else:
        for index in range(len(source)):
            _add(digest, source[index])
    if keeps:
        _known[source] = version, digest.hexdigest()
    return digest.hexdigest()


def images_digest(source: ImageSource) -> str:
    """SHA-256 of the pixels of images of one size, the same wherever they are kept."""
    digest = hashlib.sha256(f"{len(source)} {tuple(source[0].shape)}".encode())
    images = getattr(source, "images", None)
    parts = (source[index] for index in range(len(source)))
    for part in (images,) if isinstance(images, Tensor) else parts:
        digest.update(part.detach().cpu().contiguous().flatten().numpy().data)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().flatten()
    digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
