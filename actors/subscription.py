"""Subscriptions: each decides who gets what of a topic, and a reliable one owns the cursor.

Runs in a worker process, not always its topic's: a reliable subscription reads the topic's segment files itself and is only
told how far they are durable; a non-reliable one is sent the batches.

Invariants
- an offset is delivered to one consumer at a time: new ones come from `_reader` in order, others from `_redelivery`
- the cursor moves only past what was acknowledged
- in-order subscriptions deliver what came back before anything new
- work is per piece (some 64 KiB), never per message
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from actors.ledger import Held, Redelivery
from actors.messages import (
    Acknowledged,
    AcknowledgedUntil,
    AddCredit,
    Answer,
    Attach,
    AttachConsumer,
    Attached,
    Batches,
    Block,
    Confirmed,
    Delete,
    Deliver,
    Describe,
    Detach,
    Durable,
    Evicted,
    Granted,
    Left,
    NodeStarted,
    Notice,
    Refused,
    Returned,
    SetCredit,
    StartSubscription,
    TopicFailed,
)
from actors.pieces import PIECE_BYTES, Batch, Piece, batch_bytes, cut, join, whole
from actors.runtime import LoopActor, Ref, System, Timer, receives
from actors.selection import Member, Roster
from ister.errors import IsterError, RemoteError, StorageError
from ister.wire import DELIVER_RECORDS_MAX, encode_result
from storage.catalogue import SubscriptionMeta, TopicMeta
from storage.cursor import Compaction, CursorJournal
from storage.reader import Reader
from transport.session import SessionLimits

log = logging.getLogger("ister.subscription")

# One turn of a subscription hands out at most this much before other actors and sockets get their turn: some 1 ms.
DISPATCH_BYTES_MAX: Final = 1 << 20
READ_BYTES: Final = 256 << 10  # what is read ahead of dispatch: a few pieces
FLUSH_RETRY_S: Final = 1.0  # a cursor that cannot be written is tried again so often
DROP_NOTICE_S: Final = 0.1  # a consumer is told of losses at most so often


class Subscription(LoopActor):
    """What both kinds share: the consumers, their credit, and when to dispatch."""

    def __init__(
        self,
        system: System,
        path: str,
        topic: TopicMeta,
        meta: SubscriptionMeta,
        *,
        limits: SessionLimits,
        ack_timeout_ms: int,
    ) -> None:
        super().__init__(system, path)
        self.topic = topic
        self.meta = meta
        self._limits = limits
        self._ack_timeout_ms = int(meta.settings.get("ack_timeout_ms", ack_timeout_ms))
        self._roster = Roster(meta.type, meta.name)
        self._consumers: dict[int, Ref] = {}
        self._active: Member | None = None
        self._dispatch_scheduled = False
        self._ready = False  # the topic answered, and the start is fixed
        self._failure: IsterError | None = None
        self._waiting: list[AttachConsumer | StartSubscription] = []
        self.delivered = 0
        self.redelivered = 0

    # ---- consumers ----------------------------------------------------------------------------------------------

    @receives(AttachConsumer, StartSubscription)
    def on_arrival(self, command: AttachConsumer | StartSubscription) -> None:
        """Give a consumer its place, or answer that the subscription is there, once that is so."""
        if not self._ready and self._failure is None:
            self._waiting.append(command)
        else:
            self._admit(command)

    def _admit(self, command: AttachConsumer | StartSubscription) -> None:
        failure = self._failure
        if isinstance(command, StartSubscription):
            answer = (
                Answer(command.ticket, encode_result({}))
                if failure is None
                else Refused(command.ticket, failure.code, failure.text)
            )
            self.system.at(command.reply).tell(answer)
            return
        if failure is not None:
            command.consumer.tell(Evicted(failure.code, failure.text))
            return
        try:
            self._roster.attach(
                command.key, priority=command.priority, messages=command.messages, bytes=command.bytes
            )
        except RemoteError as error:
            command.consumer.tell(Evicted(error.code, error.text))
            return
        self._consumers[command.key] = command.consumer
        command.consumer.tell(Granted(self._position(), self._ack_timeout_ms))
        if self.meta.type == "failover" and self._roster.active is self._active:
            command.consumer.tell(Notice("standby", 0, "another consumer is active"))
        self._after_change()

    def _become_ready(self) -> None:
        self._ready, self._failure = True, None
        self._admit_waiting()

    def _become_failed(self, error: IsterError) -> None:
        self._failure = error
        self._admit_waiting()

    def _admit_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for command in waiting:
            self._admit(command)

    def _after_change(self) -> None:
        """Tell a Failover's new active consumer, and see what can be delivered now."""
        active = self._roster.active
        if active is not self._active:
            self._active = active
            if active is not None and self.meta.type == "failover":
                self._consumers[active.key].tell(Notice("active", 0, "this consumer is active now"))
        self._wake()

    def _remove(self, key: int) -> None:
        self._roster.detach(key)
        self._consumers.pop(key, None)
        self._after_change()

    @receives(AddCredit)
    def on_credit(self, command: AddCredit) -> None:
        """A consumer has room for more."""
        limits = self._limits
        self._roster.add_credit(
            command.key,
            command.messages,
            command.bytes,
            messages_max=limits.credit_messages_max,
            bytes_max=limits.credit_bytes_max,
        )
        self._wake()

    @receives(SetCredit)
    def on_set_credit(self, command: SetCredit) -> None:
        """A consumer came back."""
        self._roster.set_credit(command.key, command.messages, command.bytes)
        self._wake()

    @receives(Block)
    def on_block(self, command: Block) -> None:
        """A consumer's connection is full, or takes again."""
        self._roster.block(command.key, command.blocked)
        if not command.blocked:
            self._wake()

    # ---- dispatch -----------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Dispatch once, at the end of this turn, whatever the turn brings."""
        if not self._dispatch_scheduled and self._ready and self._consumers:
            self._dispatch_scheduled = True
            self.at_turn_end(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatch_scheduled = False
        budget = DISPATCH_BYTES_MAX
        roster = self._roster
        while budget > 0:
            member = roster.choose()
            if member is None:
                return
            piece = self._next_piece(member.messages)
            if piece is None:
                return
            roster.spend(member, piece.count, piece.bytes)
            self._consumers[member.key].tell(Deliver(piece))
            budget -= piece.bytes
            self.delivered += piece.count
            if piece.attempt > 1:
                self.redelivered += piece.count
        self._wake()

    def _next_piece(self, messages_max: int) -> Piece | None:
        raise NotImplementedError

    def _position(self) -> int:
        raise NotImplementedError

    # ---- the rest -----------------------------------------------------------------------------------------------

    @receives(NodeStarted)
    def on_node_started(self, started: NodeStarted) -> None:
        """Nothing to say to a process that was started again."""

    def on_failure(self, *_error: object) -> None:
        """Send the consumers away: they may open again, and find a new actor."""
        self._evict_all("internal", "the broker failed for this subscription; its log says how")

    def _description(self) -> dict[str, Any]:
        return {
            "topic": self.topic.name,
            "subscription": self.meta.name,
            "type": self.meta.type,
            "strategy": self.topic.dispatch,
            "consumers": len(self._consumers),
            "delivered": self.delivered,
            "redelivered": self.redelivered,
            "failure": None if self._failure is None else self._failure.text,
        }

    @receives(Describe)
    def on_describe(self, command: Describe) -> None:
        """Say what there is."""
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result(self._description())))

    def _evict_all(self, code: str, text: str) -> None:
        for consumer in self._consumers.values():
            consumer.tell(Evicted(code, text))


