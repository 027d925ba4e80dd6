"""Connecting to a broker, and everything that is asked of it once: topics, subscriptions, status.

The composition root of the client: the clock and the random numbers that the rest is handed are made here.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, Literal, Self

from ister import arguments, requests
from ister.attachment import Attachment
from ister.clock import Clock, SystemClock
from ister.consumer import Consumer
from ister.errors import ConnectionLostError, RemoteError, TimeoutExpiredError
from ister.message import Event
from ister.network import Network
from ister.producer import Producer
from ister.publication import Publication
from ister.session import Request

BATCH_BYTES: Final = 64 * 1024  # the broker's cost is per batch; above this, batches only add latency
LINGER_MS: Final = 1.0
CREDIT_MESSAGES: Final = 65_536
CREDIT_BYTES: Final = 8 << 20
TIMEOUT_S: Final = 10.0
VERIFY_POLL_S: Final = 0.2  # how often a verification is asked how far it is
CLIENT_TEXT: Final = "ister-python/0.1.0"

SubscriptionType = Literal["exclusive", "shared", "failover"]
Start = Literal["earliest", "latest"] | int


class Plan:
    """A producer or consumer that is being opened: what to check while waiting, and what comes of it.

    `Client` waits for it in the calling thread, `ister.aio.Client` in the event loop.
    """

    __slots__ = ("handle", "what")

    def __init__(self, handle: Publication | Attachment, what: str) -> None:
        self.handle = handle
        self.what = what

    def ready(self) -> bool:
        """Whether the broker has answered (evaluated under the lock)."""
        return self.handle.opened or self.handle.phase == "closed"

    def check(self) -> None:
        """Raise what the broker answered, if it refused."""
        if self.handle.error is not None:
            raise self.handle.error


class Client:
    """A connection to a broker; made by `connect`, closed by `close` or a `with` block.

    Every method may be called from any thread. After a fork, the child must connect again (`ForkedError`).
    """

    def __init__(
        self,
        endpoints: str | Iterable[str],
        *,
        timeout: float | None = TIMEOUT_S,
        name: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        """See `connect`."""
        listed = arguments.endpoints(endpoints)
        self._timeout = arguments.timeout(timeout)
        self._endpoints = listed
        self._random = random.Random()
        text = CLIENT_TEXT if name is None else f"{name[:100]} {CLIENT_TEXT}"
        self.network = Network(
            listed, clock=clock or SystemClock(), jitter=self._random.random, client_text=text
        )

    def greeted(self) -> bool:
        """Whether there is a session, or never will be (evaluated under the lock)."""
        return self.network.home.session.phase in ("ready", "ended")

    def check_greeting(self, timeout: float | None) -> None:
        """Raise why there is no session."""
        session = self.network.home.session
        if session.phase == "ready":
            return
        if session.phase == "ended" and session.trouble is not None:
            raise session.trouble
        why = "nobody answers" if session.trouble is None else session.trouble.text
        places = " or ".join(self._endpoints)
        raise ConnectionLostError(f"no broker at {places} within {timeout} s: {why}")

    def __repr__(self) -> str:
        return f"<Client {' '.join(self._endpoints)}>"

    # ---- topics --------------------------------------------------------------------------------------------------

    def create_topic(
        self,
        topic: str,
        *,
        dispatch: Literal["reliable", "non-reliable"] = "reliable",
        durability: Literal["fsync", "os", "cloud"] | None = None,
        exist_ok: bool = False,
        timeout: float | None = None,
        **retention: int,
    ) -> dict[str, Any]:
        """Create a topic and return what the broker knows of it.

        `durability` says when a receipt of a reliable topic is given: after an `fsync` (the broker's default), once the
        `os` has the bytes, or once the store has them (`cloud`). With `exist_ok`, a topic of that name and dispatch is
        as good as a new one. `retention` is what a reliable topic keeps at most: see `update_topic`.
        Raises `RemoteError` (`topic-exists`, `invalid-name`, ...), `TimeoutExpiredError`.
        """
        request = requests.topic_request(topic, dispatch, durability, retention)
        try:
            answer: dict[str, Any] = self._ask(request, timeout)
        except RemoteError as error:
            if not requests.is_there_already(error, request, exist_ok=exist_ok):
                raise
            answer = self.topic(topic, timeout=timeout)
            if requests.differs(answer, request):
                raise
        return answer

    def update_topic(self, topic: str, *, timeout: float | None = None, **retention: int) -> dict[str, Any]:
        """Change what a reliable topic keeps, and return what the broker knows of it.

        `retention_ms`: no longer than that; `retention_bytes`: no more than that, in whole segments;
        `retention_acknowledged`: 1: only what some subscription has not acknowledged. 0 lifts a limit. What is not in
        the store yet is kept whatever they say. Raises `RemoteError` (`unknown-topic`, `invalid-argument`).
        """
        answer: dict[str, Any] = self._ask(Request("topic.update", {"topic": topic, **retention}), timeout)
        return answer

    def verify_topic(
        self, topic: str, *, timeout: float | None = None, progress: Callable[[int, int], Any] | None = None
    ) -> dict[str, Any]:
        """Have the broker check every byte of a topic's log, and return its report.

        The report has `messages`, `bytes`, `segments`, and `damaged`: a list of ranges (`first`, `end`, `reason`, ...).
        `progress(bytes, bytes_total)` is called now and then. Raises `RemoteError`.
        """
        while True:
            answer = self._ask(Request("topic.verify", {"topic": topic}), timeout)
            if progress is not None and "bytes_total" in answer:
                progress(answer["bytes"], answer["bytes_total"])
            if answer["done"]:
                report: dict[str, Any] = answer["report"]
                return report
            threading.Event().wait(VERIFY_POLL_S)

    def repair_topic(self, topic: str, *, skip_damaged: bool, timeout: float | None = None) -> dict[str, Any]:
        """Let every subscription of a topic go on behind what is damaged; returns the ranges that are skipped now."""
        request = Request("topic.repair", {"topic": topic, "skip_damaged": skip_damaged})
        answer: dict[str, Any] = self._ask(request, timeout)
        return answer

    def topics(self, *, timeout: float | None = None) -> list[dict[str, Any]]:
        """Return every topic, by name."""
        return self._list(requests.Listing("topic.list", "topics", "topic", {}), timeout)

    def topic(self, topic: str, *, timeout: float | None = None) -> dict[str, Any]:
        """Return what the broker knows of a topic; raises `RemoteError` (`unknown-topic`)."""
        answer: dict[str, Any] = self._ask(Request("topic.show", {"topic": topic}), timeout)
        return answer

    def delete_topic(self, topic: str, *, timeout: float | None = None) -> None:
        """Delete a topic, its messages and its subscriptions; raises `RemoteError` (`unknown-topic`)."""
        self._delete(Request("topic.delete", {"topic": topic}), timeout)

    # ---- subscriptions -------------------------------------------------------------------------------------------

    def create_subscription(
        self,
        topic: str,
        subscription: str,
        *,
        type: SubscriptionType = "exclusive",
        start: Start = "latest",
        drop: Literal["oldest", "newest"] | None = None,
        ack_timeout: float | None = None,
        buffer_messages_max: int | None = None,
        exist_ok: bool = False,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Create a subscription without attaching to it; `start` is where it begins to read.

        `ack_timeout` in seconds: what a consumer holds longer is delivered again. Raises `RemoteError`
        (`subscription-exists`, `unknown-topic`, ...).
        """
        settings = requests.subscription_settings(drop, ack_timeout, buffer_messages_max)
        request = requests.subscription_request(topic, subscription, type, start, settings)
        try:
            answer: dict[str, Any] = self._ask(request, timeout)
        except RemoteError as error:
            if not requests.is_there_already(error, request, exist_ok=exist_ok):
                raise
            answer = self.subscription(topic, subscription, timeout=timeout)
            if requests.differs(answer, request):
                raise
        return answer

    def subscriptions(self, topic: str, *, timeout: float | None = None) -> list[dict[str, Any]]:
        """Return every subscription of a topic, by name."""
        listing = requests.Listing("subscription.list", "subscriptions", "subscription", {"topic": topic})
        return self._list(listing, timeout)

    def subscription(self, topic: str, subscription: str, *, timeout: float | None = None) -> dict[str, Any]:
        """Return what the broker knows of a subscription; raises `RemoteError` (`unknown-subscription`)."""
        request = Request("subscription.show", {"topic": topic, "subscription": subscription})
        answer: dict[str, Any] = self._ask(request, timeout)
        return answer

    def delete_subscription(self, topic: str, subscription: str, *, timeout: float | None = None) -> None:
        """Delete a subscription and its cursor; its consumers are closed."""
        self._delete(Request("subscription.delete", {"topic": topic, "subscription": subscription}), timeout)

    def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Return how the broker and its processes are doing."""
        answer: dict[str, Any] = self._ask(Request("status", {}), timeout)
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
    ) -> Producer:
        """Open a producer.

        Messages gather until there are `batch_bytes`, `linger_ms` have passed or the batch before them is answered; a
        lone message goes at once. At most `window_bytes` (default: what the broker allows) go out before an answer.
        A `name` makes it the same producer over restarts of the program: a second one of that name fences the first.
        Raises `RemoteError` (`unknown-topic`, ...), `TimeoutExpiredError`.
        """
        producer = self.plan_producer(
            topic, batch_bytes=batch_bytes, linger_ms=linger_ms, name=name, window_bytes=window_bytes
        )
        self._open(Plan(producer.publication, f"producer for topic {topic!r}"), timeout)
        return producer

    def plan_producer(
        self, topic: str, *, batch_bytes: int, linger_ms: float, name: str | None, window_bytes: int | None
    ) -> Producer:
        """Begin to open a producer; used by `producer` here and in `ister.aio`."""
        arguments.text(topic, "a topic's name")
        arguments.number(batch_bytes, "batch_bytes", 1)
        if window_bytes is not None:
            arguments.number(window_bytes, "window_bytes", 1)
        network = self.network
        network.check()
        publication = Publication(
            0,
            topic,
            self._random.getrandbits(63) | 1 if name is None else producer_id(topic, name),
            batch_bytes=batch_bytes,
            linger_s=arguments.seconds(linger_ms, "linger_ms / 1000") / 1000,
            window_bytes=window_bytes,
            callbacks=network.callbacks,
        )
        producer = Producer(network, publication)
        publication.wait_with(producer)
        with network.lock:
            publication.handle = network.next_handle()
            network.attach(publication, producer)
        return producer

    def consumer(
        self,
        topic: str,
        *,
        subscription: str,
        type: SubscriptionType = "exclusive",
        start: Start | None = None,
        priority: int = 0,
        credit_messages: int = CREDIT_MESSAGES,
        credit_bytes: int = CREDIT_BYTES,
        drop: Literal["oldest", "newest"] | None = None,
        ack_timeout: float | None = None,
        buffer_messages_max: int | None = None,
        on_event: Callable[[Event], Any] | None = None,
        timeout: float | None = None,
    ) -> Consumer:
        """Open a consumer; a subscription that does not exist is created.

        `start` ("latest" by default, "earliest" or an offset), `drop`, `ack_timeout` (seconds) and
        `buffer_messages_max` count only then. `priority` orders the consumers of a Failover subscription, lower first.
        The credit bounds what lies in this process without having been looked at. `on_event(event)` is called from
        whatever thread reads the news; keep it short.
        Raises `RemoteError` (`unknown-topic`, `subscription-busy`, `subscription-type`, ...), `TimeoutExpiredError`.
        """
        consumer = self.plan_consumer(
            topic,
            subscription=subscription,
            type=type,
            start=start,
            priority=priority,
            credit_messages=credit_messages,
            credit_bytes=credit_bytes,
            settings=requests.subscription_settings(drop, ack_timeout, buffer_messages_max),
            on_event=on_event,
        )
        self._open(Plan(consumer.attachment, f"consumer of {subscription!r} of topic {topic!r}"), timeout)
        return consumer

    def plan_consumer(
        self,
        topic: str,
        *,
        subscription: str,
        type: SubscriptionType,
        start: Start | None,
        priority: int,
        credit_messages: int,
        credit_bytes: int,
        settings: dict[str, Any],
        on_event: Callable[[Event], Any] | None,
    ) -> Consumer:
        """Begin to open a consumer; used by `consumer` here and in `ister.aio`."""
        arguments.text(topic, "a topic's name")
        arguments.text(subscription, "a subscription's name")
        arguments.choice(type, "a subscription's type", ("exclusive", "shared", "failover"))
        if start is not None:
            arguments.start(start)
        arguments.number(credit_messages, "credit_messages", 1)
        arguments.number(credit_bytes, "credit_bytes", 1)
        arguments.number(priority, "a priority")
        network = self.network
        network.check()
        attachment = Attachment(
            0,
            topic,
            subscription,
            type,
            start=start,
            priority=priority,
            arguments=settings,
            credit_messages=credit_messages,
            credit_bytes=credit_bytes,
            callbacks=network.callbacks,
            on_event=on_event,
        )
        consumer = Consumer(network, attachment)
        with network.lock:
            attachment.handle = network.next_handle()
            network.attach(attachment, consumer)
        return consumer

    def _open(self, plan: Plan, timeout: float | None) -> None:
        seconds = self._seconds(timeout)
        try:
            answered = self.network.wait(plan.handle, plan.ready, self.network.deadline(seconds))
            self.finish(plan, answered, seconds)
        except BaseException:
            self.abandon(plan)
            raise

    def finish(self, plan: Plan, answered: bool, seconds: float | None) -> None:
        """Raise if a producer or consumer could not be opened."""
        plan.check()
        if not answered:
            session = plan.handle.session
            trouble = plan.handle.trouble or (None if session is None else session.trouble)
            raise TimeoutExpiredError(
                f"the {plan.what} was not opened within {seconds} s{arguments.in_trouble(trouble)}"
            )

    def abandon(self, plan: Plan) -> None:
        """Let go of a producer or consumer that nobody will have."""
        with self.network.lock:
            handle = plan.handle
            handle.close()
            if handle.session is not None:
                handle.session.detach(handle)

    # ---- requests ------------------------------------------------------------------------------------------------

    def _seconds(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else arguments.timeout(timeout)

    def send_request(self, request: Request) -> None:
        """Put a request on its way; used by every question here and in `ister.aio`."""
        network = self.network
        network.check()
        with network.lock:
            network.home.session.request(request, network.clock.monotonic())
            network.home.touch()

    def withdraw(self, request: Request) -> None:
        """Nobody waits for this request any more."""
        with self.network.lock:
            self.network.home.session.withdraw(request)

    def answer(self, request: Request, seconds: float | None) -> Any:
        """Return what a request brought, or raise."""
        if not request.done:
            self.withdraw(request)
            trouble = arguments.in_trouble(request.trouble or self.network.home.session.trouble)
            raise TimeoutExpiredError(f"{request.operation} was not answered within {seconds} s{trouble}")
        if request.error is not None:
            raise request.error
        return request.result

    def _ask(self, request: Request, timeout: float | None) -> Any:
        seconds = self._seconds(timeout)
        self.send_request(request)
        self.network.wait(None, lambda: request.done, self.network.deadline(seconds))
        return self.answer(request, seconds)

    def _delete(self, request: Request, timeout: float | None) -> None:
        try:
            self._ask(request, timeout)
        except RemoteError as error:
            if not requests.is_gone_already(error, request):
                raise

    def _list(self, listing: requests.Listing, timeout: float | None) -> list[dict[str, Any]]:
        for request in listing:
            self._ask(request, timeout)
        return listing.found

    # ---- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the session; producers that were not closed lose what has no receipt. Closing again does nothing."""
        self.network.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect(
    endpoints: str | Iterable[str], *, timeout: float | None = TIMEOUT_S, name: str | None = None
) -> Client:
    """Connect to a broker at one of some endpoints, like `tcp://127.0.0.1:5555`.

    `timeout` in seconds is also the default of every call that asks the broker something; `name` is for people who look
    at the broker. Raises `ConnectionLostError` when no broker answers in time, `RemoteError` when it speaks no common
    version. Once connected, a lost connection is made again for ever, and everything goes on where it was.
    """
    client = Client(endpoints, timeout=timeout, name=name)
    try:
        client.network.wait(None, client.greeted, client.network.deadline(timeout))
        client.check_greeting(timeout)
    except BaseException:
        client.close()
        raise
    return client


def producer_id(topic: str, name: str) -> int:
    """Return the id of a named producer: the same for the same topic and name, 63 bits, never 0."""
    digest = hashlib.blake2b(f"{topic}\0{name}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 1) or 1
