"""Heights and widths of the images of a folder, read from the files' headers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from pyddfast._extras import require
from pyddfast.data.digest import data_digest
from pyddfast.data.folder import ImageFolder
from pyddfast.data.stored import read_tensors, write_tensors

__all__ = ["OnError", "image_sizes"]

OnError: TypeAlias = Literal["raise", "skip"]

_THREADS = 16  # reading headers waits for the disk, not for the processor
_CHUNK = 256  # files a task: a million tasks of one file would take more than a gigabyte
_SHOWN = 10  # bad files listed; more would bury the message


def image_sizes(
    folder: ImageFolder,
    *,
    cache: str | Path | None = None,
    on_error: OnError = "raise",
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Height and width of every image, from headers alone: what crop boxes are drawn from.

    Args:
        folder: The images.
        cache: A file that keeps the table, so that a large folder is scanned once.  It is made
            where it does not exist, and again where files' names or sizes have changed.
        on_error: ``"raise"``, or ``"skip"``: an unreadable file gets the size (0, 0).
        on_progress: Called with (images done, images in all) now and then.

    Returns:
        int64 (N, 2).

    Raises:
        ValueError: Headers cannot be read (the first ten files are named), ``on_error`` is
            unknown, or ``cache`` is damaged or another kind of file.
    """
    check_on_error(on_error)
    file = None if cache is None else Path(cache)
    state = {"sizes_of": data_digest(folder)} if file is not None else {}
    sizes = None if file is None else _cached(file, state)
    fresh = sizes is None
    if sizes is None:
        found: list[tuple[int, int]] = []
        paths = folder.paths
        chunks = [paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK)]
        with ThreadPoolExecutor(_THREADS) as pool:
            for chunk in pool.map(_sizes, chunks):
                found += chunk
                if on_progress is not None:
                    on_progress(len(found), len(paths))
        sizes = torch.tensor(found, dtype=torch.int64).view(-1, 2)
    if on_error == "raise":
        _refuse([folder.paths[i] for i in (sizes == 0).all(dim=1).nonzero()[:, 0].tolist()])
    if file is not None and fresh:
        write_tensors(file, {"sizes": sizes}, state)
    return sizes


def check_on_error(on_error: str) -> None:
    """Raise unless ``on_error`` is one of its two values."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of one file, from its header.

    Raises:
        ValueError: It has none that Pillow can read; the message names it.
    """
    try:
        with require("PIL.Image", "methods").open(path) as opened:
            return opened.height, opened.width
    except FileNotFoundError:
        raise
    except Exception as error:  # as in read_image
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def _sizes(paths: Sequence[Path]) -> list[tuple[int, int]]:
    return [_size(path) for path in paths]


def _size(path: Path) -> tuple[int, int]:
    try:
        return read_size(path)
    except ValueError:
        return 0, 0


def _refuse(bad: list[Path]) -> None:
    if not bad:
        return
    lines = []
    for path in bad[:_SHOWN]:
        try:
            read_size(path)
            lines.append(f"{path} was unreadable when the table was made")
        except ValueError as error:
            lines.append(str(error))
    more = f"\n... and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    raise ValueError(f"{len(bad)} images have no readable header:\n" + "\n".join(lines) + more)


def _cached(file: Path, state: dict[str, str]) -> Tensor | None:
    if not file.exists():
        return None
    tensors, found = read_tensors(file)
    if not isinstance(found, dict) or "sizes_of" not in found or "sizes" not in tensors:
        raise ValueError(f"{file} is not a table of image sizes; give another path as cache")
    return tensors["sizes"] if found == state else None
