"""Non-reliable subscriptions: a bounded buffer in memory, and a count of what did not fit.

Runs in a worker process; is sent the batches by its worker's Relay.

Invariants
- the buffer never holds more than its bounds, but for one batch
- a message is delivered once, to one consumer, or counted as dropped
- without consumers nothing is kept
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from ister.actors.explain import State
from ister.actors.messages import (
    AddCredit,
    Answer,
    Attach,
    AttachConsumer,
    Attached,
    Batches,
    Delete,
    Describe,
    Detach,
    Explain,
    Left,
    Lost,
    Notice,
    Refused,
    Returned,
    Seek,
    SetCredit,
    StartSubscription,
    TopicFailed,
    Unblock,
    UpdateSubscription,
)
from ister.actors.pieces import PIECE_BYTES, Batch, Piece, batch_bytes, cut, join
from ister.actors.runtime import Ref, System, Timer, receives
from ister.actors.subscription import Subscription
from ister.storage.catalogue import SubscriptionMeta, TopicMeta
from ister.subscriptions import READER
from ister.transport.session import SessionLimits
from ister.wire import DELIVER_RECORDS_MAX, encode_result

DROP_NOTICE_S: Final = 0.1  # a consumer is told of losses at most so often,
DROP_NOTICES: Final = 200  # and so many of them at a time: some 3 ms


class NonReliableSubscription(Subscription):
    """A subscription in memory: what its consumers have no credit for waits in a bounded buffer, then is dropped.

    `buffer_messages_max` and `buffer_bytes_max` bound the buffer; `drop` says what goes beyond: "oldest" or "newest".
    `relay()` returns this worker's relay of the topic, started if need be. Consumers are granted their place once the
    topic sends to that relay, so that who is told OPENED gets what is published from then on.
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
        relay: Callable[[], Ref],
        buffer_messages_max: int,
        buffer_bytes_max: int,
        drop: str,
    ) -> None:
        super().__init__(system, path, topic, meta, limits=limits, ack_timeout_ms=ack_timeout_ms)
        self._relay = relay
        self._messages_default, self._bytes_default = buffer_messages_max, buffer_bytes_max
        self._drop_default = drop
        self._bound(meta)
        self._buffer: deque[Batch] = deque()
        self._buffer_messages = 0
        self._buffer_bytes = 0
        self._taken = 0  # messages of the first batch that were delivered already
        self._expected: int | None = None
        self._notice_timer: Timer | None = None
        self._attached_to: Ref | None = None  # the relay
        self._untold: list[int] = []  # consumers that are still to be told of losses
        self._told = 0  # losses that all are told of, once nobody is untold
        self.dropped = 0

    def on_stop(self) -> None:
        """Let the relay forget us."""
        self._detach()

    def on_failure(self, *error: object) -> None:
        """Send the consumers away, and let the relay forget us."""
        super().on_failure(*error)
        self._detach()

    @receives(AttachConsumer, StartSubscription)
    def on_arrival(self, command: AttachConsumer | StartSubscription | Describe) -> None:
        """Give a consumer its place once the topic sends to us; there is nothing else to wait for."""
        if not isinstance(command, AttachConsumer):
            self._admit(command)
            return
        if self._attached_to is None:
            self._attached_to = self._relay()
            self._attached_to.tell(Attach(self.address, self.topic))
        super().on_arrival(command)

    def _detach(self) -> None:
        """Have nothing sent: without consumers nobody is there to lose anything."""
        if self._attached_to is not None:
            self._attached_to.tell(Detach(self.address))
        self._attached_to, self._ready = None, False
        self._lose(self._buffer_messages)
        self._buffer.clear()
        self._buffer_messages = self._buffer_bytes = self._taken = 0

    def _after_change(self) -> None:
        if not self._consumers and not self._waiting:
            self._detach()
            if self.meta.type == READER:
                self.stop_now()
                return
        super()._after_change()

    @receives(Attached)
    def on_attached(self, attached: Attached) -> None:
        """The topic sends to us from this offset on; when it began anew, that is another than we expect."""
        if self._attached_to is not None:
            self._expected = attached.durable_end
            self._become_ready()

    @receives(TopicFailed)
    def on_topic_failed(self, failed: TopicFailed) -> None:
        """End as a reader of a topic that was deleted; other subscriptions are deleted with it."""
        if self.meta.type == READER:
            self._evict_all(failed.code, failed.text)

    @receives(Batches)
    def on_batches(self, command: Batches) -> None:
        """Buffer batches; what does not fit is dropped by the policy, and counted."""
        for batch in command.batches:
            if self._expected is not None and batch.first_offset > self._expected:
                self._lose(batch.first_offset - self._expected)  # lost between the workers
            self._expected = batch.first_offset + batch.count
            size = batch_bytes(batch)
            if self._drop == "newest" and self._is_over(batch.count, size):
                self._deliver()
                if self._is_over(batch.count, size):
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

    def _deliver(self) -> None:
        """Deliver to whoever has credit, before anything is dropped for want of room."""
        while (before := self._buffer_messages) and self._ready:
            self._dispatch()
            if self._buffer_messages == before:
                return

    def _deliver_then_drop(self) -> None:
        self._deliver()
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
            self._notice_timer = self.call_later(DROP_NOTICE_S, self._tell_losses)

    def _tell_losses(self) -> None:
        self._notice_timer = None
        if not self._untold:
            self._untold, self._told = list(reversed(self._consumers)), self.dropped
        notice = Notice("dropped", self.dropped, "messages were dropped: no credit, and the buffer was full")
        now, self._untold = self._untold[-DROP_NOTICES:], self._untold[:-DROP_NOTICES]
        for key in reversed(now):
            if (consumer := self._consumers.get(key)) is not None:
                consumer.tell(notice)
        if self._untold or self._told < self.dropped:
            self._notice_timer = self.call_later(DROP_NOTICE_S, self._tell_losses)

    @receives(AddCredit)
    def on_credit(self, command: AddCredit) -> None:
        """A consumer has room for more: so much of what it was given it has handed out, for nothing is acknowledged."""
        self._roster.settle(command.key, command.messages)
        super().on_credit(command)

    @receives(SetCredit)
    def on_set_credit(self, command: SetCredit) -> None:
        """A consumer came back: what it was given it has, or lost."""
        if (member := self._roster.get(command.key)) is not None:
            self._roster.settle(command.key, member.outstanding)
        super().on_set_credit(command)

    def _position(self) -> int:
        return self._expected or 0

    def _backlog(self) -> int:
        return self._buffer_messages

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

    @receives(Lost)
    def on_lost(self, command: Lost) -> None:
        """Count what a consumer was given and its connection did not take."""
        self._lose(command.messages)

    @receives(Returned)
    def on_returned(self, command: Returned) -> None:
        """Nothing is redelivered here."""

    @receives(Left)
    def on_left(self, command: Left) -> None:
        """A consumer is gone."""
        self._remove(command.key)

    @receives(UpdateSubscription)
    def on_update(self, command: UpdateSubscription) -> None:
        """Take new bounds and another policy; what is over the bounds now goes with the next batch."""
        self.meta = command.meta
        self._ack_timeout_ms = int(command.meta.settings.get("ack_timeout_ms", self._ack_timeout_ms))
        self._bound(command.meta)
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result({})))

    def _bound(self, meta: SubscriptionMeta) -> None:
        self._messages_max = int(meta.settings.get("buffer_messages_max", self._messages_default))
        self._bytes_max = int(meta.settings.get("buffer_bytes_max", self._bytes_default))
        self._drop = str(meta.settings.get("drop", self._drop_default))

    @receives(Seek, Unblock)
    def on_impossible(self, command: Seek | Unblock) -> None:
        """Refuse what only a subscription that keeps its messages can do."""
        text = f"topic {self.topic.name!r} is non-reliable: it keeps nothing that could be delivered again"
        self.system.at(command.reply).tell(Refused(command.ticket, "invalid-argument", text))

    @receives(Explain)
    def on_explain(self, command: Explain) -> None:
        """Say why nothing is delivered."""
        state: State = self._common_state() | {
            "starting": bool(self._waiting) and not self._ready,
            "due": self._buffer_messages,
            "position": self._position(),
            "dropped": self.dropped,
        }
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result(state)))

    @receives(Delete)
    def on_delete(self, command: Delete) -> None:
        """Send the consumers away."""
        self._evict_deleted(command)
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result({})))
        self.stop_now()

    def _description(self) -> dict[str, Any]:
        return super()._description() | {
            "dropped": self.dropped,
            "drop": self._drop,
            "buffered": self._buffer_messages,
            "buffer_messages_max": self._messages_max,
            "buffer_bytes_max": self._bytes_max,
        }
