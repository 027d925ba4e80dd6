"""File descriptors: files that are open for writing share a bounded number of them.

A `LocalFile` is an open file to its user. Its descriptor is closed when other files need one more urgently, and opened
again at the next use, so that thousands of rarely written logs and cursors need none.

Invariants
- only a synced file is closed meanwhile, so that an error of the disk is reported to the writer
- opening a file again finds the same file or raises an error
- operations that need a descriptor briefly (a read, a listing, a map) get one, even when sockets use all others

Any thread may use a file; the state of all files is behind one lock.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from ister.errors import DiskFullError
from ister.storage.checksum import Buffer

if sys.platform != "win32":
    import fcntl
    import resource

T = TypeVar("T")

FULL: Final = frozenset((errno.ENOSPC, errno.EDQUOT))
_SHORT: Final = frozenset((errno.EMFILE, errno.ENFILE))

# Files are written in bursts, and opening one again costs some 10 us; this many are enough for a busy worker.
FILES_MAX: Final = 1024
FILES_MIN: Final = 16
# Descriptors kept free for a commit, a folder listing and a map, which need one each for a moment.
RESERVE: Final = 8
# The process is short of descriptors when no more than this many are left besides the reserve.
MARGIN: Final = 8
# The limit is raised to the hard one, but not above what a broker needs: some programs allocate tables of that size.
LIMIT_MAX: Final = 262_144
# Copying so much takes some 50 us.
READ_STEP_BYTES: Final = 256 << 10


def raise_descriptor_limit() -> int:
    """Raise the soft limit of descriptors as far as this process may; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = LIMIT_MAX if hard == resource.RLIM_INFINITY else min(hard, LIMIT_MAX)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):  # macOS has a lower, undocumented limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return descriptor_limit()


def descriptor_limit() -> int:
    """Return how many descriptors this process may have."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return LIMIT_MAX if soft == resource.RLIM_INFINITY else soft


def descriptors_used() -> int:
    """Return how many descriptors this process has open."""
    try:
        return len(os.listdir("/dev/fd")) - 1  # one of them belongs to the listing
    except OSError as error:
        if error.errno in _SHORT:
            return descriptor_limit()
        raise


class OpenFiles:
    """The files of a process that are open for writing; at most `files_max` of them have a descriptor."""

    def __init__(self, files_max: int | None = None) -> None:
        most = max(FILES_MIN, min(FILES_MAX, descriptor_limit() // 4))
        self.files_max = most if files_max is None else files_max
        self.lock = threading.Lock()
        self._open: OrderedDict[LocalFile, None] = OrderedDict()  # the least recently used first
        self._reserve: list[int] = []

    def __len__(self) -> int:
        return len(self._open)

    def keep_reserve(self) -> bool:
        """Take back descriptors that were lent from the reserve; return whether it is complete."""
        with self.lock:
            try:
                while len(self._reserve) < RESERVE:
                    self._reserve.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            except OSError:
                return False
            return True

    def is_short(self) -> bool:
        """Return whether this process has hardly a descriptor left besides its reserve."""
        if not self.keep_reserve():
            return True
        taken: list[int] = []
        try:
            while len(taken) < MARGIN:
                taken.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            return True
        finally:
            for fd in taken:
                os.close(fd)
        return False

    def opening(self, call: Callable[[], T]) -> T:
        """Return the result of `call`, which opens something; free a descriptor if none is left."""
        with self.lock:
            return self._opening(call)

    def _opening(self, call: Callable[[], T]) -> T:
        while True:
            try:
                return call()
            except OSError as error:
                if error.errno not in _SHORT or not self._make_room():
                    raise

    def _make_room(self) -> bool:
        """Free a descriptor, preferably a file's; return whether that was possible."""
        if self._close_one():
            return True
        if self._reserve:
            os.close(self._reserve.pop())
            return True
        return False

    def _close_one(self) -> bool:
        for file in self._open:
            if file.may_rest:
                self.rest(file)
                return True
        return False

    def rest_idle(self) -> None:
        """Close the descriptors of files that were not used since the last call, where possible."""
        with self.lock:
            for file in list(self._open):
                if not file.used and file.may_rest:
                    self.rest(file)
                file.used = False

    def rest(self, file: LocalFile) -> None:
        """Close a file's descriptor until its next use; the lock is held."""
        del self._open[file]
        os.close(file.fd)
        file.fd = -1

    def enter(self, file: LocalFile, fd: int) -> None:
        """Note that a file has a descriptor now; the lock is held."""
        file.fd = fd
        while len(self._open) >= self.files_max and self._close_one():
            pass
        self._open[file] = None
        file.used = True

    def note_use(self, file: LocalFile) -> None:
        """Note that a file is used; the lock is held."""
        self._open.move_to_end(file)
        file.used = True

    def open_again(self, file: LocalFile) -> None:
        """Open a file that was closed in the meantime; the lock is held. Raises OSError."""
        fd = self._opening(lambda: os.open(file.path, os.O_RDWR | os.O_CLOEXEC))
        try:
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) != file.identity:
                raise OSError(errno.ESTALE, "it is another file than the one that was written", file.path)
        except OSError:
            os.close(fd)
            raise
        self.enter(file, fd)

    def forget(self, file: LocalFile) -> int:
        """Return a file's descriptor, which the caller closes; the lock is held."""
        self._open.pop(file, None)
        fd, file.fd = file.fd, -1
        return fd


