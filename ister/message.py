"""What a program is handed: messages and batches, as views of the delivery they came in, and events.

A `Message` points into its `Delivery`, so that what it costs is paid once per batch. What became of messages that went
out is in `receipts.py`. Pure: no socket, clock or thread lives here.

Invariants
- the offsets of a `Delivery` ascend; nearly always they are first, first + 1, ... (`ranges` is None), and only where
  several consumers share a subscription there are others
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat, starmap
from operator import length_hint
from typing import TYPE_CHECKING, Literal, TypeVar, cast, overload

from ister import bodies, wire
from ister.errors import RemoteProtocolError, UsageError
from ister.words import counted

Parts = tuple["Delivery", int, bytes]  # of a message: its delivery, its offset and its payload


class Delivery:
    """One DELIVER frame; it is cut into messages when first used."""

    __slots__ = (
        "_attributes",
        "_frames",
        "_hand",
        "_keys",
        "_offsets",
        "_payloads",
        "_times",
        "attempt",
        "came",
        "columns",
        "count",
        "first",
        "lineage",
        "owner",
        "ranges",
        "singly",
        "size",
        "timestamps",
        "topic",
        "withheld",
    )

    def __init__(
        self,
        owner: object,
        topic: str,
        lineage: int,
        header: wire.Header,
        frames: Sequence[bodies.Buffer],
        came: float = 0.0,
    ) -> None:
        """Check what can be checked without looking at messages; raises `RemoteProtocolError`.

        `came` is when it arrived, in the clock's seconds.
        """
        self.owner = owner
        self.came = came
        self.topic = topic
        self.lineage = lineage
        self.first: int = header[wire.Key.OFFSET]
        self.count: int = header[wire.Key.COUNT]
        self.columns: int = header.get(wire.Key.COLUMNS, 0)
        self.timestamps: list[int] = header[wire.Key.TIMESTAMPS]
        self.attempt: int = header.get(wire.Key.ATTEMPT, 1)
        self.singly: bool = header.get(wire.Key.SINGLY, False)
        if self.columns & ~wire.Column.ALL or len(frames) != 2 + self.columns.bit_count():
            raise RemoteProtocolError(f"a delivery with columns {self.columns} has {len(frames)} body frames")
        if not self.count or len(frames[0]) != 4 * self.count or sum(self.timestamps[::2]) != self.count:
            raise RemoteProtocolError(
                f"a delivery does not hold the {counted(self.count, 'message')} it announces"
            )
        bodies.check_sum(frames[0], len(frames[1]))
        if self.columns:
            bodies.check_columns(frames, self.columns, self.count)
        self.size = sum(map(len, frames))
        flat = header.get(wire.Key.RANGES)
        self.ranges = None if flat is None else self._ranges_of(flat)
        self._frames: Sequence[bodies.Buffer] = frames
        self._payloads: list[bytes] | None = None
        self._keys: list[bytes] | None = None
        self._attributes: list[bytes] | None = None
        self._times: Sequence[int] | None = None
        self._offsets: Sequence[int] | None = None
        self._hand: Iterator[bytes] = iter(())
        self.withheld = False

    def _ranges_of(self, flat: list[int]) -> list[tuple[int, int]] | None:
        rising = all(map(int.__lt__, flat, flat[1:]))  # ascending, not empty, and not touching
        if not flat or not rising or flat[0] != self.first or sum(flat[1::2]) - sum(flat[::2]) != self.count:
            raise RemoteProtocolError(
                f"the ranges of a delivery do not hold the {counted(self.count, 'message')} it announces"
            )
        return list(zip(flat[::2], flat[1::2], strict=True)) if len(flat) > 2 else None

    @property
    def end(self) -> int:
        """The offset after the last message."""
        return self.first + self.count if self.ranges is None else self.ranges[-1][1]

    @property
    def offsets(self) -> Sequence[int]:
        """The offset of every message."""
        if self.ranges is None:
            return range(self.first, self.first + self.count)
        if self._offsets is None:
            self._offsets = list(chain.from_iterable(starmap(range, self.ranges)))
        return self._offsets

    def index(self, offset: int) -> int:
        """Return the index of the message with this offset, which must be in it."""
        return offset - self.first if self.ranges is None else bisect_left(self.offsets, offset)

    def runs(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return the half-open ranges of offsets of the messages from index `start` up to `stop`; at least one."""
        if self.ranges is None:
            return [(self.first + start, self.first + stop)]
        if start == 0 and stop == self.count:
            return self.ranges[:]
        offsets = self.offsets
        first, end = offsets[start], offsets[stop - 1] + 1
        return [(max(low, first), min(high, end)) for low, high in self.ranges if low < end and first < high]

    @property
    def payloads(self) -> list[bytes]:
        """Every payload."""
        if self._payloads is None:
            self._payloads = bodies.split_payloads(self._frames[0], self._frames[1], checked=True)
        return self._payloads

    def messages(self, start: int = 0, stop: int | None = None) -> Iterator[Message]:
        """Iterate over the messages from index `start` up to `stop`."""
        payloads = self.payloads
        if start or stop is not None:
            payloads = payloads[start:stop]
        return starmap(message_of, self._parts(start, stop, payloads))

    def hand_out(self, start: int = 0, stop: int | None = None) -> Hand:
        """Iterate over the messages from index `start` up to `stop`, until they are taken back or withheld.

        Several threads may share the iterator: each message goes to one of them.
        """
        payloads = [] if self.withheld else self.payloads
        if start or (stop is not None and stop < len(payloads)):
            payloads = payloads[start:stop]
        self._hand = iter(payloads)
        return Hand.of(self._parts(start, start + len(payloads), self._hand))

    @property
    def unseen(self) -> int:
        """How many messages of the last `hand_out` were not yielded yet."""
        return length_hint(self._hand)

    def take_back(self) -> int:
        """End the iterator of `hand_out`, and return how many messages it has not yielded.

        Other threads may be iterating: the list is made in one step of the interpreter.
        """
        return len(list(self._hand))

    def withhold(self) -> None:
        """End the iterator of `hand_out`: it yields nothing more (any thread)."""
        self.withheld = True
        self.take_back()

    def _parts(self, start: int, stop: int | None, payloads: Iterable[bytes]) -> Iterator[Parts]:
        if self.ranges is not None:
            return zip(repeat(self), self.offsets[start:stop], payloads)
        stop = self.count if stop is None else stop
        return zip(repeat(self), range(self.first + start, self.first + stop), payloads)

    def key(self, index: int) -> bytes | None:
        """The key of the message at `index`, if it has one."""
        if not self.columns & wire.Column.KEYS:
            return None
        if self._keys is None:
            self._keys = bodies.split_column(self._frames[2], self.count, checked=True)
        return self._keys[index] or None

    def attributes(self, index: int) -> dict[str, str]:
        """The attributes of the message at `index`."""
        if not self.columns & wire.Column.ATTRIBUTES:
            return {}
        if self._attributes is None:
            self._attributes = bodies.split_column(
                self._frames[2 + (self.columns & 1)], self.count, checked=True
            )
        return bodies.decode_attributes(self._attributes[index])

    def deliver_at(self, index: int) -> int | None:
        """The earliest delivery time that the producer set for the message at `index`, in unix milliseconds."""
        if not self.columns & wire.Column.DELIVER_AT:
            return None
        if self._times is None:
            self._times = bodies.split_times(self._frames[-1], self.count)
        return self._times[index] or None

    def timestamp(self, index: int) -> int:
        """When the broker received the message at `index`, in unix milliseconds."""
        pairs = self.timestamps
        for at in range(0, len(pairs), 2):
            index -= pairs[at]
            if index < 0:
                return pairs[at + 1]
        return pairs[-1]


