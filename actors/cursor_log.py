"""A subscription's cursor and when it is written down: flushed, synced, compacted, confirmed, sent to the store.

Runs in the subscription's worker, on its loop; only `sync` and compactions are offloaded, one at a time.

Invariants
- what was confirmed is in the journal's file; what is told as synced is on the disk
- a journal that failed is opened anew with all that is acknowledged; nothing acknowledged is forgotten while we live
- moving to another offset replaces the file while nothing else is done to it
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from actors.runtime import LoopActor, Timer
from ister.errors import StorageError
from storage.cursor import Compaction, Cursor, CursorJournal

log = logging.getLogger("ister.subscription")

FLUSH_RETRY_S: Final = 1.0  # a cursor that cannot be written is tried again so often
MOVE_RETRY_S: Final = 0.01  # a sync or a compaction is on its way

OpenJournal = Callable[[Callable[[], int]], CursorJournal]


class CursorLog:
    """The journal of one subscription, kept by its actor.

    `open_journal(start)` opens the file, which begins at `start()` when it is new. `confirmed(key, ref)` is called once
    the journal has what a consumer acknowledged with a ref, `synced(low)` once the cursor is on the disk.
    """

    def __init__(
        self,
        actor: LoopActor,
        name: str,
        open_journal: OpenJournal,
        *,
        flush_ms: int,
        sync_ms: int,
        confirmed: Callable[[int, int], None],
        synced: Callable[[int], None],
    ) -> None:
        self._actor = actor
        self._name = name
        self._open = open_journal
        self._flush_s = flush_ms / 1000
        self._sync_s = sync_ms / 1000
        self._confirmed = confirmed
        self._synced = synced
        self._journal: CursorJournal | None = None
        self._confirming: list[tuple[int, int]] = []  # (consumer, ref)
        self._flush_timer: Timer | None = None
        self._sync_timer: Timer | None = None
        self._syncing = False
        self._flushed_low = 0  # the cursor as the journal has it
        self.synced_low = 0  # and as the disk has it

    @property
    def is_open(self) -> bool:
        """Whether there is a cursor."""
        return self._journal is not None

    @property
    def cursor(self) -> Cursor:
        """What is acknowledged."""
        assert self._journal is not None
        return self._journal.cursor

    def open(self, start: Callable[[], int], fit: Callable[[CursorJournal], None]) -> None:
        """Open the journal; `fit` has a look at it before it counts. Raises what either raises, and is closed then."""
        journal = self._open(start)
        fit(journal)
        self._journal = journal
        self._flushed_low = journal.cursor.low
        self._sync_soon()  # it may be in the page cache alone

    def note(self, first: int, end: int) -> int:
        """Acknowledge [first, end), soon in the journal; return how many of them were not before."""
        assert self._journal is not None
        new = self._journal.note(first, end)
        if new:
            self.flush_soon()
        return new

    def note_failed(self, first: int, end: int, deliveries: int, failures: int) -> None:
        """Note how often messages were delivered and failed, soon in the journal."""
        assert self._journal is not None
        if self._journal.note_failed(first, end, deliveries, failures):
            self.flush_soon()

    def confirm(self, key: int, ref: int) -> None:
        """Write everything down now, and tell when that is so."""
        self._confirming.append((key, ref))
        self.flush()

    def flush_soon(self) -> None:
        """Write down within the flush interval what was noted."""
        if self._flush_timer is None:
            self._flush_timer = self._actor.call_later(self._flush_s, self.flush)

    def flush(self) -> None:
        """Write down what was noted; where that fails it is tried again, and nobody is told that it was."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        assert self._journal is not None
        try:
            if self._journal.failed is not None:
                self._journal = self._opened_again(self._journal)
            self._journal.flush()
        except StorageError as error:  # what was acknowledged is in memory still
            log.warning("cursor of %s not written: %s", self._name, error)
            self._flush_timer = self._actor.call_later(FLUSH_RETRY_S, self.flush)
            return
        self._flushed_low = self._journal.cursor.low
        confirming, self._confirming = self._confirming, []
        for key, ref in confirming:
            self._confirmed(key, ref)
        compaction = self._journal.begin_compaction()
        if compaction is not None:
            journal = self._journal
            self._actor.offload(compaction.run, lambda _, error: self._compacted(journal, compaction, error))
        if self._sync_timer is None and not self._syncing:
            self._sync_soon()

    def _sync_soon(self) -> None:
        assert self._journal is not None
        if not self._journal.in_memory:
            self._sync_timer = self._actor.call_later(self._sync_s, self._sync)

    def _opened_again(self, failed: CursorJournal) -> CursorJournal:
        """Return the journal opened anew after a write or sync failed, with all that is acknowledged noted in it."""
        journal = self._open(lambda: failed.cursor.start)
        journal.note(journal.cursor.low, failed.cursor.low)
        for first, end in failed.cursor.ranges:
            journal.note(first, end)
        for offset, known in failed.cursor.failed.items():
            journal.note_failed(offset, offset + 1, *known)
        failed.close()
        return journal

    def _compacted(self, journal: CursorJournal, compaction: Compaction, error: BaseException | None) -> None:
        if error is not None:
            log.warning("cursor of %s not compacted: %s", self._name, error)
        if journal is self._journal:
            journal.end_compaction(compaction, error)

    def _sync(self) -> None:
        assert self._journal is not None
        if self._journal.compacting:  # one thing at a time on one file
            self._sync_soon()
            return
        self._sync_timer, self._syncing = None, True
        low = self._journal.cursor.low if not self._journal.noted else self._flushed_low
        journal = self._journal
        self._actor.offload(journal.sync, lambda _, error: self._sync_done(journal, low, error))

    def _sync_done(self, journal: CursorJournal, low: int, error: BaseException | None) -> None:
        self._syncing = False
        if error is not None:
            log.warning("cursor of %s not synced: %s", self._name, error)
        elif journal is self._journal:
            self.synced_low = low
            self._synced(low)

    def move(self, offset: int, done: Callable[[StorageError | None], None]) -> None:
        """Forget all acknowledgments and begin anew at an offset, durably; `done` is told, perhaps at once.

        Until then the cursor is where it was, and nothing may be delivered. A journal in memory is moved at once.
        """
        assert self._journal is not None
        if self._syncing or self._journal.compacting:
            self._actor.call_later(MOVE_RETRY_S, lambda: self.move(offset, done))
            return
        try:
            if self._journal.failed is not None:
                self._journal = self._opened_again(self._journal)
            self._journal.seek(offset)
        except StorageError as error:
            done(error)
            return
        self._flushed_low = self.synced_low = offset
        self.flush()
        done(None)

    def holes(self) -> int:
        """Return how many ranges are acknowledged above the first that is not: what a cursor costs memory for."""
        return 0 if self._journal is None else len(self._journal.cursor.ranges)

    def pending(self, end: int, ranges_max: int) -> Iterable[tuple[int, int]]:
        """Return the first ranges below `end` that are not acknowledged."""
        cursor = self.cursor
        found: list[tuple[int, int]] = []
        at = cursor.low
        for first, stop in cursor.ranges:
            if at >= end or len(found) >= ranges_max:
                return found
            found.append((at, min(first, end)))
            at = stop
        if at < end and len(found) < ranges_max:
            found.append((at, end))
        return found

    def close(self, *, write: bool) -> None:
        """Close the file, with all that was acknowledged in it unless it is to be deleted."""
        if self._journal is not None:
            if write:
                with suppress(StorageError):
                    self._journal.flush()
                    self._journal.sync()
            self._journal.close()
