"""A folder as object store.

- An object is a file; its path below the store is its name. What is known of `a/b/c` lies in `a/b/.meta/c`, which no
  object can be called; FORMAT.md has its bytes.
- The file beside an object is durable before the object is created, and means nothing without it.
- Creations and deletions of one name are ordered by a lock, also between processes.

May touch: the Disk it is handed, below one folder.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os.path
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ister.clock import Clock, SystemClock
from ister.errors import DiskFullError, StoreError
from ister.storage.checksum import Buffer, crc32c
from ister.storage.disk import Disk, LocalDisk
from ister.storage.objectstore import (
    PAGE_OBJECTS_MAX,
    ObjectInfo,
    Page,
    check_name,
    mismatch,
    missing,
    unchecked,
)
from ister.storage.reserve import PIECE_BYTES, Reserve

_NO_LINKS: Final = frozenset((errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK))
# A folder that does not exist or belongs to another user; other errors may pass.
_NOT_OURS: Final = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
)
_META: Final = ".meta"
_TEMPORARY: Final = ".tmp"


def _check(about: Mapping[str, Any]) -> int:
    """Return the checksum of an object's description."""
    return crc32c(json.dumps(about, sort_keys=True).encode())


def _parse_meta(name: str, contents: bytes) -> ObjectInfo:
    """Return the description of an object. Raises ValueError, KeyError, TypeError."""
    known = json.loads(contents)
    about = {key: known[key] for key in ("size", "crc32c", "metadata")}
    if "created_ms" in known:
        about["created_ms"] = known["created_ms"]
    size, checksum, metadata = about["size"], about["crc32c"], about["metadata"]
    if not (isinstance(size, int) and isinstance(checksum, int) and isinstance(metadata, dict)):
        raise ValueError("it is not what was written")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not text")
    if "check" in known and known["check"] != _check(about):  # older versions wrote none
        raise ValueError("it is not what was written")
    created_ms = about.get("created_ms")
    if created_ms is not None and type(created_ms) is not int:
        raise ValueError("its time is not a number")
    return ObjectInfo(name, size, checksum, metadata, created_ms=created_ms)


