"""Folders and files appear whole or not at all."""

import errno
import os
import stat
import subprocess
import sys

import pytest

from pyddfast.data.atomic import new_folder, refuse_non_empty, write_bytes


def fill_and_fail(folder):
    with new_folder(folder) as new:
        (new / "part").write_text("half")
        raise RuntimeError("stopped")


def test_an_exception_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="stopped"):
        fill_and_fail(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_no_folder_under_the_final_name(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from pyddfast.data.atomic import new_folder\n"
        "with new_folder(sys.argv[1]) as new:\n"
        "    (new / 'part').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert done.returncode == -9
    assert not (tmp_path / "out").exists()
    with new_folder(tmp_path / "out") as new:  # what is left does not stand in the way
        (new / "whole").write_text("all")
    assert (tmp_path / "out" / "whole").read_text() == "all"


def test_a_folder_filled_by_another_meanwhile_is_not_touched(tmp_path):
    def race():
        with new_folder(tmp_path / "out") as new:
            (new / "mine").write_text("")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").write_text("")

    with pytest.raises(OSError, match="not empty"):
        race()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["theirs"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def full_disk(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="disk full"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    monkeypatch.undo()
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_full_disk_names_what_was_to_be_written(tmp_path, monkeypatch):
    def full_disk(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill() -> None:
        with new_folder(tmp_path / "folder") as new:
            (new / "part").write_text("")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"No space left on device: '.*/file'"):
        write_bytes(tmp_path / "file", b"new")
    with pytest.raises(OSError, match=r"No space left on device: '.*/folder'"):
        fill()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mask", [0o022, 0o077])  # the usual one, and a private user's
def test_permissions_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_bytes(tmp_path / "file", b"")
        with new_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~mask


def test_a_dangling_link_is_not_taken_for_a_free_name(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(FileExistsError, match="link exists"):
        refuse_non_empty(tmp_path / "link")
