"""JSON and tensors as files that are checked when they are read.

A damaged file raises a ``ValueError`` that names it, whatever is wrong with it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyddfast._extras import require
from pyddfast.data.atomic import write_bytes

__all__ = [
    "finite",
    "pack_tensors",
    "parse_json",
    "read_json",
    "read_tensors",
    "tensors_digest",
    "write_tensors",
]

# Name of the one metadata entry: the order of several is not fixed by the format's writer.
_ENTRY = "state"


def parse_json(content: bytes, name: object) -> Any:
    """The value of a JSON text.

    Args:
        content: UTF-8.
        name: what to call it in the error.

    Raises:
        ValueError: it is not UTF-8 or not JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        raise ValueError(f"{name} is not valid JSON: {error}") from error


def finite(value: Any) -> Any:
    """A JSON value with None for every number that is not finite: JSON has none of these."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(file: Path) -> Any:
    """The value of a JSON file.

    Raises:
        ValueError: as :func:`parse_json`; the message names the file.
    """
    return parse_json(file.read_bytes(), file)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()


def write_tensors(file: Path, tensors: Mapping[str, Tensor], state: Any = None) -> None:
    """Write what :func:`pack_tensors` makes, whole or not at all."""
    write_bytes(file, pack_tensors(tensors, state))


def pack_tensors(tensors: Mapping[str, Tensor], state: Any = None) -> bytes:
    """Tensors and a JSON value as the content of one safetensors file, with a checksum.

    Equal content gives equal bytes.

    Raises:
        ModuleNotFoundError: safetensors, of the ``methods`` extra, is not installed.
    """
    safetensors = require("safetensors.torch", "methods")
    # Clones: tied parameters share memory, which the format refuses.
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    entry = {"sha256": _digest(plain, state), "state": state}
    content: bytes = safetensors.save(plain, {_ENTRY: json.dumps(entry, allow_nan=False)})
    return content


def read_tensors(file: Path) -> tuple[dict[str, Tensor], Any]:
    """Tensors and JSON value of a file that :func:`write_tensors` wrote.

    Raises:
        ValueError: the file is damaged; the message names it.
        ModuleNotFoundError: safetensors, of the ``methods`` extra, is not installed.
    """
    safetensors = require("safetensors", "methods")
    try:
        with safetensors.safe_open(str(file), framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            entry = json.loads((opened.metadata() or {})[_ENTRY])
        whole = entry["sha256"] == _digest(tensors, entry["state"])
    except Exception as error:
        # safetensors, JSON and a missing key each raise their own type.
        raise ValueError(f"{file} is damaged: {error!r}") from error
    if not whole:
        raise ValueError(f"{file} is damaged: its SHA-256 is not the one it states")
    return tensors, entry["state"]


def _digest(tensors: Mapping[str, Tensor], state: Any) -> str:
    text = tensors_digest(tensors) + json.dumps(state, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
