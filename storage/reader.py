"""Reading a log: give it an offset and it yields records, through maps of the segment files.

- Any process may read what another one writes: nothing at or past the durable end it is told of is ever
  looked at.
- Each record's CRCs are checked before it is handed out, and offsets must join: a gap is an error, never a
  skip, unless an operator decided so for exactly that range (`damage.py`).
- A record that does not check is read again from the file, past the map, before it is called damaged: the file may have
  grown, or be gone, since it was mapped.
- A footer ends a file. No byte behind it is touched: the file may have been cut there since it was mapped.
- A view that was handed out keeps its map alive; dropping a map from the cache, or the file's name, cannot
  hurt it.

A `SegmentMaps` and its readers belong to one thread.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from typing import Final, NamedTuple

from ister.errors import DamagedError, GapError, TrimmedError
from ister.storage.damage import load_skips
from ister.storage.disk import Disk
from ister.storage.index import SparseIndex
from ister.storage.record import (
    BATCH,
    FOOTER,
    HEADER_BYTES,
    Header,
    Record,
    parse_header,
    salt_of,
    well_formed,
)
from ister.storage.recovery import damaged, next_record
from ister.storage.segment import (
    FOOTER_BYTES,
    SEGMENT_HEADER_BYTES,
    Footer,
    base_of,
    footer_at_end,
    parse_footer,
    parse_segment_header,
    segment_name,
)

# Readers near the end of the log share a map or two; only replays need more.
MAPS_MAX: Final = 128
# Folders whose listing is remembered, and segments that are noted of one that is never listed: of 8 MiB each.
FOLDERS_MAX: Final = 1024
NOTED_MAX: Final = 16_384
# What the users of all readers of a process may keep that they copied out of maps.
COPIED_BYTES_MAX: Final = 128 << 20
# How far apart the places are that a map remembers, so that going back into a segment does not walk all of
# it.
MARK_BYTES: Final = 64 << 10


class SegmentMap:
    """One mapped segment: checked headers, and marks at some of its records, from its index or as they were met."""

    __slots__ = ("_disk", "_indexed", "base", "checked", "marks", "offsets", "path", "salt", "size", "view")

    def __init__(self, disk: Disk, path: str, incarnation: bytes, base: int) -> None:
        self._disk = disk
        self._indexed = False
        self.path = path
        self.base = base
        self.salt = salt_of(incarnation, base)
        self.checked = disk.map(path)
        self.view = self.checked.view
        self.size = len(self.view)
        header = parse_segment_header(self.view[:SEGMENT_HEADER_BYTES])
        if isinstance(header, str):
            if header.startswith("format version"):
                raise damaged(path, 0, header)
        # One that is not whole tells nothing; each record says by its CRCs that it belongs here.
        elif header.incarnation != incarnation or header.base != base:
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
        if not self._indexed and len(self.marks) == 1:
            self._load_index()
        at = bisect_right(self.offsets, offset) - 1
        if at and not self._is_at(self.offsets[at], self.marks[at]):
            self.offsets, self.marks, at = [self.base], [SEGMENT_HEADER_BYTES], 0
        return self.offsets[at], self.marks[at]

    def _is_at(self, offset: int, position: int) -> bool:
        header = self.header(position)
        return header is not None and header[1] == BATCH and header[7] == offset

    def _load_index(self) -> None:
        found = read_index(self._disk, self.path, self.salt)
        if found is not None:
            self._indexed = True
            self.offsets += found.offsets
            self.marks += found.positions

    def header(self, position: int) -> Header | None:
        """Return the header at `position`, or None if there is no valid one."""
        return parse_header(self.view, position, self.salt)


def read_footer(disk: Disk, path: str, salt: int) -> Footer | None:
    """Return the footer of a sealed segment, None if it has none. Raises FileNotFoundError."""
    size = disk.size(path)
    return footer_at_end(disk.read(path, max(0, size - FOOTER_BYTES), FOOTER_BYTES), size, salt)


def read_index(disk: Disk, path: str, salt: int) -> SparseIndex | None:
    """Return the index of a sealed segment, None if it has none that is whole."""
    try:
        footer = read_footer(disk, path, salt)
        if footer is None or not footer.index_bytes:
            return None
        # Read, not mapped: the file may have been cut behind its footer since it was mapped.
        start = max(0, footer.bytes - FOOTER_BYTES - footer.index_bytes)
        record = disk.read(path, start, footer.index_bytes)
    except FileNotFoundError:
        return None
    header = parse_header(record, 0, salt)
    return None if header is None else SparseIndex.decode(record, header, salt)


class SegmentMaps:
    """The maps of a process, shared by its readers; the least recently opened ones are dropped.

    `copied_bytes` is what is kept that was copied out of them; whoever keeps some counts it, and keeps less when
    `copied_too_much`.
    """

    def __init__(self, disk: Disk, maps_max: int = MAPS_MAX) -> None:
        self.disk = disk
        self._maps_max = maps_max
        self._maps: OrderedDict[tuple[str, bytes, int], SegmentMap] = OrderedDict()
        self._bases: OrderedDict[str, list[int]] = (
            OrderedDict()
        )  # by folder: segments known to have been there
        self.copied_bytes = 0

    @property
    def copied_too_much(self) -> bool:
        """Return whether all that is kept is more than a process should keep."""
        return self.copied_bytes > COPIED_BYTES_MAX

    def __len__(self) -> int:
        return len(self._maps)

    def get(self, folder: str, incarnation: bytes, base: int, *, fresh: bool = False) -> SegmentMap:
        """Return the map of the segment at `base`; `fresh` maps it again, because the file has grown.

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

    def bases(self, folder: str) -> list[int]:
        """Return which segments a folder has, in order: as it is now. Raises FileNotFoundError."""
        found = [base for name in self.disk.listdir(folder) if (base := base_of(name)) is not None]
        self._bases[folder] = found
        self._bases.move_to_end(folder)
        if len(self._bases) > FOLDERS_MAX:
            self._bases.popitem(last=False)
        return found

    def known_bases(self, folder: str) -> list[int]:
        """Return which segments a folder had when it was listed last, and those noted since; it is not looked at."""
        return self._bases.get(folder, [])

    def note(self, folder: str, base: int) -> None:
        """Record that a folder has the segment at `base`."""
        known = self._bases.setdefault(folder, [])
        at = bisect_left(known, base)
        if known[at : at + 1] != [base]:
            known.insert(at, base)
            if len(known) > NOTED_MAX:
                del known[0]
        if len(self._bases) > FOLDERS_MAX:
            self._bases.popitem(last=False)

    def gone(self, folder: str, base: int) -> None:
        """Record that the segment at `base` is not there any more."""
        known = self._bases.get(folder, [])
        if base in known:
            known.remove(base)

    def drop(self, folder: str, incarnation: bytes, base: int) -> None:
        """Forget one segment: what is there is of no use."""
        self._maps.pop((folder, incarnation, base), None)
        self.gone(folder, base)

    def forget(self, folder: str) -> None:
        """Drop all maps of one log, because it was deleted."""
        self._bases.pop(folder, None)
        for key in [key for key in self._maps if key[0] == folder]:
            del self._maps[key]

    def drop_deleted(self) -> None:
        """Drop the maps of files that are gone: as long as they are mapped, they take room on the disk."""
        for key, segment in list(self._maps.items()):
            if not self.disk.exists(segment.path):
                del self._maps[key]

    def clear(self) -> None:
        """Drop all maps."""
        self._maps.clear()
        self._bases.clear()


