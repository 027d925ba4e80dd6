"""Reliable subscriptions: a cursor, read from the topic's segments, at least once.

Runs in a worker process; reads the topic's segment files itself, and is only told how far they are durable.

Invariants
- an offset is delivered to one consumer at a time: new ones come from `_reader` in order, others from `_redelivery`
- the cursor moves only past what was acknowledged
- what came back is delivered before anything new, lowest offset first
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from actors.ledger import Held, Redelivery
from actors.messages import (
    Acknowledged,
    AcknowledgedUntil,
    Answer,
    Ask,
    Attach,
    Attached,
    Confirmed,
    Consumed,
    Delete,
    Describe,
    Detach,
    Durable,
    Fetch,
    Fetched,
    ForgetCursor,
    FoundDamage,
    Left,
    NodeStarted,
    NotFetched,
    Notice,
    Repaired,
    Returned,
    StoreCursor,
    TopicFailed,
    TopicUpdated,
    Trimmed,
)
from actors.pieces import PIECE_BYTES, Batch, Piece, batch_bytes, cut, join
from actors.runtime import Address, Ref, System, Timer, receives
from actors.subscription import Subscription
from ister.errors import DamagedError, IsterError, RemoteError, StorageError, TrimmedError
from ister.wire import DELIVER_RECORDS_MAX, encode_result
from storage.catalogue import SubscriptionMeta, TopicMeta
from storage.cursor import Compaction, CursorJournal, encode_journal
from storage.tiered import NotHereError, TieredReader
from transport.session import SessionLimits

log = logging.getLogger("ister.subscription")

FETCH_AGAIN_S: Final = 30.0  # a segment that was asked for and has not come is asked for again
READ_BYTES: Final = 256 << 10  # what is read ahead of dispatch: a few pieces
ATTACH_AGAIN_S: Final = 10.0  # a mail each: ten thousand subscriptions cost a hundredth of a core
ATTACH_RETRY_S: Final = 1.0  # after the topic failed
FLUSH_RETRY_S: Final = 1.0  # a cursor that cannot be written is tried again so often


class _StartUnknownError(Exception):
    """Nobody knows yet where the topic begins."""


class ReliableSubscription(Subscription):
    """A subscription with a cursor: at least once, read from the topic's segments.

    `open_journal(start)` opens the cursor's journal, which begins at `start()` when it is new; `open_reader(offset)` a
    reader of the topic's segments; `erase` deletes the journal.
    """

    def __init__(
        self,
        system: System,
        path: str,
        topic: TopicMeta,
        meta: SubscriptionMeta,
        *,
        limits: SessionLimits,
        ack_timeout_ms: int,
        topic_ref: Ref,
        directory: Ref,
        fetcher: Ref,
        uploader: Ref,
        open_journal: Callable[[Callable[[], int]], CursorJournal],
        open_reader: Callable[[int], TieredReader],
        erase: Callable[[], None],
        flush_ms: int,
        sync_ms: int,
        store_ms: int,
    ) -> None:
        super().__init__(system, path, topic, meta, limits=limits, ack_timeout_ms=ack_timeout_ms)
        self._topic_ref = topic_ref
        self._directory = directory
        self._open_journal = open_journal
        self._open_reader = open_reader
        self._erase = erase
        self._flush_s = flush_ms / 1000
        self._sync_s = sync_ms / 1000
        self._journal: CursorJournal | None = None
        self._reader: TieredReader | None = None  # new messages, in order
        self._again: TieredReader | None = None  # messages that came back
        self._ahead: deque[Batch] = deque()  # read, not delivered; the first may be partly delivered
        self._next = 0  # the first offset never delivered
        self._durable_end = 0
        self._redelivery = Redelivery()
        self._redelivery_timer: Timer | None = None
        self._flush_timer: Timer | None = None
        self._sync_timer: Timer | None = None
        self._confirming: list[
            tuple[int, int]
        ] = []  # (consumer, ref): told once the journal has what they cover
        self._syncing = False
        self._flushed_low = 0  # the cursor as the journal has it
        self._synced_low = 0  # and as the disk has it
        self._attach_timer: Timer | None = None
        self._deleted = False
        self._fetcher = fetcher
        self._uploader = uploader
        self._store_s = store_ms / 1000
        self._store_timer: Timer | None = None
        self._fetching: int | None = None  # the offset whose segment is being brought back
        self._fetch_timer: Timer | None = None
        self._history_start = 0
        self._caught_up_at = 0  # from here on messages came while the subscription had delivered all before
        self.from_store = 0
        self.from_log = 0
        self.from_live = 0
        self._stalled: Notice | None = None  # at damage, until an operator decides
        self.trimmed = 0
        self.skipped = 0

    def on_start(self) -> None:
        """Ask the topic how far it is durable."""
        self._attach()

    def _attach(self) -> None:
        """Attach to the topic, now and again: mail is no promise, neither this nor the last word of the topic."""
        self._topic_ref.tell(Attach(self.address, self.topic))
        if self._attach_timer is not None:
            self._attach_timer.cancel()
        self._attach_timer = self.call_later(ATTACH_AGAIN_S, self._attach)

    def on_stop(self) -> None:
        """Write down what was acknowledged."""
        if self._journal is not None and not self._deleted:
            with suppress(StorageError):
                self._journal.flush()
                self._journal.sync()
            self._journal.close()

    def on_failure(self, *error: object) -> None:
        """Send the consumers away, and write down what they acknowledged: the next actor reads it."""
        super().on_failure(*error)
        self.on_stop()

    @receives(NodeStarted)
    def on_node_started(self, started: NodeStarted) -> None:
        """Tell the topic's process, and the tier, once more what they were told: they know nothing."""
        if started.node == self._topic_ref.address.node:
            self._attach()
        if started.node == self._fetcher.address.node:  # it knows nothing of what was asked of it
            self._fetch_again()
            self._store_cursor()

    # ---- the topic ----------------------------------------------------------------------------------------------

    @receives(Attached)
    def on_attached(self, attached: Attached) -> None:
        """Fix the start when the subscription is new, and read on from the cursor."""
        self._durable_end = max(self._durable_end, attached.durable_end)
        if self._journal is None:
            try:
                journal = self._open_journal(lambda: self._start(attached))
                self._fit(journal, attached.durable_end)
                self._journal = journal
            except _StartUnknownError:
                return  # the topic tells it once the store has told the topic
            except IsterError as error:
                self._become_failed(error)
                if error.code == "offset-out-of-range":
                    self._undo_creation()
                return
            self._next = self._flushed_low = self._journal.cursor.low
            self._sync_timer = self.call_later(
                self._sync_s, self._sync
            )  # what was read may be in the page cache alone
            self._reader = self._reader_at(self._next)
            self._caught_up_at = attached.durable_end
            self._store_timer = self.call_later(
                0.0, self._store_cursor
            )  # so that the store knows of it at once
        self._become_ready()
        self._tell_consumed()  # to a topic that was started again
        if attached.start_offset is not None:
            self.on_trimmed(Trimmed(attached.start_offset))
        self._wake()

    def _start(self, attached: Attached) -> int:
        start = self.meta.start
        if start == "latest":
            return attached.durable_end
        if attached.start_offset is None:
            raise _StartUnknownError
        if start == "earliest":
            return attached.start_offset
        offset = int(start)
        if not attached.start_offset <= offset <= attached.durable_end:
            raise RemoteError(
                "offset-out-of-range",
                f"offset {offset} is not in topic {self.topic.name!r}, which has "
                f"{attached.start_offset} to {attached.durable_end}",
            )
        return offset

    def _fit(self, journal: CursorJournal, end: int) -> None:
        """Take back what was acknowledged of messages that a power failure took from the topic's log.

        Their offsets are given out again, and who gets them must not be taken for acknowledged. Raises DamagedError
        where the topic promised that nothing of the kind can happen.
        """
        cursor = journal.cursor
        reached = max(cursor.low, cursor.ranges.end or 0)
        if reached <= end:
            return
        text = f"the log of topic {self.topic.name!r} ends at offset {end}, but {reached} was acknowledged"
        if self.topic.durability != "os":
            journal.close()
            raise DamagedError(text)
        log.warning("subscription %s: %s", self.meta.name, text)
        journal.seek(min(cursor.low, end))
        for first, stop in cursor.ranges:
            journal.note(first, min(stop, end))

    def _undo_creation(self) -> None:
        """A subscription that cannot begin where it was to was never there: its name is free for another start."""
        arguments = encode_result({"topic": self.topic.name, "subscription": self.meta.name})
        nobody = Address(self.system.node, "nobody")
        self._directory.tell(Ask("subscription.delete", arguments, nobody, 0))

    def on_topic_updated(self, command: TopicUpdated) -> None:
        """Go by the topic's new settings, which may be the first to ask what is acknowledged."""
        super().on_topic_updated(command)
        self._tell_consumed()

    @receives(TopicFailed)
    def on_topic_failed(self, failed: TopicFailed) -> None:
        """Go on with what is durable; before that is known, say why nobody can be served."""
        error = RemoteError(failed.code, failed.text)
        if not self._ready:
            self._become_failed(error)
        if error.action == "retry" and self._attach_timer is not None:
            self._attach_timer.cancel()
            self._attach_timer = self.call_later(ATTACH_RETRY_S, self._attach)

    @receives(Trimmed)
    def on_trimmed(self, trimmed: Trimmed) -> None:
        """Go on behind what retention took; what was not acknowledged of it is said to the consumers, and counted."""
        if self._journal is None:
            return
        self._history_start = trimmed.start_offset
        for reader in (self._reader, self._again):
            if reader is not None:
                reader.start = trimmed.start_offset
        if self._fetching is not None and self._fetching < trimmed.start_offset:
            self._fetching = None
        cursor, start = self._journal.cursor, trimmed.start_offset
        low, lost = cursor.low, cursor.unacknowledged(trimmed.start_offset)
        if start <= low:
            return
        self._journal.note(low, start)
        self._flush_soon()
        if self._next < start:
            self._next = start
            self._ahead.clear()
            self._reader = self._reader_at(start)
        if lost:
            self.trimmed += lost
            text = (
                f"retention took {lost} messages that were not acknowledged, between offset {low} and {start}"
            )
            log.warning("subscription %s of %s: %s", self.meta.name, self.topic.name, text)
            self._notify(Notice("trimmed", lost, text, low))
        self._wake()

    @receives(Durable)
    def on_durable(self, durable: Durable) -> None:
        """More may be delivered."""
        if durable.durable_end > self._durable_end:
            if self._next < self._durable_end:  # not caught up: what comes now is read from the log later
                self._caught_up_at = durable.durable_end
            self._durable_end = durable.durable_end
            self._wake()

    # ---- what to deliver ----------------------------------------------------------------------------------------

    def _position(self) -> int:
        return self._next

    def _next_piece(self, messages_max: int) -> Piece | None:
        while self._stalled is None and self._fetching is None:
            try:
                piece = self._piece_again(messages_max) if self._redelivery else None
                return piece or self._piece_new(messages_max)
            except NotHereError as error:
                self._fetch(error.offset)
            except TrimmedError as error:  # the topic is about to say so
                if error.end <= self._lowest():
                    self._halt(error)
                    return None
                self.on_trimmed(Trimmed(error.end))
            except DamagedError as error:
                self._stall(error)
            except StorageError as error:
                self._halt(error)
                return None
        return None

    # ---- what the log has no more -------------------------------------------------------------------------------

    def _fetch(self, offset: int) -> None:
        """Have a segment brought back from the store; meanwhile nothing is delivered."""
        self._fetching = offset
        self._fetcher.tell(Fetch(self.topic, offset, self.address))
        if self._fetch_timer is not None:
            self._fetch_timer.cancel()
        self._fetch_timer = self.call_later(FETCH_AGAIN_S, self._fetch_again)

    def _fetch_again(self) -> None:
        """Mail is no promise: ask once more."""
        if self._fetching is not None:
            self._fetch(self._fetching)

    @receives(Fetched)
    def on_fetched(self, fetched: Fetched) -> None:
        """Read on."""
        if fetched.offset == self._fetching:
            self._fetching = None
            self._wake()

    @receives(NotFetched)
    def on_not_fetched(self, answer: NotFetched) -> None:
        """Go on behind what the store has no more; wait for a store that is away; stop at what is damaged there."""
        if answer.offset != self._fetching:
            return
        if answer.retry:
            self._fetch(answer.offset)
            return
        self._fetching = None
        if answer.offset < answer.start:
            self.on_trimmed(Trimmed(answer.start))
        else:
            error = DamagedError(f"the store cannot give offset {answer.offset}: {answer.text}")
            error.first, error.end = answer.offset, answer.offset + 1
            self._stall(error)
        self._wake()

    def _reader_at(self, offset: int) -> TieredReader:
        reader = self._open_reader(offset)
        reader.start = self._history_start
        return reader

    def _lowest(self) -> int:
        assert self._journal is not None
        return self._journal.cursor.low

    def _halt(self, error: StorageError) -> None:
        """Serve nobody any more, and say why."""
        log.error("subscription %s of %s stops: %s", self.meta.name, self.topic.name, error.text)
        self._failure = error
        self._evict_all(error.code, error.text)

    def _stall(self, error: DamagedError) -> None:
        """Deliver nothing more until an operator decides; acknowledgments of what was delivered go on."""
        first, end = error.first or 0, error.end or 0
        what = f"offsets {first} to before {end} of topic {self.topic.name!r} are damaged, nothing is skipped by itself"
        text = f"{what} ({error.text}); to go on behind them: ister topic repair {self.topic.name} --skip-damaged"
        log.error("subscription %s of %s waits: %s", self.meta.name, self.topic.name, text)
        self._topic_ref.tell(FoundDamage(first, end, error.text))
        self._stalled = Notice("log-damaged", end - first, text, first)
        for consumer in self._consumers.values():
            consumer.tell(self._stalled)

    def _greet(self, consumer: Ref) -> None:
        """Tell a consumer that comes what those who are here were told."""
        super()._greet(consumer)
        if self._stalled is not None:
            consumer.tell(self._stalled)

    @receives(Repaired)
    def on_repaired(self, _repaired: Repaired) -> None:
        """Read again from where damage stopped it."""
        if self._journal is not None and self._stalled is not None:
            self._stalled = None
            self._ahead.clear()
            self._reader, self._again = self._reader_at(self._next), None
            self._wake()

    def _note_skipped(self, reader: TieredReader) -> None:
        """Take what the reader jumped over as done, and say so: an operator decided it."""
        assert self._journal is not None
        for first, end in reader.take_skipped():
            lost = self._journal.note(first, end)
            self._flush_soon()
            if first <= self._next < end:
                self._next = end
            if lost:
                self.skipped += lost
                text = f"{lost} damaged messages from offset {first} on were skipped, as an operator decided"
                log.warning("subscription %s of %s: %s", self.meta.name, self.topic.name, text)
                self._notify(Notice("skipped", lost, text, first))

    def _piece_again(self, messages_max: int) -> Piece | None:
        assert self._journal is not None
        now_s = self.clock.monotonic()
        cursor = self._journal.cursor
        while (held := self._redelivery.take(now_s, messages_max)) is not None:
            pending = cursor.pending(held.first, held.end)
            if not pending:
                continue  # acknowledged meanwhile, by who held it before
            first, end = pending[0]
            try:
                batch = self._batch_at(first)
            except StorageError:
                self._redelivery.add(held, now_s, now_s)
                raise
            if batch is None:  # skipped, and noted as done
                self._redelivery.add(held, now_s, now_s)
                continue
            stop = min(end, batch.first_offset + batch.count)
            if stop < held.end:
                self._redelivery.add(held._replace(first=stop), now_s, now_s)
            return cut(batch, first, stop, held.attempt)
        due = self._redelivery.next_ready_s()
        if due is not None and (self._redelivery_timer is None or not self._redelivery_timer.pending):
            self._redelivery_timer = self.call_later(max(due - now_s, 0.0) + 0.001, self._wake)
        return None

    def _batch_at(self, offset: int) -> Batch | None:
        if self._again is None:
            self._again = self._reader_at(offset)
        elif self._again.offset != offset:
            self._again.seek(offset)
        records = self._again.read(self._durable_end, 1)
        self._note_skipped(self._again)
        assert self._journal is not None
        if self._journal.cursor.is_acknowledged(offset):
            return None
        if not records or not records[0].first_offset <= offset < records[0].end_offset:
            raise StorageError(
                f"offset {offset} of topic {self.topic.name!r} is not there",
                code="log-damaged",
                action="stop",
            )
        return records[0]

    def _piece_new(self, messages_max: int) -> Piece | None:
        assert self._journal is not None
        cursor = self._journal.cursor
        while self._read_ahead():
            above = cursor.ranges.end
            if above is None or above <= self._next:
                return self._piece_whole(messages_max)
            batch = self._ahead[0]  # some of what follows is acknowledged already: deliver what is between
            batch_end = batch.first_offset + batch.count
            pending = cursor.pending(max(batch.first_offset, self._next), batch_end)
            if pending:
                first, end = pending[0][0], min(pending[0][1], pending[0][0] + messages_max)
                self._take_to(end, batch_end)
                return cut(batch, first, end, 1)
            self._take_to(batch_end, batch_end)
        return None

    def _read_ahead(self) -> bool:
        """Say whether there is anything new to deliver, read if need be."""
        assert self._reader is not None
        if not self._ahead and self._next < self._durable_end:
            records = self._reader.read(self._durable_end, READ_BYTES)
            self._ahead.extend(records)
            self._note_skipped(self._reader)
            if records:
                self._count(records, self._reader.from_store)
        return bool(self._ahead)

    def _count(self, records: Sequence[Batch], from_store: bool) -> None:
        """Count where messages came from: the store, the log, or its live end."""
        count = sum(record.count for record in records)
        if from_store:
            self.from_store += count
        elif records[0].first_offset >= self._caught_up_at:
            self.from_live += count
        else:
            self.from_log += count

    def _take_to(self, end: int, batch_end: int) -> None:
        self._next = end
        if end == batch_end:
            self._ahead.popleft()

    def _piece_whole(self, messages_max: int) -> Piece:
        """Return the first batch read ahead, cut to the credit, or joined with those that follow."""
        ahead, first = self._ahead, self._next
        batch = ahead[0]
        batch_end = batch.first_offset + batch.count
        if batch.first_offset < first or batch.count > messages_max:
            end = min(batch_end, first + messages_max)
            self._take_to(end, batch_end)
            return cut(batch, first, end, 1)
        together = [batch]
        size, count = batch_bytes(batch), batch.count
        self._take_to(batch_end, batch_end)
        while ahead and size < PIECE_BYTES and len(together) < DELIVER_RECORDS_MAX:
            batch = ahead[0]
            size += batch_bytes(batch)
            count += batch.count
            if size > PIECE_BYTES or count > messages_max or batch.columns != together[0].columns:
                break
            together.append(batch)
            self._take_to(self._next + batch.count, self._next + batch.count)
        return join(together)

    # ---- what comes back ----------------------------------------------------------------------------------------

    @receives(Acknowledged)
    def on_acknowledged(self, command: Acknowledged) -> None:
        """Move the cursor; the journal is written within `cursor_flush_ms`, or at once when asked to confirm."""
        assert self._journal is not None
        for first, end in command.ranges:
            self._journal.note(first, end)
        self._acknowledged(command.key, command.ref)

    @receives(AcknowledgedUntil)
    def on_acknowledged_until(self, command: AcknowledgedUntil) -> None:
        """Move the cursor past everything below an offset."""
        assert self._journal is not None
        low = self._journal.cursor.low
        if command.end > low:
            self._journal.note(low, command.end)
        self._acknowledged(command.key, command.ref)

    def _acknowledged(self, key: int, ref: int | None) -> None:
        if ref is not None:
            self._confirming.append((key, ref))
            self._flush()
        else:
            self._flush_soon()

    def _flush_soon(self) -> None:
        if self._flush_timer is None:
            self._flush_timer = self.call_later(self._flush_s, self._flush)

    def _flush(self) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        assert self._journal is not None
        try:
            if self._journal.failed is not None:
                self._journal = self._opened_again(self._journal)
            self._journal.flush()
        except (
            StorageError
        ) as error:  # what was acknowledged is in memory still, and written when that works again
            log.warning("cursor of %s/%s not written: %s", self.topic.name, self.meta.name, error)
            self._flush_timer = self.call_later(FLUSH_RETRY_S, self._flush)
            return
        self._flushed_low = self._journal.cursor.low
        confirming, self._confirming = self._confirming, []
        for key, ref in confirming:
            if (consumer := self._consumers.get(key)) is not None:
                consumer.tell(Confirmed(ref))
        compaction = self._journal.begin_compaction()
        if compaction is not None:
            journal = self._journal
            self.offload(compaction.run, lambda _, error: self._compacted(journal, compaction, error))
        if self._sync_timer is None and not self._syncing:
            self._sync_timer = self.call_later(self._sync_s, self._sync)

    def _opened_again(self, failed: CursorJournal) -> CursorJournal:
        """Return the journal opened anew after a write or sync failed, with all that is acknowledged noted in it."""
        journal = self._open_journal(lambda: failed.cursor.start)
        journal.note(journal.cursor.low, failed.cursor.low)
        for first, end in failed.cursor.ranges:
            journal.note(first, end)
        failed.close()
        return journal

    def _compacted(self, journal: CursorJournal, compaction: Compaction, error: BaseException | None) -> None:
        if error is not None:
            log.warning("cursor of %s/%s not compacted: %s", self.topic.name, self.meta.name, error)
        if journal is self._journal:
            journal.end_compaction(compaction, error)

    def _sync(self) -> None:
        assert self._journal is not None
        if self._journal.compacting:  # one thing at a time on one file
            self._sync_timer = self.call_later(self._sync_s, self._sync)
            return
        self._sync_timer, self._syncing = None, True
        low = self._journal.cursor.low if not self._journal.noted else self._flushed_low
        self.offload(self._journal.sync, lambda _, error: self._synced(low, error))

    def _synced(self, low: int, error: BaseException | None) -> None:
        self._syncing = False
        if error is not None:
            log.warning("cursor of %s/%s not synced: %s", self.topic.name, self.meta.name, error)
        elif low > self._synced_low:
            self._synced_low = low
            self._tell_consumed()
        if error is None and self._store_timer is None:
            self._store_timer = self.call_later(self._store_s, self._store_cursor)

    def _store_cursor(self) -> None:
        """Let the store have the cursor: with the disk lost, no more than this interval comes again."""
        if self._store_timer is not None:
            self._store_timer.cancel()
            self._store_timer = None
        if self._journal is not None and not self._deleted:
            journal = encode_journal(self.topic.incarnation, self._journal.cursor)
            self._uploader.tell(StoreCursor(self.topic, self.meta, (journal,)))

    def _tell_consumed(self) -> None:
        if self.topic.settings.get("retention_acknowledged"):
            self._topic_ref.tell(Consumed(self.meta.name, self._synced_low))

    @receives(Returned)
    def on_returned(self, command: Returned) -> None:
        """Queue what was refused, timed out, or was held by a client that came back."""
        self._again_later(command.held, command.delay_s)

    @receives(Left)
    def on_left(self, command: Left) -> None:
        """Queue what a consumer held that is gone, for the next one."""
        self._again_later(command.held, 0.0)
        self._remove(command.key)

    def _again_later(self, held: Sequence[Held], delay_s: float) -> None:
        now_s = self.clock.monotonic()
        for part in held:
            self._redelivery.add(part._replace(attempt=part.attempt + 1), now_s + delay_s, now_s)
        self._wake()
        if delay_s and held:
            self.call_later(delay_s + 0.001, self._wake)

    # ---- the rest -----------------------------------------------------------------------------------------------

    @receives(Delete)
    def on_delete(self, command: Delete) -> None:
        """Send the consumers away, and leave nothing."""
        self._deleted = True
        self._evict_all("subscription-deleted", f"subscription {self.meta.name!r} was deleted")
        self._topic_ref.tell(Detach(self.address))
        self._uploader.tell(ForgetCursor(self.topic, self.meta.name))
        if self._journal is not None:
            self._journal.close()
        try:
            self._erase()
        except OSError as error:
            log.warning("cursor of %s/%s is still there: %s", self.topic.name, self.meta.name, error)
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result({})))
        self.stop_now()  # what waits behind this must not begin anything again

    @receives(Describe)
    def on_describe(self, command: Describe) -> None:
        """Say what there is, once that is known."""
        self.on_arrival(command)

    def _description(self) -> dict[str, Any]:
        body = super()._description()
        body |= {
            "position": self._next,
            "durable_end": self._durable_end,
            "waiting_redelivery": self._redelivery.messages,
            "trimmed": self.trimmed,
            "skipped": self.skipped,
            "from_store": self.from_store,
            "from_log": self.from_log,
            "from_live": self.from_live,
            "fetching": self._fetching,
            "stalled": None if self._stalled is None else self._stalled.text,
            "ack_timeout_ms": self._ack_timeout_ms,
        }
        if self._journal is not None:
            cursor = self._journal.cursor
            body |= {
                "cursor": cursor.low,
                "acknowledged_above": cursor.ranges.total,
                "unacknowledged": cursor.unacknowledged(self._durable_end),
            }
        return body
