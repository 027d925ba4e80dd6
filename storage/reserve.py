"""Disk space reserved for writes that must succeed on a full disk: a file that is freed in pieces.

- Writers that need little space (acknowledgments, records that precede a deletion) free a piece when the disk is full,
  and write at once, before another program takes the space.
- It is filled up again when the disk has space.

May touch: the Disk it is handed; one file. Any thread.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Final

from ister.clock import Clock
from ister.errors import DiskFullError
from ister.storage.disk import Disk

# An acknowledgment that is flushed alone takes 32 bytes, and a cursor is rewritten as it grows: this lasts long, even
# if other programs take most of what is freed.
RESERVE_BYTES: Final = 2 << 20
PIECE_BYTES: Final = 64 << 10
REFILL_S: Final = 10.0  # seconds between attempts to restore it
_PIECE: Final = b"\xff" * PIECE_BYTES  # not zeros, for which a file system may allocate no space


class Reserve:
    """A file at `path` of up to `size` bytes."""

    def __init__(self, disk: Disk, path: str, clock: Clock, size: int = RESERVE_BYTES) -> None:
        self._disk, self.path, self._clock = disk, path, clock
        self._size = size - size % PIECE_BYTES
        self._next_try_s = 0.0
        self._lock = threading.Lock()
        self.held = 0  # bytes that can be freed
        with contextlib.suppress(OSError):
            held = disk.size(path)
            self.held = held - held % PIECE_BYTES

    def keep(self) -> None:
        """Restore it as far as there is space, at most once per REFILL_S; cheap while it is complete."""
        if self.held == self._size or self._clock.monotonic() < self._next_try_s:
            return
        with self._lock:
            self._fill()

    def _fill(self) -> None:
        self._next_try_s = self._clock.monotonic() + REFILL_S
        try:
            file = (
                self._disk.open(self.path) if self._disk.exists(self.path) else self._disk.create(self.path)
            )
        except (OSError, DiskFullError):
            return
        try:
            while self.held < self._size:
                file.pwritev((_PIECE,), self.held)
                self.held += PIECE_BYTES
            file.datasync()
        except (OSError, DiskFullError):
            with contextlib.suppress(OSError):
                file.truncate(self.held)
        finally:
            file.close()

    def give(self) -> bool:
        """Free a piece on the disk; return False if there is none left."""
        with self._lock:
            return self._cut()

    def _cut(self) -> bool:
        if not self.held:
            return False
        try:
            file = self._disk.open(self.path)
        except OSError:  # another process removed it, which freed the space
            self.held = 0
            return False
        try:
            file.truncate(self.held - PIECE_BYTES)
            self.held -= PIECE_BYTES
            file.datasync()  # the space is free once the file system's journal has the change
        except OSError:
            return False
        finally:
            file.close()
        self._next_try_s = self._clock.monotonic() + REFILL_S
        return True