class _Unmapped(NamedTuple):
    """A segment that cannot be mapped: too short, or not of this log."""

    path: str
    base: int
    salt: int


class _BrokenError(Exception):
    """There is no whole record at `position` of `segment`, where offset `at` should be."""

    def __init__(self, segment: SegmentMap | _Unmapped, position: int, at: int, reason: str) -> None:
        super().__init__(reason)
        self.segment, self.position, self.at, self.reason = segment, position, at, reason


def _record(segment: SegmentMap, position: int, header: Header, at: int) -> Record:
    """Return the batch at `position`, which must begin at offset `at`."""
    start, end = position + HEADER_BYTES, position + header[3]
    if header[7] != at:
        raise _BrokenError(segment, position, at, f"offset {header[7]} is there, where {at} should be")
    if end > segment.size or segment.checked.crc32c(start, end, segment.salt) != header[4]:
        raise _BrokenError(segment, position, at, f"the record at offset {at} does not match its checksum")
    if not well_formed(header):
        raise _BrokenError(segment, position, at, f"the parts of the record at offset {at} do not add up")
    return Record(header, segment.view[start:end])


class FoundTime(NamedTuple):
    """Where log time reaches some time: the first whole batch there, and the offset to begin at to miss nothing.

    They differ where damage lies before it, which may have been that late. `certain`: something before it in the same
    log was earlier; else what comes before the log may be that late already.
    """

    whole: int
    offset: int
    certain: bool


