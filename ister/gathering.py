"""The batch that a producer gathers: messages put in one by one, and the frames they are sent as.

Knows no sequence and no session: see `publication.py`, which seals it. Pure: no socket, clock or thread lives here. The
caller holds the client's lock.

Invariants
- `room` is what the batch may still take, and never less than what its frames need: it is `NOTHING` until `begin`
- the columns of a batch are all of its length, or absent
"""

from __future__ import annotations

from typing import Final

from ister import bodies
from ister.receipts import Shipment, Waiter
from ister.wire import Column

MESSAGE_ENTRY_BYTES: Final = 4  # a message's place in the length table
TIME_BYTES: Final = 8  # a message's time of delivery, where any message of the batch has one
NOTHING: Final = -1  # room for nothing: the next message takes the path with all checks


class Gathering:
    """One producer's batch; the producer's fast path reads `room` and `plain`, and appends to `payloads` itself."""

    __slots__ = (
        "_begun_with",
        "_topic",
        "_waiter",
        "attributes",
        "batch_bytes",
        "keys",
        "linger_at",
        "linger_s",
        "payloads",
        "plain",
        "room",
        "shipment",
        "times",
    )

    def __init__(self, topic: str, linger_s: float) -> None:
        """A batch is to be sent at the latest `linger_s` seconds after its first message."""
        self.linger_s = linger_s
        self.linger_at = 0.0  # when it is to be sent, in the clock's seconds
        self.batch_bytes = 0  # how large a batch may get, as the publication learns from the broker
        self.room = NOTHING
        self.payloads: list[bytes] = []
        self.plain = True  # no message has anything but a payload: none of the columns below is begun
        self.keys: list[bytes] | None = None
        self.attributes: list[bytes] | None = None
        self.times: list[int] | None = None
        self.shipment = Shipment(topic, None)  # what the receipts of its messages point to
        self._topic = topic
        self._waiter: Waiter | None = None
        self._begun_with = 0

    def wait_with(self, waiter: Waiter) -> None:
        """Have receipts ask this one to wait for them; called once, before anything is gathered."""
        self._waiter = waiter
        self.shipment = Shipment(self._topic, waiter)

    def begin(self, now: float) -> None:
        """Take in the first message, which is about to come."""
        self.linger_at = now + self.linger_s
        self.room = self._begun_with = self.batch_bytes

    def add(self, payload: bytes, key: bytes, attributes: bytes, deliver_at: int = 0) -> int:
        """Put a message into the batch and return its index there; empty columns (and the time 0) are absent."""
        index = len(self.payloads)
        if key or self.keys is not None:
            if self.keys is None:
                self.keys = [b""] * index
                self.room -= MESSAGE_ENTRY_BYTES * index
            self.keys.append(key)
            self.room -= len(key) + MESSAGE_ENTRY_BYTES
        if attributes or self.attributes is not None:
            if self.attributes is None:
                self.attributes = [b""] * index
                self.room -= MESSAGE_ENTRY_BYTES * index
            self.attributes.append(attributes)
            self.room -= len(attributes) + MESSAGE_ENTRY_BYTES
        if deliver_at or self.times is not None:
            if self.times is None:
                self.times = [0] * index
                self.room -= TIME_BYTES * index
            self.times.append(deliver_at)
            self.room -= TIME_BYTES
        self.plain = self.keys is None and self.attributes is None and self.times is None
        self.payloads.append(payload)
        self.room -= len(payload) + MESSAGE_ENTRY_BYTES
        return index

    def size(self) -> int:
        """Return how many body bytes there are, with those of the columns."""
        return self._begun_with - self.room if self.payloads else 0

    def frames(self) -> tuple[int, list[bytes]]:
        """Return the columns and the body frames of what is gathered, which is not nothing."""
        payloads, columns = self.payloads, 0
        if self.keys is not None:
            columns |= Column.KEYS
        if self.attributes is not None:
            columns |= Column.ATTRIBUTES
        if self.times is not None:
            columns |= Column.DELIVER_AT
        if len(payloads) == 1 and not columns:
            return columns, payloads
        body = [bodies.pack_lengths(payloads), b"".join(payloads)]
        body += [bodies.pack_column(column) for column in (self.keys, self.attributes) if column is not None]
        if self.times is not None:
            body.append(bodies.pack_times(self.times))
        return columns, body

    def clear(self) -> None:
        """Begin another batch, which is empty and has a shipment of its own."""
        self.room = NOTHING
        self.payloads = []
        self.plain = True
        self.keys = self.attributes = self.times = None
        self.shipment = Shipment(self._topic, self._waiter)
