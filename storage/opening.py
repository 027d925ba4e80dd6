"""Opening a log: from the files of a folder to what a Wal goes on from.

- Nothing is changed before it is known that the log may be opened; whoever gets an error finds every byte as
  it was.
- What counts afterwards has been synced here, whatever happened before.

May touch: the Disk it is handed. Runs where the log's owner runs.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Final

from ister.errors import DamagedError, GapError, LogFailedError
from storage.disk import Disk, File
from storage.producers import ENTRY_BYTES, PRODUCERS_MAX, ProducerTable
from storage.record import HEADER_BYTES, Header, salt_of
from storage.recovery import (
    RecoveryReport,
    Scan,
    damaged,
    position_of,
    scan_segment,
    walk_headers,
    written_end,
)
from storage.segment import (
    FOOTER_BYTES,
    SEGMENT_BYTES_MAX,
    SEGMENT_HEADER_BYTES,
    Footer,
    SegmentHeader,
    SegmentInfo,
    base_of,
    encode_footer,
    encode_segment_header,
    footer_at_end,
    parse_segment_header,
    segment_name,
    topic_crc,
)
from storage.spare import SPARE_NAME

# Resends reach back some 64 batches of 64 KiB from each producer; this much of the log is read for their
# offsets.
PRODUCERS_BYTES_BACK: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class WalSettings:
    """How a log is cut into segments."""

    segment_bytes_max: int = SEGMENT_BYTES_MAX
    segment_age_ms_max: int = 60_000
    producers_max: int = PRODUCERS_MAX

    def __post_init__(self) -> None:
        if not 4096 <= self.segment_bytes_max <= SEGMENT_BYTES_MAX:
            raise ValueError(
                f"segment_bytes_max {self.segment_bytes_max} is not in 4096..{SEGMENT_BYTES_MAX}"
            )

    @property
    def batch_bytes_max(self) -> int:
        """Return how many bytes of frames one batch may have, whatever else its segment must hold."""
        snapshot = HEADER_BYTES + 4 + ENTRY_BYTES * self.producers_max
        return self.segment_bytes_max - SEGMENT_HEADER_BYTES - snapshot - HEADER_BYTES - FOOTER_BYTES


@dataclass(slots=True)
class Active:
    """The segment that is being written."""

    file: File
    base: int
    salt: int
    end: int  # the byte behind the last record
    zeroed: int  # blocks are written up to here
    records: int = 0
    first_timestamp_ms: int = 0
    last_timestamp_ms: int = 0


@dataclass(slots=True)
class OpenedLog:
    """What a log goes on from."""

    report: RecoveryReport
    sealed: list[SegmentInfo]
    active: Active | None
    producers: ProducerTable


@dataclass(slots=True)
class _Tail:
    """One of the newest segments, scanned byte by byte."""

    path: str
    base: int
    salt: int
    data: bytes
    scan: Scan
    headed: bool  # its segment header is whole
    batches: list[Header]


def open_log(
    disk: Disk,
    folder: str,
    *,
    topic: str,
    incarnation: bytes,
    settings: WalSettings,
    start_offset: int,
    known_end: int,
) -> OpenedLog:
    """Find, check, mend and sync the log in `folder`.

    Raises DamagedError, GapError, DiskFullError, LogFailedError.
    """
    if len(incarnation) != 16:
        raise ValueError(f"an incarnation has 16 bytes, not {len(incarnation)}")
    try:
        return _Opening(disk, folder, topic, incarnation, settings, start_offset, known_end).run()
    except OSError as error:
        raise LogFailedError(f"the log of topic {topic!r} cannot be opened: {error}") from error


class _Opening:
    def __init__(
        self,
        disk: Disk,
        folder: str,
        topic: str,
        incarnation: bytes,
        settings: WalSettings,
        start_offset: int,
        known_end: int,
    ) -> None:
        self.disk, self.folder, self.topic = disk, folder, topic
        self.incarnation, self.settings, self.start_offset = incarnation, settings, start_offset
        self.known_end = known_end
        self.torn_bytes = self.rewritten_bytes = 0
        self.discarded: list[str] = []
        self.finished: list[str] = []

    def run(self) -> OpenedLog:
        self.disk.makedirs(self.folder)
        names = self.disk.listdir(self.folder)
        bases = [base for name in names if (base := base_of(name)) is not None]
        tails, older = self._scan_tail(bases)
        sealed = [self._read_ends(base) for base in older]
        for before, base in zip(sealed, [*older, tails[0].base][1:] if tails else (), strict=True):
            if before.end != base:
                raise GapError(
                    f"{before.path} ends at offset {before.end}, and the next segment begins at {base}"
                )
        kept, lost = self._judge(tails)
        if not tails and self.known_end > self.start_offset:
            raise damaged(self.folder, 0, f"it is empty, and the log was durable up to {self.known_end}")
        producers = self._producers(sealed, kept)

        # From here on the log is known to be good, and files are written.
        if SPARE_NAME in names:
            self.disk.unlink(f"{self.folder}/{SPARE_NAME}")
        for tail in reversed(lost):
            self.torn_bytes += written_end(tail.data)
            self.discarded.append(tail.path)
            self.disk.unlink(tail.path)
        proven = max((tail.scan.committed for tail in kept), default=0)
        active = None
        for tail in kept:
            last = tail is kept[-1]
            active = self._mend(tail, proven, sealed, last)
        self.disk.sync_folder(self.folder)
        start = sealed[0].base if sealed else active.base if active else self.start_offset
        report = RecoveryReport(
            topic=self.topic,
            start_offset=start,
            next_offset=kept[-1].scan.next_offset if kept else sealed[-1].end if sealed else start,
            segments=len(sealed) + (active is not None),
            records_scanned=sum(tail.scan.records for tail in tails),
            bytes_scanned=sum(len(tail.data) for tail in tails),
            torn_bytes=self.torn_bytes,
            rewritten_bytes=self.rewritten_bytes,
            discarded=tuple(self.discarded),
            finished=tuple(self.finished),
        )
        return OpenedLog(report, sealed, active, producers)

    def _path(self, base: int) -> str:
        return f"{self.folder}/{segment_name(base)}"

    def _scan_tail(self, bases: list[int]) -> tuple[list[_Tail], list[int]]:
        """Scan from the newest segment back until those before it are known to have been sealed durably.

        A segment that ends at offset n was, if something behind it says that the log was durable beyond n: the
        commit that made it so covered the seal. Durable up to n alone may be from before the footer was written.
        """
        tails: list[_Tail] = []
        proven = -1
        older = list(bases)
        while older and (not tails or tails[0].base >= proven):
            base = older.pop()
            path, salt = self._path(base), salt_of(self.incarnation, base)
            data = self.disk.read(path)
            headed = self._check_header(path, base, data)
            batches: list[Header] = []
            scan = scan_segment(data, base, salt, batches.append)
            tail = _Tail(path, base, salt, data, scan, headed, batches)
            proven = max(proven, tail.scan.committed, tail.scan.promised)
            tails.insert(0, tail)
        return tails, older

    def _check_header(self, path: str, base: int, data: bytes) -> bool:
        """Say whether a segment's header is whole; raise if it is whole and not the one that belongs here."""
        header = parse_segment_header(data)
        if isinstance(header, str):
            if header.startswith("format version"):
                raise damaged(path, 0, header)
            return False
        if header.incarnation != self.incarnation or header.topic_crc != topic_crc(self.topic):
            raise damaged(
                path, 0, f"it belongs to another topic than {self.topic!r}, or to a deleted one of that name"
            )
        if header.base != base:
            raise damaged(path, 0, f"its header says that it begins at offset {header.base}")
        return True

    def _read_ends(self, base: int) -> SegmentInfo:
        """Return what header and footer of a sealed segment say."""
        path, salt = self._path(base), salt_of(self.incarnation, base)
        file = self.disk.open(path)
        try:
            size = file.size()
            if not self._check_header(path, base, file.pread(SEGMENT_HEADER_BYTES, 0)):
                raise damaged(path, 0, "its header is not what was written")
            footer = footer_at_end(file.pread(FOOTER_BYTES, max(0, size - FOOTER_BYTES)), size, salt)
        finally:
            file.close()
        if footer is None:
            raise damaged(
                path, max(0, size - FOOTER_BYTES), "it is followed by other segments, and has no valid footer"
            )
        return _info(path, base, footer)

    def _judge(self, tails: list[_Tail]) -> tuple[list[_Tail], list[_Tail]]:
        """Return the tail's segments that hold the log, and those behind its end.

        Raise if that end is damage.
        """
        for number, tail in enumerate(tails):
            scan, later = tail.scan, tails[number + 1 :]
            whole = scan.snapshot is not None and (scan.footer is not None or scan.torn_bytes == 0)
            if whole and later:
                if scan.next_offset == later[0].base:
                    continue
                if scan.footer is not None:
                    raise GapError(
                        f"{tail.path} ends at offset {scan.next_offset}, and {later[0].path} follows it"
                    )
            # The log ends in this segment, at the first thing in it that is not valid.
            if scan.torn_bytes and self.disk.links(tail.path) > 1:
                raise damaged(tail.path, scan.end, "it is in the store too, so it was whole once")
            promised = max(
                self.known_end,
                scan.promised,
                *(max(one.scan.committed, one.scan.promised) for one in later),
                0,
            )
            if promised > scan.next_offset:
                raise damaged(
                    tail.path,
                    scan.end,
                    f"offset {scan.next_offset} should be there, and the log was durable up to {promised}",
                )
            if scan.snapshot is None:  # not even its head is there
                return tails[:number], tails[number:]
            return tails[: number + 1], later
        return tails, []

    def _producers(self, sealed: list[SegmentInfo], kept: list[_Tail]) -> ProducerTable:
        """Return the producers as of the log's end, with what their last batches' offsets are."""
        room = PRODUCERS_BYTES_BACK - sum(tail.scan.end for tail in kept)
        back = len(sealed)
        while back > 0 and sealed[back - 1].bytes <= room:
            back -= 1
            room -= sealed[back].bytes
        if back == len(sealed) and not kept and sealed:
            back -= 1
        headers: list[Header] = []
        snapshot: bytes | None = None
        for info in sealed[back:]:
            try:
                found = walk_headers(
                    self.disk.read(info.path), info.base, salt_of(self.incarnation, info.base), headers.append
                )
            except ValueError as error:
                raise DamagedError(f"{info.path} is damaged: {error}") from None
            snapshot = snapshot if snapshot is not None else found
        for tail in kept:
            headers += tail.batches
            snapshot = snapshot if snapshot is not None else tail.scan.snapshot
        if snapshot is None:
            return ProducerTable(self.settings.producers_max)
        table = ProducerTable.decode(snapshot, self.settings.producers_max)
        for header in headers:
            table.advance(header[9], header[10], header[5], header[7], header[8])
        return table

    def _mend(self, tail: _Tail, proven: int, sealed: list[SegmentInfo], last: bool) -> Active | None:
        """Cut, complete and sync one segment of the tail; return it if it is the one to go on writing."""
        scan = tail.scan
        file = self.disk.open(tail.path)
        keep = False
        try:
            if scan.footer is None and scan.torn_bytes:
                file.truncate(scan.end)  # what was behind it reads as zeros from now on
                self.torn_bytes += scan.torn_bytes
            start = position_of(tail.data, scan.end, proven, tail.salt) if proven > tail.base else 0
            if start < scan.end:
                file.pwritev((tail.data[start : scan.end],), start)
                self.rewritten_bytes += scan.end - start
            if not tail.headed:  # lost with a power failure, or damaged: all it says is known otherwise
                header = SegmentHeader(
                    self.incarnation, tail.base, scan.first_timestamp_ms, topic_crc(self.topic)
                )
                file.pwritev((encode_segment_header(header),), 0)
            footer = scan.footer
            if footer is None and not last:
                footer = Footer(
                    scan.next_offset,
                    scan.next_offset - tail.base,
                    scan.records,
                    scan.first_timestamp_ms,
                    scan.last_timestamp_ms,
                    scan.end + FOOTER_BYTES,
                )
                self.finished.append(tail.path)
                file.pwritev((encode_footer(tail.salt, footer, max(0, scan.next_offset - proven)),), scan.end)
            elif footer is not None:
                file.pwritev((tail.data[scan.end : scan.end + FOOTER_BYTES],), scan.end)
            if footer is not None:
                file.truncate(footer.bytes)
                sealed.append(_info(tail.path, tail.base, footer))
            else:
                file.truncate(max(scan.end, self.settings.segment_bytes_max))
                keep = True
            file.datasync()
            if not keep:
                return None
            return Active(
                file=file,
                base=tail.base,
                salt=tail.salt,
                end=scan.end,
                zeroed=scan.end,
                records=scan.records,
                first_timestamp_ms=scan.first_timestamp_ms,
                last_timestamp_ms=scan.last_timestamp_ms,
            )
        finally:
            if not keep:
                with contextlib.suppress(OSError):
                    file.close()


def _info(path: str, base: int, footer: Footer) -> SegmentInfo:
    return SegmentInfo(
        path=path,
        base=base,
        end=footer.next_offset,
        bytes=footer.bytes,
        first_timestamp_ms=footer.first_timestamp_ms,
        last_timestamp_ms=footer.last_timestamp_ms,
        messages=footer.messages,
        records=footer.records,
    )
