"""`connect` and `Client` for asyncio: opening producers, consumers and readers in the event loop."""

# ruff: noqa: ASYNC109 (every call has a timeout of its own, as in the synchronous client; asyncio.timeout works too)

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Unpack

from ister import arguments, places, requests
from ister.aio.closing import Opening
from ister.aio.conversation import Conversation
from ister.aio.deadletters import DeadLetters
from ister.aio.message import Message
from ister.aio.producer import Producer
from ister.aio.receiver import Consumer, Reader
from ister.client import TIMEOUT_S
from ister.client import Client as SyncClient
from ister.consumer import Position
from ister.deadletters import DeadLetters as SyncDeadLetters
from ister.message import BrokerEvent, Event
from ister.names import is_pattern
from ister.opening import CREDIT_BYTES, LINGER_MS, ConsumerArguments
from ister.requests import SubscriptionOptions
from ister.subscriptions import SubscriptionType
from ister.wildcard import WildcardConsumer


class Client(Conversation):
    """A connection to a broker; made by `connect`."""

    def producer(
        self,
        topic: str,
        *,
        batch_bytes: int | None = None,
        linger_ms: float = LINGER_MS,
        name: str | None = None,
        window_bytes: int | None = None,
        timeout: float | None = None,
    ) -> Opening[Producer]:
        """Open a producer (`await` it, or `async with`); see `ister.Client.producer`."""

        async def opened() -> Producer:
            plan = self._client.opener.producer(
                topic, batch_bytes=batch_bytes, linger_ms=linger_ms, name=name, window_bytes=window_bytes
            )
            return Producer(self, await self._opened(plan, timeout))

        return Opening(opened)

    def consumer(
        self,
        topic: str,
        subscription: str,
        *,
        type: SubscriptionType | None = None,
        start: Position | None = None,
        force: bool = False,
        priority: int = 0,
        credit_messages: int | None = None,
        credit_bytes: int = CREDIT_BYTES,
        on_event: Callable[[Event], Any] | None = None,
        timeout: float | None = None,
        **options: Unpack[SubscriptionOptions],
    ) -> Opening[Consumer]:
        """Open a consumer (`await` it, or `async with`); see `ister.Client.consumer`.

        `on_event(event)` is called in the loop's thread.
        """

        async def opened() -> Consumer:
            many = is_pattern(arguments.text(topic, "a topic's name"))
            opener = self._client.opener
            asked = ConsumerArguments(
                subscription=subscription,
                type=requests.consumer_type(type, force=force),
                start=start,
                force=force,
                priority=priority,
                credit_messages=credit_messages,
                credit_bytes=credit_bytes,
                settings=requests.subscription_settings(options),
                on_event=self._in_loop(on_event),
                patient=timeout is not None,
            )
            if many:
                return Consumer(self, await self._open_wildcard(opener.wildcard(topic, asked), timeout))
            return Consumer(self, await self._opened(opener.consumer(topic, asked), timeout))

        return Opening(opened)

    async def _open_wildcard(self, consumer: WildcardConsumer, timeout: float | None) -> WildcardConsumer:
        seconds = self._timeout if timeout is None else arguments.timeout(timeout)
        members = consumer.members
        try:
            try:
                answer = await self._ask(members.first_look(), timeout)
            except Exception as error:
                if not members.asked_too_much(error):
                    raise
                answer = await self._ask(members.first_look(), timeout)
            members.follow(answer, later=False)
            await self.wait(None, members.is_open, seconds)
            members.check_open(seconds)
        except BaseException:
            consumer.abandon()
            raise
        return consumer

    def reader(
        self,
        topic: str,
        *,
        start: Position = "earliest",
        credit_messages: int | None = None,
        credit_bytes: int = CREDIT_BYTES,
        on_event: Callable[[Event], Any] | None = None,
        timeout: float | None = None,
    ) -> Opening[Reader]:
        """Open a reader (`await` it, or `async with`); see `ister.Client.reader`."""

        async def opened() -> Reader:
            plan = self._client.opener.reader(
                topic,
                start=start,
                credit_messages=credit_messages,
                credit_bytes=credit_bytes,
                on_event=self._in_loop(on_event),
            )
            return Reader(self, await self._opened(plan, timeout))

        return Opening(opened)

    async def peek(
        self,
        topic: str,
        subscription: str,
        count: int = 10,
        *,
        start: int = 0,
        timeout: float | None = None,
    ) -> list[Message]:
        """Return the next unacknowledged messages without consuming them; see `ister.Client.peek`."""
        arguments.number(count, "count", 1)
        arguments.number(start, "start")
        seconds = self._timeout if timeout is None else arguments.timeout(timeout)
        network = self._client.network
        deadline = network.deadline(seconds)
        peek: requests.Peek[Message] = requests.Peek(
            await self.subscription(topic, subscription, timeout=timeout), count, start
        )
        for first, end in peek.places:
            async with self.reader(
                topic, start=first, credit_messages=end - first, timeout=timeout
            ) as reader:
                while reader.position < end:
                    batch = await reader.receive_batch(timeout=network.seconds_until(deadline))
                    if batch is None:
                        return peek.found
                    if not peek.take(batch, end):
                        break
        return peek.found

    def dead_letters(self, topic: str, subscription: str, *, timeout: float | None = None) -> DeadLetters:
        """Return an object that manages the dead letters of a subscription; see `ister.Client.dead_letters`."""
        stop = threading.Event()
        seconds = self._timeout if timeout is None else arguments.timeout(timeout)
        letters = SyncDeadLetters(self._client, topic, subscription, timeout=seconds, stop=stop)
        return DeadLetters(letters, stop, self._loop)

    @property
    def events(self) -> Iterable[BrokerEvent]:
        """When the broker was lost and connected, oldest first (the last 256)."""
        return self._client.events

    def _in_loop(self, on_event: Callable[[Event], Any] | None) -> Callable[[Event], Any] | None:
        if on_event is None:
            return None
        return lambda event: self._loop.call_soon_threadsafe(on_event, event)

    def blame(self, error: BaseException | None) -> None:
        """Let messages in hand fail, if the exception that ends the program's work is a failure."""
        self._client.network.blame(error)

    async def close(self) -> None:
        """End the session. Producers that were not closed lose messages without a receipt."""
        await self._loop.run_in_executor(None, self._client.close)
        self._wake()


def connect(
    endpoints: str | Iterable[str],
    *,
    timeout: float | None = TIMEOUT_S,
    name: str | None = None,
    on_event: Callable[[BrokerEvent], Any] | None = None,
) -> Opening[Client]:
    """Connect to a broker (`await` it, or `async with`); see `ister.connect`.

    `on_event(event)` is called in the loop's thread.
    """

    async def opened() -> Client:
        listed = places.endpoints(endpoints)
        loop = asyncio.get_running_loop()
        if places.need_a_resolver(listed):
            await loop.run_in_executor(None, places.check_hosts, listed)

        def tell(event: BrokerEvent) -> None:
            if on_event is not None:
                with suppress(RuntimeError):  # the loop is closed: the event reaches nobody
                    loop.call_soon_threadsafe(on_event, event)

        inner = SyncClient(listed, timeout=timeout, name=name, on_event=tell)
        client = Client(inner, timeout)
        try:
            await client.wait(None, inner.greeted, timeout)
            inner.check_greeting(timeout)
        except BaseException:
            await client.close()
            raise
        return client

    return Opening(opened)
