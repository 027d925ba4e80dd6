"""The disk: the only file of storage that touches os and mmap.

Everything else is handed a `Disk`, so that a log can be run on a disk that fills up, fails, or loses data.

- A write is complete or raises; the rest of an incomplete one lies beyond what the caller counts as written.
- ENOSPC and EDQUOT become DiskFullError; every other OSError of a write or a sync is the caller's LogFailedError.
- Created, renamed and unlinked names are durable once `sync_folder` of their folder has returned.
- A map stays valid for as long as anything refers to it, whatever happens to the file's name.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from ister.errors import DiskFullError, LockedError
from ister.storage.checksum import Buffer, Checked
from ister.storage.filemap import map_file
from ister.storage.openfiles import FULL, LocalFile, OpenFiles, read_at, read_uncached
from ister.storage.pacing import rest_after_deletion

if sys.platform != "win32":
    import fcntl

# Where syncfs(2) reliably reports failed writes: not on overlayfs, whose errors are those of the layer below.
_SYNCED_TOGETHER = frozenset(("ext4", "xfs"))
_SYNCFS_TELLS_ERRORS = (5, 8)  # from this Linux version on


class File(Protocol):
    """An open file; `written` is how many writes it has had."""

    path: str
    written: int

    def pread(self, length: int, position: int) -> bytes:
        """Return up to `length` bytes from `position`; fewer only at the end of the file."""

    def pwritev(self, buffers: Sequence[Buffer], position: int) -> int:
        """Write all buffers end to end at `position`; return the bytes written.

        Raises DiskFullError, OSError.
        """

    def datasync(self) -> None:
        """Return once contents and length are on the disk. Raises OSError: what was lost is unknown then."""

    def settled(self, written: int) -> None:
        """Note that the first `written` writes are on the disk, because the whole file system was synced."""

    def truncate(self, size: int) -> None:
        """Set the length in bytes; added bytes read as zeros and have no space reserved."""

    def size(self) -> int:
        """Return the length in bytes."""

    def close(self) -> None:
        """Close; may be called again."""


class Lock(Protocol):
    """A folder that this process has locked."""

    def release(self) -> None:
        """Unlock the folder; may be called again."""


class FileSystem(Protocol):
    """A file system that can be synced as a whole, with errors reported."""

    def covers(self, path: str) -> bool:
        """Return whether `path` is on this file system. Raises OSError."""

    def sync(self) -> None:
        """Return once everything written to it before, with all lengths and names, is on the disk; in any thread.

        Raises OSError; then nothing that any program wrote since the last sync is sure to be on the disk.
        """


class Disk(Protocol):
    """What storage needs of a file system."""

    def open(self, path: str) -> File:
        """Open an existing file for reading and writing. Raises FileNotFoundError."""

    def create(self, path: str, size: int = 0) -> File:
        """Create a file of `size` zeros without reserving space. Raises FileExistsError, DiskFullError."""

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Return a file's contents, or up to `length` bytes of them. Raises FileNotFoundError."""

    def read_once(self, path: str, rest: Callable[[], None]) -> bytes | bytearray:
        """Return the contents of a file that is not read again soon; `rest` is called after each small step.

        What of it was in no cache before is in none afterwards. Raises FileNotFoundError.
        """

    def map(self, path: str) -> Checked:
        """Map a file read-only at its present length, which must not be 0. Raises FileNotFoundError."""

    def size(self, path: str) -> int:
        """Return a file's length in bytes. Raises FileNotFoundError."""

    def exists(self, path: str) -> bool:
        """Return whether the path exists."""

    def isfile(self, path: str) -> bool:
        """Return whether the path is a file."""

    def links(self, path: str) -> int:
        """Return how many names (hard links) a file has. Raises FileNotFoundError."""

    def listdir(self, path: str) -> list[str]:
        """Return the names in a folder, sorted. Raises FileNotFoundError."""

    def makedirs(self, path: str) -> None:
        """Create a folder and its parents, durably; existing ones are not changed."""

    def rename(self, source: str, target: str) -> None:
        """Rename a file, atomically replacing one with the new name."""

    def link(self, source: str, target: str) -> None:
        """Give a file a second name (hard link). Raises FileExistsError; OSError where that is not supported."""

    def unlink(self, path: str) -> None:
        """Remove a name of a file. Raises FileNotFoundError."""

    def unlink_large(self, path: str) -> None:
        """Remove a name of a large file like `unlink`, and leave the file system to others for a moment; in a thread.

        Raises FileNotFoundError.
        """

    def rmdir(self, path: str) -> None:
        """Remove an empty folder. Raises OSError."""

    def sync_folder(self, path: str) -> None:
        """Return once the folder's entries are on the disk."""

    def file_system(self, path: str) -> FileSystem | None:
        """Return the file system of a folder, or None if it cannot be synced as a whole with its errors reported."""

    def lock(self, path: str) -> Lock:
        """Lock a folder for this process. Raises LockedError naming the holder."""

    def exclusive(self, path: str) -> contextlib.AbstractContextManager[None]:
        """Exclude other threads and processes that use the same `path`, a file for this purpose only, while inside."""

    def process_id(self) -> int:
        """Return a number that no other process using this disk has at present."""


