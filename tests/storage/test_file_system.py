"""Tests of syncing a whole file system: only where its errors are reported."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ister.storage import disk as disk_module
from ister.storage.disk import LocalDisk, LocalFileSystem

linux = pytest.mark.skipif(sys.platform != "linux", reason="syncfs(2) is Linux's")


@linux
def test_a_file_system_that_may_hide_errors_is_not_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only file systems on a list are synced as a whole; overlayfs, for example, is not."""
    monkeypatch.setattr(disk_module, "_file_system_type", lambda _path: "ext4")
    assert LocalDisk().file_system(str(tmp_path)) is not None
    monkeypatch.setattr(disk_module, "_file_system_type", lambda _path: "overlay")
    assert LocalDisk().file_system(str(tmp_path)) is None


@linux
@pytest.mark.parametrize(
    ("release", "offered"),
    [("5.7.19", False), ("4.19.0-27-amd64", False), ("5.8.0", True), ("6.18.44-fc-v669", True), ("?", False)],
)
def test_a_kernel_whose_syncfs_hides_errors_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str, offered: bool
) -> None:
    """Before Linux 5.8 syncfs(2) returned success after failed writes."""
    monkeypatch.setattr(disk_module, "_file_system_type", lambda _path: "ext4")
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    assert (LocalDisk().file_system(str(tmp_path)) is not None) == offered


@linux
def test_the_kernel_names_the_type_of_every_file_system() -> None:
    """It finds /proc itself, with its own type."""
    assert disk_module._file_system_type("/proc") == "proc"


@linux
def test_a_file_system_covers_what_is_in_it_and_nothing_else(tmp_path: Path) -> None:
    """A mount below the folder is another file system."""
    file_system = LocalFileSystem(str(tmp_path))
    assert file_system.covers(str(tmp_path))
    assert not file_system.covers("/proc")
    with pytest.raises(FileNotFoundError):
        file_system.covers(str(tmp_path / "nothing"))


@linux
def test_a_failed_sync_of_a_file_system_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error number of syncfs(2) becomes an OSError."""
    file_system = LocalFileSystem(str(tmp_path))
    file_system.sync()

    def fails(_fd: int) -> int:
        ctypes.set_errno(errno.EIO)
        return -1

    monkeypatch.setattr(file_system, "_syncfs", fails)
    with pytest.raises(OSError, match="syncing the file system") as raised:
        file_system.sync()
    assert raised.value.errno == errno.EIO


@linux
def test_a_folder_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a commit is covered is asked for each of thousands a second; a folder that is gone is an error."""
    system = LocalFileSystem(str(tmp_path))
    (tmp_path / "log").mkdir()
    file = tmp_path / "log" / "0.seg"
    with pytest.raises(OSError, match=r"0\.seg"):
        system.covers(str(file))
    file.touch()
    assert system.covers(str(file))
    monkeypatch.setattr(os, "stat", lambda *_, **__: pytest.fail("it is known"))
    assert system.covers(str(file))
    assert system.covers(str(tmp_path / "log" / "1.seg"))
