"""Reading a log: give it an offset and it yields records, through maps of the segment files.

- Any process may read what another one writes: nothing at or past the durable end it is told of is ever looked at.
- Each record's CRCs are checked before it is handed out, and offsets must join: a gap is an error, never a skip, unless
  an operator decided so for exactly that range (`damage.py`).
- A record that does not check is read again from the file, past the map, before it is called damaged: the file may have
  grown, or be gone, since it was mapped.

The maps are in `segment_maps.py`, the segments of a log in `log_segments.py`, the search for a time in `log_search.py`.
A reader belongs to one thread.
"""

from __future__ import annotations

from bisect import bisect_right

from ister.errors import DamagedError, GapError, TrimmedError
from ister.storage.damage import load_skips
from ister.storage.log_search import FoundTime, LogSearch, Walks
from ister.storage.log_segments import BrokenError, LogSegments
from ister.storage.record import BATCH, FOOTER, HEADER_BYTES, Header, Record, well_formed
from ister.storage.recovery import damaged
from ister.storage.segment import SEGMENT_HEADER_BYTES, parse_footer
from ister.storage.segment_maps import SegmentMap, SegmentMaps


def _record(segment: SegmentMap, position: int, header: Header, at: int) -> Record:
    """Return the batch at `position`, which must begin at offset `at`."""
    start, end = position + HEADER_BYTES, position + header[3]
    if header[7] != at:
        raise BrokenError(segment, position, at, f"offset {header[7]} is there, where {at} should be")
    if end > segment.size or segment.checked.crc32c(start, end, segment.salt) != header[4]:
        raise BrokenError(segment, position, at, f"the record at offset {at} does not match its checksum")
    if not well_formed(header):
        raise BrokenError(segment, position, at, f"the parts of the record at offset {at} do not add up")
    return Record(header, segment.view[start:end])