class LocalLock:
    """A folder locked with flock; the kernel unlocks it when the process ends, however it ends."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def release(self) -> None:
        """Unlock the folder; may be called again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


COVERED_MAX: Final = 50_000  # folders; one of a topic's log, some 200 bytes each


class LocalFileSystem:
    """A file system of the machine. Its descriptor stays open, so that no write error is missed.

    A folder is looked at once: a topic's log stays where it is while its files are open.
    """

    __slots__ = ("_covered", "_device", "_fd", "_syncfs")

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._device = os.fstat(self._fd).st_dev
        self._syncfs = ctypes.CDLL(None, use_errno=True).syncfs
        self._covered: dict[str, bool] = {}  # by folder: looking costs as much as a tenth of a commit

    def covers(self, path: str) -> bool:
        """Return whether `path` is on this file system. Raises OSError."""
        folder = os.path.dirname(path)
        found = self._covered.get(folder)
        if found is None:
            if len(self._covered) >= COVERED_MAX:
                self._covered.clear()
            found = self._covered[folder] = os.stat(path).st_dev == self._device
        return found

    def sync(self) -> None:
        """Return once everything in it is on the disk. Raises OSError."""
        if self._syncfs(self._fd):
            error = ctypes.get_errno()
            raise OSError(error, f"syncing the file system: {os.strerror(error)}")