class LocalFile:
    """A file of the machine that is open for reading and writing."""

    __slots__ = ("_closed", "_files", "_synced", "_users", "fd", "identity", "path", "used", "written")
    fd: int
    used: bool  # since idle files were last closed

    def __init__(self, path: str, fd: int, files: OpenFiles) -> None:
        self.path = path
        self.written = 0  # how many writes it has had
        self._synced = 0  # how many of them are on the disk
        self._users = 0
        self._closed = False
        self._files = files
        found = os.fstat(fd)
        self.identity = (found.st_dev, found.st_ino)
        with files.lock:
            files.enter(self, fd)

    @property
    def may_rest(self) -> bool:
        """Return whether no thread uses it, and everything written is on the disk."""
        return self._users == 0 and self._synced == self.written

    def _begin(self) -> int:
        files = self._files
        with files.lock:
            if self.fd >= 0:
                files.note_use(self)
            elif self._closed:
                raise OSError(errno.EBADF, "it was closed", self.path)
            else:
                files.open_again(self)
            self._users += 1
            return self.fd

    def _end(self) -> None:
        with self._files.lock:
            self._users -= 1

    def pread(self, length: int, position: int) -> bytes:
        """Return up to `length` bytes from `position`; fewer only at the end of the file."""
        fd = self._begin()
        try:
            return read_at(fd, length, position)
        finally:
            self._end()

    def pwritev(self, buffers: Sequence[Buffer], position: int) -> int:
        """Write all buffers end to end at `position`; return the bytes written.

        Raises DiskFullError, OSError.
        """
        fd = self._begin()
        self.written += 1
        wanted = sum(map(len, buffers))
        try:
            written = os.pwritev(fd, buffers, position)
            if written == wanted:
                return wanted
            rest = memoryview(b"".join(buffers))
            while written < wanted:  # a short write: the disk is full, or a signal arrived
                step = os.pwrite(fd, rest[written:], position + written)
                if step == 0:
                    raise OSError(errno.EIO, os.strerror(errno.EIO), self.path)
                written += step
        except OSError as error:
            if error.errno in FULL:
                raise DiskFullError(
                    f"no space left for {wanted} bytes at {position} of {self.path}"
                ) from error
            raise
        finally:
            self._end()
        return wanted

    def datasync(self) -> None:
        """Return once contents and length are on the disk. Raises OSError: what was lost is unknown then."""
        fd = self._begin()
        try:
            written = self.written
            if sys.platform == "darwin":  # fsync there does not flush the drive's cache
                fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            else:
                os.fdatasync(fd)
            self.settled(written)
        finally:
            self._end()

    def settled(self, written: int) -> None:
        """Note that the first `written` writes are on the disk, because the file system was synced."""
        self._synced = max(self._synced, written)

    def truncate(self, size: int) -> None:
        """Set the length in bytes; added bytes read as zeros and have no space reserved."""
        fd = self._begin()
        try:
            self.written += 1
            os.ftruncate(fd, size)
        finally:
            self._end()

    def size(self) -> int:
        """Return the length in bytes."""
        fd = self._begin()
        try:
            return os.fstat(fd).st_size
        finally:
            self._end()

    def close(self) -> None:
        """Close; may be called again."""
        with self._files.lock:
            self._closed = True
            fd = self._files.forget(self)
        if fd >= 0:
            os.close(fd)


def read_at(fd: int, length: int, position: int) -> bytes:
    """Return up to `length` bytes of a descriptor's file from `position`; fewer only at the end of the file."""
    found = os.pread(fd, length, position)
    while 0 < len(found) < length:
        more = os.pread(fd, length - len(found), position + len(found))
        if not more:
            break
        found += more
    return found


def read_uncached(fd: int, rest: Callable[[], None]) -> bytearray:
    """Return the contents of a descriptor's file, in steps with a `rest` after each.

    Pages that were not cached are dropped again, so that a long read leaves the page cache to others. Where the system
    cannot tell which those are, everything stays cached.
    """
    found = bytearray(os.fstat(fd).st_size)
    view, position = memoryview(found), 0
    advises = hasattr(os, "posix_fadvise")
    if advises:
        os.posix_fadvise(
            fd, 0, 0, os.POSIX_FADV_RANDOM
        )  # no reading ahead: that would look like cached pages
    while position < len(found):
        step = view[position : position + READ_STEP_BYTES]
        length, was_cached = _read_step(fd, step, position)
        if not length:
            break
        if advises and not was_cached:
            os.posix_fadvise(fd, position, length, os.POSIX_FADV_DONTNEED)
        position += length
        rest()
    view.release()
    del found[position:]  # it was cut meanwhile
    return found


def _read_step(fd: int, into: memoryview, position: int) -> tuple[int, bool]:
    """Return how much was read, and whether all of it was cached, or that is unknown."""
    try:
        length = os.preadv(fd, [into], position, os.RWF_NOWAIT)
        if length == len(into):
            return length, True
    except BlockingIOError:
        pass
    except (OSError, AttributeError):
        return os.preadv(fd, [into], position), True
    return os.preadv(fd, [into], position), False
