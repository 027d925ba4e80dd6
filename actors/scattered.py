"""Messages in flight that were delivered together and lie apart in the log; pure.

A Key-Shared consumer has one message here and one there. Kept as ranges, each would be an entry with a deadline of its
own. Here the messages of a delivery have one record, a `Parcel`, and each message a place in one dictionary: what
happens to a whole delivery, or to everything in an acknowledgment, takes a call or two.

Invariants
- a message is in one parcel at a time, that which `_of` says; the list in a parcel may name more
- `left` is how many messages `_of` has of a parcel
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Final, NamedTuple

# the deadline of messages that wait in a client: its program does not have them yet
NEVER: Final = float("inf")


class Held(NamedTuple):
    """A half-open range of offsets, delivered together for the `attempt`-th time after `failures` failures."""

    first: int
    end: int
    attempt: int
    failures: int = 0


class Parcel:
    """Messages that were delivered together and have one deadline."""

    __slots__ = ("attempt", "deadline_s", "failures", "left", "offsets")

    def __init__(self, offsets: Sequence[int], attempt: int, failures: int, deadline_s: float) -> None:
        self.offsets = offsets
        self.attempt = attempt
        self.failures = failures
        self.deadline_s = deadline_s
        self.left = len(offsets)


class Scattered:
    """The scattered messages of one consumer that are in flight."""

    def __init__(self) -> None:
        self._of: dict[int, Parcel] = {}
        self._queue: list[
            tuple[float, int, Parcel]
        ] = []  # a heap by deadline; it may contain settled parcels
        self._ticket = 0

    def __len__(self) -> int:
        return len(self._of)

    def __contains__(self, offset: int) -> bool:
        return offset in self._of

    def deliver(self, offsets: Sequence[int], attempt: int, failures: int) -> None:
        """Note a delivery of messages that are not in flight here yet; they have no deadline."""
        self._of.update(dict.fromkeys(offsets, Parcel(offsets, attempt, failures, NEVER)))

    def extend(self, offsets: Sequence[int], deadline_s: float) -> int:
        """Give those of the messages that are in flight another deadline; return how many they are."""
        of = self._of
        parcel = of.get(offsets[0])
        if parcel is not None and parcel.offsets is offsets and parcel.left == len(offsets):
            parcel.deadline_s = deadline_s
            self._await(parcel)
            return len(offsets)
        kept: dict[tuple[int, int], list[int]] = {}
        for offset in offsets:
            if (parcel := of.get(offset)) is not None:
                parcel.left -= 1
                kept.setdefault((parcel.attempt, parcel.failures), []).append(offset)
        for (attempt, failures), some in kept.items():
            parcel = Parcel(some, attempt, failures, deadline_s)
            of.update(dict.fromkeys(some, parcel))
            self._await(parcel)
        return sum(map(len, kept.values()))

    def _await(self, parcel: Parcel) -> None:
        """Queue a parcel by its deadline; drop settled ones once they are most of the queue."""
        self._ticket += 1
        queue = self._queue
        heapq.heappush(queue, (parcel.deadline_s, self._ticket, parcel))
        if len(queue) > 64 and len(queue) > 2 * len(self._of):
            queue[:] = [each for each in queue if each[2].left and each[2].deadline_s == each[0]]
            heapq.heapify(queue)

    def settle(self, offsets: Sequence[int]) -> int:
        """Take out those of the messages that are in flight; return how many they are."""
        found = list(map(self._of.pop, offsets, repeat(None)))
        if found and found[0] is not None and found.count(found[0]) == len(found):
            found[0].left -= len(found)
            return len(found)
        counts = Counter(found)
        none = counts.pop(None, 0)
        for parcel, count in counts.items():
            if parcel is not None:
                parcel.left -= count
        return len(found) - none

    def take(self, first: int, end: int) -> list[Held]:
        """Take out what is in flight of [first, end), and return it as ranges."""
        of = self._of
        if end - first > len(of):
            offsets = sorted(offset for offset in of if first <= offset < end)
        else:
            offsets = [offset for offset in range(first, end) if offset in of]
        return self._take(offsets)

    def _take(self, offsets: Iterable[int]) -> list[Held]:
        """Take out messages that are in flight, in ascending order, and return them as ranges."""
        taken: list[Held] = []
        for offset in offsets:
            parcel = self._of.pop(offset)
            parcel.left -= 1
            last = taken[-1] if taken else None
            if last is not None and last[1:] == (offset, parcel.attempt, parcel.failures):
                taken[-1] = last._replace(end=offset + 1)
            else:
                taken.append(Held(offset, offset + 1, parcel.attempt, parcel.failures))
        return taken

    def expire(self, now_s: float) -> list[Held]:
        """Take out and return what was due by `now_s`."""
        expired: list[Held] = []
        while (due := self.oldest_deadline_s()) is not None and due <= now_s:
            parcel = heapq.heappop(self._queue)[2]
            expired += self._take(offset for offset in parcel.offsets if self._of.get(offset) is parcel)
        return expired

    def oldest_deadline_s(self) -> float | None:
        """Return the first deadline, or None."""
        queue = self._queue
        while queue:
            deadline_s, _, parcel = queue[0]
            if parcel.left and parcel.deadline_s == deadline_s:
                return deadline_s
            heapq.heappop(queue)
        return None

    def release(self, *, waiting: bool, taken: bool) -> list[Held]:
        """Take out and return, in ascending order, the messages without a deadline, those with one, or both."""
        of = self._of
        return self._take(
            sorted(offset for offset in of if (waiting if of[offset].deadline_s == NEVER else taken))
        )
