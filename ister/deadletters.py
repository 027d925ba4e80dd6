"""The dead letters of one subscription: listing what it gave up, sending it back, and deleting it.

They are in the subscription's dead-letter topic, which may serve several subscriptions: only this one's letters are
listed and touched. How letters are taken out of there is in `settling.py`. May touch: the synchronous client, like any
other user.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from ister import arguments, settling
from ister.answers import TopicDetail
from ister.bodies import MARK
from ister.errors import RemoteError, TimeoutExpiredError, UsageError
from ister.message import Message
from ister.settling import REDRIVE, Progress, Sending, Settling
from ister.words import counted

if TYPE_CHECKING:
    from ister.producer import Producer
    from ister.reader import Reader

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


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that a subscription gave up, as its producer sent it, with the reason and the number of attempts."""

    offset: int  # in the dead-letter topic
    payload: bytes
    key: bytes | None
    attributes: dict[str, str]  # without the attributes about the failure
    topic: str  # the topic it was published to
    subscription: str  # the subscription that gave it up
    origin_offset: int | None  # its offset in `topic`
    producer: str  # its producer's id, hexadecimal
    timestamp: int | None  # when the broker received it, unix milliseconds
    attempts: int  # how often it was delivered
    reason: str  # of the last failure
    dead_lettered_at: int | None  # unix milliseconds


class Client(settling.Client, Protocol):
    """What is used of the client."""

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


class DeadLetters:
    """The dead letters of one subscription; made by `Client.dead_letters`."""

    def __init__(
        self, client: Client, topic: str, subscription: str, *, timeout: float | None, stop: threading.Event
    ) -> None:
        """`timeout` in seconds applies to each request; once `stop` is set, work ends after its present batch."""
        self.topic = arguments.text(topic, "a topic's name")
        self.subscription = arguments.text(subscription, "a subscription's name")
        self._client = client
        self._timeout = timeout
        self._stop = stop

    def dead_letter_topic(self) -> str:
        """Return the name of the dead-letter topic; for a deleted subscription the default name."""
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
        """Return how many letters wait, of all subscriptions that share the dead-letter topic."""
        return int(self._settling(self.dead_letter_topic()).waiting()[0])

    def list(self, limit: int = LIST_MAX, *, after: int | None = None) -> Sequence[DeadLetter]:
        """Return the letters that wait, oldest first, at most `limit`; none is removed.

        `after`: continue after an earlier answer, whose last letter had this `offset`. To see all letters, iterate
        over this object.
        """
        arguments.number(limit, "limit", 1)
        start = 0 if after is None else arguments.number(after, "after") + 1
        topic = self.dead_letter_topic()
        if not self._settling(topic).waiting()[0]:
            return []
        found: list[Message] = []
        look_at, in_vain = limit, 0
        while len(found) < limit:
            peeked = self._client.peek(topic, REDRIVE, look_at, start=start, timeout=self._timeout)
            found += filter(self._is_mine, peeked)
            if peeked:
                start = peeked[-1].offset + 1
            if len(peeked) < look_at and len(found) < limit:
                if not self._follow(topic, start):
                    break
                in_vain = 0 if peeked else in_vain + 1
                if in_vain == 2:
                    raise TimeoutExpiredError(f"letters of {topic!r} did not come in time")
            look_at = max(
                limit - len(found), min(2 * look_at, LIST_MAX)
            )  # there are letters of others between them
        return [letter_of(message) for message in found[:limit]]

    def __iter__(self) -> Iterator[DeadLetter]:
        """Iterate over all letters that wait, oldest first; none is removed. Few are in memory at a time."""
        after: int | None = None
        while page := self.list(LIST_MAX, after=after):
            yield from page
            after = page[-1].offset

    def _follow(self, topic: str, start: int) -> bool:
        """Whether letters wait from an offset on. Raises `UsageError` if the broker does not say where they all are."""
        shown = self._client.subscription(topic, REDRIVE, timeout=self._timeout)
        pending = shown.get("pending", [])
        untold = shown["unacknowledged"] - sum(end - first for first, end in pending)
        if any(end > start for _, end in pending):
            return True
        if untold > 0 and pending:
            raise UsageError(
                f"{counted(untold, 'letter')} of {topic!r} cannot be listed: they lie behind the first {len(pending)} "
                f"runs of letters, up to offset {pending[-1][1] - 1}, which are all that a broker tells; redrive or "
                "purge some of these, then list again"
            )
        return False

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
        """Return whether this subscription gave a letter up; one that was published by hand belongs to all."""
        told = message.attributes
        of = told.get(f"{MARK}topic", self.topic), told.get(f"{MARK}subscription", self.subscription)
        return of == (self.topic, self.subscription)

    def _settling(self, topic: str) -> Settling:
        return Settling(self._client, topic, self._is_mine, timeout=self._timeout, stop=self._stop)

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

            sending = Sending(producer, self._redriven, self._timeout)
            return self._settling(comes_from).run(sending.send, limit, offsets, on_progress)

    def purge(self, limit: int | None = None, *, on_progress: Progress | None = None) -> int:
        """Delete letters, at most `limit`, and return how many. Messages that become dead letters meanwhile stay.

        Raises `RemoteError` (`subscription-busy`: a redrive is running).
        """
        return self._settling(self.dead_letter_topic()).run(lambda _messages: {}, limit, None, on_progress)

    def _redriven(self, message: Message) -> dict[str, str]:
        kept = {name: value for name, value in message.attributes.items() if name not in _ADDED}
        return kept | {
            f"{MARK}redriven_from": message.topic,
            f"{MARK}redriven_offset": str(message.offset),
            f"{MARK}redriven_for": self.subscription,
        }


def letter_of(message: Message) -> DeadLetter:
    """Return the dead letter in a message."""
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


def _number(told: Mapping[str, str], name: str) -> int | None:
    text = told.get(MARK + name, "")
    return int(text) if text.isascii() and text.isdecimal() else None
