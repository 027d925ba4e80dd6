"""Tests of the machine's disk."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from ister.errors import DiskFullError, LockedError
from ister.storage.disk import LocalDisk
from ister.storage.openfiles import READ_STEP_BYTES


def test_a_folder_is_held_by_one_process_and_the_error_names_it(disk: LocalDisk, tmp_path: Path) -> None:
    """A second lock, also in one process, is refused with the holder's pid; a released one can be taken."""
    lock = disk.lock(str(tmp_path))
    with pytest.raises(LockedError, match=f"pid {os.getpid()}"):
        disk.lock(str(tmp_path))
    lock.release()
    lock.release()
    disk.lock(str(tmp_path)).release()


@pytest.mark.process
def test_a_lock_ends_with_its_process(disk: LocalDisk, tmp_path: Path) -> None:
    """A killed holder leaves nothing to clean up."""
    code = (
        "import sys; from ister.storage.disk import LocalDisk; lock = LocalDisk().lock(sys.argv[1]); "
        "print(1, flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    with holder.stdout, holder.stdin:
        holder.stdout.readline()
        with pytest.raises(LockedError, match=f"pid {holder.pid}"):
            disk.lock(str(tmp_path))
        holder.kill()
        holder.wait()
    disk.lock(str(tmp_path)).release()


def test_a_write_is_whole_or_an_error(
    disk: LocalDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short writes are continued; a disk that becomes full meanwhile raises DiskFullError."""
    file = disk.create(str(tmp_path / "a"))
    real = os.pwritev

    def short(fd: int, buffers: Sequence[bytes], position: int) -> int:
        return real(fd, [b"".join(buffers)[:3]], position)

    monkeypatch.setattr(os, "pwritev", short)
    assert file.pwritev((b"hello ", b"world"), 2) == 11
    assert file.pread(100, 0) == b"\0\0hello world"
    for number in (errno.ENOSPC, errno.EDQUOT):

        def full(*arguments: object, number: int = number) -> int:
            raise OSError(number, "full")

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(DiskFullError, match="no space left"):
            file.pwritev((b"hello ", b"world"), 20)
    monkeypatch.setattr(os, "pwrite", lambda *arguments: 0)
    with pytest.raises(OSError, match="nput/output"):
        file.pwritev((b"hello ", b"world"), 20)
    file.close()
    file.close()


def test_a_written_byte_is_in_the_map_at_once(disk: LocalDisk, tmp_path: Path) -> None:
    """A map shows later writes to the file, and stays valid when the file's name is gone."""
    path = str(tmp_path / "a")
    file = disk.create(path, 10_000)
    mapped = disk.map(path)
    assert mapped.view.readonly
    file.pwritev((b"abc",), 5000)
    assert bytes(mapped.view[4999:5004]) == b"\0abc\0"
    file.close()
    disk.unlink(path)
    assert bytes(mapped.view[5000:5003]) == b"abc"


def test_files_are_created_once(disk: LocalDisk, tmp_path: Path) -> None:
    """Creating an existing file is an error; a new file has the requested length, in zeros."""
    path = str(tmp_path / "a")
    disk.create(path, 100).close()
    with pytest.raises(FileExistsError):
        disk.create(path)
    assert disk.read(path) == bytes(100)
    assert disk.read(path, 90, 50) == bytes(10)
    assert (disk.size(path), disk.links(path), disk.isfile(path), disk.exists(path)) == (100, 1, True, True)
    disk.link(path, f"{path}2")
    assert disk.links(path) == 2
    with pytest.raises(FileExistsError):
        disk.link(path, f"{path}2")


def test_folders_are_made_with_those_above(disk: LocalDisk, tmp_path: Path) -> None:
    """An existing folder is fine; a folder below a file is an error."""
    disk.makedirs(str(tmp_path / "a" / "b" / "c"))
    disk.makedirs(str(tmp_path / "a" / "b" / "c"))
    assert disk.listdir(str(tmp_path / "a")) == ["b"]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        disk.makedirs(str(tmp_path / "file" / "x"))


def test_exclusive_lets_one_thread_in_at_a_time(disk: LocalDisk, tmp_path: Path) -> None:
    """Threads of one process exclude each other as processes do."""
    inside = 0
    most = 0
    lock = str(tmp_path / "lock")

    def enter() -> None:
        nonlocal inside, most
        for _ in range(50):
            with disk.exclusive(lock):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


@pytest.mark.parametrize("size", [0, 1, 4096, (1 << 20) + 77])
def test_a_file_is_read_once_in_steps(
    disk: LocalDisk, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its bytes are there, in steps with a rest after each, also where the system knows no cached pages."""
    contents = os.urandom(size)
    path = tmp_path / "a"
    path.write_bytes(contents)
    rests: list[None] = []
    assert disk.read_once(str(path), lambda: rests.append(None)) == contents
    assert len(rests) == -(-size // READ_STEP_BYTES)
    real = os.preadv

    def no_flags(fd: int, buffers: Sequence[memoryview], position: int, flags: int = 0) -> int:
        if flags:
            raise OSError(errno.EOPNOTSUPP, "no such flag")
        return real(fd, buffers, position)

    monkeypatch.setattr(os, "preadv", no_flags)
    assert disk.read_once(str(path), lambda: None) == contents
    with pytest.raises(FileNotFoundError):
        disk.read_once(str(tmp_path / "b"), lambda: None)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no advice on this system")
def test_a_file_that_is_read_once_leaves_the_cache_to_others(disk: LocalDisk, tmp_path: Path) -> None:
    """Pages that were cached stay, and those that were not are dropped again."""
    size = 1 << 20
    for kept in (True, False):
        path = tmp_path / f"{kept}"
        path.write_bytes(bytes(size))
        with path.open("rb+") as file:
            os.fsync(file.fileno())
            if not kept:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if _cached(file.fileno()) != kept:
                pytest.skip("the file system ignores the advice")
            disk.read_once(str(path), lambda: None)
            assert _cached(file.fileno()) == kept


def _cached(fd: int) -> bool:
    """Return whether the first bytes of a file are in the page cache."""
    try:
        return os.preadv(fd, [bytearray(4096)], 0, os.RWF_NOWAIT) == 4096
    except BlockingIOError:
        return False
    except OSError:
        pytest.skip("the file system cannot tell what is cached")
