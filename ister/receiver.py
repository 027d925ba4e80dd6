"""Receiving, for whatever is delivered messages: an iterator, `receive`, `receive_batch`, and `close`.

`Consumer` and `Reader` are made of it. May touch: the network (to send, and to wait).

Invariants
- messages are taken by one thread at a time
- what the broker closed raises the broker's error from whatever is called next
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ister import arguments
from ister.attachment import Attachment
from ister.errors import ClosedError, IsterError, TimeoutExpiredError
from ister.message import Batch, Delivery, Event, Message
from ister.producer import HURRY_S

if TYPE_CHECKING:
    from ister.network import Network
    from ister.session import Handle

CLOSE_S = 5.0  # how long `close` waits for the broker by default


class Receiver:
    """Receives messages from one topic; closed by `close` or a `with` block."""

    def __init__(self, network: Network, attachment: Attachment) -> None:
        self._network = network
        self._lock = network.lock
        self.attachment = attachment
        self._current: Iterator[Message] = iter(())

    @property
    def what(self) -> str:
        """What it is, in words."""
        return f"the consumer of subscription {self.attachment.subscription!r}"

    @property
    def topic(self) -> str:
        """The topic it receives from."""
        return self.attachment.topic

    @property
    def position(self) -> int:
        """The offset at which it stood when it was opened last."""
        return self.attachment.position

    @property
    def handle(self) -> Handle | None:
        """Whose connection a thread that waits moves the frames of; `None` when there are several."""
        return self.attachment

    @property
    def dropped(self) -> int:
        """How many messages a non-reliable topic has dropped here, because this program was too slow."""
        return self.attachment.dropped

    @property
    def events(self) -> deque[Event]:
        """What the broker told besides messages, oldest first (the last 256); take them out as you like."""
        return self.attachment.events

    # ---- receiving -----------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Message]:
        """Yield messages for ever, waiting for them; ends when the consumer is closed by `close`.

        Raises what the broker closed it with.
        """
        while True:
            yield from self._current
            try:
                delivery = self._next(None)
            except ClosedError:
                return
            assert delivery is not None
            self._current = delivery.hand_out()

    def receive(self, timeout: float | None = None) -> Message | None:
        """Return the next message, or `None` when there is none within `timeout` seconds (`None`: wait for ever)."""
        message = next(self._current, None)
        while message is None:
            delivery = self._next(timeout)
            if delivery is None:
                return None
            self._current = delivery.hand_out()
            message = next(self._current, None)
        return message

    def receive_batch(self, max_messages: int | None = None, timeout: float | None = None) -> Batch | None:
        """Return messages that came together, at most `max_messages`, or `None` after `timeout` seconds.

        The messages of a batch are made only when looked at: `batch.payloads` costs least, and `consumer.ack(batch)`
        acknowledges them all.
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
        start = 0 if message is None else delivery.index(message.offset)
        deque(current, maxlen=0)  # a loop that still holds this iterator must not see them again
        stop = delivery.count if max_messages is None else min(delivery.count, start + max_messages)
        return Batch(delivery, start, stop), delivery.hand_out(stop) if stop < delivery.count else iter(())

    def forget_current(self) -> None:
        """Let nobody see what is left of the delivery in hand."""
        deque(self._current, maxlen=0)  # also a loop that holds this iterator
        self._current = iter(())

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
        while self._wait(self.has_news, deadline):
            delivery = self.try_next()
            if delivery is not None:
                return delivery
        return None

    def _wait(self, condition: Callable[[], bool], deadline: float) -> bool:
        return self._network.wait(self.attachment, condition, deadline)

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
        """Raise what the broker has said against it (lock held)."""
        self._network.check()
        attachment = self.attachment
        if attachment.error is not None:
            raise attachment.error
        if attachment.complaint is not None:
            complaint, attachment.complaint = attachment.complaint, None
            raise complaint
        if attachment.phase in ("closing", "closed"):
            raise ClosedError(f"{self.what} is closed")

    # ---- the end -------------------------------------------------------------------------------------------------

    def close(self, timeout: float | None = CLOSE_S) -> None:
        """Send the acknowledgments made so far and leave; what was not acknowledged is delivered again, or to others.

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
            self.closed(self._wait(self.is_closed, deadline))
        finally:
            self.end()

    def is_over(self) -> bool:
        """Whether there is nothing to close any more."""
        return self._network.forked or self._network.closed or self.attachment.phase == "closed"

    def begin_close(self) -> None:
        """Send what is acknowledged and say CLOSE."""
        with self._lock:
            self.attachment.close()
            self._network.connection_of(self.attachment).touch()

    def is_closed(self) -> bool:
        """Whether the broker has answered the CLOSE (lock held)."""
        return self.attachment.phase == "closed"

    def closed(self, answered: bool) -> None:
        """Raise if the broker did not answer the CLOSE."""
        if not answered:
            raise TimeoutExpiredError(f"the broker did not confirm the close of {self.what}")

    def end(self) -> None:
        """Let go of everything, whatever the broker says."""
        attachment = self.attachment
        with self._lock:
            attachment.fail(ClosedError(f"{self.what} is closed"))
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