class ReliableSubscription(Subscription):
    """A subscription with a cursor: at least once, read from the topic's segments.

    `open_journal(start)` opens the cursor's journal, which begins at `start()` when it is new; `open_reader(offset)` a reader of
    the topic's segments; `erase` deletes the journal.
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
        open_journal: Callable[[Callable[[], int]], CursorJournal],
        open_reader: Callable[[int], Reader],
        erase: Callable[[], None],
        flush_ms: int,
        sync_ms: int,
    ) -> None:
        super().__init__(system, path, topic, meta, limits=limits, ack_timeout_ms=ack_timeout_ms)
        self._topic_ref = topic_ref
        self._open_journal = open_journal
        self._open_reader = open_reader
        self._erase = erase
        self._flush_s = flush_ms / 1000
        self._sync_s = sync_ms / 1000
        self._journal: CursorJournal | None = None
        self._reader: Reader | None = None  # new messages, in order
        self._again: Reader | None = None  # messages that came back
        self._ahead: deque[Batch] = deque()  # read, not delivered; the first may be partly delivered
        self._next = 0  # the first offset never delivered
        self._durable_end = 0
        self._redelivery = Redelivery()
        self._redelivery_timer: Timer | None = None
        self._flush_timer: Timer | None = None
        self._sync_timer: Timer | None = None
        self._syncing = False
        self._deleted = False

    def on_start(self) -> None:
        """Ask the topic how far it is durable."""
        self._topic_ref.tell(Attach(self.address, self.topic))

    def on_stop(self) -> None:
        """Write down what was acknowledged."""
        if self._journal is not None and not self._deleted:
            self._journal.flush()
            self._journal.sync()
            self._journal.close()

    @receives(NodeStarted)
    def on_node_started(self, started: NodeStarted) -> None:
        """Attach again where it was the topic's process: it knows of no watcher."""
        if started.node == self._topic_ref.address.node:
            self._topic_ref.tell(Attach(self.address, self.topic))

    # ---- the topic ----------------------------------------------------------------------------------------------

    @receives(Attached)
    def on_attached(self, attached: Attached) -> None:
        """Fix the start when the subscription is new, and read on from the cursor."""
        self._durable_end = max(self._durable_end, attached.durable_end)
        if self._journal is None:
            try:
                self._journal = self._open_journal(lambda: self._start(attached))
            except IsterError as error:
                self._become_failed(error)
                return
            self._next = self._journal.cursor.low
            self._reader = self._open_reader(self._next)
        self._become_ready()
        self._wake()

    def _start(self, attached: Attached) -> int:
        start = self.meta.start
        if start == "earliest":
            return attached.start_offset
        if start == "latest":
            return attached.durable_end
        offset = int(start)
        if not attached.start_offset <= offset <= attached.durable_end:
            raise RemoteError(
                "offset-out-of-range",
                f"offset {offset} is not in topic {self.topic.name!r}, which has "
                f"{attached.start_offset} to {attached.durable_end}",
            )
        return offset

    @receives(TopicFailed)
    def on_topic_failed(self, failed: TopicFailed) -> None:
        """Go on with what is durable; before that is known, say why nobody can be served."""
        if not self._ready:
            self._become_failed(RemoteError(failed.code, failed.text))

    @receives(Durable)
    def on_durable(self, durable: Durable) -> None:
        """More may be delivered."""
        if durable.durable_end > self._durable_end:
            self._durable_end = durable.durable_end
            self._wake()

    # ---- what to deliver ----------------------------------------------------------------------------------------

    def _position(self) -> int:
        return self._next

    def _next_piece(self, messages_max: int) -> Piece | None:
        try:
            piece = self._piece_again(messages_max) if self._redelivery else None
            return piece or self._piece_new(messages_max)
        except StorageError as error:
            log.error("subscription %s of %s cannot be served: %s", self.meta.name, self.topic.name, error)
            self._failure = error
            self._evict_all(error.code, error.text)
            return None

    def _piece_again(self, messages_max: int) -> Piece | None:
        assert self._journal is not None
        now_s = self.clock.monotonic()
        cursor = self._journal.cursor
        while (held := self._redelivery.take(now_s, messages_max)) is not None:
            pending = cursor.pending(held.first, held.end)
            if not pending:
                continue  # acknowledged meanwhile, by who held it before
            first, end = pending[0]
            batch = self._batch_at(first)
            stop = min(end, batch.first_offset + batch.count)
            if stop < held.end:
                self._redelivery.add(held._replace(first=stop), now_s, now_s)
            return cut(batch, first, stop, held.attempt)
        due = self._redelivery.next_ready_s()
        if due is not None and (self._redelivery_timer is None or not self._redelivery_timer.pending):
            self._redelivery_timer = self.call_later(max(due - now_s, 0.0) + 0.001, self._wake)
        return None

    def _batch_at(self, offset: int) -> Batch:
        if self._again is None:
            self._again = self._open_reader(offset)
        elif self._again.offset != offset:
            self._again.seek(offset)
        records = self._again.read(self._durable_end, 1)
        if not records:
            raise StorageError(f"offset {offset} of topic {self.topic.name!r} is not there", code="log-damaged", action="stop")
        return records[0]

    def _piece_new(self, messages_max: int) -> Piece | None:
        assert self._journal is not None and self._reader is not None
        ahead, first = self._ahead, self._next
        if not ahead:
            if first >= self._durable_end:
                return None
            ahead.extend(self._reader.read(self._durable_end, READ_BYTES))
            if not ahead:
                return None
        above = self._journal.cursor.ranges.end
        if above is not None and above > first:
            return self._piece_between(messages_max)
        batch = ahead[0]
        if batch.first_offset < first or batch.count > messages_max:
            end = min(batch.first_offset + batch.count, first + messages_max)
            if end == batch.first_offset + batch.count:
                ahead.popleft()
            self._next = end
            return cut(batch, first, end, 1)
        ahead.popleft()
        size, count = batch_bytes(batch), batch.count
        self._next = first + count
        if size >= PIECE_BYTES or not ahead:
            return whole(batch, 1)
        together = [batch]
        while ahead and len(together) < DELIVER_RECORDS_MAX:
            batch = ahead[0]
            size += batch_bytes(batch)
            count += batch.count
            if size > PIECE_BYTES or count > messages_max or batch.columns != together[0].columns:
                break
            together.append(ahead.popleft())
            self._next += batch.count
        return join(together)

    def _piece_between(self, messages_max: int) -> Piece | None:
        """Return the next piece where some of what follows is acknowledged already."""
        assert self._journal is not None
        cursor = self._journal.cursor
        while self._ahead:
            batch = self._ahead[0]
            batch_end = batch.first_offset + batch.count
            pending = cursor.pending(max(batch.first_offset, self._next), batch_end)
            if pending:
                first = pending[0][0]
                end = min(pending[0][1], first + messages_max)
                self._next = end
                if end == batch_end:
                    self._ahead.popleft()
                return cut(batch, first, end, 1)
            self._next = batch_end
            self._ahead.popleft()
        return self._piece_new(messages_max)

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
            self._flush()
            consumer = self._consumers.get(key)
            if consumer is not None:
                consumer.tell(Confirmed(ref))
        elif self._flush_timer is None:
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
        except StorageError as error:  # what was acknowledged is in memory still, and written when that works again
            log.warning("cursor of %s/%s not written: %s", self.topic.name, self.meta.name, error)
            self._flush_timer = self.call_later(FLUSH_RETRY_S, self._flush)
            return
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
        self.offload(self._journal.sync, self._synced)

    def _synced(self, _: None, error: BaseException | None) -> None:
        self._syncing = False
        if error is not None:
            log.warning("cursor of %s/%s not synced: %s", self.topic.name, self.meta.name, error)

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
        if self._journal is not None:
            self._journal.close()
        self._erase()
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result({})))
        self.stop()

    def _description(self) -> dict[str, Any]:
        body = super()._description()
        body |= {
            "position": self._next,
            "durable_end": self._durable_end,
            "waiting_redelivery": self._redelivery.messages,
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


class NonReliableSubscription(Subscription):
    """A subscription in memory: what its consumers have no credit for waits in a bounded buffer, then is dropped.

    `buffer_messages_max` and `buffer_bytes_max` bound the buffer; `drop` says what goes when it is full: "oldest" or "newest".
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
        relay: Ref,
        buffer_messages_max: int,
        buffer_bytes_max: int,
        drop: str,
    ) -> None:
        super().__init__(system, path, topic, meta, limits=limits, ack_timeout_ms=ack_timeout_ms)
        self._relay = relay
        self._messages_max = int(meta.settings.get("buffer_messages_max", buffer_messages_max))
        self._bytes_max = int(meta.settings.get("buffer_bytes_max", buffer_bytes_max))
        self._drop = str(meta.settings.get("drop", drop))
        self._buffer: deque[Batch] = deque()
        self._buffer_messages = 0
        self._buffer_bytes = 0
        self._taken = 0  # messages of the first batch that were delivered already
        self._expected: int | None = None
        self._notice_timer: Timer | None = None
        self._attached = False
        self.dropped = 0

    def on_start(self) -> None:
        """Be ready at once: there is nothing to recover."""
        self._become_ready()

    def on_stop(self) -> None:
        """Let the relay forget us."""
        self._relay.tell(Detach(self.address))

    def _after_change(self) -> None:
        if bool(self._consumers) != self._attached:  # without consumers nobody is there to lose anything
            self._attached = bool(self._consumers)
            self._relay.tell(Attach(self.address, self.topic) if self._attached else Detach(self.address))
            self._expected = None
            if not self._attached:
                self._lose(self._buffer_messages)
                self._buffer.clear()
                self._buffer_messages = self._buffer_bytes = self._taken = 0
        super()._after_change()

    @receives(Attached)
    def on_attached(self, attached: Attached) -> None:
        """The topic runs, perhaps again: offsets begin anew."""
        self._expected = None

    @receives(Batches)
    def on_batches(self, command: Batches) -> None:
        """Buffer batches; what does not fit is dropped by the policy, and counted."""
        for batch in command.batches:
            if self._expected is not None and batch.first_offset > self._expected:
                self._lose(batch.first_offset - self._expected)  # lost between the workers
            self._expected = batch.first_offset + batch.count
            size = batch_bytes(batch)
            if self._drop == "newest" and self._is_over(batch.count, size):
                self._lose(batch.count)
                continue
            self._buffer.append(batch)
            self._buffer_messages += batch.count
            self._buffer_bytes += size
        if self._is_over(0, 0):
            self._deliver_then_drop()
        else:
            self._wake()

    def _is_over(self, messages: int, bytes_: int) -> bool:
        if not self._buffer and messages:
            return False  # one batch always fits: a bound below it would let nothing through
        return (
            self._buffer_messages + messages > self._messages_max
            or self._buffer_bytes + bytes_ > self._bytes_max
        )

    def _deliver_then_drop(self) -> None:
        """Deliver to whoever has credit before anything is dropped for want of room."""
        self._dispatch()
        while self._is_over(0, 0) and len(self._buffer) > 1:
            batch = self._buffer.popleft()
            left = batch.count - self._taken
            self._taken = 0
            self._buffer_messages -= left
            self._buffer_bytes -= batch_bytes(batch)
            self._lose(left)

    def _lose(self, messages: int) -> None:
        if not messages:
            return
        self.dropped += messages
        if self._notice_timer is None:
            self._notice_timer = self.call_later(DROP_NOTICE_S, self._notify)

    def _notify(self) -> None:
        self._notice_timer = None
        for consumer in self._consumers.values():
            consumer.tell(Notice("dropped", self.dropped, "messages were dropped: no credit, and the buffer was full"))

    def _position(self) -> int:
        return self._expected or 0

    def _next_piece(self, messages_max: int) -> Piece | None:
        buffer = self._buffer
        if not buffer:
            return None
        batch = buffer[0]
        if self._taken or batch.count > messages_max:
            first = batch.first_offset + self._taken
            end = min(batch.first_offset + batch.count, first + messages_max)
            self._taken += end - first
            self._buffer_messages -= end - first
            if self._taken == batch.count:
                self._taken = 0
                self._buffer_bytes -= batch_bytes(batch)
                buffer.popleft()
            return cut(batch, first, end, 1)
        together = [self._pop()]
        size, count = batch_bytes(batch), batch.count
        while buffer and len(together) < DELIVER_RECORDS_MAX:
            after = buffer[0]
            size += batch_bytes(after)
            count += after.count
            follows = after.first_offset == together[-1].first_offset + together[-1].count
            if size > PIECE_BYTES or count > messages_max or after.columns != batch.columns or not follows:
                break
            together.append(self._pop())
        return join(together)

    def _pop(self) -> Batch:
        batch = self._buffer.popleft()
        self._buffer_messages -= batch.count
        self._buffer_bytes -= batch_bytes(batch)
        return batch

    @receives(Returned)
    def on_returned(self, command: Returned) -> None:
        """Nothing is redelivered here."""

    @receives(Left)
    def on_left(self, command: Left) -> None:
        """A consumer is gone."""
        self._remove(command.key)

    @receives(Delete)
    def on_delete(self, command: Delete) -> None:
        """Send the consumers away."""
        self._evict_all("subscription-deleted", f"subscription {self.meta.name!r} was deleted")
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result({})))
        self.stop()

    def _description(self) -> dict[str, Any]:
        return super()._description() | {
            "dropped": self.dropped,
            "drop": self._drop,
            "buffered": self._buffer_messages,
            "buffer_messages_max": self._messages_max,
            "buffer_bytes_max": self._bytes_max,
        }
