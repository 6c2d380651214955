"""Arrays and their record as one npz file, which is checked when it is read and never executed."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyddfast.data.atomic import write_bytes
from pyddfast.data.stored import parse_json

__all__ = ["read_npz", "write_indices", "write_npz"]

# Name of the array with the record: JSON as UTF-8, since numpy's own strings would be padded.
_RECORD = "record"


def write_npz(file: str | Path, kind: str, arrays: Mapping[str, Tensor], record: Any) -> Path:
    """Write named tensors and JSON values, whole or not at all; equal content gives equal bytes.

    Args:
        file: Its name ends in ``.npz``; a file of that name is replaced.
        kind: What is stored, for :func:`read_npz`.
        arrays: Tensors of any shape.
        record: JSON values.

    Raises:
        ValueError: The name has another ending, or the record holds what JSON cannot (NaN).
    """
    path = _named(file, (".npz",))
    try:
        text = json.dumps({"kind": kind, "record": record}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"meta must hold JSON values only: {error}") from error
    values = {name: _plain(tensor) for name, tensor in arrays.items()}
    buffer = io.BytesIO()
    values[_RECORD] = np.frombuffer(text.encode(), np.uint8)
    np.savez(buffer, **values)  # type: ignore[arg-type]  # for its own keyword allow_pickle
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue())
    return path


def read_npz(file: str | Path, kind: str) -> tuple[dict[str, Tensor], Any]:
    """Tensors and record of a file that :func:`write_npz` wrote.

    Raises:
        FileNotFoundError: There is none.
        ValueError: The file is damaged or holds something else; the message names it.
    """
    path = Path(file)
    try:
        with np.load(path, allow_pickle=False) as opened:
            # zipfile compares each array's CRC-32 as it is read.
            arrays: dict[str, npt.NDArray[Any]] = {name: opened[name] for name in opened.files}
        text = arrays.pop(_RECORD).tobytes()
    except FileNotFoundError:
        raise
    except Exception as error:  # not a zip, a bad CRC, a pickle, no record: each its own type
        raise ValueError(f"{path} is no {kind} file, or damaged: {error!r}") from error
    entry = parse_json(text, path)
    found = entry.get("kind") if isinstance(entry, dict) else None
    if found != kind:
        raise ValueError(f"{path} holds {found!r}, not {kind!r}")
    try:
        return {name: torch.from_numpy(value) for name, value in arrays.items()}, entry["record"]
    except (KeyError, TypeError, ValueError) as error:  # text, or another byte order
        raise ValueError(f"{path} is no {kind} file: {error!r}") from error


def write_indices(file: str | Path, indices: Tensor) -> Path:
    """Write positions for other programs, in their order, whole or not at all.

    Args:
        file: ``.txt``: one a line; ``.json``: a list; ``.npy``: an int64 array of numpy.
        indices: int64 (K,).

    Raises:
        ValueError: The name has another ending.
    """
    path = _named(file, (".txt", ".json", ".npy"))
    values = indices.tolist()
    if path.suffix == ".txt":
        content = "".join(f"{value}\n" for value in values).encode()
    elif path.suffix == ".json":
        content = (json.dumps(values) + "\n").encode()
    else:
        buffer = io.BytesIO()
        np.save(buffer, indices.cpu().numpy())
        content = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content)
    return path


def _plain(tensor: Tensor) -> npt.NDArray[Any]:
    """As numpy has it: of bfloat16, which it lacks, the same values in float32."""
    values = tensor.detach().cpu()
    array: npt.NDArray[Any] = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return array


def _named(file: str | Path, endings: tuple[str, ...]) -> Path:
    path = Path(file)
    if path.suffix not in endings:
        raise ValueError(f"the file's name must end in {' or '.join(endings)}, got {path.name!r}")
    return path
