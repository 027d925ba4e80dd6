"""The batch that a producer gathers: messages put in one by one, and the frames they are sent as.

Knows no sequence and no session: see `publication.py`, which seals it. Pure: no socket, clock or thread lives here. The
caller holds the client's lock.

Invariants
- `room` is what the batch may still take, and never more than what its frames leave: it is `NOTHING` until `begin`
- a lane is opened only in a batch that has begun, so that what is put down there is sent in time
- the columns of a batch are all of its length, or absent
"""

from __future__ import annotations

from typing import Final

from ister import bodies
from ister.lane import LANES, NO_LANE, Lane
from ister.published import Waiter
from ister.receipts import Shipment
from ister.wire import Column

MESSAGE_ENTRY_BYTES: Final = 4  # a message's place in the length table
TIME_BYTES: Final = 8  # a message's time of delivery, where any message of the batch has one
PLACES_MIN: Final = 64  # places of a lane, at least, if they fit
NOTHING: Final = -1  # room for nothing: the next message takes the path with all checks


# A batch costs the broker tens of microseconds, however few messages it has. While many producers of a connection have
# batches on their way, each waits for its own for longer than a batch lingers, so that larger ones cost nobody time.
AWAITING_USUAL: Final = 10  # producers that wait so; with twice as many a batch lingers twice as long
STRETCHED_S_MAX: Final = 0.1


def stretched(linger_s: float, awaiting: int) -> float:
    """Return how long a batch lingers while so many producers of its connection wait for receipts."""
    if awaiting <= AWAITING_USUAL:
        return linger_s
    return max(linger_s, min(STRETCHED_S_MAX, linger_s * awaiting / AWAITING_USUAL))


class Gathering:
    """One producer's batch. While a lane is open, the producer's fast path puts messages there, without the lock.

    Everything else that is put into the batch, or asked of it, needs the lane closed, except `count` and `size`.
    """

    __slots__ = (
        "_begun_with",
        "_lengths",
        "_longest",
        "_topic",
        "_usual",
        "_waiter",
        "attributes",
        "batch_bytes",
        "keys",
        "lane",
        "lanes",
        "linger_at",
        "linger_s",
        "opened",
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
        self.lanes = LANES  # whether there may be any
        self.lane = NO_LANE  # where the fast path puts messages down
        self.opened = NO_LANE  # the lane that was opened last and is not taken in
        self._lengths: list[int] = []
        self._longest = 0  # how long messages get, of late; longer ones take the path with all checks
        self._usual = PLACES_MIN  # how many places a lane has at most: twice the messages of the last batch
        self._topic = topic
        self._waiter: Waiter[Shipment] | None = None
        self._begun_with = 0

    def wait_with(self, waiter: Waiter[Shipment]) -> None:
        """Have receipts ask this one to wait for them; called once, before anything is gathered."""
        self._waiter = waiter
        self.shipment = Shipment(self._topic, waiter)

    # ---- the lane ------------------------------------------------------------------------------------------------

    def open_lane(self) -> None:
        """Let the fast path put messages into this batch, if they are plain and a few of them fit."""
        more = min(self.room // (self._longest + MESSAGE_ENTRY_BYTES), self._usual)
        if self.lanes and more > 0 and self.plain and self.payloads and not self.shipment.holes:
            self.opened = Lane(self.shipment, self.payloads, more, self._longest, self.room)
            self.lane = self.opened

    def close_lane(self) -> None:
        """Take in what the fast path put down, and let it put down no more."""
        lane = self.opened
        if lane is NO_LANE:
            return
        self.lane = NO_LANE  # from here on, a thread sees that it may have come too late
        found, lengths = lane.close()
        # From the lane's own numbers: when Ctrl-C comes in between, all of it is done again.
        self._lengths[len(found) - len(lengths) :] = lengths
        self.room = lane.room - sum(lengths) - MESSAGE_ENTRY_BYTES * len(lengths)
        self.shipment.holes = lane.holes
        self.payloads = found
        self.opened = NO_LANE

    def shut(self) -> None:
        """Take nothing more: every message takes the path with all checks, which refuse it."""
        self.lane = self.opened = NO_LANE
        self.room = NOTHING

    # ---- gathering -----------------------------------------------------------------------------------------------

    def begin(self, now: float, linger_s: float | None = None, room: int | None = None) -> None:
        """Take in the first message, which is about to come; `linger_s` if the batch may wait longer than usual.

        `room` is how many bytes the batch may have, if not `batch_bytes`.
        """
        self.linger_at = now + (self.linger_s if linger_s is None else linger_s)
        self.room = self._begun_with = self.batch_bytes if room is None else room

    def add(self, payload: bytes, key: bytes, attributes: bytes, deliver_at: int = 0) -> int:
        """Put a message into the batch and return its index; empty columns (and the time 0) are absent."""
        place = len(self.payloads)
        if key or self.keys is not None:
            if self.keys is None:
                self.keys = [b""] * place
                self.room -= MESSAGE_ENTRY_BYTES * place
            self.keys.append(key)
            self.room -= len(key) + MESSAGE_ENTRY_BYTES
        if attributes or self.attributes is not None:
            if self.attributes is None:
                self.attributes = [b""] * place
                self.room -= MESSAGE_ENTRY_BYTES * place
            self.attributes.append(attributes)
            self.room -= len(attributes) + MESSAGE_ENTRY_BYTES
        if deliver_at or self.times is not None:
            if self.times is None:
                self.times = [0] * place
                self.room -= TIME_BYTES * place
            self.times.append(deliver_at)
            self.room -= TIME_BYTES
        self.plain = self.keys is None and self.attributes is None and self.times is None
        length = len(payload)
        if length > self._longest:  # a single long message must not make the lanes of all others short
            self._longest = min(length, 2 * self._longest + PLACES_MIN)
        self._lengths.append(length)
        self.payloads.append(payload)
        self.room -= length + MESSAGE_ENTRY_BYTES
        return self.shipment.index_of(place) if self.shipment.holes else place

    def extend(self, payloads: list[bytes], lengths: list[int], size: int) -> int:
        """Put messages into a batch that has no columns and room for them, and return the first one's index."""
        place = len(self.payloads)
        self._lengths += lengths
        self.payloads += payloads
        self.room -= size
        return self.shipment.index_of(place)

    @property
    def count(self) -> int:
        """How many messages there are."""
        return len(self.payloads) if self.lane is NO_LANE else len(self.payloads) + self.lane.drawn

    def size(self) -> int:
        """Return how many body bytes there are, with those of the columns; with an open lane, at most."""
        if not self.payloads:
            return 0
        size, lane = self._begun_with - self.room, self.lane
        return size if lane is NO_LANE else size + lane.drawn * (lane.longest + MESSAGE_ENTRY_BYTES)

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
        lengths = self._lengths if len(self._lengths) == len(payloads) else list(map(len, payloads))  # Ctrl-C
        body = [bodies.table_of(lengths), b"".join(payloads)]
        body += [bodies.pack_column(column) for column in (self.keys, self.attributes) if column is not None]
        if self.times is not None:
            body.append(bodies.pack_times(self.times))
        return columns, body

    def clear(self) -> None:
        """Begin another batch, which is empty and has a shipment of its own; the lane was closed."""
        self.lane = self.opened = NO_LANE
        self.room = NOTHING
        if len(self.payloads) > 1:
            self._usual = max(PLACES_MIN, 2 * len(self.payloads))
            self._longest -= self._longest >> 2
        self._lengths = []
        self.payloads = []
        self.plain = True
        self.keys = self.attributes = self.times = None
        self.shipment = Shipment(self._topic, self._waiter)
