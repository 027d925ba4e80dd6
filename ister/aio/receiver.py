"""Receiving in the event loop: `Receiver`, and the `Consumer` and `Reader` that users have.

Invariants
- only waiting is done here: what has come, credit and acknowledgments are the synchronous receiver's
- one task at a time uses a receiver
"""

# ruff: noqa: ASYNC109 (every call has a timeout of its own, as in the synchronous client; asyncio.timeout works too)

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator

from ister.aio.closing import Closing
from ister.aio.waiting import Waiting
from ister.consumer import SEEK_S, Acknowledged, Position
from ister.consumer import Consumer as SyncConsumer
from ister.errors import ClosedError
from ister.message import Batch, Delivery, Event, Message
from ister.producer import HURRY_S
from ister.reader import Reader as SyncReader
from ister.receiver import CLOSE_S
from ister.receiver import Receiver as SyncReceiver


class Receiver(Closing):
    """Receives messages from one topic. For one task at a time."""

    def __init__(self, client: Waiting, receiver: SyncReceiver) -> None:
        self._client = client
        self._receiver = receiver
        self._current: Iterator[Message] = iter(())

    @property
    def topic(self) -> str:
        """The topic it receives from."""
        return self._receiver.topic

    @property
    def dropped(self) -> int:
        """How many messages a non-reliable topic has dropped here, because this program was too slow."""
        return self._receiver.dropped

    @property
    def events(self) -> Iterable[Event]:
        """What the broker told besides messages, oldest first (the last 256)."""
        return self._receiver.events

    @property
    def position(self) -> int:
        """The offset at which it stood when it was opened last."""
        return self._receiver.position

    def __aiter__(self) -> AsyncIterator[Message]:
        """Yield messages for ever; ends when the consumer is closed by `close`.

        No generator: one of those is over once a time-out or a cancellation has passed through it.
        """
        return self

    async def __anext__(self) -> Message:
        """Return the next message; raises `StopAsyncIteration` once the consumer is closed by `close`."""
        message = next(self._current, None)
        while message is None:
            try:
                delivery = await self._next(None)
            except ClosedError:
                raise StopAsyncIteration from None
            assert delivery is not None
            self._current = delivery.hand_out()
            message = next(self._current, None)
        return message

    async def receive(self, timeout: float | None = None) -> Message | None:
        """Return the next message, or `None` when there is none within `timeout` seconds (`None`: wait for ever)."""
        message = next(self._current, None)
        while message is None:
            delivery = await self._next(timeout)
            if delivery is None:
                return None
            self._current = delivery.hand_out()
            message = next(self._current, None)
        return message

    async def receive_batch(
        self, max_messages: int | None = None, timeout: float | None = None
    ) -> Batch | None:
        """Return messages that came together, or `None` after `timeout` seconds; see `ister.Consumer.receive_batch`."""
        message = next(self._current, None)
        delivery = message.delivery if message is not None else await self._next(timeout)
        batch, self._current = SyncReceiver.cut(self._current, message, delivery, max_messages)
        return batch

    async def _next(self, timeout: float | None) -> Delivery | None:
        receiver = self._receiver
        delivery = receiver.try_next()
        if delivery is not None:
            return delivery
        deadline = receiver.deadline(timeout)
        while await self._client.wait(receiver.handle, receiver.has_news, receiver.seconds_until(deadline)):
            delivery = receiver.try_next()
            if delivery is not None:
                return delivery
        return None

    async def close(self, timeout: float | None = CLOSE_S) -> None:
        """Send the acknowledgments made so far and leave; see `ister.Consumer.close`."""
        receiver = self._receiver
        self._current = iter(())
        if receiver.is_over():
            return
        try:
            receiver.begin_close()
            receiver.closed(await self._client.wait(receiver.handle, receiver.is_closed, timeout))
        finally:
            receiver.end()

    async def hurry(self) -> None:
        """Close while an exception is on its way out."""
        await self.close(HURRY_S)


class Reader(Receiver):
    """Yields the messages of one topic; made by `Client.reader`. For one task at a time."""

    def __init__(self, client: Waiting, reader: SyncReader) -> None:
        super().__init__(client, reader)


class Consumer(Receiver):
    """Receives the messages of one subscription; made by `Client.consumer`. For one task at a time."""

    def __init__(self, client: Waiting, consumer: SyncConsumer) -> None:
        super().__init__(client, consumer)
        self._consumer = consumer

    @property
    def subscription(self) -> str:
        """The subscription it belongs to."""
        return self._consumer.subscription

    @property
    def topics(self) -> list[str]:
        """The topics it receives from at present, by name: one, unless it was made for a pattern."""
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

    def nack(self, what: Acknowledged, delay: float = 0.0, reason: str = "") -> None:
        """Give messages back, to be delivered again after `delay` seconds."""
        self._consumer.nack(what, delay, reason)

    def extend(self, *what: Acknowledged) -> None:
        """Say that messages are still being worked on: their acknowledgment timeout begins anew."""
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
        reached = consumer.end_seek(seeking, timeout)
        deque(self._current, maxlen=0)  # also a loop that holds this iterator
        self._current = iter(())
        return reached

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until the broker has written every acknowledgment made so far; see `ister.Consumer.flush`."""
        consumer = self._consumer
        consumer.flushed(await self._client.wait(consumer.handle, consumer.written, timeout), timeout)
