"""Connecting to a broker, and opening producers, consumers and readers; what is asked once is in `administration.py`.

The composition root of the client: the clock and the random numbers that the rest is handed are made here.
"""

from __future__ import annotations

import hashlib
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack

from ister import arguments, places, requests
from ister.administration import Administration
from ister.attachment import Attachment
from ister.clientsession import Request
from ister.clock import Clock, SystemClock
from ister.consumer import Consumer, Position
from ister.deadletters import DeadLetters
from ister.errors import ConnectionLostError, IsterError, RemoteError, TimeoutExpiredError, UsageError
from ister.inbox import GONE, INBOX_PREFIX, Inbox, Outlets, Waiting, answered, asked, nobody
from ister.message import BrokerEvent, Event, Message, Receipt
from ister.names import is_pattern
from ister.network import Network
from ister.producer import HURRY_S, Producer
from ister.publication import Publication
from ister.reader import Reader
from ister.receiver import Receiver
from ister.requests import SubscriptionOptions
from ister.subscriptions import SUBSCRIPTION_TYPES, SubscriptionType
from ister.version import __version__
from ister.wildcard import WildcardConsumer

BATCH_BYTES: Final = 64 * 1024  # the broker's cost is per batch; above this, batches only add latency
LINGER_MS: Final = 1.0
CREDIT_MESSAGES: Final = 65_536  # of what takes messages at once: an inbox, a tool
CREDIT_BYTES: Final = 8 << 20
TIMEOUT_S: Final = 10.0
DIAGNOSIS_S: Final = 1.0  # how much longer a request that nobody answered may take to say why
DIAGNOSIS_MAX: Final = 20  # subscriptions looked at for that
CLIENT_TEXT: Final = f"ister-python/{__version__}"

