"""The IDX format of MNIST and Fashion-MNIST: four header bytes, big-endian sizes, raw values."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyddfast.data.atomic import write_bytes

__all__ = ["read_idx", "write_idx"]

# Third header byte -> element type, as http://yann.lecun.com/exdb/mnist lists them.
_TYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
_MAX_DIMENSIONS = 32  # numpy 1's limit; a larger number means a damaged header


def read_idx(path: str | Path) -> npt.NDArray[Any]:
    """Read an IDX file, gzip-compressed when its name ends in ``.gz``.

    Args:
        path: The file.

    Returns:
        Array of the file's shape and element type, in native byte order, writable.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The gzip stream is damaged, the header is not IDX, or the file is shorter or
            longer than its header says.  The message names the file.
    """
    path = Path(path)
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a complete gzip file: {error}") from error
    if len(content) < 4:
        raise ValueError(f"{path} is truncated: {len(content)} bytes, an IDX header has at least 4")
    if content[:2] != b"\0\0" or content[2] not in _TYPES or content[3] > _MAX_DIMENSIONS:
        raise ValueError(
            f"{path} is not an IDX file: its first four bytes are {content[:4].hex(' ')}, "
            "expected 00 00, a type code of 08 09 0b 0c 0d 0e, and the number of dimensions"
        )
    dtype, dimensions = _TYPES[content[2]], content[3]
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise ValueError(f"{path} is truncated: {len(content)} bytes, its header alone has {start}")
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], dtype=">u4"))
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        what = "is truncated" if len(content) < expected else "has bytes after its data"
        raise ValueError(
            f"{path} {what}: {len(content)} bytes, its header (shape {shape}) needs {expected}"
        )
    values = np.frombuffer(content, dtype=dtype, offset=start).reshape(shape)
    return values.astype(dtype.newbyteorder("="))


def write_idx(path: str | Path, values: npt.NDArray[Any]) -> None:
    """Write an array as IDX, gzip-compressed when the name ends in ``.gz``; the write is atomic.

    Args:
        path: The file; an existing one is replaced.
        values: Array of uint8, int8, int16, int32, float32 or float64.  The same values give the
            same bytes under the same zlib: the gzip header carries no name and no time.

    Raises:
        TypeError: The format has no code for the array's type.
        ValueError: A size does not fit the header.
    """
    path = Path(path)
    codes = {dtype.newbyteorder("="): code for code, dtype in _TYPES.items()}
    code = codes.get(values.dtype.newbyteorder("="))
    if code is None:
        raise TypeError(
            f"values must have one of the types {sorted(map(str, codes))}, got {values.dtype}"
        )
    if values.ndim > _MAX_DIMENSIONS or max(values.shape, default=0) >= 2**32:
        raise ValueError(f"an IDX header cannot hold the shape {values.shape}")
    sizes = np.asarray(values.shape, dtype=">u4").tobytes()
    content = bytes((0, 0, code, values.ndim)) + sizes + values.astype(_TYPES[code]).tobytes()
    if path.suffix == ".gz":
        content = gzip.compress(content, compresslevel=9, mtime=0)
    write_bytes(path, content)
