"""Request and reply without waiting: the client's inbox, which request gets which reply, the producers for replies.

A request is a message with the attributes `ister.reply_to` (a topic) and `ister.correlation_id`; a reply is a message
in that topic with the same correlation id. The topic is ephemeral: the broker deletes it with its session. No socket,
clock or thread lives here: `conversation.py` waits in the calling thread, `aio/conversation.py` in the event loop.
The caller holds the client's lock for `Inbox`; `Correspondence` and `Outlets` take the locks they need.

Invariants
- a thread or task that waits for a reply is woken by that reply, and by no other
- a reply reaches the one request it answers, or none: late, repeated and unknown replies are dropped
- memory is bounded: replies without a waiting request are not kept, and the number of producers is limited
"""

from __future__ import annotations

import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final

from ister import arguments
from ister.errors import ConnectionLostError, IsterError, RemoteProtocolError, UsageError
from ister.message import BaseMessage, Delivery, Message, message_of
from ister.network import Network
from ister.outstanding import Request
from ister.producer import Producer
from ister.receipts import BatchReceipt, Shipment
from ister.receiver import Receiver
from ister.words import counted

REPLY_TO: Final = "ister.reply_to"
CORRELATION_ID: Final = "ister.correlation_id"
INBOX_PREFIX: Final = "_inbox/"
OUTLETS_MAX: Final = 128  # topics with an open producer: far below the limit of a session
GONE: Final = frozenset({"unknown-topic", "topic-deleted"})  # the client that asked is gone


class Waiting:
    """A request, and its outcome."""

    __slots__ = ("correlation_id", "message")

    def __init__(self, correlation_id: str) -> None:
        self.correlation_id = correlation_id
        self.message: Message | None = None