class BaseMessage:
    """The base of all messages: `payload` and `offset`; everything else is looked up when used."""

    # Set by those who make one: a message is made for every payload, and calling an `__init__` would take longer than
    # all else.
    __slots__ = ("delivery", "offset", "payload")

    delivery: Delivery
    offset: int
    payload: bytes

    @property
    def topic(self) -> str:
        """The topic it was published to."""
        return self.delivery.topic

    @property
    def key(self) -> bytes | None:
        """Its key, `None` if it has none (an empty key counts as none)."""
        return self.delivery.key(self.delivery.index(self.offset))

    @property
    def attributes(self) -> dict[str, str]:
        """Its attributes, text to text; empty if it has none."""
        return self.delivery.attributes(self.delivery.index(self.offset))

    @property
    def timestamp(self) -> int:
        """When the broker received it, in unix milliseconds."""
        return self.delivery.timestamp(self.delivery.index(self.offset))

    @property
    def deliver_at(self) -> int | None:
        """The earliest delivery time that its producer set, in unix milliseconds; `None` if it set none."""
        return self.delivery.deliver_at(self.delivery.index(self.offset))

    @property
    def attempt(self) -> int:
        """1 for the first delivery, 2 for the first redelivery, and so on."""
        return self.delivery.attempt

    def __repr__(self) -> str:
        return f"Message(topic={self.topic!r}, offset={self.offset}, payload={self.payload[:40]!r})"


class Message(BaseMessage):
    """One message as it was delivered."""

    __slots__ = ()

    def reply(
        self, payload: bytes, *, key: bytes | None = None, attributes: Mapping[str, str] | None = None
    ) -> None:
        """Answer a message that came from `Client.request`; with `ister.aio`, await it.

        The client that asked may be gone, or not wait any more: then the reply is dropped. Raises `UsageError` if the
        message asks for no reply, `TimeoutExpiredError` if the broker accepts nothing within the client's timeout.
        """
        replier = getattr(self.delivery.owner, "replier", None)
        if replier is None:
            raise UsageError("this message did not come from a client's consumer or reader")
        answering: None = replier(self, payload, key, attributes)
        return answering  # `ister.aio` returns a coroutine


