"""Reading a log: give it an offset and it yields records, through maps of the segment files.

- Any process may read what another one writes: nothing at or past the durable end it is told of is ever
  looked at.
- Each record's CRCs are checked before it is handed out, and offsets must join: a gap is an error, never a
  skip.
- A footer ends a file. No byte behind it is touched: the file may have been cut there since it was mapped.
- A view that was handed out keeps its map alive; dropping a map from the cache, or the file's name, cannot
  hurt it.

A `SegmentMaps` and its readers belong to one thread.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from typing import Final

from ister.errors import DamagedError, GapError
from storage.disk import Disk
from storage.record import BATCH, FOOTER, HEADER_BYTES, Header, Record, parse_header, salt_of, well_formed
from storage.recovery import damaged
from storage.segment import SEGMENT_HEADER_BYTES, base_of, parse_footer, parse_segment_header, segment_name

# One file descriptor each. Readers near the end of the log share a map or two; only replays need more.
MAPS_MAX: Final = 128
# How far apart the places are that a map remembers, so that going back into a segment does not walk all of
# it.
MARK_BYTES: Final = 64 << 10


class SegmentMap:
    """One mapped segment: checked headers, and marks at some of its records."""

    __slots__ = ("base", "checked", "marks", "offsets", "path", "salt", "size", "view")

    def __init__(self, disk: Disk, path: str, incarnation: bytes, base: int) -> None:
        self.path = path
        self.base = base
        self.salt = salt_of(incarnation, base)
        self.checked = disk.map(path)
        self.view = self.checked.view
        self.size = len(self.view)
        header = parse_segment_header(self.view[:SEGMENT_HEADER_BYTES])
        if isinstance(header, str):
            raise damaged(path, 0, header)
        if header.incarnation != incarnation or header.base != base:
            raise damaged(path, 0, "it belongs to another topic, or to another place in this one")
        self.offsets = [base]
        self.marks = [SEGMENT_HEADER_BYTES]

    def mark(self, offset: int, position: int) -> None:
        """Remember where the record at `offset` begins, if no mark is near."""
        if position - self.marks[-1] >= MARK_BYTES:
            self.offsets.append(offset)
            self.marks.append(position)

    def nearest(self, offset: int) -> tuple[int, int]:
        """Return offset and byte of the last marked record that does not begin behind `offset`."""
        at = bisect_right(self.offsets, offset) - 1
        return self.offsets[at], self.marks[at]

    def header(self, position: int) -> Header | None:
        """Return the header at `position`, or None if there is no valid one."""
        return parse_header(self.view, position, self.salt)


class SegmentMaps:
    """The maps of a process, shared by its readers; the least recently opened ones are dropped."""

    def __init__(self, disk: Disk, maps_max: int = MAPS_MAX) -> None:
        self.disk = disk
        self._maps_max = maps_max
        self._maps: OrderedDict[tuple[str, bytes, int], SegmentMap] = OrderedDict()

    def __len__(self) -> int:
        return len(self._maps)

    def get(self, folder: str, incarnation: bytes, base: int, *, fresh: bool = False) -> SegmentMap:
        """Return the map of the segment at `base`; `fresh` maps it anew, because the file has grown.

        Raises FileNotFoundError, DamagedError.
        """
        key = (folder, incarnation, base)
        found = None if fresh else self._maps.get(key)
        if found is None:
            path = f"{folder}/{segment_name(base)}"
            if self.disk.size(path) < SEGMENT_HEADER_BYTES:
                raise damaged(path, 0, "it is shorter than a segment's header")
            found = self._maps[key] = SegmentMap(self.disk, path, incarnation, base)
            if len(self._maps) > self._maps_max:
                self._maps.popitem(last=False)
        else:
            self._maps.move_to_end(key)
        return found

    def forget(self, folder: str) -> None:
        """Drop all maps of one log, because it was deleted."""
        for key in [key for key in self._maps if key[0] == folder]:
            del self._maps[key]

    def clear(self) -> None:
        """Drop all maps."""
        self._maps.clear()


def _record(segment: SegmentMap, position: int, header: Header, at: int) -> Record:
    """Return the batch at `position`, which must begin at offset `at`. Raises DamagedError, GapError."""
    start, end = position + HEADER_BYTES, position + header[3]
    if header[7] != at:
        raise GapError(f"{segment.path} holds offset {header[7]} at byte {position}, where {at} should be")
    if end > segment.size or segment.checked.crc32c(start, end, segment.salt) != header[4]:
        raise damaged(segment.path, position, f"the record at offset {at} is not what was written")
    if not well_formed(header):
        raise damaged(segment.path, position, f"the parts of the record at offset {at} do not add up")
    return Record(header, segment.view[start:end])


class Reader:
    """A place in one log, from which whole records are read in order."""

    __slots__ = ("_at", "_maps", "_position", "_segment", "folder", "incarnation", "offset")

    def __init__(self, maps: SegmentMaps, folder: str, incarnation: bytes, offset: int) -> None:
        self._maps = maps
        self.folder = folder
        self.incarnation = incarnation
        self.offset = offset
        self._segment: SegmentMap | None = None
        self._position = 0
        self._at = 0  # the offset of the record at `_position`

    def seek(self, offset: int) -> None:
        """Go to another offset, which may lie inside a batch."""
        if offset != self.offset:
            self.offset = offset
            self._segment = None

    def close(self) -> None:
        """Let go of the segment at hand; reading goes on where it was."""
        self._segment = None

    def read(self, durable_end: int, bytes_max: int, records_max: int = 256) -> list[Record]:
        """Return the next whole records, and go on behind them; none if there are none below `durable_end`.

        The first may begin below `offset`, if that lies inside a batch. It is returned however big it is;
        those after it as long as `bytes_max` of frames and `records_max` are not exceeded. Raises GapError if
        `offset` is not in the log, DamagedError for bytes that are not what was written; whole records before
        such a place are returned first.
        """
        found: list[Record] = []
        if self.offset >= durable_end:
            return found
        segment, position, at = self._segment, self._position, self._at
        if segment is None:
            segment, position, at = self._locate(self.offset, durable_end)
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
        except (DamagedError, GapError):
            if not found:
                raise
        self._segment, self._position, self._at = segment, position, at
        if found:
            self.offset = at
        return found

    def _locate(self, offset: int, durable_end: int) -> tuple[SegmentMap, int, int]:
        """Return segment, byte and first offset of the record that holds `offset`."""
        disk = self._maps.disk
        bases = [base for name in disk.listdir(self.folder) if (base := base_of(name)) is not None]
        if not bases or offset < bases[0]:
            start = f"begins at offset {bases[0]}" if bases else "is empty"
            raise GapError(f"offset {offset} is not in the log in {self.folder}, which {start}")
        segment = self._map(bases[bisect_right(bases, offset) - 1])
        at, position = segment.nearest(offset)
        while True:
            header = segment.header(position)
            if header is None:
                segment, header = self._grown(segment, position, at)
            if header[1] == FOOTER:
                raise GapError(f"offset {offset} is not in {segment.path}, which ends at {at}")
            if header[1] == BATCH:
                if at + header[5] > offset or at >= durable_end:
                    return segment, position, at
                at += header[5]
            position += header[3]
            segment.mark(at, position)

    def _map(self, base: int, *, fresh: bool = False) -> SegmentMap:
        try:
            return self._maps.get(self.folder, self.incarnation, base, fresh=fresh)
        except FileNotFoundError:
            raise GapError(f"offset {base} is not in the log in {self.folder}: its segment is gone") from None

    def _grown(self, segment: SegmentMap, position: int, at: int) -> tuple[SegmentMap, Header]:
        """Return a map in which there is a valid header at `position`, and that header.

        Raises DamagedError if there is none.
        """
        if position + HEADER_BYTES > segment.size:  # mapped before the file had its full length
            again = self._map(segment.base, fresh=True)
            header = again.header(position)
            if header is not None:
                return again, header
        raise damaged(segment.path, position, f"there is no valid record where offset {at} should be")

    def _next(self, segment: SegmentMap, position: int, header: Header, at: int) -> tuple[SegmentMap, int]:
        """Return the segment that a footer leads to, and the byte of its first record."""
        footer = parse_footer(segment.view, position, header, segment.salt)
        if footer is None:
            raise damaged(segment.path, position, "its footer is not what was written")
        if footer.next_offset != at:
            raise GapError(f"{segment.path} ends at offset {at}, and its footer says {footer.next_offset}")
        return self._map(at), SEGMENT_HEADER_BYTES


__all__ = ["DamagedError", "GapError", "Reader", "SegmentMap", "SegmentMaps"]
