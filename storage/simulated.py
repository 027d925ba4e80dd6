"""A disk in memory that can fill up, fail, and lose power: for tests, and for a whole broker under virtual time.

- A file has what its readers see and what would be there after a power failure; a sync makes the second the first.
- `power_loss` keeps any subset of the writes since, each whole, cut short, or with a hole in it, and any beginning of a
  folder's unsynced changes.
- After a failed sync the disk keeps nothing new, but shows it: that is what page caches do.
- The same seed gives the same run. Not for threads.
"""

from __future__ import annotations

import contextlib
import errno
import os.path
from collections.abc import Callable, Iterator, Sequence
from random import Random

from ister.errors import DiskFullError, LockedError
from ister.storage.checksum import Buffer, Checked
from ister.storage.ranges import RangeSet

# Disks write sectors of this size whole or not at all.
SECTOR_BYTES = 512

# What happens at once in a folder: names, and what they name from then on.
_Change = tuple[tuple[str, "_Inode | None"], ...]


class _Inode:
    __slots__ = ("blocks", "durable", "links", "live", "unsynced")

    def __init__(self, size: int) -> None:
        self.live = bytearray(size)
        self.durable = bytearray()
        self.links = 0
        self.blocks = RangeSet()  # bytes that have room on the disk; holes have none
        # What a power failure may lose, in order: (position, bytes), or (new length, None).
        self.unsynced: list[tuple[int, bytes | None]] = [(size, None)] if size else []

    def sync(self) -> None:
        """Make durable what is dirty: what a failed sync dropped stays lost until it is written again."""
        durable = self.durable
        for position, written in self.unsynced:
            end = position if written is None else position + len(written)
            if end > len(durable):
                durable += bytes(end - len(durable))
            elif written is None:
                del durable[end:]
            if written is not None:
                durable[position:end] = written
        self.unsynced.clear()


def _resized(contents: bytes | bytearray, size: int) -> bytearray:
    return bytearray(contents[:size]) + bytearray(max(0, size - len(contents)))


class SimulatedFile:
    """An open file of a simulated disk."""

    def __init__(self, disk: SimulatedDisk, path: str, inode: _Inode) -> None:
        self.path = path
        self._disk = disk
        self._inode = inode
        self._open = True
        self.written = 0  # how often
        self._synced = 0  # so many of those are on the disk
        disk.open_files += 1

    def _begin(self) -> None:
        """If idle files are closed, open this one again by its name. Raises OSError."""
        if not self._disk.rests:
            return
        if not self._open:
            raise OSError(errno.EBADF, "it was closed", self.path)
        if self._synced == self.written and self._disk.named(self.path) is not self._inode:
            raise OSError(errno.ESTALE, "it is another file than the one that was written", self.path)

    def pread(self, length: int, position: int) -> bytes:
        """Return up to `length` bytes from `position`."""
        self._begin()
        return bytes(self._inode.live[position : position + length])

    def pwritev(self, buffers: Sequence[Buffer], position: int) -> int:
        """Write all buffers end to end; on a full disk as much as fits, and DiskFullError."""
        self._begin()
        self.written += 1
        self._disk.happens("write", self.path)
        joined = b"".join(buffers)
        inode = self._inode
        written = joined[: self._disk.take(inode.blocks, position, position + len(joined))]
        missing = position + len(written) - len(inode.live)
        if missing > 0:
            try:
                inode.live += bytes(missing)
            except BufferError:  # it is mapped, and what is mapped keeps its length
                inode.live = _resized(inode.live, position + len(written))
        inode.live[position : position + len(written)] = written
        inode.unsynced.append((position, written))
        if len(written) < len(joined):
            raise DiskFullError(f"no space left for {len(joined)} bytes at {position} of {self.path}")
        return len(joined)

    def datasync(self) -> None:
        """Make the contents durable; if that fails, they look as if they were."""
        self._begin()
        try:
            self._disk.happens("sync", self.path)
        except OSError:
            self._inode.unsynced.clear()
            raise
        self._inode.sync()
        self.settled(self.written)

    def settled(self, written: int) -> None:
        """Record that the first `written` writes are on the disk."""
        self._synced = max(self._synced, written)

    def truncate(self, size: int) -> None:
        """Set the length."""
        self._begin()
        self.written += 1
        self._disk.happens("truncate", self.path)
        given_back = self._inode.blocks.subtract(size, 1 << 62)
        if self._disk.room is not None:
            self._disk.room += given_back
        self._inode.live = _resized(self._inode.live, size)
        self._inode.unsynced.append((size, None))

    def size(self) -> int:
        """Return the length in bytes."""
        self._begin()
        return len(self._inode.live)

    def close(self) -> None:
        """Close; may be called again."""
        if self._open:
            self._open = False
            self._disk.open_files -= 1


