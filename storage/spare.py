"""The next segment's file, made ahead of time by a thread if possible.

- A roll on the hot path is then a rename and the writing of a header; creating and filling a file takes milliseconds.
- A spare that cannot be created is not an error: the log then creates its next file itself.
- The file belongs to the thread until it is ready, and to the log's owner once taken; after a cancel it is removed.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Final

from ister.errors import StorageError
from ister.storage.disk import Disk, File

SPARE_NAME: Final = "spare.tmp"
# A spare is filled in steps, each synced, so that a commit never waits behind more than one of them. Measured at
# 500 MB/s: in steps of 256 KiB half of the spares come too late, in one of 8 MiB the slowest commits take 4 ms instead
# of 1.
STEP_BYTES: Final = 1 << 20
_ZEROS: Final = bytes(STEP_BYTES)


class Spare:
    """A future segment: call it in a thread, and take the file when it is ready."""

    __slots__ = ("_cancelled", "_disk", "_done", "_file", "_lock", "_size", "path")

    def __init__(self, disk: Disk, path: str, size: int) -> None:
        self.path = path
        self._disk = disk
        self._size = size
        self._lock = threading.Lock()
        self._file: File | None = None
        self._done = False
        self._cancelled = False

    def __call__(self) -> None:
        """Create the file and fill it with zeros, in a thread; disk errors are not raised."""
        file = None
        try:
            file = self._disk.create(self.path, self._size)
            for position in range(0, self._size, STEP_BYTES):
                if self._cancelled:
                    break
                step = min(STEP_BYTES, self._size - position)
                file.pwritev((_ZEROS[:step],), position)
                file.datasync()
        except (OSError, StorageError):
            self._cancelled = True
        with self._lock:
            self._done = True
            if not self._cancelled:
                self._file = file
                return
        if file is not None:
            self._discard(file)

    def _discard(self, file: File) -> None:
        file.close()
        with contextlib.suppress(OSError):
            self._disk.unlink(self.path)

    @property
    def ready(self) -> bool:
        """Return whether there is a file to take."""
        return self._file is not None

    @property
    def given_up(self) -> bool:
        """Return whether there will never be one: creating it failed, or it was cancelled."""
        return self._done and self._file is None

    def take(self) -> File | None:
        """Return the file, once; None if it is not ready."""
        with self._lock:
            file, self._file = self._file, None
        return file

    def cancel(self) -> None:
        """Give it up: the file is removed, now or by the thread."""
        with self._lock:
            self._cancelled = True
            file, self._file = self._file, None
        if file is not None:
            self._discard(file)


class NextFile:
    """Where a log's next segment has its file from: the spare, or a new one. Used by the log's owner alone."""

    __slots__ = ("_disk", "_path", "_size", "_spare")

    def __init__(self, disk: Disk, folder: str, size: int) -> None:
        self._disk = disk
        self._path = f"{folder}/{SPARE_NAME}"
        self._size = size
        self._spare: Spare | None = None

    def prepare(self) -> Spare | None:
        """Return the work of making a spare, None if there is one, or one is being made."""
        if self._spare is not None and not self._spare.given_up:
            return None
        self._spare = Spare(self._disk, self._path, self._size)
        return self._spare

    def take(self, path: str) -> tuple[File, int]:
        """Return a file of zeros under the name `path`, and how far its blocks are written. Raises OSError."""
        spare = self._spare
        if spare is not None and (file := spare.take()) is not None:
            self._spare = None
            try:
                self._disk.rename(spare.path, path)
            except FileNotFoundError:  # it was removed meanwhile
                file.close()
            else:
                file.path = path
                return file, self._size
        return self._disk.create(path, self._size), 0

    def cancel(self) -> None:
        """Do without a spare: release its disk space."""
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.cancel()