class Inbox:
    """An inbox topic, the reader attached to it, and the requests that wait."""

    def __init__(self, topic: str, reader: Receiver, tell: Callable[[object], None]) -> None:
        """`tell(waiting)` is called when a reply has come, or none will."""
        self.topic = topic
        self.reader = reader
        self._tell = tell
        self._waiting: dict[str, Waiting] = {}
        reader.attachment.listener = self.sort

    @property
    def closed(self) -> bool:
        """Whether no more replies will come: its session is lost, and the topic with it."""
        return self.reader.attachment.phase in ("closing", "closed")

    @property
    def error(self) -> IsterError | None:
        """Why it is closed."""
        return self.reader.attachment.error

    def __len__(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    def expect(self, waiting: Waiting) -> None:
        """Wait for a reply from now on."""
        self._waiting[waiting.correlation_id] = waiting

    def forget(self, waiting: Waiting) -> None:
        """Stop waiting for this reply."""
        self._waiting.pop(waiting.correlation_id, None)

    def sort(self) -> None:
        """Give replies that arrived to the requests that wait for them."""
        attachment = self.reader.attachment
        while (delivery := attachment.handing.take()) is not None:
            self._give(delivery)
        if self.closed:
            for waiting in self._waiting.values():
                self._tell(waiting)

    def _give(self, delivery: Delivery) -> None:
        for index in range(delivery.count):
            try:
                correlation_id = delivery.attributes(index).get(CORRELATION_ID, "")
            except RemoteProtocolError:
                continue  # not a reply to one of these requests
            waiting = self._waiting.pop(correlation_id, None)
            if waiting is not None:
                waiting.message = message_of(delivery, delivery.first + index, delivery.payloads[index])
                self._tell(waiting)


class Outlets:
    """Producers for the topics that requests and replies go to, kept open for the next one."""

    def __init__(self, open_producer: Callable[[str], Producer]) -> None:
        """`open_producer(topic)` starts to open one, and does not wait."""
        self._open = open_producer
        self._lock = threading.Lock()
        self._producers: OrderedDict[str, Producer] = OrderedDict()

    def producer(self, topic: str) -> Producer:
        """Return a producer for a topic; if there are too many, the least recently used ones are closed."""
        with self._lock:
            producer = self._producers.get(topic)
            if producer is not None and producer.publication.phase in ("closing", "closed"):
                producer.end()
                producer = None
            if producer is None:
                producer = self._producers[topic] = self._open(topic)
            self._producers.move_to_end(topic)
            eldest_topic, eldest = next(iter(self._producers.items()))
            surplus = len(self._producers) > OUTLETS_MAX and eldest.is_idle()
            if surplus:
                del self._producers[eldest_topic]
        if surplus:
            _let_go(eldest)
        return producer

    def discard(self, topic: str) -> None:
        """Release a producer whose topic is gone."""
        with self._lock:
            producer = self._producers.pop(topic, None)
        if producer is not None:
            _let_go(producer)

    def busy(self) -> list[Producer]:
        """Return the producers that have messages without a receipt."""
        with self._lock:
            return [producer for producer in self._producers.values() if not producer.is_idle()]


class Correspondence:
    """The requests of one client and the replies to them; what each step needs, for whoever waits in between."""

    def __init__(
        self, network: Network, random: random.Random, open_producer: Callable[[str], Producer]
    ) -> None:
        """`random` makes correlation ids and the inbox's name; for `open_producer` see `Outlets`."""
        self.outlets = Outlets(open_producer)
        self._network = network
        self._random = random

    def inbox_request(self) -> Request:
        """Return the request that makes the topic of an inbox."""
        topic = f"{INBOX_PREFIX}{self._random.getrandbits(128):032x}"
        return Request("topic.create", {"topic": topic, "dispatch": "non-reliable", "ephemeral": 1})

    def inbox(self, request: Request, reader: Receiver) -> Inbox:
        """Return the inbox at the topic that `inbox_request` made, which the reader reads."""
        return Inbox(request.arguments["topic"], reader, self._network.wake)

    def expect(self, inbox: Inbox) -> Waiting:
        """Start to wait for a reply."""
        waiting = Waiting(f"{self._random.getrandbits(64):016x}")
        with self._network.lock:
            inbox.expect(waiting)
        return waiting

    def forget(self, inbox: Inbox, waiting: Waiting) -> None:
        """Wait for this reply no longer."""
        with self._network.lock:
            inbox.forget(waiting)

    def sent(self, shipment: Shipment, inbox: Inbox, waiting: Waiting) -> Callable[[], bool]:
        """Return the condition to wait for once a request was sent: the reply, or that there will be none.

        A request that is refused wakes whoever waits, also where that happens on another connection than the inbox's.
        """

        def refused(_receipt: BatchReceipt) -> None:
            if shipment.error is not None:
                with self._network.lock:
                    self._network.wake(waiting)

        BatchReceipt(shipment, 0, 1).add_done_callback(refused)
        return lambda: waiting.message is not None or inbox.closed or shipment.error is not None

    def reply(self, inbox: Inbox, waiting: Waiting, topic: str) -> Message:
        """Return the reply, or raise `ConnectionLostError`: the inbox is gone."""
        if waiting.message is not None:
            return waiting.message
        self._network.check()
        why = arguments.in_trouble(inbox.error)
        raise ConnectionLostError(
            f"the session was lost, and with it the reply to a request to {topic!r}{why}"
        )


def _let_go(producer: Producer) -> None:
    producer.begin_close()
    producer.end()


def asked(attributes: Mapping[str, str] | None, inbox: str, correlation_id: str) -> dict[str, str]:
    """Return the attributes of a request."""
    return {**(attributes or {}), REPLY_TO: inbox, CORRELATION_ID: correlation_id}


def answered(message: BaseMessage, attributes: Mapping[str, str] | None) -> tuple[str, dict[str, str]]:
    """Return where the reply to a message goes, and its attributes; raises `UsageError`."""
    told = message.attributes
    topic = told.get(REPLY_TO)
    if not topic:
        raise UsageError(
            f"the message at offset {message.offset} of {message.topic!r} does not ask for a reply"
        )
    return topic, {**(attributes or {}), CORRELATION_ID: told.get(CORRELATION_ID, "")}


def nobody(topic: str, seconds: float | None, consumers: int | None) -> str:
    """Return the error text for a request without a reply; `consumers` of the topic, if that is known."""
    text = f"nobody answered a request to topic {topic!r} within {seconds} s"
    if consumers is None:
        return text
    if not consumers:
        return f"{text}: no consumer of any subscription is connected there"
    return f"{text}, though {counted(consumers, 'consumer is', 'consumers are')} connected there"
