"""What a subscription has acknowledged of one log, in memory.

- Everything below the low watermark is acknowledged; above it, exactly what the ranges hold.
- The number of failures of an unacknowledged message, and the end of its wait, are kept beside it, for a bounded
  number of messages. If some of this is lost, a message is tried more often, or sooner, never less.

No bytes and no files: `cursor_format.py` has the bytes, `cursor_journal.py` the file that keeps a cursor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ister.storage.marked_ranges import MarkedRanges
from ister.storage.ranges import RangeSet
from ister.words import counted

# Messages whose failures are kept: some 5 MB in memory, 64 bytes each on disk at most.
FAILURES_MAX: Final = 20_000


class Cursor:
    """The acknowledged messages of one log: everything below `low`, and `ranges` above it."""

    __slots__ = ("_above", "failed", "low", "start", "waits")

    def __init__(self, start: int, low: int | None = None, ranges: RangeSet | None = None) -> None:
        self.start = start
        self.low = start if low is None else low
        self._above = MarkedRanges(ranges)
        # offset: (deliveries, failures), of unacknowledged messages
        self.failed: dict[int, tuple[int, int]] = {}
        # offset: (not before (unix ms), length of that wait when it was requested (ms; 0: not known)), of some
        # failed messages
        self.waits: dict[int, tuple[int, int]] = {}

    def acknowledge(self, first: int, end: int) -> int:
        """Acknowledge [first, end); return how many of them were not acknowledged before."""
        low = self.low
        if end <= low:
            return 0
        if self.failed:
            self._forget_failures(first, end)
        # In order, with nothing above: the usual case.
        above = self._above
        if first <= low and not above.is_dense and ((next_ := above.first_range) is None or next_ > end):
            self.low = end
            return end - low
        new = above.add(first if first > low else low, end)
        if first <= low:
            self.low = above.pop_through(low)
        return new

    def acknowledge_all(self, ranges: Sequence[tuple[int, int]]) -> int:
        """Acknowledge many ranges, which ascend and do not overlap; return how many messages were not before."""
        low = self.low
        if self.failed or ranges[0][0] < low:
            return sum(self.acknowledge(first, end) for first, end in ranges)
        new = self._above.add_all(ranges)
        if ranges[0][0] == low:
            self.low = self._above.pop_through(low)
        return new

    @property
    def ranges(self) -> RangeSet:
        """What is acknowledged above `low`; not to be changed."""
        return self._above.view()

    @property
    def holes(self) -> int:
        """The memory that the ranges take, in ranges."""
        return self._above.holes

    @property
    def ranges_at_most(self) -> int:
        """How many ranges there may be: those that are kept as bytes are not counted for this."""
        return self._above.ranges_at_most

    @property
    def end(self) -> int:
        """The offset after the highest one that is acknowledged."""
        return max(self.low, self._above.end or 0)

    def end_of(self, offset: int) -> int:
        """Return the first offset from `offset` on that is not acknowledged."""
        return self._above.end_of(max(offset, self.low))

    def fail(self, first: int, end: int, deliveries: int, failures: int) -> bool:
        """Record how often messages were delivered and failed; return False if no more failures can be kept."""
        if len(self.failed) + end - first > FAILURES_MAX and (
            end - first > FAILURES_MAX
            or len(self.failed) + sum(offset not in self.failed for offset in range(first, end))
            > FAILURES_MAX
        ):
            return False
        for begin, stop in self.pending(first, end):
            for offset in range(begin, stop):
                self.failed[offset] = (deliveries, failures)
        return True

    def wait(self, first: int, end: int, until_ms: int, wait_ms: int = 0) -> None:
        """Record until when failed messages wait (0: no more), and how long the wait is.

        Nothing is recorded of messages without a failure, so the number of waits is bounded.
        """
        failed, waits = self.failed, self.waits
        for offset in range(first, end) if end - first <= len(failed) else sorted(failed):
            if until_ms and first <= offset < end and offset in failed:
                waits[offset] = until_ms, wait_ms
            elif first <= offset < end:
                waits.pop(offset, None)

    def _forget_failures(self, first: int, end: int) -> None:
        failed = self.failed
        if end - first <= len(failed):
            for offset in range(first, end):
                if failed.pop(offset, None) is not None:
                    self.waits.pop(offset, None)
        else:
            self.failed = {offset: known for offset, known in failed.items() if not first <= offset < end}
            self.waits = {offset: wait for offset, wait in self.waits.items() if not first <= offset < end}

    def is_acknowledged(self, offset: int) -> bool:
        """Return whether one offset is acknowledged."""
        return offset < self.low or offset in self._above

    def pending(self, first: int, end: int) -> list[tuple[int, int]]:
        """Return the parts of [first, end) that are not acknowledged."""
        return self._above.gaps(max(first, self.low), end)

    def unacknowledged(self, end: int) -> int:
        """Return how many offsets below `end` are not acknowledged."""
        return max(0, end - self.low - self.ranges.overlap(self.low, end))

    def copy(self) -> Cursor:
        """Return an independent copy."""
        twin = Cursor(self.start, self.low)
        twin._above = self._above.copy()
        twin.failed, twin.waits = dict(self.failed), dict(self.waits)
        return twin

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Cursor):
            return NotImplemented
        mine = (self.start, self.low, self.ranges, self.failed, self.waits)
        return mine == (other.start, other.low, other.ranges, other.failed, other.waits)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Cursor(low {self.low}, {counted(len(self.ranges), 'range')} above)"
