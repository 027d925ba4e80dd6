"""Places for messages, in which threads put them down without the client's lock.

A producer's fast path draws a ticket, puts its message into the place of that number, and then looks whether the lane
is still the one that its batch has open. Whoever closes a lane takes it away first, and then looks which tickets were
drawn and what lies in their places. So either it finds the message, or the thread sees that it may have come too late,
and asks under the lock (`holds`). The order of the tickets is the order of the messages. Pure.

Invariants
- a ticket is drawn once: a message has its place to itself
- what a closed lane does not hold is not in its batch: whoever put it down puts it down again
- what fits by number fits by size: every message in a lane has at most `longest` bytes
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import repeat
from operator import length_hint
from typing import Final

from ister.receipts import Shipment

# Drawing a ticket is one step of a range's iterator, and one step only because the interpreter's lock is held
# meanwhile. Where there is no such lock, no lane is opened, and every message takes the client's lock.
_has_lock: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)
LANES: Final = _has_lock()


class Lane:
    """One lane. The fast path uses `longest`, `tickets` and `places`; the rest needs the client's lock."""

    __slots__ = ("_end", "_first", "holes", "longest", "places", "room", "shipment", "tickets")

    def __init__(self, shipment: Shipment, before: list[bytes], more: int, longest: int, room: int) -> None:
        """There is room for `more` messages after those `before`, all of which leave with `shipment`.

        `room` is what the batch may still take in bytes, without what is put down here.
        """
        self.shipment = shipment
        self.longest = longest
        self.room = room
        self.places: list[bytes | None] = [*before, *repeat(None, more)]
        self.tickets: Iterator[int] = iter(range(len(before), len(before) + more))
        self.holes: list[int] = []  # of a closed one: tickets that were drawn, and whose message had not come
        self._first = len(before)
        self._end = -1  # of a closed one: the first ticket that was not drawn in time

    @property
    def drawn(self) -> int:
        """How many tickets were drawn; their messages may still be on the way to their places."""
        return len(self.places) - self._first - length_hint(self.tickets)

    def close(self) -> tuple[list[bytes], list[int]]:
        """Return all messages of the batch, and the lengths of those put down here.

        The lane was taken away before. Closing again has the same result: Ctrl-C may have interrupted the first.
        """
        if self._end < 0:
            self._end = self._first + self.drawn
        found = self.places[: self._end]
        self.holes = []
        try:
            lengths = list(map(len, found[self._first :]))  # type: ignore[arg-type]
        except TypeError:  # a thread is between its ticket and its place
            self.holes = [index for index, message in enumerate(found) if message is None]
            found = [message for message in found if message is not None]
            lengths = list(map(len, found[self._first :]))  # type: ignore[arg-type]
        return found, lengths  # type: ignore[return-value]

    def holds(self, index: int) -> bool:
        """Whether a closed lane has the message of this ticket."""
        return index < self._end and index not in self.holes


NO_LANE: Final = Lane(
    Shipment("", None), [], 0, -1, 0
)  # for no message: the next one takes the path with all checks
