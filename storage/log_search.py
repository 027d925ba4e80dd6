"""Looking for places in a log: where a time is reached, which segment holds an offset.

Log time is the highest batch time up to a place: a clock that was set back counts as standing still. A search makes
some thirty small reads and walks the headers of one segment, however long the log is: of 64 KiB if the segment is
sealed, else of all of it. A caller that must not be kept that long says how many headers it allows at a time. Damage is
passed over, and the result says whether the place may have been in it.

Reads headers, footers and indexes; records are read in `reader.py`. Belongs to one thread.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Final, NamedTuple

from ister.errors import GapError
from ister.storage.log_segments import BrokenError, LogSegments
from ister.storage.record import BATCH, FOOTER, HEADER_BYTES
from ister.storage.segment import SEGMENT_HEADER_BYTES, Footer
from ister.storage.segment_maps import read_index

_NOTHING_MORE: Final = -1  # instead of a byte: nothing whole follows


class FoundTime(NamedTuple):
    """Where log time reaches some time: the first whole batch there, and the offset to begin at to miss nothing.

    They differ if damage lies before that batch, which may have been that late. `certain` says that something before it
    in the same log was earlier; otherwise what comes before the log may be that late already.
    """

    whole: int
    offset: int
    certain: bool


class SearchGoesOnError(GapError):
    """A search has walked as many headers as it may at a time: the same search again goes on from there."""

    code = "unavailable"
    action = "retry"


class Walks:
    """How far the search for one time has walked, by the base of each segment; another search starts over."""

    __slots__ = ("_left", "_timestamp_ms", "_where")

    def __init__(self) -> None:
        self._timestamp_ms = -1
        self._where: dict[int, tuple[int, int, int | None]] = {}
        self._left: int | None = None

    def begin(self, timestamp_ms: int, headers_max: int | None) -> None:
        """Search for a time, and walk at most so many headers; None: as many as there are."""
        if timestamp_ms != self._timestamp_ms:
            self._timestamp_ms = timestamp_ms
            self._where.clear()
        self._left = headers_max

    def end(self) -> None:
        """Forget the search: it has its result."""
        self._timestamp_ms = -1
        self._where.clear()

    def resumed(self, base: int) -> tuple[int, int, int | None] | None:
        """Return offset, byte and doubt up to where the segment at `base` was walked; None if it was not."""
        return self._where.get(base)

    def step(self, base: int, at: int, position: int, doubt: int | None) -> None:
        """Count one more header. Raises SearchGoesOnError if the limit is reached."""
        if self._left is None:
            return
        if self._left == 0:
            self._where[base] = at, position, doubt
            raise SearchGoesOnError(f"the search for a time goes on at offset {at}")
        self._left -= 1

    def walked(self, base: int, at: int, position: int, doubt: int | None) -> None:
        """Note that a segment was walked to its end without a result."""
        if self._left is not None:
            self._where[base] = at, position, doubt


class LogSearch:
    """Searches in the segments of one log."""

    __slots__ = ("_log", "_walks")

    def __init__(self, log: LogSegments, walks: Walks | None = None) -> None:
        self._log = log
        self._walks = Walks() if walks is None else walks

    def find_time(self, timestamp_ms: int, durable_end: int, headers_max: int | None = None) -> FoundTime:
        """Return where log time reaches `timestamp_ms`, and how sure that is.

        At most `headers_max` headers are looked at. Raises SearchGoesOnError, GapError, DamagedError.
        """
        self._walks.begin(timestamp_ms, headers_max)
        found = self._find_time(timestamp_ms, durable_end)
        self._walks.end()
        return found

    def _find_time(self, timestamp_ms: int, durable_end: int) -> FoundTime:
        bases = [base for base in self._log.bases() if base < durable_end]
        first = bisect_left(
            range(len(bases)), True, key=lambda number: self._ends_by(bases[number], timestamp_ms)
        )
        at, doubt = (bases[first] if first < len(bases) else durable_end), None
        for base in bases[first:]:
            if base > at and doubt is None:
                doubt = at  # a segment is missing
            found, at, doubt = self._offset_in(base, timestamp_ms, durable_end, doubt)
            if (
                found is None
                and base == bases[0]
                and doubt is None
                and self._is_sealed_by(base, timestamp_ms)
            ):
                found = base  # every batch is that late: it was before the log begins
            if found is not None:
                return FoundTime(found, found if doubt is None else doubt, first > 0)
        return FoundTime(durable_end, durable_end if doubt is None else doubt, first > 0)

    def begins_at(self) -> int | None:
        """Return the first offset of the log, None if it has no segment."""
        try:
            return next(iter(self._log.bases()), None)
        except FileNotFoundError:
            return None

    def segment_at(self, offset: int) -> tuple[int, Footer] | None:
        """Return base and footer of the sealed segment that holds an offset; None if it is missing, or not whole."""
        base, footer = self._nearest(offset)
        return (
            (base, footer)
            if base is not None and footer is not None and offset < footer.next_offset
            else None
        )

    def useless_at(self, offset: int) -> int | None:
        """Return the base of a segment that should hold an offset and does not, or is not whole; None if none does."""
        base, footer = self._nearest(offset)
        return base if footer is None or offset < footer.next_offset else None

    def _nearest(self, offset: int) -> tuple[int | None, Footer | None]:
        """Return the base of the last segment that begins by an offset, and its footer; None for what is not there."""
        try:
            bases = self._log.bases()
            number = bisect_right(bases, offset) - 1
            return (bases[number], self._log.footer(bases[number])) if number >= 0 else (None, None)
        except FileNotFoundError:
            return None, None

    def time_in(self, base: int, timestamp_ms: int, end: int) -> int:
        """Return a segment's first offset with a batch time of `timestamp_ms` or later, its base if none has one."""
        found, _, doubt = self._offset_in(base, timestamp_ms, end, None)
        return base if found is None else found if doubt is None else doubt

    def _ends_by(self, base: int, timestamp_ms: int) -> bool:
        """Return whether a segment may hold the place sought or what follows it; one without a footer always may."""
        try:
            footer = self._log.footer(base)
        except FileNotFoundError:  # trimmed meanwhile
            return False
        return footer is None or footer.max_timestamp_ms >= timestamp_ms

    def _is_sealed_by(self, base: int, timestamp_ms: int) -> bool:
        """Return whether a segment's footer says that log time had reached `timestamp_ms` at its end."""
        try:
            footer = self._log.footer(base)
        except FileNotFoundError:
            return False
        return footer is not None and footer.max_timestamp_ms >= timestamp_ms

    def _offset_in(
        self, base: int, timestamp_ms: int, durable_end: int, doubt: int | None
    ) -> tuple[int | None, int, int | None]:
        """Return a segment's first offset with a batch time of `timestamp_ms` or later, its end, and doubt.

        Doubt is where something is damaged, if nothing after it is earlier: the place sought may have been there.
        """
        segment = self._log.map_if_there(base)
        if segment is None:
            return None, base, doubt
        at, position = base, SEGMENT_HEADER_BYTES
        resumed = self._walks.resumed(base)
        index = read_index(self._log.maps.disk, segment.path, segment.salt) if resumed is None else None
        entry = None if index is None else index.before_time(timestamp_ms)
        if resumed is not None:
            at, position, doubt = resumed
            if position == _NOTHING_MORE:
                return None, at, doubt
        elif index is not None and entry is not None:
            header = segment.header(index.positions[entry])
            if header is not None and header[1] == BATCH and header[7] == index.offsets[entry]:
                at, position, doubt = index.offsets[entry], index.positions[entry], None
        while at < durable_end:
            self._walks.step(base, at, position, doubt)
            header = segment.header(position)
            if header is None or header[3] < HEADER_BYTES or header[7] != at:
                broken = BrokenError(segment, position, at, "no valid record")
                doubt = at if doubt is None else doubt
                behind, at = self._log.behind(broken, at, durable_end)
                if behind is None:
                    self._walks.walked(base, at, _NOTHING_MORE, doubt)
                    return None, at, doubt
                position = behind
                continue
            if header[1] == FOOTER:
                break
            if header[1] == BATCH:
                if header[8] >= timestamp_ms:
                    return at, at, doubt
                at, doubt = at + header[5], None
            position += header[3]
        self._walks.walked(base, at, position, doubt)
        return None, at, doubt
