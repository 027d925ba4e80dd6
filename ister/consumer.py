"""The consumer that programs hold: an iterator, `receive`, `receive_batch`, and acknowledgments.

May touch: the network (to send, and to wait). What is said to the broker is in `attachment.py`.

Invariants
- messages are taken by one thread at a time; acknowledging is allowed from any thread
- acknowledgments gather for a few milliseconds, so that a million of them cost a few hundred frames
- a consumer that the broker closed raises the broker's error from whatever is called next
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ister import arguments
from ister.attachment import Attachment, joined
from ister.errors import ClosedError, ConnectionLostError, IsterError, TimeoutExpiredError, UsageError
from ister.message import Batch, Delivery, Event, Message
from ister.producer import HURRY_S

if TYPE_CHECKING:
    from ister.network import Network

CLOSE_S = 5.0  # how long `close` waits for the broker by default
REASON_MAX = 200  # characters: it travels in a header

Acknowledged = Message | Batch | Iterable[Message]


class Consumer:
    """Receives the messages of one subscription; made by `Client.consumer`, closed by `close` or a `with` block."""

    def __init__(self, network: Network, attachment: Attachment) -> None:
        self._network = network
        self._lock = network.lock
        self.attachment = attachment
        self._current: Iterator[Message] = iter(())

    def __repr__(self) -> str:
        return f"<Consumer topic={self.topic!r} subscription={self.subscription!r} {self.attachment.phase}>"

    @property
    def topic(self) -> str:
        """The topic it receives from."""
        return self.attachment.topic

    @property
    def subscription(self) -> str:
        """The subscription it belongs to."""
        return self.attachment.subscription

    @property
    def active(self) -> bool | None:
        """Whether a Failover consumer is the active one; `None` when the broker has not said."""
        return self.attachment.active

    @property
    def dropped(self) -> int:
        """How many messages a non-reliable topic has dropped for this consumer, because it was too slow."""
        return self.attachment.dropped

    @property
    def events(self) -> deque[Event]:
        """What the broker told this consumer, oldest first (the last 256); take them out as you like."""
        return self.attachment.events

    @property
    def position(self) -> int:
        """The offset at which the subscription stood when this consumer was opened last."""
        return self.attachment.position

    # ---- receiving -----------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Message]:
        """Yield messages for ever, waiting for them; ends when the consumer is closed by `close`.

        Raises the broker's error when it closes the consumer.
        """
        while True:
            yield from self._current
            try:
                delivery = self._next(None)
            except ClosedError:
                return
            assert delivery is not None
            self._current = delivery.messages()

    def receive(self, timeout: float | None = None) -> Message | None:
        """Return the next message, or `None` when there is none within `timeout` seconds (`None`: wait for ever)."""
        message = next(self._current, None)
        if message is None:
            delivery = self._next(timeout)
            if delivery is None:
                return None
            self._current = delivery.messages()
            message = next(self._current)
        return message

    def receive_batch(self, max_messages: int | None = None, timeout: float | None = None) -> Batch | None:
        """Return messages that came together, at most `max_messages`, or `None` after `timeout` seconds.

        The messages of a batch have consecutive offsets and are made only when looked at: `batch.payloads` costs least,
        and `consumer.ack(batch)` acknowledges them all.
        """
        if max_messages is not None:
            arguments.number(max_messages, "max_messages", 1)
        message = next(self._current, None)  # what an iteration left behind
        delivery = message.delivery if message is not None else self._next(timeout)
        batch, self._current = self.cut(self._current, message, delivery, max_messages)
        return batch

    @staticmethod
    def cut(
        current: Iterator[Message],
        message: Message | None,
        delivery: Delivery | None,
        max_messages: int | None,
    ) -> tuple[Batch | None, Iterator[Message]]:
        """Return a batch that begins with `message` (or the delivery), and what is left behind it."""
        if delivery is None:
            return None, current
        start = 0 if message is None else message.offset - delivery.first
        deque(current, maxlen=0)  # a loop that still holds this iterator must not see them again
        stop = delivery.count if max_messages is None else min(delivery.count, start + max_messages)
        return Batch(delivery, start, stop), delivery.messages(stop) if stop < delivery.count else iter(())

    def deadline(self, timeout: float | None) -> float:
        """Return the clock's time in `timeout` seconds."""
        return self._network.deadline(arguments.timeout(timeout))

    def seconds_until(self, deadline: float) -> float | None:
        """Return how long it is until then; `None` for ever."""
        return self._network.seconds_until(deadline)

    def _next(self, timeout: float | None) -> Delivery | None:
        delivery = self.try_next()
        if delivery is not None:
            return delivery
        deadline = self._network.deadline(arguments.timeout(timeout))
        while self._network.wait(self.attachment, self.has_news, deadline):
            delivery = self.try_next()
            if delivery is not None:
                return delivery
        return None

    def try_next(self) -> Delivery | None:
        """Return the next delivery if it has come, or raise what the broker said instead; never waits."""
        attachment, network = self.attachment, self._network
        with self._lock:
            delivery = attachment.take()
            if delivery is None:
                self._check()
                network.connection_of(attachment).touch()  # perhaps it has come already
                delivery = attachment.take()
            if delivery is not None:
                attachment.tick(network.clock.monotonic())
                session = attachment.session
                if session is not None and session.outbox:
                    network.connection_of(attachment).touch()
        network.settle()
        return delivery

    def has_news(self) -> bool:
        """Whether `try_next` has something to return or to raise (lock held)."""
        attachment = self.attachment
        return (
            bool(attachment.queue)
            or attachment.error is not None
            or attachment.complaint is not None
            or attachment.phase == "closed"
        )

    def _check(self) -> None:
        """Raise what the broker has said against this consumer (lock held)."""
        self._network.check()
        attachment = self.attachment
        if attachment.error is not None:
            raise attachment.error
        if attachment.complaint is not None:
            complaint, attachment.complaint = attachment.complaint, None
            raise complaint
        if attachment.phase in ("closing", "closed"):
            raise ClosedError(f"the consumer of subscription {self.subscription!r} is closed")

    # ---- acknowledging -------------------------------------------------------------------------------------------

    def ack(self, what: Acknowledged) -> None:
        """Acknowledge a message, a batch, or several messages: they are not delivered to this subscription again.

        Acknowledgments are sent within a few milliseconds; `flush` waits until the broker has written them.
        Raises `UsageError` for messages of another consumer, `ClosedError`.
        """
        if type(what) is Message:
            attachment = self.attachment
            with self._lock:
                offset = what.offset
                if what.delivery is attachment.ack_delivery and offset == attachment.ack_end:
                    attachment.ack_end = offset + 1
                    return
        self._ack_ranges(self._ranges_of(what))

    def _ack_ranges(self, ranges: list[tuple[Delivery, int, int]]) -> None:
        attachment, network = self.attachment, self._network
        with self._lock:
            self._check()
            now = network.clock.monotonic()
            for delivery, first, end in ranges:
                attachment.ack(delivery, first, end, now)
            self._soon()

    def ack_until(self, message: Message) -> None:
        """Acknowledge everything up to and including this message.

        Exclusive and Failover: everything of the subscription; Shared: everything that this consumer was given.
        """
        [(delivery, _first, end)] = self._ranges_of(message)
        with self._lock:
            self._check()
            self.attachment.ack_until(delivery, end - 1, self._network.clock.monotonic())
            self._soon()

    def nack(self, what: Acknowledged, delay: float = 0.0, reason: str = "") -> None:
        """Give messages back, to be delivered again after `delay` seconds; the reason is for people."""
        arguments.seconds(delay, "a delay")
        if len(arguments.text(reason, "a reason")) > REASON_MAX:
            raise UsageError(f"a reason has at most {REASON_MAX} characters")
        ranges = self._ranges_of(what)
        with self._lock:
            self._check()
            self.attachment.flush()
            by_delivery: dict[int, tuple[Delivery, list[tuple[int, int]]]] = {}
            for delivery, first, end in ranges:
                by_delivery.setdefault(delivery.lineage, (delivery, []))[1].append((first, end))
            for delivery, pairs in by_delivery.values():
                self.attachment.nack(delivery, joined(pairs), round(delay * 1000), reason)
            self._network.connection_of(self.attachment).touch()
        self._network.settle()

    def _ranges_of(self, what: Acknowledged) -> list[tuple[Delivery, int, int]]:
        if isinstance(what, Message):
            ranges = [(what.delivery, what.offset, what.offset + 1)]
        elif isinstance(what, Batch):
            ranges = [(what.delivery, what.offsets.start, what.offsets.stop)] if len(what) else []
        elif isinstance(what, Iterable):
            ranges = []
            for message in what:
                if not isinstance(message, Message):
                    raise UsageError(
                        f"what is acknowledged is a message or a batch, not {type(message).__name__}"
                    )
                if ranges and ranges[-1][0] is message.delivery and ranges[-1][2] == message.offset:
                    ranges[-1] = (message.delivery, ranges[-1][1], message.offset + 1)
                else:
                    ranges.append((message.delivery, message.offset, message.offset + 1))
        else:
            raise UsageError(f"what is acknowledged is a message or a batch, not {type(what).__name__}")
        for delivery, _first, _end in ranges:
            if delivery.owner is not self.attachment:
                raise UsageError("this message came from another consumer: acknowledge it there")
        return ranges

    def _soon(self) -> None:
        attachment, network = self.attachment, self._network
        session = attachment.session
        if session is not None and session.outbox:
            network.connection_of(attachment).touch()
        else:
            network.connection_of(attachment).nudge(attachment.deadline())

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the broker has written every acknowledgment made so far, at most `timeout` seconds.

        Raises `TimeoutExpiredError`, `RemoteError` (an acknowledgment was refused), or `ConnectionLostError` when the
        broker restarted and forgot what it had delivered: then those messages are delivered again.
        """
        deadline = self._network.deadline(arguments.timeout(timeout))
        self.flushed(self._network.wait(self.attachment, self.written, deadline), timeout)

    def written(self) -> bool:
        """Whether every acknowledgment is written, or never will be; sends what is gathered (lock held)."""
        attachment = self.attachment
        if attachment.error is not None or attachment.complaint is not None or attachment.phase == "closed":
            return True
        if not attachment.settled and not attachment.confirming:
            attachment.flush(confirm=True)
        return attachment.settled

    def flushed(self, written: bool, timeout: float | None) -> None:
        """Raise if not every acknowledgment is written."""
        attachment = self.attachment
        if not written:
            session = attachment.session
            trouble = arguments.in_trouble(
                attachment.trouble or (None if session is None else session.trouble)
            )
            raise TimeoutExpiredError(f"acknowledgments were not confirmed within {timeout} s{trouble}")
        with self._lock:
            self._check()
            if attachment.forgotten:
                attachment.forgotten = False
                raise ConnectionLostError(
                    "the broker restarted before some acknowledgments were written; it delivers those messages again"
                )

    # ---- the end -------------------------------------------------------------------------------------------------

    def close(self, timeout: float | None = CLOSE_S) -> None:
        """Send the acknowledgments made so far and leave; what was not acknowledged goes to other consumers.

        Waits at most `timeout` seconds for the broker, and raises `TimeoutExpiredError` when it does not answer; then
        too it is closed. Closing again does nothing.
        """
        network = self._network
        deadline = network.deadline(arguments.timeout(timeout))
        self._current = iter(())
        if self.is_over():
            return
        try:
            self.begin_close()
            self.closed(network.wait(self.attachment, self.is_closed, deadline))
        finally:
            self.end()

    def is_over(self) -> bool:
        """Whether there is nothing to close any more."""
        return self._network.forked or self._network.closed or self.attachment.phase == "closed"

    def begin_close(self) -> None:
        """Send what is acknowledged and say CLOSE."""
        with self._lock:
            self.attachment.close()

    def is_closed(self) -> bool:
        """Whether the broker has answered the CLOSE (lock held)."""
        return self.attachment.phase == "closed"

    def closed(self, answered: bool) -> None:
        """Raise if the broker did not answer the CLOSE."""
        if not answered:
            raise TimeoutExpiredError(f"the broker did not confirm the close of a consumer of {self.topic!r}")

    def end(self) -> None:
        """Let go of everything, whatever the broker says."""
        attachment = self.attachment
        with self._lock:
            attachment.fail(ClosedError(f"the consumer of subscription {self.subscription!r} is closed"))
            if attachment.session is not None:
                attachment.session.detach(attachment)
        self._network.settle()

    def after_fork(self, lock: threading.Lock) -> None:
        """In the child of a fork: every call takes the road that raises."""
        self._lock = lock
        self.attachment.ack_delivery = None
        self.attachment.queue.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close(HURRY_S)
        except IsterError:
            pass  # the exception on its way out matters more
