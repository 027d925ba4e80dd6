"""Receiving in the event loop: `Receiver`, and the `Consumer` and `Reader` that users have.

Invariants
- only waiting is done here: arrived messages, credit and acknowledgments are kept by the synchronous receiver
- any number of tasks may take messages from a receiver: each message goes to one of them
"""

# ruff: noqa: ASYNC109 (every call has a timeout of its own, as in the synchronous client; asyncio.timeout works too)

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Protocol, TypeVar, cast

from ister import arguments
from ister.aio.closing import Closing
from ister.aio.message import Batch, Message
from ister.aio.waiting import Waiting
from ister.closing import HURRY_S
from ister.consumer import SEEK_S, Acknowledged, Position
from ister.consumer import Consumer as SyncConsumer
from ister.errors import ClosedError
from ister.message import Event
from ister.reader import Reader as SyncReader
from ister.receiver import CLOSE_S
from ister.receiver import Receiver as SyncReceiver
from ister.requests import Duration

T = TypeVar("T")


class Source(Protocol):
    """The interface of the synchronous receiver that is used here; its messages have replies to be awaited."""

    current: Iterator[Message]

    def try_receive(self) -> Message | None:
        """Return the next message if one has arrived; never waits."""

    def try_batch(self, max_messages: int | None = None) -> Batch | None:
        """Return the next messages that arrived together; never waits."""


class Receiver(Closing):
    """Receives messages from one topic."""

    def __init__(self, client: Waiting, receiver: SyncReceiver) -> None:
        self._client = client
        self._receiver = receiver
        self._source = cast(Source, receiver)

    @property
    def topic(self) -> str:
        """The topic it receives from."""
        return self._receiver.topic

    @property
    def dropped(self) -> int:
        """How many messages of a non-reliable topic were dropped here because this program was too slow."""
        return self._receiver.dropped

    @property
    def events(self) -> Iterable[Event]:
        """Events from the broker, oldest first (the last 256)."""
        return self._receiver.events

    @property
    def position(self) -> int:
        """The subscription's offset when it was last opened."""
        return self._receiver.position

    def __aiter__(self) -> AsyncIterator[Message]:
        """Yield messages forever; ends when the consumer is closed by `close`.

        It is not a generator, which would be finished after a time-out or cancellation inside it.
        """
        return self

    async def __anext__(self) -> Message:
        """Return the next message; raises `StopAsyncIteration` once the consumer is closed by `close`."""
        message = next(self._source.current, None)
        if message is None:
            try:
                message = await self._wait_for(self._source.try_receive, None)
            except ClosedError:
                raise StopAsyncIteration from None
            assert message is not None
        return message

    async def receive(self, timeout: float | None = None) -> Message | None:
        """Return the next message, or `None` when there is none within `timeout` seconds (`None`: wait forever)."""
        message = next(self._source.current, None)
        return await self._wait_for(self._source.try_receive, timeout) if message is None else message

    async def receive_batch(
        self, max_messages: int | None = None, timeout: float | None = None
    ) -> Batch | None:
        """Return messages that arrived together, `None` after `timeout` seconds; see `ister.Consumer.receive_batch`."""
        if max_messages is not None:
            arguments.number(max_messages, "max_messages", 1)
        return await self._wait_for(lambda: self._source.try_batch(max_messages), timeout)

    async def _wait_for(self, attempt: Callable[[], T | None], timeout: float | None) -> T | None:
        receiver = self._receiver
        found = attempt()
        if found is not None:
            return found
        deadline = receiver.deadline(timeout)
        while await self._client.wait(receiver.handle, receiver.has_news, receiver.seconds_until(deadline)):
            found = attempt()
            if found is not None:
                return found
        return None

    async def close(self, timeout: float | None = CLOSE_S) -> None:
        """Send the acknowledgments made so far and close; see `ister.Consumer.close`."""
        receiver = self._receiver
        if receiver.is_over():
            return
        try:
            receiver.begin_close()
            receiver.closed(await self._client.wait(receiver.handle, receiver.is_closed, timeout))
        finally:
            receiver.end()

    def blame(self, error: BaseException | None) -> None:
        """Let messages in hand count as failed, if the exception that ends the program's work is a failure."""
        self._receiver.blame(error)

    async def hurry(self) -> None:
        """Close while an exception leaves the block."""
        await self.close(HURRY_S)


class Reader(Receiver):
    """Yields the messages of one topic; made by `Client.reader`."""

    def __init__(self, client: Waiting, reader: SyncReader) -> None:
        super().__init__(client, reader)


class Consumer(Receiver):
    """Receives the messages of one subscription; made by `Client.consumer`."""

    def __init__(self, client: Waiting, consumer: SyncConsumer) -> None:
        super().__init__(client, consumer)
        self._consumer = consumer

    @property
    def subscription(self) -> str:
        """The subscription it belongs to."""
        return self._consumer.subscription

    @property
    def topics(self) -> list[str]:
        """The topics it currently receives from, by name: one, unless it was opened with a pattern."""
        return self._consumer.topics

    @property
    def active(self) -> bool | None:
        """Whether a Failover consumer is the active one; `None` when the broker has not said."""
        return self._consumer.active

    def ack(self, what: Acknowledged) -> None:
        """Acknowledge a message, a batch, or several messages; see `ister.Consumer.ack`."""
        self._consumer.ack(what)

    def ack_until(self, message: Message) -> None:
        """Acknowledge everything up to and including this message."""
        self._consumer.ack_until(message)

    def nack(self, what: Acknowledged, delay: Duration | None = None, reason: str = "") -> None:
        """Refuse messages: they are redelivered after `delay`; see `ister.Consumer.nack`."""
        self._consumer.nack(what, delay, reason)

    def extend(self, *what: Acknowledged) -> None:
        """Report that messages are still being worked on: their acknowledgment timeout starts again."""
        self._consumer.extend(*what)

    async def seek(self, position: Position, timeout: float | None = SEEK_S) -> int:
        """Move the whole subscription; see `ister.Consumer.seek`."""
        consumer = self._consumer
        seeking = consumer.begin_seek(position)
        deadline = consumer.deadline(timeout)
        try:
            await self._client.wait(None, seeking.answered, consumer.seconds_until(deadline))
            await self._client.wait(consumer.attachment, seeking.arrived, consumer.seconds_until(deadline))
        finally:
            consumer.withdraw_seek(seeking)
        return consumer.end_seek(seeking, timeout)

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until the broker has stored every acknowledgment made so far; see `ister.Consumer.flush`."""
        consumer = self._consumer
        consumer.flushed(await self._client.wait(consumer.handle, consumer.written, timeout), timeout)