class _SimulatedLock:
    def __init__(self, disk: SimulatedDisk, path: str) -> None:
        self._disk, self._path = disk, path

    def release(self) -> None:
        self._disk.locked.discard(self._path)


class _SimulatedFileSystem:
    def __init__(self, disk: SimulatedDisk, path: str) -> None:
        self._disk, self._path = disk, path

    def covers(self, path: str) -> bool:
        return self._disk.exists(path)

    def sync(self) -> None:
        self._disk.sync_all(self._path)


class SimulatedDisk:
    """A Disk in memory. `on_operation(name, path)` may raise OSError before each write, sync, rename and the like."""

    def __init__(self) -> None:
        self.on_operation: Callable[[str, str], None] | None = None
        self.on_name: Callable[[str, bool], None] | None = None  # told of a name that a file got, or lost
        self.room: int | None = None  # bytes that can still be given to files, None for any number
        self.operations = 0
        self.open_files = 0
        self.rests = (
            False  # a file that has all its writes on the disk is found again by its name at each use
        )
        self.locked: set[str] = set()
        self.folders: set[str] = set()
        self._names: dict[str, _Inode] = {}
        self._durable: dict[str, _Inode] = {}
        self._unsynced: dict[str, list[_Change]] = {}

    def happens(self, operation: str, path: str) -> None:
        """Count an operation that changes something, and let a fault happen instead of it."""
        self.operations += 1
        if self.on_operation is not None:
            self.on_operation(operation, path)

    def take(self, blocks: RangeSet, first: int, end: int) -> int:
        """Make room for [first, end) of a file; return how many bytes of it can be written."""
        for start, stop in blocks.gaps(first, end):
            if self.room is not None and stop - start > self.room:
                end = start + self.room
                break
            if self.room is not None:
                self.room -= stop - start
        else:
            blocks.add(first, end)
            return end - first
        self.room = 0
        blocks.add(first, end)
        return end - first

    def named(self, path: str) -> _Inode | None:
        """Return what has this name."""
        return self._names.get(path)

    def _inode(self, path: str) -> _Inode:
        found = self._names.get(path)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return found

    def _change(self, *change: tuple[str, _Inode | None]) -> None:
        for path, inode in change:
            before = self._names.pop(path, None)
            if before is not None:
                before.links -= 1
            if inode is not None:
                inode.links += 1
                self._names[path] = inode
            if self.on_name is not None:
                self.on_name(path, inode is not None)
        self._unsynced.setdefault(os.path.dirname(change[0][0]), []).append(change)

    def open(self, path: str) -> SimulatedFile:
        """Open an existing file."""
        return SimulatedFile(self, path, self._inode(path))

    def create(self, path: str, size: int = 0) -> SimulatedFile:
        """Create a file of zeros."""
        self.happens("create", path)
        if path in self._names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        if os.path.dirname(path) not in self.folders:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if self.room == 0:
            raise DiskFullError(f"no space left to create {path}")
        inode = _Inode(size)
        self._change((path, inode))
        return SimulatedFile(self, path, inode)

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Return a file's contents, or a part of them."""
        live = self._inode(path).live
        return bytes(live[start:] if length is None else live[start : start + length])

    def read_once(self, path: str, rest: Callable[[], None]) -> bytes:
        """Return a file's contents."""
        del rest
        return self.read(path)

    def map(self, path: str) -> Checked:
        """Return a view of a file that follows writes into it, until its length changes."""
        return Checked(memoryview(self._inode(path).live).toreadonly())

    def size(self, path: str) -> int:
        """Return a file's length."""
        return len(self._inode(path).live)

    def names(self) -> list[str]:
        """Return the names of all files."""
        return list(self._names)

    def exists(self, path: str) -> bool:
        """Return whether the path names anything."""
        return path in self._names or path in self.folders

    def isfile(self, path: str) -> bool:
        """Return whether the path names a file."""
        return path in self._names

    def links(self, path: str) -> int:
        """Return how many names a file has."""
        return self._inode(path).links

    def listdir(self, path: str) -> list[str]:
        """Return the names in a folder, sorted."""
        if path.rstrip("/") not in self.folders:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        start = path.rstrip("/") + "/"
        everything = (*self._names, *self.folders)
        return sorted(
            {
                one[len(start) :]
                for one in everything
                if one.startswith(start) and "/" not in one[len(start) :]
            }
        )

    def makedirs(self, path: str) -> None:
        """Create a folder and those above it, durably."""
        while path and path != "/":
            if path in self._names:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            self.folders.add(path)
            path = os.path.dirname(path)

    def rename(self, source: str, target: str) -> None:
        """Give a file another name."""
        self.happens("rename", target)
        self._change((target, self._inode(source)), (source, None))

    def link(self, source: str, target: str) -> None:
        """Give a file a second name."""
        self.happens("link", target)
        inode = self._inode(source)
        if target in self._names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
        self._change((target, inode))

    def unlink(self, path: str) -> None:
        """Take a file's name away."""
        self.happens("unlink", path)
        self._inode(path)
        self._change((path, None))

    def unlink_large(self, path: str) -> None:
        """Take a file's name away."""
        self.unlink(path)

    def rmdir(self, path: str) -> None:
        """Remove an empty folder."""
        if self.listdir(path):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        self.folders.discard(path)

    def sync_folder(self, path: str) -> None:
        """Make a folder's names durable."""
        self.happens("sync_folder", path)
        self._set_durable(self._unsynced.pop(path, []))

    def _set_durable(self, changes: Sequence[_Change]) -> None:
        for change in changes:
            for name, inode in change:
                if inode is None:
                    self._durable.pop(name, None)
                else:
                    self._durable[name] = inode

    def file_system(self, path: str) -> _SimulatedFileSystem:
        """Return the whole of it."""
        return _SimulatedFileSystem(self, path)

    def sync_all(self, path: str) -> None:
        """Make all contents and all names durable; if that fails, they look as if they were."""
        inodes = {id(inode): inode for inode in (*self._names.values(), *self._durable.values())}
        try:
            self.happens("sync_all", path)
        except OSError:
            for inode in inodes.values():
                inode.unsynced.clear()
            raise
        for inode in inodes.values():
            inode.sync()
        for folder in list(self._unsynced):
            self._set_durable(self._unsynced.pop(folder))

    def lock(self, path: str) -> _SimulatedLock:
        """Hold a folder. Raises LockedError."""
        if path in self.locked:
            raise LockedError(f"the data folder {path} is in use by another broker, pid {self.process_id()}")
        self.locked.add(path)
        return _SimulatedLock(self, path)

    @contextlib.contextmanager
    def exclusive(self, path: str) -> Iterator[None]:
        """Nobody else is there."""
        del path
        yield

    def process_id(self) -> int:
        """Return the only process's number."""
        return 1

    def power_loss(self, random: Random) -> SimulatedDisk:
        """Return the disk as it may be when power comes back."""
        after = SimulatedDisk()
        after.folders, after.on_name = set(self.folders), self.on_name
        after.rests = self.rests
        for changes in self._unsynced.values():  # a folder's changes become durable in order
            self._set_durable(changes[: random.randint(0, len(changes))])
        twins: dict[int, _Inode] = {}
        for name, inode in sorted(self._durable.items()):
            twin = twins.get(id(inode))
            if twin is None:
                contents = self._survivors(inode, random)
                twin = twins[id(inode)] = _Inode(0)
                twin.live, twin.durable = contents, bytearray(contents)
                twin.blocks.add(0, len(contents))
            twin.links += 1
            after._names[name] = after._durable[name] = twin
        return after

    @staticmethod
    def _survivors(inode: _Inode, random: Random) -> bytearray:
        """Return a file's durable contents, and of each write since all, nothing, a beginning, or some sectors."""
        contents = bytearray(inode.durable)
        for position, written in inode.unsynced:
            fate = random.randrange(4)
            if written is None:
                if fate:  # lengths are journalled: mostly they make it
                    contents = _resized(contents, position)
                continue
            if fate == 0:
                continue
            end = position + (random.randint(0, len(written)) if fate == 1 else len(written))
            if end > len(contents):
                contents = _resized(contents, end)
            at = position
            while at < end:
                stop = min(end, (at // SECTOR_BYTES + 1) * SECTOR_BYTES)
                if fate != 2 or random.random() < 0.5:
                    contents[at:stop] = written[at - position : stop - position]
                at = stop
        return contents