class Reader:
    """A position in one log, from which records are read in order.

    With `listed` false the folder is never listed: only segments that `SegmentMaps.note` was told of are found.
    """

    __slots__ = ("_at", "_log", "_position", "_segment", "_skipped", "_walks", "offset")

    def __init__(
        self, maps: SegmentMaps, folder: str, incarnation: bytes, offset: int, *, listed: bool = True
    ) -> None:
        self._log = LogSegments(maps, folder, incarnation, listed=listed)
        self.offset = offset
        self._segment: SegmentMap | None = None
        self._position = 0
        self._at = 0  # the offset of the record at `_position`
        self._walks = Walks()
        self._skipped: list[tuple[int, int]] = []

    def seek(self, offset: int) -> None:
        """Continue at another offset, which may lie inside a batch."""
        if offset != self.offset:
            self.offset = offset
            self._segment = None

    def close(self) -> None:
        """Release the segment in use; reading continues where it was."""
        self._segment = None

    def take_skipped(self) -> list[tuple[int, int]]:
        """Return the ranges [first, end) skipped by an operator's decision since the last call."""
        skipped, self._skipped = self._skipped, []
        return skipped

    def read(self, durable_end: int, bytes_max: int, records_max: int = 256) -> list[Record]:
        """Return the next complete records, and continue after them; none if there are none below `durable_end`.

        The first may begin below `offset`, if that lies inside a batch. It is returned whatever its size; further ones
        as long as `bytes_max` of frames and `records_max` are not exceeded. Raises TrimmedError if `offset` is below
        the log, DamagedError with the smallest range of offsets that cannot be read, GapError for an offset that never
        existed; intact records before such a place are returned first.
        """
        while self.offset < durable_end:
            try:
                return self._read(durable_end, bytes_max, records_max)
            except BrokenError as broken:
                self._go_behind(broken, durable_end)
        return []

    def _read(self, durable_end: int, bytes_max: int, records_max: int) -> list[Record]:
        found: list[Record] = []
        segment, position, at = self._segment, self._position, self._at
        if segment is None:
            segment, position, at = self._locate(self.offset, durable_end)
        elif at < self.offset:
            segment, position, at = self._walk(segment, position, at, self.offset, durable_end)
        try:
            while len(found) < records_max and at < durable_end:
                header = segment.header(position)
                if header is None:
                    segment, header = self._grown(segment, position, at)
                if header[1] == BATCH:
                    if header[3] - HEADER_BYTES > bytes_max and found:
                        break
                    record = _record(segment, position, header, at)
                    if record.end_offset > durable_end:
                        break
                    found.append(record)
                    position += header[3]
                    bytes_max -= header[3] - HEADER_BYTES
                    at = record.end_offset
                    segment.mark(at, position)
                elif header[1] == FOOTER:
                    segment, position = self._next(segment, position, header, at)
                else:
                    position += header[3]
        except (BrokenError, DamagedError, GapError):
            if not found:
                raise
        self._segment, self._position, self._at = segment, position, at
        if found:
            self.offset = at
        return found

    def _locate(self, offset: int, durable_end: int) -> tuple[SegmentMap, int, int]:
        """Return segment, byte and first offset of the record that holds `offset`.

        The folder is listed only if what is known of it does not lead there, because listing a long log takes long.
        """
        if self._log.listed:
            try:
                return self._locate_among(self._log.maps.known_bases(self._log.folder), offset, durable_end)
            except (BrokenError, GapError):
                pass
        return self._locate_among(self._log.bases(), offset, durable_end)

    def _locate_among(self, bases: list[int], offset: int, durable_end: int) -> tuple[SegmentMap, int, int]:
        if not bases:
            raise GapError(f"offset {offset} is not in the log in {self._log.folder}, which is empty")
        if offset < bases[0]:
            raise self._log.trimmed(offset, bases[0])
        segment = self._log.map(bases[bisect_right(bases, offset) - 1])
        at, position = segment.nearest(offset)
        return self._walk(segment, position, at, offset, durable_end)

    def _walk(
        self, segment: SegmentMap, position: int, at: int, offset: int, durable_end: int
    ) -> tuple[SegmentMap, int, int]:
        """Return the record that contains `offset`, from the one at `position` on in the same segment."""
        while True:
            header = segment.header(position)
            if header is None:
                segment, header = self._grown(segment, position, at)
            if header[7] != at or header[3] < HEADER_BYTES:
                raise BrokenError(segment, position, at, f"offset {header[7]} is there, where {at} should be")
            if header[1] == FOOTER:
                raise BrokenError(segment, position, at, f"it ends at offset {at}")
            if header[1] == BATCH:
                if at + header[5] > offset or at >= durable_end:
                    return segment, position, at
                at += header[5]
            position += header[3]
            segment.mark(at, position)

    def _grown(self, segment: SegmentMap, position: int, at: int) -> tuple[SegmentMap, Header]:
        """Return a map in which there is a valid header at `position`, and that header."""
        if position + HEADER_BYTES > segment.size:  # it was mapped before the file had its full length
            again = self._log.map(segment.base, fresh=True)
            header = again.header(position)
            if header is not None:
                return again, header
        raise BrokenError(segment, position, at, f"there is no valid record where offset {at} should be")

    def _next(self, segment: SegmentMap, position: int, header: Header, at: int) -> tuple[SegmentMap, int]:
        """Return the segment that follows according to a footer, and the position of its first record."""
        footer = parse_footer(segment.view, position, header, segment.salt)
        if footer is None:
            raise BrokenError(segment, position, at, "its footer does not match its checksum")
        if footer.next_offset != at:
            reason = f"it ends at offset {at}, and its footer says {footer.next_offset}"
            raise BrokenError(segment, position, at, reason)
        try:
            return self._log.map(at), SEGMENT_HEADER_BYTES
        except TrimmedError:
            raise
        except GapError:
            raise BrokenError(segment, position, at, f"no segment begins at offset {at}") from None

    # damage

    def _go_behind(self, broken: BrokenError, durable_end: int) -> None:
        """Continue after a broken record, if that loses nothing, or only what an operator decided to skip.

        Raises TrimmedError if the segment is gone, DamagedError.
        """
        position, end = self._log.behind(broken, self.offset, durable_end)
        segment, at = broken.segment, broken.at
        first = max(at, self.offset)
        if end > first:
            if not load_skips(self._log.maps.disk, self._log.folder, self._log.incarnation).covers(
                first, end
            ):
                error = damaged(segment.path, broken.position, broken.reason)
                error.first, error.end = at, end
                raise error
            self._skipped.append((first, end))
            self.offset = end
        fresh = self._log.map_if_there(segment.base) if position is not None else self._log.map_if_there(end)
        self._segment = fresh
        self._at, self._position = end, SEGMENT_HEADER_BYTES if position is None else position

    # time

    @property
    def search(self) -> LogSearch:
        """Return what looks for places in the same log."""
        return LogSearch(self._log, self._walks)

    def offset_at(self, timestamp_ms: int, durable_end: int) -> int:
        """Return the first offset whose log time is `timestamp_ms` or later, `durable_end` if there is none.

        What is damaged is passed over. Raises GapError, DamagedError.
        """
        return self.find_time(timestamp_ms, durable_end).whole

    def find_time(self, timestamp_ms: int, durable_end: int, headers_max: int | None = None) -> FoundTime:
        """Return where log time reaches `timestamp_ms`, as `offset_at` finds it, and how sure that is.

        Raises also SearchGoesOnError after `headers_max` headers.
        """
        return self.search.find_time(timestamp_ms, durable_end, headers_max)

    def seek_time(self, timestamp_ms: int, durable_end: int) -> int:
        """Continue at the first offset whose log time is `timestamp_ms` or later, like `offset_at`; return it."""
        found = self.offset_at(timestamp_ms, durable_end)
        self.seek(found)
        return found
