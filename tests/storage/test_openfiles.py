"""Tests of files that share descriptors: few are open at once, however many are written."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from ister.storage.disk import LocalDisk
from ister.storage.openfiles import OpenFiles, descriptors_used


@pytest.fixture
def few() -> Iterator[None]:
    """Allow some twenty descriptors more than are open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors_used() + 20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_many_files_share_a_few_descriptors(tmp_path: Path) -> None:
    """A hundred files, written in turn and synced, use no more descriptors than allowed, and lose no byte."""
    disk = LocalDisk(OpenFiles(8))
    before = descriptors_used()
    files = [disk.create(f"{tmp_path}/{number}") for number in range(100)]
    for place in range(3):
        for number, file in enumerate(files):
            file.pwritev((f"{number:4}".encode(),), 4 * place)
            file.datasync()
    assert descriptors_used() <= before + 8
    assert [file.pread(100, 0) for file in files] == [f"{number:4}".encode() * 3 for number in range(100)]
    for file in files:
        file.close()
        file.close()
    assert descriptors_used() == before


def test_what_is_not_synced_keeps_its_descriptor(tmp_path: Path) -> None:
    """The disk reports a write error to the descriptor that wrote: it is not closed before the sync."""
    files = OpenFiles(2)
    disk = LocalDisk(files)
    written = [disk.create(f"{tmp_path}/{number}") for number in range(10)]
    for file in written:
        file.pwritev((b"x",), 0)
    assert min(file.fd for file in written) >= 0
    before = descriptors_used()
    for file in written[:5]:
        file.datasync()
    for file in written[5:]:
        file.settled(file.written)  # by a sync of the whole file system
    disk.create(f"{tmp_path}/more")
    assert len(files) <= 2
    assert descriptors_used() < before


def test_files_that_nobody_uses_have_no_descriptor(tmp_path: Path) -> None:
    """Files not used since the last check are closed, except unsynced ones; a used one is opened again."""
    files = OpenFiles()
    disk = LocalDisk(files)
    opened = [disk.create(f"{tmp_path}/{number}") for number in range(10)]
    opened[0].pwritev((b"not synced",), 0)
    files.rest_idle()
    assert len(files) == 10
    opened[1].pwritev((b"used",), 0)
    opened[1].datasync()
    files.rest_idle()
    assert [file.fd >= 0 for file in opened] == [True, True] + [False] * 8
    opened[5].pwritev((b"again",), 0)
    assert opened[5].pread(10, 0) == b"again"
    for file in opened:
        file.close()
    assert len(files) == 0


def test_another_file_of_the_same_name_is_not_written_to(tmp_path: Path) -> None:
    """If a closed file was replaced by another, writing is an error."""
    disk = LocalDisk(OpenFiles(1))
    file = disk.create(f"{tmp_path}/a")
    disk.create(f"{tmp_path}/b")
    assert file.fd < 0
    (tmp_path / "other").write_bytes(b"somebody's")
    os.rename(tmp_path / "other", tmp_path / "a")
    with pytest.raises(OSError, match="another file") as raised:
        file.pwritev((b"mine",), 0)
    assert raised.value.errno == errno.ESTALE
    assert (tmp_path / "a").read_bytes() == b"somebody's"


@pytest.mark.usefixtures("few")
def test_at_the_limit_files_are_still_written_and_read(tmp_path: Path) -> None:
    """If sockets take every descriptor, open files can be used, and others can be opened."""
    disk = LocalDisk()
    assert disk.files.keep_reserve()
    files = [disk.create(f"{tmp_path}/{number}") for number in range(4)]
    taken: list[int] = []
    while _is_room():
        taken.append(os.open(os.devnull, os.O_RDONLY))
    for file in files:
        file.pwritev((b"x" * 5000,), 0)
        file.datasync()
    assert disk.read(f"{tmp_path}/0") == b"x" * 5000
    assert disk.listdir(str(tmp_path)) == ["0", "1", "2", "3"]
    disk.sync_folder(str(tmp_path))
    assert bytes(disk.map(f"{tmp_path}/1").view) == b"x" * 5000
    disk.create(f"{tmp_path}/new").close()
    for fd in taken:
        os.close(fd)
    assert disk.files.keep_reserve()


def test_a_map_holds_no_descriptor(tmp_path: Path) -> None:
    """A hundred maps use no descriptor, show writes, and release the file when the last view goes."""
    disk = LocalDisk()
    file = disk.create(f"{tmp_path}/a", 100_000)
    before = descriptors_used()
    maps = [disk.map(f"{tmp_path}/a") for _ in range(100)]
    assert descriptors_used() == before
    file.pwritev((b"abc",), 50_000)
    assert all(bytes(each.view[50_000:50_003]) == b"abc" for each in maps)
    part = maps[0].view[50_000:50_003]
    maps.clear()
    assert bytes(part) == b"abc"
    assert _times_mapped(tmp_path) == 1
    part.release()
    del part
    assert _times_mapped(tmp_path) == 0
    file.close()


def _is_room() -> bool:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        return False
    return True


def _times_mapped(folder: Path) -> int:
    return Path("/proc/self/maps").read_text().count(f"{folder}/a")
