"""Looking for places in a log: where a time is reached, which segment holds an offset.

Log time is the highest batch time up to a place: a clock that was set back counts as standing still. A search makes
some thirty small reads and walks the headers of one segment, however long the log is. Damage is passed over, and the
result says whether the place may have been in it.

Reads headers, footers and indexes; records are read in `reader.py`. Belongs to one thread.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import NamedTuple

from ister.storage.log_segments import BrokenError, LogSegments
from ister.storage.record import BATCH, FOOTER, HEADER_BYTES
from ister.storage.segment import SEGMENT_HEADER_BYTES, Footer
from ister.storage.segment_maps import read_index


class FoundTime(NamedTuple):
    """Where log time reaches some time: the first whole batch there, and the offset to begin at to miss nothing.

    They differ if damage lies before that batch, which may have been that late. `certain` says that something before it
    in the same log was earlier; otherwise what comes before the log may be that late already.
    """

    whole: int
    offset: int
    certain: bool


class LogSearch:
    """Searches in the segments of one log."""

    __slots__ = ("_log",)

    def __init__(self, log: LogSegments) -> None:
        self._log = log

    def find_time(self, timestamp_ms: int, durable_end: int) -> FoundTime:
        """Return where log time reaches `timestamp_ms`, and how sure that is.

        Raises GapError, DamagedError.
        """
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
        try:
            bases = self._log.bases()
            number = bisect_right(bases, offset) - 1
            footer = self._log.footer(bases[number]) if number >= 0 else None
        except FileNotFoundError:
            return None
        return (bases[number], footer) if footer is not None and offset < footer.next_offset else None

    def useless_at(self, offset: int) -> int | None:
        """Return the base of a segment that should hold an offset and does not, or is not whole; None if none does."""
        try:
            bases = self._log.bases()
            number = bisect_right(bases, offset) - 1
            footer = self._log.footer(bases[number]) if number >= 0 else None
        except FileNotFoundError:
            return None
        return bases[number] if number >= 0 and (footer is None or offset < footer.next_offset) else None

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

        Doubt is where something is damaged, if nothing behind it is earlier: the place sought may have been there.
        """
        segment = self._log.map_if_there(base)
        if segment is None:
            return None, base, doubt
        at, position = base, SEGMENT_HEADER_BYTES
        index = read_index(self._log.maps.disk, segment.path, segment.salt)
        entry = None if index is None else index.before_time(timestamp_ms)
        if index is not None and entry is not None:
            header = segment.header(index.positions[entry])
            if header is not None and header[1] == BATCH and header[7] == index.offsets[entry]:
                at, position, doubt = index.offsets[entry], index.positions[entry], None
        while at < durable_end:
            header = segment.header(position)
            if header is None or header[3] < HEADER_BYTES or header[7] != at:
                broken = BrokenError(segment, position, at, "no valid record")
                doubt = at if doubt is None else doubt
                behind, at = self._log.behind(broken, at, durable_end)
                if behind is None:
                    return None, at, doubt
                position = behind
                continue
            if header[1] == FOOTER:
                return None, at, doubt
            if header[1] == BATCH:
                if header[8] >= timestamp_ms:
                    return at, at, doubt
                at, doubt = at + header[5], None
            position += header[3]
        return None, at, doubt