Start = Position
R = TypeVar("R", bound=Receiver)


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
        self.network = self._make_network(listed, clock or SystemClock(), text)
        self.network.on_event = on_event
        self.replier: Callable[..., Any] = self._reply  # what `Message.reply` does; `ister.aio` has its own
        self.outlets = Outlets(self.plan_outlet)
        self._inbox: Inbox | None = None
        self._inbox_opening = threading.Lock()

    def _checked(self, endpoints: str | Iterable[str]) -> list[str]:
        return places.endpoints(endpoints)

    def _make_random(self) -> random.Random:
        """Return where jitter and made-up names come from; a simulation has its own."""
        return random.Random()

    def _make_network(self, endpoints: list[str], clock: Clock, client_text: str) -> Network:
        """Return what moves the frames; a simulation has its own."""
        return Network(endpoints, clock=clock, jitter=self._random.random, client_text=client_text)

    @property
    def events(self) -> deque[BrokerEvent]:
        """When the broker was lost and connected, oldest first (the last 256). The caller may remove entries."""
        return self.network.events

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

        A batch is sent when it has `batch_bytes`, when `linger_ms` have passed, or when the batch before it is
        answered; a lone message is sent at once. At most `window_bytes` (default: what the broker allows) are sent
        without an answer. With a `name` it is the same producer across restarts of the program; a second producer of
        that name fences the first. Raises `RemoteError` (`unknown-topic`, ...), `TimeoutExpiredError`.
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
        subscription: str,
        *,
        type: SubscriptionType | None = None,
        start: Start | None = None,
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
        if is_pattern(arguments.text(topic, "a topic's name")):
            return self._open_wildcard(
                self.plan_wildcard(
                    topic,
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
                ),
                timeout,
            )
        consumer = self.plan_consumer(
            topic,
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
        self._open(Plan(consumer.attachment, f"consumer of {subscription!r} of topic {topic!r}"), timeout)
        return consumer

    def plan_consumer(
        self,
        topic: str,
        *,
        subscription: str,
        type: SubscriptionType,
        start: Start | None,
        force: bool,
        priority: int,
        credit_messages: int | None,
        credit_bytes: int,
        settings: dict[str, Any],
        on_event: Callable[[Event], Any] | None,
        patient: bool = False,
    ) -> Consumer:
        """Begin to open a consumer; used by `consumer` here and in `ister.aio`."""
        arguments.text(topic, "a topic's name")
        arguments.text(subscription, "a subscription's name")
        arguments.choice(type, "a subscription's type", SUBSCRIPTION_TYPES)
        arguments.credit(credit_messages)
        arguments.number(credit_bytes, "credit_bytes", 1)
        if arguments.number(priority, "a priority") and type != "failover":
            raise UsageError(f"a priority is for consumers of failover subscriptions, this one is {type}")
        if force and type != "exclusive":
            raise UsageError(
                f"force takes an exclusive subscription over; this one is {type}, which has room for more"
            )
        network = self.network
        network.check()
        attachment = Attachment(
            0,
            topic,
            subscription,
            type,
            start=None if start is None else arguments.start(start),
            priority=priority,
            arguments=settings,
            credit_messages=credit_messages,
            credit_bytes=credit_bytes,
            callbacks=network.callbacks,
            on_event=on_event,
            force=force,
            patient=patient,
        )
        return self._attached(Consumer(network, attachment))

    def plan_wildcard(
        self,
        pattern: str,
        *,
        subscription: str,
        start: Start | None,
        credit_messages: int | None,
        credit_bytes: int,
        settings: dict[str, Any],
        **same: Any,
    ) -> WildcardConsumer:
        """Make the consumer of a pattern, which has no topics yet; used by `consumer` here and in `ister.aio`."""
        arguments.text(subscription, "a subscription's name")
        arguments.credit(credit_messages)
        arguments.number(credit_bytes, "credit_bytes", 1)
        self.network.check()

        def plan(topic: str, *, later: bool, credit_messages: int | None, credit_bytes: int) -> Consumer:
            return self.plan_consumer(
                topic,
                subscription=subscription,
                start="earliest" if later else start,
                credit_messages=credit_messages,
                credit_bytes=credit_bytes,
                settings=settings,
                **same,
            )

        return WildcardConsumer(
            self.network,
            pattern,
            subscription,
            plan,
            credit_messages=credit_messages,
            credit_bytes=credit_bytes,
            left_out=[settings["dead_letter_topic"]] if "dead_letter_topic" in settings else [],
        )

    def _open_wildcard(self, consumer: WildcardConsumer, timeout: float | None) -> WildcardConsumer:
        seconds = self._seconds(timeout)
        deadline = self.network.deadline(seconds)
        try:
            try:
                answer = self._ask(consumer.first_look(), seconds)
            except RemoteError as error:
                if not consumer.asked_too_much(error):
                    raise
                answer = self._ask(consumer.first_look(), seconds)
            consumer.follow(answer, later=False)
            self.network.wait_anywhere(consumer.is_open, deadline)
            consumer.check_open(seconds)
        except BaseException:
            consumer.abandon()
            raise
        return consumer

    def _attached(self, receiver: R) -> R:
        network = self.network
        receiver.attachment.replier = self.replier
        with network.lock:
            receiver.attachment.handle = network.next_handle()
            network.attach(receiver.attachment, receiver)
        weakref.finalize(receiver, network.let_go, receiver.attachment).atexit = False
        return receiver

    def reader(
        self,
        topic: str,
        *,
        start: Start = "earliest",
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
        reader = self.plan_reader(
            topic, start=start, credit_messages=credit_messages, credit_bytes=credit_bytes, on_event=on_event
        )
        self._open(Plan(reader.attachment, f"reader of topic {topic!r}"), timeout)
        return reader

    def plan_reader(
        self,
        topic: str,
        *,
        start: Start,
        credit_messages: int | None = None,
        credit_bytes: int = CREDIT_BYTES,
        on_event: Callable[[Event], Any] | None = None,
    ) -> Reader:
        """Begin to open a reader; used by `reader` here and in `ister.aio`."""
        arguments.text(topic, "a topic's name")
        network = self.network
        network.check()
        attachment = Attachment(
            0,
            topic,
            f"reader-{self._random.getrandbits(64):016x}",
            "reader",
            start=arguments.start(start),
            priority=0,
            arguments={},
            credit_messages=arguments.credit(credit_messages),
            credit_bytes=arguments.number(credit_bytes, "credit_bytes", 1),
            callbacks=network.callbacks,
            on_event=on_event,
        )
        return self._attached(Reader(network, attachment))

    def peek(
        self, topic: str, subscription: str, count: int = 10, *, timeout: float | None = None
    ) -> list[Message]:
        """Return the next unacknowledged messages of a subscription without consuming them.

        At most `count`, and what arrives within `timeout` seconds. Raises `RemoteError` (`unknown-subscription`, ...),
        `UsageError` for a non-reliable topic, which stores nothing.
        """
        arguments.number(count, "count", 1)
        deadline = self.network.deadline(self._seconds(timeout))
        peek: requests.Peek[Message] = requests.Peek(
            self.subscription(topic, subscription, timeout=timeout), count
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
            if plan.handle.trouble is not None and plan.handle.trouble.code == "subscription-busy":
                raise plan.handle.trouble
            session = plan.handle.session
            trouble = plan.handle.trouble or (None if session is None else session.trouble)
            raise TimeoutExpiredError(
                f"the {plan.what} was not opened within {seconds} s{arguments.in_trouble(trouble)}"
            )

    def abandon(self, plan: Plan) -> None:
        """Release a producer or consumer that nobody will have."""
        with self.network.lock:
            handle = plan.handle
            connection = self.network.connection_of(handle)
            handle.close()
            connection.touch()  # the broker hears of it now: nobody waits here who would send it
            if handle.session is not None:
                handle.session.detach(handle)

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
        network = self.network
        seconds = self._seconds(timeout)
        deadline = network.deadline(seconds)
        inbox = self._open_inbox(seconds)
        waiting = self.expect_reply(inbox)
        try:
            receipt = self.outlets.producer(topic).send(
                payload,
                key=key,
                attributes=asked(attributes, inbox.topic, waiting.correlation_id),
                timeout=network.seconds_until(deadline),
            )
            shipment, attachment = receipt.shipment, inbox.reader.attachment

            def over() -> bool:
                return waiting.message is not None or inbox.closed or shipment.error is not None

            def refused(_receipt: Receipt) -> None:
                if shipment.error is not None:  # perhaps on another connection than the one that is waited at
                    with network.lock:
                        network.wake(waiting)

            receipt.add_done_callback(refused)
            network.wait(attachment, over, deadline, waiting)
        finally:
            with network.lock:
                inbox.forget(waiting)
        if waiting.message is None and not inbox.closed:
            shipment.outcome(receipt.index, 1, seconds)  # raises if it was refused, or not even taken
            raise TimeoutExpiredError(nobody(topic, seconds, self._consumers_of(topic)))
        return self.reply_of(inbox, waiting, topic)

    def expect_reply(self, inbox: Inbox) -> Waiting:
        """Begin to wait for a reply."""
        waiting = Waiting(f"{self._random.getrandbits(64):016x}")
        with self.network.lock:
            inbox.expect(waiting)
        return waiting

    def reply_of(self, inbox: Inbox, waiting: Waiting, topic: str) -> Message:
        """Return the reply, or raise why there will be none."""
        if waiting.message is not None:
            return waiting.message
        self.network.check()
        why = arguments.in_trouble(inbox.error)
        raise ConnectionLostError(
            f"the session was lost, and with it the reply to a request to {topic!r}{why}"
        )

    def _open_inbox(self, timeout: float | None) -> Inbox:
        with self._inbox_opening:
            inbox = self._inbox
            if inbox is None or inbox.closed:
                if inbox is not None:
                    inbox.reader.end()
                request = self.inbox_request()
                self._ask(request, timeout)
                topic = request.arguments["topic"]
                reader = self.reader(topic, credit_messages=CREDIT_MESSAGES, timeout=timeout)
                inbox = self._inbox = Inbox(topic, reader, self.network.wake)
            return inbox

    def inbox_request(self) -> Request:
        """Return the request that makes an inbox."""
        topic = f"{INBOX_PREFIX}{self._random.getrandbits(128):032x}"
        return Request("topic.create", {"topic": topic, "dispatch": "non-reliable", "ephemeral": 1})

    def plan_outlet(self, topic: str) -> Producer:
        """Begin to open a producer for requests or replies."""
        return self.plan_producer(
            topic, batch_bytes=BATCH_BYTES, linger_ms=LINGER_MS, name=None, window_bytes=None
        )

    def _consumers_of(self, topic: str) -> int | None:
        """Return how many consumers a topic has, if that is quickly known."""
        try:
            names = [each["subscription"] for each in self.subscriptions(topic, timeout=DIAGNOSIS_S)]
            shown = (self.subscription(topic, name, timeout=DIAGNOSIS_S) for name in names[:DIAGNOSIS_MAX])
            return sum(int(each["consumers"]) for each in shown)
        except IsterError:
            return None

    def _reply(
        self, message: Message, payload: bytes, key: bytes | None, attributes: Mapping[str, str] | None
    ) -> None:
        topic, told = answered(message, attributes)
        try:
            self.outlets.producer(topic).send(payload, key=key, attributes=told, timeout=self._timeout)
        except RemoteError as error:
            if error.code not in GONE:
                raise
            self.outlets.discard(topic)

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
        """The answer to this request is not awaited any more."""
        with self.network.lock:
            self.network.home.session.withdraw(request)

    def answer(self, request: Request, seconds: float | None) -> Any:
        """Return what a request brought, or raise."""
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
            self.network.wait(None, lambda: request.done, self.network.deadline(seconds), request)
        finally:
            if not request.done:  # or it would be asked again over the next connection, for nobody
                self.withdraw(request)
        return self.answer(request, seconds)

    # ---- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the session. Producers that were not closed lose messages without a receipt. Closing again does
        nothing.
        """
        if not self.network.closed and not self.network.forked:
            for producer in self.outlets.busy():
                try:
                    producer.flush(HURRY_S)  # a reply that was just given
                except IsterError:
                    pass  # nobody is there to hear it
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
