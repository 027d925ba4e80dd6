"""Dead letters: listing what a subscription gave up, sending it back, and deleting it.

They are in the subscription's dead-letter topic, and are taken from there through its Exclusive subscription
`redrive`. May touch: the synchronous client, like any other user.

Invariants
- a letter is acknowledged once the topic it went to has it, and never before: an interruption loses nothing
- what fails again while letters are redriven waits for the next call: no letter loops forever
- a dead-letter topic may serve several subscriptions: only this one's letters are touched
- memory is bounded by one batch
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from ister import arguments
from ister.answers import SubscriptionDetail, TopicDetail
from ister.bodies import MARK
from ister.errors import ConnectionLostError, IsterError, RemoteError, TimeoutExpiredError, UsageError
from ister.message import BatchReceipt, Message
from ister.words import counted

if TYPE_CHECKING:
    from ister.consumer import Consumer
    from ister.producer import Producer
    from ister.reader import Reader

REDRIVE: Final = "redrive"  # the subscription of a dead-letter topic that its letters are taken from
LETTERS_MAX: Final = 500  # settled together
BATCH_BYTES: Final = 256 * 1024  # sent together, or one letter
CREDIT_BYTES: Final = 8 << 20
IDLE_S: Final = 0.3  # silence after which the broker is asked whether anything is left
LIST_MAX: Final = 100
_ADDED: Final = frozenset(
    MARK + name
    for name in (
        "topic",
        "subscription",
        "offset",
        "producer",
        "timestamp",
        "attempts",
        "reason",
        "dead_lettered_at",
    )
)

Progress = Callable[[int, int], Any]  # how many are done, and of how many
Settle = Callable[[list[Message]], dict[int, IsterError]]  # returns which cannot be, and why, by offset
# What is wrong with one letter, and not with its topic: those behind it continue.
OF_A_LETTER: Final = frozenset({"message-too-large", "batch-too-large", "invalid-argument"})


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that a subscription gave up, as its producer sent it, with the reason and the number of attempts."""

    offset: int  # in the dead-letter topic
    payload: bytes
    key: bytes | None
    attributes: dict[str, str]  # without those below
    topic: str  # where it was
    subscription: str  # who gave it up
    origin_offset: int | None  # where it was in `topic`
    producer: str  # whose it was: the producer id, hexadecimal
    timestamp: int | None  # when the broker took it, unix milliseconds
    attempts: int  # how often it was delivered
    reason: str  # of the last failure
    dead_lettered_at: int | None  # unix milliseconds


class Client(Protocol):
    """What is used of the client."""

    @property
    def subscription(self) -> Callable[..., SubscriptionDetail]:
        """`ister.Client.subscription`."""

    @property
    def topic(self) -> Callable[..., TopicDetail]:
        """`ister.Client.topic`."""

    @property
    def peek(self) -> Callable[..., list[Message]]:
        """`ister.Client.peek`."""

    @property
    def reader(self) -> Callable[..., Reader]:
        """`ister.Client.reader`."""

    @property
    def producer(self) -> Callable[..., Producer]:
        """`ister.Client.producer`."""

    @property
    def consumer(self) -> Callable[..., Consumer]:
        """`ister.Client.consumer`, of one topic."""


