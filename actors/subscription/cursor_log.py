"""A subscription's cursor and its journal: when it is flushed, synced, compacted, confirmed and sent to the store.

Runs in the subscription's worker, on its loop; only syncs and compactions run in threads, one at a time. A part of the
Subscription: it owns the journal, and decides when the topic and the store are told about it.

Invariants
- what was confirmed is in the journal's file; what is reported as synced is on the disk
- a journal that failed is rewritten from the acknowledgments in memory, whatever its file contains; no acknowledgment
  is lost while the process lives, and nothing else becomes acknowledged
- while the file is replaced to move to another offset, nothing else is done to it
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from ister.actors.cadence import Cadence
from ister.actors.messages import Confirmed, Consumed, ForgetCursor, NodeStarted, StoreCursor
from ister.actors.runtime import Ref, Timer
from ister.actors.subscription.parts import Host, Queue, SubscriptionPart
from ister.actors.threads import Purpose
from ister.errors import StorageError
from ister.storage.cursor import Cursor
from ister.storage.cursor_files import Compaction, Sync
from ister.storage.cursor_format import encode_journal
from ister.storage.cursor_journal import CursorJournal
from ister.storage.meta import SubscriptionMeta

log = logging.getLogger("ister.subscription")

FLUSH_RETRY_S: Final = 1.0  # how long to wait before a failed write of the cursor is tried again
MOVE_RETRY_S: Final = 0.01  # a sync or a compaction is running
STORE_FIRST_S: Final = 10.0  # a cursor that starts to move again is sent to the store after about this long

OpenJournal = Callable[[Callable[[], int]], CursorJournal]


class CursorLog(SubscriptionPart):
    """The journal of one subscription.

    `open_journal(start)` opens the file; a new file begins at offset `start()`. `erase` deletes it. `queue` is told
    which messages need no delivery any more. With `told` false, neither the topic nor the store is told about the
    cursor.
    """

    def __init__(
        self,
        subscription: Host,
        queue: Queue,
        *,
        open_journal: OpenJournal,
        erase: Callable[[], None],
        topic_ref: Ref,
        uploader: Ref,
        flush_ms: int,
        sync_ms: int,
        store_ms: int,
        told: bool = True,
    ) -> None:
        self._subscription = subscription
        self._queue = queue
        self._name = f"{subscription.topic.name}/{subscription.meta.name}"
        self._open = open_journal
        self._erase = erase
        self._topic_ref = topic_ref
        self._uploader = uploader
        self._flush_s = flush_ms / 1000
        self._sync_s = sync_ms / 1000
        self._told = told
        self._cadence = Cadence(STORE_FIRST_S, store_ms / 1000)
        self._stored: tuple[SubscriptionMeta, bytes] | None = None  # what the store was sent last
        self._store_timer: Timer | None = None
        self._journal: CursorJournal | None = None
        self._confirming: list[tuple[int, int]] = []  # (consumer, ref)
        self._flush_timer: Timer | None = None
        self._sync_timer: Timer | None = None
        self._flushed_low = 0  # the cursor as it is in the journal
        self.synced_low = 0  # the cursor as it is on the disk
        self._closed = False

    @property
    def is_open(self) -> bool:
        """Whether the journal is open."""
        return self._journal is not None

    @property
    def cursor(self) -> Cursor:
        """The cursor: what is acknowledged."""
        assert self._journal is not None
        return self._journal.cursor

    def open(self, start: Callable[[], int], fit: Callable[[CursorJournal], None]) -> None:
        """Open the journal and let `fit` adjust it. Raises what either raises; then the journal is closed."""
        journal = self._open(start)
        try:
            fit(journal)
        except BaseException:
            journal.close()
            raise
        self._journal = journal
        self._flushed_low = journal.cursor.low
        self._sync_soon()  # it may be in the page cache only

    def note(self, first: int, end: int) -> int:
        """Acknowledge [first, end), in the journal within the flush interval; return how many messages were new."""
        assert self._journal is not None
        new = self._journal.note(first, end)
        if new:
            self.flush_soon()
        return new

    def note_all(self, ranges: Sequence[tuple[int, int]]) -> int:
        """Acknowledge many ranges, which ascend and do not overlap; otherwise as `note`."""
        assert self._journal is not None
        new = self._journal.note_all(ranges)
        if new:
            self.flush_soon()
        return new

    def finish(self, first: int, end: int) -> int:
        """Mark messages as done that need no delivery any more; return how many of them were new."""
        new = self.note(first, end)
        self._queue.settled(first, end)
        return new

    def note_failed(
        self, first: int, end: int, deliveries: int, failures: int, until_ms: int = 0, wait_ms: int = 0
    ) -> None:
        """Note how often messages were delivered and failed, how long they wait and until when; in the journal soon."""
        assert self._journal is not None
        if self._journal.note_failed(first, end, deliveries, failures, until_ms, wait_ms):
            self.flush_soon()

    def confirm(self, key: int, ref: int) -> None:
        """Flush the journal now, and send the consumer `Confirmed` when that is done."""
        self._confirming.append((key, ref))
        self.flush()

    def flush_soon(self) -> None:
        """Flush the journal within the flush interval."""
        if self._flush_timer is None:
            self._flush_timer = self._subscription.call_later(self._flush_s, self.flush)

    def flush(self) -> None:
        """Write what was noted to the journal. If that fails it is tried again, and nothing is confirmed meanwhile."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        assert self._journal is not None
        journal = self._journal
        try:
            if journal.failed is not None:
                if journal.busy:
                    self._flush_timer = self._subscription.call_later(MOVE_RETRY_S, self.flush)
                    return
                journal = self._journal = journal.written_anew()
            journal.flush()
        except StorageError as error:  # the acknowledgments are still in memory
            log.warning(
                "the cursor of subscription %s could not be written: %s; trying again in %g s",
                self._name,
                error,
                FLUSH_RETRY_S,
            )
            self._flush_timer = self._subscription.call_later(FLUSH_RETRY_S, self.flush)
            return
        self._flushed_low = journal.cursor.low
        confirming, self._confirming = self._confirming, []
        for key, ref in confirming:
            if (consumer := self._subscription.consumers.refs.get(key)) is not None:
                consumer.tell(Confirmed(ref))
        compaction = journal.begin_compaction()
        if compaction is not None:
            self._run_aside(compaction.run, lambda error: self._compacted(journal, compaction, error))
        if self._sync_timer is None:
            self._sync_soon()

    def _run_aside(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        """Run `work` in a thread, then `done`, also when the actor has ended meanwhile: files must be closed."""
        self._subscription.loop.offload(work, lambda _, error: done(error), Purpose.CURSORS)

    def _sync_soon(self) -> None:
        assert self._journal is not None
        if not self._journal.in_memory:
            self._sync_timer = self._subscription.call_later(self._sync_s, self._sync)

    def _compacted(self, journal: CursorJournal, compaction: Compaction, error: BaseException | None) -> None:
        if error is not None:
            log.warning("the cursor of subscription %s could not be rewritten: %s", self._name, error)
        journal.end_compaction(compaction, error)

    def _sync(self) -> None:
        assert self._journal is not None
        journal = self._journal
        self._sync_timer = None
        sync = journal.begin_sync()
        if sync is None:
            if journal.failed is None:  # one operation at a time on a file
                self._sync_soon()
            return
        low = self._flushed_low
        self._run_aside(sync.run, lambda error: self._sync_done(journal, sync, low, error))

    def _sync_done(self, journal: CursorJournal, sync: Sync, low: int, error: BaseException | None) -> None:
        journal.end_sync(sync, error)
        if self._closed or journal is not self._journal:
            return
        if error is not None:
            log.warning(
                "the cursor of subscription %s could not be synced, and is rewritten: %s", self._name, error
            )
            self.flush_soon()  # which rewrites the file
            return
        self.synced_low = low
        self._subscription.call_soon(self._synced)

    def move(self, offset: int, done: Callable[[StorageError | None], None]) -> None:
        """Replace the cursor by an empty one at an offset, durably; `done` is called with the outcome, perhaps at once.

        Until then the cursor stays as it was, and nothing may be delivered. A journal in memory is moved at once.
        """
        assert self._journal is not None
        if self._journal.busy:
            self._subscription.call_later(MOVE_RETRY_S, lambda: self.move(offset, done))
            return
        try:
            if self._journal.failed is not None:
                self._journal = self._journal.written_anew()
            self._journal.seek(offset)
        except StorageError as error:
            if self._journal.failed is not None:
                # which rewrites the file with the old cursor; else a restart would find the new one
                self.flush()
            done(error)
            return
        self._flushed_low = self.synced_low = offset
        self.flush()
        done(None)

    def holes(self) -> int:
        """Return the memory that what is acknowledged above the low watermark takes, in ranges."""
        return 0 if self._journal is None else self._journal.cursor.holes

    def pending(self, end: int, ranges_max: int) -> list[tuple[int, int]]:
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

    def _close(self, *, write: bool) -> None:
        """Write out all acknowledgments, unless the file is to be deleted, and close it."""
        self._closed = True
        if self._journal is None:
            return
        if write:
            with suppress(StorageError):
                if self._journal.failed is not None and not self._journal.busy:
                    self._journal = self._journal.written_anew()
                self._journal.flush()
                if not self._journal.busy:
                    self._journal.sync()
        self._journal.close()

    # ---- the topic and the store --------------------------------------------------------------------------------

    def tell_consumed(self) -> None:
        """Tell the topic what is acknowledged, if it retains unacknowledged messages."""
        if self._told and self._subscription.topic.settings.get("retention_acknowledged"):
            self._topic_ref.tell(Consumed(self._subscription.meta.name, self.synced_low))

    def _synced(self) -> None:
        self.tell_consumed()
        if self._store_timer is None:
            wait_s = self._cadence.wait_s(self._subscription.clock.monotonic())
            self._store_timer = self._subscription.call_later(wait_s, self.store)

    def store(self) -> None:
        """Send the cursor to the store if it changed; if the disk is lost, delivery continues from there."""
        if self._store_timer is not None:
            self._store_timer.cancel()
            self._store_timer = None
        if self._told and self.is_open and not self._closed:
            topic, meta = self._subscription.topic, self._subscription.meta
            journal = encode_journal(topic.incarnation, self.cursor)
            if self._stored != (meta, journal):
                self._stored = (meta, journal)
                self._cadence.written(self._subscription.clock.monotonic())
                self._uploader.tell(StoreCursor(topic, meta, (journal,)))

    # ---- as a part of the subscription --------------------------------------------------------------------------

    def stop(self) -> None:
        """Write out the acknowledgments and close the file."""
        if not self._closed:
            self.store()
            self._close(write=True)

    def erase(self) -> None:
        """Delete the journal's file, and the cursor in the store."""
        topic, meta = self._subscription.topic, self._subscription.meta
        self._uploader.tell(ForgetCursor(topic, meta.name))
        self._close(write=False)
        try:
            self._erase()
        except OSError as error:
            log.warning("the cursor of deleted subscription %s could not be deleted: %s", self._name, error)

    def opened(self) -> None:
        """Send the cursor to the store at once."""
        self._store_timer = self._subscription.call_later(0.0, self.store)

    def topic_updated(self) -> None:
        """Tell the topic what is acknowledged: its new settings may need it for the first time."""
        self.tell_consumed()

    def settings_updated(self) -> None:
        """Send the cursor to the store again, where the subscription's settings are beside it."""
        self.store()

    def node_started(self, started: NodeStarted) -> None:
        """Tell a tier process that was restarted what the one before was told."""
        if started.node == self._uploader.address.node:
            self._stored = None
            self.store()
