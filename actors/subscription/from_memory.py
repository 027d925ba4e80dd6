"""Delivery from memory: a bounded buffer, and a count of the messages that did not fit.

Runs in a worker process, as the delivery of a Subscription to a non-reliable topic. It receives batches from its
worker's Relay. It owns the buffer, and its registration with the Relay.

Invariants
- the buffer never exceeds its limits by more than one batch
- a message is delivered once, to one consumer, or counted as dropped
- without consumers nothing is buffered
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from ister.actors.explain_state import State
from ister.actors.messages import (
    Attach,
    Attached,
    Batches,
    Detach,
    Lost,
    Notice,
    Returned,
    Seek,
    TopicFailed,
    Unblock,
)
from ister.actors.pieces import PIECE_BYTES, Batch, Piece, batch_bytes, cut, join
from ister.actors.runtime import Ref, Timer, receives
from ister.actors.selection import Member
from ister.actors.subscription.parts import Delivery, Host
from ister.errors import UsageError
from ister.subscriptions import READER
from ister.wire import DELIVER_RECORDS_MAX

DROP_NOTICE_S: Final = 0.1  # the least time between two notices of drops to one consumer,
DROP_NOTICES: Final = 200  # and how many consumers are told at a time: some 3 ms


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryGiven:
    """What a worker hands to a subscription in memory.

    `relay()` returns this worker's Relay of the topic, which is started if necessary. The other values apply where the
    subscription has no option of its own. `drop`, "oldest" or "newest", says which messages are dropped from a full
    buffer.
    """

    relay: Callable[[], Ref]
    buffer_messages_max: int
    buffer_bytes_max: int
    drop: str


class FromMemory(Delivery):
    """Delivers batches as they come. What exceeds the consumers' credit waits in a bounded buffer or is dropped.

    Consumers are granted their place once the topic sends to the Relay, so that a client that is told OPENED gets
    everything published after that.
    """

    always_there: ClassVar[bool] = True
    takes_back: ClassVar[bool] = False

    def __init__(self, subscription: Host, given: MemoryGiven) -> None:
        self._subscription = subscription
        self._given = given
        self._buffer: deque[Batch] = deque()
        self._buffer_messages = 0
        self._buffer_bytes = 0
        self._taken = 0  # messages of the first batch that were delivered
        self._expected: int | None = None
        self._notice_timer: Timer | None = None
        self._relay: Ref | None = None  # the Relay that sends to this actor
        self._untold: list[int] = []  # consumers that were not told of the latest drops
        self._told = 0  # drops that all consumers know of, once `_untold` is empty
        self._dropped = 0
        self.parts = (self,)
        self.settings_updated()

    def settings_updated(self) -> None:
        """Apply new limits and another policy; what exceeds the limits is dropped with the next batch."""
        settings, given = self._subscription.meta.settings, self._given
        self._messages_max = int(settings.get("buffer_messages_max", given.buffer_messages_max))
        self._bytes_max = int(settings.get("buffer_bytes_max", given.buffer_bytes_max))
        self._drop = str(settings.get("drop", given.drop))

    # ---- the topic ----------------------------------------------------------------------------------------------

    def expected(self) -> None:
        """Register with the Relay; there is nothing else to wait for."""
        if self._relay is None:
            self._relay = self._given.relay()
            self._relay.tell(Attach(self._subscription.address, self._subscription.topic))

    def stop(self) -> None:
        """Unregister from the Relay."""
        self._detach()

    def _detach(self) -> None:
        """Receive nothing more: without consumers no message is lost to anybody."""
        if self._relay is not None:
            self._relay.tell(Detach(self._subscription.address))
        self._relay = None
        self._subscription.become_unready()
        self._lose(self._buffer_messages)
        self._buffer.clear()
        self._buffer_messages = self._buffer_bytes = self._taken = 0

    def abandoned(self) -> None:
        """Empty the buffer; end if this was a reader."""
        self._detach()
        if self._subscription.meta.type == READER:
            self._subscription.stop_now()

    @receives(Attached)
    def on_attached(self, attached: Attached) -> None:
        """Note the offset from which the topic sends. If the topic was restarted, it is not the one expected."""
        if self._relay is not None:
            self._expected = attached.durable_end
            self._subscription.become_ready()

    def topic_failed(self, failed: TopicFailed) -> None:
        """End if this is a reader of a deleted topic; other subscriptions are deleted with the topic."""
        if self._subscription.meta.type == READER:
            self._subscription.evict_all(failed.code, failed.text)

    # ---- what comes, and what goes ------------------------------------------------------------------------------

    def hand_out(self) -> None:
        """Deliver to the consumers that have credit."""
        self._subscription.take_turns()

    @receives(Batches)
    def on_batches(self, command: Batches) -> None:
        """Buffer batches; what does not fit is dropped by the policy and counted."""
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
            self._subscription.wake()

    def _is_over(self, messages: int, bytes_: int) -> bool:
        if not self._buffer and messages:
            return False  # one batch always fits: with a smaller limit nothing could pass
        return (
            self._buffer_messages + messages > self._messages_max
            or self._buffer_bytes + bytes_ > self._bytes_max
        )

    def _deliver(self) -> None:
        """Deliver to the consumers that have credit, before anything is dropped from a full buffer."""
        while (before := self._buffer_messages) and self._subscription.is_ready:
            self._subscription.take_turns()
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
        self._dropped += messages
        if self._notice_timer is None:
            self._notice_timer = self._subscription.call_later(DROP_NOTICE_S, self._tell_losses)

    def _tell_losses(self) -> None:
        self._notice_timer = None
        if not self._untold:
            self._untold, self._told = list(reversed(self._subscription.consumers.refs)), self._dropped
        notice = Notice("dropped", self._dropped, "messages were dropped: no credit, and the buffer was full")
        now, self._untold = self._untold[-DROP_NOTICES:], self._untold[:-DROP_NOTICES]
        for key in reversed(now):
            if (consumer := self._subscription.consumers.refs.get(key)) is not None:
                consumer.tell(notice)
        if self._untold or self._told < self._dropped:
            self._notice_timer = self._subscription.call_later(DROP_NOTICE_S, self._tell_losses)

    def credited(self, key: int, messages: int | None) -> None:
        """Take new credit as a sign that messages were handed out, since nothing is acknowledged; None: all were."""
        roster = self._subscription.consumers.roster
        if messages is not None:
            roster.settle(key, messages)
        elif (member := roster.get(key)) is not None:
            roster.settle(key, member.outstanding)

    def position(self) -> int:
        """Return the first offset that has not arrived."""
        return self._expected or 0

    def backlog(self) -> int:
        """Return how many messages are buffered."""
        return self._buffer_messages

    def next_piece(self, member: Member, messages_max: int) -> Piece | None:  # noqa: ARG002
        """Take the oldest messages from the buffer."""
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
        """Count messages that were sent to a consumer and that its connection did not take."""
        self._lose(command.messages)

    @receives(Returned)
    def on_returned(self, command: Returned) -> None:
        """Ignore it: nothing is redelivered here."""

    @receives(Seek, Unblock)
    def on_impossible(self, command: Seek | Unblock) -> None:
        """Refuse what only a subscription to a reliable topic can do."""
        name = self._subscription.topic.name
        text = f"topic {name!r} is non-reliable: it keeps nothing that could be delivered again"
        self._subscription.refuse(command, UsageError(text))

    # ---- what it reports ----------------------------------------------------------------------------------------

    def description(self) -> Mapping[str, Any]:
        """Return what is buffered, and what was dropped."""
        return {
            "dropped": self._dropped,
            "drop": self._drop,
            "buffered": self._buffer_messages,
            "buffer_messages_max": self._messages_max,
            "buffer_bytes_max": self._bytes_max,
        }

    def state(self) -> State:
        """Return the same."""
        return {
            "starting": self._relay is not None and not self._subscription.is_ready,
            "due": self._buffer_messages,
            "position": self.position(),
            "dropped": self._dropped,
        }
