"""Opening producers, consumers and readers without waiting: what both clients share.

Checks arguments, makes what the program is to hold, and has it opened over the network. It never waits for the broker:
`client.py` does so in the calling thread, and `aio/` in the event loop. What is said to the broker is in
`publication.py` and `attachment.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, TypeVar

from ister import arguments
from ister.attachment import Attachment
from ister.consumer import Consumer, Position
from ister.errors import TimeoutExpiredError, UsageError
from ister.message import Event
from ister.network import Network
from ister.producer import Producer
from ister.publication import Publication
from ister.reader import Reader
from ister.receiver import Receiver
from ister.subscriptions import READER, SUBSCRIPTION_TYPES, SubscriptionType
from ister.wildcard import WildcardConsumer

LINGER_MS: Final = 1.0
CREDIT_MESSAGES: Final = 65_536  # for consumers that take messages at once, such as an inbox
CREDIT_BYTES: Final = 8 << 20

T_co = TypeVar("T_co", covariant=True)
R = TypeVar("R", bound=Receiver)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerArguments:
    """What a program asks for when it opens a consumer, apart from the topic; see `Client.consumer`."""

    subscription: str
    type: SubscriptionType
    start: Position | None = None
    force: bool = False
    priority: int = 0
    credit_messages: int | None = None  # `None`: it follows the program's pace
    credit_bytes: int = CREDIT_BYTES
    settings: dict[str, Any]  # options of the subscription, as they travel
    on_event: Callable[[Event], Any] | None = None
    patient: bool = False  # wait for the place of whoever has an Exclusive subscription


class Plan(Generic[T_co]):
    """A producer, consumer or reader that is being opened: what to wait for, and what came of it."""

    __slots__ = ("handle", "made", "what")

    def __init__(self, made: T_co, handle: Publication | Attachment, what: str) -> None:
        """`made` is what the program gets; `what` names it in words."""
        self.made = made
        self.handle = handle
        self.what = what

    def ready(self) -> bool:
        """Whether the broker has answered (evaluated under the lock)."""
        return self.handle.opened or self.handle.phase == "closed"

    def finish(self, answered: bool, seconds: float | None) -> None:
        """Raise if it was refused, or was not answered within `seconds`."""
        handle = self.handle
        if handle.error is not None:
            raise handle.error
        if answered:
            return
        if handle.trouble is not None and handle.trouble.code == "subscription-busy":
            raise handle.trouble
        trouble = handle.trouble or (None if handle.session is None else handle.session.trouble)
        raise TimeoutExpiredError(
            f"the {self.what} was not opened within {seconds} s{arguments.in_trouble(trouble)}"
        )


class Opener:
    """Opens what one client's program asks for; raises `UsageError` for arguments that cannot be."""

    def __init__(self, network: Network, random: random.Random) -> None:
        """`random` makes the ids of producers and the names of readers."""
        self.replier: Callable[..., Any] | None = None  # what `Message.reply` does
        self._network = network
        self._random = random

    def producer(
        self,
        topic: str,
        *,
        batch_bytes: int | None = None,
        linger_ms: float = LINGER_MS,
        name: str | None = None,
        window_bytes: int | None = None,
    ) -> Plan[Producer]:
        """Begin to open a producer."""
        arguments.text(topic, "a topic's name")
        if batch_bytes is not None:
            arguments.number(batch_bytes, "batch_bytes", 1)
        if window_bytes is not None:
            arguments.number(window_bytes, "window_bytes", 1)
        network = self._network
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
        publication.gathered.wait_with(producer)
        with network.lock:
            publication.handle = network.next_handle()
            network.attach(publication, producer)
        return Plan(producer, publication, f"producer for topic {topic!r}")

    def consumer(self, topic: str, asked: ConsumerArguments) -> Plan[Consumer]:
        """Begin to open the consumer of one topic."""
        arguments.text(topic, "a topic's name")
        arguments.text(asked.subscription, "a subscription's name")
        arguments.choice(asked.type, "a subscription's type", SUBSCRIPTION_TYPES)
        arguments.credit(asked.credit_messages)
        arguments.number(asked.credit_bytes, "credit_bytes", 1)
        if arguments.number(asked.priority, "a priority") and asked.type != "failover":
            raise UsageError(
                f"a priority is for consumers of failover subscriptions, this one is {asked.type}"
            )
        if asked.force and asked.type != "exclusive":
            raise UsageError(
                f"force takes an exclusive subscription over; this one is {asked.type}, which has room for more"
            )
        network = self._network
        network.check()
        attachment = Attachment(
            0,
            topic,
            asked.subscription,
            asked.type,
            start=None if asked.start is None else arguments.start(asked.start),
            priority=asked.priority,
            arguments=asked.settings,
            credit_messages=asked.credit_messages,
            credit_bytes=asked.credit_bytes,
            callbacks=network.callbacks,
            on_event=asked.on_event,
            force=asked.force,
            patient=asked.patient,
        )
        consumer = self._attached(Consumer(network, attachment))
        return Plan(consumer, attachment, f"consumer of {asked.subscription!r} of topic {topic!r}")

    def wildcard(self, pattern: str, asked: ConsumerArguments) -> WildcardConsumer:
        """Make the consumer of a pattern. It has no topics yet: it has them opened when it is told which there are."""
        arguments.text(asked.subscription, "a subscription's name")
        arguments.credit(asked.credit_messages)
        arguments.number(asked.credit_bytes, "credit_bytes", 1)
        self._network.check()

        def open_member(
            topic: str, *, later: bool, credit_messages: int | None, credit_bytes: int
        ) -> Consumer:
            share = replace(
                asked,
                start="earliest" if later else asked.start,
                credit_messages=credit_messages,
                credit_bytes=credit_bytes,
            )
            return self.consumer(topic, share).made

        letters = asked.settings.get("dead_letter_topic")
        return WildcardConsumer(
            self._network,
            pattern,
            asked.subscription,
            open_member,
            credit_messages=asked.credit_messages,
            credit_bytes=asked.credit_bytes,
            left_out=[] if letters is None else [letters],
        )

    def reader(
        self,
        topic: str,
        *,
        start: Position,
        credit_messages: int | None = None,
        credit_bytes: int = CREDIT_BYTES,
        on_event: Callable[[Event], Any] | None = None,
    ) -> Plan[Reader]:
        """Begin to open a reader."""
        arguments.text(topic, "a topic's name")
        network = self._network
        network.check()
        attachment = Attachment(
            0,
            topic,
            f"reader-{self._random.getrandbits(64):016x}",
            READER,
            start=arguments.start(start),
            priority=0,
            arguments={},
            credit_messages=arguments.credit(credit_messages),
            credit_bytes=arguments.number(credit_bytes, "credit_bytes", 1),
            callbacks=network.callbacks,
            on_event=on_event,
        )
        return Plan(self._attached(Reader(network, attachment)), attachment, f"reader of topic {topic!r}")

    def abandon(self, plan: Plan[Any]) -> None:
        """Release what nobody will have: whoever waited for it was refused, was cancelled, or waits no longer."""
        with self._network.lock:
            handle = plan.handle
            connection = self._network.connection_of(handle)
            handle.close()
            connection.touch()  # the broker is told now, because no thread waits here that would send it
            if handle.session is not None:
                handle.session.detach(handle)

    def _attached(self, receiver: R) -> R:
        network = self._network
        receiver.attachment.replier = self.replier
        with network.lock:
            receiver.attachment.handle = network.next_handle()
            network.attach(receiver.attachment, receiver)
        network.close_with(receiver, receiver.attachment)
        return receiver


def producer_id(topic: str, name: str) -> int:
    """Return the id of a named producer: the same for the same topic and name, 63 bits, never 0."""
    import hashlib  # OpenSSL with it takes milliseconds to load, and only named producers need it

    digest = hashlib.blake2b(f"{topic}\0{name}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 1) or 1
