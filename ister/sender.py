"""The fast path of a producer: one call a message, without the client's lock where that can be.

It is a base of the producer that programs hold, and has a module of its own because it may be compiled. Pure: the lock
is handed in.

Invariants
- a message that a lane took is in its batch, or is sent again: a thread looks whether the lane is still the one of the
  batch after it has put its message down
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from ister.compiling import Unchecked, mypyc_attr
from ister.gathering import MESSAGE_ENTRY_BYTES, Gathering
from ister.lane import Lane
from ister.receipts import Receipt, receipt_of
from ister.requests import Duration

if TYPE_CHECKING:
    import threading

When = int | datetime  # unix milliseconds, or a datetime (one without a time zone is local time)


@mypyc_attr(allow_interpreted_subclasses=True)
class Sender:
    """What a producer does for every message."""

    def __init__(self, lock: threading.Lock, gathered: Gathering) -> None:
        self._lock = lock
        self._gathered = gathered

    def send(
        self,
        payload: bytes | Unchecked,
        *,
        key: bytes | Unchecked | None = None,
        attributes: Mapping[str, str] | None = None,
        deliver_at: When | None = None,
        delay: Duration | None = None,
        sequence: int | Unchecked | None = None,
        timeout: float | Unchecked | None = None,
    ) -> Receipt:
        """Send one message and return its receipt.

        Subscriptions deliver it at `deliver_at` (unix milliseconds or a `datetime`) or after `delay` (30, "15m", a
        `timedelta`); other messages do not wait for it. A `datetime` without a time zone is local time. Readers do not
        wait, and a non-reliable topic cannot delay. `sequence` is the message's number, for a named producer: a number
        that was stored before, by this run of the program or an earlier one, is not stored again, and its receipt says
        `duplicate`. Numbers may be left out, at the cost of a round trip each time. Without `sequence`, messages are
        numbered consecutively. Waits only while the producer's window is full, at most `timeout` seconds (`None`:
        without a limit). Raises `TimeoutExpiredError` (the message was not sent), `UsageError` (its type or size),
        `ClosedError`, or the error with which the broker closed this producer.
        """
        if (
            key is None
            and attributes is None
            and deliver_at is None
            and delay is None
            and sequence is None
            and type(payload) is bytes
        ):
            gathered = self._gathered
            lane = gathered.lane
            if len(payload) <= lane.longest:
                for index in lane.tickets:  # one ticket, if there is one
                    lane.places[index] = payload
                    if gathered.lane is not lane:
                        if self._came_late(lane, index):
                            break
                        return receipt_of(lane.shipment, index)
                    receipt = Receipt()  # as `receipt_of` does, without the call
                    receipt.shipment = lane.shipment
                    receipt.index = index
                    return receipt
            if gathered.room > 0 and (found := self._join(payload)) is not None:
                return found
        due = 0 if deliver_at is None and delay is None else self.due(deliver_at, delay)
        return self.send_carefully(payload, key, attributes, due, sequence, timeout)

    def send_fast(self, payload: bytes | Unchecked) -> Receipt | None:
        """Add a message to a batch that was begun and has room, else return `None`."""
        if type(payload) is bytes:
            gathered = self._gathered
            lane = gathered.lane
            if len(payload) <= lane.longest:
                for index in lane.tickets:
                    lane.places[index] = payload
                    if gathered.lane is not lane and self._came_late(lane, index):
                        break
                    return receipt_of(lane.shipment, index)
            return self._join(payload)
        return None

    def _came_late(self, lane: Lane, index: int) -> bool:
        """Whether a lane was closed before a message came to its place there: it is to be sent again."""
        with self._lock:
            self._gathered.close_lane()  # Ctrl-C may have interrupted it
            return not lane.holds(index)

    def _join(self, payload: bytes) -> Receipt | None:
        """Add a message to a batch that was begun and has room, and open another lane there."""
        gathered = self._gathered
        with self._lock:
            gathered.close_lane()
            if gathered.room < len(payload) + MESSAGE_ENTRY_BYTES or not gathered.plain:
                return None
            receipt = receipt_of(gathered.shipment, gathered.add(payload, b"", b""))
            gathered.open_lane()
        return receipt

    def due(self, deliver_at: When | None, delay: Duration | None) -> int:
        """Return when a message is to be delivered, in unix milliseconds; 0: at once."""
        raise NotImplementedError

    def send_carefully(
        self,
        payload: bytes | Unchecked,
        key: bytes | Unchecked | None,
        attributes: Mapping[str, str] | None,
        due: int,
        sequence: int | Unchecked | None,
        timeout: float | Unchecked | None,
    ) -> Receipt:
        """Send a message that begins or ends a batch, or has columns or a number."""
        raise NotImplementedError
