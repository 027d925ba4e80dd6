"""Checking a whole log: every CRC of every record of every segment, and that offsets are contiguous.

- Nothing is changed, and nothing after the durable end is read: a log can be checked while it is being written.
- Files are read one at a time without memory maps, so that what the disk returns now is checked, and without filling
  the page cache with what only the check needs.

May touch: the Disk it is handed. Reads at the disk's speed: run it in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ister.storage.disk import Disk
from ister.storage.index import SparseIndex
from ister.storage.pacing import unpaced
from ister.storage.record import BATCH, FOOTER, INDEX, Header, parse_header, salt_of
from ister.storage.recovery import DamagedRange, broken_ranges
from ister.storage.segment import (
    FOOTER_BYTES,
    Footer,
    base_of,
    footer_at_end,
    parse_segment_header,
    segment_name,
)


@dataclass(frozen=True, slots=True)
class VerifyProgress:
    """The progress of a check."""

    segments: int
    segments_total: int
    bytes: int
    bytes_total: int


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The result of a check of offsets [start_offset, end_offset); `damaged` is empty if all is well."""

    start_offset: int
    end_offset: int
    segments: int
    records: int
    messages: int
    bytes: int
    damaged: tuple[DamagedRange, ...]


def verify_log(
    disk: Disk,
    folder: str,
    incarnation: bytes,
    *,
    durable_end: int | None = None,
    rest: Callable[[], None] = unpaced,
) -> Iterator[VerifyProgress | VerifyReport]:
    """Check a log up to `durable_end`, or all of it if None; yields the progress, and last the report.

    Segments that are trimmed meanwhile are left out. `rest` is called every 256 KiB or more often. Raises OSError.
    """
    bases = [base for name in disk.listdir(folder) if (base := base_of(name)) is not None]
    if durable_end is not None:
        bases = [base for base in bases if base < durable_end]
    sizes = {base: _size(disk, f"{folder}/{segment_name(base)}") for base in bases}
    total, done = sum(sizes.values()), 0
    found: list[DamagedRange] = []
    records = messages = 0
    start: int | None = None
    end, newest = 0, -1
    yield VerifyProgress(0, len(bases), 0, total)
    for number, base in enumerate(bases):
        path = f"{folder}/{segment_name(base)}"
        following = bases[number + 1] if number + 1 < len(bases) else None
        try:
            data = disk.read_once(path, rest)
        except FileNotFoundError:
            continue  # it was trimmed; a missing one in the middle is noticed at the segment before it
        start = base if start is None else start
        one = _Segment(
            path, data, base, salt_of(incarnation, base), following, durable_end, incarnation, rest
        )
        found += one.check()
        records, messages, end = records + one.records, messages + one.messages, one.end
        newest = base
        done += sizes[base]
        yield VerifyProgress(number + 1, len(bases), done, total)
    if durable_end is not None and bases and newest == bases[-1] and end < durable_end:
        gone = f"no segment holds them; the newest one ends at offset {end}"
        found.append(DamagedRange(end, durable_end, f"{folder}/{segment_name(newest)}", 0, gone))
    yield VerifyReport(start or 0, end, len(bases), records, messages, done, tuple(found))


def _size(disk: Disk, path: str) -> int:
    try:
        return disk.size(path)
    except FileNotFoundError:
        return 0


class _Segment:
    """A segment that is being checked."""

    def __init__(
        self,
        path: str,
        data: bytes | bytearray,
        base: int,
        salt: int,
        following: int | None,
        durable_end: int | None,
        incarnation: bytes,
        rest: Callable[[], None],
    ) -> None:
        self.path, self.data, self.base, self.salt = path, data, base, salt
        self.following, self.durable_end, self.incarnation = following, durable_end, incarnation
        self._rest = rest
        self.records = self.messages = 0
        self.last = base  # after the last complete record
        self.end = base
        self.footer: Footer | None = None

    def check(self) -> list[DamagedRange]:
        """Return the damage of the segment."""
        size = len(self.data)
        self.footer = footer_at_end(bytes(self.data[max(0, size - FOOTER_BYTES) :]), size, self.salt)
        sealed = self.following is not None or self.footer is not None
        limit = self.following
        if limit is None:
            limit = self.footer.next_offset if self.footer is not None else self.durable_end
        # If the log is not being written, the end of its newest segment is where its records end.
        open_end = limit is None
        self.end = limit if limit is not None else 1 << 62
        found = broken_ranges(
            self.path, self.data, self.base, self.end, self.salt, sealed=sealed, on_record=self._count
        )
        if open_end:
            self.end = self.last
            found = [one for one in found if one.end < 1 << 62]
        known = {one.position for one in found}
        found += [one for one in self._check_header() + self._check_index() if one.position not in known]
        return found

    def _count(self, header: Header) -> None:
        self._rest()
        if header[1] == BATCH:
            self.records += 1
            self.messages += header[5]
            self.last = header[7] + header[5]

    def _check_header(self) -> list[DamagedRange]:
        header = parse_segment_header(self.data)
        if isinstance(header, str) or (header.incarnation == self.incarnation and header.base == self.base):
            return []  # the first damage was found with the records
        reason = "its header is of another topic, or of another place in this one"
        return [DamagedRange(self.base, self.base, self.path, 0, reason)]

    def _check_index(self) -> list[DamagedRange]:
        """Check that each entry of the index leads to the record that it names."""
        footer = self.footer
        if footer is None or not footer.index_bytes:
            return []
        position = footer.bytes - FOOTER_BYTES - footer.index_bytes
        header = parse_header(self.data, position, self.salt) if position > 0 else None
        index = None
        if header is not None and header[1] == INDEX:
            record = bytes(self.data[position : position + footer.index_bytes])
            index = SparseIndex.decode(record, header, self.salt)
        reason = "its index is not what was written"
        if index is not None:
            for offset, at in zip(index.offsets, index.positions, strict=True):
                there = parse_header(self.data, at, self.salt) if at < position else None
                if there is None or there[1] == FOOTER or there[7] != offset:
                    break
            else:
                return []
            reason = "its index leads to places where no such record is"
        return [DamagedRange(footer.next_offset, footer.next_offset, self.path, position, reason)]


__all__ = ["VerifyProgress", "VerifyReport", "verify_log"]
