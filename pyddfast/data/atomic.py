"""Folders and files that appear whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "naming",
    "new_file",
    "new_folder",
    "refuse_non_empty",
    "remove_leftovers",
    "write_bytes",
]

# Ends every temporary name, so that no file of somebody else is taken for ours; in front of it are
# the name that it would have got and tempfile's eight random characters.
_SUFFIX = ".partial"
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.partial")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader finds the old content or the new one, never a part.

    Raises:
        OSError: It cannot be written, e.g. because the disk is full; the error names ``path``.
    """
    with new_file(path) as file:
        file.write(content)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file piece by piece; at the end of the block it takes the name ``path``.

    The bytes go to a temporary file beside ``path``, reach the disk, and take the name in one
    rename.  An exception inside the block removes the temporary file.

    Raises:
        OSError: It cannot be written, e.g. because the disk is full; the error names ``path``.
    """
    with naming(path):
        descriptor, name = tempfile.mkstemp(_SUFFIX, f".{path.name}.", path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                # mkstemp's 0600 would survive the rename.
                os.fchmod(file.fileno(), 0o666 & ~_umask())
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an ``OSError`` of the block that names no file, such as of a full disk, this name."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed left in ``folder`` itself, files and folders.

    No other process may be writing there.
    """
    for entry in list(folder.iterdir()) if folder.is_dir() else []:
        if _TEMPORARY.fullmatch(entry.name) is None:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def refuse_non_empty(folder: str | Path) -> Path:
    """Return ``folder`` as a path unless it holds something or is a file.

    Raises:
        FileExistsError: ``folder`` is a file or a folder with entries.
    """
    path = Path(folder)
    if path.is_dir():
        if next(path.iterdir(), None) is not None:
            raise FileExistsError(f"the folder {path} is not empty; give a new or an empty one")
    elif path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} exists and is not a folder; give a new or an empty folder")
    return path


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """Fill a temporary folder; at the end of the block it takes the name ``folder``.

    Yields:
        The temporary folder, beside ``folder``.  An exception inside the block removes it.

    Raises:
        FileExistsError: ``folder`` is a file or is not empty, checked before the block runs.
        OSError: It cannot be written, e.g. because the disk is full; the error names the folder or
            a file in it.
    """
    path = refuse_non_empty(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        temporary = Path(tempfile.mkdtemp(_SUFFIX, f".{path.name}.", path.parent))
        try:
            temporary.chmod(0o777 & ~_umask())
            yield temporary
            for parent, _, files in os.walk(temporary):
                for file in files:
                    _sync_file(Path(parent, file))
                _sync_folder(Path(parent))
            # POSIX renames a folder onto an empty one; if another process filled it meanwhile this
            # raises and nothing of theirs is lost.
            temporary.replace(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync_folder(path.parent)


def _umask() -> int:
    # There is no call that only reads the mask.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_sync_folder = _sync_file  # fsync of a folder's descriptor makes its entries durable
