"""Sending in the event loop: `Producer`, and the `Receipt` it gives for what it sent.

Invariants
- sending waits only while the window is full; a receipt is never waited for unless asked
"""

# ruff: noqa: ASYNC109 (every call has a timeout of its own, as in the synchronous client; asyncio.timeout works too)

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from ister.aio.closing import Closing
from ister.aio.waiting import Waiting
from ister.closing import HURRY_S
from ister.producer import CLOSE_S
from ister.producer import Producer as SyncProducer
from ister.published import Published
from ister.receipts import Shipment
from ister.requests import Duration
from ister.sender import When


class Receipt:
    """The receipt of one message or of a batch: `await` it, or its `result`."""

    __slots__ = ("_client", "count", "index", "shipment")

    def __init__(self, client: Waiting, shipment: Shipment, index: int, count: int) -> None:
        self._client = client
        self.shipment = shipment
        self.index = index
        self.count = count

    def done(self) -> bool:
        """Whether the broker has answered: stored at the topic's durability, or refused."""
        return self.shipment.resolved

    async def result(self, timeout: float | None = None) -> Published:
        """Wait up to `timeout` seconds (`None`: forever) and return where the messages are.

        Raises `TimeoutExpiredError`, or the error that the broker refused them with.
        """
        if not self.shipment.resolved:
            await self._client.wait_for_shipment(self.shipment, timeout)
        return self.shipment.outcome(self.index, self.count, timeout)

    def __await__(self) -> Generator[Any, Any, Published]:
        return self.result().__await__()


class Producer(Closing):
    """Sends messages to one topic; made by `Client.producer`."""

    def __init__(self, client: Waiting, producer: SyncProducer) -> None:
        self._client = client
        self._producer = producer

    @property
    def topic(self) -> str:
        """The topic it sends to."""
        return self._producer.topic

    @property
    def last_sequence(self) -> int:
        """The sequence number of the last message sent, -1 for none; see `ister.Producer.last_sequence`."""
        return self._producer.last_sequence

    async def send(
        self,
        payload: bytes,
        *,
        key: bytes | None = None,
        attributes: Mapping[str, str] | None = None,
        deliver_at: When | None = None,
        delay: Duration | None = None,
        sequence: int | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """Send one message; waits only while the window is full. See `ister.Producer.send`."""
        producer = self._producer
        due = 0 if deliver_at is None and delay is None else producer.due(deliver_at, delay)
        plain = key is None and attributes is None and not due and sequence is None
        receipt = producer.send_fast(payload) if plain else None
        if receipt is None:
            receipt = producer.try_send(payload, key, attributes, due, sequence)
        if receipt is None:
            deadline = producer.deadline(timeout)
            while receipt is None:
                await self._wait_for_room(producer.publication.gathered.size, deadline, timeout)
                receipt = producer.try_send(payload, key, attributes, due, sequence)
        return Receipt(self._client, receipt.shipment, receipt.index, 1)

    async def send_batch(
        self,
        payloads: Sequence[bytes],
        *,
        keys: Sequence[bytes | None] | None = None,
        attributes: Sequence[Mapping[str, str] | None] | None = None,
        deliver_at: When | Sequence[When | None] | None = None,
        delay: Duration | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """Send many messages at once; see `ister.Producer.send_batch`."""
        producer = self._producer
        batch = producer.pack(payloads, keys, attributes, deliver_at, delay)
        receipt = producer.try_batch(batch)
        if receipt is None:
            deadline = producer.deadline(timeout)
            while receipt is None:
                await self._wait_for_room(
                    lambda: producer.publication.gathered.size() or batch.size, deadline, timeout
                )
                receipt = producer.try_batch(batch)
        return Receipt(self._client, receipt.shipment, receipt.index, receipt.count)

    async def _wait_for_room(self, size: Callable[[], int], deadline: float, timeout: float | None) -> None:
        producer = self._producer
        left = producer.seconds_until(deadline)
        if not await self._client.wait(producer.publication, lambda: producer.has_room(size()), left):
            raise producer.window_full(timeout)

    async def flush(self, timeout: float | None = None) -> None:
        """Send what is gathered and wait until everything has been answered; see `ister.Producer.flush`."""
        producer = self._producer
        producer.flushed(await self._client.wait(producer.publication, producer.answered, timeout), timeout)

    async def close(self, timeout: float | None = CLOSE_S) -> None:
        """Flush, and close this producer at the broker; see `ister.Producer.close`."""
        producer = self._producer
        if producer.is_over():
            return
        try:
            await self.flush(timeout)
            producer.begin_close()
            producer.closed(await self._client.wait(producer.publication, producer.is_closed, timeout))
        finally:
            producer.end()

    async def hurry(self) -> None:
        """Close while an exception leaves the block."""
        await self.close(HURRY_S)
