"""The base of consumers and readers: an iterator, `receive`, `receive_batch`, and `close`.

`Consumer` and `Reader` are built on it. May touch: the network (to send, and to wait).

Invariants
- any number of threads may take messages: each message goes to one of them, and none is skipped
- messages that were not handed out before the connection was lost are not handed out after it (reliable subscriptions)
- when the broker closed the receiver, the next call raises the broker's error
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from ister import arguments
from ister.acknowledgments import NO_RUN
from ister.attachment import Attachment
from ister.blame import reason_of
from ister.closing import Closing
from ister.errors import ClosedError
from ister.message import Batch, Event, Hand, Message

if TYPE_CHECKING:
    from ister.clientsession import Handle
    from ister.network import Network

T = TypeVar("T")
CLOSE_S = 5.0  # how long `close` waits for the broker by default


class Receiver(Closing):
    """Receives messages from one topic; closed by `close` or a `with` block."""

    def __init__(self, network: Network, attachment: Attachment) -> None:
        super().__init__(network, attachment)
        self.attachment = attachment
        self.current = Hand.of(iter(()))  # all threads take from it, without the lock

    @property
    def what(self) -> str:
        """What this is, for error texts."""
        return f"the consumer of subscription {self.attachment.subscription!r}"

    @property
    def topic(self) -> str:
        """The topic it receives from."""
        return self.attachment.topic

    @property
    def position(self) -> int:
        """The subscription's offset when it was last opened."""
        return self.attachment.position

    @property
    def handle(self) -> Handle | None:
        """The handle on whose connection a waiting thread reads frames; `None` when there are several."""
        return self.attachment

    @property
    def dropped(self) -> int:
        """How many messages of a non-reliable topic were dropped here because this program was too slow."""
        return self.attachment.dropped

    @property
    def events(self) -> deque[Event]:
        """Events from the broker, oldest first (the last 256). The caller may remove entries."""
        return self.attachment.events

    # ---- receiving -----------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Message]:
        """Yield messages forever, waiting for them; ends when the consumer is closed by `close`.

        Raises the error with which the broker closed it.
        """
        while True:
            for delivery, offset, payload in self.current.parts:
                made = Message()  # as `message_of` does, without the call
                made.delivery = delivery
                made.offset = offset
                made.payload = payload
                yield made
            try:
                message = self._wait_for(self.try_receive, None)
            except ClosedError:
                return
            assert message is not None
            yield message

    def receive(self, timeout: float | None = None) -> Message | None:
        """Return the next message, or `None` when there is none within `timeout` seconds (`None`: wait forever)."""
        message = next(self.current, None)
        return self._wait_for(self.try_receive, timeout) if message is None else message

    def receive_batch(self, max_messages: int | None = None, timeout: float | None = None) -> Batch | None:
        """Return messages that arrived together, at most `max_messages`, or `None` after `timeout` seconds.

        The messages of a batch are created only when used: `batch.payloads` is the fastest, and `consumer.ack(batch)`
        acknowledges them all.
        """
        if max_messages is not None:
            arguments.number(max_messages, "max_messages", 1)
        batch = self.try_batch(max_messages)
        return self._wait_for(lambda: self.try_batch(max_messages), timeout) if batch is None else batch

    def try_receive(self) -> Message | None:
        """Return the next message if one has arrived, or raise the broker's error; never waits."""
        return self._try(self._next_of)

    def _next_of(self, attachment: Attachment) -> Message | None:
        message = next(self.current, None)  # another thread may have begun the next delivery meanwhile
        while message is None and (following := attachment.handing.hand_out()) is not None:
            self.current = following
            message = next(following, None)
        return message

    def try_batch(self, max_messages: int | None = None) -> Batch | None:
        """Return the next messages that arrived together, or raise the broker's error; never waits."""
        return self._try(lambda attachment: attachment.handing.grab(max_messages))

    def forget_current(self) -> None:
        """Drop what is left of the present delivery."""
        deque(self.current.parts, maxlen=0)  # so that loops that hold this iterator see no more of it
        self.current = Hand.of(iter(()))

    def _wait_for(self, attempt: Callable[[], T | None], timeout: float | None) -> T | None:
        """Return the first result of `attempt()` that is not None; `None` when the time (seconds) ran out."""
        found = attempt()
        if found is not None:
            return found
        deadline = self._network.deadline(arguments.timeout(timeout))
        while self._wait(self.has_news, deadline):
            found = attempt()
            if found is not None:
                return found
        return None

    def _wait(self, condition: Callable[[], bool], deadline: float) -> bool:
        return self._network.waits.wait(self.attachment, condition, deadline)

    def _try(self, take: Callable[[Attachment], T | None]) -> T | None:
        """Return what `take` (called under the lock) finds, or raise the broker's error."""
        attachment, network = self.attachment, self._network
        with self._lock:
            now = network.clock.monotonic()
            attachment.handing.asked(now)
            found = take(attachment)
            if found is None:
                self._check()
                network.connection_of(attachment).touch()  # a frame may have arrived already
                found = take(attachment)
                if found is None:
                    self.raise_damage(attachment)
            if found is not None:
                attachment.tick(now)
                session = attachment.session
                if session is not None and session.outbox:
                    network.connection_of(attachment).touch()
        network.settle()
        return found

    def has_news(self) -> bool:
        """Whether there is something to take or to raise (lock held)."""
        attachment = self.attachment
        return (
            attachment.handing.has_some
            or attachment.error is not None
            or attachment.complaint is not None
            or attachment.damage is not None
            or attachment.phase == "closed"
        )

    def raise_damage(self, attachment: Attachment) -> None:
        """Raise that the subscription waits at damage: everything from before it was handed out (lock held)."""
        if attachment.damage is not None and not attachment.handing.asks:
            damage, attachment.damage = attachment.damage, None
            raise damage

    def _check(self) -> None:
        """Raise the broker's error, if there is one (lock held)."""
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
        """Send the acknowledgments made so far and close; unacknowledged messages are redelivered.

        Waits at most `timeout` seconds for the broker, and raises `TimeoutExpiredError` if it does not answer; it is
        closed then, too. Closing again does nothing.
        """
        network = self._network
        deadline = network.deadline(arguments.timeout(timeout))
        if self.is_over():
            return
        try:
            self.begin_close()
            self.closed(self._wait(self.is_closed, deadline))
        finally:
            self.end()

    def blame(self, error: BaseException | None) -> None:
        """Let messages in hand count as failed, if the exception that ends the program's work is a failure."""
        if (reason := reason_of(error)) and not self._network.forked:
            with self._lock:
                self.attachment.blame(reason)

    def part(self) -> None:
        """Send the acknowledgments made so far: the client is about to say BYE (lock held)."""
        self.attachment.acks.flush()

    def end(self) -> None:
        """Release everything, whatever the broker answered."""
        attachment = self.attachment
        with self._lock:
            attachment.fail(ClosedError(f"{self.what} is closed"))
            if attachment.session is not None:
                attachment.session.detach(attachment)
            self._network.wake(attachment)  # other threads may be waiting here
        self._network.settle()

    def after_fork(self, lock: threading.Lock) -> None:
        """In the child of a fork: let every call raise."""
        self._lock = lock
        self.attachment.acks.run = NO_RUN
        self.attachment.handing.queue.clear()
        self.attachment.handing.withhold()
