"""A set of offsets that is added to in many small pieces: ranges, and bytes where the pieces are dense. Pure.

Consumers that share a log by its keys acknowledge one message here and one there: what they have acknowledged between
them is thousands of ranges, into whose middle each acknowledgment goes. So a stretch of `CHUNK` offsets that is added
to in many pieces is a byte for each offset; the rest is a `RangeSet`.

Invariants
- an offset is in one place: in the chunk of its stretch, if there is one, else in the ranges
- nothing is kept below what `pop_through` returned last
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Final

from ister.storage.ranges import RangeSet

CHUNK: Final = 4096
# Ranges that are added to one stretch at once, from which on it becomes a chunk: up to 16 times the bytes of ranges.
DENSE: Final = 16
CHUNK_HOLES: Final = CHUNK // 16  # a chunk takes the memory of so many ranges
CHUNK_RANGES_MAX: Final = CHUNK // 2  # and has at most so many
_ONES: Final = bytes([1]) * CHUNK


class MarkedRanges:
    """A set of offsets, as ranges and as chunks of bytes."""

    __slots__ = ("_chunks", "_ranges", "_view")

    def __init__(self, ranges: RangeSet | None = None) -> None:
        self._ranges = RangeSet() if ranges is None else ranges
        self._chunks: dict[int, bytearray] = {}  # by the number of the stretch
        self._view: RangeSet | None = None  # everything as ranges, as long as nothing changes

    def __bool__(self) -> bool:
        return bool(self._ranges) or any(1 in chunk for chunk in self._chunks.values())

    def __contains__(self, offset: int) -> bool:
        chunk = self._chunks.get(offset // CHUNK)
        return offset in self._ranges if chunk is None else bool(chunk[offset % CHUNK])

    @property
    def holes(self) -> int:
        """The memory it takes, in ranges."""
        return len(self._ranges) + CHUNK_HOLES * len(self._chunks)

    @property
    def ranges_at_most(self) -> int:
        """How many ranges `view` may have."""
        return len(self._ranges) + CHUNK_RANGES_MAX * len(self._chunks)

    @property
    def is_dense(self) -> bool:
        """Whether there are chunks."""
        return bool(self._chunks)

    @property
    def first_range(self) -> int | None:
        """The lowest offset of the ranges, without the chunks."""
        return self._ranges.first

    def view(self) -> RangeSet:
        """Return everything as ranges; the caller must not change them."""
        if not self._chunks:
            return self._ranges
        if self._view is None:
            self._view = RangeSet(sorted([*self._ranges, *self._runs()]))
        return self._view

    def _runs(self) -> Iterator[tuple[int, int]]:
        for number, chunk in self._chunks.items():
            base, at = number * CHUNK, chunk.find(1)
            while at >= 0:
                stop = chunk.find(0, at)
                if stop < 0:
                    stop = CHUNK
                yield base + at, base + stop
                at = chunk.find(1, stop)

    # ---- adding --------------------------------------------------------------------------------------------------

    def add(self, first: int, end: int) -> int:
        """Add [first, end); return how many of its offsets were new."""
        if not self._chunks or end <= first:
            return self._ranges.add(first, end)
        self._view = None
        new, at = 0, first
        for number in self._chunks_of(first, end):
            base = number * CHUNK
            if at < base:
                new += self._ranges.add(at, base)
                at = base
            stop = min(end, base + CHUNK)
            chunk = self._chunks[number]
            new += stop - at - chunk.count(1, at - base, stop - base)
            chunk[at - base : stop - base] = _ONES[: stop - at]
            self._close_if_full(number, chunk)
            at = stop
        return new + self._ranges.add(at, end)

    def _chunks_of(self, first: int, end: int) -> list[int]:
        """Return the numbers of the chunks that [first, end) reaches into, ascending."""
        low, high = first // CHUNK, (end - 1) // CHUNK
        if high - low < len(self._chunks):
            return [number for number in range(low, high + 1) if number in self._chunks]
        return sorted(number for number in self._chunks if low <= number <= high)

    def add_all(self, ranges: Sequence[tuple[int, int]]) -> int:
        """Add many ranges, which ascend and do not overlap; return how many offsets were new."""
        self._view = None
        new, at, count = 0, 0, len(ranges)
        while at < count:
            number = ranges[at][0] // CHUNK
            base = number * CHUNK
            behind = bisect_left(ranges, (base + CHUNK,), at)
            inside = behind if ranges[behind - 1][1] <= base + CHUNK else behind - 1
            chunk = self._chunks.get(number)
            if chunk is None and inside - at >= DENSE:
                chunk = self._open(number)
            if chunk is None:
                for first, end in ranges[at:inside]:
                    new += self._ranges.add(first, end)
            elif inside > at:
                had = chunk.count(1)
                for first, end in ranges[at:inside]:
                    if end - first == 1:
                        chunk[first - base] = 1
                    else:
                        chunk[first - base : end - base] = _ONES[: end - first]
                new += self._close_if_full(number, chunk) - had
            if inside < behind:  # the one that reaches into the next stretch
                new += self.add(*ranges[inside])
            at = behind
        return new

    def _open(self, number: int) -> bytearray:
        """Make a stretch a chunk."""
        base = number * CHUNK
        chunk = self._chunks[number] = bytearray(CHUNK)
        for first, end in self._ranges.within(base, base + CHUNK):
            chunk[first - base : end - base] = _ONES[: end - first]
        self._ranges.subtract(base, base + CHUNK)
        return chunk

    def _close_if_full(self, number: int, chunk: bytearray) -> int:
        """Make a full chunk a range again; return how many offsets it has."""
        count = chunk.count(1)
        if count == CHUNK:
            del self._chunks[number]
            self._ranges.add(number * CHUNK, (number + 1) * CHUNK)
        return count

    # ---- removing ------------------------------------------------------------------------------------------------

    def pop_through(self, offset: int) -> int:
        """Remove everything below `offset` and what follows it without a gap; return the offset after that."""
        raised = self.end_of(offset)
        self._ranges.pop_through(raised)
        if self._chunks:
            self._view = None
            last = raised // CHUNK
            for number in [number for number in self._chunks if number <= last]:
                chunk = self._chunks[number]
                if number == last:
                    chunk[: raised % CHUNK] = bytes(raised % CHUNK)
                if number < last or 1 not in chunk:
                    del self._chunks[number]
        return raised

    # ---- asking --------------------------------------------------------------------------------------------------

    def end_of(self, offset: int) -> int:
        """Return the first offset from `offset` on that is not in the set."""
        while True:
            chunk = self._chunks.get(offset // CHUNK)
            if chunk is None:
                end = self._ranges.end_of(offset)
            else:
                gap = chunk.find(0, offset % CHUNK)
                end = offset // CHUNK * CHUNK + (CHUNK if gap < 0 else gap)
            if end == offset:
                return offset
            offset = end

    @property
    def end(self) -> int | None:
        """The offset after the highest one, None if empty."""
        ends = [number * CHUNK + chunk.rfind(1) + 1 for number, chunk in self._chunks.items() if 1 in chunk]
        if (end := self._ranges.end) is not None:
            ends.append(end)
        return max(ends, default=None)

    def gaps(self, first: int, end: int) -> list[tuple[int, int]]:
        """Return the parts of [first, end) that are not in the set."""
        if not self._chunks or end <= first:
            return self._ranges.gaps(first, end)
        found: list[tuple[int, int]] = []
        at = first
        for number in self._chunks_of(first, end):
            base = number * CHUNK
            if at < base:
                _join(found, self._ranges.gaps(at, base))
                at = base
            stop = min(end, base + CHUNK)
            _join(found, _zeros(self._chunks[number], base, at, stop))
            at = stop
        if at < end:
            _join(found, self._ranges.gaps(at, end))
        return found

    def copy(self) -> MarkedRanges:
        """Return an independent copy."""
        twin = MarkedRanges(self._ranges.copy())
        twin._chunks = {number: chunk[:] for number, chunk in self._chunks.items()}
        return twin


def _zeros(chunk: bytearray, base: int, first: int, end: int) -> list[tuple[int, int]]:
    """Return the parts of [first, end) that a chunk has not."""
    found = []
    at, behind = first - base, end - base
    while at < behind:
        start = chunk.find(0, at, behind)
        if start < 0:
            break
        at = chunk.find(1, start, behind)
        if at < 0:
            at = behind
        found.append((base + start, base + at))
    return found


def _join(found: list[tuple[int, int]], more: list[tuple[int, int]]) -> None:
    """Append ranges, the first of which may touch the last one there is."""
    if found and more and found[-1][1] == more[0][0]:
        found[-1] = (found[-1][0], more[0][1])
        more = more[1:]
    found += more
