"""Taking dead letters out of their topic: each is done with, and then acknowledged.

`Settling` goes once over the letters that wait, whatever is done with them; `Sending` sends them to a topic. What a
letter is, and which are whose, is in `deadletters.py`. May touch: the synchronous client, like any other user.

Invariants
- a letter is acknowledged once what was to be done with it is done: an interruption loses nothing
- what becomes a dead letter meanwhile waits for the next call: no letter loops forever
- memory is bounded by one batch
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol

from ister import arguments
from ister.answers import SubscriptionDetail
from ister.errors import ConnectionLostError, IsterError, RemoteError
from ister.message import Message
from ister.receipts import BatchReceipt
from ister.words import counted

if TYPE_CHECKING:
    from ister.consumer import Consumer
    from ister.producer import Producer

REDRIVE: Final = "redrive"  # the subscription of a dead-letter topic through which its letters are taken
LETTERS_MAX: Final = 500  # how many letters are settled together
BATCH_BYTES: Final = 256 * 1024  # how much is sent together, unless a single letter is larger
CREDIT_BYTES: Final = 8 << 20
IDLE_S: Final = 0.3  # seconds of silence after which the broker is asked whether anything is left
# Errors that concern one letter and not its topic: later ones continue.
OF_A_LETTER: Final = frozenset({"message-too-large", "batch-too-large", "invalid-argument"})

Progress = Callable[[int, int], Any]  # (how many are done, how many there are)
# settles letters; returns those that cannot be, with the reason, by offset
Settle = Callable[[list[Message]], dict[int, IsterError]]


class Client(Protocol):
    """What is used of the client."""

    @property
    def subscription(self) -> Callable[..., SubscriptionDetail]:
        """`ister.Client.subscription`."""

    @property
    def consumer(self) -> Callable[..., Consumer]:
        """`ister.Client.consumer`, of one topic."""


class Settling:
    """One pass over the letters that wait in a dead-letter topic."""

    def __init__(
        self,
        client: Client,
        topic: str,
        is_mine: Callable[[Message], bool],
        *,
        timeout: float | None,
        stop: threading.Event,
    ) -> None:
        """Letters that are not `is_mine` stay; once `stop` is set, the pass ends after its present batch.

        `timeout` in seconds is that of each question to the broker.
        """
        self._client = client
        self._topic = topic
        self._is_mine = is_mine
        self._timeout = timeout
        self._stop = stop

    def waiting(self) -> tuple[int, int]:
        """Return how many letters wait in the topic, and the offset after its last one."""
        try:
            shown = self._client.subscription(self._topic, REDRIVE, timeout=self._timeout)
        except RemoteError as error:
            if error.code not in ("unknown-topic", "unknown-subscription"):
                raise
            return 0, 0
        return shown["unacknowledged"], shown["durable_end"]

    def run(
        self,
        settle: Settle,
        limit: int | None,
        offsets: Iterable[int] | None,
        on_progress: Progress | None,
    ) -> int:
        """Settle at most `limit` letters, or those at `offsets`, and return how many were.

        `settle(letters)` does what is to be done with them, and returns those that cannot be settled: they stay, and
        the `RemoteError` at the end names the first. `on_progress(done, of how many)` is called after each batch.
        """
        if limit is not None:
            arguments.number(limit, "limit", 1)
        wanted = None if offsets is None else frozenset(offsets)
        waiting, end = self.waiting()
        most = min(
            each for each in (waiting, limit, None if wanted is None else len(wanted)) if each is not None
        )
        if not most:
            return 0
        with self._client.consumer(
            self._topic,
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
                    if self._is_drained(end):
                        break
                    continue
                work.settle(list(filter(self._is_mine, work.look_at(batch))), settle, self._timeout)
                if on_progress is not None:
                    on_progress(work.done, most)
        if work.refused:
            offset, error = next(iter(work.refused.items()))
            text = (
                f"{counted(work.done, 'letter was settled', 'letters were settled')}, and "
                f"{counted(len(work.refused), 'stays', 'stay')} in {self._topic!r}: the first, at offset "
                f"{offset}, is not taken: {error.text}"
            )
            raise RemoteError(error.code, text, "fix")
        return work.done

    def _is_drained(self, end: int) -> bool:
        shown = self._client.subscription(self._topic, REDRIVE, timeout=self._timeout)
        if shown.get("paused"):
            raise RemoteError("paused", f"subscription {REDRIVE!r} of {self._topic!r} is paused", "retry")
        return not shown.get("waiting_redelivery") and shown["position"] >= end


class Sending:
    """Sends letters to a topic, many at once; one that the topic refuses does not stop the others."""

    def __init__(
        self,
        producer: Producer,
        attributes_of: Callable[[Message], dict[str, str]],
        timeout: float | None,
    ) -> None:
        """`attributes_of(letter)` returns what it is sent with; `timeout` in seconds is that of each receipt."""
        self._producer = producer
        self._attributes_of = attributes_of
        self._timeout = timeout

    def send(self, letters: list[Message]) -> dict[int, IsterError]:
        """Send letters, and return the refused ones: the error by offset. Raises any other error."""
        refused: dict[int, IsterError] = {}
        parts = [(part, self._begin(part)) for part in _in_parts(letters)]
        for part, begun in parts:
            if (error := self._finish(begun)) is None:
                continue
            for letter in part:
                alone = error if len(part) == 1 else self._finish(self._begin([letter]))
                if alone is not None:
                    refused[letter.offset] = alone
        return refused

    def _begin(self, part: list[Message]) -> BatchReceipt | IsterError:
        try:
            return self._producer.send_batch(
                [letter.payload for letter in part],
                keys=[letter.key for letter in part],
                attributes=[self._attributes_of(letter) for letter in part],
            )
        except IsterError as error:
            return _of_a_letter(error)

    def _finish(self, begun: BatchReceipt | IsterError) -> IsterError | None:
        if isinstance(begun, IsterError):
            return begun
        try:
            begun.result(self._timeout)
        except IsterError as error:
            return _of_a_letter(error)
        return None


class _Work:
    """The progress of settling: a new consumer gets letters in order, and some again after a lost session."""

    def __init__(
        self, consumer: Consumer, end: int, waiting: int, most: int, wanted: Collection[int] | None
    ) -> None:
        self.done = 0
        self._consumer = consumer
        self._end = end
        self._unseen = waiting
        self._most = most
        self._wanted = wanted
        self._reached = 0  # after the last offset that was looked at
        self._gone: set[int] = set()  # settled, and not known to be acknowledged
        self.refused: dict[int, IsterError] = {}  # letters that cannot be settled, and why

    @property
    def over(self) -> bool:
        """Whether nothing is left to do; letters that may come again are waited for."""
        return (self._unseen <= 0 or self.done >= self._most) and not self._gone

    def look_at(self, batch: Iterable[Message]) -> Iterator[Message]:
        """Yield the messages of a batch that existed at the beginning and are wanted."""
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
        """Settle messages that were not settled yet, up to the limit, and acknowledge them."""
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


def _of_a_letter(error: IsterError) -> IsterError:
    """Return an error that concerns one letter; raise any other."""
    if error.code not in OF_A_LETTER:
        raise error
    return error


def _in_parts(messages: list[Message]) -> Iterator[list[Message]]:
    """Divide messages into lists that are small enough for one batch."""
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
