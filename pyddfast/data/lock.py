"""One process a folder that is written to."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import warnings
import weakref
from pathlib import Path

__all__ = ["LOCK_NAME", "FolderLock", "lock_folder"]

LOCK_NAME = ".lock"
# A file system without locks, as some cluster file systems are mounted.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# A folder that cannot be written to can be read by many.
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


class FolderLock:
    """Holds a folder for this process until the last reference to it is gone.

    The lock is the kernel's (``flock`` of a file in the folder), so a killed process leaves none
    behind, only the file.
    """

    def __init__(self, file: Path, descriptor: int) -> None:
        # A forked child has a copy of this object, whose end is not the lock's.
        self._release = weakref.finalize(self, _release, file, descriptor, os.getpid())


# Within a process a folder may be opened several times.
_held: weakref.WeakValueDictionary[Path, FolderLock] = weakref.WeakValueDictionary()


def lock_folder(folder: Path) -> FolderLock | None:
    """Lock an existing folder.

    Returns:
        The lock; None where there is nothing to lock: a read-only folder, or (with a warning) a
        file system that has no locks.

    Raises:
        BlockingIOError: another process holds it.
    """
    file = folder.resolve() / LOCK_NAME
    held = _held.get(file)
    if held is not None:
        return held
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno in _READ_ONLY:
                return None
            raise
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 200).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise BlockingIOError(
                f"the folder {folder} is in use by {owner}; wait for its end or give another folder"
            ) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno in _NO_LOCKS:
                warnings.warn(
                    f"{folder} is on a file system without locks: see to it that no other process "
                    "uses it",
                    stacklevel=3,
                )
                return None
            raise
        if _is(descriptor, file):
            break
        os.close(descriptor)  # the process before removed the file between open and flock
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    lock = FolderLock(file, descriptor)
    _held[file] = lock
    return lock


def _is(descriptor: int, file: Path) -> bool:
    try:
        there = os.stat(file)
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def _release(file: Path, descriptor: int, process: int) -> None:
    if os.getpid() == process:
        # While it is locked: who opens the file after this makes a new one.
        if _is(descriptor, file):
            file.unlink()
        os.close(descriptor)
