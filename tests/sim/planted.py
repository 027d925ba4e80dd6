"""Bugs planted on purpose, one at a time: what the oracle must find, or it proves nothing.

Each is a context manager that breaks the broker in one place, as a programmer might have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final
from unittest.mock import patch

from actors.consumer import Consumer
from actors.lanes import Lane, Lanes
from storage import upload
from storage.cursor import Cursor
from storage.opening import _Opening
from storage.producers import ProducerTable
from storage.simulated import SimulatedFile


@contextmanager
def skipped_fsync() -> Iterator[None]:
    """Receipts are given for what is only in the page cache."""

    def datasync(self: SimulatedFile) -> None:
        self._disk.happens("sync", self.path)
        if "/topics/" not in self.path:
            self._inode.sync()

    with patch.object(SimulatedFile, "datasync", datasync):
        yield


@contextmanager
def cursor_past_a_hole() -> Iterator[None]:
    """Acknowledging something above the cursor moves it there, over what is not acknowledged in between."""

    def acknowledge(self: Cursor, first: int, end: int) -> int:
        new = original(self, first, end)
        self.low = max(self.low, end)
        self.ranges.pop_through(self.low)
        return new

    original = Cursor.acknowledge
    with patch.object(Cursor, "acknowledge", acknowledge):
        yield


@contextmanager
def forgotten_redelivery() -> Iterator[None]:
    """What a consumer holds whose connection is gone is not given back when its session ends."""

    def leave(self: Consumer) -> None:
        if self._handle.session.routing is None:
            self._release()
        original(self)

    original = Consumer._leave
    with patch.object(Consumer, "_leave", leave):
        yield


@contextmanager
def key_too_early() -> Iterator[None]:
    """A key is handed to its next consumer while the one before still has messages of it."""

    def queue(self: Lanes, lane: Lane) -> None:
        in_flight, lane.in_flight = lane.in_flight, 0
        original(self, lane)
        lane.in_flight = in_flight

    original = Lanes._queue
    with patch.object(Lanes, "_queue", queue):
        yield


@contextmanager
def fenced_writer_counted() -> Iterator[None]:
    """A writer that another broker has fenced goes on giving receipts for what it uploads."""
    with patch.object(upload, "check_fence", lambda _store, _topic, _epoch: None):
        yield


@contextmanager
def dedup_forgotten() -> Iterator[None]:
    """A log that is opened again knows nothing of the producers whose batches it holds."""

    def producers(self: _Opening, *_given: object) -> ProducerTable:
        return ProducerTable(self.settings.producers_max)

    with patch.object(_Opening, "_producers", producers):
        yield


PLANTED: Final[dict[str, Callable[[], AbstractContextManager[Any]]]] = {
    "skipped-fsync": skipped_fsync,
    "cursor-past-a-hole": cursor_past_a_hole,
    "forgotten-redelivery": forgotten_redelivery,
    "key-too-early": key_too_early,
    "fenced-writer-counted": fenced_writer_counted,
    "dedup-forgotten": dedup_forgotten,
}