class DeadLetters:
    """The dead letters of one subscription; made by `Client.dead_letters`."""

    def __init__(
        self, client: Client, topic: str, subscription: str, *, timeout: float | None, stop: threading.Event
    ) -> None:
        """`timeout` in seconds is that of each question; once `stop` is set, work ends after its present batch."""
        self.topic = arguments.text(topic, "a topic's name")
        self.subscription = arguments.text(subscription, "a subscription's name")
        self._client = client
        self._timeout = timeout
        self._stop = stop

    def dead_letter_topic(self) -> str:
        """Return the name of the topic they are in; for a deleted subscription the default name."""
        try:
            shown = self._client.subscription(self.topic, self.subscription, timeout=self._timeout)
            named = shown.get("dead_letter_topic")
        except RemoteError as error:
            if error.code not in ("unknown-topic", "unknown-subscription"):
                raise
            named = None
        return str(named or f"{self.topic}.{self.subscription}.dlq")

    # ---- looking -------------------------------------------------------------------------------------------------

    def count(self) -> int:
        """Return how many letters wait, of every subscription that shares the dead-letter topic."""
        return int(self._waiting(self.dead_letter_topic())[0])

    def list(self, limit: int = LIST_MAX) -> Sequence[DeadLetter]:
        """Return the letters that wait, oldest first, at most `limit`; nothing is taken."""
        arguments.number(limit, "limit", 1)
        topic = self.dead_letter_topic()
        if not self._waiting(topic)[0]:
            return []
        looked_at = limit
        while True:
            peeked = self._client.peek(topic, REDRIVE, looked_at, timeout=self._timeout)
            found = [message for message in peeked if self._is_mine(message)]
            if len(found) >= limit or len(peeked) < looked_at:
                return [letter_of(message) for message in found[:limit]]
            looked_at *= 4  # others' letters lie between them

    def show(self, offset: int) -> DeadLetter:
        """Return the letter at this offset of the dead-letter topic, also if it was redriven meanwhile.

        Raises `UsageError` where there is none, `RemoteError`.
        """
        arguments.number(offset, "an offset")
        topic = self.dead_letter_topic()
        missing = f"dead-letter topic {topic!r} has no letter of {self.subscription!r} at offset {offset}"
        try:
            if offset < self._client.topic(topic, timeout=self._timeout)["durable_end"]:
                with self._client.reader(
                    topic, start=offset, credit_messages=1, timeout=self._timeout
                ) as reader:
                    message = reader.receive(self._timeout)
                if message is None:
                    raise TimeoutExpiredError(f"offset {offset} of {topic!r} did not come in time")
                if message.offset == offset and self._is_mine(message):
                    return letter_of(message)
        except RemoteError as error:
            if error.code not in ("unknown-topic", "offset-out-of-range"):
                raise
        raise UsageError(missing)

    def _is_mine(self, message: Message) -> bool:
        """Whether this subscription gave it up; what somebody put there by hand is anybody's."""
        told = message.attributes
        of = told.get(f"{MARK}topic", self.topic), told.get(f"{MARK}subscription", self.subscription)
        return of == (self.topic, self.subscription)

    # ---- settling ------------------------------------------------------------------------------------------------

    def redrive(
        self,
        limit: int | None = None,
        *,
        offsets: Iterable[int] | None = None,
        to: str | None = None,
        on_progress: Progress | None = None,
    ) -> int:
        """Send letters back to the topic they were in, or to the topic `to`, and return how many were sent.

        At most `limit`, or those at `offsets` of the dead-letter topic. Payload, key and attributes are unchanged. The
        attributes about the failure are replaced by `ister.redriven_from` (the dead-letter topic),
        `ister.redriven_offset` (the offset there) and `ister.redriven_for` (the subscription), by which other
        subscriptions can tell that they have had the message. At least once: after an interruption a batch may be sent
        again, and nothing is lost. `on_progress(done, total)` is called after each batch. A letter that the topic
        refuses (because it is too large, for example) stays, and does not stop others; the error at the end names it.
        Raises `RemoteError` (`subscription-busy`: another redrive is running; `unknown-topic`), `UsageError`.
        """
        goes_to = self.topic if to is None else arguments.text(to, "a topic's name")
        comes_from = self.dead_letter_topic()
        if goes_to == comes_from:
            raise UsageError(f"{goes_to!r} is the dead-letter topic: letters would loop forever")
        with self._client.producer(goes_to, timeout=self._timeout) as producer:
            if producer.strategy == "non-reliable":
                raise UsageError(
                    f"topic {goes_to!r} is non-reliable: it stores nothing, so letters would be lost"
                )

            def begin(part: list[Message]) -> BatchReceipt | IsterError:
                try:
                    return producer.send_batch(
                        [message.payload for message in part],
                        keys=[message.key for message in part],
                        attributes=[self._redriven(message) for message in part],
                    )
                except IsterError as error:
                    return _of_a_letter(error)

            def finish(begun: BatchReceipt | IsterError) -> IsterError | None:
                if isinstance(begun, IsterError):
                    return begun
                try:
                    begun.result(self._timeout)
                except IsterError as error:
                    return _of_a_letter(error)
                return None

            def send(messages: list[Message]) -> dict[int, IsterError]:
                refused: dict[int, IsterError] = {}
                parts = [(part, begin(part)) for part in _in_parts(messages)]
                for part, begun in parts:
                    if (error := finish(begun)) is None:
                        continue
                    for message in part:
                        alone = error if len(part) == 1 else finish(begin([message]))
                        if alone is not None:
                            refused[message.offset] = alone
                return refused

            return self._settle(comes_from, send, limit, offsets, on_progress)

    def purge(self, limit: int | None = None, *, on_progress: Progress | None = None) -> int:
        """Delete letters, at most `limit`, and return how many. Messages that become dead letters meanwhile stay.

        Raises `RemoteError` (`subscription-busy`: a redrive is running).
        """
        return self._settle(self.dead_letter_topic(), lambda _messages: {}, limit, None, on_progress)

    def _redriven(self, message: Message) -> dict[str, str]:
        kept = {name: value for name, value in message.attributes.items() if name not in _ADDED}
        return kept | {
            f"{MARK}redriven_from": message.topic,
            f"{MARK}redriven_offset": str(message.offset),
            f"{MARK}redriven_for": self.subscription,
        }

    def _waiting(self, topic: str) -> tuple[int, int]:
        """Return how many letters wait in a topic, and the offset behind its last one."""
        try:
            shown = self._client.subscription(topic, REDRIVE, timeout=self._timeout)
        except RemoteError as error:
            if error.code not in ("unknown-topic", "unknown-subscription"):
                raise
            return 0, 0
        return shown["unacknowledged"], shown["durable_end"]

    def _settle(
        self,
        topic: str,
        settle: Settle,
        limit: int | None,
        offsets: Iterable[int] | None,
        on_progress: Progress | None,
    ) -> int:
        if limit is not None:
            arguments.number(limit, "limit", 1)
        wanted = None if offsets is None else frozenset(offsets)
        waiting, end = self._waiting(topic)
        most = min(
            each for each in (waiting, limit, None if wanted is None else len(wanted)) if each is not None
        )
        if not most:
            return 0
        with self._client.consumer(
            topic,
            REDRIVE,
            type="exclusive",
            start="earliest",
            credit_messages=2 * LETTERS_MAX,
            credit_bytes=CREDIT_BYTES,
            timeout=self._timeout,
        ) as consumer:
            work = _Work(consumer, end, waiting, most, wanted)
            while not work.over and not self._stop.is_set():
                batch = consumer.receive_batch(LETTERS_MAX, IDLE_S)
                if batch is None:
                    if self._is_drained(topic, end):
                        break
                    continue
                work.settle(list(filter(self._is_mine, work.look_at(batch))), settle, self._timeout)
                if on_progress is not None:
                    on_progress(work.done, most)
        if work.refused:
            offset, error = next(iter(work.refused.items()))
            text = (
                f"{counted(work.done, 'letter was settled', 'letters were settled')}, and "
                f"{counted(len(work.refused), 'stays', 'stay')} in {topic!r}: the first, at offset "
                f"{offset}, is not taken: {error.text}"
            )
            raise RemoteError(error.code, text, "fix")
        return work.done

    def _is_drained(self, topic: str, end: int) -> bool:
        shown = self._client.subscription(topic, REDRIVE, timeout=self._timeout)
        if shown.get("paused"):
            raise RemoteError("paused", f"subscription {REDRIVE!r} of {topic!r} is paused", "retry")
        return not shown.get("waiting_redelivery") and shown["position"] >= end


