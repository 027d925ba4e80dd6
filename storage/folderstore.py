"""A folder as object store.

- An object is a file. Where it lies, and what is known of it, is in `store_folders.py`; FORMAT.md has the bytes.
- What is known of an object is durable before the object is created, and means nothing without it.
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
from ister.storage.checksum import Buffer
from ister.storage.checksum import crc32c as crc32c_of
from ister.storage.disk import Disk, LocalDisk
from ister.storage.objectstore import (
    PAGE_OBJECTS_MAX,
    ObjectInfo,
    Page,
    check_name,
    mismatch,
    missing,
    reading,
    unchecked,
)
from ister.storage.reserve import PIECE_BYTES, Reserve
from ister.storage.store_folders import (
    META,
    Place,
    checksum_of,
    describe,
    is_topic_folder,
    kind_folder,
    line_in,
    line_of,
    object_of,
    places,
    with_line,
    without,
)

_NO_LINKS: Final = frozenset((errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK))
# A folder that does not exist or belongs to another user; other errors may pass.
_NOT_OURS: Final = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
)
_TEMPORARY: Final = ".tmp"
# A piece that stays in the processor's cache between its reading and its checksum.
READ_BYTES: Final = 1 << 20


def _parse_meta(name: str, contents: bytes) -> ObjectInfo:
    """Return the description of an object. Raises ValueError, KeyError, TypeError."""
    known = json.loads(contents)
    about = {key: known[key] for key in ("size", "crc32c", "metadata")}
    about |= {key: known[key] for key in ("created_ms", "file") if key in known}
    size, checksum, metadata = about["size"], about["crc32c"], about["metadata"]
    if not (isinstance(size, int) and isinstance(checksum, int) and isinstance(metadata, dict)):
        raise ValueError("it is not what was written")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not text")
    if "check" in known and known["check"] != checksum_of(about):  # older versions wrote none
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

    def _at(self, path: str) -> str:
        return f"{self.path}/{path}"

    def _place(self, name: str) -> Place:
        """Return where an object is, or would be created."""
        new, *before = places(check_name(name))
        if (
            before
            and not self._disk.isfile(self._at(new.path))
            and self._disk.isfile(self._at(before[0].path))
        ):
            return before[0]
        return new

    def _exists(self, name: str) -> bool:
        return any(self._disk.exists(self._at(place.path)) for place in places(name))

    def _known(self, place: Place) -> bytes:
        """Return what is known of an object. Raises FileNotFoundError, OSError."""
        try:
            return self._disk.read(self._at(place.own))
        except FileNotFoundError:
            if not place.shared:
                raise
            line = line_in(self._disk.read(self._at(place.shared)), place.file)
            if line is None:
                raise
            return line

    def _shared(self, place: Place) -> bytes:
        try:
            return self._disk.read(self._at(place.shared))
        except FileNotFoundError:
            return b""

    def put_if_absent(
        self, name: str, data: Buffer, *, metadata: Mapping[str, str] | None = None, crc32c: int | None = None
    ) -> bool:
        """Create an object; return False if the name is taken. Raises StoreError."""
        return self._put(name, data, len(data), crc32c_of(data), metadata, crc32c)

    def put_file_if_absent(
        self, name: str, path: str, *, metadata: Mapping[str, str] | None = None, crc32c: int | None = None
    ) -> bool:
        """Create an object as a hard link to `path`, or as a copy if links are not supported. Raises StoreError."""
        with reading(path, name):
            size, checksum = self._summed(path)
        return self._put(name, path, size, checksum, metadata, crc32c)

    def _summed(self, path: str) -> tuple[int, int]:
        """Return a file's size and CRC32C. Reading by pieces costs less than as a whole, in time and memory."""
        size, checksum = self._disk.size(path), 0
        for start in range(0, size, READ_BYTES):
            checksum = crc32c_of(self._disk.read(path, start, READ_BYTES), checksum)
        return size, checksum

    def _put(
        self,
        name: str,
        source: Buffer | str,
        size: int,
        checksum: int,
        metadata: Mapping[str, str] | None,
        expected: int | None,
    ) -> bool:
        if expected is not None and expected != checksum:
            raise mismatch(name, checksum, expected)
        reserve = self._reserve
        while True:
            try:
                done = self._put_once(name, source, size, checksum, metadata)
            except DiskFullError:
                small = isinstance(source, str) or size <= PIECE_BYTES
                if reserve is None or not small or not reserve.give():
                    raise
            else:
                if reserve is not None:
                    reserve.keep()
                return done

    def _put_once(
        self,
        name: str,
        source: Buffer | str,
        size: int,
        checksum: int,
        metadata: Mapping[str, str] | None,
    ) -> bool:
        place = places(check_name(name))[0]
        target = self._at(place.path)
        about: dict[str, Any] = {
            "size": size,
            "crc32c": checksum,
            "metadata": dict(metadata or {}),
            "created_ms": self._clock.time_ms(),
        }
        disk = self._disk
        temporary: list[str] = []
        try:
            if self._exists(name):
                return self._taken(name)
            known = self._telling(place, about)
            temporary.append(self._write(known[1]))
            with disk.exclusive(self._at(f"{_TEMPORARY}/lock")):
                if self._exists(name):
                    return self._taken(name)
                if place.shared and (now := self._telling(place, about, locked=True)) != known:
                    known = now  # another object came meanwhile, or others that are gone make room
                    disk.unlink(temporary.pop())
                    temporary.append(self._write(known[1]))
                meta = self._at(known[0])
                # Inside the lock, because a deletion removes empty folders.
                disk.makedirs(os.path.dirname(meta))
                disk.makedirs(os.path.dirname(target))
                # The description first: without its object it means nothing, and a later creator replaces it.
                disk.rename(temporary[0], meta)
                temporary.clear()
                disk.sync_folder(os.path.dirname(meta))
                try:
                    if isinstance(source, str):
                        disk.link(source, target)
                    else:
                        temporary.append(self._write(source))
                        disk.link(temporary[0], target)
                except FileExistsError:
                    return self._taken(name)
                except OSError as error:
                    if error.errno not in _NO_LINKS:
                        raise
                    # Another file system, or one without links: inside the lock a rename creates it as atomically.
                    if isinstance(source, str):
                        copy = disk.read(source)
                        if (found := crc32c_of(copy)) != checksum:
                            raise mismatch(name, found, checksum) from error
                        temporary.append(self._write(copy))
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

    def _telling(self, place: Place, about: Mapping[str, Any], *, locked: bool = False) -> tuple[str, bytes]:
        """Return which file is to say what is known of an object, and what it is to contain.

        Only inside the lock is it certain that an object that is not there is not being created.
        """
        if place.shared and not self._disk.exists(self._at(place.own)):

            def is_there(file: str) -> bool:
                return not locked or self._disk.isfile(self._at(f"{place.folder}/{file}"))

            line = line_of(place.file, about)
            contents = with_line(self._shared(place), place.file, line, is_there)
            if contents is not None:
                return place.shared, contents
        return place.own, describe(about)

    def _taken(self, name: str) -> bool:
        """Return False, after syncing the names: the creator of the object may not have done that yet."""
        for place in places(name):
            for path in (place.own, place.path):
                with contextlib.suppress(FileNotFoundError):  # it is not there, or was just deleted
                    self._disk.sync_folder(os.path.dirname(self._at(path)))
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
        try:
            data = self._disk.read(self._at(self._place(name).path))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise missing(name) from None
        except OSError as error:
            raise self._error(f"asked for {name!r}", error) from error
        info = self.head(name)
        if info is None:
            raise missing(name)
        if info.crc32c is None:
            raise unchecked(name, info.problem)
        if (found := crc32c_of(data)) != info.crc32c:
            raise mismatch(name, found, info.crc32c)
        return data

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Return up to `length` bytes from `start`, unchecked. Raises StoreError."""
        try:
            return self._disk.read(self._at(self._place(name).path), start, length)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise missing(name) from None
        except OSError as error:
            raise self._error(f"asked for {name!r}", error) from error

    def head(self, name: str) -> ObjectInfo | None:
        """Return the description of an object, None if there is none. Raises StoreError."""
        place = self._place(name)
        target = self._at(place.path)
        try:
            if not self._disk.isfile(target):
                return None
            return _parse_meta(name, self._known(place))
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
        """Yield the names in a folder, those of folders with a "/" at their end."""
        if (kind := kind_folder(folder)) is not None:
            yield from (name for name in self._joined(kind[0]) if name.startswith(folder))
        path = self._at(folder)
        for file in self._files(path):
            if is_topic_folder(folder) and (name := object_of(folder, file)) is not None:
                yield name
            elif self._disk.isfile(f"{path}{file}"):
                yield f"{folder}{file}"
            elif (
                kind_folder(f"{folder}{file}/") is not None
            ):  # from an earlier version: in order with the others
                yield from (f"{folder}{file}/{each}" for each in self._files(f"{path}{file}"))
            else:
                yield f"{folder}{file}/"

    def _joined(self, folder: str) -> Iterator[str]:
        """Yield the names of the objects that lie in a topic's folder."""
        for file in self._files(self._at(folder)):
            if (name := object_of(folder, file)) is not None:
                yield name

    def _files(self, path: str) -> Iterator[str]:
        try:
            names = self._disk.listdir(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise self._error("listed", error) from error
        yield from (name for name in names if not name.startswith("."))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield all objects whose names begin with `prefix`, in order of names. Raises StoreError."""
        for name in self._names(prefix, None):
            info = self.head(name)
            if info is not None:
                yield info

    def delete(self, name: str) -> bool:
        """Delete an object; return False if there is none. Raises StoreError."""
        place = self._place(name)
        target = self._at(place.path)
        try:
            with self._disk.exclusive(self._at(f"{_TEMPORARY}/lock")):
                if not self._disk.isfile(target):
                    return False
                self._disk.unlink(target)
                self._forget(place)
                kept = self._remove_empty(os.path.dirname(target))
            with contextlib.suppress(FileNotFoundError):  # another deletion may have removed it as well
                self._disk.sync_folder(kept)
        except OSError as error:
            raise self._error(f"rid of {name!r}", error) from error
        return True

    def _forget(self, place: Place) -> None:
        """Remove what is known of an object that is gone: what cannot be written now means nothing."""
        with contextlib.suppress(FileNotFoundError):  # it is in the shared file, or was deleted before
            self._disk.unlink(self._at(place.own))
        if not place.shared or line_in(contents := self._shared(place), place.file) is None:
            return
        left = without(contents, place.file)
        if not left:
            self._disk.unlink(self._at(place.shared))
            return
        with contextlib.suppress(DiskFullError):
            self._disk.rename(self._write(left), self._at(place.shared))

    def _remove_empty(self, folder: str) -> str:
        """Remove an empty folder, and its parents as far as they are empty; return the lowest that stays."""
        with contextlib.suppress(OSError):
            self._disk.rmdir(f"{folder}/{META}")
        try:
            self._disk.rmdir(folder)  # not by listing: there may be thousands of segments
        except OSError:
            if not is_topic_folder(folder[len(self.path) + 1 :]) or self._holds_object(folder):
                return folder
            with contextlib.suppress(OSError):
                self._remove_hollow(folder)
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
            if not name.startswith(".") and (self._disk.isfile(path) or self._holds_object(path)):
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