class FolderStore:
    """The objects in a folder."""

    def __init__(
        self,
        path: str,
        disk: Disk | None = None,
        clock: Clock | None = None,
        *,
        reserve: Reserve | None = None,
    ) -> None:
        """Use the folder at `path`, created if missing. Raises StoreError, with action `fix` if it cannot be used.

        On a full disk the space of `reserve` is given up for small objects: trims and segments that are links have to
        be recorded before anything can be deleted.
        """
        self.path = path
        self._reserve = reserve
        self._clock: Clock = SystemClock() if clock is None else clock
        self._disk: Disk = LocalDisk() if disk is None else disk
        self._numbers = itertools.count()
        try:
            self._disk.makedirs(f"{path}/{_TEMPORARY}")
        except OSError as error:
            failure = self._error("used", error)
            if error.errno in _NOT_OURS:
                failure.action = "fix"
            raise failure from error
        if reserve is not None:
            reserve.keep()

    def _error(self, done: str, error: OSError) -> StoreError:
        return StoreError(f"the store in {self.path} cannot be {done}: {error}")

    def _places(self, name: str) -> tuple[str, str]:
        folder, _, last = f"{self.path}/{check_name(name)}".rpartition("/")
        return f"{folder}/{last}", f"{folder}/{_META}/{last}"

    def put_if_absent(
        self, name: str, data: Buffer, *, metadata: Mapping[str, str] | None = None, crc32c: int | None = None
    ) -> bool:
        """Create an object; return False if the name is taken. Raises StoreError."""
        return self._put(name, data, None, metadata, crc32c)

    def put_file_if_absent(
        self, name: str, path: str, *, metadata: Mapping[str, str] | None = None, crc32c: int | None = None
    ) -> bool:
        """Create an object as a hard link to `path`, or as a copy if links are not supported. Raises StoreError."""
        try:
            data = self._disk.read(path)
        except OSError as error:
            raise StoreError(f"{path} cannot be read for object {name!r}: {error}") from error
        return self._put(name, data, path, metadata, crc32c)

    def _put(
        self,
        name: str,
        data: Buffer,
        path: str | None,
        metadata: Mapping[str, str] | None,
        expected: int | None,
    ) -> bool:
        reserve = self._reserve
        while True:
            try:
                done = self._put_once(name, data, path, metadata, expected)
            except DiskFullError:
                small = path is not None or len(data) <= PIECE_BYTES
                if reserve is None or not small or not reserve.give():
                    raise
            else:
                if reserve is not None:
                    reserve.keep()
                return done

    def _put_once(
        self,
        name: str,
        data: Buffer,
        path: str | None,
        metadata: Mapping[str, str] | None,
        expected: int | None,
    ) -> bool:
        target, meta = self._places(name)
        checksum = crc32c(data)
        if expected is not None and expected != checksum:
            raise mismatch(name, checksum, expected)
        about: dict[str, Any] = {
            "size": len(data),
            "crc32c": checksum,
            "metadata": dict(metadata or {}),
            "created_ms": self._clock.time_ms(),
        }
        known = json.dumps({**about, "check": _check(about)})
        disk = self._disk
        temporary: list[str] = []
        try:
            if disk.exists(target):
                return self._taken(target, meta)
            temporary.append(self._write(known.encode()))
            with disk.exclusive(f"{self.path}/{_TEMPORARY}/lock"):
                if disk.exists(target):
                    return self._taken(target, meta)
                # Inside the lock, because a deletion removes empty folders.
                disk.makedirs(os.path.dirname(meta))
                # The description first: without its object it means nothing, and a later creator replaces it.
                disk.rename(temporary[0], meta)
                temporary.clear()
                disk.sync_folder(os.path.dirname(meta))
                try:
                    if path is None:
                        temporary.append(self._write(data))
                        disk.link(temporary[0], target)
                    else:
                        disk.link(path, target)
                except FileExistsError:
                    return self._taken(target, meta)
                except OSError as error:
                    if error.errno not in _NO_LINKS:
                        raise
                    # Another file system, or one without links: inside the lock a rename creates it as atomically.
                    if not temporary:
                        temporary.append(self._write(data))
                    disk.rename(temporary[0], target)
                    temporary.clear()
            disk.sync_folder(os.path.dirname(target))
        except OSError as error:
            raise self._error(f"given {name!r}", error) from error
        finally:
            for left in temporary:
                with contextlib.suppress(OSError):
                    disk.unlink(left)
        return True

    def _taken(self, target: str, meta: str) -> bool:
        """Return False, after syncing the names: the creator of the object may not have done that yet."""
        for path in (meta, target):
            with contextlib.suppress(FileNotFoundError):  # it was just deleted
                self._disk.sync_folder(os.path.dirname(path))
        return False

    def _write(self, data: Buffer) -> str:
        """Return the path of a new, synced file with a unique name."""
        while True:
            path = f"{self.path}/{_TEMPORARY}/{self._disk.process_id()}-{next(self._numbers)}"
            try:
                file = self._disk.create(path)
                break
            except FileExistsError:  # left by an earlier process with the same id
                continue
        try:
            file.pwritev((data,), 0)
            file.datasync()
        except BaseException:
            self._disk.unlink(path)
            raise
        finally:
            file.close()
        return path

    def get(self, name: str) -> bytes:
        """Return an object's bytes, checked. Raises StoreError, `object-missing` if there is none."""
        target, _ = self._places(name)
        try:
            data = self._disk.read(target)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise missing(name) from None
        except OSError as error:
            raise self._error(f"asked for {name!r}", error) from error
        info = self.head(name)
        if info is None:
            raise missing(name)
        if info.crc32c is None:
            raise unchecked(name, info.problem)
        if (found := crc32c(data)) != info.crc32c:
            raise mismatch(name, found, info.crc32c)
        return data

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Return up to `length` bytes from `start`, unchecked. Raises StoreError."""
        target, _ = self._places(name)
        try:
            return self._disk.read(target, start, length)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise missing(name) from None
        except OSError as error:
            raise self._error(f"asked for {name!r}", error) from error

    def head(self, name: str) -> ObjectInfo | None:
        """Return the description of an object, None if there is none. Raises StoreError."""
        target, meta = self._places(name)
        try:
            if not self._disk.isfile(target):
                return None
            return _parse_meta(name, self._disk.read(meta))
        except (OSError, ValueError, KeyError, TypeError) as error:
            try:
                size = self._disk.size(target)
            except FileNotFoundError:  # it was just deleted
                return None
            except OSError as failure:
                raise self._error(f"asked for {name!r}", failure) from failure
            return ObjectInfo(
                name, size, None, problem=f"what is known of object {name!r} cannot be read: {error}"
            )

    def list_page(self, prefix: str, *, page: str | None = None, page_size: int = PAGE_OBJECTS_MAX) -> Page:
        """Return objects whose names begin with `prefix`, in order; `page` is `next` of the page before."""
        found: list[ObjectInfo] = []
        for name in self._names(prefix, page):
            if len(found) == page_size:
                return Page(tuple(found), found[-1].name)
            info = self.head(name)
            if info is not None:
                found.append(info)
        return Page(tuple(found), None)

    def _names(self, prefix: str, after: str | None) -> Iterator[str]:
        """Yield names in order. A folder counts as its name with "/", which is how names sort."""
        folder = prefix.rpartition("/")[0]
        pending = [f"{folder}/" if folder else ""]
        while pending:
            name = pending.pop()
            if name and not name.endswith("/"):
                if name.startswith(prefix) and (after is None or name > after):
                    yield name
                continue
            # Names in a folder begin with the folder's: skip one that is wholly outside.
            if not (name.startswith(prefix) or prefix.startswith(name)):
                continue
            if after is not None and name < after and not after.startswith(name):
                continue
            pending += sorted(self._children(name), reverse=True)

    def _children(self, folder: str) -> Iterator[str]:
        path = f"{self.path}/{folder}"
        try:
            names = self._disk.listdir(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise self._error("listed", error) from error
        for name in names:
            if not name.startswith("."):
                yield f"{folder}{name}" if self._disk.isfile(f"{path}{name}") else f"{folder}{name}/"

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield all objects whose names begin with `prefix`, in order of names. Raises StoreError."""
        for name in self._names(prefix, None):
            info = self.head(name)
            if info is not None:
                yield info

    def delete(self, name: str) -> bool:
        """Delete an object; return False if there is none. Raises StoreError."""
        target, meta = self._places(name)
        try:
            with self._disk.exclusive(f"{self.path}/{_TEMPORARY}/lock"):
                if not self._disk.isfile(target):
                    return False
                self._disk.unlink(target)
                with contextlib.suppress(FileNotFoundError):  # it was deleted before
                    self._disk.unlink(meta)
                kept = self._remove_empty(os.path.dirname(target))
            with contextlib.suppress(FileNotFoundError):  # another deletion may have removed it as well
                self._disk.sync_folder(kept)
        except OSError as error:
            raise self._error(f"rid of {name!r}", error) from error
        return True

    def _remove_empty(self, folder: str) -> str:
        """Remove an empty folder, and its parents as far as they are empty; return the lowest that stays."""
        with contextlib.suppress(OSError):
            self._disk.rmdir(f"{folder}/{_META}")
        try:
            self._disk.rmdir(folder)  # not by listing: there may be thousands of objects
        except OSError:
            return folder
        folder = os.path.dirname(folder)
        with contextlib.suppress(OSError):
            while folder != self.path and not self._holds_object(folder):
                self._remove_hollow(folder)
                folder = os.path.dirname(folder)
        return folder

    def _holds_object(self, folder: str) -> bool:
        """Return whether there is any object below a folder; the search ends with the first one."""
        for name in self._disk.listdir(folder):
            path = f"{folder}/{name}"
            if name != _META and (self._disk.isfile(path) or self._holds_object(path)):
                return True
        return False

    def _remove_hollow(self, folder: str) -> None:
        """Remove a folder that holds no object, with what an interrupted creation or deletion left in it."""
        for name in self._disk.listdir(folder):
            path = f"{folder}/{name}"
            if self._disk.isfile(path):
                self._disk.unlink(path)
            else:
                self._remove_hollow(path)
        self._disk.rmdir(folder)

    def close(self) -> None:
        """Release resources; may be called again."""
