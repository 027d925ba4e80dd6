"""Messages in flight at a consumer, and messages that wait for redelivery; pure.

Both are kept as ranges of offsets: messages that were delivered together cost one entry. Messages that were delivered
together and lie apart are in `scattered.py`.

Invariants
- the ranges of one `InFlight` never overlap
- what `InFlight` returns (settled, expired, released) it no longer holds
- `Redelivery.take` returns the lowest offset that is due, so that in-order subscriptions stay in order
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Sequence
from itertools import chain, starmap
from typing import Final

from ister.actors.scattered import NEVER, Held, Parcel, Scattered, messages_in
from ister.backoff import doubled

__all__ = ["NEVER", "Held", "InFlight", "Parcel", "Redelivery", "messages_in"]

DELAY_MS_MAX: Final = (
    86_400_000  # a day: the longest delay of a refused message; longer waits belong elsewhere
)


def back_off_ms(failures: int, ms_min: int, ms_max: int) -> int:
    """Return how long a message with this many failures waits: doubling each time, within bounds; 0: no wait."""
    return doubled(ms_min, ms_max, failures - 1) if failures and ms_min else 0


class InFlight:
    """The unacknowledged messages of one consumer."""

    def __init__(self) -> None:
        self._firsts: list[int] = []  # ascending, in step with `_parts`
        self._parts: list[tuple[Held, float]] = []  # each with its deadline
        # A heap of (deadline, first) of those that have a deadline; it may contain settled ones.
        self._queue: list[tuple[float, int]] = []
        self._messages = 0  # in the ranges
        self._scattered = Scattered()

    def __len__(self) -> int:
        return len(self._firsts) + len(self._scattered)

    @property
    def messages(self) -> int:
        """How many messages are in flight."""
        return self._messages + len(self._scattered)

    def deliver(self, first: int, end: int, attempt: int, deadline_s: float, failures: int = 0) -> None:
        """Note a delivery of a range that is not in flight here yet."""
        self._put(Held(first, end, attempt, failures), deadline_s)
        self._bound_queue()

    def deliver_scattered(
        self,
        offsets: Sequence[int],
        attempt: int,
        failures: int = 0,
        ranges: tuple[tuple[int, int], ...] = (),
        flat: list[int] | None = None,
    ) -> None:
        """Note a delivery of messages that lie apart, and are not in flight here yet; they have no deadline."""
        self._scattered.deliver(offsets, attempt, failures, ranges, flat)

    def settle_parcels(self, flat: list[int]) -> list[Parcel] | None:
        """Take out whole scattered deliveries, of which `flat` has the ranges; None, and nothing done, if not so."""
        return self._scattered.settle_parcels(flat)

    def _put(self, held: Held, deadline_s: float) -> None:
        firsts, first = self._firsts, held.first
        if not firsts or first > firsts[-1]:
            firsts.append(first)
            self._parts.append((held, deadline_s))
        else:
            at = bisect_right(firsts, first)
            firsts.insert(at, first)
            self._parts.insert(at, (held, deadline_s))
        if deadline_s != NEVER:
            heapq.heappush(self._queue, (deadline_s, first))
        self._messages += held.end - first

    def _bound_queue(self) -> None:
        """Drop settled entries from the heap of deadlines, once they are most of it."""
        if len(self._queue) > 2 * len(self._firsts) + 64:
            parts = self._parts
            self._queue = sorted(
                (deadline_s, held.first) for held, deadline_s in parts if deadline_s != NEVER
            )

    def settle(self, first: int, end: int) -> list[Held]:
        """Take out an acknowledged or refused range; return the parts of it that were in flight here."""
        settled = self._settle_ranges(first, end)
        if self._scattered and (apart := self._scattered.take(first, end)):
            return sorted(settled + apart)
        return settled

    def settle_all(self, ranges: Sequence[tuple[int, int]]) -> int:
        """Take out many acknowledged ranges, ascending and not overlapping; return how many messages were here."""
        count = 0
        if self._scattered:
            size = messages_in(ranges)
            if size > 2 * (len(ranges) + len(self._scattered)):
                return sum(held.end - held.first for part in ranges for held in self.settle(*part))
            count = self._scattered.settle(list(chain.from_iterable(starmap(range, ranges))))
            if count == size:
                return count
        if self._firsts:
            for first, end in ranges:
                count += sum(held.end - held.first for held in self._settle_ranges(first, end))
        return count

    def _settle_ranges(self, first: int, end: int) -> list[Held]:
        firsts, parts = self._firsts, self._parts
        low = bisect_right(firsts, first) - 1
        if low < 0 or parts[low][0].end <= first:
            low += 1
        high = low
        while high < len(firsts) and firsts[high] < end:
            high += 1
        if high == low or end <= first:
            return []
        taken = parts[low:high]
        del firsts[low:high], parts[low:high]
        settled = []
        for held, deadline_s in taken:
            self._messages -= held.end - held.first
            if held.first >= first and held.end <= end:
                settled.append(held)
                continue
            settled.append(held._replace(first=max(held.first, first), end=min(held.end, end)))
            if held.first < first:
                self._put(held._replace(end=first), deadline_s)
            if held.end > end:
                self._put(held._replace(first=end), deadline_s)
        self._bound_queue()
        return settled

    def extend(self, first: int, end: int, deadline_s: float) -> int:
        """Give what is in flight of a range another deadline; return how many messages that concerns."""
        firsts, parts = self._firsts, self._parts
        at = bisect_right(firsts, first) - 1
        # exactly one delivery, the usual case
        if at >= 0 and firsts[at] == first and parts[at][0].end == end:
            parts[at] = (parts[at][0], deadline_s)
            heapq.heappush(self._queue, (deadline_s, first))
            self._bound_queue()
            return end - first
        extended = self._settle_ranges(first, end)
        for held in extended:
            self._put(held, deadline_s)
        self._bound_queue()
        count = sum(held.end - held.first for held in extended)
        if self._scattered:
            apart = [offset for offset in range(first, end) if offset in self._scattered]
            if apart:
                count += self._scattered.extend(apart, deadline_s)
        return count

    def extend_scattered(self, offsets: Sequence[int], deadline_s: float) -> None:
        """Give those of some messages that are in flight another deadline."""
        if self._scattered.extend(offsets, deadline_s) < len(offsets) and self._firsts:
            for offset in offsets:
                if offset not in self._scattered:
                    self.extend(offset, offset + 1, deadline_s)

    def expire(self, now_s: float) -> list[Held]:
        """Take out and return what was due by `now_s`."""
        expired: list[Held] = []
        while self._queue:  # `settle` may replace the list
            deadline_s, first = self._queue[0]
            at = bisect_right(self._firsts, first) - 1
            current = at >= 0 and self._firsts[at] == first and self._parts[at][1] == deadline_s
            if current and deadline_s > now_s:
                break
            heapq.heappop(self._queue)
            if current:
                expired += self._settle_ranges(first, self._parts[at][0].end)
        return expired + self._scattered.expire(now_s)

    def next_deadline_s(self) -> float | None:
        """Return when `expire` may next return something, or None."""
        apart = self._scattered.oldest_deadline_s()
        if not (self._firsts and self._queue):
            return apart
        return self._queue[0][0] if apart is None else min(self._queue[0][0], apart)

    def oldest_deadline_s(self) -> float | None:
        """Return the deadline of the range that has been in flight for longest, or None."""
        while self._queue:
            deadline_s, first = self._queue[0]
            at = bisect_right(self._firsts, first) - 1
            if at >= 0 and self._firsts[at] == first and self._parts[at][1] == deadline_s:
                apart = self._scattered.oldest_deadline_s()
                return deadline_s if apart is None else min(deadline_s, apart)
            heapq.heappop(self._queue)
        return self._scattered.oldest_deadline_s()

    def release_waiting(self) -> list[Held]:
        """Take out and return the ranges without a deadline: they wait in the client."""
        found = [
            held
            for waiting, deadline_s in list(self._parts)
            if deadline_s == NEVER
            for held in self._settle_ranges(waiting.first, waiting.end)
        ]
        return sorted(found + self._scattered.release(waiting=True, taken=False))

    def release_taken(self) -> list[Held]:
        """Take out and return the ranges with a deadline: the program has them in hand."""
        found = [
            held
            for taken, deadline_s in list(self._parts)
            if deadline_s != NEVER
            for held in self._settle_ranges(taken.first, taken.end)
        ]
        return sorted(found + self._scattered.release(waiting=False, taken=True))

    def release(self) -> list[Held]:
        """Take out and return everything, lowest offset first."""
        released = [held for held, _ in self._parts]
        if self._scattered:
            released = sorted(released + self._scattered.release(waiting=True, taken=True))
        self.__init__()  # type: ignore[misc]
        return released


class Redelivery:
    """The messages that wait to be redelivered, now or after a delay."""

    def __init__(self) -> None:
        self._due: list[Held] = []  # heap by offset
        self._delayed: list[tuple[float, Held]] = []  # heap by time
        self._later = 0  # messages in it
        self.messages = 0

    def add(self, held: Held, ready_at_s: float, now_s: float) -> None:
        """Queue a range, to be delivered for the attempt it names."""
        self.messages += held.end - held.first
        if ready_at_s > now_s:
            heapq.heappush(self._delayed, (ready_at_s, held))
            self._later += held.end - held.first
        else:
            heapq.heappush(self._due, held)

    def take(self, now_s: float, messages_max: int) -> Held | None:
        """Take the lowest range that is due, at most `messages_max` messages of it; None if none is."""
        while self._delayed and self._delayed[0][0] <= now_s:
            ready = heapq.heappop(self._delayed)[1]
            self._later -= ready.end - ready.first
            heapq.heappush(self._due, ready)
        if not self._due:
            return None
        held = heapq.heappop(self._due)
        if held.end - held.first > messages_max:
            cut = held.first + messages_max
            heapq.heappush(self._due, held._replace(first=cut))
            held = held._replace(end=cut)
        self.messages -= held.end - held.first
        return held

    @property
    def ranges(self) -> int:
        """How many ranges are kept: memory grows with them, not with the messages in them."""
        return len(self._due) + len(self._delayed)

    @property
    def due_messages(self) -> int:
        """How many messages may be delivered at once."""
        return self.messages - self._later

    def next_ready_s(self) -> float | None:
        """Return when the next delayed range is due, or None when none is delayed."""
        return self._delayed[0][0] if self._delayed else None

    def __bool__(self) -> bool:
        return bool(self._due or self._delayed)
