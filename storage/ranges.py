"""A set of whole numbers as half-open ranges [first, end), for offsets. Pure.

- Ranges are disjoint, ascending, and never adjacent: `ends[i] < firsts[i + 1]`.
- Two arrays of 64-bit numbers hold them, 16 bytes a range: a million holes cost 16 MB.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise


class RangeSet:
    """A set of offsets, kept as ranges."""

    __slots__ = ("_ends", "_firsts", "_total")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._firsts = array("q")
        self._ends = array("q")
        self._total = 0
        for first, end in ranges:
            self.add(first, end)

    def __len__(self) -> int:
        """Return the number of ranges."""
        return len(self._firsts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._firsts, self._ends, strict=True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RangeSet):
            return NotImplemented
        return self._firsts == other._firsts and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(f"[{first}, {end})" for first, end in list(self)[:8])
        return f"RangeSet({shown}{', ...' if len(self) > 8 else ''})"

    @property
    def total(self) -> int:
        """Return the number of offsets."""
        return self._total

    def add(self, first: int, end: int) -> int:
        """Add [first, end); return how many of its offsets were new."""
        if end <= first:
            return 0
        firsts, ends = self._firsts, self._ends
        if not firsts or first > ends[-1]:  # after everything
            firsts.append(first)
            ends.append(end)
            new = end - first
        elif first >= firsts[-1]:  # overlaps or touches the last range
            new = max(0, end - ends[-1])
            if new:
                ends[-1] = end
        else:
            low = bisect_left(ends, first)  # the first range that ends at or after `first`
            high = bisect_right(firsts, end)  # after the last range that begins at or before `end`
            if low == high:
                firsts.insert(low, first)
                ends.insert(low, end)
                new = end - first
            else:
                had = sum(ends[low:high]) - sum(firsts[low:high])
                begin, stop = min(first, firsts[low]), max(end, ends[high - 1])
                firsts[low], ends[low] = begin, stop
                if high - low > 1:
                    del firsts[low + 1 : high]
                    del ends[low + 1 : high]
                new = stop - begin - had
        self._total += new
        return new

    def subtract(self, first: int, end: int) -> int:
        """Remove [first, end); return how many of its offsets were present."""
        if end <= first:
            return 0
        firsts, ends = self._firsts, self._ends
        low = bisect_right(ends, first)  # the first range that ends after `first`
        high = bisect_left(firsts, end)  # after the last range that begins before `end`
        if low >= high:
            return 0
        had = sum(ends[low:high]) - sum(firsts[low:high])
        left = [(firsts[low], first)] if firsts[low] < first else []
        right = [(end, ends[high - 1])] if ends[high - 1] > end else []
        kept = left + right
        firsts[low:high] = array("q", [one for one, _ in kept])
        ends[low:high] = array("q", [one for _, one in kept])
        taken = had - sum(stop - start for start, stop in kept)
        self._total -= taken
        return taken

    def contains(self, offset: int) -> bool:
        """Return whether `offset` is present."""
        at = bisect_right(self._firsts, offset) - 1
        return at >= 0 and offset < self._ends[at]

    __contains__ = contains

    def covers(self, first: int, end: int) -> bool:
        """Return whether all of [first, end) is present."""
        at = bisect_right(self._firsts, first) - 1
        return end <= first or (at >= 0 and end <= self._ends[at])

    def overlap(self, first: int, end: int) -> int:
        """Return how many offsets of [first, end) are present."""
        low = bisect_right(self._ends, first)
        high = bisect_left(self._firsts, end)
        if low >= high or end <= first:
            return 0
        inside = sum(self._ends[low:high]) - sum(self._firsts[low:high])
        return inside - max(0, first - self._firsts[low]) - max(0, self._ends[high - 1] - end)

    def within(self, first: int, end: int) -> list[tuple[int, int]]:
        """Return the parts of [first, end) that are present."""
        low = bisect_right(self._ends, first)
        high = bisect_left(self._firsts, end)
        if low >= high or end <= first:
            return []
        found = list(zip(self._firsts[low:high], self._ends[low:high], strict=True))
        found[0] = (max(first, found[0][0]), found[0][1])
        found[-1] = (found[-1][0], min(end, found[-1][1]))
        return found

    def gaps(self, first: int, end: int) -> list[tuple[int, int]]:
        """Return the parts of [first, end) that are not present."""
        found = []
        at = first
        for start, stop in self.within(first, end):
            if start > at:
                found.append((at, start))
            at = stop
        if at < end:
            found.append((at, end))
        return found

    def end_of(self, offset: int) -> int:
        """Return the end of the range that contains `offset`; `offset` itself if none does."""
        at = bisect_right(self._firsts, offset) - 1
        return max(offset, self._ends[at]) if at >= 0 else offset

    @property
    def first(self) -> int | None:
        """Return the lowest offset, None if empty."""
        return self._firsts[0] if self._firsts else None

    @property
    def end(self) -> int | None:
        """Return the offset after the highest one, None if empty."""
        return self._ends[-1] if self._ends else None

    def pop_through(self, offset: int) -> int:
        """Remove everything below `offset` and the range that contains it; return that range's end.

        This is how a low watermark rises: from `offset` to the returned one, which is `offset` if no range contains it.
        """
        ends = self._ends
        if not ends or self._firsts[0] > offset:
            return offset
        cut = bisect_right(self._firsts, offset)
        self._total -= sum(ends[:cut]) - sum(self._firsts[:cut])
        raised = max(offset, ends[cut - 1])
        del self._firsts[:cut]
        del ends[:cut]
        return raised

    def copy(self) -> RangeSet:
        """Return an independent copy."""
        twin = RangeSet()
        twin._firsts, twin._ends, twin._total = self._firsts[:], self._ends[:], self._total
        return twin

    def encode(self) -> bytes:
        """Return the ranges as pairs of little-endian 64-bit numbers."""
        pairs = array("q", bytes(16 * len(self._firsts)))
        pairs[0::2] = self._firsts
        pairs[1::2] = self._ends
        return _little(pairs).tobytes()

    @classmethod
    def decode(cls, encoded: bytes) -> RangeSet:
        """Return the set that `encode` encoded. Raises ValueError for ranges that are not in order."""
        pairs = array("q")
        pairs.frombytes(encoded)
        pairs = _little(pairs)
        if len(pairs) % 2 or any(after <= before for before, after in pairwise(pairs)):
            raise ValueError("ranges are not in ascending order")
        twin = cls()
        twin._firsts, twin._ends = pairs[0::2], pairs[1::2]
        twin._total = sum(twin._ends) - sum(twin._firsts)
        return twin


def encode_ranges(ranges: Iterable[tuple[int, int]]) -> bytes:
    """Return ranges in their order as pairs of little-endian 64-bit numbers."""
    return _little(array("q", chain.from_iterable(ranges))).tobytes()


def _little(numbers: array[int]) -> array[int]:
    if sys.byteorder != "little":
        numbers.byteswap()
    return numbers