class _Work:
    """How far settling is: a fresh consumer gets what waits in order, and after a lost session some of it again."""

    def __init__(
        self, consumer: Consumer, end: int, waiting: int, most: int, wanted: Collection[int] | None
    ) -> None:
        self.done = 0
        self._consumer = consumer
        self._end = end
        self._unseen = waiting
        self._most = most
        self._wanted = wanted
        self._reached = 0  # behind the last offset that was looked at
        self._gone: set[int] = set()  # settled, and not known to be acknowledged
        self.refused: dict[int, IsterError] = {}  # letters that cannot be settled, and why

    @property
    def over(self) -> bool:
        """Whether nothing is left to do; what may come again is waited for."""
        return (self._unseen <= 0 or self.done >= self._most) and not self._gone

    def look_at(self, batch: Iterable[Message]) -> Iterator[Message]:
        """Yield the messages of a batch that were there at the beginning and are wanted."""
        for message in batch:
            offset = message.offset
            if offset >= self._end:
                self._unseen = 0
                return
            if offset >= self._reached:
                self._reached = offset + 1
                self._unseen -= 1
            if self._wanted is None or offset in self._wanted:
                yield message

    def settle(self, messages: list[Message], settle: Settle, timeout: float | None) -> None:
        """Settle messages that were not settled yet, as many as are wanted, and acknowledge them."""
        again = [message for message in messages if message.offset in self._gone]
        fresh = [m for m in messages if m.offset not in self._gone and m.offset not in self.refused]
        fresh = fresh[: self._most - self.done]
        if fresh:
            self.refused |= settle(fresh)
            fresh = [message for message in fresh if message.offset not in self.refused]
        offsets = [message.offset for message in (*again, *fresh)]
        self.done += len(fresh)
        self._gone.update(offsets)
        if not offsets:
            return
        try:
            self._consumer.ack([*again, *fresh])
            self._consumer.flush(timeout)
        except ConnectionLostError:
            return  # the broker forgot what it had delivered: they come again
        self._gone.difference_update(offsets)