class Reader:
    """A place in one log, from which whole records are read in order.

    With `listed` false the folder is never listed: only segments that `SegmentMaps.note` was told of are found.
    """

    __slots__ = (
        "_at",
        "_listed",
        "_maps",
        "_position",
        "_segment",
        "_skipped",
        "folder",
        "incarnation",
        "offset",
    )

    def __init__(
        self, maps: SegmentMaps, folder: str, incarnation: bytes, offset: int, *, listed: bool = True
    ) -> None:
        self._maps = maps
        self._listed = listed
        self.folder = folder
        self.incarnation = incarnation
        self.offset = offset
        self._segment: SegmentMap | None = None
        self._position = 0
        self._at = 0  # the offset of the record at `_position`
        self._skipped: list[tuple[int, int]] = []

    def seek(self, offset: int) -> None:
        """Go to another offset, which may lie inside a batch."""
        if offset != self.offset:
            self.offset = offset
            self._segment = None

    def close(self) -> None:
        """Release the segment at hand; reading continues where it was."""
        self._segment = None

    def take_skipped(self) -> list[tuple[int, int]]:
        """Return the ranges [first, end) jumped over since this was last asked, because an operator decided so."""
        skipped, self._skipped = self._skipped, []
        return skipped

    def read(self, durable_end: int, bytes_max: int, records_max: int = 256) -> list[Record]:
        """Return the next whole records, and continue behind them; none if there are none below `durable_end`.

        The first may begin below `offset`, if that lies inside a batch. It is returned however big it is;
        those after it as long as `bytes_max` of frames and `records_max` are not exceeded. Raises TrimmedError if
        `offset` is below the log, DamagedError with the smallest range of offsets that cannot be served, GapError for
        an offset of which there never was anything; whole records before such a place are returned first.
        """
        while self.offset < durable_end:
            try:
                return self._read(durable_end, bytes_max, records_max)
            except _BrokenError as broken:
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
        except (_BrokenError, DamagedError, GapError):
            if not found:
                raise
        self._segment, self._position, self._at = segment, position, at
        if found:
            self.offset = at
        return found

    def is_empty(self) -> bool:
        """Return whether there is no segment at all."""
        try:
            return not self._bases()
        except FileNotFoundError:
            return True

    def _bases(self) -> list[int]:
        return self._maps.bases(self.folder) if self._listed else self._maps.known_bases(self.folder)

    def _locate(self, offset: int, durable_end: int) -> tuple[SegmentMap, int, int]:
        """Return segment, byte and first offset of the record that holds `offset`.

        The folder is listed only where what is known of it does not lead there: of a long log that takes long.
        """
        if self._listed:
            try:
                return self._locate_among(self._maps.known_bases(self.folder), offset, durable_end)
            except (_BrokenError, GapError):
                pass
        return self._locate_among(self._bases(), offset, durable_end)

    def _locate_among(self, bases: list[int], offset: int, durable_end: int) -> tuple[SegmentMap, int, int]:
        if not bases:
            raise GapError(f"offset {offset} is not in the log in {self.folder}, which is empty")
        if offset < bases[0]:
            raise self._trimmed(offset, bases[0])
        segment = self._map(bases[bisect_right(bases, offset) - 1])
        at, position = segment.nearest(offset)
        return self._walk(segment, position, at, offset, durable_end)

    def _walk(
        self, segment: SegmentMap, position: int, at: int, offset: int, durable_end: int
    ) -> tuple[SegmentMap, int, int]:
        """Return the record that holds `offset`, going on from the one at `position` in the same segment."""
        while True:
            header = segment.header(position)
            if header is None:
                segment, header = self._grown(segment, position, at)
            if header[7] != at or header[3] < HEADER_BYTES:
                raise _BrokenError(
                    segment, position, at, f"offset {header[7]} is there, where {at} should be"
                )
            if header[1] == FOOTER:
                raise _BrokenError(segment, position, at, f"it ends at offset {at}")
            if header[1] == BATCH:
                if at + header[5] > offset or at >= durable_end:
                    return segment, position, at
                at += header[5]
            position += header[3]
            segment.mark(at, position)

    def _trimmed(self, first: int, end: int) -> TrimmedError:
        error = TrimmedError(
            f"offset {first} is not in the log in {self.folder}, which begins at offset {end}"
        )
        error.first, error.end = first, end
        return error

    def _map(self, base: int, *, fresh: bool = False) -> SegmentMap:
        try:
            return self._maps.get(self.folder, self.incarnation, base, fresh=fresh)
        except DamagedError as error:
            path = f"{self.folder}/{segment_name(base)}"
            unmapped = _Unmapped(path, base, salt_of(self.incarnation, base))
            raise _BrokenError(unmapped, 0, base, error.text) from None
        except FileNotFoundError:
            self._maps.gone(self.folder, base)
            bases = self._bases()
            if bases and base < bases[0]:
                raise self._trimmed(base, bases[0]) from None
            raise GapError(f"offset {base} is not in the log in {self.folder}: its segment is gone") from None

    def _grown(self, segment: SegmentMap, position: int, at: int) -> tuple[SegmentMap, Header]:
        """Return a map in which there is a valid header at `position`, and that header."""
        if position + HEADER_BYTES > segment.size:  # mapped before the file had its full length
            again = self._map(segment.base, fresh=True)
            header = again.header(position)
            if header is not None:
                return again, header
        raise _BrokenError(segment, position, at, f"there is no valid record where offset {at} should be")

    def _next(self, segment: SegmentMap, position: int, header: Header, at: int) -> tuple[SegmentMap, int]:
        """Return the segment that a footer leads to, and the byte of its first record."""
        footer = parse_footer(segment.view, position, header, segment.salt)
        if footer is None:
            raise _BrokenError(segment, position, at, "its footer does not match its checksum")
        if footer.next_offset != at:
            reason = f"it ends at offset {at}, and its footer says {footer.next_offset}"
            raise _BrokenError(segment, position, at, reason)
        try:
            return self._map(at), SEGMENT_HEADER_BYTES
        except TrimmedError:
            raise
        except GapError:
            raise _BrokenError(segment, position, at, f"no segment begins at offset {at}") from None

    # damage

    def _go_behind(self, broken: _BrokenError, durable_end: int) -> None:
        """Continue behind bytes that do not check, if that loses nothing, or only what an operator decided to skip.

        Raises TrimmedError if the segment is gone, DamagedError.
        """
        position, end = self._behind(broken, durable_end)
        segment, at = broken.segment, broken.at
        first = max(at, self.offset)
        if end > first:
            if not load_skips(self._maps.disk, self.folder, self.incarnation).covers(first, end):
                error = damaged(segment.path, broken.position, broken.reason)
                error.first, error.end = at, end
                raise error
            self._skipped.append((first, end))
            self.offset = end
        fresh = self._map_if_there(segment.base) if position is not None else self._map_if_there(end)
        self._segment = fresh
        self._at, self._position = end, SEGMENT_HEADER_BYTES if position is None else position

    def _map_if_there(self, base: int) -> SegmentMap | None:
        try:
            return self._maps.get(self.folder, self.incarnation, base, fresh=True)
        except (FileNotFoundError, DamagedError):
            return None

    def _behind(self, broken: _BrokenError, durable_end: int) -> tuple[int | None, int]:
        """Return byte and offset of the next whole record behind a broken one; no byte if it is in another segment."""
        segment, at = broken.segment, broken.at
        bases = self._bases()
        if bases and at < bases[0]:
            raise self._trimmed(max(at, self.offset), bases[0])
        try:
            data = self._maps.disk.read(segment.path)
        except FileNotFoundError:
            data = b""
        following = next_record(data, broken.position, at, segment.salt)
        after = bisect_right(bases, segment.base)
        limit = min(bases[after] if after < len(bases) else durable_end, durable_end)
        if following is not None and following[1][1] == BATCH and following[1][7] < limit:
            return following[0], following[1][7]
        return None, max(limit, at)

    # time

    def offset_at(self, timestamp_ms: int, durable_end: int) -> int:
        """Return the first offset whose log time is `timestamp_ms` or later, `durable_end` if there is none.

        Log time is the highest batch time up to there: a clock that stepped back counts as standing still. Of what is
        damaged nothing is known; it is passed over. Raises GapError, DamagedError.
        """
        return self.find_time(timestamp_ms, durable_end).whole

    def find_time(self, timestamp_ms: int, durable_end: int) -> FoundTime:
        """Return where log time reaches `timestamp_ms`, as `offset_at` finds it, and how sure that is.

        Some thirty small reads and the headers of one segment, however long the log is.
        """
        bases = [base for base in self._bases() if base < durable_end]
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
                found = base  # none of its batches says so: it was that late before the log begins
            if found is not None:
                return FoundTime(found, found if doubt is None else doubt, first > 0)
        return FoundTime(durable_end, durable_end if doubt is None else doubt, first > 0)

    def seek_time(self, timestamp_ms: int, durable_end: int) -> int:
        """Go to the first offset whose log time is `timestamp_ms` or later, as `offset_at` says; return it."""
        found = self.offset_at(timestamp_ms, durable_end)
        self.seek(found)
        return found

    def begins_at(self) -> int | None:
        """Return the first offset of the log, None if it has no segment."""
        try:
            return next(iter(self._bases()), None)
        except FileNotFoundError:
            return None

    def segment_at(self, offset: int) -> tuple[int, Footer] | None:
        """Return base and footer of the sealed segment that holds an offset, None if it is not here, or not whole."""
        try:
            bases = self._bases()
            number = bisect_right(bases, offset) - 1
            footer = self._footer(bases[number]) if number >= 0 else None
        except FileNotFoundError:
            return None
        return (bases[number], footer) if footer is not None and offset < footer.next_offset else None

    def useless_at(self, offset: int) -> int | None:
        """Return the base of the segment here that should hold an offset, or is not whole; None: there is none."""
        try:
            bases = self._bases()
            number = bisect_right(bases, offset) - 1
            footer = self._footer(bases[number]) if number >= 0 else None
        except FileNotFoundError:
            return None
        return bases[number] if number >= 0 and (footer is None or offset < footer.next_offset) else None

    def time_in(self, base: int, timestamp_ms: int, end: int) -> int:
        """Return the first offset of a segment with a batch time of `timestamp_ms` or later, its base if none has."""
        found, _, doubt = self._offset_in(base, timestamp_ms, end, None)
        return base if found is None else found if doubt is None else doubt

    def _footer(self, base: int) -> Footer | None:
        path = f"{self.folder}/{segment_name(base)}"
        return read_footer(self._maps.disk, path, salt_of(self.incarnation, base))

    def _ends_by(self, base: int, timestamp_ms: int) -> bool:
        """Return whether a segment may hold what is sought or what follows it: one without a footer always may."""
        try:
            footer = self._footer(base)
        except FileNotFoundError:  # trimmed meanwhile
            return False
        return footer is None or footer.max_timestamp_ms >= timestamp_ms

    def _is_sealed_by(self, base: int, timestamp_ms: int) -> bool:
        """Return whether a segment's footer says that log time had reached `timestamp_ms` at its end."""
        try:
            footer = self._footer(base)
        except FileNotFoundError:
            return False
        return footer is not None and footer.max_timestamp_ms >= timestamp_ms

    def _offset_in(
        self, base: int, timestamp_ms: int, durable_end: int, doubt: int | None
    ) -> tuple[int | None, int, int | None]:
        """Return the first offset of a segment with a batch time of `timestamp_ms` or later, and where it ends.

        The last is where something is damaged, if nothing behind it is earlier: what is sought may have been there.
        """
        segment = self._map_if_there(base)
        if segment is None:
            return None, base, doubt
        at, position = base, SEGMENT_HEADER_BYTES
        index = read_index(self._maps.disk, segment.path, segment.salt)
        entry = None if index is None else index.before_time(timestamp_ms)
        if index is not None and entry is not None:
            header = segment.header(index.positions[entry])
            if header is not None and header[1] == BATCH and header[7] == index.offsets[entry]:
                at, position, doubt = index.offsets[entry], index.positions[entry], None
        while at < durable_end:
            header = segment.header(position)
            if header is None or header[3] < HEADER_BYTES or header[7] != at:
                broken = _BrokenError(segment, position, at, "no valid record")
                doubt = at if doubt is None else doubt
                behind, at = self._behind(broken, durable_end)
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


__all__ = ["DamagedError", "GapError", "Reader", "SegmentMap", "SegmentMaps", "TrimmedError"]
