"""Ister for asyncio: the same client, waiting in the event loop.

    import ister.aio

    async with ister.aio.connect("tcp://127.0.0.1:5555") as client:
        async with client.producer("orders") as producer:
            receipt = await producer.send(b"hello")
            print((await receipt).offset)
        async with client.consumer("orders", subscription="billing", start="earliest") as consumer:
            async for message in consumer:
                consumer.ack(message)

What never waits is a plain method (`ack`, `nack`, `ack_until`, `done`); everything else is awaited, with the arguments
and errors of the synchronous client. Sending uses the socket right here; receiving is done by the background threads,
which wake the loop once for everything that came together, never once a message.

Invariants
- only the event loop's thread runs users' coroutines; background threads only say that something has changed
- nothing here blocks the loop for longer than it takes to copy one batch into a socket
"""

# ruff: noqa: ASYNC109 (every call has a timeout of its own, as in the synchronous client; asyncio.timeout works too)

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, Unpack

from ister import arguments, requests
from ister import client as synchronous
from ister.administration import VERIFY_POLL_S, SubscriptionType
from ister.client import (
    BATCH_BYTES,
    CREDIT_BYTES,
    CREDIT_MESSAGES,
    DIAGNOSIS_MAX,
    DIAGNOSIS_S,
    LINGER_MS,
    TIMEOUT_S,
    Plan,
    Start,
)
from ister.consumer import SEEK_S, Acknowledged, Position
from ister.consumer import Consumer as SyncConsumer
from ister.deadletters import LIST_MAX, DeadLetter, Progress
from ister.deadletters import DeadLetters as SyncDeadLetters
from ister.errors import ClosedError, IsterError, RemoteError, TimeoutExpiredError
from ister.inbox import GONE, Inbox, answered, asked, nobody
from ister.message import Batch, BatchReceipt, Delivery, Event, Message, Published, Shipment
from ister.names import is_pattern
from ister.producer import CLOSE_S as PRODUCER_CLOSE_S
from ister.producer import HURRY_S, When
from ister.producer import Producer as SyncProducer
from ister.reader import Reader as SyncReader
from ister.receiver import CLOSE_S as RECEIVER_CLOSE_S
from ister.receiver import Receiver as SyncReceiver
from ister.requests import SubscriptionOptions
from ister.session import Handle, Request
from ister.wildcard import WildcardConsumer

T = TypeVar("T", bound="Closing")


class Closing:
    """What an `async with` block closes."""

    async def close(self) -> None:
        """Give it back."""

    async def hurry(self) -> None:
        """Give it back while an exception is on its way out."""
        await self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.close()
            return
        try:
            await self.hurry()
        except IsterError:
            pass  # the exception on its way out matters more


class Opening(Generic[T]):
    """Something that is being opened: `await` it, or use it in `async with`."""

    __slots__ = ("_open", "_opened")

    def __init__(self, open_it: Callable[[], Awaitable[T]]) -> None:
        self._open = open_it
        self._opened: T | None = None

    def __await__(self) -> Generator[Any, Any, T]:
        return self._open().__await__()

    async def __aenter__(self) -> T:
        self._opened = await self._open()
        return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is not None:
            await self._opened.__aexit__(kind, error, trace)