def _file_system_type(path: str) -> str:
    """Return the type of the file system of `path` (Linux), "" if unknown."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines():
        mount, _, kind = line.partition(
            " - "
        )  # proc(5): the third field is the device, the type follows the " - "
        if mount.split()[2] == wanted:
            return kind.split()[0]
    return ""


def _kernel() -> tuple[int, int]:
    first, second = os.uname().release.split(".")[:2]
    return int(first), int("".join(digit for digit in second if digit.isdigit()))


class LocalDisk:
    """The machine's own file system; `files` manages its file descriptors."""

    def __init__(self, files: OpenFiles | None = None) -> None:
        self.files = OpenFiles() if files is None else files

    def _descriptor(self, path: str, flags: int) -> int:
        return self.files.opening(lambda: os.open(path, flags | os.O_CLOEXEC, 0o644))

    def open(self, path: str) -> LocalFile:
        """Open an existing file for reading and writing. Raises FileNotFoundError."""
        return LocalFile(path, self._descriptor(path, os.O_RDWR), self.files)

    def create(self, path: str, size: int = 0) -> LocalFile:
        """Create a file of `size` zeros without reserving space. Raises FileExistsError, DiskFullError."""
        try:
            fd = self._descriptor(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except OSError as error:
            if error.errno in FULL:
                raise DiskFullError(f"no space left to create {path}") from error
            raise
        try:
            if size:
                os.ftruncate(fd, size)
        except OSError:
            os.close(fd)
            os.unlink(path)
            raise
        return LocalFile(path, fd, self.files)

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Return a file's contents, or up to `length` bytes of them. Raises FileNotFoundError."""
        fd = self._descriptor(path, os.O_RDONLY)
        try:
            wanted = os.fstat(fd).st_size - start if length is None else length
            return read_at(fd, max(0, wanted), start)
        finally:
            os.close(fd)

    def read_once(self, path: str, rest: Callable[[], None]) -> bytearray:
        """Return the contents of a file that is not read again soon; `rest` is called after each small step.

        What of it was in no cache before is in none afterwards. Raises FileNotFoundError.
        """
        fd = self._descriptor(path, os.O_RDONLY)
        try:
            return read_uncached(fd, rest)
        finally:
            os.close(fd)

    def map(self, path: str) -> Checked:
        """Map a file read-only at its present length, which must not be 0. Raises FileNotFoundError."""
        fd = self._descriptor(path, os.O_RDONLY)
        try:
            return Checked(map_file(fd))
        finally:
            os.close(fd)

    def size(self, path: str) -> int:
        """Return a file's length in bytes. Raises FileNotFoundError."""
        return os.stat(path).st_size

    def exists(self, path: str) -> bool:
        """Return whether the path exists."""
        return os.path.exists(path)

    def isfile(self, path: str) -> bool:
        """Return whether the path is a file."""
        return os.path.isfile(path)

    def links(self, path: str) -> int:
        """Return how many names (hard links) a file has. Raises FileNotFoundError."""
        return os.stat(path).st_nlink

    def listdir(self, path: str) -> list[str]:
        """Return the names in a folder, sorted. Raises FileNotFoundError."""
        return sorted(self.files.opening(lambda: os.listdir(path)))

    def makedirs(self, path: str) -> None:
        """Create a folder and its parents, durably; existing ones are not changed."""
        above = os.path.dirname(os.path.abspath(path))
        if os.path.isdir(path):
            return
        if above != path:
            self.makedirs(above)
        try:
            os.mkdir(path)
        except FileExistsError:
            if not os.path.isdir(path):
                raise
        except OSError as error:
            if error.errno in FULL:
                raise DiskFullError(f"no space left to create the folder {path}") from error
            raise
        self.sync_folder(above)

    def rename(self, source: str, target: str) -> None:
        """Rename a file, atomically replacing one with the new name."""
        try:
            os.rename(source, target)
        except OSError as error:
            if error.errno in FULL:
                raise DiskFullError(f"no space left to rename {source} to {target}") from error
            raise

    def link(self, source: str, target: str) -> None:
        """Give a file a second name (hard link). Raises FileExistsError; OSError where that is not supported."""
        os.link(source, target)

    def unlink(self, path: str) -> None:
        """Remove a name of a file. Raises FileNotFoundError."""
        os.unlink(path)

    def unlink_large(self, path: str) -> None:
        """Remove a name of a large file like `unlink`, and leave the file system to others for a moment; in a thread.

        Raises FileNotFoundError.
        """
        began = time.monotonic()
        self.unlink(path)
        time.sleep(rest_after_deletion(time.monotonic() - began))

    def rmdir(self, path: str) -> None:
        """Remove an empty folder. Raises OSError."""
        os.rmdir(path)

    def sync_folder(self, path: str) -> None:
        """Return once the folder's entries are on the disk."""
        fd = self._descriptor(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def file_system(self, path: str) -> LocalFileSystem | None:
        """Return the file system of a folder, or None where syncfs(2) is missing or does not report errors."""
        try:
            if sys.platform != "linux" or _kernel() < _SYNCFS_TELLS_ERRORS:
                return None
            return LocalFileSystem(path) if _file_system_type(path) in _SYNCED_TOGETHER else None
        except (
            OSError,
            ValueError,
            AttributeError,
        ):  # no /proc, an unusual kernel version, or no such call
            return None

    def lock(self, path: str) -> LocalLock:
        """Lock a folder for this process. Raises LockedError naming the holder's pid."""
        name = os.path.join(path, "lock")
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise LockedError(f"the data folder {path} is in use by another broker, pid {holder}") from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return LocalLock(fd)

    @contextlib.contextmanager
    def exclusive(self, path: str) -> Iterator[None]:
        """Exclude other threads and processes that use the same `path`, a file for this purpose only, while inside."""
        fd = self._descriptor(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def process_id(self) -> int:
        """Return a number that no other process using this disk has at present."""
        return os.getpid()