def message_of(delivery: Delivery, offset: int, payload: bytes) -> Message:
    """Return the message with this offset."""
    message = Message()
    message.delivery = delivery
    message.offset = offset
    message.payload = payload
    return message


if TYPE_CHECKING:
    _Messages = starmap[Message]
else:
    _Messages = starmap


class Hand(_Messages):
    """An iterator over messages that are handed out; who takes many takes their `parts`, and makes the messages itself.

    Several threads may share both: one message's parts are taken in one step, all of whose iterators are the
    interpreter's own.
    """

    parts: Iterator[Parts]

    @classmethod
    def of(cls, parts: Iterator[Parts]) -> Hand:
        """Return one whose messages are made of these parts."""
        hand = cls(message_of, parts)  # type: ignore[arg-type] # of a subclass of a generic class
        hand.parts = parts
        return hand


M_co = TypeVar("M_co", bound=BaseMessage, covariant=True)


class BaseBatch(Sequence[M_co]):
    """Messages that were delivered together, in the order of their offsets; they are created when used.

    The offsets are consecutive, except where other consumers share the subscription (Shared, Key-Shared).
    """

    __slots__ = ("_start", "_stop", "delivery")

    def __init__(self, delivery: Delivery, start: int, stop: int) -> None:
        self.delivery = delivery
        self._start = start
        self._stop = stop

    @property
    def payloads(self) -> list[bytes]:
        """The payloads alone: the fastest way to read a batch."""
        if self._stop - self._start == self.delivery.count:
            return self.delivery.payloads
        return self.delivery.payloads[self._start : self._stop]

    @property
    def offsets(self) -> Sequence[int]:
        """The offsets of the messages."""
        return self.delivery.offsets[self._start : self._stop]

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The offsets of the messages as half-open ranges (first, end), ascending."""
        return self.delivery.runs(self._start, self._stop) if self else []

    @property
    def topic(self) -> str:
        """The topic the messages came from."""
        return self.delivery.topic

    @property
    def attempt(self) -> int:
        """1 for the first delivery, 2 for the first redelivery, and so on."""
        return self.delivery.attempt

    def hand_out(self) -> Hand:
        """Iterate over the messages, which several threads may do; see `Delivery.hand_out`."""
        return self.delivery.hand_out(self._start, self._stop)

    def __len__(self) -> int:
        return self._stop - self._start

    def __iter__(self) -> Iterator[M_co]:
        return cast("Iterator[M_co]", self.delivery.messages(self._start, self._stop))

    @overload
    def __getitem__(self, index: int) -> M_co: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[M_co]: ...
    def __getitem__(self, index: int | slice) -> M_co | Sequence[M_co]:
        return cast("M_co | Sequence[M_co]", self._item(index))

    def _item(self, index: int | slice) -> Message | Sequence[Message]:
        places = range(self._start, self._stop)[index]
        delivery = self.delivery
        if isinstance(places, int):
            return message_of(delivery, delivery.offsets[places], delivery.payloads[places])
        if places.step == 1:
            return Batch(delivery, places.start, max(places.start, places.stop))
        return [message_of(delivery, delivery.offsets[at], delivery.payloads[at]) for at in places]

    def __repr__(self) -> str:
        return f"Batch(topic={self.topic!r}, ranges={self.ranges!r})"


class Batch(BaseBatch[Message]):
    """Messages that were delivered together."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Event:
    """An event that a broker reports to a consumer.

    `active`, `standby` (Failover); `dropped` (non-reliable: `count` so far); `trimmed` (retention took `count`
    unacknowledged messages, from `offset` on); `log-damaged` (`count` messages from `offset` on cannot be read, and an
    operator must decide); `skipped` (the operator decided to skip them); `missing` (`count` messages from `offset` on,
    with which a new subscription from the earliest was to begin, are lost: it begins after them); `sought` (the
    subscription was moved: it continues at `offset`); `blocked` (the message at `offset` failed too often, and the
    subscription waits for an operator); `expired` (`count` messages from `offset` on outlived the topic's
    `message_ttl_ms`); `paused` and `resumed`; `recalled` (the program has not acknowledged in time: `count` messages
    that waited for it were given to others).
    """

    code: str
    count: int = 0
    text: str = ""
    offset: int | None = None
    topic: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class BrokerEvent:
    """What happened to the connection to a broker: `connected` (also again), or `lost`, with the reason; it then
    reconnects.
    """

    code: Literal["connected", "lost"]
    endpoint: str
    text: str = ""
