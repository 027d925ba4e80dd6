"""The client that waits in the calling thread: connecting, opening, asking.

What it waits for is begun elsewhere, without waiting, and shared with `ister.aio`: `opening.py` (producers, consumers,
readers), `inbox.py` (requests and replies between programs), `requests.py` (requests to the broker). The methods that
ask the broker something once are in `administration.py`.

The composition root of the client: the clock and the random numbers that the rest is handed are made here.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack

from ister import arguments, places, requests
from ister.administration import Administration
from ister.clock import Clock, SystemClock
from ister.consumer import Consumer, Position
from ister.conversation import Conversation
from ister.deadletters import DeadLetters
from ister.errors import ConnectionLostError, RemoteError, TimeoutExpiredError
from ister.inbox import Correspondence
from ister.message import BrokerEvent, Event, Message
from ister.names import is_pattern
from ister.network import Network
from ister.opening import (
    CREDIT_BYTES,
    CREDIT_MESSAGES,
    LINGER_MS,
    ConsumerArguments,
    Opener,
    Plan,
)
from ister.outstanding import Request
from ister.producer import Producer
from ister.reader import Reader
from ister.requests import SubscriptionOptions
from ister.subscriptions import SubscriptionType
from ister.version import __version__
from ister.wildcard import WildcardConsumer

TIMEOUT_S: Final = 10.0
CLIENT_TEXT: Final = f"ister-python/{__version__}"

T = TypeVar("T")


class Client(Administration):
    """A connection to a broker; made by `connect`, closed by `close` or a `with` block.

    Every method may be called from any thread. After a fork, the child must connect again (`ForkedError`).
    """

    def __init__(
        self,
        endpoints: str | Iterable[str],
        *,
        timeout: float | None = TIMEOUT_S,
        name: str | None = None,
        on_event: Callable[[BrokerEvent], Any] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """See `connect`."""
        listed = self._checked(endpoints)
        self._timeout = arguments.timeout(timeout)
        self._endpoints = listed
        self._random = self._make_random()
        text = CLIENT_TEXT if name is None else f"{name[:100]} {CLIENT_TEXT}"
        self.network = self._make_network(listed, clock or SystemClock(), text, on_event)
        self.opener = Opener(self.network, self._random)
        self.opener.replier = self._reply
        self.correspondence = Correspondence(
            self.network, self._random, lambda topic: self.opener.producer(topic).made
        )
        self._conversation = Conversation(
            self.correspondence, self.network, self, self._ask, self._open_inbox_reader
        )

    def _checked(self, endpoints: str | Iterable[str]) -> list[str]:
        return places.endpoints(endpoints)

    def _make_random(self) -> random.Random:
        """Return the random generator for jitter and generated names; a simulation has its own."""
        return random.Random()

    def _make_network(
        self,
        endpoints: list[str],
        clock: Clock,
        client_text: str,
        on_event: Callable[[BrokerEvent], Any] | None,
    ) -> Network:
        """Return the network of this client; a simulation has its own."""
        return Network(
            endpoints, clock=clock, jitter=self._random.random, client_text=client_text, on_event=on_event
        )

    @property
    def events(self) -> deque[BrokerEvent]:
        """When the broker was lost and connected, oldest first (the last 256). The caller may remove entries."""
        return self.network.events

    def greeted(self) -> bool:
        """Whether there is a session, or never will be (evaluated under the lock)."""
        return self.network.home.session.phase in ("ready", "ended")

    def check_greeting(self, timeout: float | None) -> None:
        """Raise the reason why there is no session."""
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

    # ---- producers and consumers ---------------------------------------------------------------------------------

    def producer(
        self,
        topic: str,
        *,
        batch_bytes: int | None = None,
        linger_ms: float = LINGER_MS,
        name: str | None = None,
        window_bytes: int | None = None,
        timeout: float | None = None,
    ) -> Producer:
        """Open a producer.

        A batch is sent when it has `batch_bytes` (default: 64 KiB, and up to 256 KiB while receipts lag behind four
        batches or more), when `linger_ms` have passed, or when the batch before it is answered; a lone message is sent
        at once. While more than ten producers of the connection wait for receipts, `linger_ms` grows with their number,
        up to 100 ms, and larger batches cost less. At most `window_bytes` (default: what the broker allows) are sent
        without an answer. With a `name` it is the same producer across restarts of the program; a second producer of
        that name fences the first. Raises `RemoteError` (`unknown-topic`, ...), `TimeoutExpiredError`.
        """
        plan = self.opener.producer(
            topic, batch_bytes=batch_bytes, linger_ms=linger_ms, name=name, window_bytes=window_bytes
        )
        return self._opened(plan, timeout)

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
    ) -> Consumer:
        """Open a consumer. If the subscription does not exist, it is created.

        `type` is "shared" by default ("exclusive" with `force`). `start` ("latest" by default, "earliest", an offset
        or a `datetime`) applies only to a new subscription. The options are for a new one too (`update_subscription`
        lists them); options that an existing subscription does not have are refused (`subscription-options`). With
        `force`, an Exclusive subscription is taken over from its consumer, which gets `taken-over`; without it, the
        error is `subscription-busy`: at once, or after `timeout` if that was given. `priority` orders the consumers of
        a Failover subscription, lower first. The credit limits the messages waiting in this process: by default it
        follows the program's pace, and is about a second of its work; `credit_messages` sets a fixed number.
        `on_event(event)` is called in the thread that reads the event; keep it short. Raises `RemoteError`
        (`unknown-topic`, `subscription-busy`, `subscription-type`, ...), `TimeoutExpiredError`.

        `topic` may be a pattern: `*` is one part of a name, `>` at the end one part or more (`orders/*`, `orders/>`).
        Then this is a consumer of every topic that matches, each with a subscription of that name. Topics created
        later are consumed from their beginning. So are topics created while no such consumer was connected: the broker
        compares their creation with that of the first subscription of that name on a matching topic. Dead-letter
        topics, and names that end in `.dlq`, are left out. The topics take turns and share the credit; `message.topic`
        and `event.topic` name the topic.
        """
        many = is_pattern(arguments.text(topic, "a topic's name"))
        asked = ConsumerArguments(
            subscription=subscription,
            type=requests.consumer_type(type, force=force),
            start=start,
            force=force,
            priority=priority,
            credit_messages=credit_messages,
            credit_bytes=credit_bytes,
            settings=requests.subscription_settings(options),
            on_event=on_event,
            patient=timeout is not None,
        )
        if many:
            return self._open_wildcard(self.opener.wildcard(topic, asked), timeout)
        return self._opened(self.opener.consumer(topic, asked), timeout)

    def _open_wildcard(self, consumer: WildcardConsumer, timeout: float | None) -> WildcardConsumer:
        seconds = self._seconds(timeout)
        deadline = self.network.deadline(seconds)
        members = consumer.members
        try:
            try:
                answer = self._ask(members.first_look(), seconds)
            except RemoteError as error:
                if not members.asked_too_much(error):
                    raise
                answer = self._ask(members.first_look(), seconds)
            members.follow(answer, later=False)
            self.network.waits.anywhere(members.is_open, deadline)
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
    ) -> Reader:
        """Open a reader: the messages of a topic from `start` on, without a subscription and without acknowledgments.

        `start` is "earliest" (the default), "latest", an offset or a `datetime`; a reader of a non-reliable topic gets
        what arrives from now on. Raises `RemoteError` (`unknown-topic`, `offset-out-of-range`, ...),
        `TimeoutExpiredError`.
        """
        plan = self.opener.reader(
            topic, start=start, credit_messages=credit_messages, credit_bytes=credit_bytes, on_event=on_event
        )
        return self._opened(plan, timeout)

    def peek(
        self,
        topic: str,
        subscription: str,
        count: int = 10,
        *,
        start: int = 0,
        timeout: float | None = None,
    ) -> list[Message]:
        """Return the next unacknowledged messages of a subscription without consuming them.

        At most `count`, from the offset `start` on, and what arrives within `timeout` seconds. Raises `RemoteError`
        (`unknown-subscription`, ...), `UsageError` for a non-reliable topic, which stores nothing.
        """
        arguments.number(count, "count", 1)
        arguments.number(start, "start")
        deadline = self.network.deadline(self._seconds(timeout))
        peek: requests.Peek[Message] = requests.Peek(
            self.subscription(topic, subscription, timeout=timeout), count, start
        )
        for first, end in peek.places:
            with self.reader(topic, start=first, credit_messages=end - first, timeout=timeout) as reader:
                while reader.position < end:
                    batch = reader.receive_batch(timeout=self.network.seconds_until(deadline))
                    if batch is None:
                        return peek.found
                    if not peek.take(batch, end):
                        break
        return peek.found

    def dead_letters(self, topic: str, subscription: str, *, timeout: float | None = None) -> DeadLetters:
        """Return an object that manages the dead letters of a subscription: `list`, `show`, `redrive`, `purge`.

        `timeout` in seconds applies to each request to the broker.
        """
        return DeadLetters(self, topic, subscription, timeout=self._seconds(timeout), stop=threading.Event())

    def _opened(self, plan: Plan[T], timeout: float | None) -> T:
        """Wait until something is opened, and return it."""
        seconds = self._seconds(timeout)
        try:
            answered = self.network.waits.wait(plan.handle, plan.ready, self.network.deadline(seconds))
            plan.finish(answered, seconds)
        except BaseException:
            self.opener.abandon(plan)
            raise
        return plan.made

    # ---- request and reply ---------------------------------------------------------------------------------------

    def request(
        self,
        topic: str,
        payload: bytes,
        *,
        timeout: float | None = None,
        key: bytes | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> Message:
        """Send a message and return the reply that a consumer of the topic sends with `Message.reply`.

        A non-reliable topic is the natural choice; any topic works. Many requests may be open at once, from many
        threads. Raises `TimeoutExpiredError` without an answer within `timeout` seconds (its text says whether a
        consumer is connected), `ConnectionLostError` when the session was lost meanwhile (the request may have been
        carried out), `RemoteError` (`unknown-topic`, ...), `UsageError`.
        """
        return self._conversation.request(
            topic, payload, seconds=self._seconds(timeout), key=key, attributes=attributes
        )

    def _reply(
        self, message: Message, payload: bytes, key: bytes | None, attributes: Mapping[str, str] | None
    ) -> None:
        self._conversation.reply(message, payload, seconds=self._timeout, key=key, attributes=attributes)

    def _open_inbox_reader(self, topic: str, timeout: float | None) -> Reader:
        return self.reader(topic, credit_messages=CREDIT_MESSAGES, timeout=timeout)

    # ---- requests ------------------------------------------------------------------------------------------------

    def _seconds(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else arguments.timeout(timeout)

    def send_request(self, request: Request) -> None:
        """Send a request; used by every request here and in `ister.aio`."""
        network = self.network
        network.check()
        with network.lock:
            network.home.session.request(request, network.clock.monotonic())
            network.home.touch()

    def withdraw(self, request: Request) -> None:
        """Stop waiting for the answer to a request."""
        with self.network.lock:
            self.network.home.session.withdraw(request)

    def answer(self, request: Request, seconds: float | None) -> Any:
        """Return the result of a request, or raise its error."""
        if not request.done:
            trouble = arguments.in_trouble(request.trouble or self.network.home.session.trouble)
            raise TimeoutExpiredError(f"{request.operation} was not answered within {seconds} s{trouble}")
        if request.error is not None:
            raise request.error
        return request.result

    def _ask(self, request: Request, timeout: float | None) -> Any:
        seconds = self._seconds(timeout)
        self.send_request(request)
        try:
            self.network.waits.wait(None, lambda: request.done, self.network.deadline(seconds), request)
        finally:
            if not request.done:  # otherwise it would be sent again over the next connection
                self.withdraw(request)
        return self.answer(request, seconds)

    # ---- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the session. Producers that were not closed lose messages without a receipt. Closing again does
        nothing.
        """
        if not self.network.closed and not self.network.forked:
            self._conversation.finish()
        self.network.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.network.blame(error)
        self.close()


def connect(
    endpoints: str | Iterable[str],
    *,
    timeout: float | None = TIMEOUT_S,
    name: str | None = None,
    on_event: Callable[[BrokerEvent], Any] | None = None,
) -> Client:
    """Connect to a broker at one of several endpoints, such as `tcp://127.0.0.1:5555`.

    `timeout` in seconds is also the default of every call that asks the broker something. `name` is shown to operators
    of the broker. Raises `UsageError` for an impossible endpoint (another scheme, an unknown host),
    `ConnectionLostError` when no broker answers in time, `RemoteError` when there is no common protocol version.

    A connection that is lost later is opened again, for as long as it takes, and everything continues where it was.
    `client.events` and the logger `ister` report this, and so does `on_event(event)`, called in the thread that reads
    the event; keep it short.
    """
    listed = places.endpoints(endpoints)
    places.check_hosts(listed)
    client = Client(listed, timeout=timeout, name=name, on_event=on_event)
    try:
        client.network.waits.wait(None, client.greeted, client.network.deadline(timeout))
        client.check_greeting(timeout)
    except BaseException:
        client.close()
        raise
    return client