class Client(Closing):
    """A connection to a broker; made by `connect`."""

    def __init__(self, client: synchronous.Client, timeout: float | None) -> None:
        """Take over a synchronous client; it belongs to the running loop from now on."""
        self._client = client
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._waiters: set[asyncio.Future[None]] = set()
        self._shipments: dict[int, tuple[Shipment, asyncio.Future[None]]] = {}
        self._waking = False
        self._inbox: Inbox | None = None
        self._inbox_opening = asyncio.Lock()
        self._replies: dict[asyncio.Future[None], Inbox] = {}
        self._sorting: tuple[Inbox, asyncio.Task[None]] | None = None
        client.replier = self._reply
        network = client.network
        with network.lock:
            network.eager = True
            network.on_progress = self._progressed
            network.wake_background()

    # ---- waiting -------------------------------------------------------------------------------------------------

    def _progressed(self) -> None:
        """Have the loop look; called in any thread, and at most one call is on its way at a time."""
        if self._waking:
            return
        self._waking = True
        self._from_thread(self._wake)

    def _from_thread(self, call: Callable[..., Any], *given: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *given)
        except RuntimeError:
            pass  # the loop is closed: nobody waits

    def _wake(self) -> None:
        self._waking = False
        waiters, self._waiters = self._waiters, set()
        for future in waiters:
            _set(future)
        for number in [number for number, (shipment, _) in self._shipments.items() if shipment.resolved]:
            _set(self._shipments.pop(number)[1])

    async def wait(self, handle: Handle | None, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until `condition()` (evaluated under the lock) holds; False when the time (seconds) ran out first."""
        network = self._client.network
        network.check()
        deadline = network.deadline(arguments.timeout(timeout))
        while True:
            future: asyncio.Future[None] = self._loop.create_future()
            self._waiters.add(future)
            with network.lock:
                answer = condition()
                while network.connection_of(handle).session.outbox and network.connection_of(handle).pump():
                    answer = condition()
            network.settle()
            left = deadline - network.clock.monotonic()
            if answer or left <= 0:
                self._waiters.discard(future)
                return answer
            try:
                await self._until(future, left)
            finally:
                self._waiters.discard(future)
            network.check()

    async def _until(self, future: asyncio.Future[None], seconds: float) -> None:
        """Wait for a future or a time; unlike `asyncio.wait_for` before Python 3.12, a cancellation always counts."""
        if seconds == float("inf"):
            await future
            return
        timer = self._loop.call_later(seconds, _set, future)
        try:
            await future
        finally:
            timer.cancel()

    async def wait_for_shipment(self, shipment: Shipment, timeout: float | None) -> None:
        """Wait until a shipment is resolved, or the time (seconds) has run out; one future serves all its receipts."""
        entry = self._shipments.get(id(shipment))
        if entry is None:
            entry = self._shipments[id(shipment)] = (shipment, self._loop.create_future())
            if shipment.resolved:  # just now, in another thread: its call may have come before the entry
                self._progressed()
        try:
            await asyncio.wait_for(asyncio.shield(entry[1]), arguments.timeout(timeout))
        except TimeoutError:
            pass  # `published` says it better

    async def _ask(self, request: Request, timeout: float | None) -> Any:
        seconds = self._timeout if timeout is None else arguments.timeout(timeout)
        self._client.send_request(request)
        try:
            await self.wait(None, lambda: request.done, seconds)
        finally:
            if not request.done:
                self._client.withdraw(request)
        return self._client.answer(request, seconds)

    async def _drive(self, steps: Iterator[Request], timeout: float | None) -> None:
        """Answer every request that some steps of the synchronous client ask."""
        for request in steps:
            await self._ask(request, timeout)

    # ---- topics and subscriptions --------------------------------------------------------------------------------

    async def create_topic(
        self,
        topic: str,
        *,
        dispatch: Literal["reliable", "non-reliable"] = "reliable",
        durability: Literal["fsync", "os", "cloud"] | None = None,
        exist_ok: bool = False,
        timeout: float | None = None,
        **retention: int,
    ) -> dict[str, Any]:
        """Create a topic; see `ister.Client.create_topic`."""
        request = requests.topic_request(topic, dispatch, durability, retention)
        try:
            answer: dict[str, Any] = await self._ask(request, timeout)
        except RemoteError as error:
            if not requests.is_there_already(error, request, exist_ok=exist_ok):
                raise
            answer = await self.topic(topic, timeout=timeout)
            if requests.differs(answer, request):
                raise
        return answer

    async def update_topic(
        self, topic: str, *, timeout: float | None = None, **retention: int
    ) -> dict[str, Any]:
        """Change what a topic keeps; see `ister.Client.update_topic`."""
        answer: dict[str, Any] = await self._ask(
            Request("topic.update", {"topic": topic, **retention}), timeout
        )
        return answer

    async def verify_topic(
        self, topic: str, *, timeout: float | None = None, progress: Callable[[int, int], Any] | None = None
    ) -> dict[str, Any]:
        """Have the broker check every byte of a topic's log; see `ister.Client.verify_topic`."""
        while True:
            answer = await self._ask(Request("topic.verify", {"topic": topic}), timeout)
            if progress is not None and "bytes_total" in answer:
                progress(answer["bytes"], answer["bytes_total"])
            if answer["done"]:
                report: dict[str, Any] = answer["report"]
                return report
            await asyncio.sleep(VERIFY_POLL_S)

    async def repair_topic(
        self, topic: str, *, skip_damaged: bool, timeout: float | None = None
    ) -> dict[str, Any]:
        """Let subscriptions go on behind what is damaged; see `ister.Client.repair_topic`."""
        request = Request("topic.repair", {"topic": topic, "skip_damaged": skip_damaged})
        answer: dict[str, Any] = await self._ask(request, timeout)
        return answer

    async def topics(self, *, timeout: float | None = None) -> list[dict[str, Any]]:
        """Return every topic, by name."""
        listing = requests.Listing("topic.list", "topics", "topic", {})
        await self._drive(iter(listing), timeout)
        return listing.found

    async def topic(self, topic: str, *, timeout: float | None = None) -> dict[str, Any]:
        """Return what the broker knows of a topic; raises `RemoteError` (`unknown-topic`)."""
        answer: dict[str, Any] = await self._ask(Request("topic.show", {"topic": topic}), timeout)
        return answer

    async def delete_topic(self, topic: str, *, timeout: float | None = None) -> None:
        """Delete a topic, its messages and its subscriptions."""
        await self._delete(Request("topic.delete", {"topic": topic}), timeout)

    async def create_subscription(
        self,
        topic: str,
        subscription: str,
        *,
        type: SubscriptionType = "exclusive",
        start: Position = "latest",
        exist_ok: bool = False,
        timeout: float | None = None,
        **options: Unpack[SubscriptionOptions],
    ) -> dict[str, Any]:
        """Create a subscription without attaching to it; see `ister.Client.create_subscription`."""
        settings = requests.subscription_settings(options)
        request = requests.subscription_request(topic, subscription, type, start, settings)
        try:
            answer: dict[str, Any] = await self._ask(request, timeout)
        except RemoteError as error:
            if not requests.is_there_already(error, request, exist_ok=exist_ok):
                raise
            answer = await self.subscription(topic, subscription, timeout=timeout)
            if requests.differs(answer, request):
                raise
        return answer

    async def subscriptions(self, topic: str, *, timeout: float | None = None) -> list[dict[str, Any]]:
        """Return every subscription of a topic, by name."""
        listing = requests.Listing("subscription.list", "subscriptions", "subscription", {"topic": topic})
        await self._drive(iter(listing), timeout)
        return listing.found

    async def subscription(
        self, topic: str, subscription: str, *, timeout: float | None = None
    ) -> dict[str, Any]:
        """Return what the broker knows of a subscription; raises `RemoteError` (`unknown-subscription`)."""
        request = requests.about("subscription.show", topic, subscription)
        answer: dict[str, Any] = await self._ask(request, timeout)
        return answer

    async def update_subscription(
        self,
        topic: str,
        subscription: str,
        *,
        timeout: float | None = None,
        **options: Unpack[SubscriptionOptions],
    ) -> dict[str, Any]:
        """Change options of a subscription; see `ister.Client.update_subscription`."""
        settings = requests.subscription_settings(options)
        request = requests.about("subscription.update", topic, subscription, **settings)
        answer: dict[str, Any] = await self._ask(request, timeout)
        return answer

    async def pause(self, topic: str, subscription: str, *, timeout: float | None = None) -> None:
        """Have nothing delivered from a subscription until `resume`; consumers stay attached."""
        await self.update_subscription(topic, subscription, paused=1, timeout=timeout)

    async def resume(self, topic: str, subscription: str, *, timeout: float | None = None) -> None:
        """Have a paused subscription deliver again."""
        await self.update_subscription(topic, subscription, paused=0, timeout=timeout)

    async def seek(
        self, topic: str, subscription: str, position: Position, *, timeout: float | None = None
    ) -> int:
        """Move a subscription; see `ister.Client.seek`."""
        place = arguments.start(position, "a position")
        answer = await self._ask(requests.about("subscription.seek", topic, subscription, to=place), timeout)
        reached: int = answer["position"]
        return reached

    async def unblock(
        self,
        topic: str,
        subscription: str,
        action: Literal["retry", "drop", "dead-letter"],
        *,
        timeout: float | None = None,
    ) -> int:
        """Decide what becomes of the messages that block a subscription; see `ister.Client.unblock`."""
        request = requests.unblock_request(topic, subscription, action)
        messages: int = (await self._ask(request, timeout))["messages"]
        return messages

    async def explain(self, topic: str, subscription: str, *, timeout: float | None = None) -> dict[str, Any]:
        """Return why messages of a subscription flow, or why they do not; see `ister.Client.explain`."""
        request = requests.about("subscription.explain", topic, subscription)
        answer: dict[str, Any] = await self._ask(request, timeout)
        return answer

    async def delete_subscription(
        self, topic: str, subscription: str, *, timeout: float | None = None
    ) -> None:
        """Delete a subscription and its cursor; its consumers are closed."""
        request = requests.about("subscription.delete", topic, subscription)
        await self._delete(request, timeout)

    async def _delete(self, request: Request, timeout: float | None) -> None:
        try:
            await self._ask(request, timeout)
        except RemoteError as error:
            if not requests.is_gone_already(error, request):
                raise

    async def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Return how the broker and its processes are doing."""
        answer: dict[str, Any] = await self._ask(Request("status", {}), timeout)
        return answer

    # ---- producers and consumers ---------------------------------------------------------------------------------

    def producer(
        self,
        topic: str,
        *,
        batch_bytes: int = BATCH_BYTES,
        linger_ms: float = LINGER_MS,
        name: str | None = None,
        window_bytes: int | None = None,
        timeout: float | None = None,
    ) -> Opening[Producer]:
        """Open a producer (`await` it, or `async with`); see `ister.Client.producer`."""

        async def opened() -> Producer:
            producer = self._client.plan_producer(
                topic, batch_bytes=batch_bytes, linger_ms=linger_ms, name=name, window_bytes=window_bytes
            )
            await self._opened(Plan(producer.publication, f"producer for topic {topic!r}"), timeout)
            return Producer(self, producer)

        return Opening(opened)

    def consumer(
        self,
        topic: str,
        subscription: str,
        *,
        type: SubscriptionType = "exclusive",
        start: Start | None = None,
        force: bool = False,
        priority: int = 0,
        credit_messages: int = CREDIT_MESSAGES,
        credit_bytes: int = CREDIT_BYTES,
        on_event: Callable[[Event], Any] | None = None,
        timeout: float | None = None,
        **options: Unpack[SubscriptionOptions],
    ) -> Opening[Consumer]:
        """Open a consumer (`await` it, or `async with`); see `ister.Client.consumer`.

        `on_event(event)` is called in the loop's thread.
        """

        def planned(plan: Callable[..., Any]) -> Any:
            return plan(
                topic,
                subscription=subscription,
                type=type,
                start=start,
                force=force,
                priority=priority,
                credit_messages=credit_messages,
                credit_bytes=credit_bytes,
                settings=requests.subscription_settings(options),
                on_event=self._in_loop(on_event),
            )

        async def opened() -> Consumer:
            if is_pattern(arguments.text(topic, "a topic's name")):
                return Consumer(self, await self._open_wildcard(planned(self._client.plan_wildcard), timeout))
            consumer: SyncConsumer = planned(self._client.plan_consumer)
            what = f"consumer of {subscription!r} of {topic!r}"
            await self._opened(Plan(consumer.attachment, what), timeout)
            return Consumer(self, consumer)

        return Opening(opened)

    async def _open_wildcard(self, consumer: WildcardConsumer, timeout: float | None) -> WildcardConsumer:
        seconds = self._timeout if timeout is None else arguments.timeout(timeout)
        try:
            consumer.follow(await self._ask(consumer.first_look(), timeout), later=False)
            await self.wait(None, consumer.is_open, seconds)
            consumer.check_open(seconds)
        except BaseException:
            consumer.abandon()
            raise
        return consumer

    def reader(
        self,
        topic: str,
        *,
        start: Start = "latest",
        credit_messages: int = CREDIT_MESSAGES,
        credit_bytes: int = CREDIT_BYTES,
        on_event: Callable[[Event], Any] | None = None,
        timeout: float | None = None,
    ) -> Opening[Reader]:
        """Open a reader (`await` it, or `async with`); see `ister.Client.reader`."""

        async def opened() -> Reader:
            reader = self._client.plan_reader(
                topic,
                start=start,
                credit_messages=credit_messages,
                credit_bytes=credit_bytes,
                on_event=self._in_loop(on_event),
            )
            await self._opened(Plan(reader.attachment, f"reader of {topic!r}"), timeout)
            return Reader(self, reader)

        return Opening(opened)

    async def peek(
        self, topic: str, subscription: str, count: int = 10, *, timeout: float | None = None
    ) -> list[Message]:
        """Return the next messages that nobody has acknowledged, and consume nothing; see `ister.Client.peek`."""
        arguments.number(count, "count", 1)
        seconds = self._timeout if timeout is None else arguments.timeout(timeout)
        network = self._client.network
        deadline = network.deadline(seconds)
        peek = requests.Peek(await self.subscription(topic, subscription, timeout=timeout), count)
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

    # ---- request and reply ---------------------------------------------------------------------------------------

    async def request(
        self,
        topic: str,
        payload: bytes,
        *,
        timeout: float | None = None,
        key: bytes | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> Message:
        """Send a message and return the reply that some consumer gives it; see `ister.Client.request`."""
        network, inner = self._client.network, self._client
        seconds = self._timeout if timeout is None else arguments.timeout(timeout)
        deadline = network.deadline(seconds)
        inbox = await self._open_inbox(timeout)
        future: asyncio.Future[None] = self._loop.create_future()
        waiting = inner.expect_reply(inbox, lambda: _set(future))
        self._replies[future] = inbox
        if self._sorting is None or self._sorting[0] is not inbox or self._sorting[1].done():
            self._sorting = (inbox, self._loop.create_task(self._sort(inbox)))
        try:
            producer = Producer(self, inner.outlets.producer(topic))
            receipt = await producer.send(
                payload,
                key=key,
                attributes=asked(attributes, inbox.topic, waiting.correlation_id),
                timeout=network.seconds_until(deadline),
            )
            shipment = receipt.shipment
            BatchReceipt(shipment, receipt.index, 1).add_done_callback(
                lambda _receipt: None if shipment.error is None else self._from_thread(_set, future)
            )
            await self._until(future, max(0.0, deadline - network.clock.monotonic()))
        finally:
            del self._replies[future]
            with network.lock:
                inbox.forget(waiting)
        if waiting.message is None and not inbox.closed:
            shipment.outcome(receipt.index, 1, seconds)  # raises if it was refused, or not even taken
            raise TimeoutExpiredError(nobody(topic, seconds, await self._consumers_of(topic)))
        return inner.reply_of(inbox, waiting, topic)

    async def _open_inbox(self, timeout: float | None) -> Inbox:
        async with self._inbox_opening:
            inbox = self._inbox
            if inbox is None or inbox.closed:
                if inbox is not None:
                    inbox.reader.end()
                request = self._client.inbox_request()
                await self._ask(request, timeout)
                topic = request.arguments["topic"]
                reader = self._client.plan_reader(topic, start="latest")
                await self._opened(Plan(reader.attachment, f"reader of {topic!r}"), timeout)
                inbox = self._inbox = Inbox(topic, reader)
            return inbox

    async def _sort(self, inbox: Inbox) -> None:
        """Give replies to those who wait for them, while anybody does: one task for all of them."""

        def over() -> bool:
            inbox.sort()
            return not len(inbox) or inbox.closed

        try:
            while len(inbox) and not inbox.closed:
                await self.wait(inbox.reader.attachment, over, None)
        except IsterError:
            pass  # the client is closed: `reply_of` says so
        for future, waits_at in self._replies.items():
            if waits_at is inbox and inbox.closed:
                _set(future)

    async def _consumers_of(self, topic: str) -> int | None:
        try:
            names = [each["subscription"] for each in await self.subscriptions(topic, timeout=DIAGNOSIS_S)]
            shown = [
                await self.subscription(topic, name, timeout=DIAGNOSIS_S) for name in names[:DIAGNOSIS_MAX]
            ]
            return sum(int(each["consumers"]) for each in shown)
        except IsterError:
            return None

    async def _reply(
        self, message: Message, payload: bytes, key: bytes | None, attributes: Mapping[str, str] | None
    ) -> None:
        topic, told = answered(message, attributes)
        outlets = self._client.outlets
        try:
            producer = Producer(self, outlets.producer(topic))
            await producer.send(payload, key=key, attributes=told, timeout=self._timeout)
        except RemoteError as error:
            if error.code not in GONE:
                raise
            outlets.discard(topic)

    def dead_letters(self, topic: str, subscription: str, *, timeout: float | None = None) -> DeadLetters:
        """Return what looks after the dead letters of a subscription; see `ister.Client.dead_letters`."""
        stop = threading.Event()
        seconds = self._timeout if timeout is None else arguments.timeout(timeout)
        letters = SyncDeadLetters(self._client, topic, subscription, timeout=seconds, stop=stop)
        return DeadLetters(letters, stop, self._loop)

    def _in_loop(self, on_event: Callable[[Event], Any] | None) -> Callable[[Event], Any] | None:
        if on_event is None:
            return None
        return lambda event: self._loop.call_soon_threadsafe(on_event, event)

    async def _opened(self, plan: Plan, timeout: float | None) -> None:
        seconds = self._timeout if timeout is None else arguments.timeout(timeout)
        try:
            answered = await self.wait(plan.handle, plan.ready, seconds)
            self._client.finish(plan, answered, seconds)
        except BaseException:
            self._client.abandon(plan)
            raise

    async def close(self) -> None:
        """End the session; producers that were not closed lose what has no receipt."""
        await self._loop.run_in_executor(None, self._client.close)
        self._wake()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Receipt:
    """The promise of an answer for one message or for a batch: `await` it, or its `result`."""

    __slots__ = ("_client", "count", "index", "shipment")

    def __init__(self, client: Client, shipment: Shipment, index: int, count: int) -> None:
        self._client = client
        self.shipment = shipment
        self.index = index
        self.count = count

    def done(self) -> bool:
        """Whether the broker has answered: stored as the topic promises, or refused."""
        return self.shipment.resolved

    async def result(self, timeout: float | None = None) -> Published:
        """Wait up to `timeout` seconds (`None`: for ever) and return where the messages are.

        Raises `TimeoutExpiredError`, or the error that the broker refused them with.
        """
        if not self.shipment.resolved:
            await self._client.wait_for_shipment(self.shipment, timeout)
        return self.shipment.outcome(self.index, self.count, timeout)

    def __await__(self) -> Generator[Any, Any, Published]:
        return self.result().__await__()


class Producer(Closing):
    """Sends messages to one topic; made by `Client.producer`."""

    def __init__(self, client: Client, producer: SyncProducer) -> None:
        self._client = client
        self._producer = producer

    @property
    def topic(self) -> str:
        """The topic it sends to."""
        return self._producer.topic

    async def send(
        self,
        payload: bytes,
        *,
        key: bytes | None = None,
        attributes: Mapping[str, str] | None = None,
        deliver_at: When | None = None,
        delay: float | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """Put one message on its way; waits only while the window is full. See `ister.Producer.send`."""
        producer = self._producer
        due = 0 if deliver_at is None and delay is None else producer.due(deliver_at, delay)
        receipt = producer.send_fast(payload) if key is None and attributes is None and not due else None
        if receipt is None:
            receipt = producer.try_send(payload, key, attributes, due)
        if receipt is None:
            deadline = producer.deadline(timeout)
            while receipt is None:
                await self._wait_for_room(producer.publication.gathered_bytes, deadline, timeout)
                receipt = producer.try_send(payload, key, attributes, due)
        return Receipt(self._client, receipt.shipment, receipt.index, 1)

    async def send_batch(
        self,
        payloads: Sequence[bytes],
        *,
        keys: Sequence[bytes | None] | None = None,
        attributes: Sequence[Mapping[str, str] | None] | None = None,
        deliver_at: When | Sequence[When | None] | None = None,
        delay: float | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """Put many messages on their way at once; see `ister.Producer.send_batch`."""
        producer = self._producer
        batch = producer.pack(payloads, keys, attributes, deliver_at, delay)
        receipt = producer.try_batch(batch)
        if receipt is None:
            deadline = producer.deadline(timeout)
            while receipt is None:
                await self._wait_for_room(
                    lambda: producer.publication.gathered_bytes() or batch.size, deadline, timeout
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

    async def close(self, timeout: float | None = PRODUCER_CLOSE_S) -> None:
        """Flush, and tell the broker that this producer is done; see `ister.Producer.close`."""
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
        """Close while an exception is on its way out."""
        await self.close(HURRY_S)


class DeadLetters:
    """The dead letters of one subscription; made by `Client.dead_letters`. Its work is done in a thread."""

    def __init__(
        self, letters: SyncDeadLetters, stop: threading.Event, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._letters = letters
        self._stop = stop
        self._loop = loop

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        self._stop.clear()
        try:
            return await self._loop.run_in_executor(None, work)
        except asyncio.CancelledError:
            self._stop.set()
            raise

    def _told(self, on_progress: Progress | None) -> Progress | None:
        if on_progress is None:
            return None
        return lambda done, total: self._loop.call_soon_threadsafe(on_progress, done, total)

    async def dead_letter_topic(self) -> str:
        """Return the name of the topic they lie in."""
        return str(await self._in_thread(self._letters.dead_letter_topic))

    async def count(self) -> int:
        """Return how many letters wait, of every subscription that shares the dead-letter topic."""
        return int(await self._in_thread(self._letters.count))

    async def list(self, limit: int = LIST_MAX) -> Sequence[DeadLetter]:
        """Return the letters that wait, oldest first; see `ister.DeadLetters.list`."""
        found: Sequence[DeadLetter] = await self._in_thread(lambda: self._letters.list(limit))
        return found

    async def show(self, offset: int) -> DeadLetter:
        """Return the letter at this offset of the dead-letter topic; see `ister.DeadLetters.show`."""
        letter: DeadLetter = await self._in_thread(lambda: self._letters.show(offset))
        return letter

    async def redrive(
        self,
        limit: int | None = None,
        *,
        offsets: Iterable[int] | None = None,
        to: str | None = None,
        on_progress: Progress | None = None,
    ) -> int:
        """Send letters back; see `ister.DeadLetters.redrive`. Cancelled, it ends after its present batch."""
        told = self._told(on_progress)
        return int(
            await self._in_thread(
                lambda: self._letters.redrive(limit, offsets=offsets, to=to, on_progress=told)
            )
        )

    async def purge(self, limit: int | None = None, *, on_progress: Progress | None = None) -> int:
        """Throw letters away; see `ister.DeadLetters.purge`. Cancelled, it ends after its present batch."""
        told = self._told(on_progress)
        return int(await self._in_thread(lambda: self._letters.purge(limit, on_progress=told)))


class Receiver(Closing):
    """Receives messages from one topic. For one task at a time."""

    def __init__(self, client: Client, receiver: SyncReceiver) -> None:
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

    async def __aiter__(self) -> AsyncIterator[Message]:
        """Yield messages for ever; ends when the consumer is closed by `close`."""
        while True:
            for message in self._current:
                yield message
            try:
                delivery = await self._next(None)
            except ClosedError:
                return
            assert delivery is not None
            self._current = delivery.hand_out()

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

    async def close(self, timeout: float | None = RECEIVER_CLOSE_S) -> None:
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

    def __init__(self, client: Client, reader: SyncReader) -> None:
        super().__init__(client, reader)


class Consumer(Receiver):
    """Receives the messages of one subscription; made by `Client.consumer`. For one task at a time."""

    def __init__(self, client: Client, consumer: SyncConsumer) -> None:
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
        await self._client.wait(None, seeking.answered, consumer.seconds_until(deadline))
        await self._client.wait(consumer.attachment, seeking.arrived, consumer.seconds_until(deadline))
        reached = consumer.end_seek(seeking, timeout)
        deque(self._current, maxlen=0)  # also a loop that holds this iterator
        self._current = iter(())
        return reached

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until the broker has written every acknowledgment made so far; see `ister.Consumer.flush`."""
        consumer = self._consumer
        consumer.flushed(await self._client.wait(consumer.handle, consumer.written, timeout), timeout)


def connect(
    endpoints: str | Iterable[str], *, timeout: float | None = TIMEOUT_S, name: str | None = None
) -> Opening[Client]:
    """Connect to a broker (`await` it, or `async with`); see `ister.connect`."""

    async def opened() -> Client:
        inner = synchronous.Client(endpoints, timeout=timeout, name=name)
        client = Client(inner, timeout)
        try:
            await client.wait(None, inner.greeted, timeout)
            inner.check_greeting(timeout)
        except BaseException:
            await client.close()
            raise
        return client

    return Opening(opened)
