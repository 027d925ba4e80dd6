"""Messages in flight that were delivered together and lie apart in the log; pure.

A Key-Shared consumer has one message here and one there. Kept as ranges, each would be an entry with a deadline of its
own. Here the messages of a delivery have one record, a `Parcel`, and each message a place in one dictionary: what
happens to a whole delivery, or to everything in an acknowledgment, takes a call or two. As long as nothing happens to
single messages, which most deliveries never see, a parcel is kept whole, and its messages have no place of their own.

Invariants
- a message is in one parcel at a time: a whole one, or that which `_of` says; the list in a parcel may name more
- `left` is how many messages are in flight of a parcel
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from typing import Final, NamedTuple

# the deadline of messages that wait in a client: its program does not have them yet
NEVER: Final = float("inf")


class Held(NamedTuple):
    """A half-open range of offsets, delivered together for the `attempt`-th time after `failures` failures."""

    first: int
    end: int
    attempt: int
    failures: int = 0


def messages_in(ranges: Sequence[tuple[int, int]]) -> int:
    """Return how many messages are in half-open ranges."""
    flat = list(chain.from_iterable(ranges))
    return sum(flat[1::2]) - sum(flat[::2])


class Parcel:
    """Messages that were delivered together and have one deadline.

    Their `ranges`, also as one `flat` list, are known of a delivery, and not of a part of it.
    """

    __slots__ = ("attempt", "deadline_s", "failures", "flat", "left", "offsets", "ranges")

    def __init__(
        self,
        offsets: Sequence[int],
        attempt: int,
        failures: int,
        deadline_s: float,
        ranges: tuple[tuple[int, int], ...] = (),
        flat: list[int] | None = None,
    ) -> None:
        self.offsets = offsets
        self.ranges = ranges
        self.flat = flat
        self.attempt = attempt
        self.failures = failures
        self.deadline_s = deadline_s
        self.left = len(offsets)


class Scattered:
    """The scattered messages of one consumer that are in flight."""

    def __init__(self) -> None:
        self._of: dict[int, Parcel] = {}
        self._whole: dict[int, Parcel] = {}  # by their first message; not in `_of`
        self._in_whole = 0  # messages
        self._queue: list[
            tuple[float, int, Parcel]
        ] = []  # a heap by deadline; it may contain settled parcels
        self._ticket = 0

    def __len__(self) -> int:
        return len(self._of) + self._in_whole

    def __contains__(self, offset: int) -> bool:
        return offset in self._open()

    def deliver(
        self,
        offsets: Sequence[int],
        attempt: int,
        failures: int,
        ranges: tuple[tuple[int, int], ...] = (),
        flat: list[int] | None = None,
    ) -> None:
        """Note a delivery of messages that are not in flight here yet; they have no deadline.

        With their ranges, also as one list, `settle_parcels` knows them again.
        """
        self._whole[offsets[0]] = Parcel(offsets, attempt, failures, NEVER, ranges, flat)
        self._in_whole += len(offsets)

    def _open(self) -> dict[int, Parcel]:
        """Give each message its place, because something is about to happen to single ones."""
        of = self._of
        if self._whole:
            for parcel in self._whole.values():
                of.update(dict.fromkeys(parcel.offsets, parcel))
            self._whole.clear()
            self._in_whole = 0
        return of

    def settle_parcels(self, flat: list[int]) -> list[Parcel] | None:
        """Take out the deliveries whose ranges `flat` has, one after the other; None, and nothing done, if not so."""
        whole = self._whole
        found: list[Parcel] = []
        at, count = 0, len(flat)
        while at < count:
            parcel = whole.get(flat[at])
            if parcel is None or parcel.flat is None or (at and flat[at] <= flat[at - 1]):
                return None
            behind = at + len(parcel.flat)
            if flat[at:behind] != parcel.flat:
                return None
            found.append(parcel)
            at = behind
        for parcel in found:
            del whole[parcel.offsets[0]]
            self._in_whole -= parcel.left
            parcel.left = 0
        return found

    def extend(self, offsets: Sequence[int], deadline_s: float) -> int:
        """Give those of the messages that are in flight another deadline; return how many they are."""
        parcel = self._whole.get(offsets[0])
        if parcel is None or parcel.offsets is not offsets:
            parcel = self._open().get(offsets[0])
        of = self._of
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
        if len(queue) > 64 and len(queue) > 2 * (len(self._of) + len(self._whole)):
            queue[:] = [each for each in queue if each[2].left and each[2].deadline_s == each[0]]
            heapq.heapify(queue)

    def settle(self, offsets: Sequence[int]) -> int:
        """Take out those of the messages that are in flight; return how many they are."""
        found = list(map(self._open().pop, offsets, repeat(None)))
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
        of = self._open()
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
            of = self._open()
            expired += self._take(offset for offset in parcel.offsets if of.get(offset) is parcel)
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
        of = self._open()
        return self._take(
            sorted(offset for offset in of if (waiting if of[offset].deadline_s == NEVER else taken))
        )