def letter_of(message: Message) -> DeadLetter:
    """Read what the broker wrote on a dead letter."""
    told = message.attributes
    return DeadLetter(
        offset=message.offset,
        payload=message.payload,
        key=message.key,
        attributes={name: value for name, value in told.items() if name not in _ADDED},
        topic=told.get(f"{MARK}topic", ""),
        subscription=told.get(f"{MARK}subscription", ""),
        origin_offset=_number(told, "offset"),
        producer=told.get(f"{MARK}producer", ""),
        timestamp=_number(told, "timestamp"),
        attempts=_number(told, "attempts") or 0,
        reason=told.get(f"{MARK}reason", ""),
        dead_lettered_at=_number(told, "dead_lettered_at"),
    )


def _of_a_letter(error: IsterError) -> IsterError:
    """Return an error that is about one letter; raise any other."""
    if error.code not in OF_A_LETTER:
        raise error
    return error


def _number(told: Mapping[str, str], name: str) -> int | None:
    text = told.get(MARK + name, "")
    return int(text) if text.isascii() and text.isdecimal() else None


def _in_parts(messages: list[Message]) -> Iterator[list[Message]]:
    """Cut messages into lists that are small enough for one batch."""
    part: list[Message] = []
    room = BATCH_BYTES
    for message in messages:
        attributes = message.attributes.items()
        size = len(message.payload) + len(message.key or b"") + sum(len(n) + len(v) for n, v in attributes)
        if part and size > room:
            yield part
            part, room = [], BATCH_BYTES
        part.append(message)
        room -= size
    if part:
        yield part
