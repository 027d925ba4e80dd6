"""Delayed delivery: which messages wait for their time, kept as ranges of offsets by that time; pure.

Messages that are due within `NEAR_MS` are kept to the millisecond. Later ones are in buckets of a second, a minute or
an hour, as ranges of offsets. Shortly before its time a bucket is opened: its messages are read from the log again and
sorted more finely. So messages that were published together and wait for the same time cost 16 bytes in all; if each
waits for another time, they cost 16 bytes each. Nothing is on disk: messages that wait are unacknowledged, so a
subscription that is opened again finds them in the log.

Invariants
- an offset is in one place, and comes out once: as due, or to be sorted again
- nothing comes out as due before its time
- of a bucket that is opened too late, or while too many others are open, the messages come out without being read again
"""

from __future__ import annotations

import heapq
from typing import Final

from ister.storage.ranges import RangeSet

NEAR_MS: Final = 10_000  # messages due this soon are kept exactly
NEAR_MAX: Final = 50_000  # entries of some 150 bytes; above this, a message may come up to a second late
DELAYED_RANGES_MAX: Final = 4_000_000  # 64 MB; no new messages are looked at while so much waits
_WIDTHS_MS: Final = ((3_600_000, 1_000), (86_400_000, 60_000))  # (up to how far ahead, width of a bucket)
_WIDEST_MS: Final = 3_600_000
# A bucket of a second is opened near its begin: then its end counts as near too, or it would be filled again.
_NEARLY_MS: Final = NEAR_MS + _WIDTHS_MS[0][1]


class Delays:
    """The messages of one subscription that wait for their time; all times are unix ms."""

    def __init__(self) -> None:
        self._near: list[tuple[int, int, int]] = []  # a heap of (when, first, end)
        self._buckets: dict[tuple[int, int], RangeSet] = {}  # by (begin, width)
        self._order: list[tuple[int, int]] = []  # a heap of the same
        self.messages = 0

    def __bool__(self) -> bool:
        return bool(self._near or self._buckets)

    @property
    def ranges(self) -> int:
        """How many ranges are kept: 16 bytes each, or some 150 if they are due soon."""
        return len(self._near) + sum(map(len, self._buckets.values()))

    def add(self, when_ms: int, first: int, end: int, now_ms: int) -> None:
        """Add the messages [first, end), to wait until `when_ms`."""
        self.messages += end - first
        ahead = when_ms - now_ms
        if ahead < _NEARLY_MS and len(self._near) < NEAR_MAX:
            heapq.heappush(self._near, (when_ms, first, end))
            return
        width = next((width for up_to, width in _WIDTHS_MS if ahead <= up_to), _WIDEST_MS)
        bucket = (when_ms - when_ms % width, width)
        ranges = self._buckets.get(bucket)
        if ranges is None:
            ranges = self._buckets[bucket] = RangeSet()
            heapq.heappush(self._order, bucket)
        ranges.add(first, end)

    def take_due(self, now_ms: int) -> list[tuple[int, int]]:
        """Take out the ranges that are due, in no particular order."""
        due: list[tuple[int, int]] = []
        near = self._near
        while near and near[0][0] <= now_ms:
            _, first, end = heapq.heappop(near)
            due.append((first, end))
        while self._order and sum(self._order[0]) <= now_ms:
            due += self._buckets.pop(heapq.heappop(self._order))
        self.messages -= sum(end - first for first, end in due)
        return due

    def open_bucket(self, now_ms: int) -> list[tuple[int, int]]:
        """Take out a bucket that is near, whose messages are to be read and added again; empty if none is."""
        if not self._order or self._order[0][0] > now_ms + NEAR_MS:
            return []
        bucket = self._order[0]
        ranges = self._buckets[bucket]
        if self._is_crowded():
            return []  # too many near entries: the whole bucket comes out when its last message is due
        heapq.heappop(self._order)
        del self._buckets[bucket]
        self.messages -= ranges.total
        return list(ranges)

    def next_ms(self) -> int | None:
        """Return when `take_due` or `open_bucket` may next return something, or None."""
        times = [self._near[0][0]] if self._near else []
        if self._order:
            begin, width = self._order[0]
            times.append(begin - NEAR_MS)
            if self._is_crowded():
                times[-1] = begin + width
        return min(times, default=None)

    def _is_crowded(self) -> bool:
        bucket = self._order[0]
        narrow = bucket[1] == _WIDTHS_MS[0][1]
        return narrow and len(self._near) + self._buckets[bucket].total > NEAR_MAX

    def soonest_ms(self) -> int | None:
        """Return when the next message is due, as exactly as known, or None."""
        times = [self._near[0][0]] if self._near else []
        if self._order:
            times.append(self._order[0][0])
        return min(times, default=None)
